"""Configure Sphinx, and give it the table of providers."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))
from catalog_table import catalog_table

project = "flask-byok"
author = "flask-byok contributors"
project_copyright = "2026, flask-byok contributors"
release = version = installed_version("flask-byok")

extensions = ["sphinx.ext.autodoc", "pallets_sphinx_themes"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "flask"
html_title = f"flask-byok {version}"
html_static_path = ["_static"]
html_show_sourcelink = False


class Providers(SphinxDirective):
    """``.. providers::`` shows the catalog."""

    def run(self) -> list[Node]:
        return self.parse_text_to_nodes(catalog_table())


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("providers", Providers)

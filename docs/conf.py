"""Configure Sphinx."""

from importlib.metadata import version as installed_version

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

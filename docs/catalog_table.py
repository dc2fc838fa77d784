"""Write the table of providers from the catalog."""

from collections.abc import Iterable, Iterator

from flask_byok.catalog import PROVIDERS, Field, ProviderSpec


def catalog_table() -> str:
    """Return the providers as a table in reStructuredText, each with the document that its facts come from."""
    head = ("provider", "id, also", "fields: the operator's variables", "default model", "format")
    cells = [head, *map(_cells, PROVIDERS)]
    rows = "".join("   * - " + "\n     - ".join(row) + "\n" for row in cells)
    return f".. list-table::\n   :header-rows: 1\n\n{rows}"


def _cells(spec: ProviderSpec) -> Iterator[str]:
    yield f"`{spec.name} <{spec.docs}>`__" if spec.docs else spec.name
    yield _literals((spec.id, *spec.aliases))
    yield "; ".join(_field(spec, each) for each in spec.fields)
    yield f"``{spec.default_model}``" if spec.default_model else "none"
    yield f"``{spec.adapter}``"


def _field(spec: ProviderSpec, field: Field) -> str:
    choices = f" ({_literals(field.choices)})" if field.choices else ""
    variables = _literals(spec.variables[field.name])
    return f"``{field.name}``{choices}" + (f": {variables}" if variables else "")


def _literals(names: Iterable[str]) -> str:
    return ", ".join(f"``{name}``" for name in names)

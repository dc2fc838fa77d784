"""Size: lines of code, modules, functions, tests."""

from __future__ import annotations

import ast
import io
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .figures import Figure

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flask_byok"
#: Folders of the package that serve demonstrations and tests.
APART = ("demo", "testing")
#: Folders and modules that only accounts need; everything else is the core.
WING = ("accounts/", "cli/accounts/", "web/records_api")
#: Modules that are data: a provider is a row in one of them.
ROWS = ("catalog/rows_",)
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> list[Path]:
    """Return the package's modules as paths below it, without demo and testing."""
    found = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path for path in found if path.parts[0] not in APART)


def count_code_lines(source: str) -> int:
    """Count the lines that are more than a comment, a docstring or blank."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Documented) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            docstrings.update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def measure_code() -> Iterator[Figure]:
    """Yield the figures of the package's size and of its functions."""
    sources = {path: (PACKAGE / path).read_text() for path in modules()}
    sizes = {path: count_code_lines(source) for path, source in sources.items()}
    wing = sum(size for path, size in sizes.items() if path.as_posix().startswith(WING))
    by_room: Counter[str] = Counter()
    for path, size in sizes.items():
        by_room[path.parts[0]] += size
    rooms = tuple(f"{size:>6,}  {room}" for room, size in by_room.most_common())
    top = tuple(str(path) for path in sources if len(path.parts) == 1)
    small = tuple(
        str(path)
        for path, source in sources.items()
        if path.name != "__init__.py" and source.count("\n") < 50
    )
    data = sum(size for path, size in sizes.items() if path.as_posix().startswith(ROWS))
    code = sum(sizes.values()) - data
    yield Figure("Lines of code", code, 13_600, rooms)
    yield Figure("… of the core", code - wing, 10_550)
    yield Figure("Lines of the catalog's rows, which are data", data)
    yield Figure("… of the wing (accounts)", wing)
    yield Figure("Modules", len(sources), 91)
    yield Figure("… at the top", len(top), 12)
    yield Figure("… under 50 lines, without __init__", len(small), 8, small)
    yield from _measure_functions(sources)


def measure_tests() -> Figure:
    """Return how many lines the test suite has, blank ones included."""
    files = (ROOT / "tests").rglob("*.py")
    return Figure("Lines of tests", sum(path.read_text().count("\n") for path in files), 33_500)


def _measure_functions(sources: dict[Path, str]) -> Iterator[Figure]:
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }
    long = tuple(f"{length:>4}  {name}" for name, length in lengths.items() if length > 60)
    yield Figure("Lines of a function: median", statistics.median(lengths.values()), 8)
    yield Figure("… 90th percentile", statistics.quantiles(lengths.values(), n=10)[-1], 25)
    yield Figure("… longest", max(lengths.values()), 60, long)

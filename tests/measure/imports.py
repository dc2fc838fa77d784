"""Shape: circles of imports, and how many floors stand on each other.

What counts is imported when a module is loaded. An import inside a function builds no floor;
those for type checkers are counted apart.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from .code import PACKAGE, modules
from .figures import Figure

Graph = dict[str, set[str]]
_ROOT = PACKAGE.name


def read_imports(*, typing: bool = False) -> Graph:
    """Map each module to the modules of the package that it imports.

    :param typing: Add the imports under ``if TYPE_CHECKING``.
    """
    paths = {_name(path): PACKAGE / path for path in modules()}
    graph: Graph = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = {
            target
            for statement in _statements(ast.parse(path.read_text()), typing)
            for target in _targets(statement, package, paths)
        }
    return graph


def to_rooms(graph: Graph) -> Graph:
    """Draw modules together into rooms: the folders of the package, and the modules at its top."""
    rooms: Graph = {}
    for module, targets in graph.items():
        rooms.setdefault(_room(module), set()).update(map(_room, targets))
    return {room: targets - {room} for room, targets in rooms.items() if room != _ROOT}


def find_circles(graph: Graph) -> list[list[str]]:
    """Return circles, in the order of the imports, until none is left when each is opened."""
    left = {name: set(targets) for name, targets in graph.items()}
    found = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1][::-1]
            found.append(circle)
            left[circle[0]].discard(circle[1])
        else:
            return found


def find_longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of imports, the importing end first; empty if there is a circle."""
    chains: dict[str, list[str]] = {}
    try:
        for name in TopologicalSorter(graph).static_order():
            below = (chains[target] for target in graph.get(name, ()))
            chains[name] = [name, *max(below, key=len, default=[])]
    except CycleError:
        return []
    return max(chains.values(), key=len)


def measure_imports() -> Iterator[Figure]:
    """Yield the figures of circles and floors."""
    graph = read_imports()
    rooms = to_rooms(graph)
    yield _circles("Circles of modules", graph, 0)
    yield _circles("… with imports for type checkers", read_imports(typing=True), None)
    yield _circles("Circles of rooms (folders, modules at the top)", rooms, 0)
    yield _chain("Floors of rooms", rooms, 12)
    yield _chain("Floors of modules", graph, None)


def _circles(name: str, graph: Graph, aim: int | None) -> Figure:
    found = find_circles(graph)
    return Figure(name, len(found), aim, tuple(map(" → ".join, found)))


def _chain(name: str, graph: Graph, aim: int | None) -> Figure:
    chain = find_longest_chain(graph)
    return Figure(name, len(chain) or math.inf, aim, (" → ".join(chain),) if chain else ())


def _name(path: Path) -> str:
    parts = (_ROOT, *path.with_suffix("").parts)
    return ".".join(parts[:-1] if path.name == "__init__.py" else parts)


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _statements(node: ast.AST, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import() | ast.ImportFrom():
                yield child
            case ast.FunctionDef():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) if not typing:
                continue
            case _:
                yield from _statements(child, typing)


def _targets(
    statement: ast.Import | ast.ImportFrom, package: str, known: Container[str]
) -> Iterator[str]:
    """Yield the modules of the package that a statement names."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        base = resolve_name("." * statement.level + (statement.module or ""), package)
        parts = (f"{base}.{alias.name}" for alias in statement.names)
        names = [part if part in known else base for part in parts]
    yield from (name for name in names if name in known)

"""The package's imports, as the figures see them."""

from __future__ import annotations

from .imports import find_circles, find_longest_chain, read_imports, to_rooms

GRAPH = {"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": set[str]()}


def test_no_modules_import_each_other() -> None:
    """Each module is loaded after all that it imports: there is no circle."""
    assert find_circles(read_imports()) == []


def test_imports_are_found() -> None:
    """The graph has relative imports of modules and of names, and those for type checkers if asked for."""
    graph, typed = read_imports(), read_imports(typing=True)
    assert "flask_byok.errors" in graph["flask_byok.settings"]
    assert len(find_longest_chain(graph)) > 5
    assert all(graph[name] <= typed[name] for name in typed)
    assert to_rooms(graph)["flask_byok.extension"] >= {"flask_byok.web"}


def test_circles_and_floors() -> None:
    """A circle is named in the order of its imports; the longest chain is the number of floors."""
    assert find_longest_chain(GRAPH) == ["a", "b", "c", "d"]
    circular = GRAPH | {"d": {"b"}}
    (circle,) = find_circles(circular)
    assert circle[0] == circle[-1]
    assert set(circle) == {"b", "c", "d"}
    assert find_longest_chain(circular) == []

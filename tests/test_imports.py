"""How the package's files depend on each other, read from their text."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(pymysqlpool.__file__).parent
FILES = sorted(file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__"))


def imports(nodes: list[ast.stmt], *, of_types: bool) -> Iterator[str]:
    """The package's files that these statements import: when they run, or for annotations only."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if of_types:
                yield from imports(node.body, of_types=True)
            yield from imports(node.orelse, of_types=of_types)
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]
        for field in ("body", "orelse", "finalbody", "handlers"):
            yield from imports(getattr(node, field, []), of_types=of_types)


def graph(*, of_types: bool) -> dict[str, set[str]]:
    """Which file imports which."""
    return {
        file: set(imports(ast.parse((PACKAGE / f"{file}.py").read_text()).body, of_types=of_types)) & {*FILES}
        for file in FILES
    }


def reachable(edges: dict[str, set[str]], file: str) -> set[str]:
    """The files that `file` depends on, directly or indirectly."""
    found: set[str] = set()
    new = edges[file]
    while new:
        found |= new
        new = set().union(*(edges[each] for each in new)) - found
    return found


def test_no_circle_at_run_time() -> None:
    """The files can be put into an order in which each imports only files before it."""
    edges = graph(of_types=False)
    assert edges["pool"] >= {"connection", "places"}  # otherwise nothing was read
    order = list(TopologicalSorter(edges).static_order())
    assert order.index("session") < order.index("wire") < order.index("connection") < order.index("pool")


def test_one_circle_by_annotations() -> None:
    """The types of pool, places, connection, block and cursors refer to each other; there is no other cycle."""
    edges = graph(of_types=True)
    circles = {
        frozenset(other for other in FILES if other in reachable(edges, file) and file in reachable(edges, other))
        for file in FILES
        if file in reachable(edges, file)
    }
    assert circles == {frozenset({"pool", "places", "connection", "block", "cursors"})}


def test_statements_are_pure_text() -> None:
    """The file that classifies statements imports no other file of the package."""
    assert graph(of_types=True)["statements"] == set()

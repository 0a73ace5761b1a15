"""The page for users of the old package is right: each of its lines runs, or raises the error next to it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql
import pytest

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin
    from server import Server

PAGE = Path(__file__).parent.parent.joinpath(".github", "migrating.md").read_text()


def code(cell: str) -> str:
    """The lines of code in a cell of a table."""
    return "\n".join(re.findall(r"`([^`]+)`", cell))


def rows(heading: str) -> list[list[str]]:
    """The cells of each row in the tables under this heading."""
    _, _, section = PAGE.partition(f"## {heading}\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


MEANS, TOLD, SAME = rows("Runs, but behaves differently"), rows("Raises an error"), rows("Works as before")


@pytest.fixture
def names(server: Server, database: str, admin: Admin) -> Iterator[dict[str, Any]]:
    """The names that the lines of code use, with a pool that has not been used yet."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.users (name varchar(20))")
    config = {**server.connect_kwargs, "database": database}
    made: list[pymysqlpool.ConnectionPool] = []

    def noted(pool_class: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            made.append(pool_class(*args, **kwargs))
            return made[-1]

        return make

    with pymysqlpool.ConnectionPool(2, **config) as pool, warnings.catch_warnings():
        yield {
            **{name: getattr(pymysqlpool, name) for name in pymysqlpool.__all__},
            "ConnectionPool": noted(pymysqlpool.ConnectionPool),
            "ConnectionPoolSingleton": noted(pymysqlpool.ConnectionPoolSingleton),
            "config": config,
            "pool": pool,
            "pymysql": pymysql,
            "pymysqlpool": pymysqlpool,
            "sql": "insert into users values ('ann')",
            "warnings": warnings,
        }
        for other in made:
            other.close()


def run(program: str, names: dict[str, Any]) -> None:
    """Run it, and return the connection that it leaves borrowed."""
    try:
        exec(compile(program, "migrating.md", "exec"), names)  # noqa: S102  ours
    finally:
        if isinstance(conn := names.get("conn"), pymysqlpool.Connection):
            conn.close()


def test_the_tables_are_read() -> None:
    """Each table has the expected number of rows and columns."""
    assert [len(MEANS), len(TOLD), len(SAME)] == [7, 8, 11]
    assert {len(row) for row in [*MEANS, *TOLD]} == {3}


@pytest.mark.parametrize("row", [*MEANS, *SAME], ids=lambda row: code(row[0]))
def test_the_old_line_runs(row: list[str], names: dict[str, Any]) -> None:
    """Each old line that should run does."""
    run(code(row[0]), names)


@pytest.mark.parametrize("row", TOLD, ids=lambda row: code(row[0]))
def test_the_old_line_is_told(row: list[str], names: dict[str, Any]) -> None:
    """Each old line that should raise an error raises that error."""
    error = {"TypeError": TypeError, "ReturnConnectionToPoolError": pymysqlpool.ReturnConnectionToPoolError}
    with pytest.raises(error[code(row[1]).split("\n")[0]]):
        run(code(row[0]), names)


@pytest.mark.parametrize("row", [*MEANS, *TOLD], ids=lambda row: code(row[2]))
def test_the_new_line_runs(row: list[str], names: dict[str, Any]) -> None:
    """Each new line runs."""
    run(code(row[2]), names)


def test_the_new_lines_do_what_they_replace(names: dict[str, Any], admin: Admin, database: str) -> None:
    """The new lines for the two main differences, and for the end of a block, have the documented effect."""
    (autocommit, bound), blocks = MEANS[:2], {code(row[0]): code(row[2]) for row in [*MEANS, *TOLD]}
    run(code(autocommit[2]), names)
    assert names["pool"].get_connection().execute_query("select @@autocommit") == ((1,),)
    run(code(bound[2]), names)
    assert (names["pool"].maxsize, names["pool"].total_num) == (100, 0)
    [committed, rolled_back] = [new for old, new in sorted(blocks.items(), reverse=True) if "execute(sql)" in old]
    assert committed.endswith("commit()")
    assert rolled_back.endswith("rollback()")
    with admin.cursor() as cursor:
        for program, count in ((rolled_back, 0), (committed, 1)):
            run(program, names)
            cursor.execute(f"select count(*) from {database}.users")
            assert cursor.fetchone() == (count,)


@pytest.mark.parametrize("exhausted", [False, True])
def test_the_program_runs(names: dict[str, Any], exhausted: bool) -> None:
    """The example distinguishes an exhausted pool from one with a free connection."""
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    taken = [names["pool"].get_connection() for _ in range(2 if exhausted else 0)]
    exec(compile(program, "migrating.md", "exec"), names)  # noqa: S102  ours
    assert len(names["outcome"]) == (2 if exhausted else 1)
    for connection in taken:
        connection.close()

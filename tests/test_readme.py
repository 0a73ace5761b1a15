"""The README is true: its blocks run, and its lists and tables name what there is."""

from __future__ import annotations

import doctest
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pymysqlpool
from pymysqlpool.stats import Closed

if TYPE_CHECKING:
    from server import Server

ROOT = Path(__file__).parent.parent
README = ROOT.joinpath("README.md").read_text()
CONFIG = 'dict(host="localhost", user="app", password="secret", database="shop")'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_session_shows_what_it_says(server: Server, database: str) -> None:
    """The first example, typed in as it stands, answers as it says."""
    [session] = blocks("pycon")
    assert CONFIG in session
    session = session.replace(CONFIG, repr({**server.connect_kwargs, "database": database}))
    test = doctest.DocTestParser().get_doctest(session, {}, "README", None, 0)
    assert doctest.DocTestRunner().run(test) == doctest.TestResults(0, len(test.examples))


def test_the_program_runs(make_pool: Any) -> None:
    """The second example runs, and leaves nothing borrowed."""
    [program] = blocks("python")
    namespace: dict[str, Any] = {"pool": make_pool()}
    exec(compile(program, "README", "exec"), namespace)  # noqa: S102  ours
    assert namespace["row"] == (1,)
    assert namespace["pool"].size() == 2


def test_the_table_has_all_options() -> None:
    """The table of options names each argument of the pool, and no other."""
    table = README[README.index("## Options") : README.index("`get_connection(timeout=1")]
    named = set(re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE))
    parameters = inspect.signature(pymysqlpool.ConnectionPool).parameters.values()
    assert named == {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


@pytest.mark.parametrize("line", blocks("sh")[0].splitlines())
def test_the_commands_are_toxs(line: str) -> None:
    """The two commands run tox, on the demo and on everything, as `.ci/run` does."""
    assert re.search(r"pipx run tox( -e demo)?$", line)


def test_the_files_to_read_are_all_there_are() -> None:
    """The way to read the package passes each of its files."""
    package = {path.name for path in Path(pymysqlpool.__file__).parent.glob("*.py")}
    reading = set(re.findall(r"`(\w+\.py)`", README[README.index("To read the package") :]))
    assert package - reading == {"__init__.py"}


def test_the_figures_are_those_that_were_measured() -> None:
    """The comparison is what `tox -e bench` has written, word for word, and so are the commands of one cycle."""
    assert ROOT.joinpath(".github", "benchmarks.md").read_text().strip() in README
    assert ROOT.joinpath(".github", "benchmarks.png").exists()
    report = json.loads(ROOT.joinpath(".github", "benchmarks.json").read_text())
    on, off = (line["values"] for line in report["figures"] if line["measure"] == "commands")
    rows = re.findall(r"^\| \**([^|*]+?)\** \| \**(\d+)\** \| \**(\d+)\** \|$", README, re.MULTILINE)
    assert len(rows) == 5
    for title, commands_on, commands_off in rows:
        [peer] = [name for name, known in report["peers"].items() if known.startswith(title)]
        assert (on[peer], off[peer]) == (int(commands_on), int(commands_off))


def test_the_statistics_are_named() -> None:
    """The sentence on `pool.stats()` names each number, and each reason for which a connection is closed."""
    [sentence] = [line for line in README.splitlines() if line.startswith("`pool.stats()`")]
    fields = {*pymysqlpool.PoolStats._fields, *Closed._fields}
    assert set(re.findall(r"`(\w+)`", sentence)) - {"PoolStats"} == {
        name for name in fields if not name.startswith(("seconds", "longest"))
    }

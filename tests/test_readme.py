"""The README is correct: its code blocks run, and its lists and tables are complete."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import eventually

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
    """The first example, typed in literally, prints what the README shows."""
    [session] = blocks("pycon")
    assert CONFIG in session
    session = session.replace(CONFIG, repr({**server.connect_kwargs, "database": database}))
    test = doctest.DocTestParser().get_doctest(session, {}, "README", None, 0)
    assert doctest.DocTestRunner().run(test) == doctest.TestResults(0, len(test.examples))


def test_the_program_runs(make_pool: Any) -> None:
    """The second example runs, and leaves nothing borrowed."""
    program, _ = blocks("python")
    namespace: dict[str, Any] = {"pool": make_pool()}
    exec(compile(program, "README", "exec"), namespace)  # noqa: S102  ours
    assert namespace["row"] == (1,)
    assert namespace["pool"].size() == 2


def test_sigterm_ends_the_program(make_pool: Any) -> None:
    """With the lines for SIGTERM the main thread's block is rolled back, and the pool waits for other threads."""
    _, program = blocks("python")
    pool = make_pool()
    pool.get_connection().execute_query("create table t (n int) engine=innodb")
    got_it, ended = threading.Event(), threading.Event()

    def borrow_for_a_while() -> None:
        with pool.get_connection() as cur:
            cur.execute("insert into t values (1)")
            got_it.set()
            eventually(lambda: pool._pool.closed)
        ended.set()

    other = threading.Thread(target=borrow_for_a_while)

    def serve() -> None:
        other.start()
        got_it.wait()
        with pool.get_connection() as cur:
            cur.execute("insert into t values (2)")
            os.kill(os.getpid(), signal.SIGTERM)
            eventually(lambda: False)

    before = signal.getsignal(signal.SIGTERM)
    namespace: dict[str, Any] = {"pool": pool, "serve": serve}
    try:
        with pytest.raises(SystemExit):
            exec(compile(program, "README", "exec"), namespace)  # noqa: S102  ours
    finally:
        signal.signal(signal.SIGTERM, before)
    assert namespace["still_borrowed"] == 0
    assert ended.wait(10)
    assert make_pool().get_connection().execute_query("select n from t") == ((1,),)


def test_the_links_lead_somewhere() -> None:
    """Each page that the README links to exists, and so does each of its own sections that it links to."""
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in headings
        else:
            assert ROOT.joinpath(link).exists(), link


def test_the_table_has_all_options() -> None:
    """The table of options lists each argument of the pool, and no other."""
    table = README[README.index("## Options") : README.index("`get_connection(timeout=1")]
    named = set(re.findall(r"^\|[^|]*\| `(\w+)` \|", table, re.MULTILINE))
    parameters = inspect.signature(pymysqlpool.ConnectionPool).parameters.values()
    assert named == {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


@pytest.mark.parametrize("line", blocks("sh")[0].splitlines())
def test_the_commands_are_toxs(line: str) -> None:
    """The two commands run tox, for the demo and for everything, as `.ci/run` does."""
    assert re.search(r"pipx run tox( -e demo)?$", line)


def test_the_files_to_read_are_all_there_are() -> None:
    """The reading order includes each file of the package."""
    package = {path.name for path in Path(pymysqlpool.__file__).parent.glob("*.py")}
    reading = set(re.findall(r"`(\w+\.py)`", README[README.index("To read the package") :]))
    assert package - reading == {"__init__.py"}


def test_the_gaps_are_those_that_were_measured() -> None:
    """The table of cluster faults has the figures that `tox -e cluster -- --write` has written."""
    written = [
        [cell.strip() for cell in line.split("|")[1:4]]
        for line in ROOT.joinpath(".github", "cluster.md").read_text().splitlines()
        if re.match(r"\| .*\d", line)
    ]
    assert len(written) == 6
    for fault, gap, raw in written:
        assert f"| {fault} | {gap} | {raw} |\n" in README


def test_each_test_file_has_a_promise() -> None:
    """The map for contributors lists each test file, and no other."""
    named = re.findall(r"`(test_\w+\.py)`", ROOT.joinpath(".github", "CONTRIBUTING.md").read_text())
    assert sorted(named) == sorted(file.name for file in Path(__file__).parent.glob("test_*.py"))


def test_the_figures_are_those_that_were_measured() -> None:
    """The table of commands has the figures that `tox -e bench` has written."""
    report = json.loads(ROOT.joinpath(".github", "benchmarks.json").read_text())
    on, off = (line["values"] for line in report["figures"] if line["measure"] == "commands")
    rows = re.findall(r"^\| \**([^|*]+?)\** \| \**(\d+)\** \| \**(\d+)\** \|$", README, re.MULTILINE)
    assert len(rows) == 5
    for title, commands_on, commands_off in rows:
        [peer] = [name for name, known in report["peers"].items() if known.startswith(title)]
        assert (on[peer], off[peer]) == (int(commands_on), int(commands_off))


def test_the_statistics_are_named() -> None:
    """The list for `pool.stats()` has each field, and each reason for which a connection is closed."""
    part = README[README.index("`pool.stats()` returns") : README.index("`pool.size()` is the number")]
    fields = {*pymysqlpool.PoolStats._fields, *Closed._fields}
    assert set(re.findall(r"`(\w+)`", part)) - {"PoolStats"} == fields

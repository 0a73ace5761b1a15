"""The command that finds the pool size: what it shows, what it refuses, and that it keeps the password to itself."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest
from helpers import SECRET, eventually, sessions

from pymysqlpool import ConnectionPool, __main__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin
    from server import Server

SHORT = ["--threads", "4", "--sizes", "1,2", "--seconds", "0.1"]
# As `python -m pymysqlpool`, but SIGINT is handled even if a shell that runs this in the background has it ignored.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pymysqlpool", run_name="__main__", alter_sys=True)
"""


class Done(NamedTuple):
    """The result of a call of the command."""

    status: int | str | None
    out: str
    err: str


class Terminal(io.StringIO):
    """A terminal at which Ctrl-C is pressed when the text `until` appears."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, until: str | None = None) -> None:
        super().__init__()
        self._until = until

    def isatty(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Write `text`, or press Ctrl-C if it contains `until`."""
        if self._until is not None and self._until in text:
            raise KeyboardInterrupt
        return super().write(text)


@pytest.fixture(autouse=True)
def _environment(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the server's address into the environment, and check that no thread is left behind."""
    for name in ("host", "port", "user", "password"):
        monkeypatch.setenv(f"MYSQL_{name.upper()}", str(getattr(server, name)))
    before = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command as a program would, and check that the password does not appear anywhere."""

    def run(*arguments: str) -> Done:
        status: int | str | None
        try:
            status = __main__.main(arguments)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return Done(status, out, err)

    return run


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


# What it shows


def test_table_and_advice(call: Any) -> None:
    """On a pipe it writes only a plain table, with a bar in each row, and two sentences of advice."""
    done = call(*SHORT)
    above, head, one, two, empty, advice, budget = done.out.splitlines()
    assert done.err == ""
    assert done.status == 0
    assert above.split() == ["wait", "for", "a", "connection", "borrow,", "query,", "return"]
    assert head.split() == ["size", "queries/s", *["p50/ms", "p95/ms", "p99/ms"] * 2]
    rates = []
    for size, row in (("1", one), ("2", two)):
        cells = row.split()
        assert cells[0] == size
        assert set(cells[-1]) == {"#"}
        rates.append((float(cells[1]), len(cells[-1])))
        p50, p95, p99, *whole = map(float, cells[2:-1])
        assert 0 <= p50 <= p95 <= p99
        assert whole == sorted(whole)
        assert whole[0] > 0
    assert max(rates)[1] == __main__.BAR
    assert empty == ""
    assert advice.startswith("Use size=")
    assert advice.count(".") == 1
    assert budget.startswith("Processes with one such pool each: at most ")
    assert max(map(len, done.out.splitlines()[:4])) <= 80
    assert done.out.isascii()


def test_json(call: Any, database: str) -> None:
    """With --json it writes one object with the same results, for programs."""
    query = "select database(), '100%'"
    done = call(*SHORT, "--json", "--database", database, "--query", query)
    data = json.loads(done.out)
    assert is_one_line(done.out)
    assert (done.status, done.err) == (0, "")
    assert [row["size"] for row in data["rows"]] == [1, 2]
    assert data["size"] in (1, 2)
    assert f"size={data['size']}:" in data["advice"]
    assert "at most" in data["budget"]
    assert (data["query"], data["threads"], data["seconds"], data["problem"]) == (query, 4, 0.1, None)
    for row in data["rows"]:
        assert row["queries_per_second"] > 0
        assert list(row["wait_ms"]) == list(row["whole_ms"]) == ["p50", "p95", "p99"]


def test_figures(call: Any) -> None:
    """Rate and times are right: n connections with a query that takes 100 ms give n times 10 queries a second."""
    options = ["--query", "select sleep(0.1)", "--threads", "4", "--seconds", "1"]
    rows = json.loads(call("--json", *options, "--sizes", "1,2,4").out)["rows"]
    for row in rows:
        size = row["size"]
        assert 0.5 < row["queries_per_second"] / (size * 10) <= 1.05
        assert row["whole_ms"]["p50"] >= 100
        # With the others before it in the line, a thread waits for as many queries as there are others per connection.
        assert row["wait_ms"]["p50"] > (4 / size - 1) * 100 * 0.9
    assert rows[-1]["wait_ms"]["p50"] < 75


def test_a_query_longer_than_the_time(call: Any) -> None:
    """A run has at least one query, and ends with those that are running; waiting threads are not served."""
    start = time.perf_counter()
    options = ["--query", "select sleep(0.3)", "--threads", "8", "--seconds", "0.01", "--sizes", "1"]
    [row] = json.loads(call("--json", *options).out)["rows"]
    assert row["queries_per_second"] < 1 / 0.3
    assert time.perf_counter() - start < 8 * 0.3


def test_advice() -> None:
    """The advice is the smallest size within 5 % of the best rate."""
    zero = dict.fromkeys(__main__.PERCENTILES, 0.0)
    rates = {1: 500.0, 2: 949.0, 4: 950.0, 8: 1000.0, 16: 990.0}
    rows = [__main__.Row(size, rate, zero, zero) for size, rate in rates.items()]
    text = "Use size={}: of the sizes measured it is the smallest within 5 % of the best rate, with "
    assert __main__.advised(rows).size == 4
    assert __main__.advice(rows) == text.format(4) + "950 queries per second beside 1000 at size=8."
    assert __main__.advice(rows[:2]) == text.format(2) + "949 queries per second."


@pytest.mark.parametrize("most", [0, 10])
def test_budget(call: Any, admin: Admin, user: str, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """The budget is how many pools of the advised size the server allows, and allows this user."""
    with admin.cursor() as cursor:
        cursor.execute(f"alter user {user}@'%%' with max_user_connections {most}", ())
        cursor.execute("select @@max_connections")
        [limit] = cursor.fetchone()
    monkeypatch.setenv("MYSQL_USER", user)
    monkeypatch.setenv("MYSQL_PASSWORD", SECRET)
    data = json.loads(call("--json", "--threads", "4", "--sizes", "3", "--seconds", "0.1").out)
    text = "Processes with one such pool each: at most {}, as the server allows {} connections."
    assert data["budget"] == text.format((most or limit) // 3, most or limit)


def test_no_budget(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has no limit, or does not report it, is measured all the same."""
    monkeypatch.setattr(__main__, "LIMITS", "select 0, 0")
    assert call(*SHORT).out.splitlines()[-1].startswith("Use size=")
    monkeypatch.setattr(__main__, "LIMITS", "select @@no_such_variable")
    assert json.loads(call("--json", *SHORT).out)["budget"] is None


def test_percentiles() -> None:
    """A percentile is the smallest of the times that is not exceeded by this fraction of them."""
    assert __main__.percentiles_ms([0.001]) == pytest.approx({"p50": 1, "p95": 1, "p99": 1})
    hundred = [number / 1000 for number in range(1, 101)]
    assert __main__.percentiles_ms(hundred) == pytest.approx({"p50": 50, "p95": 95, "p99": 99})


def test_on_a_terminal(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal one line of progress is overwritten while it runs, and erased at the end; bars are blocks."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert call(*SHORT).status == 0
    assert "\n" not in err.getvalue()
    for text in ("size 1: opening", "size 1: warming up", r"size 2: \d+\.\d of 0\.1 s, "):
        assert re.search(rf"\r{text}", err.getvalue())
    assert err.getvalue().endswith(f"\r{'':60}\r")
    assert "\N{FULL BLOCK}" * __main__.BAR in out.getvalue()


# What it can't do


def test_a_query_that_fails(call: Any) -> None:
    """The server's error for the query is printed in one line, with status 1."""
    done = call(*SHORT, "--query", "select\nnonsense")
    assert (done.status, done.out) == (1, "")
    assert is_one_line(done.err)
    assert "nonsense" in done.err
    assert "1054" in done.err


def test_an_error_in_the_end(call: Any, admin: Admin, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before an error, such as too many connections, is printed."""
    with admin.cursor() as cursor:
        cursor.execute(f"alter user {user}@'%%' with max_user_connections 2", ())
    monkeypatch.setenv("MYSQL_USER", user)
    monkeypatch.setenv("MYSQL_PASSWORD", SECRET)
    done = call("--threads", "4", "--sizes", "1,3", "--seconds", "0.1", "--json")
    data = json.loads(done.out)
    assert done.status == 1
    assert [row["size"] for row in data["rows"]] == [1]
    assert data["size"] == 1
    assert "1226" in data["problem"]
    assert done.err == f"python -m pymysqlpool: {data['problem']}\n"


def test_an_error_on_the_way(call: Any, admin: Admin, database: str) -> None:
    """An error in one thread during a run, here that a table is full, ends the run for all."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n tinyint unsigned auto_increment primary key) auto_increment 246")
    query = ["--query", "insert into t values (null)", "--database", database]
    start = time.perf_counter()
    done = call("--threads", "4", "--sizes", "1", "--seconds", "30", *query)
    assert (done.status, done.out) == (1, "")
    assert is_one_line(done.err)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("is_json", [False, True])
def test_a_server_that_can_not_be_reached(call: Any, is_json: bool) -> None:
    """That the server can't be reached is printed in one line, with status 1; --json still writes its object."""
    done = call("--port", "1", *["--json"] * is_json)
    assert done.status == 1
    assert is_one_line(done.err)
    assert "2003" in done.err
    if is_json:
        data = json.loads(done.out)
        assert (data["rows"], data["size"], data["advice"]) == ([], None, None)
        assert "2003" in data["problem"]
    else:
        assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--sizes", "2,1"], "ascending"),
        (["--sizes", "1,1"], "ascending"),
        (["--sizes", "0,1"], "from 1 on"),
        (["--sizes", ""], "from 1 on"),
        (["--sizes", "1,x"], "from 1 on"),
        (["--threads", "0"], "from 1 on"),
        (["--threads", "-1"], "from 1 on"),
        (["--threads", "1.5"], "from 1 on"),
        (["--seconds", "0"], "above 0"),
        (["--seconds", "inf"], "above 0"),
        (["--seconds", "x"], "above 0"),
        (["--port", "65536"], "65535"),
        (["--host"], "expected one argument"),
    ],
)
def test_bad_arguments(call: Any, arguments: list[str], word: str) -> None:
    """The error for a bad argument is one line that names it, with status 2."""
    done = call(*arguments)
    assert (done.status, done.out) == (2, "")
    assert is_one_line(done.err)
    assert arguments[0] in done.err
    assert word in done.err


def test_a_bad_default(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is the error for a bad value from the environment."""
    monkeypatch.setenv("MYSQL_PORT", "x")
    done = call()
    assert done.status == 2
    assert is_one_line(done.err)
    assert "--port" in done.err


def test_help(call: Any) -> None:
    """--help names all options."""
    done = call("--help")
    assert (done.status, done.err) == (0, "")
    names = ["host", "port", "user", "password", "database", "query", "threads", "sizes", "seconds", "json", "plot"]
    assert all(f"--{name}" in done.out for name in names)


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_plot_without_matplotlib(call: Any, monkeypatch: pytest.MonkeyPatch, is_installed: bool) -> None:
    """That `--plot` needs matplotlib is reported before anything is measured; other errors of it, after the table."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: sys if is_installed else None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # to import it fails
    done = call(*SHORT, "--plot", "rates.png")
    assert is_one_line(done.err)
    assert "matplotlib" in done.err
    assert (done.status, "Use size=" in done.out) == ((1, True) if is_installed else (2, False))


# The password


GIVEN = [[f"--password={SECRET}"], ["--password", SECRET], [f"-p{SECRET}"], ["-p", SECRET]]


@pytest.mark.parametrize("arguments", GIVEN)
def test_a_password_as_an_argument(call: Any, user: str, arguments: list[str]) -> None:
    """A password may be given like the other options."""
    done = call("--user", user, *arguments, *SHORT)
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("arguments", GIVEN)
def test_a_password_that_ps_does_not_show(user: str, admin: Admin, arguments: list[str]) -> None:
    """While the program runs, `ps` shows all of its arguments except the password."""
    command = [sys.executable, "-m", "pymysqlpool", "--user", user, *arguments, "--sizes", "1", "--threads", "1"]
    with subprocess.Popen([*command, "--seconds", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:

        def is_at_work() -> bool:
            with admin.cursor() as cursor:
                cursor.execute("show processlist")
                return any(row[1] == user for row in cursor.fetchall())

        eventually(is_at_work)
        seen = psutil.Process(program.pid).cmdline()
        program.terminate()
        out, err = program.communicate()
    assert SECRET not in " ".join(seen)
    assert seen[1:] == [*command[1:5], "--sizes", "1", "--threads", "1", "--seconds", "60"]
    assert SECRET.encode() not in out + err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([f"--passwd={SECRET}"], "--password"),
        ([f"--p={SECRET}"], "--port"),
        ([f"--{SECRET}"], ""),
        (["--password", f"--{SECRET}"], ""),
        (["--json", SECRET], ""),
        (["--thread=8"], "--threads"),
    ],
)
def test_unknown_arguments(call: Any, arguments: list[str], hint: str) -> None:
    """An unknown argument is not repeated, as it may be a password, but the closest option is named."""
    done = call(*arguments)
    assert (done.status, done.out) == (2, "")
    assert is_one_line(done.err)
    assert f"not known{hint and ', perhaps meant as ' + hint}:" in done.err


@pytest.mark.parametrize("is_asked", [False, True])
def test_where_the_password_comes_from(call: Any, user: str, monkeypatch: pytest.MonkeyPatch, is_asked: bool) -> None:
    """It comes from a prompt, if one is asked for, or from the environment."""
    monkeypatch.setenv("MYSQL_PASSWORD", "wrong" if is_asked else SECRET)
    monkeypatch.setattr("getpass.getpass", lambda: SECRET)
    done = call(*SHORT, "--user", user, *["--password"] * is_asked)
    assert (done.status, done.err) == (0, "")


def test_a_wrong_password(call: Any, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong password gives the server's error, and is not shown either."""
    monkeypatch.setenv("MYSQL_USER", user)
    monkeypatch.setenv("MYSQL_PASSWORD", SECRET * 2)
    done = call(*SHORT)
    assert (done.status, done.out) == (1, "")
    assert is_one_line(done.err)
    assert "1045" in done.err


def test_no_answer_to_the_prompt(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the prompt, the end of the input is an error, and Ctrl-C ends the program."""
    for error, status in ((EOFError, 2), (KeyboardInterrupt, 130)):

        def ask(error: type[BaseException] = error) -> str:
            raise error

        monkeypatch.setattr("getpass.getpass", ask)
        done = call("--password")
        assert (done.status, done.out) == (status, "")
        assert is_one_line(done.err)


def test_a_password_that_can_not_be_sent(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for characters that PyMySQL can't encode does not contain the password."""
    monkeypatch.setenv("MYSQL_PASSWORD", f"\N{EURO SIGN}{SECRET}")
    done = call()
    assert (done.status, done.out) == (2, "")
    assert is_one_line(done.err)
    assert "Latin-1" in done.err


# Ctrl-C


@pytest.mark.parametrize(
    ("until", "known"), [("size 1: opening", []), ("size 1: 0.", []), ("size 2: warming", [1]), ("size 2: 0.", [1])]
)
def test_interruption(call: Any, monkeypatch: pytest.MonkeyPatch, until: str, known: list[int]) -> None:
    """Ctrl-C at any point ends the command, which prints the results so far."""
    monkeypatch.setattr(sys, "stderr", Terminal(until))
    done = call("--json", *SHORT)
    data = json.loads(done.out)
    assert done.status == 130
    assert [row["size"] for row in data["rows"]] == known
    assert data["problem"] == "interrupted"


def test_too_many_threads(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the machine can start no more threads, those that were started end."""
    start = threading.Thread.start

    def start_three(self: threading.Thread) -> None:
        if sum(isinstance(thread, __main__.Borrower) for thread in threading.enumerate()) == 3:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(__main__.Borrower, "start", start_three)
    done = call(*SHORT, "--query", "select sleep(0.05)")
    assert (done.status, done.out) == (1, "")
    assert done.err == "python -m pymysqlpool: RuntimeError: can't start new thread\n"


def test_the_pool_is_closed(call: Any, admin: Admin, database: str) -> None:
    """No session is left behind."""
    assert call(*SHORT, "--database", database).status == 0
    eventually(lambda: not sessions(admin, database))


def test_as_a_program(user: str) -> None:
    """As a program on a terminal, Ctrl-C after the first size: the first row, status 130, no traceback, no secret."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "MYSQL_USER": user, "MYSQL_PASSWORD": SECRET}
    command = [sys.executable, "-c", PROGRAM, "--threads", "3", "--sizes", "1,2", "--query", "select sleep(0.05)"]
    seen = b""
    with subprocess.Popen(
        [*command, "--seconds", "0.5"], stdout=subprocess.PIPE, stderr=follower, env=environment
    ) as program:
        os.close(follower)
        with suppress(OSError):  # on Linux a read from a terminal whose other side is closed raises it
            while b"size 2: 0." not in seen:
                seen += os.read(leader, 1024)
            program.send_signal(signal.SIGINT)
            while data := os.read(leader, 1024):
                seen += data
        os.close(leader)
        assert program.stdout is not None
        out = program.stdout.read().decode()
    assert program.returncode == 130, seen
    _, _, row, empty, advice, _ = out.splitlines()
    assert row.split()[0] == "1"
    assert empty == ""
    assert advice.startswith("Use size=1:")
    assert seen.endswith(b"python -m pymysqlpool: interrupted\r\n")
    assert b"Traceback" not in seen
    assert SECRET.encode() not in seen + out.encode()


def test_a_pool_is_what_is_measured(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures this package's pool, in each size, with autocommit."""
    made: list[tuple[int, Any]] = []

    class Pool(ConnectionPool):
        def __init__(self, size: int, **kwargs: Any) -> None:
            made.append((size, kwargs["autocommit"]))
            super().__init__(size, **kwargs)

    monkeypatch.setattr(__main__, "ConnectionPool", Pool)
    assert call(*SHORT).status == 0
    assert made == [(1, True), (2, True)]

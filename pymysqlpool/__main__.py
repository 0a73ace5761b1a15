"""The command that measures which pool size is best: `python -m pymysqlpool --query "SELECT ..." --threads 32`."""

from __future__ import annotations

import argparse
import difflib
import getpass
import importlib.util
import json
import math
import os
import sys
import threading
import time
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, NoReturn

from pymysql.err import MySQLError

from .errors import GetConnectionFromPoolError, PoolClosedError
from .pool import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A size is good enough if it reaches this fraction of the best rate: more connections would cost more than they gain.
GOOD_ENOUGH = 0.95
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
#: The length of the best row's bar, in characters, which makes the table 80 characters wide.
BAR = 14
#: The seconds between two reports of progress. They are too rare to slow down the threads that are measured.
PROGRESS_INTERVAL = 0.2
#: How long, in seconds, a run waits at its end for queries that are still running.
CLOSE_TIMEOUT = 1.0
#: How many sessions the server allows, in all and to this user; 0 is no limit.
LIMITS = "select @@max_connections, @@max_user_connections"


class Row(NamedTuple):
    """The result for a pool of `size`: queries per second, and percentiles of its times in milliseconds."""

    size: int
    queries_per_second: float
    #: The wait for a connection, and the whole cycle of borrow, query and return.
    wait_ms: dict[str, float]
    whole_ms: dict[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the results, and return the exit status: 0, 1 after an error, 130 after Ctrl-C.

    Without `argv`, the arguments are those of the process. An error in the arguments exits with status 2.
    """
    parser = make_parser()
    options = parse(parser, argv)
    if argv is None and isinstance(options.password, str):  # pragma: no cover  a subprocess runs it
        restart_with(options.password)
    show = progress_on(sys.stderr)
    rows: list[Row] = []
    limit = None
    problem, status = None, 0
    try:
        config = {name: getattr(options, name) for name in ("host", "port", "user", "database")}
        config["password"] = find_password(parser, options.password)
        for size in options.sizes:
            show(f"size {size}: opening")
            with ConnectionPool(size, autocommit=True, **config) as pool:
                limit = limit or find_limit(pool)
                race = Race(pool, options.query, options.threads, options.seconds)
                rows.append(measure(race, size, show))
    except KeyboardInterrupt:
        problem, status = "interrupted", 130
    except Exception as error:  # noqa: BLE001  every error is reported in one line
        problem, status = " ".join(f"{type(error).__name__}: {error}".split()), 1
    show("")
    if options.json:
        sys.stdout.write(as_json(options, rows, limit, problem) + "\n")
    elif rows:
        sys.stdout.write(as_text(rows, limit, bar_on(sys.stdout)) + "\n")
    if rows and options.plot:
        try:
            plot(options, rows)
        except Exception as error:  # noqa: BLE001  such as a missing folder or an unknown format
            problem, status = problem or f"no plot: {' '.join(str(error).split())}", status or 1
    if problem is not None:
        sys.stdout.flush()  # keeps the order if both streams go to one file
        sys.stderr.write(f"{parser.prog}: {problem}\n")
    return status


# Arguments


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> Parser:
    """Return the parser, with all options, their defaults and their help texts."""
    parser = Parser(
        prog="pymysqlpool" if os.path.basename(sys.argv[0]).startswith("pymysqlpool") else "python -m pymysqlpool",  # noqa: PTH119
        description="Find your pool size: run your query from your threads on your server, over pools of each size.",
        epilog="The query runs as often as it can, each time with autocommit: one that writes, writes.",
        allow_abbrev=False,  # the error for an ambiguous one would repeat its value, which may be a password
    )
    environment = os.environ.get
    add = parser.add_argument
    add("--host", default=environment("MYSQL_HOST", "localhost"), help="default: MYSQL_HOST, or localhost")
    add("--port", default=environment("MYSQL_PORT", "3306"), type=port, help="default: MYSQL_PORT, or 3306")
    add("--user", default=environment("MYSQL_USER"), help="default: MYSQL_USER, or the name of your login")
    add(
        *("-p", "--password"),
        nargs="?",
        const=True,
        help="prompt for the password if no value is given; default: MYSQL_PASSWORD, or none",
    )
    add("--database", help="default: none")
    add("--query", default="SELECT 1", help="default: %(default)s")
    add("--threads", default=32, type=count, help="how many borrow connections; default: %(default)s")
    add("--sizes", default="1,2,4,8,16,32", type=ascending, help="of the pools to measure; default: %(default)s")
    add("--seconds", default=2.0, type=positive, help="for each size; default: %(default)s")
    add("--plot", metavar="FILE", help="also draw the results; PNG, SVG or PDF by FILE's suffix; needs matplotlib")
    add("--json", action="store_true", help="write one JSON object, for programs")
    return parser


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. The error for an unknown argument does not repeat it, because it may be a password."""
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        close = difflib.get_close_matches(unknown[0].partition("=")[0], [f"--{name}" for name in vars(options)], n=1)
        hint = f", perhaps meant as {close[0]}" if close else ""
        parser.error(f"an argument is not known{hint}: --help lists all arguments")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed: pip install matplotlib")
    return options


def restart_with(password: str) -> NoReturn:  # pragma: no cover  a subprocess runs it
    """Replace this process by one that has the password in its environment, as `ps` shows arguments to all users."""
    kept = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument in ("-p", "--password"):
            next(arguments)
        elif not argument.startswith(("-p", "--password=")):
            kept.append(argument)
    command = [sys.executable, "-m", "pymysqlpool", *kept]
    os.execve(sys.executable, command, {**os.environ, "MYSQL_PASSWORD": password})  # noqa: S606  this program itself


def count(text: str) -> int:
    """Return `text` as a whole number, 1 or more."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number from 1 on, not {text!r}")
    return int(text)


def port(text: str) -> int:
    """Return `text` as the number of a TCP port."""
    if count(text) > 65535:
        raise argparse.ArgumentTypeError(f"should be at most 65535, not {text}")
    return int(text)


def ascending(text: str) -> list[int]:
    """Return `text` as whole numbers, 1 or more, in ascending order."""
    sizes = [count(size) for size in text.split(",")]
    if sizes != sorted(set(sizes)):
        raise argparse.ArgumentTypeError(f"should be ascending, not {text!r}")
    return sizes


def positive(text: str) -> float:
    """Return `text` as a number of seconds above 0."""
    with suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"should be a number of seconds above 0, not {text!r}")


def find_password(parser: Parser, given: str | bool | None) -> str:
    """Return the password: as given, from a prompt (True), or from the environment (None). No error contains it."""
    try:
        password = given or os.environ.get("MYSQL_PASSWORD", "")
        if password is True:
            password = getpass.getpass()
        password.encode("latin1")
    except EOFError:
        parser.error("no password was given")
    except UnicodeError:
        parser.error("the password has characters outside Latin-1, which PyMySQL can't send")
    return password


# Measuring


def find_limit(pool: ConnectionPool) -> int | None:
    """Return how many sessions the server allows this user, or None if it has no limit or does not tell it."""
    with suppress(MySQLError), pool.connection() as connection:
        return min(filter(None, connection.execute_query(LIMITS, return_one=True)), default=None)
    return None


class Race:
    """One run, of all threads over one pool for `seconds`, and the state that they share."""

    def __init__(self, pool: ConnectionPool, query: str, threads: int, seconds: float) -> None:
        self.pool = pool
        self.query = query
        self.seconds = seconds
        #: The threads and the main thread wait here until all of them are ready.
        self.start = threading.Barrier(threads + 1)
        self.over = threading.Event()
        self.failure: Exception | None = None
        self.borrowers = [Borrower(self) for _ in range(threads)]

    def fail(self, error: Exception) -> None:
        """End the run because of `error`."""
        self.failure = error
        self.over.set()
        self.start.abort()


class Borrower(threading.Thread):
    """A thread that borrows, queries and returns until the pool is closed. All times are in seconds."""

    def __init__(self, race: Race) -> None:
        super().__init__(daemon=True)  # a long query does not delay the end of the program
        self._race = race
        # Arrays of numbers: a list of objects would make the garbage collector run during the measurement.
        self.waits = array("d")
        self.cycles = array("d")
        self.began = self.ended = 0.0

    def run(self) -> None:
        """Warm up, wait until all threads are ready, and run."""
        race = self._race
        try:
            with suppress(GetConnectionFromPoolError):  # too little time for all, with a long query on a small pool
                self._cycle(race.seconds)
            race.start.wait()
            self.began = time.perf_counter()
            while True:
                start, borrowed, self.ended = self._cycle(None)
                self.waits.append(borrowed - start)
                self.cycles.append(self.ended - start)
        except (PoolClosedError, threading.BrokenBarrierError):
            pass  # the run is over
        except Exception as error:  # noqa: BLE001  the main thread raises it
            race.fail(error)

    def _cycle(self, timeout: float | None) -> tuple[float, float, float]:
        """Borrow, query and return. Return the times of the start, of the borrow and of the end."""
        start = time.perf_counter()
        connection = self._race.pool.get_connection(timeout, 0)
        borrowed = time.perf_counter()
        with connection as cursor:
            cursor.execute(self._race.query)
        return start, borrowed, time.perf_counter()


def measure(race: Race, size: int, show: Callable[[str], None]) -> Row:
    """Run `race` over its pool of `size`, close the pool, and return the result."""
    show(f"size {size}: warming up")
    try:
        for borrower in race.borrowers:
            borrower.start()
        with suppress(threading.BrokenBarrierError):  # a thread has failed
            race.start.wait()
            watch(race, lambda text: show(f"size {size}: {text}"))
    finally:
        race.start.abort()
        race.pool.close(CLOSE_TIMEOUT)  # waiting threads end now, the others after their query
    if race.failure is None:
        for borrower in race.borrowers:
            borrower.join()
    if race.failure is not None:  # possibly set while the last queries ended
        raise race.failure
    # Queries that were still running when the time was over are included, and so is their time.
    racers = [borrower for borrower in race.borrowers if borrower.cycles]
    seconds = max(racer.ended for racer in racers) - min(racer.began for racer in racers)
    waits = sorted(wait for racer in racers for wait in racer.waits)
    cycles = sorted(cycle for racer in racers for cycle in racer.cycles)
    return Row(size, len(cycles) / seconds, percentiles_ms(waits), percentiles_ms(cycles))


def watch(race: Race, show: Callable[[str], None]) -> None:
    """Wait until the time is over and at least one query is done, or until a thread has failed."""
    start = time.perf_counter()
    past, done = 0.0, 0
    while past < race.seconds or not done:
        if race.over.wait(min(PROGRESS_INTERVAL, max(race.seconds - past, 0.01))):
            return
        past = time.perf_counter() - start
        done = sum(len(borrower.cycles) for borrower in race.borrowers)
        show(f"{past:.1f} of {race.seconds:g} s, {done / past:.0f} queries/s")


def percentiles_ms(ordered: list[float]) -> dict[str, float]:
    """Return the percentiles, in milliseconds, of times that are given in seconds and in ascending order.

    A percentile is the smallest of the times that is not less than this fraction of them (the nearest rank).
    """
    return {name: 1000 * ordered[math.ceil(part * len(ordered)) - 1] for name, part in PERCENTILES.items()}


# Showing


def progress_on(stream: Any) -> Callable[[str], None]:
    """Return a function that replaces the last text with a new one if `stream` is a terminal, or else does nothing."""

    def show(text: str) -> None:
        if stream.isatty():
            stream.write(f"\r{'':60}\r{text}")
            stream.flush()

    return show


def bar_on(stream: Any) -> str:
    """Return the character that bars are made of: a full block on a terminal that can show it."""
    has_blocks = stream.isatty() and str(stream.encoding).lower().startswith("utf")
    return "\N{FULL BLOCK}" if has_blocks else "#"


def as_text(rows: list[Row], limit: int | None, bar: str) -> str:
    """Return the rows as a table, and below it the advice and, if there is a limit, the budget."""
    return "\n".join([as_table(rows, bar), "", advice(rows), *filter(None, [budget(rows, limit)])])


def as_table(rows: list[Row], bar: str) -> str:
    """Return the rows as a table, each with a bar in proportion to its rate."""
    best = max(row.queries_per_second for row in rows)
    lines = [
        f"{'':16}{'wait for a connection':>24}{'borrow, query, return':>24}",
        f"{'size':>5}{'queries/s':>11}" + "".join(f"{name + '/ms':>8}" for name in PERCENTILES) * 2,
    ]
    for row in rows:
        times = "".join(f" {time_ms:7.2f}" for time_ms in (*row.wait_ms.values(), *row.whole_ms.values()))
        length = max(1, round(BAR * row.queries_per_second / best))
        lines.append(f"{row.size:5}{row.queries_per_second:11.1f}{times}  {bar * length}")
    return "\n".join(lines)


def plot(options: argparse.Namespace, rows: list[Row]) -> None:  # pragma: no cover  `tox -e frameworks` has matplotlib
    """Draw the rates and the times side by side, and write the figure to `options.plot`."""
    from matplotlib.figure import Figure  # noqa: PLC0415  optional, and needed only here

    sizes = [str(row.size) for row in rows]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    rates, times = figure.subplots(1, 2)
    best = advised(rows)
    bars = rates.bar(sizes, [row.queries_per_second for row in rows], color="#8a8f98")
    bars[rows.index(best)].set_color("#0b6e4f")
    rates.bar_label(bars, fmt="%.0f", fontsize=8)
    rates.set(title="queries per second", xlabel=f"size of the pool, under {options.threads} threads")
    for percentile, style in zip(PERCENTILES, (":", "--", "-")):
        for name, color in (("wait", "#b5651d"), ("whole", "#33517e")):
            label = {"wait": "wait for a connection", "whole": "borrow, query, return"}[name]
            found = [getattr(row, f"{name}_ms")[percentile] for row in rows]
            times.plot(sizes, found, style, color=color, label=f"{label}, {percentile}")
    times.set(title="ms", xlabel="size of the pool", ylim=(0, None))
    times.legend(fontsize=8, frameon=False)
    figure.suptitle(
        options.query if len(options.query) <= 80 else options.query[:79] + "…", fontsize=9, parse_math=False
    )
    figure.savefig(options.plot)


def advised(rows: list[Row]) -> Row:
    """Return the row of the smallest size that has a rate of at least `GOOD_ENOUGH` times the best."""
    best = max(row.queries_per_second for row in rows)
    return next(row for row in rows if row.queries_per_second >= GOOD_ENOUGH * best)


def advice(rows: list[Row]) -> str:
    """Return the advice in one sentence."""
    row = advised(rows)
    best = max(rows, key=lambda row: row.queries_per_second)
    beside = "" if row is best else f" beside {best.queries_per_second:.0f} at size={best.size}"
    return (
        f"Use size={row.size}: of the sizes measured it is the smallest within {100 * (1 - GOOD_ENOUGH):.0f} % "
        f"of the best rate, with {row.queries_per_second:.0f} queries per second{beside}."
    )


def budget(rows: list[Row], limit: int | None) -> str | None:
    """Return how many processes, with one pool of the advised size each, the limit allows, in one sentence."""
    if limit is None:
        return None
    most = limit // advised(rows).size
    return f"Processes with one such pool each: at most {most}, as the server allows {limit} connections."


def as_json(options: argparse.Namespace, rows: list[Row], limit: int | None, problem: str | None) -> str:
    """Return the results as JSON. After a `problem`, what could not be measured is missing or null."""
    return json.dumps(
        {
            "query": options.query,
            "threads": options.threads,
            "seconds": options.seconds,
            "rows": [row._asdict() for row in rows],
            "size": advised(rows).size if rows else None,
            "advice": advice(rows) if rows else None,
            "budget": budget(rows, limit) if rows else None,
            "problem": problem,
        }
    )


if __name__ == "__main__":  # pragma: no cover  a subprocess runs it
    sys.exit(main())

"""Shared helpers: waiting for conditions, clocks, sessions, threads, and separate programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

import pymysqlpool

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    import pymysql

    Admin = pymysql.connections.Connection[Any]

MakePool = Callable[..., pymysqlpool.ConnectionPool]
Deed = Callable[[Any], object]
"""What a borrower does with its connection."""
Numbers = Callable[[], "list[int]"]
Add = Callable[[Any, int], None]

SECRET = "correct-horse-battery"  # noqa: S105  nobody's
# No test waits for so long; it is the limit where a borrower that hangs would otherwise wait forever.
GENEROUS = 10.0
# From 3.12 on Python warns that a fork in a process with other threads may deadlock.
FORK_AND_THREADS = ".*multi-threaded, use of fork"


class Boom(Exception):
    """An exception of the application."""


def skip_where_the_interpreter_prints() -> None:
    """Skip a test that leaves a connection borrowed at the exit of a free-threaded interpreter.

    Python 3.13 prints "Exception ignored" from its own `socket.py` there, even for a connection without a pool.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("the interpreter itself prints at its end")


def eventually(condition: Callable[[], object], pause: float = 0.002) -> None:
    """Return as soon as `condition()` is true; for servers, networks and waiting threads, which give no event.

    It is checked every `pause` seconds.
    """
    deadline = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < deadline, "it never came true"
        time.sleep(pause)


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let the package, whose modules import `monotonic` by name, and the test use `clock`."""
    for module in ("time", *(f"pymysqlpool.{name}" for name in ("pool", "place", "places", "session", "wire"))):
        monkeypatch.setattr(f"{module}.monotonic", clock)


class Clock:
    """A clock that a test moves on. It stands still at a whole second, so that sums are exact, or it `runs`."""

    def __init__(self, *, runs: bool = False) -> None:
        real = time.monotonic
        start = real() // 1
        self._base = real if runs else lambda: start
        self._added = 0.0

    def __call__(self) -> float:
        return self._base() + self._added

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._added += seconds


def ask(connection: Any, sql: str, *args: object) -> Any:
    """Run a query and return all rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, args or None)
        return cursor.fetchall()


def run(connection: Any, *statements: str) -> Any:
    """Run statements and return the rows of the last."""
    rows: Any = ()
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            rows = cursor.fetchall()
    return tuple(rows)


def running(*statements: str) -> Deed:
    """Return a function that runs these statements."""

    def deed(connection: Any) -> None:
        for statement in statements:
            ask(connection, statement)

    return deed


def raise_if(error: BaseException | type[BaseException] | None) -> None:
    if error is not None:
        raise error


def check_answers(pool: pymysqlpool.ConnectionPool) -> int:
    """Borrow, check that the reply is the right one, and return the session's id."""
    unique = uuid.uuid4().hex
    with pool.connection() as connection:
        assert ask(connection, f"select '{unique}'") == ((unique,),)
        return connection.server_thread_id[0]


def is_alive(session: int, admin: Admin) -> bool:
    """Whether the server still has the session."""
    return bool(ask(admin, f"select count(*) from information_schema.processlist where id = {session}") == ((1,),))


def sessions(admin: Admin, database: str) -> set[int]:
    """The ids of the server's sessions on `database`."""
    with admin.cursor() as cursor:
        cursor.execute("show processlist")
        return {row[0] for row in cursor.fetchall() if row[3] == database}


def kill(admin: Admin, ids: set[int]) -> None:
    """Kill these sessions, and return when the server has ended them."""
    with admin.cursor() as cursor:
        for number in ids:
            cursor.execute(f"kill {number}")
        cursor.execute("select 1")

        def alive() -> set[int]:
            cursor.execute("show processlist")
            return {row[0] for row in cursor.fetchall()} & ids

        eventually(lambda: not alive())


def session_of(connection: Any) -> int:
    """The id of the session, as queried from the server."""
    with connection.cursor() as cursor:
        cursor.execute("select connection_id()")
        number: int = cursor.fetchone()[0]
        return number


def borrow_all(pool: pymysqlpool.ConnectionPool) -> set[int]:
    """Borrow all places of a pool at once, use each, return them, and return the ids of the sessions."""
    connections = [pool.get_connection(timeout=0) for _ in range(pool.maxsize)]
    ids = {session_of(connection) for connection in connections}
    for connection in connections:
        connection.close()
    assert len(ids) == pool.maxsize
    return ids


# The ways in which a borrower returns a connection; each function returns the session's id.


def by_close(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    connection = pool.get_connection()
    deed(connection)
    connection.close()
    return connection.server_thread_id[0]


def by_block(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    with pool.get_connection() as cursor:
        deed(cursor.connection)
        return cursor.connection.server_thread_id[0]


def by_block_of_the_pool(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    with pool.connection() as connection:
        deed(connection)
        return connection.server_thread_id[0]


def by_exception(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    connection = pool.get_connection()
    with suppress(Boom), connection:
        deed(connection)
        raise Boom
    return connection.server_thread_id[0]


@contextmanager
def one_thread(name: str = "other") -> Iterator[ThreadPoolExecutor]:
    """An additional thread, the same one for each job."""
    with ThreadPoolExecutor(1, thread_name_prefix=name) as executor:
        yield executor


def run_as_program(file: str, *arguments: object, patched: bool = False) -> tuple[int, str, str]:
    """Run a test file as a separate program, with or without gevent's patches; return its status and output."""
    command = [sys.executable, *(["-m", "gevent.monkey"] if patched else []), file, *map(json.dumps, arguments)]
    path = os.pathsep.join(filter(None, [str(Path(file).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def program_arguments() -> list[Any]:
    """The arguments that `run_as_program` has passed."""
    return [json.loads(argument) for argument in sys.argv[1:]]


def is_in(thread: threading.Thread, function: str) -> bool:
    """Whether `thread` runs a function of this name at the moment."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def strike_when_in(thread: threading.Thread, *functions: str) -> None:
    """Send the thread a signal when it runs these functions."""
    eventually(lambda: all(is_in(thread, function) for function in functions))
    signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)


def by_fork(job: Callable[[], object]) -> int:
    """Do `job` in a child that ends without any clean-up; return its exit status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        job()
        status = 0
    except BaseException:  # noqa: BLE001  whatever it is, the child must not go on as a second pytest
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def refuses_after_fork(handle: pymysqlpool.Connection) -> None:
    """Whether a handle of the parent raises PoolError in the child, and closing it does nothing."""
    for use in (handle.cursor, handle.ping, handle.commit, lambda: handle.query("select 1"), handle.connect):
        with pytest.raises(pymysqlpool.PoolError, match="before the fork"):
            use()
    with pytest.raises(pymysqlpool.PoolError, match="before the fork"):
        handle.execute_query("select 1")
    handle.close()

"""What the tests of faults share: conditions that come true elsewhere, threads, and programs of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    import pymysql

    import pymysqlpool

    Admin = pymysql.connections.Connection[Any]
    MakePool = Callable[..., pymysqlpool.ConnectionPool]


def skip_where_the_interpreter_prints() -> None:
    """Skip what leaves a connection borrowed at the end of a free-threaded interpreter.

    Python 3.13 prints "Exception ignored" of its own `socket.py` there, for a connection without a pool too.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("the interpreter itself prints at its end")


def eventually(condition: Callable[[], object]) -> None:
    """Return as soon as `condition()` holds, where the server, the network or another thread's wait give no event."""
    deadline = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < deadline, "it never came true"
        time.sleep(0.002)


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let the pool, which has the function by its name, and the test go by `clock`."""
    for module in ("time", *(f"pymysqlpool.{name}" for name in ("pool", "place", "places", "session", "wire"))):
        monkeypatch.setattr(f"{module}.monotonic", clock)


def sessions(admin: Admin, database: str) -> set[int]:
    """The ids of the server's sessions on `database`."""
    with admin.cursor() as cursor:
        cursor.execute("show processlist")
        return {row[0] for row in cursor.fetchall() if row[3] == database}


def kill(admin: Admin, ids: set[int]) -> None:
    """End these sessions, and return when the server has let go of them."""
    with admin.cursor() as cursor:
        for number in ids:
            cursor.execute(f"kill {number}")
        cursor.execute("select 1")

        def alive() -> set[int]:
            cursor.execute("show processlist")
            return {row[0] for row in cursor.fetchall()} & ids

        eventually(lambda: not alive())


def session_of(connection: Any) -> int:
    """The server's id of the session, from the server."""
    with connection.cursor() as cursor:
        cursor.execute("select connection_id()")
        number: int = cursor.fetchone()[0]
        return number


def borrow_all(pool: pymysqlpool.ConnectionPool) -> set[int]:
    """Borrow all places of a pool at once, use each, return them, and tell the sessions."""
    connections = [pool.get_connection(timeout=0) for _ in range(pool.maxsize)]
    ids = {session_of(connection) for connection in connections}
    for connection in connections:
        connection.close()
    assert len(ids) == pool.maxsize
    return ids


@contextmanager
def one_thread(name: str = "other") -> Iterator[ThreadPoolExecutor]:
    """A thread beside the test's own, the same one for each job."""
    with ThreadPoolExecutor(1, thread_name_prefix=name) as executor:
        yield executor


def run_as_program(file: str, *arguments: object, patched: bool = False) -> tuple[int, str, str]:
    """Run a test's file as a program of its own, under gevent's patches or not; return its status and output."""
    command = [sys.executable, *(["-m", "gevent.monkey"] if patched else []), file, *map(json.dumps, arguments)]
    path = os.pathsep.join(filter(None, [str(Path(file).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def program_arguments() -> list[Any]:
    """What `run_as_program` was given."""
    return [json.loads(argument) for argument in sys.argv[1:]]


def is_in(thread: threading.Thread, function: str) -> bool:
    """Whether `thread` runs a function of this name at the moment."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None

"""Asynchronous exceptions anywhere: between two lines, while waiting, opening, pinging, returning. No place is lost."""

from __future__ import annotations

import ctypes
import gc
import linecache
import os
import random
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import borrow_all, eventually, is_in, one_thread, program_arguments, run_as_program, sessions

import pymysqlpool
from pymysqlpool import ConnectionPool, fairqueue

if TYPE_CHECKING:
    from types import FrameType

    from helpers import Admin, MakePool
    from proxy import Proxy
    from server import Server

PACKAGE = str(Path(pymysqlpool.__file__).parent)


class Interrupted(BaseException):
    """The exception that is raised in a thread."""


pytestmark = pytest.mark.usefixtures("switch_often")


def is_whole(pool: ConnectionPool, struck_at: str = "") -> None:
    """Whether, after a collection and a look for lost places, there are exactly `maxsize` places."""
    gc.collect()
    assert pool.size() == pool.maxsize, struck_at
    borrow_all(pool)


# Between any two lines


def borrow_and_return(pool: ConnectionPool) -> None:
    pool.get_connection().close()


def query(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    with connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()


def leave_something(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.query("set @left = 1")
    connection.close()


def block(pool: ConnectionPool) -> None:
    with pool.get_connection() as cur:
        cur.execute("select 1")


def block_of_the_pool(pool: ConnectionPool) -> None:
    with pool.connection() as connection:
        connection.query("select 1")


def query_by_a_returned_handle(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.close()
    connection.execute_query("select 1")


def ping(pool: ConnectionPool) -> None:
    pool.get_connection(pre_ping=True).close()


def open_one(pool: ConnectionPool) -> None:
    pool.drain()
    pool.get_connection().close()


def return_an_old_one(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    pool.drain()
    connection.close()


def wait_in_vain(pool: ConnectionPool) -> None:
    handles = []
    with suppress(pymysqlpool.GetConnectionFromPoolError):
        while True:
            handles.append(pool.get_connection(timeout=0.001, retry_num=0))
    for handle in handles:
        handle.close()


def lose(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    del connection
    pool.get_connection().close()


DEEDS = [
    borrow_and_return,
    query,
    leave_something,
    block,
    block_of_the_pool,
    query_by_a_returned_handle,
    ping,
    open_one,
    return_an_old_one,
    wait_in_vain,
    lose,
]


def is_at_with(frame: FrameType) -> bool:
    """Whether the line is a `with` statement: there a trace can raise before the release, which Python never does."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


class InterruptAt:
    """A trace function that raises before the `number`-th line of the pool's code."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.struck_at = ""

    def __call__(self, frame: FrameType, _: str, __: Any) -> Any:
        """Trace a function, if it belongs to the pool."""
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        last = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            # The same line twice is a comprehension: from Python 3.12 on a trace that raises there breaks `with`.
            if event == "line" and frame.f_lineno != last and not is_at_with(frame):
                self.come_to(frame)
            last = frame.f_lineno
            return trace

        return trace

    def come_to(self, frame: FrameType) -> None:
        """Count a line, and raise if it is the chosen one."""
        self.left -= 1
        if self.left < 0 and not self.struck_at:
            self.struck_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            raise Interrupted


def interrupt_at(number: int, deed: Callable[[ConnectionPool], None], pool: ConnectionPool) -> str:
    """Call `deed`, interrupted before the pool's `number`-th line; return that line, or None if it was not reached."""
    tracer = InterruptAt(number)

    def do() -> None:
        sys.settrace(tracer)
        try:
            deed(pool)
        except Interrupted:
            pass
        finally:
            sys.settrace(None)

    # Where a trace raises in an `except` clause, Python from 3.11 on keeps the error until the thread ends.
    with one_thread() as thread:
        thread.submit(do).result()
    return tracer.struck_at


@pytest.fixture
def interrupt_everywhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Use a pool repeatedly, interrupted before each line in turn, and check that no place is lost or added."""
    # An exception in a finalizer ends there, and must not be kept for a report, with all that it refers to.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    def interrupt(pool: ConnectionPool, deed: Callable[[ConnectionPool], None]) -> None:
        gc.collect()
        gc.freeze()  # so that the many collections here are quick
        try:
            number = 0
            while struck_at := interrupt_at(number, deed, pool):
                is_whole(pool, struck_at)
                number += 1
        finally:
            gc.unfreeze()
        assert number > 10

    return interrupt


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("deed", DEEDS)
def test_between_any_two_lines(
    make_pool: MakePool,
    admin: Admin,
    database: str,
    interrupt_everywhere: Callable[..., None],
    deed: Callable[[ConnectionPool], None],
) -> None:
    """Whatever is being done, and before whichever line it is interrupted, no place is lost or added."""
    interrupt_everywhere(make_pool(size=2), deed)
    eventually(lambda: len(sessions(admin, database)) <= 2)


def use_what_is_being_reset(pool: ConnectionPool) -> None:
    leave_something(pool)
    block(pool)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_between_any_two_lines_while_a_reply_is_owed(
    make_pool: MakePool, admin: Admin, database: str, interrupt_everywhere: Callable[..., None]
) -> None:
    """The same is true for a borrower whose session has a pending reset when it sends its first command."""
    interrupt_everywhere(make_pool(size=1, init_command="do sleep(0.003)"), use_what_is_being_reset)
    eventually(lambda: len(sessions(admin, database)) <= 1)


# The real interrupt


def interrupt_main_in(function: str) -> threading.Thread:
    """Send the main thread a Ctrl-C as soon as it runs a function of this name."""

    def interrupt() -> None:
        eventually(lambda: is_in(threading.main_thread(), function))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def wait(pool: ConnectionPool) -> None:
    handles = [pool.get_connection() for _ in range(pool.maxsize)]
    try:
        pool.get_connection(timeout=None)
    finally:
        for handle in handles:
            handle.close()


def sleep_in_a_query(pool: ConnectionPool) -> None:
    pool.get_connection().query("select sleep(100)")


@pytest.mark.usefixtures("control_c")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("deed", "function"),
    [(wait, "_wait"), (open_one, "_read_bytes"), (ping, "_read_bytes"), (sleep_in_a_query, "_read_bytes")],
)
def test_keyboard_interrupt(
    make_pool: MakePool, proxy: Proxy, deed: Callable[[ConnectionPool], None], function: str
) -> None:
    """Ctrl-C ends waiting, opening, pinging or reading a reply at once, and no place is lost."""
    pool = make_pool(size=2, host=proxy.host, port=proxy.port)
    proxy.deaf = deed is not wait
    thread = interrupt_main_in(function)
    with pytest.raises(KeyboardInterrupt):
        deed(pool)
    thread.join()
    proxy.deaf = False
    is_whole(pool)


# 500 exceptions, in a separate program: one that is raised in a finalizer is printed


def test_500_asynchronous_exceptions(server: Server, database: str) -> None:
    """After 500 exceptions raised in threads that borrow and return, there are no fewer places and no more sessions."""
    options = {"database": database, **server.connect_kwargs}
    status, printed, errors = run_as_program(__file__, options, database)
    assert (status, printed) == (0, "500 thrown, all places back\n"), errors


def main(connect_kwargs: dict[str, Any], database: str) -> None:
    """Raise exceptions in busy threads, and check that no place is lost or added."""
    sys.setswitchinterval(1e-6)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: None
    fairqueue.CHECK_INTERVAL = 0.02  # a waiting thread gets its exception only when it wakes up
    pool = ConnectionPool(3, "pool1", **connect_kwargs)
    begun = threading.Semaphore(0)

    def work() -> None:
        begun.release()
        while True:
            with suppress(pymysqlpool.GetConnectionFromPoolError):
                random.choice(DEEDS)(pool)  # noqa: S311  no secret

    def worker() -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        begun.acquire()
        return thread

    for _ in range(100):
        workers = [worker() for _ in range(5)]
        for thread in workers:
            throw(Interrupted, thread)
        for thread in workers:
            # An exception in a finalizer was only printed, and the thread goes on.
            deadline = time.monotonic() + 30
            while thread.is_alive():
                assert time.monotonic() < deadline, "it hangs"
                thread.join(0.02)
                throw(Interrupted, thread)
    del thread, workers
    is_whole(pool)
    with pymysql.connect(**{**connect_kwargs, "database": None}) as admin:
        eventually(lambda: gc.collect() >= 0 and len(sessions(admin, database)) == 3)
    print("500 thrown, all places back")


def throw(kind: type[BaseException], thread: threading.Thread) -> None:
    """Raise an exception in another thread, at whatever point that is."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind))


if __name__ == "__main__":
    main(*program_arguments())

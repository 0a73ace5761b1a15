"""The end of a pool: `close()`, garbage collection, program exit. Run as a program, this file exits in a given way."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

import pytest
from helpers import (
    borrow_all,
    eventually,
    one_thread,
    program_arguments,
    run_as_program,
    session_of,
    sessions,
    skip_where_the_interpreter_prints,
)

import pymysqlpool
from pymysqlpool import ConnectionPool, PoolClosedError

if TYPE_CHECKING:
    from helpers import Admin, MakePool
    from server import Server


@pytest.fixture
def aborted(server: Server, admin: Admin, database: str) -> Callable[[], int]:
    """Return how many clients were closed without COM_QUIT, as soon as the test's sessions have ended."""
    if not server.supports_faults:
        pytest.skip("others may use the server, and go without a goodbye")

    def count() -> int:
        eventually(lambda: not sessions(admin, database))
        with admin.cursor() as cursor:
            cursor.execute("show global status like 'Aborted_clients'")
            return int(cursor.fetchone()[1])

    return count


# Closing


def test_close_says_goodbye(make_pool: MakePool, aborted: Callable[[], int]) -> None:
    """`close()` ends idle sessions with COM_QUIT, and borrowed ones when they are returned."""
    before = aborted()
    pool = make_pool(size=4)
    with pool.connection(), pool.connection():
        assert pool.close() == 2
    assert pool.close() == 0
    assert aborted() == before


def test_close_wakes_who_waits(make_pool: MakePool) -> None:
    """All waiting threads, with or without a timeout, get PoolClosedError at once."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with ThreadPoolExecutor(4) as threads:
        waiters = [threads.submit(pool.get_connection, timeout) for timeout in (None, None, 500, 500)]
        eventually(lambda: pool._pool.waiting() == 4)
        pool.close()
        for waiter in waiters:
            with pytest.raises(PoolClosedError, match=r"pool\(pool1\) is closed"):
                waiter.result(timeout=20)
    connection.close()


def test_borrow_from_a_closed_pool(make_pool: MakePool) -> None:
    """A closed pool lends nothing, whatever the method and the timeout."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection.close()
    pool.close()
    for timeout in (0, 1, None):
        with pytest.raises(PoolClosedError, match=r"pool\(pool1\)"):
            pool.get_connection(timeout)
    with pytest.raises(PoolClosedError), pool.connection():
        pass
    with pytest.raises(PoolClosedError), connection:
        pass
    with pytest.raises(PoolClosedError):
        connection.execute_query("select 1")


def test_what_is_borrowed_outlives_close(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A borrowed connection works after `close()`, and is closed when it is returned."""
    pool = make_pool(size=2)
    connection = pool.get_connection()
    assert pool.close() == 1
    assert (pool.size(), pool.total_num) == (0, 1)
    session = session_of(connection)
    eventually(lambda: sessions(admin, database) == {session})
    connection.close()
    eventually(lambda: not sessions(admin, database))
    assert (pool.size(), pool.total_num) == (0, 0)
    assert pool.close() == 0


@pytest.mark.parametrize("timeout", [None, 500])
def test_close_waits_for_what_is_borrowed(make_pool: MakePool, timeout: float | None) -> None:
    """`close(timeout)` returns 0 as soon as all connections have been returned."""
    pool = make_pool(size=2)
    connections = [pool.get_connection() for _ in range(2)]
    with one_thread() as thread:
        closing = thread.submit(pool.close, timeout)
        eventually(lambda: pool._pool.closed)
        connections.pop().close()
        assert not closing.done()
        connections.pop().close()
        assert closing.result(timeout=20) == 0


def test_close_waits_for_what_is_lost(make_pool: MakePool) -> None:
    """`close(timeout)` stops waiting for a connection that is lost in the meantime."""
    pool = make_pool(size=1)
    connections = [pool.get_connection()]
    with one_thread() as thread:
        closing = thread.submit(pool.close, None)
        eventually(lambda: pool._pool.closed)
        connections.clear()
        gc.collect()
        assert closing.result(timeout=20) == 0


def test_close_tells_what_is_still_out(make_pool: MakePool) -> None:
    """When its time is over `close(timeout)` returns the number of connections that are still borrowed."""
    pool = make_pool(size=3)
    connections = [pool.get_connection() for _ in range(2)]
    assert pool.close(timeout=0.05) == 2
    connections[0].close()
    assert pool.close(timeout=0.05) == 1
    connections[1].close()
    assert pool.close(timeout=None) == 0


def test_the_end_of_a_with_block(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A pool's own `with` block closes it, also when an exception ends the block."""
    pool = make_pool(size=2)
    with pytest.raises(ZeroDivisionError), pool:
        raise ZeroDivisionError
    eventually(lambda: not sessions(admin, database))
    with pytest.raises(PoolClosedError):
        pool.get_connection()


# A pool that is dropped


@pytest.mark.parametrize("in_cycle", [False, True])
def test_a_dropped_pool_says_goodbye(server: Server, database: str, aborted: Callable[[], int], in_cycle: bool) -> None:
    """A pool that is no longer referenced closes its sessions with COM_QUIT."""
    before = aborted()
    pool = ConnectionPool(3, "pool1", database=database, **server.connect_kwargs)
    borrow_all(pool)
    if in_cycle:
        pool.myself = pool  # type: ignore[attr-defined]
    del pool
    gc.collect()
    assert aborted() == before


def test_a_borrowed_connection_of_a_dropped_pool(server: Server, database: str, aborted: Callable[[], int]) -> None:
    """A borrowed connection keeps its pool alive, and in the end all sessions are closed with COM_QUIT."""
    before = aborted()
    connection = ConnectionPool(2, "pool1", database=database, **server.connect_kwargs).get_connection()
    gc.collect()
    assert session_of(connection)
    connection.close()
    del connection
    gc.collect()
    assert aborted() == before


# The end of the program


def keep_idle(pool: ConnectionPool) -> None:
    """Leave a pool with idle connections alive until the interpreter exits."""
    borrow_all(pool)
    globals()["kept"] = pool


def keep_in_a_cycle(pool: ConnectionPool) -> None:
    pool.myself = pool  # type: ignore[attr-defined]


def keep_returned_handle(pool: ConnectionPool) -> None:
    globals()["kept"] = connection = pool.get_connection()
    connection.close()


def exit_in_a_block(pool: ConnectionPool) -> None:
    with pool.get_connection() as cur:
        cur.execute("select 1")
        sys.exit()


def close_it(pool: ConnectionPool) -> None:
    pool.close()


def keep_borrowed(pool: ConnectionPool) -> None:
    globals()["kept"] = pool.get_connection()


def keep_in_a_cycle_borrowed(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.myself = connection  # type: ignore[attr-defined]


def keep_of_an_ended_thread(pool: ConnectionPool) -> None:
    globals()["kept"] = kept = []
    thread = threading.Thread(target=lambda: kept.append(pool.get_connection()))
    thread.start()
    thread.join()


def keep_a_block_open(pool: ConnectionPool) -> None:
    globals()["kept"] = block = pool.connection()
    block.__enter__().cursor().execute("select 1")  # type: ignore[attr-defined]


def leave_a_thread_waiting(pool: ConnectionPool) -> None:
    globals()["kept"] = [pool.get_connection() for _ in range(pool.maxsize)]
    threading.Thread(target=pool.get_connection, args=(None,), daemon=True).start()
    eventually(lambda: pool._pool.waiting() == 1)


def leave_a_thread_with_one(pool: ConnectionPool) -> None:
    ready = threading.Event()

    def hold() -> None:
        connection = pool.get_connection()
        ready.set()
        threading.Event().wait()
        connection.close()

    threading.Thread(target=hold, daemon=True).start()
    assert ready.wait(30)


def leave_a_thread_in_a_query(pool: ConnectionPool) -> None:
    ready = threading.Event()

    def work() -> None:
        with pool.get_connection() as cur:
            ready.set()
            cur.execute("select sleep(100)")

    threading.Thread(target=work, daemon=True).start()
    assert ready.wait(30)


def leave_a_thread_at_work(pool: ConnectionPool) -> None:
    busy = threading.Event()

    def work() -> None:
        while True:
            with pool.get_connection(timeout=None) as cur:
                cur.execute("select 1")
            busy.set()

    threading.Thread(target=work, daemon=True).start()
    assert busy.wait(30)


ORDERLY = [keep_idle, keep_in_a_cycle, keep_returned_handle, exit_in_a_block, close_it]
DISORDERLY = [
    keep_borrowed,
    keep_in_a_cycle_borrowed,
    keep_of_an_ended_thread,
    keep_a_block_open,
    leave_a_thread_waiting,
    leave_a_thread_with_one,
    leave_a_thread_in_a_query,
    leave_a_thread_at_work,
]


@pytest.mark.parametrize("way", ORDERLY)
def test_a_program_says_goodbye(
    server: Server, database: str, aborted: Callable[[], int], way: Callable[..., None]
) -> None:
    """A program that ends with all connections returned exits, prints nothing, and closes them with COM_QUIT."""
    before = aborted()
    assert run_as_program(__file__, {"database": database, **server.connect_kwargs}, way.__name__) == (0, "", "")
    assert aborted() == before


@pytest.mark.parametrize("way", [*ORDERLY, *DISORDERLY])
def test_a_program_always_exits(server: Server, way: Callable[..., None]) -> None:
    """A program exits, and prints nothing, whatever connections or threads it leaves borrowed, waiting or running."""
    if way in DISORDERLY:
        skip_where_the_interpreter_prints()
    assert run_as_program(__file__, server.connect_kwargs, way.__name__) == (0, "", "")


def main(connect_kwargs: dict[str, Any], way: str) -> None:
    """End the program in this way."""
    globals()[way](ConnectionPool(2, "pool1", **connect_kwargs))


def test_an_opener_whose_pool_is_closed_is_told_so(make_pool: MakePool) -> None:
    """A thread that is opening a connection counts as a holder, and gets PoolClosedError if the pool is closed."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(pymysqlpool.Connection):
        def connect(self, sock: Any = None) -> None:
            begun.set()
            assert go_on.wait(30)
            super().connect(sock)

    pool = make_pool(size=1, pre_create_num=0, connection_class=Slow)
    with one_thread() as thread:
        opening = thread.submit(pool.get_connection)
        assert begun.wait(30)
        [loan] = pool._pool.borrows()
        assert (loan.as_data() or {})["opening"] is True
        assert pool.close() == 1
        go_on.set()
        with pytest.raises(PoolClosedError):
            opening.result()
    assert pool.close(timeout=10) == 0


if __name__ == "__main__":
    main(*program_arguments())

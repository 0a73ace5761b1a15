"""A forked child gets nothing of its parent's pool. Run as a program, this file forks a child that ends in some way."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Callable

import pytest
from helpers import (
    FORK_AND_THREADS,
    borrow_all,
    by_fork,
    eventually,
    program_arguments,
    refuses_after_fork,
    run_as_program,
    session_of,
    sessions,
)
from pymysql.cursors import SSCursor

from pymysqlpool import Connection, ConnectionPool
from pymysqlpool.errors import PoolClosedError, PoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool
    from server import Server

if not hasattr(os, "fork"):
    pytest.skip("there is no fork here", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings(f"ignore:{FORK_AND_THREADS}:DeprecationWarning")


def by_multiprocessing(job: Callable[[], object]) -> int:
    """Do `job` in a process of `multiprocessing`'s, with fork."""
    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    process.join(30)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


FORKS = [by_fork, by_multiprocessing]


# What the parent is doing at the fork; each yields the handles that are borrowed in the meantime


@contextmanager
def idle(pool: ConnectionPool) -> Iterator[list[Connection]]:
    yield []


@contextmanager
def borrowed(pool: ConnectionPool) -> Iterator[list[Connection]]:
    with pool.connection() as connection:
        yield [connection]


@contextmanager
def waited_for(pool: ConnectionPool) -> Iterator[list[Connection]]:
    handles = [pool.get_connection() for _ in range(pool.maxsize)]
    waiter = threading.Thread(target=lambda: pool.get_connection(timeout=None).close())
    waiter.start()
    eventually(lambda: pool._pool.waiting() == 1)
    yield handles
    for handle in handles:
        handle.close()
    waiter.join()


@contextmanager
def locked(pool: ConnectionPool) -> Iterator[list[Connection]]:
    """Another thread holds the queue's mutex."""
    inside, over = threading.Event(), threading.Event()

    def stay() -> None:
        with pool._pool.mutex:
            inside.set()
            over.wait(30)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(30)
    yield []
    over.set()
    thread.join()


STATES = [idle, borrowed, waited_for, locked]


def begins_with_an_empty_pool(pool: ConnectionPool, parents: set[int], handles: list[Connection]) -> None:
    """Check what has to be true in the child."""
    assert (pool.size(), pool.total_num, pool._pool.waiting()) == (pool.maxsize, 0, 0)
    assert not borrow_all(pool) & parents
    for handle in handles:
        refuses_after_fork(handle)
    assert pool.size() == pool.maxsize


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("state", STATES)
def test_fork(
    make_pool: MakePool,
    admin: Admin,
    database: str,
    fork: Callable[[Callable[[], object]], int],
    state: Callable[[ConnectionPool], Any],
) -> None:
    """A child's pool is empty and usable, whatever the parent was doing, and the parent's sessions still work."""
    pool = make_pool(size=2)
    parents = borrow_all(pool)
    with state(pool) as handles:
        assert fork(lambda: begins_with_an_empty_pool(pool, parents, handles)) == 0
        assert {session_of(handle) for handle in handles} <= parents
    assert borrow_all(pool) == parents
    eventually(lambda: sessions(admin, database) == parents)


def test_each_child_has_its_own_sessions(make_pool: MakePool) -> None:
    """Children, even those forked from other children, each have a pool of their own at the same time."""
    pool = make_pool(size=1)
    parents = borrow_all(pool)

    def child(known: set[int], depth: int) -> None:
        own = borrow_all(pool)
        assert not own & known
        if depth:
            assert by_fork(lambda: child(known | own, depth - 1)) == 0
        assert borrow_all(pool) == own

    assert by_fork(lambda: child(parents, 3)) == 0
    assert borrow_all(pool) == parents


def test_a_result_that_is_being_read(make_pool: MakePool) -> None:
    """A child reads none of the rows that the parent is reading, not even when the cursor is collected."""
    pool = make_pool(size=1)
    with pool.connection() as connection:
        cursors = [connection.cursor(SSCursor)]
        cursors[0].execute("select 1 union all select 2 union all select 3")
        assert cursors[0].fetchone() == (1,)

        def let_go() -> None:
            with pytest.raises(PoolError):
                cursors[0].fetchall()
            cursors.clear()

        assert by_fork(let_go) == 0
        assert cursors[0].fetchall() == [(2,), (3,)]


def test_a_block_that_the_child_leaves(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A child that leaves the parent's block neither commits nor rolls back the parent's transaction."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.numbers (number int)")
    pool = make_pool(size=1)

    def leave(stack: ExitStack) -> None:
        with pytest.raises(PoolError, match="before the fork"):
            stack.close()
        assert pool.size() == 1

    with ExitStack() as stack:
        stack.enter_context(pool.get_connection()).execute("insert into numbers values (1)")
        assert by_fork(lambda: leave(stack)) == 0
        with admin.cursor() as cursor:
            cursor.execute(f"select * from {database}.numbers")
            assert cursor.fetchall() == ()
    with admin.cursor() as cursor:
        cursor.execute(f"select * from {database}.numbers")
        assert cursor.fetchall() == ((1,),)


def test_a_closed_pool(make_pool: MakePool) -> None:
    """A pool that was closed before the fork is closed in the child."""
    pool = make_pool()
    pool.close()

    def child() -> None:
        with pytest.raises(PoolClosedError):
            pool.get_connection()

    assert by_fork(child) == 0


# How the child ends, in separate programs


ENDINGS: dict[str, Callable[[ConnectionPool], object]] = {
    "sys.exit()": lambda _: sys.exit(),
    "os._exit()": lambda _: os._exit(0),
    "close()": lambda pool: pool.close(),
}


@pytest.mark.parametrize("uses", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_the_end_of_the_child(server: Server, ending: str, uses: bool) -> None:
    """However a child ends, whether or not it has used its pool, it prints nothing, and the parent's sessions work."""
    assert run_as_program(__file__, server.connect_kwargs, ending, uses) == (0, "the parent is well\n", "")


def main(connect_kwargs: dict[str, Any], ending: str, uses: bool) -> None:
    """Fork with an idle and a borrowed connection, a block open and another thread in the middle of a result."""
    warnings.filterwarnings("ignore", FORK_AND_THREADS, DeprecationWarning)
    pool = ConnectionPool(4, "pool1", **connect_kwargs)
    parents = borrow_all(pool)
    handle = pool.get_connection()
    reading, over = threading.Event(), threading.Event()
    rows = []

    def read() -> None:
        with pool.connection() as connection, connection.cursor(SSCursor) as cursor:
            cursor.execute("select 1 union all select 2")
            rows.append(cursor.fetchone())
            reading.set()
            over.wait(30)
            rows.extend(cursor.fetchall())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert reading.wait(30)
    with pool.get_connection() as cur:
        cur.execute("select 1")
        pid = os.fork()
        if not pid:
            if uses:
                borrow_all(pool)
            ENDINGS[ending](pool)
            sys.exit()  # otherwise the block, which is the parent's, would refuse to commit
        assert os.waitpid(pid, 0)[1] == 0
    over.set()
    reader.join()
    assert rows == [(1,), (2,)]
    handle.close()
    assert borrow_all(pool) == parents
    print("the parent is well")


if __name__ == "__main__":
    main(*program_arguments())

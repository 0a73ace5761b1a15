"""Blocks in several threads and generators: which block is joined, and which one an end belongs to."""

from __future__ import annotations

import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Add, Boom, Numbers, one_thread, session_of
from pymysql.cursors import Cursor, SSCursor

from pymysqlpool import Connection, PoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool


@pytest.fixture
def other_thread() -> Iterator[ThreadPoolExecutor]:
    """A second thread, the same one for each job."""
    with one_thread() as thread:
        yield thread


# Threads


def test_two_threads_on_one_handle(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """A block of another thread on a handle in use is a unit of work of its own, which only that thread joins."""
    pool = make_pool()
    handle = pool.get_connection()
    inside, go_on = threading.Event(), threading.Event()

    def work() -> int:
        with handle as cur:
            session: int = cur.connection.server_thread_id[0]
            add(cur, 2)
            inside.set()
            assert go_on.wait(30)
            with handle as inner:
                assert inner.server_thread_id[0] == session
            assert handle.execute_query("select connection_id()") == ((session,),)
        return session

    with suppress(Boom), handle as cur:
        add(cur, 1)
        done = other_thread.submit(work)
        assert inside.wait(30)
        assert pool.size() == 0
        assert handle.execute_query("select connection_id()") == ((cur.server_thread_id[0],),)
        go_on.set()
        assert done.result() != cur.server_thread_id[0]
        assert numbers() == [2]
        assert pool.size() == 1
        raise Boom
    assert numbers() == [2]
    assert pool.size() == 2


def test_a_block_outlives_the_one_it_stood_beside(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """If the block that uses the handle ends first, the other thread's goes on, and can still be joined."""
    pool = make_pool()
    handle = pool.get_connection()
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with handle as cur:
            inside.set()
            assert go_on.wait(30)
            add(cur, 1)
            with handle as inner:
                add(inner, 2)
            handle.close()
            assert numbers() == []

    with handle:
        done = other_thread.submit(work)
        assert inside.wait(30)
    assert pool.size() == 1
    handle.close()
    assert pool.size() == 1
    go_on.set()
    done.result()
    assert numbers() == [1, 2]
    assert pool.size() == 2


def test_execute_query_of_another_thread_is_its_own_work(
    make_pool: MakePool, add: Add, numbers: Numbers, table: str, other_thread: ThreadPoolExecutor
) -> None:
    """`execute_query` in a thread outside any block commits by itself, even if another thread is in a block."""
    pool = make_pool()
    handle = pool.get_connection()
    with suppress(Boom), handle as cur:
        add(cur, 1)
        insert = f"insert into {table} (number) values (2)"
        assert other_thread.submit(handle.execute_query, insert).result() == ()
        assert numbers() == [2]
        raise Boom
    assert numbers() == [2]
    assert pool.size() == 2


def test_one_handle_shared_by_32_threads(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """Threads that enter blocks on one handle at the same time each have a session and transaction of their own."""
    threads, rounds = 32, 3
    pool = make_pool(size=threads, ssl_disabled=True)
    handle = pool.get_connection()
    everybody = threading.Barrier(threads)

    def work(number: int) -> list[int]:
        sessions = []
        try:
            for _ in range(rounds):
                with handle as cursor:
                    everybody.wait()
                    cursor.execute("select %s, connection_id()", (number,))
                    [(answer, session)] = cursor.fetchall()
                    assert answer == number
                    assert session == cursor.connection.server_thread_id[0]
                    sessions.append(session)
                    add(cursor, number)
                    everybody.wait()
                everybody.wait()  # all are back
        except threading.BrokenBarrierError:
            pass  # the culprit tells
        except BaseException:
            everybody.abort()
            raise
        return sessions

    with ThreadPoolExecutor(threads) as executor:
        sessions = list(executor.map(work, range(threads)))
    for of_round in zip(*sessions):
        assert len(set(of_round)) == threads
    assert sorted(numbers()) == sorted([*range(threads)] * rounds)
    assert pool.size() == threads


def test_a_block_may_end_in_another_thread(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """A block that is ended by another thread commits and returns, and the first thread can begin a new one."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    cur = other_thread.submit(handle.__enter__).result()
    add(cur, 1)
    handle.__exit__(None, None, None)
    assert numbers() == [1]
    assert pool.size() == 1

    cur = other_thread.submit(handle.__enter__).result()
    add(cur, 2)
    error = Boom()
    handle.__exit__(Boom, error, None)
    assert numbers() == [1]
    assert pool.size() == 1


def test_another_thread_has_looked_up_the_end_of_a_block(make_pool: MakePool) -> None:
    """An `__exit__` that was looked up but not called is not used for another block."""
    connection = make_pool(size=1).get_connection()
    with one_thread() as other:
        end = other.submit(getattr, connection, "__exit__").result()
        with connection as cur:
            cur.execute("select 1")
        assert connection._place is None
    del end


def test_an_end_that_can_not_be_told_commits_nothing(make_pool: MakePool, admin: Admin, database: str) -> None:
    """If ExitStack ends one of two blocks and either is possible, both are rolled back, and an error is raised."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")
    pool = make_pool(size=3)
    handle = pool.get_connection()

    def begin(number: int) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(handle).execute(f"insert into t values ({number})")
        return stack

    with one_thread() as first, one_thread() as second:
        stacks = [first.submit(begin, 1).result(), second.submit(begin, 2).result()]
    with pytest.raises(PoolError, match="2 blocks on this connection could end here"):
        stacks[0].close()
    with pytest.raises(PoolError, match="no block"):
        stacks[1].close()
    with admin.cursor() as cursor:
        assert cursor.execute(f"select n from {database}.t") == 0
    assert pool.size() == 3


def test_a_whole_connection_joins_its_block_in_any_thread(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """Every use of the connection of `pool.connection()` is in its block, in whichever thread.

    A web framework may run a generator dependency and the endpoint in different threads of a thread pool.
    """
    pool = make_pool(size=1)

    def dependency() -> Iterator[Connection]:
        with pool.connection() as connection:
            yield connection

    for error in (None, Boom()):
        request = dependency()
        connection = other_thread.submit(next, request).result()
        connection.execute_query("insert into numbers (number) values (1)")
        with connection as cur:
            add(cur, 2)
        assert numbers() == ([] if error is None else [1, 2])
        with pytest.raises(Boom if error else StopIteration):
            next(request) if error is None else request.throw(error)
        assert numbers() == [1, 2]
    assert pool.size() == 1


# Generators


def test_a_generator_in_two_threads(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """`pool.connection()` may be entered in one thread and left in another."""
    pool = make_pool(size=1)
    block = pool.connection()
    connection = other_thread.submit(block.__enter__).result()
    with connection.cursor() as cur:
        add(cur, 1)
    block.__exit__(None, None, None)
    assert numbers() == [1]
    assert pool.size() == 1


@pytest.mark.parametrize("statement", ["select 1 union all select 2", "call results()"])
@pytest.mark.parametrize("cursor_class", [Cursor, SSCursor])
def test_a_generator_in_two_threads_that_leaves_rows_unread(  # noqa: PLR0917 - fixtures
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor, statement: str, cursor_class: Any
) -> None:
    """The thread that ends the block reads the rest, and commits."""
    pool = make_pool(size=1)
    block = pool.connection()

    def begin() -> Any:
        connection = block.__enter__()
        with connection.cursor() as cur:
            cur.execute("drop procedure if exists results")
            cur.execute("create procedure results() begin select 1; select 2; end")
            add(cur, 1)
        cur = connection.cursor(cursor_class)
        cur.execute(statement)
        return cur

    left_open = other_thread.submit(begin).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyMySQL's, of the rows that are left
        block.__exit__(None, None, None)
    assert numbers() == [1]
    assert pool.size() == 1
    del left_open


def test_what_is_entered_in_a_comprehension_is_around_what_follows(make_pool: MakePool) -> None:
    """Blocks that are entered in a comprehension, which is a function before Python 3.12, contain what follows it."""
    pool = make_pool(size=2)
    with ExitStack() as stack:
        cursors = [stack.enter_context(pool.get_connection()) for _ in range(2)]
        handles = [cursor.connection for cursor in cursors]
        for handle in handles:
            assert handle.execute_query("select connection_id()") == ((handle.server_thread_id[0],),)
    assert pool.size() == 2


@pytest.mark.parametrize("is_returned", [True, False])
def test_a_generator_that_is_lost_ends_its_block(make_pool: MakePool, is_returned: bool) -> None:
    """A generator that is no longer referenced gives its place back, even if the handle of its block is kept."""
    pool = make_pool(size=1)
    shared = pool.get_connection()
    if is_returned:
        shared.close()

    def request() -> Any:
        with shared as cur:
            yield cur

    def begin() -> None:
        first_half = request()  # a variable of the frame that the block is begun in
        next(first_half)

    begin()
    gc.collect()
    assert pool.size() == 1


def test_the_halves_of_generators_end_their_own_blocks(make_pool: MakePool, admin: Admin, database: str) -> None:
    """Two generators, begun in one thread and ended by another in another order, have separate sessions and ends."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")
    pool = make_pool(size=3)
    handle = pool.get_connection()

    def request() -> Any:
        with handle as cur:
            yield cur

    with one_thread() as first, one_thread() as second:
        good, bad = request(), request()
        cur, other = first.submit(next, good).result(), first.submit(next, bad).result()
        assert session_of(cur.connection) != session_of(other.connection)
        cur.execute("insert into t values (1)")
        other.execute("insert into t values (2)")
        with pytest.raises(ZeroDivisionError):
            second.submit(bad.throw, ZeroDivisionError()).result()
        assert second.submit(next, good, "ended").result() == "ended"
    with admin.cursor() as cursor:
        cursor.execute(f"select n from {database}.t")
        assert cursor.fetchall() == ((1,),)
    assert pool.size() == 3


def test_a_generator_that_ends_early_keeps_its_session(make_pool: MakePool) -> None:
    """Its block is rolled back, as after any exception, and the session is reused."""
    pool = make_pool(size=1)
    pool.get_connection().execute_query("create table t (n int)")

    def numbers() -> Iterator[int]:
        with pool.get_connection() as cur:
            cur.execute("insert into t values (1)")
            cur.execute("select n from t union all select 2")
            for (number,) in cur:
                yield number

    sessions = set()
    for _ in range(5):
        for _ in numbers():
            break
        connection = pool.get_connection()
        sessions.add(session_of(connection))
        assert connection.execute_query("select n from t") == ()
    assert len(sessions) == 1


def test_a_comprehension_over_a_generator_with_a_block(make_pool: MakePool) -> None:
    """The code for each item is inside the block, as in a loop."""
    handle = make_pool(size=1).get_connection()

    def rows() -> Iterator[int]:
        with handle as cursor:
            cursor.execute("select 1 union select 2")
            yield from cursor

    one = ((1,),)
    assert [handle.execute_query("select 1") for _ in rows()] == [one, one]
    assert {handle.execute_query("select 1") for _ in rows()} == {one}
    assert list(handle.execute_query("select 1") for _ in rows()) == [one, one]  # noqa: C400  a generator, too

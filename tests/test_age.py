"""How connections age: their lifetime, idle ones above `size`, and draining. The clock is the test's own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Clock, borrow_all, eventually, session_of, sessions

if TYPE_CHECKING:
    from helpers import Admin, MakePool

    from pymysqlpool import ConnectionPool


def sessions_kept(pool: ConnectionPool, before: set[int]) -> int:
    return len(borrow_all(pool) & before)


# con_lifetime


@pytest.mark.parametrize(("options", "lifetime"), [({}, 3600), ({"con_lifetime": 100}, 100)])
def test_a_connection_that_is_too_old_is_replaced_when_borrowed(
    make_pool: MakePool, clock: Clock, options: dict[str, Any], lifetime: float
) -> None:
    """No borrower gets a connection that is older than `con_lifetime`, an hour by default."""
    pool = make_pool(size=2, **options)
    before = borrow_all(pool)
    clock.advance(lifetime)
    assert sessions_kept(pool, before) == 0
    assert pool.total_num == 2


def test_a_connection_that_is_too_old_is_closed_when_returned(
    make_pool: MakePool, clock: Clock, admin: Admin, database: str
) -> None:
    """A connection that becomes too old while it is borrowed works until it is returned, and is closed then."""
    pool = make_pool(size=1, con_lifetime=100)
    connection = pool.get_connection()
    clock.advance(1000)
    assert {session_of(connection)} == sessions(admin, database)
    connection.close()
    assert (pool.size(), pool.total_num) == (1, 0)
    eventually(lambda: not sessions(admin, database))


@pytest.mark.parametrize("forever", [0, None])
def test_no_lifetime(make_pool: MakePool, clock: Clock, forever: float | None) -> None:
    """With a lifetime of 0 or None connections do not age."""
    pool = make_pool(size=2, con_lifetime=forever)
    before = borrow_all(pool)
    clock.advance(1e9)
    assert sessions_kept(pool, before) == 2


def test_jitter(make_pool: MakePool, clock: Clock) -> None:
    """Connections opened together live for 90 to 100 % of the lifetime, and do not expire together."""
    pool = make_pool(size=40, con_lifetime=1000)
    before = borrow_all(pool)
    clock.advance(900)
    assert sessions_kept(pool, before) == 40
    clock.advance(50)
    assert 0 < sessions_kept(pool, before) < 40  # fails by chance once in 2 ** 39 runs
    clock.advance(50)
    assert sessions_kept(pool, before) == 0


# idle_timeout


@pytest.mark.parametrize(
    ("options", "rest", "left"),
    [
        ({}, 599, 4),
        ({}, 600, 2),
        ({"idle_timeout": 5}, 4.9, 4),
        ({"idle_timeout": 5}, 5, 2),
        ({"idle_timeout": None}, 3000, 4),
    ],
)
def test_idle_connections_above_size_are_closed(
    make_pool: MakePool, clock: Clock, *, admin: Admin, database: str, options: dict[str, Any], rest: float, left: int
) -> None:
    """A return closes connections above `size` that have been idle for `idle_timeout`, by default ten minutes."""
    pool = make_pool(size=2, maxsize=4, **options)
    before = borrow_all(pool)
    clock.advance(rest)
    pool.get_connection().close()
    assert (pool.size(), pool.total_num, pool.available_num) == (4, left, left)
    eventually(lambda: len(sessions(admin, database)) == left)
    assert sessions(admin, database) <= before


def test_idle_connections_up_to_size_stay(make_pool: MakePool, clock: Clock) -> None:
    """Connections up to `size` may be idle for their whole lifetime."""
    pool = make_pool(size=3, maxsize=3, idle_timeout=5)
    before = borrow_all(pool)
    clock.advance(1000)
    pool.get_connection().close()
    assert sessions_kept(pool, before) == 3


def test_as_many_sessions_are_closed_as_are_too_many(make_pool: MakePool, clock: Clock) -> None:
    """A place without a session is not counted as an idle session to be closed."""
    pool = make_pool(size=1, maxsize=4, idle_timeout=5)
    lent = [pool.get_connection() for _ in range(3)]
    for connection in lent:
        connection.close()
    assert (pool.size(), pool.total_num) == (4, 3)
    clock.advance(5)
    pool.get_connection().close()
    assert (pool.size(), pool.total_num) == (4, 1)


def test_what_is_in_use_is_not_idle(make_pool: MakePool, clock: Clock) -> None:
    """Idle time counts from the return, and borrowed connections are not closed, however long they are borrowed."""
    pool = make_pool(size=1, maxsize=3, idle_timeout=5)
    lent = [pool.get_connection() for _ in range(3)]
    clock.advance(100)
    for connection in lent:
        connection.close()
    assert pool.total_num == 3
    clock.advance(4)
    pool.get_connection().close()
    assert pool.total_num == 3


# Draining


def test_drain(make_pool: MakePool, admin: Admin, database: str) -> None:
    """`drain()` closes idle connections at once, borrowed ones on return, and none that is opened later."""
    pool = make_pool(size=3)
    before = borrow_all(pool)
    lent = pool.get_connection()
    pool.drain()
    eventually(lambda: sessions(admin, database) == {lent.server_thread_id[0]})
    assert session_of(lent) in before
    later = pool.get_connection()
    new = session_of(later)
    assert new not in before
    later.close()
    lent.close()
    assert (pool.size(), pool.total_num) == (3, 1)
    after = borrow_all(pool)
    assert not after & before
    assert new in after


def test_a_borrower_is_quicker_than_the_drain(make_pool: MakePool) -> None:
    """An idle connection that is borrowed at the moment when `drain()` would close it goes to the borrower."""
    pool = make_pool(size=1)
    lent = []

    def borrow(_: object) -> bool:
        lent.append(pool.get_connection())
        return True

    pool._pool.close_idle_if("idle", borrow, most=1)
    assert session_of(lent[0]) == lent[0].server_thread_id[0]
    lent[0].close()
    assert (pool.size(), pool.total_num) == (1, 1)


def test_drain_while_one_waits(make_pool: MakePool) -> None:
    """A thread that waits while the borrowed connection is drained gets a new one when that is returned."""
    pool = make_pool(size=1)
    lent = pool.get_connection()
    before = lent.server_thread_id[0]
    got: list[int] = []

    def wait() -> None:
        with pool.connection(timeout=None) as connection:
            got.append(session_of(connection))

    waiter = threading.Thread(target=wait)
    waiter.start()
    eventually(lambda: pool._pool.waiting() == 1)
    pool.drain()
    lent.close()
    waiter.join()
    assert got
    assert got != [before]


def test_no_thread_of_its_own(make_pool: MakePool, clock: Clock, admin: Admin, database: str) -> None:
    """A pool has no thread: nothing is closed until the next call, which does all the maintenance that is due."""
    threads = threading.enumerate()
    pool = make_pool(size=1, maxsize=2, con_lifetime=100, idle_timeout=5)
    before = borrow_all(pool)
    clock.advance(1000)
    assert sessions(admin, database) == before
    assert not borrow_all(pool) & before
    assert threading.enumerate() == threads

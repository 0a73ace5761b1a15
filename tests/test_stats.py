"""A pool's counters: known numbers after a known sequence, and sums that agree whatever has happened."""

from __future__ import annotations

import gc
import os
import random
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import Clock, eventually, kill, one_thread, session_of

import pymysqlpool
from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError, PoolClosedError

if TYPE_CHECKING:
    from helpers import Admin, MakePool


def closed(pool: ConnectionPool) -> dict[str, int]:
    """The number of closed connections by reason, without zeros."""
    return {reason: number for reason, number in pool.stats().closed._asdict().items() if number}


def assert_sums_agree(pool: ConnectionPool) -> None:
    """Check that each connection that was opened is either open or counted as closed."""
    stats = pool.stats()
    assert stats.opened == pool.total_num + sum(stats.closed)


# A sequence


def test_a_new_pool(make_pool: MakePool) -> None:
    """A new pool has only opened its first connections; a snapshot can't be changed."""
    pool = make_pool(size=2, maxsize=5)
    stats = pool.stats()
    assert isinstance(stats, pymysqlpool.PoolStats)
    assert (stats.idle, stats.borrowed, stats.opening, stats.waiting, stats.maxsize) == (2, 0, 0, 0, 5)
    assert (stats.opened, stats.failed_to_open, sum(stats.closed)) == (2, 0, 0)
    assert stats.seconds_opening >= stats.longest_opening > 0
    assert (stats.borrows, stats.waited, stats.timed_out, stats.refused) == (0, 0, 0, 0)
    assert (stats.seconds_waited, stats.longest_wait, stats.seconds_used, stats.longest_use) == (0, 0, 0, 0)
    with pytest.raises(AttributeError):
        stats.idle = 7  # type: ignore[misc]


def test_a_known_sequence(make_pool: MakePool, clock: Clock) -> None:
    """Borrows, uses and waits of known length are counted as such."""
    pool = make_pool(size=1, maxsize=2, con_lifetime=None, max_waiting=1)
    first = pool.get_connection()
    clock.advance(3)
    second = pool.get_connection()
    stats = pool.stats()
    assert (stats.idle, stats.borrowed, stats.opened, stats.borrows, stats.waited) == (0, 2, 2, 2, 0)
    with pytest.raises(GetConnectionFromPoolError):
        pool.get_connection(timeout=0)
    with one_thread() as thread:
        waiting = thread.submit(pool.get_connection, 30)
        eventually(lambda: pool.stats().waiting == 1)
        with pytest.raises(GetConnectionFromPoolError, match="max_waiting"):
            pool.get_connection(timeout=30)
        clock.advance(2)
        first.close()
        third = waiting.result()
    clock.advance(10)
    third.close()
    second.close()
    assert pool.stats() == (
        *(2, 0, 0, 0, 2),
        *(3, 1, 2.0, 2.0),  # borrows; the third has waited
        *(1, 1),
        *(5.0 + 10.0 + 12.0, 12.0),
        *(2, 0.0, 0.0, 0),
        (0, 0, 0, 0, 0, 0, 0, 0),
    )


def test_opening(make_pool: MakePool, clock: Clock) -> None:
    """A connection that is being opened is counted as such, then its time is; failed attempts are counted."""
    seen = []
    fails = False

    class Slow(Connection):
        def connect(self, sock: Any = None) -> None:
            clock.advance(4)
            seen.append((pool.stats().borrowed, pool.stats().opening))
            if fails:
                raise pymysql.err.OperationalError(2003, "not today")
            super().connect(sock)

    pool = make_pool(size=1, pre_create_num=0, con_lifetime=None, connection_class=Slow)
    fails = True
    with pytest.raises(pymysql.err.OperationalError):
        pool.get_connection()
    fails = False
    pool.get_connection().close()
    stats = pool.stats()
    assert seen == [(1, 1), (1, 1)]
    assert (stats.borrowed, stats.opening, stats.borrows) == (0, 0, 2)
    assert (stats.opened, stats.seconds_opening, stats.longest_opening, stats.failed_to_open) == (1, 4.0, 4.0, 1)


# Closed, by reason


def by_lifetime_when_borrowed(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    clock.advance(100)
    pool.get_connection().close()


def by_lifetime_when_returned(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connection = pool.get_connection()
    clock.advance(100)
    connection.close()


def idle(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connections = [pool.get_connection() for _ in range(2)]
    for connection in connections:
        connection.close()
    clock.advance(60)
    pool.get_connection().close()


def broken_when_idle(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connection = pool.get_connection()
    session = session_of(connection)
    connection.close()
    kill(admin, {session})
    pool.get_connection().close()


def broken_in_use(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connection = pool.get_connection()
    kill(admin, {session_of(connection)})
    with pytest.raises(pymysql.err.OperationalError):
        connection.query("select 1")
    connection.close()


def broken_by_unread_rows(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connection = pool.get_connection()
    connection.query("select 1 union select 2", unbuffered=True)
    connection.close()


def beyond_reset(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connection = pool.get_connection()
    connection.query("set profiling = 1")
    connection.close()


def exception(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    with pytest.raises(KeyboardInterrupt), pool.connection():
        raise KeyboardInterrupt


def lost(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    pool.get_connection()
    gc.collect()
    with pytest.warns(ResourceWarning, match="never returned"):
        pool.size()


def drained_when_idle(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    pool.drain()


def drained_when_returned(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    with pool.connection():
        pool.drain()


def with_the_pool(pool: ConnectionPool, clock: Clock, admin: Admin) -> None:
    connection = pool.get_connection()
    pool.close()
    connection.close()


@pytest.mark.parametrize(
    ("happening", "reason"),
    [
        (by_lifetime_when_borrowed, "lifetime"),
        (by_lifetime_when_returned, "lifetime"),
        (idle, "idle"),
        (broken_when_idle, "broken"),
        (broken_in_use, "broken"),
        (broken_by_unread_rows, "broken"),
        (beyond_reset, "reset"),
        (exception, "exception"),
        (lost, "lost"),
        (drained_when_idle, "drained"),
        (drained_when_returned, "drained"),
        (with_the_pool, "pool"),
    ],
)
def test_closed_by_reason(
    make_pool: MakePool, clock: Clock, admin: Admin, happening: Callable[..., None], reason: str
) -> None:
    """Each closed connection is counted once, under its reason."""
    pool = make_pool(size=1, maxsize=2, con_lifetime=100, idle_timeout=50, ping_after=None)
    happening(pool, clock, admin)
    assert closed(pool) == {reason: 1}
    assert_sums_agree(pool)


def test_a_reset_that_fails(make_pool: MakePool) -> None:
    """A session whose reset is answered by an error is counted as closed for "reset"."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection.query("set @a = 1")
    connection._place.session.reset.server.settings = ("SESSION no_such_variable = 1",)
    connection.close()
    assert pool.get_connection().execute_query("select @a") == ((None,),)
    assert closed(pool) == {"reset": 1}
    assert pool.stats().opened == 2


# Whatever happens


def test_what_a_place_has_counted_outlives_it(make_pool: MakePool) -> None:
    """The counters of a lost place are kept."""
    pool = make_pool(size=1)
    for number in range(1, 4):
        pool.get_connection().close()
        pool.get_connection()
        gc.collect()
        with pytest.warns(ResourceWarning, match="never returned"):
            stats = pool.stats()
        assert (stats.borrows, stats.closed.lost, stats.borrowed) == (2 * number, number, 0)
        assert_sums_agree(pool)


@pytest.mark.usefixtures("switch_often")
def test_the_sums_of_many_threads_agree(make_pool: MakePool, admin: Admin) -> None:
    """After 16 threads have borrowed, timed out, broken sessions and drained, every sum agrees with what was done."""
    pool = make_pool(size=2, maxsize=4)

    def work(seed: int) -> tuple[int, int, int]:
        chance = random.Random(seed)  # noqa: S311  no secret
        borrowed = timed_out = interrupted = 0
        for _ in range(60):
            try:
                connection = pool.get_connection(chance.choice([0, 0.001, 5]), 0)
            except GetConnectionFromPoolError:
                timed_out += 1
                continue
            borrowed += 1
            what = chance.random()
            if what < 0.05:
                connection._force_close()
            elif what < 0.1:
                pool.drain()
            elif what < 0.15:
                interrupted += 1
                with pytest.raises(KeyboardInterrupt), connection:
                    raise KeyboardInterrupt
            elif what < 0.5:
                connection.query("select 1")
            connection.close()
        return borrowed, timed_out, interrupted

    with ThreadPoolExecutor(16) as threads:
        done = list(threads.map(work, range(16)))
    stats = pool.stats()
    borrows, timed_out, interrupted = map(sum, zip(*done))
    assert (stats.borrows, stats.timed_out) == (borrows, timed_out)
    assert stats.borrows + stats.timed_out == 16 * 60
    assert (stats.borrowed, stats.opening, stats.waiting, stats.refused, stats.failed_to_open) == (0, 0, 0, 0, 0)
    assert stats.idle == pool.total_num
    # A connection that drain() has marked is replaced for that reason, or for another one that came first.
    assert stats.closed.exception <= interrupted
    assert stats.closed.drained > 0
    assert stats.closed.broken > 0
    assert 0 < stats.waited < borrows
    assert stats.longest_wait <= stats.seconds_waited
    assert_sums_agree(pool)
    pool.close()
    assert pool.stats().closed.pool == stats.idle
    assert_sums_agree(pool)


def test_after_close(make_pool: MakePool) -> None:
    """A closed pool still has its statistics; refused borrows are not counted."""
    pool = make_pool(size=2)
    connection = pool.get_connection()
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.get_connection()
    assert pool.stats()[:4] == (0, 1, 0, 0)
    connection.close()
    stats = pool.stats()
    assert (stats.idle, stats.borrowed, stats.borrows, stats.opened, stats.closed.pool) == (0, 0, 1, 2, 2)
    assert_sums_agree(pool)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork(make_pool: MakePool) -> None:
    """A child's counters start at zero, and what it does is not counted in the parent."""
    pool = make_pool(size=2)
    connection = pool.get_connection()
    pid = os.fork()
    if not pid:  # pragma: no cover  in the child
        try:
            assert pool.stats() == (0, 0, 0, 0, 2, *[0] * 12, (0,) * 8)
            pool.get_connection().close()
            assert (pool.stats().borrows, pool.stats().opened) == (1, 1)
            pool.close()
            assert_sums_agree(pool)
        except BaseException:  # noqa: BLE001  whatever it is, the child must not go on as a second pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    connection.close()
    stats = pool.stats()
    assert (stats.borrows, stats.opened, sum(stats.closed)) == (1, 2, 0)


# Observers


def test_an_observer(make_pool: MakePool, clock: Clock) -> None:
    """An observer is called after each opening, wait and use, with the seconds that it took."""
    told: list[tuple[str, float]] = []

    class Slow(Connection):
        def connect(self, sock: Any = None) -> None:
            clock.advance(4)
            super().connect(sock)

    pool = make_pool(size=1, pre_create_num=0, con_lifetime=None, connection_class=Slow)

    def observe(what: str, seconds: float) -> None:
        told.append((what, seconds))
        if what == "use":
            assert pool.size() == 1  # it has been returned, and others can borrow it

    pool._observe(observe)
    connection = pool.get_connection()
    with one_thread() as thread:
        waiting = thread.submit(pool.get_connection, 30)
        eventually(lambda: pool.stats().waiting == 1)
        clock.advance(2)
        pool._observers[:] = [lambda what, seconds: told.append((what, seconds))]  # or the other may see it lent again
        connection.close()
        other = waiting.result()
    pool._observers[:] = [observe]
    clock.advance(1)
    other.close()
    assert sorted(told) == [("create", 4.0), ("use", 1.0), ("use", 6.0), ("wait", 0.0), ("wait", 2.0)]


def test_a_wait_before_the_observer_came_is_not_told(make_pool: MakePool) -> None:
    """An observer is not called for what happened before it was added."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with one_thread() as thread:
        waiting = thread.submit(pool.get_connection, 30)
        eventually(lambda: pool.stats().waiting == 1)
        connection.close()
        waiting.result().close()
    told: list[tuple[str, float]] = []
    pool._observe(lambda what, seconds: told.append((what, seconds)))
    pool.get_connection().close()
    assert [what for what, _ in told] == ["wait", "use"]
    assert told[0][1] == 0


def test_an_observer_that_fails(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """An observer's exception is logged, does not reach the borrower, and other observers are still called."""
    told: list[str] = []
    pool = make_pool(size=1, maxsize=2, idle_timeout=50, leak_warning=50)
    pool._observe(lambda *_: 1 // 0)
    pool._observe(lambda what, _: told.append(what))
    with pool.connection() as one, pool.connection() as other:
        assert session_of(one) != session_of(other)
    assert told == ["wait", "create", "wait", "use", "use"]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 5
    assert pool.size() == 2


def test_an_observer_that_borrows(make_pool: MakePool) -> None:
    """An observer may use the pool: no lock is held while it is called."""
    pool = make_pool(size=2)
    answers: list[Any] = []

    def observe(what: str, _seconds: float) -> None:
        if not answers:
            answers.append(None)
            with pool.get_connection() as cur:
                answers.append((what, cur.db_query("select 1")))

    pool._observe(observe)
    pool.get_connection().close()
    assert answers == [None, ("wait", ((1,),))]
    assert pool.size() == 2


def test_who_watches_is_told_of_each_pool(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher of all pools is called with each pool before that opens a connection, so it misses none."""
    told: list[str] = []
    monkeypatch.setattr("pymysqlpool.pool._watchers", [lambda pool: pool._observe(lambda what, _: told.append(what))])
    make_pool(size=2)
    assert told == ["create"] * 2


def test_statistics_are_quick(make_pool: MakePool) -> None:
    """`stats()` takes no lock, and works while other threads are in the middle of a borrow."""
    pool = make_pool(size=1)
    with pool.connection(), one_thread() as thread:
        waiting = thread.submit(pool.get_connection, 0.2, 0)
        while not waiting.done():
            assert pool.stats().maxsize == 1
            time.sleep(0)
        with pytest.raises(GetConnectionFromPoolError):
            waiting.result()


# The state of a pool


def test_counts(make_pool: MakePool) -> None:
    """`size()` counts what can be borrowed at once, `available_num` what is open and idle, `total_num` what is open."""
    pool = make_pool(size=2, maxsize=3, pre_create_num=1)

    def counts() -> tuple[int, int, int, int]:
        return pool.size(), pool.available_num, pool.total_num, pool.connection_num

    assert counts() == (3, 1, 1, 1)
    first = pool.get_connection()
    assert counts() == (2, 0, 1, 1)
    second = pool.get_connection()
    assert counts() == (1, 0, 2, 2)
    first.close()
    assert counts() == (2, 1, 2, 2)
    second.close()
    assert counts() == (3, 2, 2, 2)
    pool.close()
    assert counts() == (0, 0, 0, 0)


def test_repr(make_pool: MakePool) -> None:
    """A pool's repr is one line: its name, the open, idle and borrowed connections, the waiters, and `maxsize`."""
    pool = make_pool(size=2, maxsize=3)
    connection = pool.get_connection()
    assert repr(pool) == "<ConnectionPool 'pool1': 1 idle of 2 open, 1 borrowed, 0 waiting, maxsize 3>"
    connection.close()
    assert repr(pool) == "<ConnectionPool 'pool1': 2 idle of 2 open, 0 borrowed, 0 waiting, maxsize 3>"


def test_the_state_is_told_of_what_is_lent_meanwhile(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections can be counted while others borrow and return them."""
    pool = make_pool(size=2)
    before = pool._pool.idle()
    with pool.get_connection():
        pass
    assert any("_place" not in vars(connection) for connection in before)
    monkeypatch.setattr(pool._pool, "idle", lambda: before)
    assert pool.available_num == 1
    assert "1 idle of 2 open" in repr(pool)
    pool.drain()

"""Who has the connections: an exhausted pool lists the holders, leaks are logged, and lost handles are found."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, Callable

import pytest
from helpers import Clock, borrow_all, eventually, one_thread, session_of, sessions
from pymysql.cursors import SSCursor

from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError

if TYPE_CHECKING:
    from helpers import Admin, MakePool


def this_line() -> int:
    """The line number of the caller."""
    return sys._getframe(1).f_lineno


def exhausted(pool: ConnectionPool, **arguments: Any) -> GetConnectionFromPoolError:
    """The error of a borrow that times out."""
    with pytest.raises(GetConnectionFromPoolError) as raised:
        pool.get_connection(**{"timeout": 0, **arguments})
    return raised.value


# An exhausted pool lists the holders


def test_holders(make_pool: MakePool) -> None:
    """The error says which thread holds each connection, for how long and from which line, the longest held first."""
    pool = make_pool(size=2)
    mine, line = pool.get_connection(), this_line()
    with one_thread("keeper") as keeper:
        theirs = keeper.submit(lambda: (pool.get_connection(), this_line()))
        connection, other_line = theirs.result()
        first, second = exhausted(pool).holders
        assert first.pop("seconds") >= second.pop("seconds") >= 0
        assert first == {"thread": "MainThread", "alive": True, "file": __file__, "line": line}
        assert second == {"thread": "keeper_0", "alive": True, "file": __file__, "line": other_line}
        mine.close()
        connection.close()
    assert pool.size() == 2


def by_pool_connection(pool: ConnectionPool, held: Callable[[int], None]) -> None:
    with pool.connection(), pool.connection():
        held(this_line() - 1)


def by_two_blocks(pool: ConnectionPool, held: Callable[[int], None]) -> None:
    one, two = pool.get_connection(), pool.get_connection()
    one.close(), two.close()
    with one, two:
        held(this_line() - 1)


def by_execute_query(pool: ConnectionPool, held: Callable[[int], None]) -> None:
    class Tell(dict):  # type: ignore[type-arg]
        """Arguments that PyMySQL reads while the query's connection is borrowed."""

        def items(self) -> Any:
            held(line)
            return super().items()

    one, two = pool.get_connection(), pool.get_connection()
    two.close()
    with one:
        line = this_line() + 1
        two.execute_query("select %(a)s", Tell(a=1))


@pytest.mark.parametrize("borrow", [by_pool_connection, by_two_blocks, by_execute_query])
def test_the_line_is_the_users(make_pool: MakePool, borrow: Callable[..., None]) -> None:
    """However a connection is borrowed, the reported line is in the user's program."""
    pool = make_pool(size=2)
    lines = []

    def held(line: int) -> None:
        holders = exhausted(pool).holders
        lines.append(line)
        assert {holder["file"] for holder in holders} == {__file__}
        assert holders[1]["line"] == line

    borrow(pool, held)
    assert lines


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no notes before Python 3.11")
def test_notes(make_pool: MakePool) -> None:
    """The traceback shows the holders, the longest held first, and then how to make the pool larger."""
    pool = make_pool(size=2)
    first, first_line_held = pool.get_connection(), this_line()
    with one_thread("keeper") as keeper:
        second, second_line_held = keeper.submit(lambda: (pool.get_connection(), this_line())).result()
    error = exhausted(pool)
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    one, other, remedy = error.__notes__
    assert f"'MainThread', borrowed at {__file__}:{first_line_held}" in one
    assert "'keeper_0'" in other
    assert f"{__file__}:{second_line_held}" in other
    assert "maxsize=" in remedy
    assert all(note in shown for note in error.__notes__)
    first.close()
    second.close()
    pool.get_connection().close()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no notes before Python 3.11")
def test_a_nested_borrow_is_pointed_out(make_pool: MakePool) -> None:
    """The error says so if a thread waits for a connection that it holds itself, and only then."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    [note, _] = exhausted(pool).__notes__
    assert "waits for itself" in note
    with one_thread() as thread:
        [note, _] = thread.submit(exhausted, pool).result().__notes__
    assert "waits for itself" not in note
    connection.close()


def test_culprits_that_return_while_they_are_named(make_pool: MakePool) -> None:
    """Holders that return their connections while they are being listed cause no other error."""
    pool = make_pool(size=2)
    kept: list[Connection] = []

    class Culprit(threading.Thread):
        """A thread that returns its connections when its name is read."""

        @property
        def name(self) -> str:  # type: ignore[override]
            while kept:
                kept.pop().close()
            return "culprit"

    thread = Culprit(target=lambda: kept.extend([pool.get_connection(), pool.get_connection()]))
    thread.start()
    thread.join()
    error = exhausted(pool)
    assert {holder["thread"] for holder in error.holders} <= {"culprit"}
    borrow_all(pool)


def test_max_waiting(make_pool: MakePool) -> None:
    """If `max_waiting` threads are waiting, the next is refused at once, with the holders, whatever its timeout."""
    pool = make_pool(size=1, max_waiting=1)
    connection, line = pool.get_connection(), this_line()
    with one_thread() as thread, closing(connection):
        waiting = thread.submit(pool.get_connection, timeout=None)
        eventually(lambda: pool._pool.waiting() == 1)
        error = exhausted(pool, timeout=None)
        assert [holder["line"] for holder in error.holders] == [line]
        connection.close()
        waiting.result().close()
    borrow_all(pool)


def test_max_waiting_of_none_at_all(make_pool: MakePool) -> None:
    """With a `max_waiting` of 0 no thread waits, and free connections are lent."""
    pool = make_pool(size=1, max_waiting=0)
    with pool.connection():
        exhausted(pool, timeout=None)
    borrow_all(pool)


# leak_warning


def find_by_borrow(pool: ConnectionPool, _: Connection) -> None:
    pool.get_connection().close()


def find_by_return(_: ConnectionPool, other: Connection) -> None:
    other.close()


def find_by_time_out(pool: ConnectionPool, _: Connection) -> None:
    exhausted(pool)


@pytest.mark.parametrize(("find", "size"), [(find_by_borrow, 3), (find_by_return, 2), (find_by_time_out, 2)])
def test_leak_warning(
    make_pool: MakePool, running_clock: Clock, caplog: pytest.LogCaptureFixture, find: Callable[..., None], size: int
) -> None:
    """A connection held longer than `leak_warning` is logged once, with the line, and again when it is returned."""
    pool = make_pool(size=size, leak_warning=60)
    connection, line = pool.get_connection(), this_line()
    running_clock.advance(59)
    pool.get_connection().close()
    other = pool.get_connection()
    assert not caplog.records
    running_clock.advance(2)
    for _ in range(2):
        find(pool, other)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{__file__}:{line}" in record.getMessage()
    assert "'MainThread'" in record.getMessage()
    caplog.clear()
    connection.close()
    [record] = caplog.records
    assert f"{__file__}:{line} has come back" in record.getMessage()
    caplog.clear()
    other.close()
    pool.get_connection().close()
    assert not caplog.records


def test_no_leak_warning(make_pool: MakePool, running_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Without `leak_warning` nothing is logged, however long a connection is held."""
    pool = make_pool(size=2)
    connection = pool.get_connection()
    running_clock.advance(1e6)
    pool.get_connection().close()
    connection.close()
    assert not caplog.records


# Lost handles


def lose(pool: ConnectionPool) -> None:
    pool.get_connection()


def lose_in_a_cycle(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.myself = connection  # type: ignore[attr-defined]


def lose_with_a_thread(pool: ConnectionPool) -> None:
    thread = threading.Thread(target=lose, args=(pool,))
    thread.start()
    thread.join()


def lose_with_its_cursor(pool: ConnectionPool) -> None:
    cursor = pool.get_connection().cursor()
    cursor.execute("select 1")


def lose_in_the_middle_of_a_result(pool: ConnectionPool) -> None:
    cursor = pool.get_connection().cursor(SSCursor)
    cursor.execute("select 1 union select 2 union select 3")
    cursor.fetchone()


def lose_with_an_error(pool: ConnectionPool) -> None:
    def fail() -> None:
        connection = pool.get_connection()
        raise ValueError(connection)

    with pytest.raises(ValueError, match="Connection"):
        fail()


LOSSES = [
    lose,
    lose_in_a_cycle,
    lose_with_a_thread,
    lose_with_its_cursor,
    lose_in_the_middle_of_a_result,
    lose_with_an_error,
]


def line_of_borrow(loss: Callable[..., Any]) -> int:
    line: int = (lose if loss is lose_with_a_thread else loss).__code__.co_firstlineno
    return line + (2 if loss is lose_with_an_error else 1)


@pytest.mark.parametrize("look", [ConnectionPool.size, lambda pool: pool.get_connection(timeout=0).close()])
@pytest.mark.parametrize("loss", LOSSES)
# In a cycle the collector may finalize the socket first, which also warns; so does PyMySQL 1.0.
@pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
def test_a_lost_handle_is_found(
    make_pool: MakePool,
    admin: Admin,
    database: str,
    loss: Callable[[ConnectionPool], None],
    look: Callable[[ConnectionPool], object],
) -> None:
    """A borrowed connection that is no longer referenced gives its place back, with a warning at its line."""
    pool = make_pool(size=1)
    for _ in range(3):
        loss(pool)
        gc.collect()
        with pytest.warns(ResourceWarning, match="never returned") as warned:
            look(pool)
        assert [(warning.filename, warning.lineno) for warning in warned] == [(__file__, line_of_borrow(loss))]
        assert pool.size() == 1
    borrow_all(pool)
    assert pool.total_num == 1
    eventually(lambda: len(sessions(admin, database)) == 1)


@pytest.mark.parametrize("in_cycle", [False, True])
@pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")
def test_a_lost_handle_comes_to_who_waits(make_pool: MakePool, in_cycle: bool) -> None:
    """A thread that waits without a timeout gets the place of a lost handle, even if nobody else calls the pool."""
    pool = make_pool(size=1)
    holding, losing = threading.Event(), threading.Event()
    lines = []

    def hold_and_lose() -> None:
        connection = pool.get_connection()
        lines.append(this_line() - 1)
        if in_cycle:
            connection.myself = connection  # type: ignore[attr-defined]
        holding.set()
        assert losing.wait(20)

    def lose_while_one_waits() -> Connection:
        losing.set()
        loser.result()
        gc.collect()
        return waiter.result(timeout=20)

    with ThreadPoolExecutor(2) as threads:
        loser = threads.submit(hold_and_lose)
        assert holding.wait(20)
        waiter = threads.submit(pool.get_connection, timeout=None)
        eventually(lambda: pool._pool.waiting() == 1)
        with pytest.warns(ResourceWarning, match="never returned") as warned:
            connection = lose_while_one_waits()
    assert [(warning.filename, warning.lineno) for warning in warned] == [(__file__, lines[0])]
    assert session_of(connection)
    connection.close()
    assert pool.size() == 1


def test_the_handle_of_an_ended_thread(make_pool: MakePool) -> None:
    """A connection whose thread has ended, but which is still referenced, is not taken back, only reported."""
    pool = make_pool(size=1)
    kept: list[Connection] = []
    thread = threading.Thread(target=lambda: kept.append(pool.get_connection()), name="short")
    thread.start()
    thread.join()
    gc.collect()
    assert pool.size() == 0
    error = exhausted(pool)
    [holder] = error.holders
    assert (holder["thread"], holder["alive"], holder["file"]) == ("short", False, __file__)
    if sys.version_info >= (3, 11):
        assert "(ended)" in error.__notes__[0]
    kept.pop().close()
    borrow_all(pool)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_lock_where_a_handle_dies(make_pool: MakePool, loss: Callable[[ConnectionPool], None]) -> None:
    """A handle may be collected at any point, even while the queue's mutex is held."""
    pool = make_pool(size=1)
    gc.disable()
    try:
        loss(pool)
        with pool._pool.mutex:
            gc.collect()
    finally:
        gc.enable()
    borrow_all(pool)


def test_who_finds_a_lost_handle_is_not_to_blame(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """If warnings are errors, the borrow that finds a lost handle still works, and the line is logged."""
    pool = make_pool(size=1)
    lose(pool)
    gc.collect()
    pool.get_connection(timeout=0).close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert f"{__file__}:{line_of_borrow(lose)}" in caplog.text


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_lost_handle_wrote_is_undone(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A lost handle's transaction ends with its session, and blocks nobody."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.numbers (number int primary key) engine=innodb")
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection.cursor().execute("insert into numbers values (1)")
    del connection
    gc.collect()
    handle = pool.get_connection(timeout=0)
    handle.execute_query("insert into numbers values (1)")
    with admin.cursor() as cursor:
        assert cursor.execute(f"select * from {database}.numbers") == 1

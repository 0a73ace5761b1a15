"""Returning: reuse or replacement by the kind of exception, once only, with nothing of the borrower left."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import borrow_all, eventually, kill, sessions
from proxy import Proxy
from pymysql.constants import FIELD_TYPE
from pymysql.cursors import Cursor, DictCursor
from pymysql.err import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    MySQLError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from pymysqlpool import (
    Connection,
    ConnectionPool,
    GetConnectionFromPoolError,
    PoolClosedError,
    PoolError,
    ReturnConnectionToPoolError,
)

if TYPE_CHECKING:
    from server import Server

    MakePool = Callable[..., ConnectionPool]
    Admin = pymysql.connections.Connection[Any]


class ApplicationError(Exception):
    """An exception that does not come from the database."""


SOUND_CODES = [1021, 1040, 1044, 1054, 1105, 1142, 1151, 1162, 1205, 1213, 1289, 1317, 1969, 3024, 3572, 4030, 5000]
SOUND_CODES += [3000, 3024, 3572, 4030, 5000]
LOST_CODES = [1053, 1927, 4031, *range(1152, 1162), 1047, 1180, 1290, 1792, 1836, 3100, 3101]
CLIENT_CODES = [2000, 2006, 2013, 2014, 2026, 2055, 2999]

SOUND = [
    ProgrammingError("why"),
    ProgrammingError(1064, "why"),
    IntegrityError(1062, "why"),
    NotSupportedError(1235, "why"),
    DataError(1406, "why"),
    PoolError("why"),
    GetConnectionFromPoolError("why"),
    ReturnConnectionToPoolError("why"),
    PoolClosedError("why"),
    ApplicationError("why"),
    ValueError("why"),
    OSError("why"),
    GeneratorExit(),
    *(OperationalError(code, "why") for code in SOUND_CODES),
    InternalError(1205, "why"),
]
LOST = [
    *(OperationalError(code, "why") for code in [999, *LOST_CODES, *CLIENT_CODES]),
    *(InternalError(code, "why") for code in (1053, 1290, 2013)),
    OperationalError("no code"),
    OperationalError(),
    InternalError("Packet sequence number wrong"),
    InterfaceError("why"),
    InterfaceError(0, ""),
    DatabaseError("why"),
    Error("why"),
    KeyboardInterrupt(),
    SystemExit(),
]


def session_lent_next(pool: ConnectionPool) -> int:
    """Return the next borrower's session. Check that it works, and that no place is lost."""
    assert pool.size() == pool.maxsize
    with pool.connection(timeout=0) as connection:
        session = connection.server_thread_id[0]
        assert connection.execute_query("select connection_id()") == ((session,),)
    return session


def end_block_by(pool: ConnectionPool, error: BaseException) -> int:
    """Borrow, end the block by `error`, and return the session."""
    connection = pool.get_connection()
    with pytest.raises(type(error)) as raised, connection:
        raise error
    assert raised.value is error
    session: int = connection.server_thread_id[0]
    return session


@pytest.mark.parametrize("error", SOUND, ids=repr)
def test_a_block_ended_by_a_harmless_error_keeps_the_session(make_pool: MakePool, error: BaseException) -> None:
    """After an error that does not affect the session the next borrower gets the same session."""
    pool = make_pool(size=1)
    assert end_block_by(pool, error) == session_lent_next(pool)


@pytest.mark.parametrize("error", LOST, ids=repr)
def test_a_block_ended_by_a_grave_error_gives_the_session_up(make_pool: MakePool, error: BaseException) -> None:
    """After an error that the session may not survive it is closed, and the next borrower gets another."""
    pool = make_pool(size=1)
    session = end_block_by(pool, error)
    assert pool.total_num == 0
    assert session != session_lent_next(pool)
    assert pool.total_num == 1


def test_a_subclass_decides_what_is_reusable(make_pool: MakePool) -> None:
    """`Connection._reusable_expection` is the tuple that decides, and a subclass may have its own."""

    class Mine(Connection):
        _reusable_expection = (*Connection._reusable_expection, InterfaceError)

    pool = make_pool(size=1, connection_class=Mine)
    assert end_block_by(pool, InterfaceError("why")) == session_lent_next(pool)


def fail(connection: Any, code: int) -> None:
    """Let the server answer with this error, and catch it."""
    with connection.cursor() as cursor, pytest.raises(MySQLError) as raised:
        cursor.execute(f"signal sqlstate 'HY000' set mysql_errno = {code}, message_text = 'why'")
    assert raised.value.args[0] == code


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("code", [1062, 1064, 1235, 1406, *SOUND_CODES])
def test_a_harmless_error_that_was_caught(make_pool: MakePool, code: int, in_block: bool) -> None:
    """After a server's error that was caught and does not affect the session, the session is kept."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    if in_block:
        with connection as cursor:
            fail(cursor.connection, code)
    else:
        fail(connection, code)
        connection.close()
    assert connection.server_thread_id[0] == session_lent_next(pool)


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize("code", [*LOST_CODES, 2013])
def test_a_grave_error_that_was_caught(make_pool: MakePool, code: int, in_block: bool) -> None:
    """A caught error that the session may not survive has the same effect as one that ends a block."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    if in_block:
        with connection as cursor:
            fail(cursor.connection, code)
            cursor.execute("select 1")
    else:
        fail(connection, code)
        with connection.cursor() as cursor:
            cursor.execute("select 1")
        connection.close()
    assert connection.server_thread_id[0] != session_lent_next(pool)


@pytest.mark.parametrize("how", ["block", "close", "execute_query"])
def test_a_killed_session(make_pool: MakePool, admin: Admin, database: str, how: str) -> None:
    """If the server kills a borrowed session, no place is lost, and nobody else gets the session."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = connection.server_thread_id[0]
    if how == "block":
        cursor = connection.__enter__()
        kill(admin, {session})
        with pytest.raises(OperationalError) as raised:
            cursor.execute("select 1")
        connection.__exit__(raised.type, raised.value, raised.tb)
    else:
        kill(admin, {session})
        if how == "execute_query":
            with pytest.raises(OperationalError):
                connection.execute_query("select 1")
        else:
            with connection.cursor() as cursor, pytest.raises(OperationalError):
                cursor.execute("select 1")
            connection.close()
    assert session != session_lent_next(pool)


def test_a_commit_that_fails(make_pool: MakePool, admin: Admin, database: str) -> None:
    """If the commit at the end of a block fails, the error is raised, and the session is closed."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.numbers (number int) engine=innodb")
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = connection.server_thread_id[0]
    cursor = connection.__enter__()
    cursor.execute("insert into numbers values (1)")
    kill(admin, {session})
    with pytest.raises(OperationalError):
        connection.__exit__(None, None, None)
    assert session != session_lent_next(pool)
    with admin.cursor() as cursor:
        assert cursor.execute(f"select * from {database}.numbers") == 0


def test_a_rollback_that_fails(make_pool: MakePool, admin: Admin, database: str) -> None:
    """If the rollback at a return fails, `close()` raises no error, and the session is closed."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = connection.server_thread_id[0]
    with connection.cursor() as cursor:
        cursor.execute("start transaction with consistent snapshot")
    kill(admin, {session})
    connection.close()
    assert session != session_lent_next(pool)


def test_a_closed_socket(make_pool: MakePool) -> None:
    """A connection whose socket PyMySQL has closed is replaced, whatever ends the block."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection._force_close()
    connection.close()
    assert connection.server_thread_id[0] != session_lent_next(pool)


def test_a_connection_reopened_by_hand(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A session that the borrower has opened by `connect()` works, is closed on return, and `maxsize` is kept."""
    pool = make_pool(size=1)
    with pool.connection() as connection:
        connection._force_close()
        connection.connect()
        assert connection.execute_query("select connection_id()") == ((connection.server_thread_id[0],),)
    assert connection.server_thread_id[0] != session_lent_next(pool)
    eventually(lambda: len(sessions(admin, database)) == 1)


def test_returning_opens_nothing(make_pool: MakePool, server: Server) -> None:
    """The thread that returns a broken connection does not open another one: the next borrower does."""
    with Proxy(server.host, server.port) as proxy, make_pool(size=1, host=proxy.host, port=proxy.port) as pool:
        end_block_by(pool, InterfaceError("why"))
        assert (proxy.opened, pool.total_num, pool.size()) == (1, 0, 1)
        pool.get_connection().close()
        assert (proxy.opened, pool.total_num, pool.size()) == (2, 1, 1)


def test_a_broken_connection_goes_to_the_bottom(make_pool: MakePool) -> None:
    """Connections that have to be opened again are lent after open ones."""
    pool = make_pool(size=2)
    with pool.connection() as resting:
        end_block_by(pool, InterfaceError("why"))
    for _ in range(3):
        assert resting.server_thread_id[0] == session_lent_next(pool)
    assert pool.total_num == 1


# Connections of others


@pytest.mark.parametrize("thing", [None, "a connection", object()])
def test_what_is_no_connection_is_refused(make_pool: MakePool, thing: Any) -> None:
    """`put_connection` refuses anything that is not a connection, with a clear message."""
    pool = make_pool()
    with pytest.raises(ReturnConnectionToPoolError, match=r"pool\(pool1\)"):
        pool.put_connection(thing)
    assert pool.size() == 2


def test_another_pools_connection_is_refused(make_pool: MakePool) -> None:
    """`put_connection` refuses another pool's connection, which stays borrowed and works."""
    pool, other = make_pool(), make_pool(name="pool2")
    with other.connection() as connection:
        with pytest.raises(ReturnConnectionToPoolError, match=r"pool\(pool1\)"):
            pool.put_connection(connection)
        assert connection.execute_query("select 1") == ((1,),)
        assert (pool.size(), other.size()) == (2, 1)
    assert (pool.size(), other.size()) == (2, 2)


@pytest.mark.parametrize("connection_class", [pymysql.connections.Connection, Connection])
def test_a_connection_without_a_pool_is_refused(make_pool: MakePool, server: Server, connection_class: Any) -> None:
    """`put_connection` refuses a connection that no pool has made, and leaves it open."""
    pool = make_pool()
    with connection_class(**server.connect_kwargs) as connection:
        with pytest.raises(ReturnConnectionToPoolError, match=r"pool\(pool1\)"):
            pool.put_connection(connection)
        assert connection.open
    assert pool.size() == 2


# Once only


@pytest.mark.parametrize("first", ["close", "put_connection", "block"])
def test_returning_twice_returns_once(make_pool: MakePool, first: str) -> None:
    """A second return, in whatever way, does nothing, also after the session has been lent to another."""
    pool = make_pool(size=2)
    connection = pool.get_connection()
    if first == "close":
        connection.close()
    elif first == "put_connection":
        pool.put_connection(connection)
    else:
        with connection:
            pass
    with pool.connection() as other:
        assert other.server_thread_id[0] == connection.server_thread_id[0]
        connection.close()
        pool.put_connection(connection)
        assert pool.size() == 1
        assert other.execute_query("select 1") == ((1,),)
    assert pool.size() == 2
    borrow_all(pool)


def test_returning_from_two_threads_at_once_returns_once(make_pool: MakePool) -> None:
    """If two threads return one connection at the same moment, it is returned once, in every round."""
    pool = make_pool(size=2)
    together = threading.Barrier(2)
    rounds = 300
    connections: list[Any] = [None] * rounds

    def work(put: Callable[[Any], None]) -> None:
        for number in range(rounds):
            if together.wait(30) == 0:
                connections[number] = pool.get_connection()
            together.wait(30)
            put(connections[number])
            together.wait(30)
            assert pool._pool.qsize() == 2

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, put) for put in (Connection.close, pool.put_connection)]:
            done.result()
    borrow_all(pool)


# What is left on the handle


def test_what_a_borrower_sets_on_its_handle_goes_with_it(make_pool: MakePool) -> None:
    """The next borrower's handle is a new object: nothing that the last one has set or changed on its own is left."""
    pool = make_pool(size=1)
    for number in range(3):
        connection = pool.get_connection()
        assert not hasattr(connection, "mine")
        assert connection.cursorclass is Cursor
        assert set in connection.encoders
        assert connection.decoders
        assert "me" not in connection._connect_attrs
        connection.mine = number
        connection.cursorclass = DictCursor
        del connection.encoders[set]
        connection.decoders.clear()
        connection._connect_attrs["me"] = "me"
        session = connection.server_thread_id[0]
        connection.close()
        assert session == session_lent_next(pool)


@pytest.mark.parametrize("reset", ["auto", None])
@pytest.mark.parametrize(("reading", "writing"), [(None, None), (10, None), (None, 10), (10, 15)])
def test_timeouts_are_the_borrowers(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, reset: str | None, reading: int | None, writing: int | None
) -> None:
    """A borrower's commands have the user's timeouts, whatever was done before; the pool's own are always limited."""
    pools_own = 20
    for module in ("pool", "wire"):
        monkeypatch.setattr(f"pymysqlpool.{module}.PING_TIMEOUT", pools_own)
    seen: set[tuple[str, float | None]] = set()

    class Observed(Connection):
        def _write_bytes(self, data: bytes) -> None:
            super()._write_bytes(data)
            if self._pool is not None:
                seen.add(("a borrower writes", self._sock.gettimeout()))

        def _read_bytes(self, size: int) -> Any:
            data = super()._read_bytes(size)
            seen.add(("a borrower reads" if self._pool is not None else "the pool reads", self._sock.gettimeout()))
            return data

    timeouts = {"read_timeout": reading, "write_timeout": writing, "connect_timeout": pools_own}
    pool = make_pool(size=1, connection_class=Observed, reset=reset, autocommit=True, **timeouts)
    for pre_ping in (False, True):
        for statement in ("select 1", "set @a = 1", "select 1", "start transaction", "set @a = 1", "set @a = 1"):
            with pool.connection(pre_ping=pre_ping) as connection:
                connection.query(statement)
    assert seen == {
        ("a borrower writes", writing),
        ("a borrower reads", reading),
        ("the pool reads", min(pools_own, reading or pools_own)),
    }


def test_connections_share_nothing_that_can_be_changed(make_pool: MakePool) -> None:
    """All of a pool's connections are copies of one template, with converters and attributes of their own."""
    pool = make_pool(size=2)
    with pool.connection() as first, pool.connection() as second:
        for name in ("encoders", "decoders", "_connect_attrs"):
            assert getattr(first, name) == getattr(second, name)
            assert getattr(first, name) is not getattr(second, name)
        assert getattr(first, "ctx", None) is getattr(second, "ctx", None)


def test_the_converters_given_are_not_the_pools(make_pool: MakePool) -> None:
    """`conv` is passed to PyMySQL, and the caller's dict is not changed."""
    conv = {**pymysql.converters.conversions, FIELD_TYPE.LONG: str, FIELD_TYPE.LONGLONG: str}
    pool = make_pool(size=1, conv=conv)
    for _ in range(2):
        with pool.connection() as connection:
            assert connection.execute_query("select 1 + 1") == (("2",),)
            connection.decoders.clear()
    assert conv[FIELD_TYPE.LONG] is str

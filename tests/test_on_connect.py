"""`on_connect` prepares each new session, and each that was reset, before a borrower's first command runs there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import session_of
from pymysql.cursors import SSCursor
from pymysql.err import OperationalError

import pymysqlpool
from pymysqlpool import Connection, ConnectionPool, PoolError

if TYPE_CHECKING:
    from helpers import Admin, MakePool


class Calls:
    """An `on_connect` that records the session that it is called for, and sets a variable to the number of calls."""

    def __init__(self) -> None:
        self.sessions: list[int] = []

    def __call__(self, connection: Connection) -> None:
        """Record a call."""
        self.sessions.append(connection.thread_id())
        with connection.cursor() as cursor:
            cursor.execute("set @call = %s", (len(self.sessions),))


def value_of(connection: Any, what: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(f"select {what}")
        [row] = cursor.fetchall()
    return row[0] if len(row) == 1 else row


def test_each_new_session_once(make_pool: MakePool) -> None:
    """It is called with the connection when a session is opened, and not again while there is nothing to reset."""
    calls = Calls()
    pool = make_pool(size=2, maxsize=3, on_connect=calls)
    assert len(calls.sessions) == 2
    connections = [pool.get_connection() for _ in range(3)]
    assert len(calls.sessions) == 3
    assert {session_of(connection) for connection in connections} == set(calls.sessions)
    assert {value_of(connection, "@call") for connection in connections} == {1, 2, 3}
    for connection in connections:
        connection.close()
    for _ in range(5):
        with pool.get_connection() as cur:
            assert value_of(cur, "@call") in {1, 2, 3}
    assert len(calls.sessions) == 3


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("deed", ["set @call = 99", "do get_lock('l', 0)", "create temporary table t (n int)"])
def test_again_after_each_reset(make_pool: MakePool, autocommit: bool, deed: str) -> None:
    """After a reset it is called again, on the same session, before the next borrower's first command."""
    calls = Calls()
    pool = make_pool(size=1, autocommit=autocommit, on_connect=calls)
    for number in range(1, 5):
        connection = pool.get_connection()
        assert len(calls.sessions) == number
        assert value_of(connection, "@call") == number
        connection.query(deed)
        connection.close()
        assert len(calls.sessions) == number
    for _ in range(3):  # what it does itself does not count as left by a borrower
        connection = pool.get_connection()
        assert value_of(connection, "@call") == len(calls.sessions) == 5
        connection.close()
    assert len(set(calls.sessions)) == 1


def test_a_first_command_that_writes(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A first command that writes also runs after it."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int)")
        pool = make_pool(size=1, autocommit=True, on_connect=Calls())
        for _ in range(3):
            with pool.get_connection() as cur:
                cur.execute("insert into t values (@call)")
                cur.execute("set @call = 99")
        cursor.execute(f"select n from {database}.t order by n")
        assert cursor.fetchall() == ((1,), (2,), (3,))


def test_after_a_rollback_alone_it_is_not_called(make_pool: MakePool) -> None:
    """A ROLLBACK keeps what it has set, so it is not called again."""
    calls = Calls()
    pool = make_pool(size=1, reset="rollback", on_connect=calls)
    for _ in range(3):
        connection = pool.get_connection()
        assert value_of(connection, "@call") == 1
        connection.close()
    assert len(calls.sessions) == 1


SETTINGS = {
    "variables": (
        ["set session sql_mode = 'ANSI_QUOTES'", "set time_zone = '+03:00'", "set lock_wait_timeout = 77"],
        "concat_ws('|', @@sql_mode, @@time_zone, @@lock_wait_timeout)",
        "ANSI_QUOTES|+03:00|77",
    ),
    "names": (["set names latin1 collate latin1_bin"], "@@collation_connection", "latin1_bin"),
    "autocommit": (["set autocommit = 1"], "@@autocommit", 1),
    "isolation": (["set session transaction read only"], "@@transaction_read_only", 1),
    "database": (["use {0}_other"], "database()", "{0}_other"),
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_it_sets_is_found(  # noqa: PLR0917  fixtures
    make_pool: MakePool, admin: Admin, database: str, on_mariadb: bool, setting: str, size: int
) -> None:
    """Each borrower gets what it sets, whatever the previous one has done, and the session is reused."""
    statements, what, value = SETTINGS[setting]
    if on_mariadb and setting == "isolation":
        what = "@@tx_read_only"
    with admin.cursor() as cursor:
        cursor.execute(f"create database {database}_other")
    try:

        def prepare(connection: Connection) -> None:
            for statement in statements:
                connection.query(statement.format(database))

        pool = make_pool(size=size, on_connect=prepare)
        sessions = set()
        for deed in ["set @a = 1", f"use {database}", "set session sql_mode = '', autocommit = 0", "set names utf8mb4"]:
            for _ in range(2):
                connections = [pool.get_connection() for _ in range(size)]
                for connection in connections:
                    assert value_of(connection, what) == (value.format(database) if isinstance(value, str) else value)
                    sessions.add(session_of(connection))
                    connection.query(deed)
                for connection in connections:
                    connection.close()
        assert len(sessions) == size
        pool.close()
    finally:
        with admin.cursor() as cursor:
            cursor.execute(f"drop database {database}_other")


def test_autocommit_that_it_turns_on_is_the_sessions_own(make_pool: MakePool) -> None:
    """A borrower's `autocommit()` is undone if it differs from what `on_connect` set, even if `connect()` set that."""
    pool = make_pool(size=1, autocommit=False, on_connect=lambda connection: connection.autocommit(True))  # noqa: FBT003  PyMySQL's
    for _ in range(3):
        connection = pool.get_connection()
        assert connection.get_autocommit()
        assert value_of(connection, "@@autocommit") == 1
        connection.autocommit(False)  # noqa: FBT003  PyMySQL's
        connection.close()


def test_what_it_sets_on_the_object_is_found(make_pool: MakePool) -> None:
    """Each borrower gets the attributes that it sets on the connection."""

    def prepare(connection: Any) -> None:
        connection.tenant = f"tenant of {connection.thread_id()}"

    pool = make_pool(size=1, on_connect=prepare)
    for deed in ("select 1", "set @a = 1", "select 1"):
        connection: Any = pool.get_connection()
        assert connection.tenant == f"tenant of {session_of(connection)}"
        connection.query(deed)
        connection.tenant = "another"
        connection.close()


def test_after_init_command(make_pool: MakePool) -> None:
    """`init_command` runs before it."""

    def prepare(connection: Connection) -> None:
        connection.query("set @b = @a + 1")

    pool = make_pool(size=1, init_command="set @a = 1", on_connect=prepare)
    for _ in range(3):
        with pool.get_connection() as cur:
            assert value_of(cur, "@a, @b") == (1, 2)
            cur.execute("set @a = 7, @b = 7")


def test_a_subclass_and_its_methods(make_pool: MakePool) -> None:
    """It is called with a connection of the pool's class, and may use all of its methods."""

    class Mine(Connection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.answer = 0

    def prepare(connection: Mine) -> None:
        connection.answer = connection.execute_query("select 42", return_one=True)[0]

    pool = make_pool(size=1, connection_class=Mine, on_connect=prepare)
    for _ in range(3):
        with pool.connection() as connection:
            assert connection.answer == 42  # type: ignore[attr-defined]
            connection.query("set @a = 1")


def test_what_it_leaves_open_is_nobodys(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A transaction that it leaves open is committed, as that of `init_command` is, and unread rows are read."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")

        def prepare(connection: Connection) -> None:
            connection.query("insert into t values (1)")
            rows = connection.cursor(SSCursor)
            rows.execute("select 1 union select 2")
            assert rows.fetchone() == (1,)
            kept.append(rows)

        kept: list[SSCursor] = []
        with pytest.warns(UserWarning, match="unbuffered result was left incomplete"):
            pool = make_pool(size=1, on_connect=prepare)
        connection = pool.get_connection()
        assert value_of(connection, "42") == 42
        cursor.execute(f"select n from {database}.t")
        assert cursor.fetchall() == ((1,),)
        cursor.execute(f"insert into {database}.t values (2)")
        assert value_of(connection, "count(*) from t") == 2  # no snapshot was taken before
        connection.close()


# Errors


@pytest.mark.parametrize("error", [ZeroDivisionError(), OperationalError(1045, "not you"), KeyboardInterrupt()])
def test_an_error_is_the_openings(make_pool: MakePool, admin: Admin, database: str, error: BaseException) -> None:
    """An error in it is raised in the borrower that opens, the session is closed, and the place is free again."""
    fails = True

    def prepare(connection: Connection) -> None:
        seen.append(connection.thread_id())
        if fails:
            raise error

    seen: list[int] = []
    pool = make_pool(size=1, pre_create_num=0, on_connect=prepare)
    with pytest.raises(type(error)):
        pool.get_connection()
    stats = pool.stats()
    assert (stats.borrowed, stats.opened, stats.failed_to_open) == (0, 0, 1)
    assert (pool.size(), pool.total_num) == (1, 0)
    with pytest.raises(type(error)):
        make_pool(size=1, on_connect=prepare)
    fails = False
    with pool.connection() as connection:
        assert session_of(connection) == seen[-1]


@pytest.mark.parametrize("error", [ZeroDivisionError(), OperationalError(1045, "not you")])
def test_an_error_after_a_reset_costs_the_session(make_pool: MakePool, error: Exception) -> None:
    """If it fails after a reset, the session is replaced; the borrower gets the error only if it fails there too."""
    failures = 0

    def prepare(connection: Connection) -> None:
        nonlocal failures
        seen.append(connection.thread_id())
        if failures:
            failures -= 1
            raise error

    seen: list[int] = []
    pool = make_pool(size=1, on_connect=prepare)
    pool.get_connection().execute_query("set @a = 1")
    failures = 1
    with pool.connection() as connection:
        assert session_of(connection) == seen[2] != seen[1] == seen[0]
        connection.query("set @a = 1")
    failures = 2
    with pytest.raises(type(error)):
        pool.get_connection()
    assert pool.stats().closed.reset == 2
    assert pool.size() == 1
    pool.get_connection().close()


@pytest.mark.parametrize("deed", ["close", "connect"])
def test_a_session_that_it_ends(make_pool: MakePool, deed: str) -> None:
    """Closing or reopening the connection in it is an error with a clear message."""

    def prepare(connection: Connection) -> None:
        connection.close()
        if deed == "connect":
            connection.connect()

    with pytest.raises(PoolError, match="on_connect has closed"):
        make_pool(size=1, on_connect=prepare)


def test_a_session_that_takes_the_place_at_the_first_command(make_pool: MakePool, database: str) -> None:
    """It is also called for a session that replaces one whose ROLLBACK has failed."""
    calls = Calls()
    pool = make_pool(size=1, reset="rollback", on_connect=calls)
    connection = pool.get_connection()
    place: Any = connection._place
    connection.query(f"xa start '{database}'")  # which the server refuses to roll back
    connection.close()
    wait = place.session.poll
    # As if the reply had not come yet.
    place.session.poll = lambda milliseconds: wait(milliseconds) if milliseconds else []
    connection = pool.get_connection()
    assert len(calls.sessions) == 1
    assert value_of(connection, "@call") == 2
    assert session_of(connection) == calls.sessions[1]
    connection.close()


# Arguments


def test_what_can_not_be_called_is_refused() -> None:
    """A TypeError is raised at once if it is not callable."""
    with pytest.raises(TypeError, match="on_connect"):
        ConnectionPool(on_connect="set @a = 1", pre_create_num=0)  # type: ignore[arg-type]


def test_connect_patched_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called in a user's own tests, where there is no session."""
    monkeypatch.setattr(pymysql.connections.Connection, "connect", lambda *_: None)
    calls = Calls()
    with pymysqlpool.ConnectionPool(1, on_connect=calls) as pool:
        pool.get_connection().close()
    assert calls.sessions == []

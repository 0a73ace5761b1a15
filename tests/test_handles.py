"""Handles outside blocks: `close()`, and what a returned handle refuses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Callable

import pytest
from helpers import Numbers, run, session_of
from pymysql.cursors import DictCursor, SSCursor
from pymysql.err import ProgrammingError

from pymysqlpool import Connection, GetConnectionFromPoolError, ReturnConnectionToPoolError

if TYPE_CHECKING:
    from helpers import Admin, MakePool


# close() outside a block


INSERT = "insert into numbers (number) values (0)"


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "statements",
    [
        [],
        ["select 1"],
        ["begin", "select * from numbers"],
        [INSERT, "commit"],
        [INSERT, "rollback"],
        ["set autocommit = 1", INSERT],
        ["set autocommit = 1", "begin", INSERT, "commit"],
    ],
    ids=", ".join,
)
def test_close_is_quiet_where_nothing_is_lost(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, statements: list[str]
) -> None:
    """`close()` outside a block logs no warning if nothing that was written is discarded."""
    connection = make_pool(size=1).get_connection()
    run(connection, *statements)
    connection.close()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("statements", "committed"),
    [
        ([INSERT], []),
        ([INSERT, "select * from numbers"], []),
        ([INSERT, "commit", INSERT], [0]),
        (["set autocommit = 1", "begin", INSERT], []),
        (["set autocommit = 1", INSERT, "set autocommit = 0", INSERT], [0]),
    ],
)
def test_close_rolls_back_and_warns(
    make_pool: MakePool, numbers: Numbers, caplog: pytest.LogCaptureFixture, statements: list[str], committed: list[int]
) -> None:
    """`close()` outside a block rolls back, and logs the line of the borrow if something was written."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    line = sys._getframe().f_lineno - 1
    run(connection, *statements)
    connection.close()
    connection.close()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("pymysqlpool", "WARNING")
    assert f"{__file__}:{line}" in record.getMessage()
    assert "pool(pool1)" in record.getMessage()
    assert numbers() == committed
    assert pool.get_connection().execute_query("select number from numbers") == tuple((n,) for n in committed)


def test_close_warns_of_an_insert_that_returns_rows(
    make_pool: MakePool, table: str, caplog: pytest.LogCaptureFixture, on_mariadb: bool
) -> None:
    """Discarding what a statement that returns rows has written is also logged."""
    if not on_mariadb:
        pytest.skip("MySQL has no INSERT ... RETURNING")
    connection = make_pool().get_connection()
    with connection.cursor() as cursor:
        cursor.execute(f"insert into {table} (number) values (0) returning id")
        assert cursor.fetchall() == ((1,),)
    connection.close()
    assert "borrowed at" in caplog.text


def test_close_warns_of_what_a_procedure_has_written(
    make_pool: MakePool, table: str, caplog: pytest.LogCaptureFixture, admin: Admin, database: str
) -> None:
    """Discarding what a stored procedure has written is also logged."""
    with admin.cursor() as cursor:
        cursor.execute(
            f"create procedure {database}.add_one() begin insert into {table} (number) values (0); select 1; end"
        )
    connection = make_pool().get_connection()
    with connection.cursor() as cursor:
        cursor.callproc("add_one")
    connection.close()
    assert "borrowed at" in caplog.text


def test_close_ends_a_transaction_that_only_read(make_pool: MakePool, table: str, admin: Admin) -> None:
    """`close()` also ends the snapshot that a SELECT has opened: the next borrower sees newer rows."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = connection.server_thread_id[0]
    with connection.cursor() as cursor:
        cursor.execute(f"select count(*) from {table}")
        assert cursor.fetchone() == (0,)
    connection.close()
    with admin.cursor() as cursor:
        cursor.execute(f"insert into {table} (number) values (1)")
    connection = pool.get_connection()
    assert connection.server_thread_id[0] == session
    assert connection.execute_query(f"select count(*) from {table}") == ((1,),)


# A returned handle


def stale_ss_cursor(connection: Connection) -> Any:
    """A cursor in the middle of its rows."""
    cursor = connection.cursor(SSCursor)
    cursor.execute("select 1 union all select 2 union all select 3")
    assert cursor.fetchone() == (1,)
    return cursor


USES: dict[str, Callable[[Any], Any]] = {
    "cursor": lambda conn: conn.cursor(),
    "cursor(DictCursor)": lambda conn: conn.cursor(DictCursor),
    "query": lambda conn: conn.query("select 1"),
    "ping": lambda conn: conn.ping(),
    "ping(reconnect=False)": lambda conn: conn.ping(reconnect=False),
    "ping(reconnect=True)": lambda conn: conn.ping(reconnect=True),
    "connect": lambda conn: conn.connect(),
    "begin": lambda conn: conn.begin(),
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "select_db": lambda conn: conn.select_db("mysql"),
    "autocommit(True)": lambda conn: conn.autocommit(True),  # noqa: FBT003
    "autocommit(False)": lambda conn: conn.autocommit(False),  # noqa: FBT003
    "set_charset": lambda conn: getattr(conn, "set_character_set", conn.set_charset)("utf8mb4"),
    "show_warnings": lambda conn: conn.show_warnings(),
    "kill": lambda conn: conn.kill(0),
    "next_result": lambda conn: conn.next_result(),
}
STALE_USES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda cursor: cursor.execute("select 1"),
    "executemany": lambda cursor: cursor.executemany("select %s", [(1,), (2,)]),
    "callproc": lambda cursor: cursor.callproc("nothing"),
    "db_query": lambda cursor: cursor.db_query("select 1"),
    "db_modify": lambda cursor: cursor.db_modify("do 1"),
}
STALE_FETCHES: dict[str, Callable[[Any], Any]] = {
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(2),
    "fetchall": lambda cursor: cursor.fetchall(),
    "iteration": list,
    "execute": lambda cursor: cursor.execute("select 1"),
}
refused = pytest.raises(ReturnConnectionToPoolError, match=r"returned to pool\(pool1\)")


@pytest.mark.parametrize("lent_again", [False, True])
@pytest.mark.parametrize("use", USES)
def test_a_returned_handle_refuses(make_pool: MakePool, use: str, lent_again: bool) -> None:
    """A returned handle refuses what would reach the server or reopen it, even while another has the session."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    handle.close()
    if lent_again:
        with pool.connection() as other:
            session = other.server_thread_id[0]
            with refused:
                USES[use](handle)
            assert other.execute_query("select connection_id()") == ((session,),)
    else:
        with refused:
            USES[use](handle)
    assert not handle.open
    assert pool.size() == 1
    assert pool.get_connection().execute_query("select 1") == ((1,),)


@pytest.mark.parametrize("use", STALE_USES)
def test_a_stale_cursor_refuses(make_pool: MakePool, use: str) -> None:
    """A cursor of a returned handle cannot reach any session."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    cursor = handle.cursor()
    handle.close()
    with pool.connection() as other:
        with refused:
            STALE_USES[use](cursor)
        assert other.execute_query("select 1") == ((1,),)


@pytest.mark.parametrize("use", STALE_FETCHES)
def test_a_stale_unbuffered_cursor_refuses(make_pool: MakePool, use: str) -> None:
    """A cursor that still has unread rows at the return reads no more of them, nor of the next borrower's rows."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    cursor = stale_ss_cursor(handle)
    handle.close()
    with pool.connection() as other:
        with other.cursor(SSCursor) as others:
            others.execute("select 7 union all select 8")
            assert others.fetchone() == (7,)
            with refused:
                STALE_FETCHES[use](cursor)
            assert others.fetchall() == [(8,)]
        assert pool.size() == 0
    assert pool.size() == 1


def test_a_blocks_cursor_is_stale_after_it(make_pool: MakePool) -> None:
    """A block's cursor is closed at the end of the block."""
    pool = make_pool(size=1)
    with pool.get_connection() as cursor:
        cursor.execute("select 1")
        connection = cursor.connection
    with pytest.raises(ProgrammingError, match="closed"):
        cursor.execute("select 1")
    with refused:
        connection.cursor()


def test_what_is_fetched_can_be_read(make_pool: MakePool, database: str) -> None:
    """Attributes and rows already fetched can be read from a returned handle, and nothing happens on `close()`."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    session = handle.server_thread_id[0]
    cursor = handle.cursor()
    cursor.execute("select 1 as one union all select 2")
    handle.close()
    assert cursor.rowcount == 2
    assert cursor.description[0][0] == "one"
    assert cursor.fetchall() == ((1,), (2,))
    cursor.close()
    assert handle.server_thread_id[0] == session
    assert handle.host
    assert handle.get_server_info()
    assert handle.escape("it's") == r"'it\'s'"
    assert handle.kwargs["database"] == database
    assert handle._pool is pool
    assert not handle.open
    handle.close()
    pool.put_connection(handle)
    assert pool.size() == 1


def test_a_returned_handle_borrows_afresh(make_pool: MakePool) -> None:
    """`with` and `execute_query` on a returned handle borrow a connection each time they are used, and return it."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    handle.close()
    for _ in range(3):
        with handle as cur:
            assert pool.size() == 0
            assert cur.db_query("select 1") == ((1,),)
        assert pool.size() == 1
        assert handle.execute_query("select 1") == ((1,),)
        assert pool.size() == 1
        with refused:
            handle.cursor()


def test_a_returned_handle_waits_its_turn(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`with` and `execute_query` borrow with the defaults of `get_connection`, and raise its error."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    handle.close()
    with pool.connection(), pytest.raises(GetConnectionFromPoolError, match=r"within 1\*2 second"):
        handle.execute_query("select 1")
    assert handle.execute_query("select 1") == ((1,),)


def test_a_returned_connection_has_no_thread_id(make_pool: MakePool) -> None:
    """`thread_id()` of a returned connection raises an error, as the session may be another borrower's."""
    connection = make_pool(size=1).get_connection()
    assert connection.thread_id() == session_of(connection)
    connection.close()
    with pytest.raises(ReturnConnectionToPoolError):
        connection.thread_id()

"""What hardly ever happens, each thing on a real server."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import eventually, is_in, one_thread, session_of, sessions
from proxy import Proxy
from pymysql.constants import COMMAND
from pymysql.cursors import Cursor, SSCursor
from server import running_server
from test_pending import Dam

import pymysqlpool
from pymysqlpool import Connection, ConnectionPool, PoolError, ReturnConnectionToPoolError
from pymysqlpool.statements import certainly_reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import MakePool


def test_a_block_without_a_cursor_gives_its_connection_back(make_pool: MakePool) -> None:
    """Where the cursor of a block can't be made, the connection goes back and the error comes out."""

    class Broken(Cursor):
        def __init__(self, _connection: Any) -> None:
            raise ZeroDivisionError

    pool = make_pool(size=1, cursorclass=Broken)
    with pytest.raises(ZeroDivisionError), pool.get_connection():
        pass
    assert (pool.size(), pool.total_num) == (1, 1)
    pool = make_pool(size=1)
    with pool.connection() as connection:
        connection.cursorclass = Broken
        with pytest.raises(ZeroDivisionError), connection:
            pass
        assert pool.size() == 0
    assert pool.size() == 1


def test_the_end_of_a_block_that_was_not_begun(make_pool: MakePool) -> None:
    """Leaving a block that nobody has entered is told in words, and the connection goes on."""
    connection = make_pool(size=1).get_connection()
    with pytest.raises(PoolError, match="no block"):
        connection.__exit__(None, None, None)
    assert connection.execute_query("select 1") == ((1,),)


def test_an_unbuffered_result_after_its_end(make_pool: MakePool) -> None:
    """An unbuffered cursor that is at its end says so again and again, also when another query has been run since."""
    connection = make_pool(size=1).get_connection()
    cursor = connection.cursor(SSCursor)
    cursor.execute("select 1")
    assert [cursor.fetchone(), cursor.fetchone()] == [(1,), None]
    with connection.cursor() as other:
        other.execute("select 2")
    assert cursor.fetchone() is None


def test_warnings_and_charsets_are_whole_replies(make_pool: MakePool) -> None:
    """After `show_warnings()`, `set_charset()` and `set_character_set()`, also failed ones, the session goes on."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = session_of(connection)
    connection.query("select 1/0")
    assert connection.show_warnings()[0][2] == "Division by 0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyMySQL's, of set_charset
        connection.set_charset("latin1")
    if hasattr(pymysql.connections.Connection, "set_character_set"):
        with pytest.raises(pymysql.Error):
            connection.set_character_set("utf8mb4", "latin1_bin")
        connection.set_character_set("utf8mb4")
    assert session_of(connection) == session
    connection.close()
    with pool.get_connection() as cur:
        assert cur.db_query("select connection_id(), @@character_set_client") == ((session, "utf8mb4"),)


def test_a_long_statement_is_not_read(make_pool: MakePool) -> None:
    """Whatever is hidden at the end of a long statement is undone."""
    pool = make_pool(size=1, autocommit=True)
    with pool.get_connection() as cur:
        cur.execute("select '" + 20_000 * "x" + "', @v := 1")
    with pool.get_connection() as cur:
        assert cur.db_query("select @v") == ((None,),)


def test_an_init_command_with_several_results(make_pool: MakePool, database: str, admin: Any) -> None:
    """All results of an `init_command` are read when it is run again."""
    with admin.cursor() as cur:
        cur.execute(f"create procedure {database}.two() begin select 1; select 2; set @v = 3; end")
    pool = make_pool(size=1, init_command="call two()")
    for _ in range(3):
        with pool.get_connection() as cur:
            assert cur.db_query("select @v") == ((3,),)
            cur.execute("set @v = 4")
    assert pool.total_num == 1


class WithoutRoles(pymysqlpool.Connection):
    """Talks to its server as if that had no roles, as MySQL 5.7."""

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """Ask for a function that the server does not have."""
        return super().query(sql.replace("CURRENT_ROLE", "NO_SUCH_FUNCTION"), unbuffered)


def test_a_server_without_roles(make_pool: MakePool) -> None:
    """The reset works on a server that knows no roles."""
    pool = make_pool(size=1, connection_class=WithoutRoles)
    connection = pool.get_connection()
    session = session_of(connection)
    connection.execute_query("set @v = 1")
    with pool.get_connection() as cur:
        assert cur.db_query("select @v, connection_id()") == ((None, session),)


class Killed(pymysqlpool.Connection):
    """Loses its session when it asks for its role."""

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """Kill the session first."""
        if "CURRENT_ROLE" in sql:
            self._sock.shutdown(2)
        return super().query(sql, unbuffered)


def test_a_session_that_is_lost_while_it_is_prepared(make_pool: MakePool) -> None:
    """A session that ends before it is ready is an opening that failed, and costs no place."""
    with pytest.raises(pymysql.err.OperationalError):
        make_pool(size=1, connection_class=Killed)
    pool = make_pool(size=1, pre_create_num=0, connection_class=Killed)
    with pytest.raises(pymysql.err.OperationalError):
        pool.get_connection()
    assert pool.size() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the server is started as on Unix")
def test_owed_replies_over_tls() -> None:
    """Replies to a reset come over TLS as they do without."""
    with running_server(tls=True) as server:
        if server.ca is None:
            pytest.skip("this server is not ours")
        with ConnectionPool(1, ssl={"ca": server.ca}, **server.connect_kwargs) as pool:
            sessions = set()
            for _ in range(5):
                with pool.get_connection() as cur:
                    sessions.add(cur.db_query("select connection_id()"))
                    cur.execute("set @v = 1")
                connection = pool.get_connection()
                sessions.add(session_of(connection))
                assert connection.execute_query("select @v") == ((None,),)
            assert len({str(session).strip("(),") for session in sessions}) == 1


def test_a_reconnect_by_hand_in_a_block(make_pool: MakePool, database: str, admin: Any) -> None:
    """Where a block has written and lost its session, a reconnect does not make its end a success."""
    with admin.cursor() as cur:
        cur.execute(f"create table {database}.news (n int)")
    pool = make_pool(size=1)

    def write_and_reconnect() -> None:
        with pool.connection() as connection:
            connection.query("insert into news values (1)")
            admin.kill(connection.server_thread_id[0])
            with pytest.raises(pymysql.Error):
                connection.query("select sleep(10)")
            connection.connect()
            connection.query("insert into news values (2)")

    with pytest.raises(pymysql.err.OperationalError, match="gone"):
        write_and_reconnect()
    with pool.connection() as connection:
        connection.connect()
        connection.query("insert into news values (3)")
    assert pool.get_connection().execute_query("select n from news") == ((3,),)


class Tagged(pymysqlpool.Connection):
    """Has a list of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tags = ["new"]


def test_the_lists_of_a_subclass(make_pool: MakePool) -> None:
    """What a borrower puts into a list or dict of a subclass's reaches no other borrower, and no other connection."""
    pool = make_pool(size=2, connection_class=Tagged)
    for _ in range(3):
        one, other = pool.get_connection(), pool.get_connection()
        assert one.tags == other.tags == ["new"]
        one.tags.append("used")
        assert other.tags == ["new"]
        one.close()
        other.close()


def test_a_connection_without_a_pool_is_closed_when_dropped(server: Any, admin: Any, database: str) -> None:
    """Dropping a connection that has no pool ends its session, without a warning, as PyMySQL does."""
    connection = pymysqlpool.Connection(database=database, **server.connect_kwargs)
    assert sessions(admin, database) == {connection.server_thread_id[0]}
    del connection
    eventually(lambda: not sessions(admin, database))


@pytest.mark.parametrize(
    ("statement", "mode"),
    [
        ("select 1.5into @v", ""),
        ("select .5into @v", ""),
        ("select 1e5into @v", ""),
        ("select `get_lock`/**/('x', 0)", ""),
        ("select `get_lock`-- \n('x', 0)", ""),
        ("select `get_lock`#\n('x', 0)", ""),
        ("select \"get_lock\"/**/('x', 0)", "ANSI_QUOTES"),
        ("select last_insert_id/**/(7)", ""),
        ("select last_insert_id#\n(7)", ""),
        ("select a --\u00a0, get_lock('x', 0) from (select 1 as a, 2 as `\u00a0`) as t", ""),
        ("select 1 --\x7f'\n, get_lock('x', 0) -- '", ""),
    ],
)
def test_what_a_statement_that_reads_can_hide(make_pool: MakePool, statement: str, mode: str) -> None:
    """A number in front of INTO, comments between a function and its parenthesis, what only looks like a comment."""
    pool = make_pool(size=1, sql_mode=mode)
    connection = pool.get_connection()
    connection.query(statement)
    connection.close()
    found = pool.get_connection().execute_query("select @v, is_used_lock('x'), last_insert_id()")
    assert found == ((None, None, 0),)


@pytest.mark.parametrize(("charset", "character"), [("sjis", b"\xfa`"), ("gbk", b"\xfe`")])
def test_a_character_that_python_does_not_know(
    make_pool: MakePool, on_mariadb: bool, charset: str, character: bytes
) -> None:
    """Its second byte is no quote for the server; MariaDB does not know these either, and refuses the statement."""
    pool = make_pool(size=1, charset=charset)
    connection = pool.get_connection()
    with suppress(pymysql.Error) if on_mariadb else nullcontext():
        connection.query(b"select 1 as %b, get_lock('x', 0) as %b" % (character, character))
    connection.close()
    assert pool.get_connection().execute_query("select is_used_lock('x')") == ((None,),)


@pytest.mark.parametrize(
    "read",
    ["select next/**/value for s", "select default(id) from t", "select s.`nextval`", 'select s . "nextval"'],
)
def test_a_sequence_behind_a_default_or_a_comment(make_pool: MakePool, on_mariadb: bool, read: str) -> None:
    """What the next borrower asks for as the sequence's last value is not the former's."""
    if not on_mariadb:
        pytest.skip("MariaDB's")
    pool = make_pool(size=1, autocommit=True, sql_mode="ORACLE")
    connection = pool.get_connection()
    connection.query("create sequence s")
    connection.query("create table t (id int default (next value for s), n int)")
    connection.query("insert into t values (1, 1)")
    connection.close()
    connection = pool.get_connection()
    connection.query(read)
    connection.close()
    assert pool.get_connection().execute_query("select lastval(s)") == ((None,),)


def test_a_long_word_is_read_once(make_pool: MakePool) -> None:
    """A statement that reads, with a long word in it, is as quick behind a pending reset as it is elsewhere."""
    pool = make_pool(size=1)
    for _ in range(20):
        pool.get_connection().execute_query("do 1")  # has a reset pending
        assert pool.get_connection().execute_query(f"select length('{'x' * 200_000}')") == ((200_000,),)


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("select f -- in\n(1)", False),
        ("select f # in\n(1)", False),
        ("select d . abs (1)", False),
        ("-- name: x\nselect abs(1), count(*) from t where a in (1, 2)", True),
        ("select '" + "x" * 1000 + "', max(a) from t", True),
    ],
)
def test_what_certainly_calls_no_stored_function(statement: str, reads: bool) -> None:
    """Behind a pending reset nothing is run that may write, and so not twice."""
    assert certainly_reads(COMMAND.COM_QUERY, statement.encode()) is reads


def test_a_block_begun_in_somebody_s_own_enter(make_pool: MakePool) -> None:
    """What runs inside joins it: a subclass's `__enter__`, a unit of work's, or a context manager's in that."""

    class Own(Connection):
        def __enter__(self) -> Any:
            return super().__enter__()

    class UnitOfWork:
        def __init__(self, manager: Any) -> None:
            self.manager = manager

        def __enter__(self) -> Any:
            return self.manager.__enter__()

        def __exit__(self, *exc_info: object) -> None:
            self.manager.__exit__(*exc_info)

    @contextmanager
    def through(handle: Connection) -> Iterator[Any]:
        with handle as cursor:
            yield cursor

    pool = make_pool(size=1, connection_class=Own)
    pool.get_connection().execute_query("create table t (n int)")
    handle = pool.get_connection()
    for manager in (handle, UnitOfWork(handle), UnitOfWork(through(handle))):
        with manager as cursor:
            cursor.execute("insert into t values (1)")
            with handle as joined:
                assert joined.connection is cursor.connection
            assert handle.execute_query("select count(*) from t") == ((1,),)
            cursor.execute("truncate t")
    assert pool.size() == 1


def strike_when_in(thread: threading.Thread, *functions: str) -> None:
    """Send the thread a signal when it runs these functions."""
    eventually(lambda: all(is_in(thread, function) for function in functions))
    signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals here")
@pytest.mark.parametrize("pre_ping", [False, True])
def test_an_alarm_while_a_reset_is_pending(make_pool: MakePool, server: Any, pre_ping: bool) -> None:
    """A signal handler's TimeoutError is the borrower's: it is not taken for the reset's, and nothing is run after."""

    def strike(*_: object) -> None:
        raise TimeoutError("alarm")

    def when_waiting(thread: threading.Thread) -> None:
        eventually(lambda: is_in(thread, "_read"))
        signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)

    with Dam(server.host, server.port) as dam, one_thread() as other:
        pool = make_pool(size=1, host=dam.host, port=dam.port, ssl_disabled=True, autocommit=True)
        pool.get_connection().execute_query("create table t (n int)")
        assert pool.get_connection().execute_query("select count(*) from t") == ((0,),)
        connection = pool.get_connection()
        connection.query("do 1")
        dam.hold()
        connection.close()
        former = signal.signal(signal.SIGUSR1, strike)
        try:
            other.submit(strike_when_in, threading.current_thread(), "read_pending", "_read")
            with pytest.raises(TimeoutError, match="alarm"):
                pool.get_connection(pre_ping=pre_ping).execute_query("insert into t values (1)")
        finally:
            signal.signal(signal.SIGUSR1, former)
            dam.let_go()
        assert pool.size() == 1
        assert pool.get_connection().execute_query("select count(*) from t") == ((0,),)


@pytest.mark.parametrize("ends_by", ["close", "block"])
def test_a_connection_returned_while_another_thread_reads_from_it(ends_by: str) -> None:
    """Over TLS, too, that thread does not touch the next session, whose socket would have the same number."""
    with running_server(tls=True) as server, one_thread() as other:
        if server.ca is None:
            pytest.skip("this server is not ours")
        thread = other.submit(threading.current_thread).result()
        with ConnectionPool(1, ssl={"ca": server.ca}, **server.connect_kwargs) as pool:
            for _ in range(20):
                connection = pool.get_connection()
                end = connection.close
                if ends_by == "block":
                    connection.__enter__()
                    end = functools.partial(connection.__exit__, None, TimeoutError(), None)
                query = other.submit(connection.query, "select sleep(60)")
                eventually(lambda: is_in(thread, "readinto"))
                end()
                assert pool.get_connection().execute_query("select 1") == ((1,),)
                assert isinstance(query.exception(), ReturnConnectionToPoolError)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals here")
def test_a_connection_returned_by_a_signal_handler_that_strikes_its_query() -> None:
    """Over TLS, too, the query does not go on to read from the session that the handler borrows."""
    borrowed = []

    def strike(*_: object) -> None:
        connection.close()
        borrowed.append(pool.get_connection())

    with running_server(tls=True) as server, one_thread() as other:
        if server.ca is None:
            pytest.skip("this server is not ours")
        former = signal.signal(signal.SIGUSR1, strike)
        try:
            with ConnectionPool(1, ssl={"ca": server.ca}, **server.connect_kwargs) as pool:
                for _ in range(5):
                    connection = pool.get_connection()
                    other.submit(strike_when_in, threading.current_thread(), "readinto")
                    with pytest.raises(ReturnConnectionToPoolError):
                        connection.query("select sleep(60)")
                    assert borrowed.pop().execute_query("select 1") == ((1,),)
        finally:
            signal.signal(signal.SIGUSR1, former)


def test_a_reply_that_comes_in_pieces(make_pool: MakePool, server: Any) -> None:
    """It is read whole, and the session is kept."""

    class Crumbs(Proxy):
        async def _pump(self, reader: Any, writer: Any) -> None:
            with suppress(OSError):  # a reset is an end like any other
                while data := await reader.read(4096):
                    for at in range(0, len(data), 5):
                        writer.write(data[at : at + 5])
                        await writer.drain()
                        await asyncio.sleep(0.0005)
            writer.close()

    with Crumbs(server.host, server.port) as proxy:
        pool = make_pool(size=1, host=proxy.host, port=proxy.port, ssl_disabled=True, autocommit=True)
        for _ in range(5):
            pool.get_connection().execute_query("do 1")
        assert pool.stats().opened == 1


def test_a_comprehension_over_a_generator_with_a_block(make_pool: MakePool) -> None:
    """What it runs for each item is inside the block, as in a loop."""
    handle = make_pool(size=1).get_connection()

    def rows() -> Iterator[int]:
        with handle as cursor:
            cursor.execute("select 1 union select 2")
            yield from cursor

    one = ((1,),)
    assert [handle.execute_query("select 1") for _ in rows()] == [one, one]
    assert {handle.execute_query("select 1") for _ in rows()} == {one}
    assert list(handle.execute_query("select 1") for _ in rows()) == [one, one]  # noqa: C400  a generator, too

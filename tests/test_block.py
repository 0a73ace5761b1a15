"""The block as a unit of work: what it commits and rolls back, when it joins, and what happens to its session."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import Add, Boom, Numbers, ask, check_answers, eventually, is_alive, raise_if, running
from pymysql.constants import COMMAND
from pymysql.err import ProgrammingError

from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError, PoolError
from pymysqlpool.reset import pack_commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool


# Commit, rollback, return


@pytest.fixture(params=["as cur", "as conn", "pool.connection()", "a returned handle"])
def block(request: pytest.FixtureRequest, make_pool: MakePool, add: Add) -> Callable[..., None]:
    """Insert numbers in one block, in each of the ways to write one, and end it by an exception or not."""
    pool = make_pool(size=1)

    def run(*to_add: int, error: BaseException | None = None) -> None:
        if request.param in ("as cur", "a returned handle"):
            connection = pool.get_connection()
            if request.param == "a returned handle":
                connection.close()
            with connection as cur:
                for number in to_add:
                    add(cur, number)
                raise_if(error)
        else:
            with pool.get_connection() if request.param == "as conn" else pool.connection() as conn:
                with conn.cursor() as cur:
                    for number in to_add:
                        add(cur, number)
                raise_if(error)

    run.pool = pool  # type: ignore[attr-defined]
    return run


def test_a_block_commits_and_returns(block: Any, numbers: Numbers) -> None:
    """A block that ends without an exception commits, and returns the connection."""
    block(1, 2)
    assert numbers() == [1, 2]
    assert (block.pool.size(), block.pool.available_num) == (1, 1)


@pytest.mark.parametrize("kind", [Boom, ProgrammingError, KeyboardInterrupt, GeneratorExit])
def test_a_block_rolls_back_and_returns(block: Any, numbers: Numbers, kind: type[BaseException]) -> None:
    """A block that an exception ends rolls back, returns the connection and does not suppress the exception."""
    error = kind("over")
    with pytest.raises(kind) as raised:
        block(1, error=error)
    assert raised.value is error
    block(2)
    assert numbers() == [2]
    assert block.pool.size() == 1


def test_commit_and_rollback_inside_a_block(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A block may commit and roll back explicitly, with the connection's methods or the cursor's."""
    with make_pool().get_connection() as cur:
        add(cur, 1)
        cur.connection.commit()
        add(cur, 2)
        cur.rollback()
        add(cur, 3)
    assert numbers() == [1, 3]


def test_the_whole_connection_for_a_block(make_pool: MakePool) -> None:
    """`pool.connection()` gives the `Connection` itself, and its arguments limit the wait."""
    pool = make_pool(size=1)
    with pool.connection(timeout=5) as conn:
        assert isinstance(conn, Connection)
        with pytest.raises(GetConnectionFromPoolError, match=r"within 0\*2 second"), pool.connection(timeout=0):
            pass
    assert pool.size() == 1


# Joining


def test_a_nested_block_joins(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A `with` inside a block on the same handle has the same session, and its end neither commits nor returns it."""
    pool = make_pool()
    handle = pool.get_connection()
    with handle as outer:
        add(outer, 1)
        with handle as inner:
            assert inner.server_thread_id[0] == outer.server_thread_id[0]
            add(inner, 2)
        assert numbers() == []
        assert pool.size() == 1
        with outer.connection as inner:
            assert inner.server_thread_id[0] == outer.server_thread_id[0]
            add(inner, 3)
        assert numbers() == []
        add(outer, 4)
    assert numbers() == [1, 2, 3, 4]
    assert pool.size() == 2


def test_a_nested_block_joins_on_a_returned_handle(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A block on a returned handle can be joined by that handle and by its cursor's connection."""
    pool = make_pool()
    handle = pool.get_connection()
    handle.close()
    with suppress(Boom), handle as outer:
        add(outer, 1)
        with handle as inner, outer.connection as other:
            assert inner.server_thread_id[0] == other.server_thread_id[0] == outer.server_thread_id[0]
            add(inner, 2)
        handle.execute_query("select 1")
        outer.connection.execute_query("select 1")
        assert pool.size() == 1
        raise Boom
    assert numbers() == []
    assert pool.size() == 2


def test_only_the_outermost_block_decides(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """An exception that is caught inside the outermost block does not roll it back; one that ends it does."""
    pool = make_pool()
    with pool.connection() as handle:
        with suppress(Boom), handle as inner:
            add(inner, 1)
            raise Boom
        assert pool.size() == 1
    assert numbers() == [1]
    with suppress(Boom), pool.connection() as handle, handle as inner:
        add(inner, 2)
        raise Boom
    assert numbers() == [1]
    assert pool.size() == 2


def test_execute_query_is_part_of_the_block(make_pool: MakePool, add: Add, numbers: Numbers, table: str) -> None:
    """`execute_query` in a block sees what the block did, and is rolled back with it."""
    pool = make_pool()
    handle = pool.get_connection()
    with suppress(Boom), handle as cur:
        add(cur, 1)
        handle.execute_query(f"insert into {table} (number) values (2)")
        assert handle.execute_query(f"select count(*) from {table}", return_one=True) == (2,)
        with pytest.raises(ProgrammingError):
            handle.execute_query("select from")
        assert pool.size() == 1
        raise Boom
    assert numbers() == []


def test_close_inside_a_block_does_nothing(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """`close()` and `put_connection()` in a block do nothing: the end of the block commits and returns."""
    pool = make_pool()
    with pool.connection() as conn:
        with conn.cursor() as cur:
            add(cur, 1)
        conn.close()
        pool.put_connection(conn)
        with conn as inner:
            conn.close()
            add(inner, 2)
        assert pool.size() == 1
        assert numbers() == []
    assert numbers() == [1, 2]
    assert pool.size() == 2


# What never commits


@contextmanager
def block_on_handle(pool: ConnectionPool) -> Iterator[Any]:
    with pool.get_connection() as cursor:
        yield cursor.connection


@contextmanager
def block_of_pool(pool: ConnectionPool) -> Iterator[Any]:
    with pool.connection() as connection:
        yield connection


@contextmanager
def block_in_a_block(pool: ConnectionPool) -> Iterator[Any]:
    with pool.get_connection() as cursor, cursor.connection as inner:
        yield inner.connection


@contextmanager
def block_on_a_returned_handle(pool: ConnectionPool) -> Iterator[Any]:
    handle = pool.get_connection()
    handle.close()
    with handle as cursor:
        yield cursor.connection


BLOCKS = [block_on_handle, block_of_pool, block_in_a_block, block_on_a_returned_handle]
Way = Callable[[ConnectionPool], Any]
INSERT = "insert into numbers (number) values (1)"


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("autocommit", "begin"), [(False, "do 0"), (False, "begin"), (True, "begin"), (True, "start transaction")]
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, pymysql.err.ProgrammingError])
def test_an_exception_never_commits(  # noqa: PLR0917 - fixtures
    error: type[BaseException],
    autocommit: bool,
    begin: str,
    block: Way,
    numbers: Numbers,
    make_pool: MakePool,
) -> None:
    """If an exception ends a block, its transaction is undone; after an `Exception` the session is reused."""
    pool = make_pool(size=1, autocommit=autocommit)
    session = check_answers(pool)
    with pytest.raises(error), block(pool) as connection:  # noqa: PT012 - the end of the block raises
        running(begin, INSERT)(connection)
        raise error
    assert numbers() == []
    assert check_answers(pool) == session or not issubclass(error, Exception)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sql", ["select nothing", "insert into numbers values (1)", "selec"])
def test_a_failing_statement_never_commits(sql: str, block: Way, numbers: Numbers, make_pool: MakePool) -> None:
    """BEGIN, INSERT and a statement that the server refuses leave nothing behind, and the session is reused."""
    pool = make_pool(size=1)
    session = check_answers(pool)
    with pytest.raises(pymysql.Error), block(pool) as connection:
        running("begin", INSERT, sql)(connection)
    assert numbers() == []
    assert check_answers(pool) == session


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("swallows", [True, False])
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_session_killed_in_a_block_is_no_success(  # noqa: PLR0917 - fixtures
    autocommit: bool, swallows: bool, block: Way, numbers: Numbers, admin: Admin, make_pool: MakePool
) -> None:
    """If a block's session is lost, its end raises, even if the block has not noticed it or has caught the error."""
    pool = make_pool(size=1, autocommit=autocommit)
    with pytest.raises(pymysql.Error), block(pool) as connection:  # noqa: PT012 - the end of the block raises
        running("begin", INSERT)(connection)
        session = connection.server_thread_id[0]
        admin.kill(session)
        eventually(lambda: not is_alive(session, admin))
        if swallows:
            with suppress(pymysql.Error):
                ask(connection, "select 1")
    assert numbers() == []
    assert pool.size() == 1
    assert check_answers(pool) != session


@pytest.mark.parametrize("block", BLOCKS)
def test_the_exception_of_a_block_is_not_hidden_by_a_lost_session(
    block: Way, numbers: Numbers, admin: Admin, make_pool: MakePool
) -> None:
    """If an exception ends a block whose session is also lost, that exception is raised."""
    pool = make_pool(size=1)
    with pytest.raises(Boom), block(pool) as connection:  # noqa: PT012 - the end of the block raises
        ask(connection, INSERT)
        session = connection.server_thread_id[0]
        admin.kill(session)
        eventually(lambda: not is_alive(session, admin))
        raise Boom
    assert numbers() == []
    assert pool.size() == 1
    assert check_answers(pool) != session


def test_a_commit_that_the_server_refuses_is_raised(numbers: Numbers, admin: Admin, make_pool: MakePool) -> None:
    """If the commit at the end of a block fails, its error is raised, and the session is not lent again."""
    pool = make_pool(size=1)
    with pytest.raises(pymysql.Error), pool.connection() as connection:  # noqa: PT012 - the end of the block raises
        running("xa start 'half'", INSERT)(connection)  # the server refuses to COMMIT an XA transaction
        session = connection.server_thread_id[0]
    assert numbers() == []
    assert pool.size() == 1
    assert check_answers(pool) != session
    eventually(lambda: not is_alive(session, admin))


def test_a_reconnect_by_hand_in_a_block(make_pool: MakePool, database: str, admin: Any) -> None:
    """If a block has written and then lost its session, its end raises even after a reconnect."""
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


def test_what_is_done_on_a_replacement_is_known(make_pool: MakePool, admin: Admin, database: str) -> None:
    """If a block's session is replaced at its first command, the block commits what it wrote on the new one."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")
    connection = make_pool(size=1).get_connection()
    connection._send(connection._place.session, pack_commands((COMMAND.COM_QUERY, b"no SQL")))
    session = connection.thread_id()
    with connection as cur:
        connection.select_db(database)
        assert connection.thread_id() != session
        cur.execute("insert into t values (1)")
    with admin.cursor() as cursor:
        cursor.execute(f"select n from {database}.t")
        assert cursor.fetchall() == ((1,),)


# Begun and ended in other functions


def test_a_block_begun_in_somebody_s_own_enter(make_pool: MakePool) -> None:
    """Code inside joins a block that was begun in a subclass's, a unit of work's or a context manager's `__enter__`."""

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


def test_the_end_of_a_block_that_was_not_begun(make_pool: MakePool) -> None:
    """Leaving a block that was never entered raises an error, and the connection can still be used."""
    connection = make_pool(size=1).get_connection()
    with pytest.raises(PoolError, match="no block"):
        connection.__exit__(None, None, None)
    assert connection.execute_query("select 1") == ((1,),)

"""The block as a unit of work, and what becomes of a handle at its end."""

from __future__ import annotations

import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import one_thread
from pymysql.cursors import Cursor, DictCursor, SSCursor
from pymysql.err import ProgrammingError

from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError, ReturnConnectionToPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    MakePool = Callable[..., ConnectionPool]
    Admin = pymysql.connections.Connection[Any]


class Failure(Exception):
    """What ends a block in these tests."""


@pytest.fixture
def table(admin: Admin, database: str) -> str:
    """A table of numbers, by its full name."""
    name = f"{database}.numbers"
    with admin.cursor() as cursor:
        cursor.execute(f"create table {name} (id int auto_increment primary key, number int) engine=innodb")
    return name


@pytest.fixture
def numbers(admin: Admin, table: str) -> Callable[[], list[int]]:
    """Tell what has been committed to the table."""

    def committed() -> list[int]:
        with admin.cursor() as cursor:
            cursor.execute(f"select number from {table} order by id")
            return [number for (number,) in cursor.fetchall()]

    return committed


@pytest.fixture
def add(table: str) -> Callable[[Any, int], None]:
    """Insert a number through a cursor."""

    def insert(cursor: Any, number: int) -> None:
        cursor.execute(f"insert into {table} (number) values (%s)", (number,))

    return insert


@pytest.fixture
def other_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread beside the test's own, the same one for each job."""
    with one_thread() as thread:
        yield thread


Numbers = Callable[[], list]
Add = Callable[[Any, int], None]


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


def raise_if(error: BaseException | None) -> None:
    if error is not None:
        raise error


def test_a_block_commits_and_returns(block: Any, numbers: Numbers) -> None:
    """A block that ends well commits, and returns the connection."""
    block(1, 2)
    assert numbers() == [1, 2]
    assert (block.pool.size(), block.pool.available_num) == (1, 1)


@pytest.mark.parametrize("kind", [Failure, ProgrammingError, KeyboardInterrupt, GeneratorExit])
def test_a_block_rolls_back_and_returns(block: Any, numbers: Numbers, kind: type[BaseException]) -> None:
    """A block that an exception ends rolls back, returns the connection and lets the exception through."""
    error = kind("over")
    with pytest.raises(kind) as raised:
        block(1, error=error)
    assert raised.value is error
    block(2)
    assert numbers() == [2]
    assert block.pool.size() == 1


def test_commit_and_rollback_inside_a_block(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A block may commit and roll back by hand, through the connection or the cursor that answers for it."""
    with make_pool().get_connection() as cur:
        add(cur, 1)
        cur.connection.commit()
        add(cur, 2)
        cur.rollback()
        add(cur, 3)
    assert numbers() == [1, 3]


def test_the_cursor_of_a_block_answers_for_its_connection(make_pool: MakePool) -> None:
    """What a block gets is a cursor, and has what the connection has: methods, attributes and more cursors."""
    with make_pool().get_connection() as conn:
        assert isinstance(conn, pymysql.cursors.Cursor)
        assert isinstance(conn.connection, Connection)
        assert conn.server_thread_id[0] == conn.connection.server_thread_id[0]
        assert conn.host == conn.connection.host
        conn.ping()
        with conn.cursor(DictCursor) as cursor:
            cursor.execute("select 1 as one")
            assert cursor.fetchone() == {"one": 1}
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = conn.no_such_thing


class Proxy:
    """Stands in front of a cursor, as tracers' cursors do, and has the class of what is behind it."""

    def __init__(self, behind: Any) -> None:
        object.__setattr__(self, "behind", behind)

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "behind"), name)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "behind"), name, value)


class Proxied(Connection):
    """All its cursors are behind proxies."""

    def cursor(self, cursor: Any = None) -> Any:
        """One behind a proxy."""
        return Proxy(super().cursor(cursor))


def test_a_proxy_of_a_cursor_answers_for_its_connection(make_pool: MakePool) -> None:
    """What a subclass's `cursor()` puts in front of a cursor stays in front of it in a block."""
    pool = make_pool(size=1, connection_class=Proxied)
    with pool.get_connection() as cursor:
        assert type(cursor) is type(cursor.cursor()) is Proxy
        cursor.execute("select 1 + 1")
        cursor.commit()
        assert cursor.connection.execute_query("select 1", return_one=True) == (1,)
    assert pool.size() == 1


@pytest.mark.parametrize("is_inner", [False, True])
@pytest.mark.parametrize("error", [None, Failure(), KeyboardInterrupt()])
def test_the_cursor_of_a_block_is_closed_at_its_end(
    make_pool: MakePool, error: BaseException | None, is_inner: bool
) -> None:
    """However a block ends, its cursor is closed then, and says so as PyMySQL's does; the rows it has can be read."""
    connection = make_pool(size=1).get_connection()
    with connection if is_inner else nullcontext():
        with suppress(Failure, KeyboardInterrupt), connection as cur:
            cur.execute("select 1")
            raise_if(error)
        with pytest.raises(ProgrammingError, match="Cursor closed"):
            cur.execute("select 2")
        assert cur.fetchall() == ((1,),)


def test_a_closed_cursor_does_not_end_the_block(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A block whose cursor was closed by hand commits and returns as any other; its connection can still be asked."""
    pool = make_pool(size=1)
    with pool.get_connection() as cur:
        add(cur, 1)
        cur.close()
        with pytest.raises(pymysql.ProgrammingError, match="Cursor closed"):
            cur.execute("select 1")
        assert cur.open
        assert pool.size() == 0
    assert numbers() == [1]
    assert pool.size() == 1


def test_the_whole_connection_for_a_block(make_pool: MakePool) -> None:
    """`pool.connection()` gives the `Connection` itself, and waits as it is told to."""
    pool = make_pool(size=1)
    with pool.connection(timeout=5) as conn:
        assert isinstance(conn, Connection)
        with pytest.raises(GetConnectionFromPoolError, match=r"within 0\*2 second"), pool.connection(timeout=0):
            pass
    assert pool.size() == 1


# Joining


def test_a_nested_block_joins(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A block on a handle whose block this thread is in has the same session, and ends neither work nor loan."""
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
    """A block on a returned handle is joined through that handle and through its cursor's connection."""
    pool = make_pool()
    handle = pool.get_connection()
    handle.close()
    with suppress(Failure), handle as outer:
        add(outer, 1)
        with handle as inner, outer.connection as other:
            assert inner.server_thread_id[0] == other.server_thread_id[0] == outer.server_thread_id[0]
            add(inner, 2)
        handle.execute_query("select 1")
        outer.connection.execute_query("select 1")
        assert pool.size() == 1
        raise Failure
    assert numbers() == []
    assert pool.size() == 2


def test_only_the_outermost_block_decides(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """An exception that is caught in the outermost block does not undo the work; one that ends it does."""
    pool = make_pool()
    with pool.connection() as handle:
        with suppress(Failure), handle as inner:
            add(inner, 1)
            raise Failure
        assert pool.size() == 1
    assert numbers() == [1]
    with suppress(Failure), pool.connection() as handle, handle as inner:
        add(inner, 2)
        raise Failure
    assert numbers() == [1]
    assert pool.size() == 2


def test_execute_query_is_part_of_the_block(make_pool: MakePool, add: Add, numbers: Numbers, table: str) -> None:
    """`execute_query` in a block sees what the block did, and is undone with it."""
    pool = make_pool()
    handle = pool.get_connection()
    with suppress(Failure), handle as cur:
        add(cur, 1)
        handle.execute_query(f"insert into {table} (number) values (2)")
        assert handle.execute_query(f"select count(*) from {table}", return_one=True) == (2,)
        with pytest.raises(ProgrammingError):
            handle.execute_query("select from")
        assert pool.size() == 1
        raise Failure
    assert numbers() == []


def test_close_inside_a_block_does_nothing(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """`close()` and `put_connection()` in a block leave work and connection to the end of the block."""
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


# Threads


def test_two_threads_on_one_handle(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """A block by another thread on a busy handle is a unit of work of its own, which that thread joins."""
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

    with suppress(Failure), handle as cur:
        add(cur, 1)
        done = other_thread.submit(work)
        assert inside.wait(30)
        assert pool.size() == 0
        assert handle.execute_query("select connection_id()") == ((cur.server_thread_id[0],),)
        go_on.set()
        assert done.result() != cur.server_thread_id[0]
        assert numbers() == [2]
        assert pool.size() == 1
        raise Failure
    assert numbers() == [2]
    assert pool.size() == 2


def test_a_block_outlives_the_one_it_stood_beside(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """Where the handle's own block ends first, the other thread's goes on, and can still be joined."""
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
    """`execute_query` by a thread that is in no block commits by itself, whatever block another thread is in."""
    pool = make_pool()
    handle = pool.get_connection()
    with suppress(Failure), handle as cur:
        add(cur, 1)
        insert = f"insert into {table} (number) values (2)"
        assert other_thread.submit(handle.execute_query, insert).result() == ()
        assert numbers() == [2]
        raise Failure
    assert numbers() == [2]
    assert pool.size() == 2


def test_threads_enter_one_handle_at_once(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """Of threads that enter blocks on one handle at the same moment each has a session of its own."""
    count = 4
    pool = make_pool(size=count)
    handle = pool.get_connection()
    together = threading.Barrier(count)

    def work(number: int) -> int:
        together.wait(30)
        with handle as cur:
            add(cur, number)
            together.wait(30)  # all are in their blocks
            session: int = cur.server_thread_id[0]
            return session

    with ThreadPoolExecutor(count) as threads:
        for _ in range(5):
            assert len(set(threads.map(work, range(count)))) == count
            assert pool.size() == count
    assert sorted(numbers()) == sorted([*range(count)] * 5)


def test_a_block_may_end_in_another_thread(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """A block that another thread ends than began it commits and returns, and the first can begin anew."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    cur = other_thread.submit(handle.__enter__).result()
    add(cur, 1)
    handle.__exit__(None, None, None)
    assert numbers() == [1]
    assert pool.size() == 1

    cur = other_thread.submit(handle.__enter__).result()
    add(cur, 2)
    error = Failure()
    handle.__exit__(Failure, error, None)
    assert numbers() == [1]
    assert pool.size() == 1


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


def test_a_whole_connection_joins_its_block_in_any_thread(
    make_pool: MakePool, add: Add, numbers: Numbers, other_thread: ThreadPoolExecutor
) -> None:
    """What is used of `pool.connection()` is in its block, also in another thread than the one that has begun it.

    As a web framework does that runs a generator dependency and the endpoint in a pool of threads.
    """
    pool = make_pool(size=1)

    def dependency() -> Iterator[Connection]:
        with pool.connection() as connection:
            yield connection

    for error in (None, Failure()):
        request = dependency()
        connection = other_thread.submit(next, request).result()
        connection.execute_query("insert into numbers (number) values (1)")
        with connection as cur:
            add(cur, 2)
        assert numbers() == ([] if error is None else [1, 2])
        with pytest.raises(Failure if error else StopIteration):
            next(request) if error is None else request.throw(error)
        assert numbers() == [1, 2]
    assert pool.size() == 1


def test_a_subclass_with_a_block_of_its_own(make_pool: MakePool) -> None:
    """`pool.connection()` leaves it to the subclass what its `with` does."""

    class Own(Connection):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    pool = make_pool(size=1, connection_class=Own)
    for _ in range(2):
        with pool.connection() as connection:
            connection.query("select 1")
    assert pool.size() == 1


def test_what_is_entered_in_a_comprehension_is_around_what_follows(make_pool: MakePool) -> None:
    """Before Python 3.12 a comprehension is a function, which has returned before the blocks run that it has begun."""
    pool = make_pool(size=2)
    with ExitStack() as stack:
        cursors = [stack.enter_context(pool.get_connection()) for _ in range(2)]
        handles = [cursor.connection for cursor in cursors]
        for handle in handles:
            assert handle.execute_query("select connection_id()") == ((handle.server_thread_id[0],),)
    assert pool.size() == 2


# close() outside a block


INSERT = "insert into numbers (number) values (0)"


def run(connection: Connection, statements: list[str]) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


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
    """`close()` outside a block warns of nothing where nothing written is thrown away."""
    connection = make_pool(size=1).get_connection()
    run(connection, statements)
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
    """`close()` outside a block rolls back, and warns with the line of the borrow where something was written."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    line = sys._getframe().f_lineno - 1
    run(connection, statements)
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
    """What a statement that answers with rows has written is not thrown away silently either."""
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
    """What a stored procedure has written is not thrown away silently either."""
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
    """A returned handle refuses what would reach the server or reopen it, also while another has the session."""
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
    """A cursor of a returned handle reaches nobody's session."""
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
    """A cursor left in the middle of its rows at the return reads no more of them, nor of the next borrower's."""
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
    """A block's cursor is closed with the block."""
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
    """`with` and `execute_query` on a returned handle borrow a connection each time, and return it."""
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
    """What borrows by itself borrows with the defaults of `get_connection`, and fails with its error."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    handle.close()
    with pool.connection(), pytest.raises(GetConnectionFromPoolError, match=r"within 1\*2 second"):
        handle.execute_query("select 1")
    assert handle.execute_query("select 1") == ((1,),)


# execute_query


@pytest.mark.parametrize(
    ("query", "kwargs", "result"),
    [
        ("select 1 union all select 2", {}, ((1,), (2,))),
        ("select 1 from dual where 1 = 0", {}, ()),
        ("select 1 from dual where 1 = 0", {"dictcursor": True}, ()),
        ("select 1 from dual where 1 = 0", {"return_one": True}, None),
        ("select 1 union all select 2", {"return_one": True}, (1,)),
        ("select 1 as one", {"dictcursor": True}, [{"one": 1}]),
        ("select 1 as one", {"dictcursor": True, "return_one": True}, {"one": 1}),
        ("do 1", {}, ()),
        ("do 1", {"return_one": True}, None),
        ("select %s, %s", {"args": (1, "it's")}, ((1, "it's"),)),
        ("select %(one)s", {"args": {"one": 1}}, ((1,),)),
        ("select '100%%'", {}, (("100%",),)),
        ("select '100%%'", {"args": None}, (("100%%",),)),
        ("insert into numbers (number) values (%s)", {"args": [(1,), (2,)], "exec_many": True}, ()),
        ("insert into numbers (number) values (3)", {}, ()),
        ("insert into numbers (number) values (3)", {"return_one": True}, None),
    ],
)
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("returned", [False, True])
def test_execute_query(make_pool: MakePool, returned: bool, query: str, kwargs: dict[str, Any], result: Any) -> None:
    """`execute_query` gives all rows or one, formats arguments as PyMySQL does, and returns."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    if returned:
        handle.close()
    assert handle.execute_query(query, **kwargs) == result
    assert pool.size() == 1


def test_execute_query_commits(make_pool: MakePool, numbers: Numbers, table: str) -> None:
    """`execute_query` is a unit of work, also with many sets of arguments."""
    handle = make_pool().get_connection()
    handle.execute_query(f"insert into {table} (number) values (1)")
    handle.execute_query(f"insert into {table} (number) values (%s)", [(2,), (3,)], exec_many=True)
    assert numbers() == [1, 2, 3]


def test_a_failed_execute_query_is_undone(make_pool: MakePool, numbers: Numbers, table: str) -> None:
    """An `execute_query` that fails half-way leaves nothing behind, and returns the connection."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    with pytest.raises(pymysql.err.IntegrityError):
        handle.execute_query(f"insert into {table} (id) select %s", [(1,), (2,), (1,)], exec_many=True)
    assert numbers() == []
    assert pool.size() == 1


def test_execute_query_uses_the_pools_cursorclass(make_pool: MakePool) -> None:
    """Without `dictcursor` the rows are those of the pool's `cursorclass`."""
    handle = make_pool(cursorclass=DictCursor).get_connection()
    assert handle.execute_query("select 1 as one") == [{"one": 1}]
    handle = make_pool(cursorclass=SSCursor).get_connection()
    assert handle.execute_query("select 1 as one") == [(1,)]

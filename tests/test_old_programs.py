"""Programs written for the old package, pymysql-pool 0.3.0 to 0.5.0: their idioms, by generation."""

from __future__ import annotations

import gc
import logging
import queue
import re
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pymysql
import pytest

import pymysqlpool
from pymysqlpool import ConnectionPool, GetConnectionFromPoolError, ReturnConnectionToPoolError

if TYPE_CHECKING:
    from helpers import Admin, MakePool
    from server import Server


@pytest.fixture
def config(server: Server, database: str) -> dict[str, Any]:
    """The keywords of `connect()` in a program's settings."""
    return {**server.connect_kwargs, "database": database}


@pytest.fixture
def users(admin: Admin, database: str) -> str:
    """A table with two rows, by its full name."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.users (id int auto_increment primary key, name varchar(20))")
        cursor.execute(f"insert into {database}.users (name) values ('ann'), ('bob')")
    return f"{database}.users"


def names(admin: Admin, users: str) -> list[str]:
    with admin.cursor() as cursor:
        cursor.execute(f"select name from {users} order by id")
        return [name for (name,) in cursor.fetchall()]


# The classic ones, 0.3.0 to 0.3.5: size, name, a queue


def test_classic_positions(config: dict[str, Any]) -> None:
    """`ConnectionPool(size, name)`, `get_connection(timeout, retry_num, pre_ping)` and `size()` work."""
    with ConnectionPool(2, "pool1", **config) as pool:
        assert (pool.name, pool.size(), pool.total_num) == ("pool1", 2, 2)
        one, other = pool.get_connection(1, 1), pool.get_connection(0, 0, True)  # noqa: FBT003  as it was written
        assert pool.size() == 0
        with pytest.raises(GetConnectionFromPoolError, match=r"^can't get connection from pool\(pool1\) within 0\*1"):
            pool.get_connection(0, 0)
        pool.put_connection(one)
        pool._put_connection(other)
        assert pool.size() == 2


def test_classic_finally_close(config: dict[str, Any], users: str) -> None:
    """Borrow, use a cursor, commit, and close in `finally`, in a program that also closes the cursor."""
    with ConnectionPool(size=1, name="pool1", **config) as pool:
        for _ in range(3):
            conn = pool.get_connection()
            cursor = conn.cursor()
            try:
                cursor.execute(f"update {users} set name = %s where id = %s", ("eve", 1))
                conn.commit()
            except Exception:
                conn.rollback()
                raise
            finally:
                cursor.close()
                conn.close()
        assert pool.get_connection().execute_query(f"select name from {users}") == (("eve",), ("bob",))


def test_classic_blocks(config: dict[str, Any], users: str) -> None:
    """`with con as cur` on a connection that has just been borrowed, on a returned one, and on one borrowed in it."""
    with ConnectionPool(size=1, **config) as pool:
        con = pool.get_connection()
        with con as cur:
            cur.execute(f"select count(*) from {users}")
            assert cur.fetchone() == (2,)
        with con as cur:
            cur.execute(f"select count(*) from {users}")
            assert cur.fetchone() == (2,)
        with pool.get_connection() as cur:
            cur.execute(f"select count(*) from {users}")
            assert cur.fetchone() == (2,)
        con.close()
        assert pool.size() == 1


def test_classic_execute_query(config: dict[str, Any], users: str) -> None:
    """`execute_query` by its classic arguments."""
    with ConnectionPool(size=1, **config) as pool:
        con = pool.get_connection()
        assert con.execute_query(f"select name from {users}") == (("ann",), ("bob",))
        assert con.execute_query(f"select name from {users} where id = %s", (2,), return_one=True) == ("bob",)
        assert con.execute_query(f"select name from {users} where id = 1", dictcursor=True) == [{"name": "ann"}]
        assert con.execute_query(f"insert into {users} (name) values (%s)", [("x",), ("y",)], exec_many=True) == ()
        assert con.execute_query(f"select name from {users} where id = 9", return_one=True) is None
        assert pool.size() == 1


def test_classic_threads(config: dict[str, Any]) -> None:
    """More threads than connections, each with its own borrow, and a class that has the pool as an attribute."""

    class Database:
        pool = ConnectionPool(size=2, name="shared", **config)

        def ask(self, number: int) -> None:
            con = self.pool.get_connection(timeout=10)
            answers.append(con.execute_query("select %s", (number,))[0][0])
            con.close()

    answers: list[int] = []
    threads = [threading.Thread(target=Database().ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(8))
    assert Database.pool.size() == 2
    Database.pool.close()


def test_classic_private_names(config: dict[str, Any]) -> None:
    """The private names that programs reach for, and `logging` by way of the package."""
    with ConnectionPool(size=2, **config) as pool:
        assert isinstance(pool._pool, queue.Queue)
        assert pool._pool.qsize() == 2
        assert pool.get_connection()._pool is pool
    assert pymysqlpool.logging.DEBUG == logging.DEBUG
    pymysqlpool.logger.setLevel(pymysqlpool.logging.WARNING)


def test_classic_subclass(config: dict[str, Any]) -> None:
    """A subclass of the pool that fills in its arguments and has methods of its own."""

    class Pool(ConnectionPool):
        def __init__(self) -> None:
            super().__init__(size=1, name="mine", **config)

        def one(self, sql: str) -> Any:
            with self.get_connection() as cur:
                cur.execute(sql)
                return cur.fetchone()

    with Pool() as pool:
        assert pool.one("select 1") == (1,)


# 0.3.7: maxsize, pre_create_num, con_lifetime, retry_interval


@pytest.mark.parametrize(
    ("kwargs", "size", "maxsize", "opened"),
    [
        ({}, 10, 10, 10),
        ({"maxsize": 5}, 5, 5, 5),
        ({"maxsize": 100, "pre_create_num": 0}, 10, 100, 0),
        ({"size": 5, "maxsize": 10, "pre_create_num": 10}, 5, 10, 10),
        ({"size": 1, "maxsize": 4, "pre_create_num": 4}, 1, 4, 4),
        ({"size": 2, "maxsize": 4, "pre_create_num": 2, "con_lifetime": 300}, 2, 4, 2),
    ],
)
def test_later_keywords(config: dict[str, Any], kwargs: dict[str, Any], size: int, maxsize: int, opened: int) -> None:
    """`size` not given is min(10, maxsize), and as many as `maxsize` may be opened at once."""
    with ConnectionPool(**kwargs, **config) as pool:
        assert (pool._size, pool.maxsize, pool.total_num, pool.size()) == (size, maxsize, opened, maxsize)
        assert (pool.available_num, pool.connection_num) == (opened, opened)
        pool.get_connection().close()


@pytest.mark.parametrize("lifetime", [0, -1, -0.5, None])
def test_later_lifetime_without_an_end(config: dict[str, Any], lifetime: float | None) -> None:
    """A `con_lifetime` of 0 or less means no limit, as that release documented it."""
    with ConnectionPool(1, con_lifetime=lifetime, **config) as pool:
        assert pool.con_lifetime == float("inf")
        sessions = set()
        for _ in range(2):
            conn = pool.get_connection()
            sessions.add(conn.thread_id())
            conn.close()
        assert len(sessions) == 1


def test_later_borrows(config: dict[str, Any]) -> None:
    """`get_connection(retry_num=, retry_interval=, pre_ping=)`, all by name."""
    with ConnectionPool(size=1, **config) as pool:
        conn = pool.get_connection(retry_num=3, retry_interval=0.01, pre_ping=True)
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(retry_num=3, retry_interval=0.01)
        conn.close()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ConnectionPool(10, 100), "maxsize="),
        (lambda: ConnectionPool(10, 100, "pool1"), "maxsize="),
        (lambda: ConnectionPool(10, "pool1", 5), "pre_create_num="),
        (lambda: ConnectionPool(10, "pool1", "localhost", "root", "secret"), "host="),
        (lambda: ConnectionPool(10, max_size=100), "maxsize="),
        (lambda: ConnectionPool(10, pre_create=True), "pre_create_num="),
    ],
)
def test_what_clashes_is_told_why(call: Any, named: str) -> None:
    """An argument that meant something else in another release raises a TypeError that names the keyword to use."""
    with pytest.raises(TypeError, match=re.escape(named)):
        call()


def test_later_exhaustion_is_told_the_remedy(config: dict[str, Any]) -> None:
    """The error of a pool of fixed size says how it could grow; that of a pool at its `maxsize` does not."""
    for kwargs, notes in (({"size": 1}, 1), ({"size": 1, "maxsize": 2}, 0)):
        with ConnectionPool(**kwargs, **config) as pool:
            taken = [pool.get_connection() for _ in range(pool.maxsize)]
            with pytest.raises(GetConnectionFromPoolError) as raised:
                pool.get_connection(0, 0)
            for connection in taken:
                connection.close()
        if sys.version_info >= (3, 11):
            assert len([note for note in raised.value.__notes__ if "maxsize= lets it grow" in note]) == notes


# 0.3.9 to 0.4.6: cursors of its own, returned handles that refuse, the singleton


def test_last_cursors(config: dict[str, Any], users: str, admin: Admin) -> None:
    """`DictCursor` and `Cursor` of the package, `db_query` and `db_modify`."""
    from pymysqlpool import Cursor, DictCursor  # noqa: PLC0415  as it was written

    with ConnectionPool(size=1, maxsize=2, **config) as pool:
        with pool.get_connection() as conn:
            with conn.cursor(DictCursor) as cursor:
                assert cursor.db_query(f"select name from {users} where id = %s", (1,)) == [{"name": "ann"}]
            with conn.cursor(Cursor) as cursor:
                done = cursor.db_modify(f"insert into {users} (name) values (%s)", ("cid",))
            conn.commit()
        assert done == {"rowcount": 1, "lastrowid": 3}
        with ConnectionPool(size=1, cursorclass=DictCursor, **config) as other, other.get_connection() as conn:
            assert conn.cursor().db_query(f"select count(*) as n from {users}") == [{"n": 3}]
    assert names(admin, users) == ["ann", "bob", "cid"]


def test_last_block_with_connection(config: dict[str, Any], users: str, admin: Admin) -> None:
    """`with pool.get_connection() as conn, conn.cursor() as cur`, with a commit and without one."""
    with ConnectionPool(size=1, **config) as pool:
        with pool.get_connection() as conn, conn.cursor() as cur:
            cur.execute(f"insert into {users} (name) values ('cid')")
            conn.commit()
        with pool.get_connection() as conn:
            cur = conn.cursor()
            cur.execute(f"insert into {users} (name) values ('dan')")
            cur.close()
        with suppress(ZeroDivisionError), pool.get_connection() as conn:
            conn.cursor().execute(f"insert into {users} (name) values ('eve')")
            1 / 0  # noqa: B018
        assert pool.size() == 1
    assert names(admin, users) == ["ann", "bob", "cid", "dan"]


def test_last_close_inside_the_block(config: dict[str, Any], users: str, admin: Admin) -> None:
    """`conn.close()` inside the block does not return the connection: the end of the block does."""
    with ConnectionPool(size=1, **config) as pool:
        with pool.get_connection() as conn:
            conn.cursor().execute(f"insert into {users} (name) values ('cid')")
            conn.close()
            conn.commit()
            assert conn.open
        assert pool.size() == 1
        assert not conn.open
    assert names(admin, users) == ["ann", "bob", "cid"]


@pytest.mark.parametrize("method", ["commit", "rollback", "begin", "ping", "cursor", "thread_id"])
@pytest.mark.parametrize("how", ["block", "connection", "close"])
def test_last_use_after_return(config: dict[str, Any], method: str, how: str) -> None:
    """A returned connection, or the block's name for it, raises ReturnConnectionToPoolError when it is used."""
    with ConnectionPool(size=1, name="pool1", **config) as pool:
        if how == "block":
            with pool.get_connection() as conn:
                pass
        elif how == "connection":
            with pool.connection() as conn:
                pass
        else:
            conn = pool.get_connection()
            conn.close()
        with pytest.raises(ReturnConnectionToPoolError, match=r"returned to pool\(pool1\)"):
            getattr(conn, method)()
        conn.close()
        assert pool.size() == 1


def test_a_cursor_of_a_block_knows_no_other_names(config: dict[str, Any]) -> None:
    """A name that neither the cursor nor its connection has raises AttributeError, in the block and after it."""
    with ConnectionPool(size=1, **config) as pool:
        with pool.get_connection() as cur:
            assert not hasattr(cur, "nonsense")
        with pytest.raises(AttributeError, match=r"'Cursor' object has no attribute 'nonsense'"):
            cur.nonsense  # noqa: B018


def test_last_singleton(config: dict[str, Any]) -> None:
    """`ConnectionPoolSingleton(**config)` at each use is one pool."""
    pool = pymysqlpool.ConnectionPoolSingleton(size=1, maxsize=2, pre_create_num=1, **config)
    try:
        assert pymysqlpool.ConnectionPoolSingleton(size=1, **config) is pool
        assert pool.get_connection().execute_query("select 1") == ((1,),)
    finally:
        pool.close()


# 0.5.0: autocommit was on unless asked otherwise


def test_autocommit_left_unset_is_told_at_close(
    config: dict[str, Any], users: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """If a program relies on autocommit, what it writes is lost; the warning names the remedy, which works."""
    statement = f"insert into {users} (name) values ('cid')"
    with ConnectionPool(size=1, maxsize=2, **config) as pool:
        conn = pool.get_connection()
        conn.cursor().execute(statement)
        conn.close()
    assert names(admin, users) == ["ann", "bob"]
    [record] = caplog.records
    assert "autocommit=True" in record.getMessage()
    with ConnectionPool(size=1, maxsize=2, autocommit=True, **config) as pool:
        conn = pool.get_connection()
        conn.cursor().execute(statement)
        conn.close()
    assert names(admin, users) == ["ann", "bob", "cid"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("in_a_cycle", [False, True])
@pytest.mark.parametrize(("autocommit", "is_lost"), [(False, True), (True, False)])
def test_autocommit_left_unset_is_told_at_a_lost_handle(
    make_pool: MakePool, users: str, autocommit: bool, is_lost: bool, in_a_cycle: bool
) -> None:
    """The warning for a dropped handle has the line of the borrow, and says if uncommitted writes are lost."""
    pool = make_pool(size=1, autocommit=autocommit)
    conn = pool.get_connection()
    conn.cursor().execute(f"insert into {users} (name) values ('cid')")
    if in_a_cycle:
        conn.me = conn  # type: ignore[attr-defined]
    del conn
    gc.collect()
    with pytest.warns(ResourceWarning, match="never returned") as caught:
        assert pool.size() == 1
    [warning] = caught
    assert ("lost: commit() before" in str(warning.message)) is is_lost
    assert ("autocommit=True" in str(warning.message)) is is_lost


def test_a_lost_handle_that_only_read_has_lost_nothing(make_pool: MakePool, users: str) -> None:
    """The next warning for the same place reports only its own lost writes, not those of the one before."""
    pool = make_pool(size=1)
    for statement, is_lost in ((f"update {users} set name = 'eve'", True), (f"select * from {users}", False)):
        pool.get_connection().cursor().execute(statement)
        gc.collect()
        with pytest.warns(ResourceWarning, match="never returned") as caught:
            pool.size()
        assert [("is lost" in str(warning.message)) for warning in caught] == [is_lost]


# Outside a pool


def test_a_connection_without_a_pool(config: dict[str, Any]) -> None:
    """`Connection(...)` without a pool is PyMySQL's, with `execute_query`."""
    conn = pymysqlpool.Connection(**config)
    assert isinstance(conn, pymysql.connections.Connection)
    assert conn.execute_query("select 1") == ((1,),)
    conn.close()

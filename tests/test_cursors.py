"""Cursors: those that a block gives, those of other classes, and unbuffered ones."""

from __future__ import annotations

import functools
import gc
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import Add, Boom, Numbers, raise_if
from pymysql.cursors import Cursor, DictCursor, SSCursor
from pymysql.err import ProgrammingError

from pymysqlpool import Connection

if TYPE_CHECKING:
    from helpers import MakePool


# The cursor of a block


def test_the_cursor_of_a_block_answers_for_its_connection(make_pool: MakePool) -> None:
    """A block gets a cursor that also has its connection's methods and attributes, including `cursor()`."""
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


class CursorProxy:
    """A proxy of a cursor, as tracing packages use it, whose `__class__` is that of the cursor."""

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
    """A connection whose cursors are all wrapped in proxies."""

    def cursor(self, cursor: Any = None) -> Any:
        """Return a cursor in a proxy."""
        return CursorProxy(super().cursor(cursor))


def test_a_proxy_of_a_cursor_answers_for_its_connection(make_pool: MakePool) -> None:
    """A proxy that a subclass's `cursor()` returns is also what a block gets."""
    pool = make_pool(size=1, connection_class=Proxied)
    with pool.get_connection() as cursor:
        assert type(cursor) is type(cursor.cursor()) is CursorProxy
        cursor.execute("select 1 + 1")
        cursor.commit()
        assert cursor.connection.execute_query("select 1", return_one=True) == (1,)
    assert pool.size() == 1


@pytest.mark.parametrize("is_inner", [False, True])
@pytest.mark.parametrize("error", [None, Boom(), KeyboardInterrupt()])
def test_the_cursor_of_a_block_is_closed_at_its_end(
    make_pool: MakePool, error: BaseException | None, is_inner: bool
) -> None:
    """However a block ends, its cursor is then closed, with PyMySQL's errors; rows already fetched can be read."""
    connection = make_pool(size=1).get_connection()
    with connection if is_inner else nullcontext():
        with suppress(Boom, KeyboardInterrupt), connection as cur:
            cur.execute("select 1")
            raise_if(error)
        with pytest.raises(ProgrammingError, match="Cursor closed"):
            cur.execute("select 2")
        assert cur.fetchall() == ((1,),)


def test_a_closed_cursor_does_not_end_the_block(make_pool: MakePool, add: Add, numbers: Numbers) -> None:
    """A block whose cursor was closed explicitly commits and returns as usual; its connection can still be used."""
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


def test_a_block_without_a_cursor_gives_its_connection_back(make_pool: MakePool) -> None:
    """If the cursor of a block can't be created, the connection is returned and the error is raised."""

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


# Any cursor


def test_shorthands_of_cursors(alone: Connection, make_pool: MakePool, table: str) -> None:
    """Cursors of any class have `db_query` and `db_modify`, with and without a pool, inside and outside blocks."""
    insert = f"insert into {table} (number) values (%s)"
    with alone.cursor() as cursor:
        assert cursor.db_modify(insert, (1,)) == {"rowcount": 1, "lastrowid": 1}
        assert cursor.db_query(f"select number from {table}") == ((1,),)
    alone.commit()
    pool = make_pool()
    with pool.get_connection() as cursor:
        assert cursor.db_modify(insert, [(2,), (3,)], exec_many=True)["rowcount"] == 2
        assert cursor.db_query(f"select number from {table} where number > %s order by id", (1,)) == ((2,), (3,))
    with pool.connection() as connection, connection.cursor(DictCursor) as cursor:
        assert cursor.db_query(f"select number from {table} where number = 3") == [{"number": 3}]


def test_cursors_as_with_pymysql(make_pool: MakePool) -> None:
    """A function may make a cursor, as with PyMySQL; a cursor class keeps its own `__getattr__` and `db_query`."""

    class Mine(Cursor):
        def __getattr__(self, name: str) -> Any:
            if name == "colour":
                return "blue"
            raise AttributeError(name)

        def db_query(self, query: str) -> str:
            return f"mine: {query}"

    pool = make_pool(size=1, cursorclass=Mine)
    with pool.get_connection() as cur:
        assert (cur.colour, cur.db_query("x")) == ("blue", "mine: x")
        assert cur.get_autocommit() is False
        assert type(cur.connection.cursor(functools.partial(Cursor))) is Cursor


# Unbuffered


def test_a_failing_unbuffered_query_is_over(make_pool: MakePool) -> None:
    """After an unbuffered query has failed, its cursor reads nothing of a later reply."""
    connection = make_pool(size=1).get_connection()
    cursor = connection.cursor(SSCursor)
    with pytest.raises(pymysql.err.ProgrammingError):
        cursor.execute("select from")
    failed = cursor._result
    other = connection.cursor(SSCursor)
    other.execute("select 1 union all select 2")
    del failed, cursor
    gc.collect()
    assert other.fetchall() in ([(1,), (2,)], ((1,), (2,)))
    assert connection.execute_query("select 3") == ((3,),)


def test_an_unbuffered_result_after_its_end(make_pool: MakePool) -> None:
    """An unbuffered cursor at its end keeps returning no rows, even after another query has been run."""
    connection = make_pool(size=1).get_connection()
    cursor = connection.cursor(SSCursor)
    cursor.execute("select 1")
    assert [cursor.fetchone(), cursor.fetchone()] == [(1,), None]
    with connection.cursor() as other:
        other.execute("select 2")
    assert cursor.fetchone() is None

"""Connections without a pool behave as PyMySQL's do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import Numbers, eventually, sessions
from pymysql.err import Error, ProgrammingError

import pymysqlpool
from pymysqlpool import Connection

if TYPE_CHECKING:
    from server import Server


def test_alone_a_block_gives_the_connection_and_closes_it(alone: Connection) -> None:
    """Without a pool `with` gives the connection itself, and closes it, as PyMySQL's does."""
    with alone as entered:
        assert entered is alone
    assert not alone.open


def test_alone_closing_twice_raises(alone: Connection) -> None:
    """Without a pool closing twice raises, as PyMySQL's does."""
    alone.close()
    with pytest.raises(Error, match="Already closed"):
        alone.close()


@pytest.mark.filterwarnings("ignore:The 'reconnect' argument is deprecated:DeprecationWarning")
@pytest.mark.parametrize("args", [(), (False,), (True,)])
def test_alone_ping_is_pymysqls(server: Server, args: tuple[bool, ...]) -> None:
    """Without a pool `ping()` of a closed connection does what the installed PyMySQL's does, its default included."""
    outcomes = []
    for connection_class in (pymysql.connections.Connection, Connection):
        connection = connection_class(**server.connect_kwargs)
        connection.close()
        try:
            connection.ping(*args)
        except Error as error:
            outcomes.append(repr(error))
        else:
            outcomes.append("reopened")
            connection.close()
    assert outcomes[0] == outcomes[1]


def test_alone_a_closed_connection_can_be_opened_again(alone: Connection) -> None:
    """Without a pool `connect()` reopens a closed connection, and `cursor()` works on one, as PyMySQL's do."""
    alone.close()
    cursor = alone.cursor()
    alone.connect()
    assert cursor.execute("select 1") == 1


def test_alone_execute_query_commits(alone: Connection, numbers: Numbers, table: str) -> None:
    """Without a pool `execute_query` commits, or rolls back on an error, and leaves the connection open."""
    assert alone.execute_query(f"insert into {table} (number) values (%s)", (1,)) == ()
    assert numbers() == [1]
    alone.begin()
    with alone.cursor() as cursor:
        cursor.execute(f"insert into {table} (number) values (2)")
    with pytest.raises(ProgrammingError):
        alone.execute_query("select from")
    alone.commit()
    assert numbers() == [1]
    assert alone.execute_query(f"select number from {table}", dictcursor=True) == [{"number": 1}]
    assert alone.open


def test_alone_two_threads_are_not_told_apart(alone: Connection) -> None:
    """Without a pool a connection that another thread has opened and used can be used, as PyMySQL's can."""
    assert alone.execute_query("select 1") == ((1,),)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(alone.execute_query, "select 2", return_one=True).result() == (2,)


def test_alone_what_only_an_open_connection_has_is_missing() -> None:
    """Without a session there is no thread id, and the error is the one that PyMySQL's connection raises."""
    errors = []
    for connection_class in (pymysql.connections.Connection, Connection):
        with pytest.raises(AttributeError) as raised:
            connection_class(defer_connect=True).server_thread_id[0]
        errors.append(str(raised.value))
    assert errors[0] == errors[1] == "'Connection' object has no attribute 'server_thread_id'"


def test_an_attribute_of_an_object_that_was_never_initialized() -> None:
    """It raises AttributeError, as with PyMySQL."""
    assert not hasattr(pymysqlpool.Connection.__new__(pymysqlpool.Connection), "decoders")


def test_a_connection_without_a_pool_is_closed_when_dropped(server: Any, admin: Any, database: str) -> None:
    """Dropping a connection that has no pool ends its session, without a warning, as PyMySQL does."""
    connection = pymysqlpool.Connection(database=database, **server.connect_kwargs)
    assert sessions(admin, database) == {connection.server_thread_id[0]}
    del connection
    eventually(lambda: not sessions(admin, database))

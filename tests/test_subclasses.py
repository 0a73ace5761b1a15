"""Subclasses of `Connection`, with an `__init__`, a `connect()` and attributes of their own."""

from __future__ import annotations

import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from pymysql.constants import COMMAND

import pymysqlpool
from pymysqlpool import Connection, ConnectionPool
from pymysqlpool.reset import pack_commands

if TYPE_CHECKING:
    from helpers import MakePool
    from server import Server


def test_what_a_subclass_sets_is_each_connections_own(make_pool: MakePool) -> None:
    """If a subclass has an `__init__`, it runs for each object; the attributes that `connect()` sets are copied."""

    class Mine(pymysqlpool.Connection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.nested: OrderedDict[str, list[int]] = OrderedDict(a=[])

        def connect(self, sock: Any = None) -> None:
            super().connect(sock)
            self.seen: list[int] = []

    pool = make_pool(size=2, connection_class=Mine)
    for _ in range(2):
        one, other = pool.get_connection(), pool.get_connection()
        assert one.nested == other.nested == {"a": []}
        assert one.seen == other.seen == []
        one.nested["a"].append(1)
        one.seen.append(1)
        assert (other.nested, other.seen) == ({"a": []}, [])
        assert getattr(one, "ctx", None) is getattr(other, "ctx", None)
        one.close()
        other.close()


def test_a_subclass_with_an_init_without_tls(make_pool: MakePool) -> None:
    """Without TLS there is no context to be shared."""

    class WithInit(pymysqlpool.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mine: list[int] = []

    pool = make_pool(size=1, connection_class=WithInit, ssl_disabled=True, cursorclass=pymysqlpool.DictCursor)
    for _ in range(2):
        with pool.connection() as connection:
            assert connection.execute_query("select 1 as n") == [{"n": 1}]
            assert connection.mine == []
            connection.mine.append(1)


def test_a_subclass_that_closes_when_it_can_not_connect(make_pool: MakePool, server: Server) -> None:
    """It gives no place back twice, even if its session is replaced while it is borrowed."""

    class Closing(pymysqlpool.Connection):
        fails = False

        def connect(self, sock: Any = None) -> None:
            if self.fails:
                self.close()
                raise pymysql.err.OperationalError(2003, "refused")
            super().connect(sock)

    pool = make_pool(size=1, connection_class=Closing, autocommit=True)
    pool.get_connection().execute_query("do 1")
    connection = pool.get_connection()
    connection._place.session.pending = pack_commands((COMMAND.COM_PING, b""))
    connection._place.session.sock.shutdown(socket.SHUT_RDWR)
    Closing.fails = True
    with pytest.raises(pymysql.err.OperationalError, match="refused"):
        connection.query("do 1")
    assert pool.size() == 0
    connection.close()
    assert pool.size() == 1


def test_an_error_of_an_init_arrives_as_it_is(server: Server) -> None:
    """An exception in a subclass's `__init__` is raised unchanged, even one of PyMySQL's."""

    class Failing(pymysqlpool.Connection):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise pymysql.err.InterfaceError(7, "mine")

    with pytest.raises(pymysql.err.InterfaceError, match="mine") as caught:
        ConnectionPool(1, connection_class=Failing, **server.connect_kwargs)
    assert caught.value.args == (7, "mine")


def test_a_query_in_the_init_of_a_connection_class(server: Server) -> None:
    """The error says that the connection is not open yet in `__init__`."""

    class Early(pymysqlpool.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.query("set @v = 1")

    with pytest.raises(pymysql.err.InterfaceError, match=r"Early\.__init__ runs before .* opened: use init_command"):
        ConnectionPool(1, connection_class=Early, **server.connect_kwargs)


def test_a_subclass_with_a_block_of_its_own(make_pool: MakePool) -> None:
    """`pool.connection()` uses the `with` of a subclass that overrides it."""

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

"""The arguments that a program may pass, their names and defaults, and how a bad argument is refused."""

from __future__ import annotations

import inspect
import queue
import re
import ssl
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from pymysql.cursors import DictCursor, SSCursor
from pymysql.err import IntegrityError, NotSupportedError, OperationalError, ProgrammingError

import pymysqlpool
from pymysqlpool import (
    Connection,
    ConnectionPool,
)

if TYPE_CHECKING:
    from helpers import MakePool
    from server import Server


# Names and defaults


def test_everything_public_is_there() -> None:
    """`__all__` has every public name, and each of them exists."""
    assert set(pymysqlpool.__all__) >= {
        "Connection",
        "ConnectionPool",
        "ConnectionPoolSingleton",
        "GetConnectionFromPoolError",
        "PoolClosedError",
        "PoolError",
        "ReturnConnectionToPoolError",
        "__version__",
        "logger",
    }
    assert all(hasattr(pymysqlpool, name) for name in pymysqlpool.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", pymysqlpool.__version__)


@pytest.mark.parametrize(
    ("function", "defaults", "by_name_only"),
    [
        (
            ConnectionPool,
            {"size": None, "name": None, "maxsize": None, "pre_create_num": None, "connection_class": Connection},
            {"maxsize", "pre_create_num", "connection_class"},
        ),
        (
            ConnectionPool.get_connection,
            {"timeout": 1, "retry_num": 1, "pre_ping": False, "retry_interval": None},
            {"retry_interval"},
        ),
        (ConnectionPool.connection, {"timeout": 1, "retry_num": 1, "pre_ping": False}, set()),
        (
            Connection.execute_query,
            {"args": (), "dictcursor": False, "return_one": False, "exec_many": False},
            set(),
        ),
    ],
)
def test_defaults(function: Callable[..., Any], defaults: dict[str, Any], by_name_only: set[str]) -> None:
    """The classic arguments are in the classic order with the classic defaults; newer ones are given by name only."""
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults
    classic = [name for name in defaults if name not in by_name_only]
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]
    assert positional[: len(classic)] == classic
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in by_name_only)


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({}, "localhost-3306--"),
        ({"host": "db1", "port": 3307, "user": "me", "database": "mine", "password": "secret"}, "db1-3307-me-mine"),
        ({"host": "db1", "name": "pool1"}, "pool1"),
    ],
)
def test_default_name(kwargs: dict[str, Any], name: str) -> None:
    """A pool's name defaults to `host-port-user-database`."""
    assert ConnectionPool(pre_create_num=0, **kwargs).name == name


def test_private_names_that_programs_reach_for(make_pool: MakePool, database: str) -> None:
    """`pool._pool` is a `queue.Queue`, `conn._pool` the pool, `args` and `kwargs` the connection's arguments."""
    pool = make_pool()
    assert isinstance(pool._pool, queue.Queue)
    assert pool._pool.qsize() == 2
    connection = pool.get_connection()
    assert pool._pool.qsize() == 1
    assert connection._pool is pool
    assert connection.kwargs["database"] == database
    connection.close()
    assert set(Connection._reusable_expection) >= {ProgrammingError, IntegrityError, NotSupportedError}
    alone = Connection(host="db1", defer_connect=True)
    assert (alone.args, alone.kwargs, alone._pool) == ((), {"host": "db1", "defer_connect": True}, None)


def test_all_of_size_is_opened_at_once(make_pool: MakePool) -> None:
    """By default the constructor opens `size` connections, and `maxsize` is `size`."""
    pool = make_pool(size=3)
    assert (pool.total_num, pool.maxsize, pool.size()) == (3, 3, 3)


# Refused


@pytest.mark.parametrize(
    ("kwargs", "error", "named"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"size": -1}, ValueError, "size"),
        ({"size": "2"}, TypeError, "size"),
        ({"size": 2.0}, TypeError, "size"),
        ({"size": True}, TypeError, "size"),
        ({"size": 3, "maxsize": 2}, ValueError, "maxsize"),
        ({"maxsize": "9"}, TypeError, "maxsize"),
        ({"maxsize": True, "size": 1}, TypeError, "maxsize"),
        ({"pre_create_num": -1}, ValueError, "pre_create_num"),
        ({"pre_create_num": "1"}, TypeError, "pre_create_num"),
        ({"pre_create_num": 3}, ValueError, "pre_create_num"),
        ({"con_lifetime": float("nan")}, ValueError, "con_lifetime"),
        ({"connection_class": pymysql.connections.Connection}, TypeError, "connection_class"),
        ({"connection_class": "Connection"}, TypeError, "connection_class"),
        ({"defer_connect": True}, TypeError, "defer_connect"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_a_bad_argument_is_told_at_once(kwargs: dict[str, Any], error: type[Exception], named: str) -> None:
    """The error for a bad argument of the constructor names it, and is raised before connecting."""
    with pytest.raises(error, match=rf"\b{named}\b"):
        ConnectionPool(**{"size": 2, "host": "127.0.0.1", "port": 1, **kwargs})


SECONDS = [
    (-1, ValueError),
    (float("nan"), ValueError),
    (1e12, ValueError),
    (Decimal(-1), ValueError),
    ("1", TypeError),
    (True, TypeError),
]


@pytest.mark.parametrize(("seconds", "error"), SECONDS)
@pytest.mark.parametrize("name", ["idle_timeout", "ping_after", "leak_warning"])
def test_seconds_that_make_no_sense_are_refused(name: str, seconds: Any, error: type[Exception]) -> None:
    """An invalid number of seconds is refused at once, and the error names the argument."""
    with pytest.raises(error, match=f"{name} should be"):
        ConnectionPool(1, **{name: seconds}, host="127.0.0.1", port=1)


def test_a_second_number_by_position_is_refused() -> None:
    """`ConnectionPool(10, 100)`, as later releases had it, is a TypeError that names `maxsize=`."""
    with pytest.raises(TypeError, match="maxsize="):
        ConnectionPool(10, 100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "error", "named"),
    [
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": -0.001}, ValueError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": 1e12}, ValueError, "timeout"),
        ({"timeout": Decimal(-1)}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"timeout": False}, TypeError, "timeout"),
        ({"retry_num": -1}, ValueError, "retry_num"),
        ({"retry_num": "1"}, TypeError, "retry_num"),
        ({"retry_interval": -1}, ValueError, "retry_interval"),
        ({"retry_interval": float("nan")}, ValueError, "retry_interval"),
        ({"retry_interval": 1e12}, ValueError, "retry_interval"),
        ({"retry_interval": Decimal(-1)}, ValueError, "retry_interval"),
        ({"retry_interval": "1"}, TypeError, "retry_interval"),
        ({"retry_interval": False}, TypeError, "retry_interval"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
@pytest.mark.parametrize("method", ["get_connection", "connection"])
def test_a_bad_argument_of_a_borrow_is_told_at_once(
    make_pool: MakePool, method: str, kwargs: dict[str, Any], error: type[Exception], named: str
) -> None:
    """The error for a bad argument of a borrow names it, even if a connection is free, and none is taken."""
    pool = make_pool()
    with pytest.raises(error, match=rf"\b{named}\b"), getattr(pool, method)(**kwargs):
        pass
    assert pool.size() == 2


@pytest.mark.parametrize(("seconds", "error"), SECONDS)
def test_a_bad_timeout_of_close_is_told_at_once(make_pool: MakePool, seconds: Any, error: type[Exception]) -> None:
    """The error for a bad `timeout` of `close()` names it, and the pool stays open."""
    pool = make_pool(size=1)
    with pytest.raises(error, match="timeout should be"):
        pool.close(seconds)
    assert pool.get_connection().execute_query("select 1") == ((1,),)


def test_seconds_may_be_of_any_number_type(make_pool: MakePool) -> None:
    """A `Decimal` is a number of seconds too."""
    assert make_pool(size=1).get_connection(timeout=Decimal("0.5")).execute_query("select 1") == ((1,),)


def test_seconds_as_a_number_of_retries_are_refused(make_pool: MakePool) -> None:
    """`get_connection(3, 0.1)`, as later releases had it, is a TypeError that names `retry_interval=`."""
    with pytest.raises(TypeError, match="retry_interval="):
        make_pool().get_connection(3, 0.1)  # type: ignore[arg-type]


# PyMySQL's keywords


def test_unix_socket(server: Server, admin: pymysql.connections.Connection[Any]) -> None:
    """`unix_socket` is passed to PyMySQL."""
    with admin.cursor() as cursor:
        cursor.execute("select @@socket")
        [path] = cursor.fetchone()
    if not Path(path).exists():
        pytest.skip("the server tells of no socket on this machine")
    kwargs = {"user": server.user, "password": server.password, "unix_socket": path}
    with ConnectionPool(1, **kwargs) as pool, pool.connection() as connection:
        assert connection.host_info == "Localhost via UNIX socket"


def test_read_default_file(server: Server, database: str, tmp_path: Path) -> None:
    """`read_default_file` is passed to PyMySQL, and the file's settings apply."""
    file = tmp_path / "my.cnf"
    lines = [f"{key}={value}" for key, value in {**server.connect_kwargs, "database": database}.items()]
    file.write_text("\n".join(["[client]", *lines]))
    with ConnectionPool(1, read_default_file=str(file)) as pool:
        assert pool.get_connection().execute_query("select database()") == ((database,),)


@pytest.mark.parametrize("make_ssl", [lambda ca: {"ca": ca}, lambda ca: ssl.create_default_context(cafile=ca)])
def test_ssl(tls_server: Server, make_ssl: Callable[[str | None], Any]) -> None:
    """`ssl` may be a dict or a context, and all connections share one context."""
    given = make_ssl(tls_server.ca)
    with ConnectionPool(1, maxsize=2, ssl=given, **tls_server.connect_kwargs) as pool:
        connections = [pool.get_connection() for _ in range(2)]
        for connection in connections:
            with connection.cursor() as cursor:
                cursor.execute("show session status like 'Ssl_cipher'")
                assert cursor.fetchone()[1] != ""
        contexts = [connection.ctx for connection in connections]
        for connection in connections:
            connection.close()
    assert contexts[0] is contexts[1]
    assert isinstance(given, dict) or contexts[0] is given


@pytest.mark.parametrize("cursorclass", [DictCursor, SSCursor])
def test_cursorclass(make_pool: MakePool, cursorclass: type[pymysql.cursors.Cursor]) -> None:
    """Blocks and `cursor()` give cursors of `cursorclass`."""
    pool = make_pool(cursorclass=cursorclass)
    with pool.get_connection() as cursor:
        assert isinstance(cursor, cursorclass)
    with pool.connection() as connection, connection.cursor() as cursor:
        assert isinstance(cursor, cursorclass)


@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit(make_pool: MakePool, autocommit: bool) -> None:
    """`autocommit` is passed to PyMySQL."""
    assert make_pool(autocommit=autocommit).get_connection().execute_query("select @@autocommit") == ((autocommit,),)


def test_autocommit_is_off_by_default(make_pool: MakePool) -> None:
    """Autocommit is off by default, as in PyMySQL."""
    assert make_pool().get_connection().execute_query("select @@autocommit") == ((0,),)


def test_db_is_deprecated(server: Server, database: str) -> None:
    """The deprecated `db` works, and warns once, at the line that gives it."""
    with pytest.warns(DeprecationWarning, match="'db'") as caught:
        pool = ConnectionPool(2, db=database, **server.connect_kwargs)
    lineno = sys._getframe().f_lineno - 1
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, lineno)]
    with pool:
        assert pool.name.endswith(f"-{database}")
        assert pool.get_connection().execute_query("select database()") == ((database,),)


def test_passwd_is_deprecated(server: Server) -> None:
    """The deprecated `passwd` works, and warns once, at the line that gives it."""
    kwargs = {name: value for name, value in server.connect_kwargs.items() if name != "password"}
    lineno = 0
    with pytest.warns(DeprecationWarning, match="'passwd'") as caught, pytest.raises(OperationalError) as raised:
        ConnectionPool(2, passwd="a wrong one", **kwargs)  # noqa: S106
    lineno = sys._getframe().f_lineno - 1
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, lineno)]
    assert raised.value.args[0] == 1045  # access denied

"""Names, defaults, arguments, errors and log: what a program sees before it has asked for anything."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import os
import pickle
import queue
import re
import shutil
import ssl
import subprocess
import sys
import threading
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import eventually, sessions
from pymysql.cursors import DictCursor, SSCursor
from pymysql.err import (
    Error,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from server import Server, running_server

import pymysqlpool
from pymysqlpool import (
    Connection,
    ConnectionPool,
    ConnectionPoolSingleton,
    GetConnectionFromPoolError,
    PoolClosedError,
    PoolError,
    ReturnConnectionToPoolError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    MakePool = Callable[..., ConnectionPool]


@pytest.fixture
def table(admin: pymysql.connections.Connection[Any], database: str) -> str:
    """A table of numbers, by its full name."""
    name = f"{database}.numbers"
    with admin.cursor() as cursor:
        cursor.execute(f"create table {name} (id int auto_increment primary key, number int)")
    return name


def numbers(admin: pymysql.connections.Connection[Any], table: str) -> list[int]:
    with admin.cursor() as cursor:
        cursor.execute(f"select number from {table} order by id")
        return [number for (number,) in cursor.fetchall()]


# Arguments


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
        ({"idle_timeout": -1}, ValueError, "idle_timeout"),
        ({"ping_after": -1}, ValueError, "ping_after"),
        ({"connection_class": pymysql.connections.Connection}, TypeError, "connection_class"),
        ({"connection_class": "Connection"}, TypeError, "connection_class"),
        ({"defer_connect": True}, TypeError, "defer_connect"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_a_bad_argument_is_told_at_once(kwargs: dict[str, Any], error: type[Exception], named: str) -> None:
    """A constructor's bad argument is told by name, before a server is asked for."""
    with pytest.raises(error, match=rf"\b{named}\b"):
        ConnectionPool(**{"size": 2, "host": "127.0.0.1", "port": 1, **kwargs})


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
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"retry_num": -1}, ValueError, "retry_num"),
        ({"retry_num": "1"}, TypeError, "retry_num"),
        ({"retry_interval": -1}, ValueError, "retry_interval"),
        ({"retry_interval": "1"}, TypeError, "retry_interval"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
@pytest.mark.parametrize("method", ["get_connection", "connection"])
def test_a_bad_argument_of_a_borrow_is_told_at_once(
    make_pool: MakePool, method: str, kwargs: dict[str, Any], error: type[Exception], named: str
) -> None:
    """A bad argument of a borrow is told by name, also where a connection is free, and takes none."""
    pool = make_pool()
    with pytest.raises(error, match=rf"\b{named}\b"), getattr(pool, method)(**kwargs):
        pass
    assert pool.size() == 2


def test_seconds_as_a_number_of_retries_are_refused(make_pool: MakePool) -> None:
    """`get_connection(3, 0.1)`, as later releases had it, is a TypeError that names `retry_interval=`."""
    with pytest.raises(TypeError, match="retry_interval="):
        make_pool().get_connection(3, 0.1)  # type: ignore[arg-type]


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
    """`pool._pool` is a `queue.Queue`, `conn._pool` the pool, `args` and `kwargs` what a connection was made with."""
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


# State


def test_counts(make_pool: MakePool) -> None:
    """`size()` is what can be borrowed at once, `available_num` what is open and idle, `total_num` what is open."""
    pool = make_pool(size=2, maxsize=3, pre_create_num=1)

    def counts() -> tuple[int, int, int, int]:
        return pool.size(), pool.available_num, pool.total_num, pool.connection_num

    assert counts() == (3, 1, 1, 1)
    first = pool.get_connection()
    assert counts() == (2, 0, 1, 1)
    second = pool.get_connection()
    assert counts() == (1, 0, 2, 2)
    first.close()
    assert counts() == (2, 1, 2, 2)
    second.close()
    assert counts() == (3, 2, 2, 2)
    pool.close()
    assert counts() == (0, 0, 0, 0)


def test_repr(make_pool: MakePool) -> None:
    """A pool's repr tells in one line its name, what is open, idle and borrowed, who waits, and the bound."""
    pool = make_pool(size=2, maxsize=3)
    connection = pool.get_connection()
    assert repr(pool) == "<ConnectionPool 'pool1': 1 idle of 2 open, 1 borrowed, 0 waiting, maxsize 3>"
    connection.close()
    assert repr(pool) == "<ConnectionPool 'pool1': 2 idle of 2 open, 0 borrowed, 0 waiting, maxsize 3>"


@pytest.mark.parametrize("keyword", ["password", pytest.param("passwd", marks=pytest.mark.filterwarnings("ignore"))])
def test_repr_keeps_the_password_to_itself(keyword: str) -> None:
    """A password is nowhere in a pool's repr and name."""
    pool = ConnectionPool(pre_create_num=0, **{keyword: "s3cret"})
    assert "s3cret" not in repr(pool) + pool.name


def test_all_of_size_is_opened_at_once(make_pool: MakePool) -> None:
    """Unless told otherwise the constructor opens `size` connections, and `maxsize` is `size`."""
    pool = make_pool(size=3)
    assert (pool.total_num, pool.maxsize, pool.size()) == (3, 3, 3)


def test_a_closed_pool_lends_nothing(make_pool: MakePool) -> None:
    """`close()` and the end of `with pool` close what is idle at once, what is borrowed at its return; lending ends."""
    with make_pool() as pool:
        connection = pool.get_connection()
    with pytest.raises(PoolClosedError, match=r"pool\(pool1\)"):
        pool.get_connection()
    assert pool.total_num == 1
    with connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()
    assert pool.total_num == 0
    pool.close()


# PyMySQL's keywords


def test_unix_socket(server: Server, admin: pymysql.connections.Connection[Any]) -> None:
    """`unix_socket` goes through."""
    with admin.cursor() as cursor:
        cursor.execute("select @@socket")
        [path] = cursor.fetchone()
    if not Path(path).exists():
        pytest.skip("the server tells of no socket on this machine")
    kwargs = {"user": server.user, "password": server.password, "unix_socket": path}
    with ConnectionPool(1, **kwargs) as pool, pool.connection() as connection:
        assert connection.host_info == "Localhost via UNIX socket"


def test_read_default_file(server: Server, database: str, tmp_path: Path) -> None:
    """`read_default_file` goes through, and what stands in the file counts."""
    file = tmp_path / "my.cnf"
    lines = [f"{key}={value}" for key, value in {**server.connect_kwargs, "database": database}.items()]
    file.write_text("\n".join(["[client]", *lines]))
    with ConnectionPool(1, read_default_file=str(file)) as pool:
        assert pool.get_connection().execute_query("select database()") == ((database,),)


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Server]:
    """A server with a certificate."""
    with running_server(tls=True) as server:
        if server.ca is None:
            pytest.skip("nothing is known of the certificate of a server that runs already")
        yield server


@pytest.mark.parametrize("make_ssl", [lambda ca: {"ca": ca}, lambda ca: ssl.create_default_context(cafile=ca)])
def test_ssl(tls_server: Server, make_ssl: Callable[[str | None], Any]) -> None:
    """`ssl` goes through as a dict or a context, and all connections share one context."""
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
    """`cursorclass` is what blocks and `cursor()` give."""
    pool = make_pool(cursorclass=cursorclass)
    with pool.get_connection() as cursor:
        assert isinstance(cursor, cursorclass)
    with pool.connection() as connection, connection.cursor() as cursor:
        assert isinstance(cursor, cursorclass)


@pytest.mark.parametrize("autocommit", [True, False])
def test_autocommit(make_pool: MakePool, autocommit: bool) -> None:
    """`autocommit` goes through."""
    assert make_pool(autocommit=autocommit).get_connection().execute_query("select @@autocommit") == ((autocommit,),)


def test_autocommit_is_off_by_default(make_pool: MakePool) -> None:
    """Autocommit is as PyMySQL has it: off unless asked for."""
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


# The singleton


@pytest.fixture
def singleton_kwargs(server: Server, database: str) -> Iterator[dict[str, Any]]:
    """What to make the one pool with; it is closed afterwards."""
    kwargs = {"size": 2, "database": database, **server.connect_kwargs}
    yield kwargs
    ConnectionPoolSingleton(**kwargs).close()


def test_singleton_is_kept(singleton_kwargs: dict[str, Any]) -> None:
    """The second call returns the pool that the first has made, as it is, whatever it is asked for."""
    pool = ConnectionPoolSingleton(**singleton_kwargs)
    connection = pool.get_connection()
    assert isinstance(pool, ConnectionPool)
    assert ConnectionPoolSingleton() is pool
    assert ConnectionPoolSingleton(size=7, name="other") is pool
    assert (pool.maxsize, pool.size()) == (2, 1)
    connection.close()
    assert pool.size() == 2


def test_singleton_is_replaced_after_close(singleton_kwargs: dict[str, Any]) -> None:
    """A closed one is not kept: the next call makes another, which works."""
    first = ConnectionPoolSingleton(**singleton_kwargs)
    first.close()
    second = ConnectionPoolSingleton(**singleton_kwargs)
    assert second is not first
    assert second.get_connection().execute_query("select 1") == ((1,),)


@pytest.mark.parametrize("one_was_closed", [False, True])
def test_singleton_from_many_threads(
    server: Server,
    database: str,
    admin: pymysql.connections.Connection[Any],
    one_was_closed: bool,
) -> None:
    """Threads that make it at once get the same pool, and only that pool's connections stay on the server."""

    class Singleton(ConnectionPoolSingleton):
        """One that no other test has made yet."""

    barrier = threading.Barrier(8)

    def make() -> ConnectionPool:
        barrier.wait()
        return Singleton(2, database=database, **server.connect_kwargs)

    if one_was_closed:
        Singleton(1, database=database, **server.connect_kwargs).close()
    with ThreadPoolExecutor(8) as threads:
        pools = [future.result() for future in [threads.submit(make) for _ in range(8)]]
    assert {id(pool) for pool in pools} == {id(pools[0])}
    assert pools[0].get_connection().execute_query("select 1") == ((1,),)
    eventually(lambda: len(sessions(admin, database)) == 2)
    pools[0].close()


# Pickling


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pools_and_connections_are_not_copied(make_pool: MakePool, copied: Callable[[object], object]) -> None:
    """Neither a pool nor a connection can be pickled or copied, and the error says so."""
    pool = make_pool()
    with pool.connection() as connection:
        for thing, name in ((pool, "ConnectionPool"), (connection, "Connection")):
            with pytest.raises(TypeError, match=rf"\b{name}\b.*pickled"):
                copied(thing)


# Errors


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (PoolError, {Error}),
        (GetConnectionFromPoolError, {PoolError, OperationalError}),
        (ReturnConnectionToPoolError, {PoolError, InterfaceError}),
        (PoolClosedError, {PoolError, InterfaceError}),
    ],
)
def test_errors_have_their_place(error: type[Exception], bases: set[type]) -> None:
    """Each error stands at its place among PyMySQL's, and prints and pickles under its public name."""
    assert set(error.__bases__) == bases
    assert error.__module__ == "pymysqlpool"
    text = f"pymysqlpool.{error.__name__}: why\n"
    assert traceback.format_exception_only(error, error("why")) == [text]
    same = pickle.loads(pickle.dumps(error("why")))  # noqa: S301
    assert (type(same), same.args) == (error, ("why",))


def test_an_exhausted_pool_error_survives_pickling(make_pool: MakePool) -> None:
    """Who holds the connections is plain data and comes through a pickle with the text."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with pytest.raises(GetConnectionFromPoolError) as raised:
        pool.get_connection(timeout=0, retry_num=0)
    connection.close()
    error = raised.value
    same = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(same), str(same), same.holders) == (GetConnectionFromPoolError, str(error), error.holders)
    [holder] = same.holders
    assert holder["file"] == __file__


# The logger


@contextmanager
def unconfigured_logging(monkeypatch: pytest.MonkeyPatch, level: str) -> Iterator[None]:
    """Logging as in a program that has not configured it, but for the pool's level."""
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        pymysqlpool.logger.setLevel(level)
        try:
            yield
        finally:
            pymysqlpool.logger.setLevel("WARNING")


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_debug_alone_makes_the_classic_lines_appear(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`logger.setLevel("DEBUG")` alone makes the lines appear on stderr, in the classic format."""
    pool = make_pool()
    with unconfigured_logging(monkeypatch, "DEBUG"):
        pool.get_connection().close()
    assert re.fullmatch(
        rf"{STAMP}    DEBUG: Get connection from pool\(pool1\)\n"
        rf"{STAMP}    DEBUG: Put connection back to pool\(pool1\)\n",
        capsys.readouterr().err,
    )


def test_lines_go_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that replaces `sys.stderr` gets the lines there."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with unconfigured_logging(monkeypatch, "WARNING"):
        pymysqlpool.logger.warning("mind the %s", "gap")
        pymysqlpool.logger.debug("nothing")
    assert re.fullmatch(rf"{STAMP}  WARNING: mind the gap\n", stderr.getvalue())


@pytest.mark.parametrize("name", [None, "pymysqlpool"])
def test_the_applications_handlers_get_each_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str | None
) -> None:
    """An application's handler, on the root logger or the pool's, gets each line once, and stderr none."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    with unconfigured_logging(monkeypatch, "DEBUG"):
        logging.getLogger(name).addHandler(handler)
        try:
            pymysqlpool.logger.debug("once")
        finally:
            logging.getLogger(name).removeHandler(handler)
    assert lines.getvalue() == "once\n"
    assert capsys.readouterr().err == ""


def test_a_handler_that_does_not_get_the_lines_does_not_silence_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the pool's logger does not propagate, a handler on the root logger counts for nothing."""
    monkeypatch.setattr(pymysqlpool.logger, "propagate", False)
    with unconfigured_logging(monkeypatch, "DEBUG"):
        logging.getLogger().addHandler(logging.NullHandler())
        pymysqlpool.logger.debug("once")
    assert capsys.readouterr().err.endswith("once\n")


def test_import_touches_nothing_else() -> None:
    """Importing the package touches neither the root logger nor warning filters; its own logger is at WARNING."""
    program = """
import logging, warnings, pymysql
filters = list(warnings.filters)
import pymysqlpool
assert warnings.filters == filters, warnings.filters
root = logging.getLogger()
assert (root.handlers, root.level) == ([], logging.WARNING), root
assert pymysqlpool.logger is logging.getLogger("pymysqlpool")
assert pymysqlpool.logger.level == logging.WARNING
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FROM_A_ZIP = """
import pymysqlpool
assert ".zip" in pymysqlpool.__file__
pymysqlpool.Connection.connect = lambda *_: None
pool = pymysqlpool.ConnectionPool(1)
with pool.connection():
    try:
        pool.get_connection(0, 0)
    except pymysqlpool.GetConnectionFromPoolError as error:
        print(error.holders[0]["file"], error.holders[0]["line"])
"""


def test_from_a_zip_file(tmp_path: Path) -> None:
    """From a zip file the package works too, and tells apart its own lines and the user's."""
    package = Path(pymysqlpool.__file__).parent
    archive = shutil.make_archive(str(tmp_path / "package"), "zip", package.parent, package.name)
    environment = {**os.environ, "PYTHONPATH": archive}
    command = [sys.executable, "-W", "error", "-c", FROM_A_ZIP]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "<string> 6\n", "")


# Without a pool


@pytest.fixture
def alone(server: Server, database: str) -> Iterator[Connection]:
    """A connection without a pool."""
    connection = Connection(database=database, **server.connect_kwargs)
    yield connection
    if connection.open:
        connection.close()


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


def test_alone_execute_query_commits(alone: Connection, admin: pymysql.connections.Connection[Any], table: str) -> None:
    """Without a pool `execute_query` commits, or rolls back on an error, and leaves the connection open."""
    assert alone.execute_query(f"insert into {table} (number) values (%s)", (1,)) == ()
    assert numbers(admin, table) == [1]
    alone.begin()
    with alone.cursor() as cursor:
        cursor.execute(f"insert into {table} (number) values (2)")
    with pytest.raises(ProgrammingError):
        alone.execute_query("select from")
    alone.commit()
    assert numbers(admin, table) == [1]
    assert alone.execute_query(f"select number from {table}", dictcursor=True) == [{"number": 1}]
    assert alone.open


def test_alone_two_threads_are_not_told_apart(alone: Connection) -> None:
    """Without a pool a connection that another thread has opened and used is used as PyMySQL's is."""
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


def test_shorthands_of_cursors(alone: Connection, make_pool: MakePool, table: str) -> None:
    """Cursors have `db_query` and `db_modify`, with a pool and without, in a block and of any class."""
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


# In a user's own unit tests


@pytest.mark.parametrize("patched", [Connection, pymysql.connections.Connection])
def test_connect_patched_away(monkeypatch: pytest.MonkeyPatch, patched: type) -> None:
    """With `connect` patched away and no server, borrowing, blocks, returning and counting work."""
    monkeypatch.setattr(patched, "connect", lambda *_: None)
    with ConnectionPool(2, "pool1", host="127.0.0.1", port=1) as pool:
        assert (pool.size(), pool.total_num) == (2, 2)
        connection = pool.get_connection()
        assert isinstance(connection, Connection)
        assert (pool.size(), pool.available_num) == (1, 1)
        connection.close()
        connection.close()
        with connection as cursor:
            assert isinstance(cursor, pymysql.cursors.Cursor)
            assert isinstance(cursor.connection, Connection)
            assert pool.size() == 1
        with pytest.raises(ZeroDivisionError), pool.connection() as connection, connection.cursor():
            1 / 0  # noqa: B018
        connections = [pool.get_connection() for _ in range(2)]
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(timeout=0)
        for connection in connections:
            pool.put_connection(connection)
        assert (pool.size(), pool.available_num, pool.total_num) == (2, 2, 2)


def test_no_warning_escapes_a_plain_session(make_pool: MakePool) -> None:
    """A plain session warns of nothing, even where every warning is shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with make_pool() as pool:
            with pool.get_connection() as cursor:
                cursor.execute("select 1")
            assert pool.get_connection().execute_query("select 1") == ((1,),)
    assert caught == []

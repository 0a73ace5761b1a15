"""Shared fixtures: a real server for the test session, and pools on it that are closed after each test."""

from __future__ import annotations

import signal
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import SECRET, Clock, set_clock
from leftovers import Scene
from protocol_proxy import ProtocolProxy
from proxy import Proxy
from server import Server, ServerNotFound, running_server

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Add, Admin, MakePool, Numbers


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server, for the whole run."""
    try:
        with running_server() as found:
            yield found
    except ServerNotFound as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture
def admin(server: Server) -> Iterator[Admin]:
    """A PyMySQL connection outside the pool, with autocommit."""
    # Without TLS, for which PyMySQL would build a context for every test.
    with pymysql.connect(**server.connect_kwargs, autocommit=True, ssl_disabled=True) as connection:
        yield connection


@pytest.fixture
def database(admin: Admin) -> Iterator[str]:
    """The name of a schema for this test alone."""
    name = f"pymysqlpool_{uuid.uuid4().hex}"
    with admin.cursor() as cursor:
        cursor.execute(f"create database {name}")
        yield name
        # A failed test may have left a session there, with a lock for which the drop would wait forever.
        cursor.execute("select id from information_schema.processlist where db = %s", (name,))
        for (session,) in cursor.fetchall():
            with suppress(pymysql.Error):
                cursor.execute(f"kill {session}")
        cursor.execute(f"drop database {name}")


@pytest.fixture
def make_pool(server: Server, database: str) -> Iterator[MakePool]:
    """Make pools on the test's own schema; keywords override the defaults that are filled in here."""
    with ExitStack() as stack:

        def make(**kwargs: Any) -> pymysqlpool.ConnectionPool:
            defaults = {"size": 2, "name": "pool1", "database": database, **server.connect_kwargs}
            return stack.enter_context(pymysqlpool.ConnectionPool(**{**defaults, **kwargs}))

        yield make


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Server]:
    """A server with a certificate, for one test file."""
    with running_server(tls=True) as found:
        if found.ca is None:
            pytest.skip("nothing is known of the certificate of a server that runs already")
        yield found


@pytest.fixture(scope="module")
def scene(server: Server, on_mariadb: bool) -> Iterator[Scene]:
    """A schema with everything that the deeds of `leftovers.py` need."""
    with Scene(server, on_mariadb=on_mariadb).set_up() as scene:
        yield scene


@pytest.fixture
def table(admin: Admin, database: str) -> str:
    """A table of numbers, by its full name."""
    name = f"{database}.numbers"
    with admin.cursor() as cursor:
        cursor.execute(f"create table {name} (id int auto_increment primary key, number int) engine=innodb")
    return name


@pytest.fixture
def numbers(admin: Admin, table: str) -> Numbers:
    """Return the committed rows of the table."""

    def committed() -> list[int]:
        with admin.cursor() as cursor:
            cursor.execute(f"select number from {table} order by id")
            return [number for (number,) in cursor.fetchall()]

    return committed


@pytest.fixture
def add(table: str) -> Add:
    """Insert a number through a cursor."""

    def insert(cursor: Any, number: int) -> None:
        cursor.execute(f"insert into {table} (number) values (%s)", (number,))

    return insert


@pytest.fixture
def user(admin: Admin, database: str) -> Iterator[str]:
    """A user with the password SECRET."""
    name = f"u{uuid.uuid4().hex[:20]}"
    with admin.cursor() as cursor:
        cursor.execute(f"create user {name}@'%%' identified by %s", (SECRET,))
        cursor.execute(f"grant all on {database}.* to {name}@'%%'", ())
        yield name
        cursor.execute(f"drop user {name}@'%%'", ())


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A network between the pool and the server."""
    with Proxy(server.host, server.port) as network:
        yield network


@pytest.fixture
def protocol_proxy(server: Server) -> Iterator[ProtocolProxy]:
    """A proxy between the pool and the server that knows the protocol."""
    with ProtocolProxy(server.host, server.port) as between:
        yield between


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Additional threads."""
    with ThreadPoolExecutor(12) as executor:
        yield executor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test sets, in place of the real one; it stands still."""
    clock = Clock()
    set_clock(monkeypatch, clock)
    return clock


@pytest.fixture
def running_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test sets, and that also runs, for tests in which threads wait."""
    clock = Clock(runs=True)
    set_clock(monkeypatch, clock)
    return clock


@pytest.fixture
def alone(server: Server, database: str) -> Iterator[pymysqlpool.Connection]:
    """A connection without a pool."""
    connection = pymysqlpool.Connection(database=database, **server.connect_kwargs)
    yield connection
    if connection.open:
        connection.close()


@pytest.fixture(scope="session")
def on_mariadb(server: Server) -> bool:
    """Whether the server is MariaDB."""
    with pymysql.connect(**server.connect_kwargs) as connection:
        return "MariaDB" in connection.get_server_info()


@pytest.fixture(scope="session")
def on_mysql(on_mariadb: bool) -> bool:
    """Whether the server is MySQL."""
    return not on_mariadb


@pytest.fixture
def control_c() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt even if it was ignored at the start, as in a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def switch_often() -> Iterator[None]:
    """Let the interpreter switch threads as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)

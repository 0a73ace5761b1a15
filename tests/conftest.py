"""What tests share: a real server for the session, and pools on it that are closed after each test."""

from __future__ import annotations

import signal
import sys
import uuid
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from server import Server, ServerNotFound, running_server

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server, for the whole run."""
    try:
        with running_server() as found:
            yield found
    except ServerNotFound as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture
def admin(server: Server) -> Iterator[pymysql.connections.Connection[Any]]:
    """A plain connection beside the pool's, with autocommit."""
    # Without TLS, for which PyMySQL would build a context for every test.
    with pymysql.connect(**server.connect_kwargs, autocommit=True, ssl_disabled=True) as connection:
        yield connection


@pytest.fixture
def database(admin: pymysql.connections.Connection[Any]) -> Iterator[str]:
    """The name of a schema that only this test has."""
    name = f"pymysqlpool_{uuid.uuid4().hex}"
    with admin.cursor() as cursor:
        cursor.execute(f"create database {name}")
        yield name
        # A test that has failed may have left a session there, with a lock on which the drop would wait for ever.
        cursor.execute("select id from information_schema.processlist where db = %s", (name,))
        for (session,) in cursor.fetchall():
            with suppress(pymysql.Error):
                cursor.execute(f"kill {session}")
        cursor.execute(f"drop database {name}")


@pytest.fixture
def make_pool(server: Server, database: str) -> Iterator[Callable[..., pymysqlpool.ConnectionPool]]:
    """Make pools on the test's own schema; keywords go before what is filled in here."""
    with ExitStack() as stack:

        def make(**kwargs: Any) -> pymysqlpool.ConnectionPool:
            defaults = {"size": 2, "name": "pool1", "database": database, **server.connect_kwargs}
            return stack.enter_context(pymysqlpool.ConnectionPool(**{**defaults, **kwargs}))

        yield make


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
    """Let SIGINT raise KeyboardInterrupt also where it was ignored at the start, as in a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def switch_often() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)

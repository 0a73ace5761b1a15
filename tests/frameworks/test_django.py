"""The backend for Django: one pool for each alias and process, from which each request borrows once."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable, ClassVar

import pymysql
import pytest
from helpers import eventually, kill, sessions

import pymysqlpool

pytest.importorskip("django")

from django_site import databases, environment, set_up, settings_for

set_up()

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_finished
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connection,
    transaction,
)
from django.test import Client
from shop.models import Item

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin
    from server import Server

    Site = Callable[..., Any]


class Recorder(pymysqlpool.Connection):
    """A connection that records the commands that it writes."""

    commands: ClassVar[list[bytes]] = []

    def _write_bytes(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 3], "little")
            if data[at + 3] == 0:
                self.commands.append(data[at + 5 : at + 4 + length])
            at += 4 + length
        super()._write_bytes(data)


@pytest.fixture
def site(server: Server, database: str) -> Iterator[Site]:
    """Configure Django with the test's own schema and a pool with these options, and return the settings."""
    with pytest.MonkeyPatch.context() as patch:
        stack: list[Any] = []

        def use(*, pool: Any = True, **options: Any) -> dict[str, Any]:
            settings = settings_for(server, database, **{"OPTIONS": {"pool": pool}, **options})
            stack.append(databases(default=settings))
            stack[-1].__enter__()
            return settings

        yield use
        while stack:
            stack.pop().__exit__(None, None, None)
        patch.undo()


def get(path: str = "/") -> Any:
    """Make a request as a server does, with both of Django's signals."""
    response = Client().get(path)
    request_finished.send(sender=None)
    return response.json()


# Requests


@pytest.mark.parametrize(("path", "commands"), [("/", 2), ("/atomic", 5)])
def test_a_request_costs_nothing_but_its_queries(path: str, commands: int, site: Site) -> None:
    """Only a view's queries, and those of `atomic`, are sent to the server."""
    site(pool={"size": 1, "connection_class": Recorder})
    get(path)
    Recorder.commands.clear()
    for _ in range(3):
        get(path)
    assert len(Recorder.commands) == 3 * commands, Recorder.commands


def test_a_request_in_a_new_thread_costs_nothing_more(site: Site) -> None:
    """ASGI and threaded servers have new threads, each with a wrapper of its own, which asks the server nothing."""
    site(pool={"size": 1, "connection_class": Recorder})
    get()
    Recorder.commands.clear()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(get).result()
    assert len(Recorder.commands) == 2, Recorder.commands


def test_what_a_request_leaves_behind_is_gone(site: Site) -> None:
    """The next request gets the session as Django has opened it, including the isolation level."""
    site(pool={"size": 1})
    state = "select @x, @@autocommit, @@sql_mode, connection_id(), "
    with connection.cursor() as cursor:
        cursor.execute("select version() like '%MariaDB%'")
        level = "@@tx_isolation" if cursor.fetchone()[0] else "@@transaction_isolation"
        cursor.execute(state + level)
        before = cursor.fetchone()
        assert before[-1] == "READ-COMMITTED"
        cursor.execute(
            "set @x = 1, autocommit = 0, sql_mode = '', session transaction_isolation = 'SERIALIZABLE'"
            if level == "@@transaction_isolation"
            else "set @x = 1, autocommit = 0, sql_mode = '', tx_isolation = 'SERIALIZABLE'"
        )
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute(state + level)
        assert cursor.fetchone() == before


@pytest.mark.parametrize("level", ["serializable", None])
def test_the_isolation_level_is_the_settings(level: str | None, site: Site, admin: Admin) -> None:
    """`OPTIONS["isolation_level"]` applies, also with an `init_command`; None is the server's default."""
    site(OPTIONS={"isolation_level": level, "init_command": "set @x = 7", "pool": {"size": 1}})
    [servers] = [row for row in variables(admin) if row[0] in ("tx_isolation", "transaction_isolation")][-1:]
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute("show session variables where variable_name in ('tx_isolation', 'transaction_isolation')")
            assert cursor.fetchall()[-1][1] == (level.upper() if level else servers[1])
            cursor.execute("select @x")
            assert cursor.fetchone() == (7,)
            cursor.execute("set @x = 8")
        connection.close()
    assert connection.isolation_level == level


@pytest.mark.parametrize("end", [";", " ; ", "; set @y = 8;", " # a comment", " -- a comment"])
def test_an_init_command_may_end_as_any_statement_may(end: str, site: Site) -> None:
    """After a semicolon or a comment too the isolation level is set, as it is by Django's own backend."""
    site(OPTIONS={"init_command": f"set @x = 7{end}", "pool": {"size": 1}})
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute("show session variables where variable_name in ('tx_isolation', 'transaction_isolation')")
            assert cursor.fetchall()[-1][1] == "READ-COMMITTED"
            cursor.execute("select @x")
            assert cursor.fetchone() == (7,)
            cursor.execute("set @x = 8")
        connection.close()
    assert connection.pool.stats().opened == 1


def variables(admin: Admin) -> Any:
    with admin.cursor() as cursor:
        cursor.execute("show global variables")
        return cursor.fetchall()


def test_a_view_that_fails_writes_nothing(site: Site) -> None:
    """`atomic` rolls back, and the connection is returned."""
    site(pool={"size": 1, "timeout": 0})
    with pytest.raises(ZeroDivisionError):
        get("/fail")
    request_finished.send(sender=None)
    assert Item.objects.count() == 0
    connection.close()
    assert connection.pool.size() == 1


def test_a_transaction_that_is_not_ended_is_rolled_back(site: Site) -> None:
    """If autocommit was turned off, uncommitted changes are rolled back at the end of the request."""
    site(pool={"size": 1})
    transaction.set_autocommit(False)
    Item.objects.create(name="never")
    close_old_connections()
    assert Item.objects.count() == 0
    assert connection.get_autocommit()


def test_a_request_after_its_session_was_killed_works(site: Site, admin: Admin, database: str) -> None:
    """An idle session that the server has ended is replaced without an error."""
    site(pool={"size": 1})
    first = get()["session"]
    kill(admin, {first})
    assert get()["session"] != first


def test_health_checks_ping(site: Site) -> None:
    """CONN_HEALTH_CHECKS pings each connection before it is lent."""
    site(pool={"size": 1, "connection_class": Recorder}, CONN_HEALTH_CHECKS=True)
    get()
    Recorder.commands.clear()
    get()
    assert len(Recorder.commands) == 3


def test_types_are_djangos(site: Site) -> None:
    """Values are converted as by Django's MySQL backend."""
    site()
    Item.objects.create(name="it's 100 %", price=3, due=dt.time(1, 2, 3), facts={"a": [1, None]})
    item = Item.objects.get(name__contains="100 %", facts__a__0=1)
    assert (item.due, item.facts) == (dt.time(1, 2, 3), {"a": [1, None]})
    assert Item.objects.filter(name=item.name).update(name=item.name) == 1, (
        "rows that are found count, not changed ones"
    )
    assert "100 %" in connection.ops.last_executed_query(_executed(item.name), "", ())


def _executed(name: str) -> Any:
    cursor = connection.cursor()
    cursor.execute("select %s", [name])
    return cursor


@pytest.mark.parametrize(
    ("statement", "django_error", "error"),
    [
        ("insert into shop_item (name, price, facts) values (null, 1, '{}')", IntegrityError, pymysql.err.Error),
        ("select nothing", OperationalError, pymysql.err.OperationalError),
        ("selec", ProgrammingError, pymysql.err.ProgrammingError),
        (
            "insert into shop_item (name, price, facts) values ('a', 99999999999, '{}')",
            DataError,
            pymysql.err.DataError,
        ),
        ("select ~0 + 1", IntegrityError, None),
    ],
)
def test_errors_are_djangos_and_their_causes_pymysqls(
    statement: str, django_error: type[Exception], error: type[Exception] | None, site: Site
) -> None:
    """Errors are Django's, even integrity errors that the driver classifies otherwise; PyMySQL's is the cause."""
    site()
    for run in (
        lambda cursor: cursor.execute(statement),
        lambda cursor: cursor.executemany(f"{statement} -- %s", [(1,)]),
    ):
        with connection.cursor() as cursor, pytest.raises(django_error) as caught:
            run(cursor)
        if error is not None:
            assert isinstance(caught.value.__cause__, error)


# The pool


def test_one_pool_for_each_alias(server: Server, database: str) -> None:
    """Two aliases have two pools; the wrappers of one alias in several threads share one pool."""
    settings = settings_for(server, database)
    with databases(default=settings, other=settings) as connections, ThreadPoolExecutor(1) as executor:
        pool = connections["default"].pool
        assert pool is connections["default"].pool
        assert executor.submit(lambda: connections["default"].pool).result() is pool
        assert connections["other"].pool is not pool
        assert (pool.name, connections["other"].pool.name) == ("default", "other")


def test_threads_share_the_pool(site: Site, admin: Admin, database: str) -> None:
    """16 threads, each with requests of its own, on 4 connections."""
    site(pool={"size": 4})

    def work(number: int) -> set[int]:
        return {get(["/", "/atomic"][n % 2])["session"] for n in range(20)}

    with ThreadPoolExecutor(16) as executor:
        found = set().union(*executor.map(work, range(16)))
    connection.close()
    assert connection.pool.size() == 4
    assert found <= sessions(admin, database)
    assert len(sessions(admin, database)) == connection.pool.total_num <= 4


def test_the_pool_is_made_once_by_threads_at_once(site: Site, admin: Admin, database: str) -> None:
    """Many threads whose first queries come at the same time get one pool."""
    site(pool={"size": 2})
    connection.close()
    connection.close_pool()
    together = threading.Barrier(8)

    def work() -> Any:
        together.wait()
        pool = connection.pool
        get()
        return pool

    with ThreadPoolExecutor(8) as executor:
        pools = {job.result() for job in [executor.submit(work) for _ in range(8)]}
    assert len(pools) == 1


def test_in_vain(site: Site) -> None:
    """If no connection becomes free, Django's OperationalError names the user's line, not Django's or the backend's."""
    site(pool={"size": 1, "timeout": 0.01})
    Item.objects.count()
    with ThreadPoolExecutor(1) as executor, pytest.raises(OperationalError) as caught:
        executor.submit(Item.objects.count).result()
    cause: Any = caught.value.__cause__
    assert isinstance(cause, pymysqlpool.GetConnectionFromPoolError)
    assert str(cause) == "can't get connection from pool(default) within 0.01*1 second(s)"
    [holder] = cause.holders
    assert holder["file"] == __file__


def test_close_pool(site: Site, admin: Admin, database: str) -> None:
    """`close_pool()` closes it; the next query makes another."""
    site()
    Item.objects.count()
    connection.close()
    pool = connection.pool
    assert sessions(admin, database)
    connection.close_pool()
    eventually(lambda: not sessions(admin, database))
    with pytest.raises(pymysqlpool.PoolClosedError):
        pool.get_connection()
    assert Item.objects.count() == 0
    assert connection.pool is not pool


def test_close_pool_while_lent(site: Site, admin: Admin, database: str) -> None:
    """Borrowed connections go on working, and are closed when they are returned."""
    site()
    Item.objects.count()
    connection.close_pool()
    assert Item.objects.count() == 0
    connection.close()
    eventually(lambda: not sessions(admin, database))


def test_close_pool_while_another_thread_waits(site: Site) -> None:
    """A thread that waits for a connection of the pool that is closed gets one of the next pool."""
    site(pool={"size": 1})
    Item.objects.count()
    pool = connection.pool
    with ThreadPoolExecutor(1) as executor:
        other = executor.submit(get)
        eventually(lambda: pool.stats().waiting == 1)
        connection.close_pool()
        assert other.result()["items"] == 0
        assert executor.submit(lambda: connection.pool).result() is connection.pool is not pool


def test_a_pool_that_is_closed_by_its_own_method(site: Site) -> None:
    """The next query makes another, as after `close_pool()`."""
    site()
    pool = connection.pool
    pool.close()
    assert Item.objects.count() == 0
    assert connection.pool is not pool


def test_on_connect_uses_another_pool_that_is_closed(server: Server, database: str) -> None:
    """The error is raised: it does not tell that the alias's own pool is closed."""
    closed = pymysqlpool.ConnectionPool(1, pre_create_num=0, **server.connect_kwargs)
    closed.close()
    settings = settings_for(
        server, database, OPTIONS={"pool": {"on_connect": lambda _: closed.get_connection().close()}}
    )
    with databases(other=settings) as connections, pytest.raises(InterfaceError) as caught:
        connections["other"].ensure_connection()
    assert isinstance(caught.value.__cause__, pymysqlpool.PoolClosedError)


def test_other_settings_make_another_pool(site: Site, database: str, admin: Admin) -> None:
    """A test database's name is set after the pool has been used, so another pool is made."""
    settings = site(pool={"size": 1})
    get()
    with admin.cursor() as cursor:
        cursor.execute(f"create database {database}_2")
    try:
        connection.settings_dict["NAME"] = f"{database}_2"
        with connection.cursor() as cursor:
            cursor.execute("select database()")
            assert cursor.fetchone() == (f"{database}_2",)
    finally:
        connection.close()
        connection.close_pool()
        connection.settings_dict["NAME"] = settings["NAME"]
        with admin.cursor() as cursor:
            cursor.execute(f"drop database {database}_2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"CONN_MAX_AGE": 60}, r"CONN_MAX_AGE should be 0"),
        ({"CONN_MAX_AGE": None}, r"CONN_MAX_AGE should be 0"),
        ({"OPTIONS": {"pool": {"max_size": 4}}}, r"options that no pool has: max_size"),
        ({"OPTIONS": {"pool": {"by_name_only": 4, 1: 2}}}, r"options that no pool has: 1, by_name_only"),
        ({"OPTIONS": {"pool": ""}}, r"DATABASES\['other'\]\['OPTIONS'\]\['pool'\] should be True, False or a dict"),
        ({"OPTIONS": {"pool": 4}}, r"DATABASES\['other'\]\['OPTIONS'\]\['pool'\] should be True, False or a dict"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], message: str, server: Server, database: str) -> None:
    """Settings that contradict a pool raise an error with a clear message."""
    settings = settings_for(server, database, **options)
    with databases(other=settings) as connections, pytest.raises(ImproperlyConfigured, match=message):
        connections["other"].ensure_connection()


def test_a_pool_without_options(site: Site) -> None:
    """An empty dict of options means all defaults, as True does."""
    site(pool={})
    assert connection.pool.maxsize == 10


def test_no_pool(site: Site, admin: Admin, database: str) -> None:
    """With `"pool": False` Django works as usual, on PyMySQL, including persistent connections."""
    site(pool=False, CONN_MAX_AGE=None)
    assert connection.pool is None
    connection.close_pool()
    first = get()["session"]
    assert get()["session"] == first
    assert type(connection.connection) is pymysql.connections.Connection
    with connection.cursor() as cursor:
        cursor.execute("show session variables where variable_name in ('tx_isolation', 'transaction_isolation')")
        assert cursor.fetchall()[-1][1] == "READ-COMMITTED"
    kill(admin, {first})
    assert not connection.is_usable()
    connection.close()
    assert get()["session"] != first


@pytest.mark.parametrize("pool", [True, False])
def test_a_server_with_sql_auto_is_null(pool: bool, site: Site, admin: Admin, database: str) -> None:
    """Django turns it off for each connection, also for those without a pool that make a test database."""
    with admin.cursor() as cursor:
        cursor.execute("set global sql_auto_is_null = 1")
    try:
        site(pool=pool, TEST={"NAME": f"{database}_test"})
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        with connection.cursor() as cursor:
            cursor.execute("select @@sql_auto_is_null")
            assert cursor.fetchone() == (0,)
            cursor.execute("show session variables where variable_name in ('tx_isolation', 'transaction_isolation')")
            assert cursor.fetchall()[-1][1] == "READ-COMMITTED"
        connection.creation.destroy_test_db(database, verbosity=0)
    finally:
        with admin.cursor() as cursor:
            cursor.execute("set global sql_auto_is_null = 0")


# PyMySQL in place of MySQLdb


def test_mysqldb_is_pymysql_with_all_that_is_in_it() -> None:
    """Where mysqlclient is not installed, `MySQLdb` and its submodules are PyMySQL's own, not copies."""
    import MySQLdb  # noqa: PLC0415

    if MySQLdb is not pymysql:
        pytest.skip("mysqlclient is installed")
    import MySQLdb.constants.FIELD_TYPE  # noqa: PLC0415
    import MySQLdb.cursors  # noqa: PLC0415
    import MySQLdb.err  # noqa: PLC0415

    assert MySQLdb.err.OperationalError is pymysql.err.OperationalError
    assert sys.modules["MySQLdb.cursors"] is pymysql.cursors
    own = {name for name in sys.modules if name.startswith("pymysql.")}
    assert {name.replace("pymysql", "MySQLdb", 1) for name in own} <= sys.modules.keys()
    assert not [
        name for name, module in sys.modules.items() if name.startswith("MySQLdb.") and "MySQLdb" in module.__name__
    ]


def test_too_old_a_pymysql_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which PyMySQL is needed."""
    import importlib  # noqa: PLC0415

    import pymysqlpool.django.stand_in as module  # noqa: PLC0415

    monkeypatch.setattr(pymysql, "version_info", (1, 4, 6, "final", 1))
    monkeypatch.setattr(pymysql, "VERSION_STRING", "1.1.2")
    with pytest.raises(ImproperlyConfigured, match=r"needs PyMySQL 1\.1\.3 or newer; you have 1\.1\.2"):
        importlib.reload(module)


# Django's own runner and servers


@pytest.mark.parametrize("options", [(), ("--parallel", "2")])
def test_djangos_own_tests_run(options: tuple[str, ...], server: Server, database: str) -> None:
    """TestCase, TransactionTestCase and LiveServerTestCase, on a test database that the runner makes and drops."""
    settings = settings_for(server, database, TEST={"NAME": f"{database}_test"})
    command = [sys.executable, "-W", "error", "-m", "django", "test", "shop", "-v", "2", "--noinput", *options]
    done = subprocess.run(
        command, env=environment(default=settings), capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Ran 7 tests" in done.stderr, done.stderr


def test_a_test_database_that_is_made_again(site: Site, database: str) -> None:
    """A test database may be dropped and created again under the same name, with the same pool."""
    site(pool={"size": 1}, TEST={"NAME": f"{database}_test"})
    for _ in range(2):
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        assert Item.objects.count() == 0
        connection.creation.destroy_test_db(database, verbosity=0)


def test_asgi(site: Site, admin: Admin, database: str) -> None:
    """Simultaneous requests, each in a thread of its own as with ASGI, are all served on 4 connections."""
    site(pool={"size": 4})
    handler: Any = ASGIHandler()
    handler.load_middleware(is_async=True)

    async def one(path: str) -> int:
        sent: list[Any] = []
        is_over = asyncio.Event()
        asked = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if not asked:
                await is_over.wait()
                return {"type": "http.disconnect"}
            return asked.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": path, "query_string": b"", "headers": [(b"host", b"localhost")], "server": ("localhost", 80),
        }  # fmt: skip
        await handler(scope, receive, send)
        is_over.set()
        status: int = sent[0]["status"]
        return status

    async def many() -> list[int]:
        return await asyncio.gather(*(one(["/", "/atomic"][n % 2]) for n in range(40)))

    assert set(asyncio.run(many())) == {200}
    connection.close()
    assert connection.pool.size() == 4
    assert len(sessions(admin, database)) <= 4

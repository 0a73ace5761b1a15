"""Borrowing: how long it waits, what it gets, and how many there can be."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import eventually
from pymysql.err import OperationalError

from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError, PoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool
    from proxy import Proxy
    from server import Server


def waiting(pool: ConnectionPool, count: int) -> Callable[[], bool]:
    return lambda: f" {count} waiting" in repr(pool)


# The wait


@pytest.mark.parametrize("kwargs", [{"timeout": 0}, {"timeout": 0.0, "retry_num": 0}, {"timeout": 0.01}])
def test_the_wait_ends(make_pool: MakePool, kwargs: dict[str, Any]) -> None:
    """A thread whose wait times out gets the error, is removed from the waiters, and leaves the pool unchanged."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    for _ in range(3):
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(**kwargs)
    assert waiting(pool, 0)()
    connection.close()
    assert pool.size() == 1
    pool.get_connection(timeout=0).close()


@pytest.mark.parametrize("kwargs", [{"timeout": 0.05, "retry_num": 3}, {"retry_interval": 0.1}])
def test_each_try_has_its_timeout(make_pool: MakePool, kwargs: dict[str, Any]) -> None:
    """The wait is at least `timeout` seconds for each of `retry_num + 1` tries."""
    pool = make_pool(size=1)
    with pool.connection():
        start = time.monotonic()
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(**kwargs)
        assert time.monotonic() - start >= 0.2


@pytest.mark.parametrize("timeout", [None, 60, 60.0])
def test_the_wait_is_over_when_one_comes_free(
    make_pool: MakePool, threads: ThreadPoolExecutor, timeout: float | None
) -> None:
    """A waiting thread gets a returned connection, with its session; `timeout=None` waits forever."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = connection.server_thread_id[0]
    borrowed = threads.submit(pool.get_connection, timeout=timeout)
    eventually(waiting(pool, 1))
    assert not borrowed.done()
    connection.close()
    assert borrowed.result().server_thread_id[0] == session
    assert pool.size() == 0
    borrowed.result().close()


def test_waiters_are_served_in_order(make_pool: MakePool) -> None:
    """A returned connection goes to the thread that has waited longest, not to one that asks later."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with ThreadPoolExecutor(10) as threads:
        line = []
        for count in range(1, 11):
            line.append(threads.submit(pool.get_connection, timeout=None))
            eventually(waiting(pool, count))
        for borrowed in line:
            connection.close()
            with pytest.raises(GetConnectionFromPoolError):
                pool.get_connection(timeout=0)
            connection = borrowed.result()
            assert [later.done() for later in line].count(True) == line.index(borrowed) + 1
    connection.close()
    assert pool.size() == 1


def test_a_retry_keeps_its_place(make_pool: MakePool, admin: Admin, threads: ThreadPoolExecutor) -> None:
    """A thread that retries stays ahead of those that came after its first try."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    first = threads.submit(pool.get_connection, timeout=0.0001, retry_num=600_000)
    eventually(waiting(pool, 1))
    second = threads.submit(pool.get_connection, timeout=None)
    eventually(waiting(pool, 2))
    for _ in range(20):  # takes many times longer than one try
        admin.ping()
    connection.close()
    first.result().close()
    second.result().close()
    assert pool.size() == 1


# What a borrower gets


def test_last_in_first_out(make_pool: MakePool) -> None:
    """Of the idle connections, the one that was returned last is lent first."""
    pool = make_pool(size=3)
    connections = [pool.get_connection() for _ in range(3)]
    sessions = [connection.server_thread_id[0] for connection in connections]
    for connection in connections:
        connection.close()
    connections = [pool.get_connection() for _ in range(3)]
    assert [connection.server_thread_id[0] for connection in connections] == sessions[::-1]
    for connection in connections:
        connection.close()


def test_none_is_opened_while_one_rests(make_pool: MakePool) -> None:
    """A connection is opened only if no open one is idle."""
    pool = make_pool(size=1, maxsize=4)
    for _ in range(5):
        with pool.connection(), pool.connection():
            assert pool.size() == 2
    assert (pool.total_num, pool.available_num, pool.size()) == (2, 2, 4)


def test_a_subclass_of_connection(make_pool: MakePool) -> None:
    """Each lent connection is an instance of `connection_class`, with the attributes that its `__init__` sets."""

    class Mine(Connection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.colour = "blue"

    pool = make_pool(size=1, connection_class=Mine)
    for _ in range(2):
        with pool.connection() as connection:
            assert type(connection) is Mine
            assert connection.colour == "blue"
            connection.colour = "red"


def test_two_pools_to_two_databases(make_pool: MakePool, admin: Admin, database: str) -> None:
    """Two pools to two databases live side by side, each with its own connections."""
    with admin.cursor() as cursor:
        cursor.execute(f"create database {database}_2")
    names = [database, f"{database}_2"]
    pools = [make_pool(database=name, name=name) for name in names]
    try:
        with pools[0].connection() as first, pools[1].connection() as second:
            assert [pool.size() for pool in pools] == [1, 1]
            for connection, name in ((first, names[0]), (second, names[1])):
                assert connection.execute_query("select database()") == ((name,),)
            assert first.server_thread_id[0] != second.server_thread_id[0]
        pools[0].close()
        assert pools[1].get_connection().execute_query("select database()") == ((names[1],),)
    finally:
        pools[1].close()
        with admin.cursor() as cursor:
            cursor.execute(f"drop database {database}_2")


# Opening


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_server_out_of_reach_is_no_exhausted_pool(make_pool: MakePool, closed_port: int) -> None:
    """If the server can't be reached, the caller gets PyMySQL's own error, and no place is lost."""
    pool = make_pool(pre_create_num=0, host="127.0.0.1", port=closed_port)
    for _ in range(5):
        with pytest.raises(OperationalError) as raised:
            pool.get_connection(timeout=0)
        assert raised.value.args[0] == 2003
        assert not isinstance(raised.value, PoolError)
    assert (pool.size(), pool.total_num) == (2, 0)


def test_a_server_that_comes_back(make_pool: MakePool, proxy: Proxy) -> None:
    """After failed openings the pool lends up to `maxsize` connections again as soon as the server answers."""
    pool = make_pool(size=2, pre_create_num=0, host=proxy.host, port=proxy.port)
    proxy.refuse = True
    for _ in range(3):
        with pytest.raises(OperationalError):
            pool.get_connection(timeout=0)
    proxy.refuse = False
    with pool.connection() as first, pool.connection() as second:
        for connection in (first, second):
            assert connection.execute_query("select 1") == ((1,),)
    assert (pool.size(), pool.total_num, proxy.opened) == (2, 2, 2)


class Reluctant(Connection):
    """A connection whose `connect()` reports that it has begun, and continues or fails when it is told to."""

    begun: threading.Event
    go_on: threading.Event
    error: BaseException | None

    def connect(self, sock: Any = None) -> None:
        """Wait, then fail once or connect."""
        cls = type(self)
        cls.begun.set()
        assert cls.go_on.wait(30)
        error, cls.error = cls.error, None
        if error is not None:
            raise error
        super().connect(sock)


@pytest.fixture
def reluctant() -> type[Reluctant]:
    """A class of its own for each test."""

    class Ours(Reluctant):
        begun = threading.Event()
        go_on = threading.Event()
        error = None

    return Ours


def test_opening_holds_nobody_up(make_pool: MakePool, reluctant: type[Reluctant], threads: ThreadPoolExecutor) -> None:
    """While one borrower opens a connection, others can inspect the pool, borrow, return and wait as usual."""
    pool = make_pool(size=2, pre_create_num=0, connection_class=reluctant)
    reluctant.go_on.set()
    resting = pool.get_connection()
    reluctant.go_on.clear()
    reluctant.begun.clear()
    opening = threads.submit(pool.get_connection)
    assert reluctant.begun.wait(30)

    resting.close()
    assert (pool.size(), pool.available_num) == (1, 1)
    assert "2 open" not in repr(pool)
    for _ in range(3):
        assert pool.get_connection(timeout=0).execute_query("select 1") == ((1,),)
    with pool.connection(), pytest.raises(GetConnectionFromPoolError):
        pool.get_connection(timeout=0)
    assert not opening.done()
    reluctant.go_on.set()
    opening.result().close()
    assert (pool.size(), pool.total_num) == (2, 2)


@pytest.mark.parametrize(
    "error", [OperationalError(2003, "no way"), KeyboardInterrupt(), GeneratorExit(), SystemExit()]
)
def test_a_failed_opening_gives_the_place_to_who_waits(
    make_pool: MakePool, reluctant: type[Reluctant], threads: ThreadPoolExecutor, error: BaseException
) -> None:
    """If opening fails or is interrupted, the borrower gets that error, and the next waiter gets the place."""
    pool = make_pool(size=1, pre_create_num=0, connection_class=reluctant)
    reluctant.error = error

    def borrow_in_vain() -> BaseException:
        with pytest.raises(type(error)) as raised:
            pool.get_connection()
        return raised.value

    failing = threads.submit(borrow_in_vain)
    assert reluctant.begun.wait(30)
    waiter = threads.submit(pool.get_connection, timeout=None)
    eventually(waiting(pool, 1))
    reluctant.go_on.set()
    assert failing.result() is error
    waiter.result().close()
    assert (pool.size(), pool.total_num) == (1, 1)


# The bound


@pytest.fixture
def make_user(admin: Admin, server: Server) -> Iterator[Callable[[str], dict[str, str]]]:
    """Make a user whose connections the server itself limits; its name and password are what is returned."""
    name = f"user_{uuid.uuid4().hex[:16]}"
    # For each way in which a server may see this host; an anonymous account would come before one for "%".
    accounts = [f"{name}@'{host}'" for host in ("localhost", "127.0.0.1", "%")]

    def make(limit: str) -> dict[str, str]:
        with admin.cursor() as cursor:
            for account in accounts:
                cursor.execute(f"create user {account} identified by '' with {limit}")
                cursor.execute(f"grant all on *.* to {account}")
        return {"user": name, "password": ""}

    yield make
    with admin.cursor() as cursor:
        cursor.execute(f"drop user {', '.join(accounts)}")


def sessions_of(admin: Admin, user: str) -> int:
    """The number of sessions of this user on the server."""
    with admin.cursor() as cursor:
        cursor.execute("show processlist")
        return [row[1] for row in cursor.fetchall()].count(user)


def test_the_bound(make_pool: MakePool, make_user: Callable[[str], dict[str, str]], server: Server) -> None:
    """64 threads at once against `maxsize=3` never open a fourth connection: the server would refuse it."""
    user = make_user("max_user_connections 3")
    pool = make_pool(size=1, maxsize=3, pre_create_num=0, **user)
    together = threading.Barrier(64)

    def work(number: int) -> set[int]:
        together.wait(30)
        sessions = set()
        for again in range(4):
            with pool.get_connection(timeout=None) as cursor:
                [(answer, session)] = cursor.db_query("select %s, connection_id()", (number + again,))
                assert answer == number + again
                sessions.add(session)
        return sessions

    with ThreadPoolExecutor(64) as threads:
        sessions = set().union(*threads.map(work, range(64)))
    assert len(sessions) == pool.total_num <= 3
    connections = [pool.get_connection(timeout=0) for _ in range(3)]
    with pytest.raises(OperationalError, match="max_user_connections"):
        pymysql.connect(**{**server.connect_kwargs, **user})
    for connection in connections:
        connection.close()


def test_a_failing_constructor_closes_what_it_has_opened(
    make_pool: MakePool, make_user: Callable[[str], dict[str, str]], admin: Admin
) -> None:
    """If the third connection can't be opened, the constructor raises PyMySQL's error and closes the first two."""
    user = make_user("max_user_connections 2")
    with pytest.raises(OperationalError) as raised:
        make_pool(size=3, **user)
    assert raised.value.args[0] == 1226  # the limit
    assert not isinstance(raised.value, PoolError)
    eventually(lambda: sessions_of(admin, user["user"]) == 0)  # the server notices a closed socket late
    with make_pool(size=2, **user) as pool:
        assert sessions_of(admin, user["user"]) == pool.total_num == 2
    eventually(lambda: sessions_of(admin, user["user"]) == 0)

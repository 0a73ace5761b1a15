"""Servers and networks that fail: KILL, timeouts, restarts, outages, half-open connections, unexpected data."""

from __future__ import annotations

import os
import resource
import select
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import GENEROUS, borrow_all, eventually, kill, one_thread, session_of, sessions, set_clock
from pymysql.constants import COMMAND
from pymysql.err import OperationalError
from server import Server, running_server

from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool
    from proxy import Proxy


@pytest.fixture
def make_remote_pool(make_pool: MakePool, proxy: Proxy) -> Iterator[MakePool]:
    """Make pools behind the proxy, which passes data on again at the end, so that the pools can be closed."""

    def make(**kwargs: Any) -> ConnectionPool:
        return make_pool(host=proxy.host, port=proxy.port, **kwargs)

    yield make
    heal(proxy)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server for these tests alone, so that they may stop it."""
    with running_server() as server:
        if not server.supports_faults:
            pytest.skip("the server is not ours to stop")
        yield server


@pytest.fixture
def running(own_server: Server) -> Server:
    """The server for these tests, started again if the last test has stopped it."""
    if own_server.pid is None:
        own_server.start()
    return own_server


def heal(proxy: Proxy) -> None:
    proxy.deaf = proxy.refuse = False
    proxy.delay = 0.0


def error_packet(code: int, number: int) -> bytes:
    """The error packet that a server sends before it closes a session, with this sequence number."""
    body = b"\xff" + struct.pack("<H", code) + b"#HY000the server is going away"
    return struct.pack("<I", len(body))[:3] + bytes([number]) + body


# The errors that a server sends when it ends a session: MySQL after wait_timeout and at shutdown, MariaDB after KILL.
PARTING_WORDS = [error_packet(4031, 0), error_packet(4031, 1), error_packet(1053, 0), error_packet(1927, 0)]


def use_20_times(pool: ConnectionPool) -> None:
    """Borrow all places at once and query, 20 times. An error in any thread is raised."""
    for _ in range(-(-20 // pool.maxsize)):
        borrow_all(pool)


# 1. No borrower gets a connection that the server has closed


@pytest.fixture(params=["poll", "no poll", "descriptors above 1024"])
def eyes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the pool poll idle sockets in each of the possible ways."""
    if request.param == "poll":
        yield
        return
    if request.param == "no poll":
        monkeypatch.delattr(select, "poll")
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048 if hard == resource.RLIM_INFINITY else min(hard, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] <= 1024:
        taken.append(os.dup(taken[0]))
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_all_idle_sessions_killed(make_pool: MakePool, admin: Admin, database: str, eyes: None) -> None:
    """After a KILL of all idle sessions no borrower sees an error, with each way to poll a socket."""
    pool = make_pool(size=4)
    before = borrow_all(pool)
    kill(admin, before)
    use_20_times(pool)
    eventually(lambda: len(sessions(admin, database)) == 4)
    assert not sessions(admin, database) & before


def test_wait_timeout(make_pool: MakePool, admin: Admin, database: str) -> None:
    """After the server's wait_timeout no borrower sees an error."""
    pool = make_pool(size=4, init_command="set wait_timeout = 1")
    eventually(lambda: not sessions(admin, database))
    use_20_times(pool)


def test_restart(running: Server) -> None:
    """After a restart of the server no borrower sees an error."""
    with ConnectionPool(4, "pool1", **running.connect_kwargs) as pool:
        running.restart()
        use_20_times(pool)


@pytest.mark.parametrize("owed", [False, True])
@pytest.mark.parametrize("word", [*PARTING_WORDS, b"\0"], ids=["4031 0", "4031 1", "1053", "1927", "a stray byte"])
def test_parting_words(make_remote_pool: MakePool, proxy: Proxy, word: bytes, owed: bool) -> None:
    """A session on which the server has sent something unrequested is closed, even if a reply was pending."""
    pool = make_remote_pool(size=1, autocommit=not owed)
    connection = pool.get_connection()
    before, sock = session_of(connection), connection._sock
    connection.close()
    if owed:
        assert select.select([sock], [], [], GENEROUS)[0], "no answer to the rollback"
    proxy.garbage(word)
    use_20_times(pool)
    assert borrow_all(pool) != {before}


@pytest.mark.parametrize("word", PARTING_WORDS, ids=["4031 0", "4031 1", "1053", "1927"])
def test_parting_words_to_a_borrower(make_remote_pool: MakePool, proxy: Proxy, word: bytes) -> None:
    """If the server ends a borrowed session, the borrower gets an error, and the session is not lent again."""
    pool = make_remote_pool(size=1)
    connection = pool.get_connection()
    before = session_of(connection)
    proxy.garbage(word)
    with pytest.raises(OperationalError), connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()
    assert borrow_all(pool) != {before}


class Pinging(Connection):
    """A connection class that counts pings, as written to the socket, and openings."""

    pings = 0
    openings = 0

    def _write_bytes(self, data: bytes) -> None:
        type(self).pings += data[4:] == bytes([COMMAND.COM_PING])
        super()._write_bytes(data)

    def connect(self, sock: Any = None) -> None:
        """Connect, and count it if it succeeds."""
        super().connect(sock)
        type(self).openings += 1


@pytest.fixture
def pinging() -> type[Pinging]:
    """A subclass whose counts begin at zero."""
    return type("Counted", (Pinging,), {})


@pytest.mark.parametrize(
    ("options", "rest", "pre_ping", "pings"),
    [
        ({}, 29, False, 0),
        ({}, 31, False, 1),
        ({"ping_after": 5}, 4, False, 0),
        ({"ping_after": 5}, 6, False, 1),
        ({"ping_after": 0}, 0, False, 1),
        ({"ping_after": None}, 3000, False, 0),
        ({"ping_after": None}, 0, True, 1),
        ({}, 0, True, 1),
    ],
)
def test_ping_after(
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    pinging: type[Pinging],
    *,
    options: dict[str, Any],
    rest: float,
    pre_ping: bool,
    pings: int,
) -> None:
    """A session is pinged before it is lent only if it was idle for `ping_after` seconds or with `pre_ping`."""
    pool = make_pool(size=1, connection_class=pinging, **options)
    real = time.monotonic
    set_clock(monkeypatch, lambda: real() + rest)
    pool.get_connection(pre_ping=pre_ping).close()
    assert (pinging.pings, pinging.openings) == (pings, 1)
    with pool.connection(pre_ping=pre_ping) as connection:
        assert session_of(connection)


@pytest.mark.parametrize("fault", ["deaf", "late"])
def test_a_failed_ping_means_another_connection(
    make_remote_pool: MakePool, proxy: Proxy, pinging: type[Pinging], fault: str
) -> None:
    """If a ping gets no reply, or a late one, the connection is replaced, even without a `read_timeout`."""

    def password() -> str:
        heal(proxy)
        return ""

    pool = make_remote_pool(size=1, connection_class=pinging, password=password, autocommit=True)
    [before] = borrow_all(pool)
    proxy.deaf = fault == "deaf"
    proxy.delay = 3.0 if fault == "late" else 0.0
    started = time.monotonic()
    with pool.connection(pre_ping=True) as connection:
        assert session_of(connection) != before
    assert time.monotonic() - started < GENEROUS
    assert (pinging.pings, pinging.openings) == (1, 2)


# 2. Half-open and unresponsive networks


@pytest.mark.parametrize("fault", ["deaf", "late", "refuse"])
def test_connect_timeout_covers_the_handshake(make_remote_pool: MakePool, proxy: Proxy, fault: str) -> None:
    """If a server accepts and then sends nothing, sends too late or closes, opening takes at most `connect_timeout`."""
    pool = make_remote_pool(size=2, pre_create_num=0, connect_timeout=0.3)
    proxy.deaf, proxy.refuse = fault == "deaf", fault == "refuse"
    proxy.delay = GENEROUS if fault == "late" else 0.0
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(OperationalError) as raised:
            pool.get_connection()
        assert not isinstance(raised.value, GetConnectionFromPoolError)
    assert time.monotonic() - started < GENEROUS
    assert pool.size() == 2
    heal(proxy)
    borrow_all(pool)


def test_timeout_covers_the_line_only(make_remote_pool: MakePool, proxy: Proxy) -> None:
    """`timeout` limits only the wait for a place: with 0, a free place is lent even if opening takes time."""
    pool = make_remote_pool(size=1, pre_create_num=0)
    proxy.delay = 0.02
    pool.get_connection(timeout=0).close()


def test_connect_timeout_ends_with_the_handshake(make_remote_pool: MakePool, proxy: Proxy) -> None:
    """`connect_timeout` does not limit queries: they may take longer."""
    pool = make_remote_pool(size=1, connect_timeout=0.3)
    with pool.get_connection() as cur:
        cur.execute("select sleep(0.5)")
        assert cur.fetchall() == ((0,),)


FAULTS = ["deaf", "late", "cut", "reset", "garbage"]


def strike(proxy: Proxy, fault: str) -> None:
    """Make all connections fail in this way."""
    if fault == "deaf":
        proxy.deaf = True
    elif fault == "late":
        proxy.delay = 2.0
    elif fault == "garbage":
        proxy.garbage(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    else:
        getattr(proxy, fault)()


@pytest.mark.parametrize("fault", FAULTS)
def test_read_timeout_covers_each_answer(
    make_remote_pool: MakePool, admin: Admin, database: str, proxy: Proxy, fault: str
) -> None:
    """A query on a broken network fails within `read_timeout`, and its session is not lent again."""
    pool = make_remote_pool(size=2, read_timeout=0.3)
    connection = pool.get_connection()
    before = session_of(connection)
    strike(proxy, fault)
    started = time.monotonic()
    with pytest.raises(pymysql.Error), connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()
    assert time.monotonic() - started < GENEROUS
    heal(proxy)
    use_20_times(pool)
    assert before not in borrow_all(pool)
    assert (pool.size(), pool.total_num) == (2, 2)


@pytest.mark.parametrize("read_timeout", [0.3, None])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_return_on_a_broken_network(
    make_remote_pool: MakePool, proxy: Proxy, fault: str, read_timeout: float | None
) -> None:
    """A return that sends a reset neither fails nor hangs if the network is broken, and no place is lost."""
    pool = make_remote_pool(size=1, read_timeout=read_timeout)
    connection = pool.get_connection()
    with connection.cursor() as cursor:
        cursor.execute("set @left = 1")
    strike(proxy, fault)
    with one_thread() as thread:
        try:
            thread.submit(connection.close).result(GENEROUS)
        finally:
            heal(proxy)
            if fault == "deaf":
                proxy.cut()  # the replies that it has dropped never come
    use_20_times(pool)
    with pool.get_connection() as cur:
        cur.execute("select @left")
        assert cur.fetchall() == ((None,),)


@pytest.mark.parametrize("fault", ["deaf", "late"])
def test_a_borrow_after_a_return_on_a_deaf_network(make_remote_pool: MakePool, proxy: Proxy, fault: str) -> None:
    """If the reply to a reset never comes, the next borrower and its first command keep to their timeouts."""
    pool = make_remote_pool(size=1, read_timeout=0.3, connect_timeout=0.3)
    connection = pool.get_connection()
    with connection.cursor() as cursor:
        cursor.execute("set @left = 1")
    strike(proxy, fault)
    started = time.monotonic()
    connection.close()
    with pytest.raises(OperationalError), pool.get_connection() as cur:
        cur.execute("select 1")
    assert time.monotonic() - started < GENEROUS
    assert pool.size() == 1


def test_an_idle_connection_on_a_deaf_network(make_remote_pool: MakePool, proxy: Proxy) -> None:
    """An idle session survives a network that drops data for a while if nothing is sent in that time."""
    pool = make_remote_pool(size=1, autocommit=True)
    before = borrow_all(pool)
    proxy.deaf = True
    pool.get_connection().close()
    heal(proxy)
    assert borrow_all(pool) == before


def test_a_slow_network(make_remote_pool: MakePool, proxy: Proxy) -> None:
    """Replies that are delayed, but come in time, are the right ones."""
    proxy.delay = 0.01
    pool = make_remote_pool(size=2, read_timeout=GENEROUS)
    with ThreadPoolExecutor(4) as threads:

        def ask(number: int) -> int:
            with pool.get_connection(timeout=None) as cur:
                cur.execute("set @mine = %s", (number,))
                cur.execute("select @mine")
                answer: int = cur.fetchone()[0]
                return answer

        assert list(threads.map(ask, range(12))) == list(range(12))


def test_who_hangs_holds_up_nobody(make_remote_pool: MakePool, proxy: Proxy) -> None:
    """While one borrower opens a connection on a hanging network, others borrow open ones, and timeouts are kept."""
    pool = make_remote_pool(size=2, pre_create_num=1)
    connection = pool.get_connection()
    proxy.deaf = True
    with one_thread() as thread:
        opening = thread.submit(pool.get_connection)
        eventually(lambda: proxy.connections == 2)
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(timeout=0.1, retry_num=1)
        connection.close()
        pool.get_connection(timeout=0).close()
        proxy.cut()
        with pytest.raises(OperationalError):
            opening.result()
    heal(proxy)
    borrow_all(pool)


# 3. Outage


def test_outage(running: Server, pinging: type[Pinging]) -> None:
    """While the server is away each borrower gets 2003 at once; when it is back, the first borrow works."""
    with ConnectionPool(3, "pool1", connection_class=pinging, **running.connect_kwargs) as pool:
        lent = pool.get_connection()
        running.stop()
        for _ in range(10):
            with pytest.raises(OperationalError) as raised:
                pool.get_connection(timeout=None)
            assert raised.value.args[0] == 2003
            assert not isinstance(raised.value, GetConnectionFromPoolError)
        assert pool.size() == 2
        lent.close()
        assert pool.size() == 3
        pinging.openings = 0
        running.start()
        use_20_times(pool)
        assert pinging.openings == 3


# The errors that a server sends when it ends, and that PyMySQL raises when it has ended.
AWAY = {1053, 1927, 4031, 2003, 2006, 2013}


def test_threads_through_an_outage(running: Server, pinging: type[Pinging]) -> None:
    """Threads that keep trying all succeed after an outage, with no more than `maxsize` connections opened."""
    pinging.openings = 0
    server_is_back = threading.Event()
    worked, failed = threading.Semaphore(0), threading.Semaphore(0)

    def go_on() -> int:
        while True:
            is_back = server_is_back.is_set()
            try:
                with pool.get_connection(timeout=None) as cur:
                    cur.execute("select 1")
            except OperationalError as error:
                failed.release()
                if is_back:
                    raise
                assert error.args[0] in AWAY  # noqa: PT017  it may or may not be raised
            else:
                worked.release()
                if is_back:
                    return 1

    with ConnectionPool(2, "pool1", connection_class=pinging, **running.connect_kwargs) as pool:
        with ThreadPoolExecutor(8) as threads:
            results = [threads.submit(go_on) for _ in range(8)]
            try:
                for _ in range(16):
                    assert worked.acquire(timeout=GENEROUS)
                running.stop()
                for _ in range(16):
                    assert failed.acquire(timeout=GENEROUS)
                pinging.openings = 0
            finally:
                if running.pid is None:
                    running.start()
                server_is_back.set()
            assert sum(result.result(timeout=30) for result in results) == 8
        assert pinging.openings <= 2
        borrow_all(pool)


def test_waiters_learn_the_last_connection_error(make_remote_pool: MakePool, proxy: Proxy) -> None:
    """The error of a timed-out wait has the last connection error as its cause until a connection is opened again."""
    pool = make_remote_pool(size=2, pre_create_num=1)
    connection = pool.get_connection()
    proxy.refuse = True
    with pytest.raises(OperationalError) as refused:
        pool.get_connection()
    proxy.refuse = False
    proxy.deaf = True
    with one_thread() as thread:
        opening = thread.submit(pool.get_connection)
        eventually(lambda: proxy.connections == 2)
        with pytest.raises(GetConnectionFromPoolError) as raised:
            pool.get_connection(timeout=0)
        cause = raised.value.__cause__
        assert isinstance(cause, OperationalError)
        assert cause.args == refused.value.args
        proxy.cut()
        with pytest.raises(OperationalError):
            opening.result()
    heal(proxy)
    with pool.connection(), pytest.raises(GetConnectionFromPoolError) as raised:
        pool.get_connection(timeout=0)
    assert raised.value.__cause__ is None
    connection.close()
    borrow_all(pool)


READ_ONLY = [1290, 1792, 1836]
SESSION_GONE = [1053, 1927, 4031, 1152, 1156, 1161]
HARMLESS = [1062, 1064, 1205, 1213, 1146, 1644]


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("code", [*READ_ONLY, *SESSION_GONE, *HARMLESS])
def test_error_codes(make_pool: MakePool, code: int, block: bool) -> None:
    """A session is closed after an error that means that it is gone or its server read-only, and after no other."""
    pool = make_pool(size=1)
    [before] = borrow_all(pool)
    fail = f"signal sqlstate '45000' set mysql_errno = {code}, message_text = 'as if'"
    if block:
        with pytest.raises(pymysql.Error), pool.get_connection() as cur:
            cur.execute(fail)
    else:
        connection = pool.get_connection()
        with pytest.raises(pymysql.Error), connection.cursor() as cursor:
            cursor.execute(fail)
        connection.close()
    assert (borrow_all(pool) == {before}) == (code in HARMLESS)


def test_a_server_that_turned_read_only(running: Server) -> None:
    """After a failover no session stays on the server that has become read-only."""
    with pymysql.connect(**running.connect_kwargs, autocommit=True) as admin, admin.cursor() as cursor:
        cursor.execute("create database failover")
        cursor.execute("create user failover@'127.0.0.1' identified by 'failover'")
        cursor.execute("grant all on failover.* to failover@'127.0.0.1'")
        cursor.execute("create table failover.numbers (number int)")
        options = {**running.connect_kwargs, "user": "failover", "password": "failover", "autocommit": True}
        with ConnectionPool(2, "pool1", **options) as pool:
            before = borrow_all(pool)
            cursor.execute("set global read_only = 1")
            for _ in range(2):
                with pytest.raises(pymysql.Error) as raised, pool.get_connection() as cur:
                    cur.execute("insert into failover.numbers values (1)")
                assert raised.value.args[0] == 1290
            cursor.execute("set global read_only = 0")
            assert not borrow_all(pool) & before
            pool.get_connection().execute_query("insert into failover.numbers values (1)")

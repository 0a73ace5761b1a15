"""Many pools in front of one server that allows fewer sessions than they may have together."""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import eventually, one_thread
from pymysql.err import OperationalError
from server import running_server

from pymysqlpool import ConnectionPool, GetConnectionFromPoolError, is_retryable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin
    from server import Server

PROCESSES, THREADS, LIMIT = 8, 16, 40
TURNS = 30


@pytest.fixture(scope="module")
def small_server() -> Iterator[Server]:
    """A server for these tests alone, whose limits they may set."""
    with running_server() as found:
        if not found.supports_faults:
            pytest.skip("this server is not ours")
        yield found


@pytest.fixture
def boss(small_server: Server) -> Iterator[Admin]:
    """Its administrator, who can connect even if it is full. Creates `fleet`, the pools' user."""
    connect_kwargs: Any = small_server.connect_kwargs
    connection = pymysql.connect(**connect_kwargs, autocommit=True, ssl_disabled=True)
    with connection, connection.cursor() as cursor:
        cursor.execute("create or replace user fleet@'%'")
        yield connection
        cursor.execute("set global max_connections = 2000")
        cursor.execute("drop user fleet@'%'")


def work(port: int, barrier: Any, results: Any) -> None:
    """One process of the fleet: its threads borrow repeatedly; it reports errors, borrows and the longest wait."""
    pool = ConnectionPool(
        2, maxsize=8, idle_timeout=0.2, host="127.0.0.1", port=port, user="fleet", autocommit=True, ssl_disabled=True
    )

    def serve(_: int) -> str:
        try:
            with pool.connection(timeout=5, retry_num=0) as connection:
                connection.execute_query("select sleep(0.005)")
        except pymysql.Error as error:
            return repr(error)
        return "turns"

    barrier.wait()
    with ThreadPoolExecutor(THREADS) as threads:
        results.put(dict(Counter(threads.map(serve, range(THREADS * TURNS)))))
    pool.close()


@pytest.mark.skipif(sys.platform == "win32", reason="the processes are spawned with what they import")
def test_a_fleet_shares_a_server_that_is_full(small_server: Server, boss: Admin) -> None:
    """If the pools may have more sessions together than the server allows, all are served without an error."""
    with boss.cursor() as cursor:
        cursor.execute(f"set global max_connections = {LIMIT}")
        refused = refusals(cursor)
        context = get_context("spawn")
        barrier, results = context.Barrier(PROCESSES), context.Queue()
        processes = [context.Process(target=work, args=(small_server.port, barrier, results)) for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        found = [results.get(timeout=50) for _ in processes]
        for process in processes:
            process.join()
        assert found == [{"turns": THREADS * TURNS}] * PROCESSES
        assert refusals(cursor) > refused, "the server was never full"


def refusals(cursor: Any) -> int:
    """The number of sessions that the server has refused because it was full."""
    cursor.execute("show global status like 'Connection_errors_max_connections'")
    return int(cursor.fetchone()[1])


def make_pool(server: Server, **kwargs: Any) -> ConnectionPool:
    return ConnectionPool(
        host=server.host,
        port=server.port,
        user="fleet",
        autocommit=True,
        ssl_disabled=True,
        **{"pre_create_num": 0, **kwargs},
    )


@pytest.fixture
def full(small_server: Server, boss: Admin) -> Iterator[Any]:
    """A connection that uses the only session that the pools' user may have."""
    with boss.cursor() as cursor:
        cursor.execute("alter user fleet@'%' with max_user_connections 1")
    taken = pymysql.connect(host=small_server.host, port=small_server.port, user="fleet", ssl_disabled=True)
    yield taken
    if taken.open:
        taken.close()


@pytest.mark.timeout(40)
def test_who_waits_for_a_full_server_gets_its_refusal_in_the_end(small_server: Server, full: Any) -> None:
    """When the wait times out, the pool's error has the server's refusal as its cause."""
    with make_pool(small_server, size=2) as pool:
        started = time.monotonic()
        with pytest.raises(GetConnectionFromPoolError) as raised:
            pool.get_connection(timeout=0.3, retry_num=0)
        assert time.monotonic() - started >= 0.3
        assert isinstance(raised.value.__cause__, OperationalError)
        assert raised.value.__cause__.args[0] in {1203, 1226}
        assert is_retryable(raised.value)
        assert is_retryable(raised.value.__cause__)
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(timeout=0)
        assert pool.size() == 2


def test_who_waits_for_a_full_server_takes_what_it_gives_again(small_server: Server, full: Any) -> None:
    """A borrower waits, and gets its connection when the server accepts sessions again."""
    with make_pool(small_server, size=2) as pool, one_thread() as thread:
        waiting = thread.submit(pool.get_connection, timeout=20)
        eventually(lambda: pool._pool._pause > 0)
        full.close()
        waiting.result(20).close()
        assert pool._pool._pause == 0


def test_who_waits_for_a_full_server_takes_what_is_returned(small_server: Server, boss: Admin) -> None:
    """A connection that is returned in the meantime goes to the waiting thread at once."""
    with boss.cursor() as cursor:
        cursor.execute("alter user fleet@'%' with max_user_connections 1")
    with make_pool(small_server, size=2) as pool, one_thread() as thread:
        held = pool.get_connection()
        session = held.server_thread_id[0]
        waiting = thread.submit(pool.get_connection, timeout=20)
        eventually(lambda: pool._pool._pause > 0 and pool._pool.waiting() == 1)
        held.close()
        taken = waiting.result(20)
        assert taken.server_thread_id[0] == session
        taken.close()


def test_a_full_server_is_asked_seldom(small_server: Server, full: Any, boss: Admin) -> None:
    """However many threads wait, a pool tries to open one connection at a time, at growing intervals."""
    with boss.cursor() as cursor, make_pool(small_server, size=8) as pool:
        before = opened(cursor)
        with ThreadPoolExecutor(16) as threads:
            refused = list(threads.map(lambda _: refuses(pool), range(16)))
        assert all(refused)
        assert opened(cursor) - before < 40


def refuses(pool: ConnectionPool) -> bool:
    with pytest.raises(GetConnectionFromPoolError):
        pool.get_connection(timeout=1, retry_num=0)
    return True


def opened(cursor: Any) -> int:
    cursor.execute("show global status like 'Connections'")
    return int(cursor.fetchone()[1])


def test_the_constructor_does_not_wait_for_a_full_server(small_server: Server, boss: Admin) -> None:
    """It raises the server's error at once and keeps no session; with pre_create_num=0 the pool can be made."""
    with boss.cursor() as cursor:
        eventually(lambda: count_of_fleet(cursor) == 0)
        cursor.execute("set global max_connections = 10")
        first = make_pool(small_server, size=8, pre_create_num=8)
        with pytest.raises(OperationalError) as raised:
            make_pool(small_server, size=8, pre_create_num=8)
        assert raised.value.args[0] == 1040
        eventually(lambda: count_of_fleet(cursor) == 8)
        with make_pool(small_server, size=8) as late, one_thread() as thread:
            held = late.get_connection(timeout=20)
            waiting = thread.submit(late.get_connection, timeout=20)
            eventually(lambda: late._pool._pause > 0)
            first.close()
            waiting.result(20).close()
            held.close()


def count_of_fleet(cursor: Any) -> int:
    """The number of sessions of the pools' user."""
    cursor.execute("select count(*) from information_schema.processlist where user = 'fleet'")
    return int(cursor.fetchone()[0])


def test_an_hourly_quota_is_an_error_at_once(small_server: Server, boss: Admin) -> None:
    """A user who has used up the connections of this hour gets the server's error at once."""
    with boss.cursor() as cursor:
        cursor.execute("alter user fleet@'%' with max_connections_per_hour 1")
        cursor.execute("flush user_resources")
        with make_pool(small_server, size=2) as pool:
            pool.get_connection()
            with pytest.raises(OperationalError, match="max_connections_per_hour") as raised:
                pool.get_connection(timeout=None)
            assert not is_retryable(raised.value)
        cursor.execute("flush user_resources")

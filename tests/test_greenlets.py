"""Many threads and greenlets on few connections. Run as a program under gevent's patches, this file runs greenlets."""

from __future__ import annotations

import gc
import importlib.util
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import borrow_all, eventually, program_arguments, run_as_program, sessions

from pymysqlpool import ConnectionPool, GetConnectionFromPoolError

if TYPE_CHECKING:
    from helpers import MakePool
    from server import Server


pytestmark = pytest.mark.usefixtures("switch_often")


def say(connection: Any, number: int) -> int:
    """Let the server return `number` after a moment."""
    with connection.cursor() as cursor:
        cursor.execute("select %s, sleep(%s)", (number, random.random() / 100))  # noqa: S311  no secret
        answer: int = cursor.fetchone()[0]
        return answer


def test_many_threads(make_pool: MakePool) -> None:
    """40 threads on 5 connections each get their own rows, never a session in use, and all places come back."""
    pool = make_pool(size=2, maxsize=5)
    in_use: set[int] = set()
    shared = threading.Event()

    def work(number: int) -> None:
        for turn in range(10):
            with pool.connection(timeout=None) as connection:
                session = connection.server_thread_id[0]
                if session in in_use:
                    shared.set()
                in_use.add(session)
                assert say(connection, number * 100 + turn) == number * 100 + turn
                in_use.remove(session)

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(work, range(40)))
    assert not shared.is_set()
    assert pool.size() == 5
    borrow_all(pool)


def test_time_outs_amid_returns(make_pool: MakePool) -> None:
    """A thread that times out gets the pool's error, even if the holders return while they are being listed."""
    pool = make_pool(size=2)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            pool.get_connection(timeout=None).close()

    with ThreadPoolExecutor(2) as threads:
        workers = [threads.submit(work) for _ in range(2)]
        try:
            misses = 0
            while misses < 2000:
                try:
                    pool.get_connection(timeout=0).close()
                except GetConnectionFromPoolError as error:
                    misses += 1
                    assert all(holder["line"] for holder in error.holders)  # noqa: PT017  that it is raised is no news
        finally:
            over.set()
        for worker in workers:
            worker.result()
    assert pool.size() == 2


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_200_greenlets(server: Server, database: str) -> None:
    """200 greenlets on 5 connections each get their own rows, and all places come back."""
    options = {"database": database, **server.connect_kwargs}
    status, printed, errors = run_as_program(__file__, options, database, patched=True)
    assert (status, printed) == (0, "all answers right, all places back\n"), errors


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_greenlets_are_told_apart_even_if_gevent_patches_late(server: Server) -> None:
    """`holders` names the greenlet that borrowed, even if the package was imported before the patches."""
    status, printed, errors = run_as_program(__file__, server.connect_kwargs)
    assert (status, printed) == (0, "first second\n"), errors


def patch_late(connect_kwargs: dict[str, Any]) -> None:
    """Let two greenlets hold connections, and print the holders."""
    import gevent.monkey  # noqa: PLC0415  it need not be installed for the other tests

    gevent.monkey.patch_all()
    pool = ConnectionPool(2, **connect_kwargs)
    held = []

    def borrow(name: str) -> None:
        threading.current_thread().name = name
        held.append(pool.get_connection())
        gevent.sleep(60)

    greenlets = [gevent.spawn(borrow, name) for name in ("first", "second")]
    while len(held) < len(greenlets):
        gevent.sleep(0)
    try:
        pool.get_connection(timeout=0)
    except GetConnectionFromPoolError as error:
        print(*[holder["thread"] for holder in error.holders])
    gevent.killall(greenlets)
    for connection in held:
        connection.close()
    pool.close()


def main(connect_kwargs: dict[str, Any], database: str) -> None:
    """Let greenlets compete for a pool, interrupted by timeouts at any point."""
    import gevent  # noqa: PLC0415  it need not be installed for the other tests

    warnings.simplefilter("ignore", ResourceWarning)
    pool = ConnectionPool(2, "pool1", maxsize=5, **connect_kwargs)
    outcomes = {"answered": 0, "timed out": 0, "exhausted": 0}

    def work(number: int) -> None:
        for turn in range(5):
            mine = number * 100 + turn
            patience = random.choice([0.01, 0.05, 0.2, 60])  # noqa: S311  no secret
            timeout = random.choice([None, 0, 0.1])  # noqa: S311
            try:
                with gevent.Timeout(patience), pool.connection(timeout=timeout) as connection:
                    answer = say(connection, mine)
                    assert answer == mine, (answer, mine)
                    outcomes["answered"] += 1
            except gevent.Timeout:
                outcomes["timed out"] += 1
            except GetConnectionFromPoolError:
                outcomes["exhausted"] += 1

    gevent.joinall([gevent.spawn(work, number) for number in range(200)], raise_error=True)
    assert all(outcomes.values()), outcomes
    gc.collect()
    assert pool.size() == 5
    borrow_all(pool)
    with pymysql.connect(**{**connect_kwargs, "database": None}) as admin:
        eventually(lambda: len(sessions(admin, database)) == 5)
    print("all answers right, all places back")


if __name__ == "__main__":
    arguments = program_arguments()
    (main if len(arguments) > 1 else patch_late)(*arguments)

"""Queued + borrowed places = maxsize, at every moment, whatever borrowers do and wherever they are interrupted."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import borrow_all, raise_if
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymysqlpool import ConnectionPool, GetConnectionFromPoolError

if TYPE_CHECKING:
    from server import Server

THREADS = 3
MAXSIZE = 3

# How a block may end.
ERRORS = [None, ValueError, pymysql.err.ProgrammingError, pymysql.err.InterfaceError, KeyboardInterrupt]

get = st.tuples(st.just("get"))
steps = st.one_of(
    get,
    get,
    st.tuples(st.sampled_from(["put", "put twice", "close", "leak", "query"]), st.integers(0, MAXSIZE - 1)),
    st.tuples(st.just("block"), st.integers(0, MAXSIZE - 1), st.sampled_from(ERRORS)),
    st.tuples(st.just("new block"), st.sampled_from(ERRORS)),
)


class Borrower:
    """The actions of one thread; `held` are the connections that it has to return."""

    def __init__(self, pool: ConnectionPool, *, timeout: float) -> None:
        self.pool = pool
        self.timeout = timeout
        self.held: list[Any] = []

    def do(self, step: tuple[Any, ...]) -> None:
        """Do one step, if it makes sense."""
        what, *args = step
        if what in ("get", "new block"):
            try:
                self.held.append(self.pool.get_connection(timeout=self.timeout, retry_num=0))
            except GetConnectionFromPoolError:
                return
            if what == "new block":
                self.block(self.held.pop(), *args)
        elif self.held:
            connection = self.held[args[0] % len(self.held)]
            if what == "query":
                with connection.cursor() as cursor:
                    cursor.execute("select 1")
                return
            self.held.remove(connection)
            if what == "block":
                self.block(connection, args[1])
            elif what == "close":
                connection.close()
            elif what.startswith("put"):
                self.pool.put_connection(connection)
                if what == "put twice":
                    self.pool.put_connection(connection)

    def block(self, connection: Any, error: type[BaseException] | None) -> None:
        """Work in a block, and end it by `error`."""
        try:
            with connection as cursor:
                assert cursor.db_query("select 1") == ((1,),)
                raise_if(error)
        except BaseException as caught:  # noqa: BLE001  a KeyboardInterrupt may be among them
            assert type(caught) is error  # noqa: PT017

    def end(self) -> None:
        """Return the held connections."""
        while self.held:
            self.held.pop().close()


def make(server: Server) -> ConnectionPool:
    return ConnectionPool(2, "pool1", maxsize=MAXSIZE, pre_create_num=0, **server.connect_kwargs)


# No file of examples; the server is the same for all of them, on purpose; and a slow machine is no failure.
hypothetical = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@hypothetical
@given(st.lists(st.tuples(st.integers(0, THREADS - 1), steps), max_size=25))
def test_the_invariant_holds_after_every_step(server: Server, sequence: list[tuple[int, tuple[Any, ...]]]) -> None:
    """After each step, in whichever thread, the queued and the borrowed places add up to `maxsize`."""
    threads = [ThreadPoolExecutor(1) for _ in range(THREADS)]
    with make(server) as pool:
        borrowers = [Borrower(pool, timeout=0) for _ in range(THREADS)]
        for number, step in sequence:
            threads[number].submit(borrowers[number].do, step).result()
            held = sum(len(borrower.held) for borrower in borrowers)
            assert pool.size() + held == MAXSIZE
            assert pool._pool.qsize() == pool.size()
            assert f" {held} borrowed, 0 waiting, maxsize {MAXSIZE}>" in repr(pool)
            assert pool.available_num <= pool.size()
            assert pool.total_num - pool.available_num == held
        for number, borrower in enumerate(borrowers):
            threads[number].submit(borrower.end).result()
        assert pool.size() == MAXSIZE
        borrow_all(pool)
    for thread in threads:
        thread.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@hypothetical
@given(st.lists(st.lists(steps, max_size=15), min_size=THREADS, max_size=THREADS))
def test_all_places_come_back(server: Server, sequences: list[list[tuple[Any, ...]]]) -> None:
    """After threads have done random steps at the same time, all places are back, and each of them works."""
    together = threading.Barrier(THREADS)

    def work(pool: ConnectionPool, sequence: list[tuple[Any, ...]]) -> None:
        borrower = Borrower(pool, timeout=0.001)
        together.wait(30)
        for step in sequence:
            borrower.do(step)
            assert 0 <= pool._pool.qsize() <= MAXSIZE
        borrower.end()

    with make(server) as pool, ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(work, pool, sequence) for sequence in sequences]:
            done.result()
        gc.collect()
        assert pool.size() == MAXSIZE
        assert " 0 borrowed, 0 waiting" in repr(pool)
        borrow_all(pool)
        with pytest.raises(ZeroDivisionError), pool.connection():
            1 / 0  # noqa: B018

"""Signal handlers, finalizers and weak references' callbacks may use the pool, at whatever point they run."""

from __future__ import annotations

import faulthandler
import gc
import signal
import sys
import threading
import time
import warnings
import weakref
from collections import Counter, deque
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any, Callable

import pytest
from helpers import borrow_all, program_arguments, run_as_program

import pymysqlpool
from pymysqlpool import ConnectionPool, GetConnectionFromPoolError, PoolClosedError

if TYPE_CHECKING:
    from server import Server

SECONDS = 3.0
EVERY = 0.0007


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [0, 4])
def test_whatever_strikes_ends(server: Server, database: str, threads: int) -> None:
    """Borrow, return, close, drain and repr end even if they interrupt each other; no place is lost or added."""
    status, out, err = run_as_program(__file__, {**server.connect_kwargs, "database": database}, threads)
    assert (status, err) == (0, ""), out + err
    assert out.startswith("whole: ")


class _Struck:
    """A pool that is used by several threads, and by handlers and finalizers that interrupt them."""

    def __init__(self, connect_kwargs: dict[str, Any]) -> None:
        self.connect_kwargs = connect_kwargs
        self.pool = ConnectionPool(2, "struck", maxsize=4, leak_warning=3600, ssl_disabled=True, **connect_kwargs)
        self.errors: list[str] = []
        self.counts: Counter[str] = Counter()
        self.in_use: dict[int, object] = {}
        #: Connections that the next user is to return.
        self.borrowed: list[Any] = []
        self.others: list[ConnectionPool] = []
        self.callbacks: deque[weakref.ref[Cycle]] = deque(maxlen=50)
        #: How many actions each thread is in, nested in each other.
        self.depth: Counter[int] = Counter()
        self.over = False
        deeds: list[Callable[[], object]] = [
            self.use,
            self.block,
            self.end_a_generator_early,
            self.borrow_for_others,
            self.return_what_others_have,
            self.look,
            self.write,
            self.drain,
            self.return_what_others_have,
            self.close_another_pool,
        ]
        self.strikes = cycle(deeds)
        self.deeds = [*deeds, self.leave_to_a_finalizer, self.leave_to_a_callback, self.lose, self.open_another_pool]

    # Actions

    def use(self) -> None:
        connection = self.pool.get_connection(timeout=0.01, retry_num=0)
        try:
            self.alone(connection)
        finally:
            connection.close()

    def alone(self, connection: Any) -> None:
        """Check that nobody else has the session of this connection."""
        cursor = connection.cursor()
        cursor.execute("select connection_id()")
        [session] = cursor.fetchone()
        me = object()
        if self.in_use.setdefault(session, me) is not me:
            self.errors.append(f"session {session} is lent twice")
        del self.in_use[session]

    def block(self) -> None:
        with self.pool.connection(timeout=0.01, retry_num=0) as connection:
            self.alone(connection)

    def end_a_generator_early(self) -> None:
        def numbers() -> Any:
            with self.pool.get_connection(timeout=0.01, retry_num=0) as cursor:
                self.alone(cursor.connection)
                yield 1
                yield 2

        for _ in numbers():
            break

    def write(self) -> None:
        with self.pool.get_connection(timeout=0.01, retry_num=0) as cursor:
            cursor.execute("set @left = 1")

    def borrow_for_others(self) -> None:
        self.borrowed.append(self.pool.get_connection(timeout=0, retry_num=0))

    def return_what_others_have(self) -> None:
        for _ in range(len(self.borrowed)):
            try:
                connection = self.borrowed.pop()
            except IndexError:
                return
            connection.close()

    def look(self) -> None:
        text = repr(self.pool)
        if not 0 <= self.pool.size() <= 4 or not 0 <= self.pool.available_num <= 4 or self.pool.total_num > 4:
            self.errors.append(text)

    def drain(self) -> None:
        if self.counts["drain"] * 50 < sum(self.counts.values()):
            self.pool.drain()

    def open_another_pool(self) -> None:
        if len(self.others) < 2:
            self.others.append(ConnectionPool(1, "other", **self.connect_kwargs, ssl_disabled=True))
        for other in self.others[-1:]:
            other.get_connection(timeout=0.01, retry_num=0).close()

    def close_another_pool(self) -> None:
        with suppress(IndexError):
            self.others.pop().close()

    # Garbage

    def leave_to_a_finalizer(self) -> None:
        Finalized(self, next(self.strikes), self.pool.get_connection(timeout=0.01, retry_num=0))

    def leave_to_a_callback(self) -> None:
        strike = next(self.strikes)
        cycle = Cycle()
        self.callbacks.append(weakref.ref(cycle, lambda _: self.do(strike, "by a callback")))

    def lose(self) -> None:
        cycle = Cycle()
        cycle.connection = self.pool.get_connection(timeout=0.01, retry_num=0)

    # Running

    def do(self, deed: Callable[[], object], where: str) -> None:
        me = threading.get_ident()
        if self.depth[me] > 3:
            return
        self.depth[me] += 1
        try:
            deed()
            self.counts[deed.__name__] += 1
            self.counts[where] += 1
        except (GetConnectionFromPoolError, PoolClosedError):
            self.counts["in vain"] += 1
        except BaseException as error:  # noqa: BLE001
            self.errors.append(f"{deed.__name__} {where}: {error!r}")
        finally:
            self.depth[me] -= 1

    def on_signal(self, *_: object) -> None:
        if self.depth[threading.get_ident()] <= 1:
            signal.setitimer(signal.ITIMER_REAL, EVERY)  # it may interrupt this one
        self.do(next(self.strikes), "by a signal")
        if not self.over:
            signal.setitimer(signal.ITIMER_REAL, EVERY)

    def work(self) -> None:
        ends_at = time.monotonic() + SECONDS
        for deed in cycle(self.deeds):
            self.do(deed, "by a thread")
            if deed == self.lose:
                gc.collect()  # without a GIL the collector ignores such a low threshold
            now = time.monotonic()
            if now > ends_at and (self.is_enough() or now > ends_at + 20):
                return

    def is_enough(self) -> bool:
        return min(self.counts[f"by a {culprit}"] for culprit in ("thread", "signal", "finalizer", "callback")) > 50


class Cycle:
    """A reference cycle, which only the collector frees."""

    connection: Any = None

    def __init__(self) -> None:
        self.myself = self


class Finalized(Cycle):
    """An object whose finalizer returns a connection and does one more action."""

    def __init__(self, struck: _Struck, deed: Callable[[], object], connection: Any) -> None:
        super().__init__()
        self.struck, self.deed, self.connection = struck, deed, connection

    def __del__(self) -> None:
        self.connection.close()
        self.struck.do(self.deed, "by a finalizer")


def main(connect_kwargs: dict[str, Any], threads: int) -> None:
    """Run everything for some seconds, and check that no place is lost or added."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(SECONDS + 30, exit=True)
    warnings.simplefilter("ignore")
    pymysqlpool.logger.setLevel("ERROR")
    sys.setswitchinterval(1e-5)
    struck = _Struck(connect_kwargs)
    sys.unraisablehook = lambda what: struck.errors.append(f"{what.object!r}: {what.exc_value!r}")
    workers = [threading.Thread(target=struck.work) for _ in range(threads)]
    gc.collect()
    gc.freeze()
    gc.set_threshold(10)
    signal.signal(signal.SIGALRM, struck.on_signal)
    signal.setitimer(signal.ITIMER_REAL, EVERY)
    for worker in workers:
        worker.start()
    struck.work()
    struck.over = True
    signal.setitimer(signal.ITIMER_REAL, 0)
    for worker in workers:
        worker.join()
    gc.set_threshold(700)
    gc.collect()
    struck.return_what_others_have()
    for other in struck.others:
        other.close()
    gc.collect()
    struck.look()
    if struck.pool.size() != 4:
        struck.errors.append(f"{struck.pool!r}, {struck.pool.size()} places are back")
    else:
        borrow_all(struck.pool)
    if not struck.is_enough():
        struck.errors.append("too little has been done")
    print("whole:" if not struck.errors else struck.errors[:10], dict(struck.counts))
    if (out := struck.pool.close(timeout=5)) or struck.errors:
        sys.exit(f"{out} are out, {len(struck.errors)} errors")


if __name__ == "__main__":
    main(*program_arguments())

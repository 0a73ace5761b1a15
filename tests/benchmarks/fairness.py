"""More threads than connections: the waits, starving threads, and the cost."""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

from common import Figure, Measure, Setting
from peers import LifoQueue, select

if TYPE_CHECKING:
    from peers import Pool

HOLD = 0.002


class Round:
    """What `threads` threads did in a round of some seconds, each calling `turn` again and again.

    `turn` returns how long it has waited. A turn that ends after the round, as those of the starved do, counts for the
    waits alone.
    """

    def __init__(self, turn: Callable[[], float], threads: int, length: float) -> None:
        self._turn = turn
        self._start = threading.Barrier(threads, action=self._begin)
        self._length = length
        self._ends_at = 0.0
        self._waits: list[list[float]] = []
        self._turns: list[int] = []
        workers = [threading.Thread(target=self._work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(self._turns) == threads, "a thread has failed"
        waits = sorted(wait for waits in self._waits for wait in waits)
        self.p99 = waits[int(len(waits) * 0.99)]
        self.longest = waits[-1]
        self.share = min(self._turns) / max(self._turns)
        self.rate = sum(self._turns) / length

    def _begin(self) -> None:
        self._ends_at = time.perf_counter() + self._length

    def _work(self) -> None:
        waits = []
        turns = 0
        self._start.wait()
        while time.perf_counter() < self._ends_at:
            waits.append(self._turn())
            turns += time.perf_counter() < self._ends_at
        self._waits.append(waits)
        self._turns.append(turns)


def turn_of(wait: Callable[[], Any], use: Callable[[Any], Any], give_back: Callable[[Any], Any]) -> Callable[[], float]:
    """{borrow, use, return}, as a function that returns how long the borrow took."""

    def turn() -> float:
        begin = time.perf_counter()
        connection = wait()
        waited = time.perf_counter() - begin
        use(connection)
        give_back(connection)
        return waited

    return turn


def hold(connection: object = None) -> float:
    """Use a connection for a while, or none."""
    time.sleep(HOLD)
    return 0.0


def median(rounds: list[Round], name: str) -> float:
    values: list[float] = [getattr(each, name) for each in rounds]
    return statistics.median(values)


def against_threads_without_a_line(
    peer: type[Pool], setting: Setting, threads: int, size: int
) -> tuple[list[Round], float]:
    """The rounds of a pool, and its rate beside that of as many threads as it has connections, each with its own."""
    pool = peer(size, **setting.near)
    turn = turn_of(pool.wait, hold, pool.give_back)
    length = 1.0 if setting.quick else 3.0
    rounds, rates = [], []
    for _ in range(setting.rounds(7)):
        own = Round(hold, size, length / 2)
        rounds.append(Round(turn, threads, length))
        rates.append(rounds[-1].rate / own.rate)
    return rounds, statistics.median(rates)


def measure_16(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """16 threads on 4 connections, each held 2 ms."""
    rounds, rate = against_threads_without_a_line(peer, setting, 16, 4)
    ideal = (16 / 4 - 1) * HOLD
    return {
        "p99": median(rounds, "p99") / ideal,
        "longest": median(rounds, "longest") / ideal,
        "longest_ms": median(rounds, "longest") * 1000,
        "share": median(rounds, "share"),
        "rate": rate,
    }


def measure_many(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """64 threads on 8 connections and 1000 on 50, each held 2 ms."""
    return {
        f"{threads}_on_{size}": against_threads_without_a_line(peer, setting, threads, size)[1]
        for threads, size in ((64, 8), (1000, 50))
    }


def measure_rush(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """16 threads on 4 connections, SELECT 1 without a pause, beside a bare queue of raw connections."""
    pool, queue = peer(4, **setting.near), LifoQueue(4, **setting.near)
    turn = turn_of(pool.wait, peer.select, pool.give_back)
    bare = turn_of(queue.wait, select, queue.give_back)
    length = 0.7 if setting.quick else 2.0
    rounds, rates = [], []
    for _ in range(setting.rounds(14)):
        floor = Round(bare, 16, length)
        rounds.append(Round(turn, 16, length))
        rates.append(rounds[-1].rate / floor.rate)
    return {"rate": statistics.median(rates), "share": median(rounds, "share")}


FAIRNESS = Measure(
    measure_16,
    [
        Figure("p99", "16 threads on 4 connections, each held 2 ms: p99 of all waits, to the ideal 6 ms", at_most=1.25),
        Figure("longest", "the same: longest wait, to the ideal 6 ms", at_most=2),
        Figure("longest_ms", "the same: longest wait in ms; a thread that gets nothing waits for the whole round"),
        Figure("share", "the same: fewest turns of a thread, to the most", at_least=0.98),
        Figure("rate", "the same: throughput, to 4 threads with a connection each", at_least=0.97),
    ],
)
MANY = Measure(
    measure_many,
    [
        Figure("64_on_8", "64 threads on 8: throughput, to 8 threads with a connection each", at_least=0.97),
        Figure("1000_on_50", "1000 threads on 50: throughput, to 50 threads with a connection each"),
    ],
)
RUSH = Measure(
    measure_rush,
    [
        Figure(
            "rate", "16 threads on 4 connections, SELECT 1 without a pause: rate, to a bare LifoQueue's", at_least=0.9
        ),
        Figure("share", "the same: fewest turns of a thread, to the most", at_least=0.5),
    ],
)

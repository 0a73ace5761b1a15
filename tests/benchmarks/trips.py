"""How much of the rate is left on a network of 1 ms each way, where each wait for ROLLBACK, reset or ping shows."""

from __future__ import annotations

import statistics
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import pymysql
from common import Figure, Measure, Setting, ratio, seconds
from fairness import Round, turn_of
from peers import LifoQueue, Unsupported, insert, select, transfer

if TYPE_CHECKING:
    from peers import Pool

CYCLES = 5


def use_often(use: Callable[[Any], Any], raw: Any) -> None:
    for _ in range(CYCLES):
        use(raw)


def cycle_often(use: Callable[[Any], Any], pool: Pool) -> None:
    for _ in range(CYCLES):
        connection = pool.borrow()
        use(connection)
        pool.give_back(connection)


def measure(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """The rate of {borrow, SELECT, return} in parts of that of raw PyMySQL's SELECT."""
    figures = {}
    for key, autocommit in ("on", True), ("off", False):
        with suppress(Unsupported):
            connect_kwargs = {**setting.far, "autocommit": autocommit}
            pool = peer(1, **connect_kwargs)
            # On a session of its own: replies that the pool has yet to read may be on their way on that one.
            raw = pymysql.connect(**connect_kwargs)
            figures[key] = ratio(
                partial(seconds, use_often, select, raw),
                partial(seconds, cycle_often, pool.select, pool),
                setting.rounds(160),
            )
    return figures


def measure_insert(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """The rate of {borrow, INSERT, return} in parts of that of raw PyMySQL's INSERT."""
    figures = {}
    raw = pymysql.connect(**setting.far)
    for size in (4, 1):
        with suppress(Unsupported):
            pool = peer(size, **setting.far)
            for connection in [pool.borrow() for _ in range(size)]:  # each has been used, as in a pool that has run
                pool.insert(connection)
                pool.give_back(connection)
            figures[f"of_{size}"] = ratio(
                partial(seconds, use_often, insert, raw),
                partial(seconds, cycle_often, pool.insert, pool),
                setting.rounds(120),
            )
    with suppress(Unsupported):
        figures["threads"] = rate_of_threads(peer, setting, 4, lambda pool: pool.borrow, peer.insert, insert)
    return figures


def measure_transactions(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """The rate of transactions of 8 threads on 4 connections, in parts of that of 4 threads with one each."""
    return {"rate": rate_of_threads(peer, setting, 8, lambda pool: pool.wait, transfer, transfer)}


def rate_of_threads(  # noqa: PLR0917
    peer: type[Pool],
    setting: Setting,
    threads: int,
    borrow: Callable[[Pool], Callable[[], Any]],
    use: Callable[[Any], Any],
    use_raw: Callable[[Any], Any],
) -> float:
    """The rate of {borrow, use, return} of threads on a pool of 4, beside that of 4 threads with 4 raw connections."""
    pool = peer(4, **setting.far)
    turn = turn_of(borrow(pool), use, pool.give_back)
    raw = LifoQueue(4, **setting.far)
    own = turn_of(raw.wait, use_raw, raw.give_back)
    length = 0.5 if setting.quick else 1.0
    ratios = []
    for _ in range(setting.rounds(14)):
        floor = Round(own, 4, length)
        ratios.append(Round(turn, threads, length).rate / floor.rate)
    return statistics.median(ratios)


MEASURE = Measure(
    measure,
    [
        Figure(
            "on", "rate of {borrow, SELECT, return}, 1 ms each way, to a raw SELECT's, autocommit on", at_least=0.95
        ),
        Figure("off", "the same, autocommit off", at_least=0.95),
    ],
)
INSERT = Measure(
    measure_insert,
    [
        Figure(
            "of_4",
            "rate of {borrow, INSERT, return}, 1 ms each way, to a raw INSERT's, one thread on a pool of 4",
            at_least=0.93,
        ),
        Figure("of_1", "the same, one thread on a pool of 1", at_least=0.48),
        Figure("threads", "the same, 4 threads on a pool of 4, to 4 threads with a connection each", at_least=0.48),
    ],
)
TRANSACTIONS = Measure(
    measure_transactions,
    [
        Figure(
            "rate",
            "rate of {borrow, BEGIN, 3 statements, COMMIT, return}, 1 ms each way, 8 threads on a pool of 4, "
            "to 4 threads with a connection each",
            at_least=0.8,
        )
    ],
)

"""The processor time for {borrow, return}, with and without a SELECT between, and with many idle connections."""

from __future__ import annotations

import queue
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import pymysql
from common import Figure, Measure, Setting, cpu, ratio, stay_on_one_core
from peers import PyMySQLPool, Unsupported, insert, select

if TYPE_CHECKING:
    from peers import Pool

CYCLES = 300
MANY = 1000


def cycle_often(borrow: Callable[[], Any], give_back: Callable[[Any], Any]) -> None:
    for _ in range(CYCLES):
        give_back(borrow())


def cycle_with_use_often(borrow: Callable[[], Any], use: Callable[[Any], Any], give_back: Callable[[Any], Any]) -> None:
    for _ in range(CYCLES):
        connection = borrow()
        use(connection)
        give_back(connection)


def use_often(use: Callable[[Any], Any], raw: Any) -> None:
    for _ in range(CYCLES):
        use(raw)


def use_beside_raw(
    pool: Pool | ByHand, use: Callable[[Any], Any], raw: Any, use_raw: Callable[[Any], Any], rounds: int
) -> float:
    """The cost of {borrow, use, return}, relative to the same use of a raw connection."""
    return ratio(
        partial(cpu, cycle_with_use_often, pool.borrow, use, pool.give_back),
        partial(cpu, use_often, use_raw, raw),
        rounds,
    )


def measure_cycle(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """{borrow, return} beside a queue's put and get."""
    stay_on_one_core()
    bare: queue.LifoQueue[object] = queue.LifoQueue()
    bare.put(object())
    pool = peer(1, **setting.near)
    return {
        "cycle": ratio(
            partial(cpu, cycle_often, pool.borrow, pool.give_back),
            partial(cpu, cycle_often, bare.get, bare.put),
            setting.rounds(200),
        )
    }


def measure_growth(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """{borrow, return} of a pool of 1000 idle connections beside that of a pool of 1."""
    stay_on_one_core()
    many = peer(MANY, **setting.near)
    one = peer(1, **setting.near)
    return {
        "growth": ratio(
            partial(cpu, cycle_often, many.borrow, many.give_back),
            partial(cpu, cycle_often, one.borrow, one.give_back),
            setting.rounds(200),
        )
    }


def measure_select(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """{borrow, SELECT 1, return} beside raw PyMySQL's SELECT 1 on the same session."""
    stay_on_one_core()
    pool = peer(1, **setting.near)
    raw = pool.raw()
    return {"select": use_beside_raw(pool, pool.select, raw, select, setting.rounds(120))}


def measure_insert(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """{borrow, INSERT, return} beside raw PyMySQL's INSERT.

    The raw one has a session of its own, as replies that the pool has yet to read may be on their way on the pool's.
    """
    stay_on_one_core()
    pool = peer(1, **setting.near)
    raw = pymysql.connect(**setting.near)
    figures = {"insert": use_beside_raw(pool, pool.insert, raw, insert, setting.rounds(60))}
    if isinstance(pool, PyMySQLPool):
        by_hand = ByHand(pool, pymysql.connect(**setting.near))
        figures["by_hand"] = use_beside_raw(by_hand, insert, raw, insert, setting.rounds(60))
    return figures


class ByHand:
    """A borrow, INSERT and return reduced to its packets: what they cost at least, without a pool."""

    def __init__(self, pool: PyMySQLPool, connection: Any) -> None:
        lent = pool.borrow()
        reset = lent._place.session.reset.commands(with_database=False)
        pool.give_back(lent)
        self.connection = connection
        self.packets = reset.packets
        self.socket = connection._sock
        self.give_back(connection)
        self.size = 0
        for _ in range(reset.replies):
            connection._next_seq_id = 1
            self.size += 4 + len(connection._read_packet()._data)
        self.give_back(connection)

    def borrow(self) -> Any:
        """Wait for the replies to the reset."""
        left = self.size
        while left:
            left -= len(self.socket.recv(left))
        return self.connection

    def give_back(self, _: Any) -> None:
        """Send the reset."""
        self.socket.sendall(self.packets)


def measure_reset(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """{borrow, SELECT 1, return} with all undone that a borrower may have left, beside raw PyMySQL's SELECT 1."""
    if peer.resets_all is None:
        raise Unsupported("it undoes transactions only")
    stay_on_one_core()
    pool = peer(1, **setting.near, **peer.resets_all)
    raw = pymysql.connect(**setting.near)
    return {"reset": use_beside_raw(pool, pool.select, raw, select, setting.rounds(60))}


CYCLE = Measure(
    measure_cycle,
    [
        Figure(
            "cycle",
            "CPU of {borrow, return}, to a bare LifoQueue's put and get",
            at_most=2.5 if sys.version_info >= (3, 13) else 2.0,
        )
    ],
    processes=3,
)
GROWTH = Measure(
    measure_growth, [Figure("growth", "the same with 1000 idle connections, to that with one", at_most=1.1)]
)
SELECT = Measure(
    measure_select,
    [Figure("select", "CPU of {borrow, SELECT 1, return}, to a raw SELECT 1 on the same session", at_most=1.2)],
    processes=3,
)
INSERT = Measure(
    measure_insert,
    [
        Figure("insert", "CPU of {borrow, INSERT, return}, to a raw INSERT", at_most=1.8),
        Figure("by_hand", "the same packets (a reset and an INSERT), sent and received without a pool"),
    ],
    processes=3,
)
RESET = Measure(
    measure_reset,
    [
        Figure(
            "reset",
            'CPU of {borrow, SELECT 1, return} where the whole session is reset (`reset="session"`), to a raw SELECT 1',
            at_most=2.4,
        )
    ],
    processes=3,
)

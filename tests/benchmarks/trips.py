"""How much of the rate is left on a network of 1 ms each way, where each wait for ROLLBACK, reset or ping shows."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pymysql
from common import Figure, Measure, Setting, ratio, seconds
from peers import Unsupported, select

if TYPE_CHECKING:
    from peers import Pool

CYCLES = 5


def select_often(raw: Any) -> None:
    for _ in range(CYCLES):
        select(raw)


def cycle_often(pool: Pool) -> None:
    for _ in range(CYCLES):
        connection = pool.borrow()
        pool.select(connection)
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
                partial(seconds, select_often, raw), partial(seconds, cycle_often, pool), setting.rounds(160)
            )
    return figures


MEASURE = Measure(
    measure,
    [
        Figure(
            "on", "rate of {borrow, SELECT, return}, 1 ms each way, to a raw SELECT's, autocommit on", at_least=0.95
        ),
        Figure("off", "the same, autocommit off", at_least=0.95),
    ],
)

"""What it costs to open one more connection, with PyMySQL's defaults."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pymysql
from common import Figure, Measure, Setting, ratio, seconds

if TYPE_CHECKING:
    from peers import Pool

AT_ONCE = 3


def measure(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """The time in which a pool that has been used before opens another, beside `pymysql.connect()`."""
    figures = {}
    for connect_kwargs in setting.defaults.values():
        rounds = setting.rounds(60)
        pool = peer((rounds + 1) * AT_ONCE + 1, opened=0, **connect_kwargs)
        held: list[Any] = []

        def borrow(pool: Pool = pool, held: list[Any] = held) -> None:
            held.extend(pool.borrow() for _ in range(AT_ONCE))

        def connect(connect_kwargs: dict[str, Any] = connect_kwargs) -> None:
            for _ in range(AT_ONCE):
                pymysql.connect(**connect_kwargs).close()

        held.append(pool.borrow())
        raw: Any = pymysql.connect(**connect_kwargs)
        key = "tls" if raw._secure else "plain"
        raw.close()
        figures[key] = ratio(partial(seconds, borrow), partial(seconds, connect), rounds)
    return figures


MEASURE = Measure(
    measure,
    [
        Figure("plain", "opening a connection, to `pymysql.connect()`, where the server has no TLS", at_most=0.03),
        Figure("tls", "the same with TLS", at_most=0.1),
    ],
)

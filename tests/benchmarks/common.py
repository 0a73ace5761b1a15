"""What the measures share: the servers' addresses, figures, and alternating rounds."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from peers import Pool


@dataclass(frozen=True)
class Setting:
    """Where to connect to, as keywords of `pymysql.connect()`, and how long to measure."""

    near: dict[str, Any]
    """The server itself, without TLS and with autocommit."""
    far: dict[str, Any]
    """The same through a proxy that adds 1 ms each way."""
    defaults: dict[str, dict[str, Any]]
    """A server without TLS and one with it, with PyMySQL's defaults."""
    quick: bool

    def rounds(self, count: int) -> int:
        """The number of rounds, of `count`, that there is time for."""
        return max(3, count // 4) if self.quick else count


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    key: str
    title: str
    at_most: float | None = None
    """The target for our own pool, if there is one."""
    at_least: float | None = None

    @property
    def target(self) -> str:
        """The target, in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    def holds(self, value: float) -> bool:
        """Whether `value` meets the target."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True)
class Measure:
    """Some figures, and the function that measures them for one pool, in a process of its own."""

    run: Callable[[type[Pool], Setting], dict[str, float]]
    figures: list[Figure]
    processes: int = 1
    """How many processes measure it, for the median: short times depend on where things lie in memory."""


def ratio(first: Callable[[], float], second: Callable[[], float], rounds: int) -> float:
    """The median of first / second within one round. They take turns in who begins, after a round that does not count.

    On a busy machine times vary with the load; the ratio of two that ran side by side does not.
    """
    ratios = []
    for number in range(rounds + 1):
        if number % 2:
            one = first()
            other = second()
        else:
            other = second()
            one = first()
        ratios.append(one / other)
    return statistics.median(ratios[1:])


def seconds(work: Callable[..., Any], *args: Any) -> float:
    """The seconds that it takes, by the clock."""
    begin = time.perf_counter()
    work(*args)
    return time.perf_counter() - begin


def cpu(work: Callable[..., Any], *args: Any) -> float:
    """The processor time that this process takes for it."""
    begin = time.process_time()
    work(*args)
    return time.process_time() - begin


def stay_on_one_core() -> None:
    """Keep this process on one core, where the system can, so that no migration counts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

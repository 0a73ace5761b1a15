"""What a pool has counted: for each place by whoever has it, so that no lock is needed, and summed when asked for."""

from __future__ import annotations

import sys
from operator import length_hint
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Closed(NamedTuple):
    """How many connections were closed, by reason."""

    #: They were older than `con_lifetime`.
    lifetime: int
    #: They had rested for `idle_timeout`, above `size`.
    idle: int
    #: The server or the network had ended them, or they came back in the middle of a reply or reconnected by hand.
    broken: int
    #: They could not be reset, or their reset had failed.
    reset: int
    #: Their use, or the borrow itself, ended with an error after which a connection is not reused.
    exception: int
    #: Their handles were dropped and not returned.
    lost: int
    #: They were open when `drain()` was called.
    drained: int
    #: The pool was closed.
    pool: int


class PoolStats(NamedTuple):
    """A pool at one moment, and what it has counted since it was made or, in a forked child, since the fork.

    Other threads go on while it is put together: at rest `opened` is the number of connections that are open and of
    those that are `closed`. Seconds are floats.
    """

    #: Connections that are open and idle.
    idle: int
    #: Places that are borrowed, those in which a connection is being opened included.
    borrowed: int
    #: Of these, those in which the borrower opens its connection.
    opening: int
    #: Threads that wait for a connection.
    waiting: int
    #: How many can be borrowed at the same time.
    maxsize: int

    #: Borrows that got a place, also those that could open no connection there.
    borrows: int
    #: Of these, those that found none free at first; how long they waited, in all and at most.
    waited: int
    seconds_waited: float
    longest_wait: float
    #: Borrows that got none in time.
    timed_out: int
    #: Borrows that were refused at once, because of `max_waiting`.
    refused: int
    #: How long what has been returned was borrowed, in all and at most.
    seconds_used: float
    longest_use: float
    #: Connections that were opened; how long that took, in all and at most; and attempts that failed.
    opened: int
    seconds_opening: float
    longest_opening: float
    failed_to_open: int
    #: Connections that were closed, by reason.
    closed: Closed


class Totals:
    """What was counted for a place and those it has followed. Whoever has the place writes it, and so one at a time."""

    __slots__ = (
        "_last_wait",
        "borrows",
        "closed",
        "failed_to_open",
        "longest_opening",
        "longest_use",
        "longest_wait",
        "opened",
        "seconds_opening",
        "seconds_used",
        "seconds_waited",
        "waited",
    )

    def __init__(self) -> None:
        self.borrows = self.waited = self.opened = self.failed_to_open = 0
        self.seconds_waited = self.seconds_used = self.seconds_opening = 0.0
        self.longest_wait = self.longest_use = self.longest_opening = 0.0
        self._last_wait = 0.0
        #: By reason. A place that is lost is counted when it dies, while another may have followed it.
        self.closed: dict[str, int] = {}

    def has_waited(self, seconds: float) -> None:
        """A borrower has waited for the place."""
        self.waited += 1
        self.seconds_waited += seconds
        self.longest_wait = max(self.longest_wait, seconds)
        self._last_wait = seconds

    def last_wait(self) -> float:
        """How long the borrower who has just got the place has waited for it; 0.0 when asked again."""
        seconds, self._last_wait = self._last_wait, 0.0
        return seconds

    def has_opened(self, seconds: float) -> None:
        """A connection was opened."""
        self.opened += 1
        self.seconds_opening += seconds
        self.longest_opening = max(self.longest_opening, seconds)

    def has_closed(self, reason: str) -> None:
        """A connection was closed."""
        self.closed[reason] = self.closed.get(reason, 0) + 1


class Count:
    """A number that any thread, signal handler or finalizer raises by one in one step of C."""

    def __init__(self) -> None:
        self._left = iter(range(sys.maxsize))

    def up(self) -> None:
        """Raise it."""
        next(self._left)

    def value(self) -> int:
        """The number."""
        return sys.maxsize - length_hint(self._left)


def sum_up(totals: Iterable[Totals]) -> dict[str, int | float | Closed]:
    """The fields of `PoolStats` that places count, by name."""
    each = list(totals)
    return {
        "closed": Closed(*(sum(one.closed.get(reason, 0) for one in each) for reason in Closed._fields)),
        **{
            name: (max if name.startswith("longest") else sum)(getattr(one, name) for one in each)
            for name in Totals.__slots__
            if name in PoolStats._fields and name != "closed"
        },
    }

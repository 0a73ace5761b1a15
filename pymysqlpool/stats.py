"""Statistics of a pool.

Each place has counters of its own, which only the thread that holds the place writes, so no lock is needed.
`Places.stats()` adds them up.
"""

from __future__ import annotations

import sys
from operator import length_hint
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Closed(NamedTuple):
    """The number of connections that were closed, by reason."""

    #: They were older than `con_lifetime`.
    lifetime: int
    #: They had been idle for `idle_timeout`, and more than `size` connections were open.
    idle: int
    #: The server or the network had closed them, or they were returned in the middle of a reply, or the borrower had
    #: reconnected them.
    broken: int
    #: They could not be reset, or their reset failed.
    reset: int
    #: The borrow, or the use of the connection, ended with an error after which a connection is not reused.
    exception: int
    #: They were never returned: the handle was garbage collected.
    lost: int
    #: They were open when `drain()` was called.
    drained: int
    #: The pool was closed.
    pool: int


class PoolStats(NamedTuple):
    """A snapshot of a pool: its present state, and counters since it was made or, in a forked child, since the fork.

    Seconds are floats. The snapshot is taken without a lock, so it can be inconsistent while other threads use the
    pool. While nobody uses it, `opened` is the number of open connections plus the sum of `closed`.
    """

    #: Connections that are open and not borrowed.
    idle: int
    #: Places that are borrowed, including those whose connection is still being opened.
    borrowed: int
    #: Of `borrowed`, the places whose connection is still being opened.
    opening: int
    #: Threads that are waiting for a connection.
    waiting: int
    #: The most connections that can be open at once.
    maxsize: int

    #: Borrows that got a place, including those whose connection then could not be opened.
    borrows: int
    #: Of `borrows`, those that had to wait; the seconds that they waited, in total and at most.
    waited: int
    seconds_waited: float
    longest_wait: float
    #: Borrows that got no place within their timeout.
    timed_out: int
    #: Borrows that were refused because `max_waiting` threads were waiting already.
    refused: int
    #: The seconds between borrow and return, in total and at most. Current borrows are not included.
    seconds_used: float
    longest_use: float
    #: Connections that were opened; the seconds that this took, in total and at most; attempts that failed.
    opened: int
    seconds_opening: float
    longest_opening: float
    failed_to_open: int
    #: Connections that were closed, by reason.
    closed: Closed


class Totals:
    """The counters of a place. Only the thread that holds the place writes them, so there is one writer at a time.

    When a place is lost, its replacement continues with the same counters.
    """

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
        #: The number by reason. A lost place is counted by its finalizer, when its replacement may already be in use.
        self.closed: dict[str, int] = {}

    def count_wait(self, seconds: float) -> None:
        """Count a borrower that waited `seconds` for the place."""
        self.waited += 1
        self.seconds_waited += seconds
        self.longest_wait = max(self.longest_wait, seconds)
        self._last_wait = seconds

    def last_wait(self) -> float:
        """Return how many seconds the present borrower waited for the place, and set that to 0.0."""
        seconds, self._last_wait = self._last_wait, 0.0
        return seconds

    def count_opened(self, seconds: float) -> None:
        """Count a connection that took `seconds` to open."""
        self.opened += 1
        self.seconds_opening += seconds
        self.longest_opening = max(self.longest_opening, seconds)

    def count_closed(self, reason: str) -> None:
        """Count a closed connection. `reason` is a field of `Closed`."""
        self.closed[reason] = self.closed.get(reason, 0) + 1


class Count:
    """A counter that threads, signal handlers and finalizers may increment at the same time, without a lock.

    Advancing a C iterator is atomic; `number += 1` is not.
    """

    def __init__(self) -> None:
        self._left = iter(range(sys.maxsize))

    def increment(self) -> None:
        """Add one."""
        next(self._left)

    def value(self) -> int:
        """Return the count."""
        return sys.maxsize - length_hint(self._left)


def sum_up(totals: Iterable[Totals]) -> dict[str, int | float | Closed]:
    """Add up the counters of all places, and return them as fields of `PoolStats`."""
    each = list(totals)
    return {
        "closed": Closed(*(sum(one.closed.get(reason, 0) for one in each) for reason in Closed._fields)),
        **{
            name: (max if name.startswith("longest") else sum)(getattr(one, name) for one in each)
            for name in Totals.__slots__
            if name in PoolStats._fields and name != "closed"
        },
    }

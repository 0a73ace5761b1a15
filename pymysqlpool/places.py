"""All places of a pool, and the queue in which those rest that are not borrowed."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable

from .fairqueue import CHECK_INTERVAL, FairQueue, QueueClosed, Waiter
from .log import logger
from .place import Place, Record
from .session import Session
from .stats import Count, PoolStats, Totals, sum_up

if TYPE_CHECKING:
    from weakref import ref

    from .connection import Connection, Template
    from .place import Loan

# Seconds between two tries to open a session on a server that is full.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
_SHORTEST_SLEEP = 0.001


class Places(FairQueue["Connection"]):
    """The places that are not borrowed, as connections: the open ones on top, the others below.

    At every moment: in the queue + borrowed = maxsize. It does not refer to its pool, and outlives it to close what is
    idle then.
    """

    def __init__(self, template: Template, maxsize: int, max_waiting: int | None) -> None:
        super().__init__(maxsize, max_waiting)
        self._template = template
        # When a place dies, C code appends its weak reference here: no line of Python runs there that could be
        # interrupted, and no lock is taken, as the collector may strike inside any.
        self._dead: deque[ref[Place]] = deque()
        #: Who waits for the last connections to come back, after the close.
        self._closers: deque[Waiter] = deque()
        self._records: list[Record] = []
        #: Where the server has refused a session: the seconds between two tries, and when the next one is due.
        self._pause = 0.0
        self._next_opening = 0.0
        #: Of each place and its replacements; and what is counted for those that got no place.
        self._totals = [Totals() for _ in range(maxsize)]
        self.timed_out, self.refused = Count(), Count()
        for totals in self._totals:
            place = Place(self._dead.append, totals)
            self._records.append(place.record)
            self._put(template.copy(place))

    # What lies where in the queue

    def _put(self, item: Connection) -> None:
        if item._place.session is None:
            self.queue.appendleft(item)
        else:
            self.queue.append(item)

    def _get(self) -> Connection:
        """Take the session that came last, but rather one whose replies have come than one that is still to be reset.

        So that a borrower who writes hardly ever waits for a reset.
        """
        queue = self.queue
        place = queue[-1]._place
        if place is None or (session := place.session) is None or session.pending is None or _is_ready(queue[-1]):
            if self._pause and place is not None and place.session is None:
                self._check_openings()
            return queue.pop()
        for index in range(2, len(queue) + 1):
            try:
                connection = queue[-index]
            except IndexError:  # others have taken some meanwhile
                break
            place = vars(connection).get("_place")
            if place is None or place.session is None:
                break
            if _is_ready(connection) and self._remove(connection):
                return connection
        return queue.pop()

    def _remove(self, connection: Connection) -> bool:
        """Take this one, in one step, as any borrower takes one; return whether it was still there."""
        try:
            self.queue.remove(connection)
        except ValueError:
            return False
        return True

    def _wait_in_line(self, timeout: float | None) -> Connection:
        began = monotonic()
        connection = super()._wait_in_line(timeout)
        connection._place.totals.count_wait(monotonic() - began)
        return connection

    # A server that is full

    def put_off_openings(self) -> None:
        """The server takes no sessions at the moment: what is to be opened is lent later, at growing intervals."""
        self._pause = min(self._pause * 1.5, _LONGEST_PAUSE) or _FIRST_PAUSE
        self._next_opening = monotonic() + self._pause

    def allow_openings(self) -> None:
        """It takes them."""
        if self._pause:
            self._pause = 0.0
            self._wake_first()

    def _check_openings(self) -> None:
        """Raise IndexError where it is not time yet, as if nothing were idle; one at a time is let through."""
        now = monotonic()
        if now < self._next_opening:
            raise IndexError
        self._next_opening = now + self._pause

    def _interval(self) -> float:
        if not self._pause:
            return super()._interval()
        return min(super()._interval(), max(self._next_opening - monotonic(), _SHORTEST_SLEEP))

    # What is borrowed

    def borrows(self) -> list[Loan]:
        """What is borrowed at this moment, the longest first."""
        loans = [record.loan for record in self._newest() if record.loan.borrower is not None and record.place()]
        return sorted(loans, key=lambda loan: loan.since)

    def stats(self) -> PoolStats:
        """What there is at this moment, and what has been counted."""
        loans = self.borrows()
        sums: dict[str, Any] = sum_up(self._totals)
        return PoolStats(
            idle=self.number_idle(),
            borrowed=len(loans),
            opening=sum(loan.is_opening for loan in loans),
            waiting=self.waiting(),
            maxsize=self.maxsize,
            timed_out=self.timed_out.value(),
            refused=self.refused.value(),
            **sums,
        )

    def forget_last_waits(self) -> None:
        """Begin to ask for the last waits."""
        for totals in self._totals:
            totals.last_wait()

    def number_idle(self) -> int:
        """How many sessions there are that are idle."""
        places = [vars(connection).get("_place") for connection in self.idle()]  # None: lent and returned meanwhile
        return sum(place is not None and place.session is not None for place in places)

    def number_open(self) -> int:
        """How many sessions there are, idle or borrowed."""
        return len(self._sessions())

    def _announce(self, item: Connection) -> None:
        """Tell who waits about a connection that was put back. In a closed pool it is closed."""
        try:
            super()._announce(item)
        except QueueClosed:
            close_idle(item, "pool")
            for closer in list(self._closers):
                closer.wake()

    # What is lost and found

    def replace_lost(self) -> None:
        """Replace the places that nothing refers to any more, and tell where they had been borrowed."""
        if not self._dead or self.closed:
            return
        count = len(self._dead)
        for index, record in enumerate(self._records):
            self._replace(index, record.newest())
        with contextlib.suppress(IndexError):  # afterwards, for whoever is interrupted; others may do the same
            for _ in range(count):
                self._dead.popleft()

    def _replace(self, index: int, record: Record) -> None:
        """Let a new place take over the record of one that is dead.

        Who is interrupted here, or comes second, leaves a new place that is dead at once, and is found like any other.
        """
        if record.place() is not None:
            return
        place = Place(self._dead.append, self._totals[index])
        replacement = record.replace_with(place.record)
        self._records[index] = replacement
        if replacement is place.record:
            self.put(self._template.copy(place))
            lost = record.loan.as_data()
            if lost is not None:
                _warn_of_lost(lost, has_written=record.loan.lost_writes)

    # Care

    def close_idle_if(self, reason: str, is_due: Callable[[Session], bool], most: int) -> None:
        """Close idle sessions that are due, at most `most`."""
        for connection in self.idle():
            if most <= 0:
                break
            place: Any = vars(connection).get("_place")  # None: it is lent, and returned, meanwhile
            session: Session | None = place and place.session
            if session is None or not is_due(session) or not self._remove(connection):
                continue
            most -= 1
            place.end_session(reason, Session.quit)
            self.put(self._template.copy(place))

    def expire_all(self) -> None:
        """Let every session that is open now be as old as one can be."""
        for session in self._sessions():
            session.expires_at = -math.inf

    def wait_until_all_back(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds until all is back in a closed pool, and return how many are still out."""
        deadline = math.inf if timeout is None else monotonic() + timeout
        closer = Waiter()
        self._closers.append(closer)
        try:
            while (out := len(self.borrows())) and (left := deadline - monotonic()) > 0:
                closer.sleep(min(left, CHECK_INTERVAL))
        finally:
            self._closers.remove(closer)
        return out

    def leave_sessions_to_parent(self) -> None:  # pragma: no cover  in a forked child
        """In a forked child: let go of the parent's sessions, without a word to the server."""
        for place in self._alive():
            place.is_of_parent = True
            if place.session is not None:
                place.session.close()

    def _newest(self) -> list[Record]:
        return [record.newest() for record in self._records]

    def _alive(self) -> list[Place]:
        """The places that something refers to; those that nothing does are replaced at the next look."""
        return [place for place in [record.place() for record in self._newest()] if place is not None]

    def _sessions(self) -> list[Session]:
        return [session for session in [place.session for place in self._alive()] if session is not None]


def close_idle(connection: Connection, reason: str) -> None:
    """Close an idle connection, where it is open."""
    connection._place.end_session(reason, Session.quit)


def _is_ready(connection: Connection) -> bool:
    """Whether it has no replies pending that have yet to come; a connection that is taken meanwhile is as good."""
    place = vars(connection).get("_place")
    session = place and place.session
    return session is None or session.pending is None or not session.awaits_replies()


def _warn_of_lost(lost: dict[str, Any], *, has_written: bool) -> None:
    message = (
        "a connection that {thread!r} borrowed here {seconds:.1f} s ago was never returned: close() it".format_map(lost)
    )
    if has_written:
        message += (
            ". What was written on it is lost: commit() before, use a with block, or make the pool with autocommit=True"
        )
    try:
        warnings.warn_explicit(message, ResourceWarning, lost["file"], lost["line"])
    except ResourceWarning:
        # Warnings are errors here, but who looks is not who has lost it.
        logger.error("%s:%s: %s", lost["file"], lost["line"], message)

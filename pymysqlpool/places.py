"""All places of a pool, and the queue of those that are not borrowed."""

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

# Shortest and longest pause between two attempts to open a session on a server that is full, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
_SHORTEST_SLEEP = 0.001  # seconds, so that a waiter does not spin


class Places(FairQueue["Connection"]):
    """The queue of the connections that are not borrowed. Open ones are on top, and are therefore lent first.

    The queued and the borrowed places always add up to `maxsize`. The queue does not refer to its pool, so that the
    pool's finalizer can close the idle connections after the pool is gone.
    """

    def __init__(self, template: Template, maxsize: int, max_waiting: int | None) -> None:
        super().__init__(maxsize, max_waiting)
        self._template = template
        # The weak references of lost places. `deque.append` itself is the callback of the weak reference: it is C code,
        # which no exception can interrupt, and it takes no lock. The collector may run while any lock is held.
        self._dead: deque[ref[Place]] = deque()
        #: Threads in `close()` that wait until the borrowed connections are returned.
        self._closers: deque[Waiter] = deque()
        self._records: list[Record] = []
        #: While the server refuses sessions: the seconds between two attempts (else 0.0), and when the next one is due.
        self._pause = 0.0
        self._next_opening = 0.0
        #: The counters of each place and its replacements, and those of the borrowers that got no place.
        self._totals = [Totals() for _ in range(maxsize)]
        self.timed_out, self.refused = Count(), Count()
        for totals in self._totals:
            place = Place(self._dead.append, totals)
            self._records.append(place.record)
            self._put(template.copy(place))

    # The order of the queue

    def _put(self, item: Connection) -> None:
        if item._place.session is None:
            self.queue.appendleft(item)
        else:
            self.queue.append(item)

    def _get(self) -> Connection:
        """Take the connection that was returned last, preferring sessions whose reset has been answered.

        This way a borrower that writes hardly ever waits for a reset.
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
            except IndexError:  # other threads have taken some in the meantime
                break
            place = vars(connection).get("_place")
            if place is None or place.session is None:
                break
            if _is_ready(connection) and self._remove(connection):
                return connection
        return queue.pop()

    def _remove(self, connection: Connection) -> bool:
        """Take `connection` out of the queue, in one atomic step. Return whether it was still there."""
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
        """The server refuses sessions: from now on one is opened at a time, at growing intervals."""
        self._pause = min(self._pause * 1.5, _LONGEST_PAUSE) or _FIRST_PAUSE
        self._next_opening = monotonic() + self._pause

    def allow_openings(self) -> None:
        """The server accepts sessions again."""
        if self._pause:
            self._pause = 0.0
            self._wake_first()

    def _check_openings(self) -> None:
        """Raise IndexError, as if the queue were empty, unless the next attempt to open a session is due."""
        now = monotonic()
        if now < self._next_opening:
            raise IndexError
        self._next_opening = now + self._pause

    def _interval(self) -> float:
        if not self._pause:
            return super()._interval()
        return min(super()._interval(), max(self._next_opening - monotonic(), _SHORTEST_SLEEP))

    # Borrowed connections and statistics

    def borrows(self) -> list[Loan]:
        """Return the present loans, the oldest first."""
        loans = [record.loan for record in self._newest() if record.loan.borrower is not None and record.place()]
        return sorted(loans, key=lambda loan: loan.since)

    def stats(self) -> PoolStats:
        """Return the pool's present state and its counters."""
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
        """Clear the last wait of each place, so that a new observer is not called with an old one."""
        for totals in self._totals:
            totals.last_wait()

    def number_idle(self) -> int:
        """Return the number of sessions that are open and idle."""
        places = [vars(connection).get("_place") for connection in self.idle()]  # None: returned again since
        return sum(place is not None and place.session is not None for place in places)

    def number_open(self) -> int:
        """Return the number of sessions that are open, idle or borrowed."""
        return len(self._sessions())

    def _announce(self, item: Connection) -> None:
        """Wake waiters for a connection that was put back. If the pool is closed, close the connection."""
        try:
            super()._announce(item)
        except QueueClosed:
            close_idle(item, "pool")
            for closer in list(self._closers):
                closer.wake()

    # Lost places

    def replace_lost(self) -> None:
        """Replace the places that nothing refers to any more, and warn at the lines where they were borrowed."""
        if not self._dead or self.closed:
            return
        count = len(self._dead)
        for index, record in enumerate(self._records):
            self._replace(index, record.newest())
        # This comes last, so that the next call repeats an interrupted one. Other threads may do it at the same time.
        with contextlib.suppress(IndexError):
            for _ in range(count):
                self._dead.popleft()

    def _replace(self, index: int, record: Record) -> None:
        """Replace the place of `record`, if it is lost, by a new one that is put into the queue.

        If this is interrupted, or another thread has already done it, the new place is not used. It is then lost at
        once and handled like any other lost place.
        """
        if record.place() is not None:
            return
        place = Place(self._dead.append, self._totals[index])
        replacement = record.replace_with(place.record)
        self._records[index] = replacement
        if replacement is place.record:
            # The finalizer of the lost place closes the session. But if the collector has found the place, it may run
            # other finalizers first, which can take any time: until then the server would have one session too many.
            session = record.session
            if session is not None:
                session.shut_down()
            self.put(self._template.copy(place))
            lost = record.loan.as_data()
            if lost is not None:
                _warn_of_lost(lost, has_written=record.loan.lost_writes)

    # Closing

    def close_idle_if(self, reason: str, is_due: Callable[[Session], bool], most: int) -> None:
        """Close at most `most` idle sessions for which `is_due` returns True, and count them under `reason`."""
        for connection in self.idle():
            if most <= 0:
                break
            place: Any = vars(connection).get("_place")  # None: lent and returned again since
            session: Session | None = place and place.session
            if session is None or not is_due(session) or not self._remove(connection):
                continue
            most -= 1
            place.end_session(reason, Session.quit)
            self.put(self._template.copy(place))

    def expire_all(self) -> None:
        """Mark all open sessions as expired. The idle ones remain in the queue."""
        for session in self._sessions():
            session.expires_at = -math.inf

    def wait_until_all_back(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds (None: forever) until no connection is borrowed; return how many still are."""
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
        """In a forked child: close the child's copies of the sockets, without sending anything to the server."""
        for place in self._alive():
            place.is_of_parent = True
            if place.session is not None:
                place.session.close()

    def _newest(self) -> list[Record]:
        return [record.newest() for record in self._records]

    def _alive(self) -> list[Place]:
        """Return the places that are not lost."""
        return [place for place in [record.place() for record in self._newest()] if place is not None]

    def _sessions(self) -> list[Session]:
        return [session for session in [place.session for place in self._alive()] if session is not None]


def close_idle(connection: Connection, reason: str) -> None:
    """Close an idle connection, if it is open, and count that under `reason`."""
    connection._place.end_session(reason, Session.quit)


def _is_ready(connection: Connection) -> bool:
    """Whether no reply of a reset is still on its way. Also True if another thread has taken the connection since."""
    place = vars(connection).get("_place")
    session = place and place.session
    return session is None or session.pending is None or not session.awaits_replies()


def _warn_of_lost(lost: dict[str, Any], *, has_written: bool) -> None:
    message = (
        "a connection that {thread!r} borrowed here {seconds:.1f} s ago was never returned: close() it".format_map(lost)
    )
    if has_written:
        message += (
            ". What it did not commit is lost: commit() before, use a with block, or make the pool with autocommit=True"
        )
    try:
        warnings.warn_explicit(message, ResourceWarning, lost["file"], lost["line"])
    except ResourceWarning:
        # A warnings filter has turned it into an exception, but it was not this thread that lost the connection.
        logger.error("%s:%s: %s", lost["file"], lost["line"], message)

"""A place, which is the right to one server connection, with its session, its loan and its record."""

from __future__ import annotations

import contextlib
import os
from threading import Thread, current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable
from weakref import ref

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from .session import Session
    from .stats import Totals


_HERE = os.path.dirname(__file__)  # noqa: PTH120  importing pathlib takes longer than importing this package
#: Files whose lines are not reported as the line of a borrow; contextlib runs `pool.connection()`.
_INTERNAL = frozenset(
    [*(os.path.join(_HERE, name) for name in ("pool.py", "connection.py", "block.py")), contextlib.__file__]  # noqa: PTH118
)


class Place:
    """The right to one server connection.

    A pool has `maxsize` places as long as it is open. Each is referred to by one `Connection`, which is in the queue or
    with a borrower. A return moves the place from the borrower's handle to a new handle in the queue.

    When nothing refers to a place any more, it is lost: the borrower has dropped its handle, or an asynchronous
    exception (KeyboardInterrupt, a signal handler's) was raised while the connection was being lent or returned. A new
    place then replaces it. So an exception between any two lines of Python neither removes a place permanently nor adds
    one.
    """

    __slots__ = ("__weakref__", "is_of_parent", "loan", "record", "session", "totals")

    def __init__(self, when_dead: Callable[[ref[Place]], object], totals: Totals) -> None:
        #: None if no session is open; the next borrower opens one.
        self.session: Session | None = None
        self.totals = totals
        self.loan = Loan(totals)
        #: True in a forked child if the session belongs to the parent process.
        self.is_of_parent = False
        self.record = Record(self, when_dead)

    def begin_session(self, session: Session) -> None:
        """Set the session that has been opened."""
        self.session = self.record.session = session

    def end_session(self, reason: str, end: Callable[[Session], None]) -> None:
        """Close the session, if there is one, by calling `end` with it, and count that under `reason`."""
        session = self.session
        self.session = self.record.session = None
        if session is not None:
            self.totals.count_closed(reason)
            end(session)

    def __del__(self) -> None:
        # The session is closed here and not left to the collector, which runs the finalizers of older objects first:
        # the socket's would come before the session's, and warn that the socket is still open.
        if self.session is not None:
            self.totals.count_closed("lost")
            self.session.close()


class Record:
    """A pool's record of a place. It outlives the place, and then refers to the record of the replacement."""

    def __init__(self, place: Place, when_dead: Callable[[ref[Place]], object]) -> None:
        #: Returns None once the place is lost. Python clears it in one atomic step, before it runs the finalizers of
        #: objects that refer to the place, so a finalizer that returns a lost connection can tell that it is too late.
        self.place = ref(place, when_dead)
        self.loan = place.loan
        #: The session of the place, which sets it.
        self.session: Session | None = None

    def replace_with(self, replacement: Record) -> Record:
        """Make `replacement` the successor of this record, unless it has one already; return the successor.

        `setdefault` is atomic: if several threads try this at once, one succeeds.
        """
        taken: Record = vars(self).setdefault("replacement", replacement)
        return taken

    def newest(self) -> Record:
        """Return the last record in the chain of replacements, which is that of the present place."""
        record = self
        while "replacement" in vars(record):
            record = vars(record)["replacement"]
        return record


class Loan:
    """Which thread holds a place, since when, and from which line. It outlives the place, to report who lost it."""

    __slots__ = ("_at", "_totals", "borrower", "is_opening", "lost_writes", "since", "was_warned_of")

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self.borrower: Thread | None = None
        self.since = 0.0
        #: True while the borrower is still opening its connection.
        self.is_opening = False
        self.was_warned_of = False
        #: True if the handle was dropped with uncommitted writes.
        self.lost_writes = False
        #: Where the connection was borrowed: the code object, and the offset of the bytecode instruction in it.
        self._at: tuple[CodeType, int]

    def begin(self, frame: FrameType, now: float) -> None:
        """Record a borrow by this thread, at time `now`, from the line that `frame` is executing."""
        self._at = frame.f_code, frame.f_lasti
        self.since = now
        self.borrower = current_thread()  # a thread-local is faster, but all greenlets share it if gevent patches late
        self._totals.borrows += 1

    def is_for(self, frame: FrameType) -> None:
        """Report the nearest caller of `frame` outside this package as the line of the borrow."""
        frame = first_user_frame(frame)
        self._at = frame.f_code, frame.f_lasti

    def line(self) -> tuple[str, int]:
        """Return file and line number of the borrow.

        They are computed here, and not by `begin()`, to keep borrowing fast.
        """
        import dis  # noqa: PLC0415  rarely needed, and a tenth of the package's import time

        code, instruction = self._at
        lines = [line for start, line in dis.findlinestarts(code) if start <= instruction and line]
        return code.co_filename, lines[-1]

    def as_data(self) -> dict[str, Any] | None:
        """Return the loan as an entry of `GetConnectionFromPoolError.holders`; None if it has ended."""
        borrower = self.borrower
        if borrower is None:
            return None
        file, line = self.line()
        return {
            "thread": borrower.name,
            "alive": borrower.is_alive(),
            "seconds": monotonic() - self.since,
            "file": file,
            "line": line,
            **({"opening": True} if self.is_opening else {}),
        }


def first_user_frame(frame: FrameType) -> FrameType:
    """Return the first frame, from `frame` towards its callers, that is not in this package."""
    while frame.f_code.co_filename in _INTERNAL and frame.f_back is not None:
        frame = frame.f_back
    return frame

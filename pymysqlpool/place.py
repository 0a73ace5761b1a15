"""A place: the right to one server connection; its session, its loan, and what outlives it."""

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


_HERE = os.path.dirname(__file__)  # noqa: PTH120  pathlib takes longer to import than this package does
#: The files that borrow by themselves, and the standard library's that runs `pool.connection()`.
_INTERNAL = frozenset(
    [*(os.path.join(_HERE, name) for name in ("pool.py", "connection.py", "block.py")), contextlib.__file__]  # noqa: PTH118
)


class Place:
    """The right to one server connection.

    A pool has `maxsize` places from birth to close. Whoever refers to a `Connection` that refers to a place, the queue
    or a borrower, has the right; a return moves it from the borrower's handle to the handle's successor. When nothing
    refers to a place any more, because a handle was dropped or an exception struck while a connection went from hand to
    hand, it is given up, and another takes over its record. So whatever happens between two lines of Python can neither
    lose a place nor make one more.
    """

    __slots__ = ("__weakref__", "is_of_parent", "loan", "record", "session", "totals")

    def __init__(self, when_dead: Callable[[ref[Place]], object], totals: Totals) -> None:
        #: None where there is none, and one is to be opened.
        self.session: Session | None = None
        self.totals = totals
        self.loan = Loan(totals)
        #: Whether this is a forked child, to whom the session does not belong.
        self.is_of_parent = False
        self.record = Record(self, when_dead)

    def end_session(self, reason: str, end: Callable[[Session], None]) -> None:
        """Close the session, if there is one, in the way that `end` does it."""
        session, self.session = self.session, None
        if session is not None:
            self.totals.has_closed(reason)
            end(session)

    def __del__(self) -> None:
        # Here, as the collector runs the finalizers of what is older first, and the socket's warns where it is open.
        if self.session is not None:
            self.totals.has_closed("lost")
            self.session.close()


class Record:
    """What a pool knows of a place. It outlives the place, and is followed by the record of the place's replacement."""

    def __init__(self, place: Place, when_dead: Callable[[ref[Place]], object]) -> None:
        #: Cleared by Python in one step, before any finalizer of what refers to the place runs; and for ever.
        self.place = ref(place, when_dead)
        self.loan = place.loan

    def replace_with(self, replacement: Record) -> Record:
        """Let `replacement` take over, and return which one has: of several threads that try, one does."""
        taken: Record = vars(self).setdefault("replacement", replacement)
        return taken

    def newest(self) -> Record:
        """The record of the place that is in force."""
        record = self
        while "replacement" in vars(record):
            record = vars(record)["replacement"]
        return record


class Loan:
    """Who has a place, since when, and from which line. It outlives the place, to tell who has lost it."""

    __slots__ = ("_at", "_totals", "borrower", "is_opening", "lost_writes", "since", "was_warned_of")

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self.borrower: Thread | None = None
        self.since = 0.0
        #: Whether the borrower does not have its connection yet, but opens it.
        self.is_opening = False
        self.was_warned_of = False
        #: Whether the handle was dropped with something written in an open transaction.
        self.lost_writes = False
        #: The instruction that borrows: its code and its number there.
        self._at: tuple[CodeType, int]

    def begin(self, frame: FrameType, now: float) -> None:
        """Note that this thread borrows, at the line that `frame` is at."""
        self._at = frame.f_code, frame.f_lasti
        self.since = now
        self.borrower = current_thread()
        self._totals.borrows += 1

    def is_for(self, frame: FrameType) -> None:
        """Correct the line where the pool borrows by itself: to the first from `frame` upwards that is the user's."""
        frame = first_user_frame(frame)
        self._at = frame.f_code, frame.f_lasti

    def line(self) -> tuple[str, int]:
        """File and line of the borrow, worked out when somebody asks: a borrow notes no more than the instruction."""
        import dis  # noqa: PLC0415  seldom needed, and a tenth of the time to import the package

        code, instruction = self._at
        lines = [line for start, line in dis.findlinestarts(code) if start <= instruction and line]
        return code.co_filename, lines[-1]

    def as_data(self) -> dict[str, Any] | None:
        """What `GetConnectionFromPoolError.holders` has of it; None if it is over."""
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
    """The first frame from `frame` upwards that runs a line of the user's."""
    while frame.f_code.co_filename in _INTERNAL and frame.f_back is not None:
        frame = frame.f_back
    return frame

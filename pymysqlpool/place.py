"""The places of a pool: each is the right to one server connection. And the queue in which they rest."""

from __future__ import annotations

import dis
import functools
import math
import random
import select
import selectors
import socket
import threading
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Callable
from weakref import ref

from .callers import INTERNAL, caller
from .fairqueue import LOOK_UP, FairQueue
from .log import logger
from .wire import LAZY

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from .connection import Connection

# Ages are shortened by up to this part, never lengthened, so that connections opened together do not all expire
# together.
_JITTER = 0.1


class Place:
    """The right to one server connection, and what is known of the session that it has at the moment.

    A pool has `maxsize` places from birth to close. Whoever refers to a `Connection` that refers to a place, the queue
    or a borrower, has the right; a return moves it from the borrower's handle to the handle's successor. When nothing
    refers to a place any more, because a handle was dropped or an exception struck while a connection went from hand to
    hand, the queue makes a new one for it. So whatever happens between two lines of Python can neither lose a place nor
    make one more.
    """

    __slots__ = (
        "__weakref__",
        "_close_socket",
        "_shared",
        "_state",
        "_template",
        "expires_at",
        "has_news",
        "is_of_parent",
        "is_open",
        "loan",
        "look_after",
        "rests_since",
        "sock",
    )

    def __init__(self, template: Connection) -> None:
        self._template = template
        self._state: dict[str, Any]
        self._shared: list[str]
        self._close_socket: Callable[[], object]
        self.is_open: bool
        #: The session's socket; None where there is no session, and where users patch `connect` away in tests of their
        #: own.
        self.sock: Any
        #: Tells without a round trip whether the server has said something, or closed: an idle session hears nothing.
        self.has_news: Callable[[], object]
        #: When the session is so old that it is replaced, and when it wants a closer look before it is lent.
        self.expires_at: float
        self.look_after: float
        self.rests_since = 0.0
        self.loan = Loan()
        #: Whether this is a forked child, to whom the session does not belong.
        self.is_of_parent = False
        self.forget_session()

    def unopened(self) -> Connection:
        """A connection for this place that is yet to be opened."""
        state = vars(self._template)
        return self._connection({**state, **{name: state[name].copy() for name in _mutable(state)}})

    def remember_session(self, connection: Connection, lifetime: float) -> None:
        """Keep what `connection` is when it was just opened: a successor starts from that, whatever a borrower changes.

        The session expires after `lifetime` seconds, or a little earlier.
        """
        connection._result = None
        attributes = vars(connection)
        pristine = {name: attributes.pop(name) for name in LAZY}
        self._shared = _mutable(attributes)  # those of a subclass
        attributes["_pristine"] = pristine
        state = attributes.copy()
        del state["_place"]
        attributes.update({name: state[name].copy() for name in self._shared})  # for the first borrower
        connection._turn = [None]  # from now on the wire keeps its mark
        self.sock = sock = connection._sock
        self.has_news = bool if sock is None else _has_news(sock)
        self._close_socket = bool if sock is None else _closer(sock)
        self.expires_at = time.monotonic() + lifetime * (1 - _JITTER * random.random())  # noqa: S311  no secret
        self._state = state
        self.is_open = True

    def forget_session(self) -> None:
        """Let go of the session and of its socket."""
        self._state = {}
        self.is_open = False
        self.sock = None
        self.has_news = bool
        self._close_socket = bool
        self.expires_at = math.inf
        self.look_after = -math.inf

    def successor(self, handle: Connection) -> Connection:
        """A fresh connection on the session of `handle`, which loses it."""
        attributes = self._state.copy()
        for name in self._shared:
            attributes[name] = attributes[name].copy()
        attributes["_turn"] = [None]
        # What PyMySQL, from 1.2 on, has last set on the socket, and the replies that are still to come.
        attributes["_current_timeout"] = handle._current_timeout
        attributes["_owed"] = handle._owed
        successor = self._connection(attributes)
        handle._sock = handle._rfile = None
        return successor

    def leave_to_parent(self) -> None:  # pragma: no cover  in a forked child
        """In a forked child: let go of the session without a word to the server."""
        self.is_of_parent = True
        self._close_socket()

    def __del__(self) -> None:
        # Nobody has the session any more. One call of C: no lock is taken, nothing can come between, and all that it
        # needs is here, also when the interpreter takes itself apart.
        self._close_socket()

    def _connection(self, attributes: dict[str, Any]) -> Connection:
        connection = object.__new__(type(self._template))
        attributes["_place"] = self
        connection.__dict__ = attributes
        return connection


class Loan:
    """Who has a place, since when, and from which line. It outlives the place, to tell who has lost it."""

    __slots__ = ("_code", "_instruction", "borrower", "since", "was_warned_of")

    def __init__(self) -> None:
        self.borrower: threading.Thread | None = None
        self.since = 0.0
        self.was_warned_of = False
        self._code: CodeType | None = None
        self._instruction = 0

    def begin(self, frame: FrameType, now: float) -> None:
        """Note that this thread borrows, at the first line from `frame` upwards that is not the pool's own."""
        if frame.f_code.co_filename in INTERNAL:
            frame = caller(frame)
        self._code = frame.f_code
        self._instruction = frame.f_lasti
        self.since = now
        self.borrower = threading.current_thread()

    def line(self) -> tuple[str, int]:
        """File and line of the borrow, worked out when somebody asks: a borrow notes no more than the instruction."""
        assert self._code is not None
        lines = [line for start, line in dis.findlinestarts(self._code) if start <= self._instruction and line]
        return self._code.co_filename, lines[-1]

    def as_data(self) -> dict[str, Any] | None:
        """`thread` (name), `alive` (whether it runs), `seconds` (so far), `file` and `line`; None if it has ended."""
        borrower = self.borrower
        if borrower is None:
            return None
        file, line = self.line()
        return {
            "thread": borrower.name,
            "alive": borrower.is_alive(),
            "seconds": time.monotonic() - self.since,
            "file": file,
            "line": line,
        }


class Places(FairQueue["Connection"]):
    """All places of a pool. Those not borrowed rest in it as connections, the open ones on top, the others below.

    At every moment: in the queue + borrowed = maxsize. It does not refer to its pool, and outlives it for the last
    goodbye.
    """

    def __init__(self, template: Connection, maxsize: int, max_waiting: int | None) -> None:
        super().__init__(maxsize, max_waiting)
        self._template = template
        self._loans: dict[ref[Place], Loan] = {}
        # When a place dies, C code appends its weak reference here: no line of Python runs there that could be
        # interrupted, and no lock is taken, as the collector may strike inside any.
        self._dead: deque[ref[Place]] = deque()
        with self.mutex:
            self._fill()

    def borrows(self) -> list[Loan]:
        """What is borrowed at this moment, the longest first."""
        loans = [loan for place, loan in list(self._loans.items()) if loan.borrower is not None and place() is not None]
        return sorted(loans, key=lambda loan: loan.since)

    def number_open(self) -> int:
        """How many sessions there are, idle or borrowed."""
        return sum(place.is_open for place in self._alive())

    def look_up(self) -> None:
        """Replace the places that nobody refers to any more, and tell where they had been borrowed."""
        if not self._dead or self.closed:
            return
        with self.mutex:
            count = len(self._dead)
            lost = self._fill()
            for _ in range(count):
                self._dead.popleft()
        for loan in lost:
            data = loan.as_data()
            if data is not None:
                _warn_of_lost(data)

    def retire(self, is_due: Callable[[Place], bool], most: int) -> list[Connection]:
        """Give up idle sessions that are due, at most `most`, and return their connections, which are to be closed."""
        retired: list[Connection] = []
        with self.mutex:
            rest: deque[Connection] = deque()
            for connection in self.queue:
                place = connection._place
                if len(retired) < most and place.is_open and is_due(place):
                    place.look_after = -math.inf  # if it comes to the worst between the lines below, a borrower looks
                    retired.append(connection)
                    rest.appendleft(place.unopened())
                else:
                    rest.append(connection)
            self.queue = rest  # in one step: an exception may strike between any two lines
            for connection in retired:
                connection._place.forget_session()
                del connection._place
        return retired

    def expire_all(self) -> None:
        """Let every session that is open now be as old as one can be."""
        for place in self._alive():
            place.expires_at = -math.inf

    def wait_until_all_back(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds until all is back in a closed pool, and return how many are still out."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self.not_full:
            while (out := len(self.borrows())) and (left := deadline - time.monotonic()) > 0:
                self.not_full.wait(min(left, LOOK_UP))
        return out

    def notify_back(self) -> None:
        """Wake who waits in `wait_until_all_back`."""
        with self.not_full:
            self.not_full.notify_all()

    def orphan(self) -> None:  # pragma: no cover  in a forked child
        """In a forked child: let go of the parent's sessions. Takes no lock: a thread that is not here may have it."""
        for place in self._alive():
            place.leave_to_parent()

    def _alive(self) -> list[Place]:
        """The places that something refers to; those that nothing does are replaced at the next look."""
        return [place for place in [reference() for reference in list(self._loans)] if place is not None]

    def _fill(self) -> list[Loan]:
        """Make new places until there are `maxsize`, and return the loans of those that are gone. The mutex is held.

        It counts what is there rather than what was lost: if it is interrupted, the next call finds the same truth.
        """
        alive = {place: loan for place, loan in self._loans.items() if place() is not None}
        lost = [loan for place, loan in self._loans.items() if place not in alive]
        self._loans = alive
        for _ in range(self.maxsize - len(alive)):
            place = Place(self._template)
            alive[ref(place, self._dead.append)] = place.loan
            self._lay(place.unopened(), below=True)
        return lost


def _warn_of_lost(data: dict[str, Any]) -> None:
    message = (
        "a connection that {thread!r} borrowed here {seconds:.1f} s ago was never returned: close() it".format_map(data)
    )
    try:
        warnings.warn_explicit(message, ResourceWarning, data["file"], data["line"])
    except ResourceWarning:
        # Warnings are errors here, but whoever looks up is not the culprit.
        logger.error("%s:%s: %s", data["file"], data["line"], message)


def _mutable(attributes: dict[str, Any]) -> list[str]:
    """The attributes that one connection could change under another if they shared them."""
    return [name for name, value in attributes.items() if type(value) in (dict, list, set)]


def _closer(sock: Any) -> Callable[[], object]:
    """A call that closes `sock`: if it is Python's own in C, and without regard to the file that PyMySQL reads from."""
    return functools.partial(socket.SocketType.close, sock) if isinstance(sock, socket.SocketType) else sock.close


def _has_news(sock: Any) -> Callable[[], object]:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return functools.partial(poll.poll, 0)

    def look() -> object:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            return selector.select(0)

    return look

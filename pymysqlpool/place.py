"""The places of a pool: each is the right to one server connection. And the queue in which they rest."""

from __future__ import annotations

import functools
import math
import os
import select
import selectors
import socket
import warnings
from collections import deque
from threading import Thread, current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable
from weakref import ref

from .callers import caller
from .fairqueue import LOOK_UP, FairQueue, QueueClosed
from .log import logger
from .session import IMPOSSIBLE
from .wire import OFTEN, RARE, own

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from .connection import Connection
    from .session import Cleaning

# Ages are shortened by up to this part, never lengthened, so that connections opened together do not all expire
# together.
_JITTER = 0.1

_new = object.__new__


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
        "is_of_parent",
        "is_open",
        "loan",
        "look_after",
        "owed",
        "poll",
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
        #: Waits so many milliseconds for the server to say something, or to close: an idle session hears nothing.
        self.poll: Callable[[int], object]
        #: When the session is so old that it is replaced, when it wants a closer look before it is lent, and since when
        #: it rests.
        self.expires_at: float
        self.look_after: float
        self.rests_since = 0.0
        #: The replies to the pool's own commands that are yet to be read, before any to a borrower's.
        self.owed: Cleaning | None
        self.loan = Loan()
        #: Whether this is a forked child, to whom the session does not belong.
        self.is_of_parent = False
        self.forget_session()

    def unopened(self) -> Connection:
        """A connection for this place that is yet to be opened."""
        connection = _new(type(self._template))
        connection.__dict__ = {name: own(value) for name, value in vars(self._template).items()}
        connection._place = self
        return connection

    def remember_session(self, connection: Connection, lifetime: float) -> None:
        """Keep what `connection` is when it was just opened: a successor starts from that, whatever a borrower changes.

        The session expires after `lifetime` seconds, or a little earlier.
        """
        connection._result = None
        attributes = vars(connection)
        pristine = {name: attributes.pop(name) for name in RARE if name in attributes}
        state = {**attributes, **{name: getattr(type(connection), name) for name in OFTEN}}
        self._shared = [name for name, value in state.items() if own(value) is not value]  # a subclass has such
        attributes.update({name: own(state[name]) for name in self._shared})  # for the first borrower
        attributes["_pristine"] = state["_pristine"] = pristine
        connection._turn = [None]  # from now on the wire keeps its mark
        self.sock = sock = connection._sock
        self.poll = bool if sock is None else _poll(sock)
        self._close_socket = bool if sock is None else _closer(sock)
        self.rests_since = now = monotonic()
        self.expires_at = now + lifetime * (1 - _JITTER * os.urandom(1)[0] / 256)
        self._state = state
        self.is_open = True

    def forget_session(self) -> None:
        """Let go of the session and of its socket."""
        self._state = {}
        self.is_open = False
        self.sock = None
        self.owed = None
        self.poll = bool
        self._close_socket = bool
        self.expires_at = math.inf
        self.look_after = -math.inf

    def successor(self, handle: Connection, cleaning: Cleaning | None) -> Connection:
        """A fresh connection on the session of `handle`, which loses it, with `cleaning` on its way to the server.

        Where the session can't be kept it is closed, and the successor is yet to be opened.
        """
        try:
            handle._turn.pop()  # type: ignore[union-attr]  # takes the token from every thread
            is_whole = handle._sock is self.sock  # PyMySQL drops a socket that has failed
        except (AttributeError, IndexError):  # the first: interrupted while the mark is set aside, as in connect()
            is_whole = False  # in the middle of a reply, which the next borrower would read
        if not is_whole:
            handle._abandon()
        elif cleaning is IMPOSSIBLE or not handle._sound:
            handle._quit()
        else:
            attributes = self._state.copy()
            if self._shared:
                attributes.update({name: own(attributes[name]) for name in self._shared})
            attributes["_place"] = self
            attributes["_turn"] = [None]
            # What PyMySQL, from 1.2 on, has last set on the socket.
            attributes["_current_timeout"] = handle._current_timeout
            successor = _new(handle.__class__)
            successor.__dict__ = attributes
            handle._sock = handle._rfile = None
            if cleaning is None or successor._has_sent(cleaning):
                return successor
            del successor._place
        self.forget_session()
        return self.unopened()

    def leave_to_parent(self) -> None:  # pragma: no cover  in a forked child
        """In a forked child: let go of the session without a word to the server."""
        self.is_of_parent = True
        self._close_socket()

    def __del__(self) -> None:
        # Nobody has the session any more. One call of C: no lock is taken, nothing can come between, and all that it
        # needs is here, also when the interpreter takes itself apart.
        self._close_socket()


class Loan:
    """Who has a place, since when, and from which line. It outlives the place, to tell who has lost it."""

    __slots__ = ("_at", "borrower", "since", "was_warned_of")

    def __init__(self) -> None:
        self.borrower: Thread | None = None
        self.since = 0.0
        self.was_warned_of = False
        #: The instruction that borrows: its code and its number there.
        self._at: tuple[CodeType, int]

    def begin(self, frame: FrameType, now: float) -> None:
        """Note that this thread borrows, at the line that `frame` is at."""
        self._at = frame.f_code, frame.f_lasti
        self.since = now
        self.borrower = current_thread()

    def is_for(self, frame: FrameType) -> None:
        """Correct the line where the pool borrows by itself: to the first from `frame` upwards that is the user's."""
        frame = caller(frame)
        self._at = frame.f_code, frame.f_lasti

    def line(self) -> tuple[str, int]:
        """File and line of the borrow, worked out when somebody asks: a borrow notes no more than the instruction."""
        import dis  # noqa: PLC0415  seldom needed, and a tenth of the time to import the package

        code, instruction = self._at
        lines = [line for start, line in dis.findlinestarts(code) if start <= instruction and line]
        return code.co_filename, lines[-1]

    def as_data(self) -> dict[str, Any] | None:
        """`thread` (name), `alive` (whether it runs), `seconds` (so far), `file` and `line`; None if it has ended."""
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

    def put(self, item: Connection, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002  queue.Queue's
        """Let a connection rest, or hand it to the first in the line. If the queue is closed, so is the connection."""
        if item._place.is_open:
            self.queue.append(item)
        else:
            self.queue.appendleft(item)
        if self._waiters or self._closed:
            try:
                self._pass_on(item)
            except QueueClosed:
                hang_up(item)
                with self.not_full:
                    self.not_full.notify_all()

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
        for connection in self.resting():
            if len(retired) >= most:
                break
            place = connection._place
            if place is None or not place.is_open or not is_due(place):
                continue
            try:
                self.queue.remove(connection)  # in one step, as a borrower takes it: it is ours, or it was theirs
            except ValueError:
                continue
            del connection._place
            place.forget_session()
            retired.append(connection)
            self.put(place.unopened())
        return retired

    def expire_all(self) -> None:
        """Let every session that is open now be as old as one can be."""
        for place in self._alive():
            place.expires_at = -math.inf

    def wait_until_all_back(self, timeout: float | None) -> int:
        """Wait up to `timeout` seconds until all is back in a closed pool, and return how many are still out."""
        deadline = math.inf if timeout is None else monotonic() + timeout
        with self.not_full:
            while (out := len(self.borrows())) and (left := deadline - monotonic()) > 0:
                self.not_full.wait(min(left, LOOK_UP))
        return out

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
        new = [Place(self._template) for _ in range(self.maxsize - len(alive))]
        # Counted before anybody can borrow them, and in a new dict: others read the old one without the mutex.
        self._loans = {**alive, **{ref(place, self._dead.append): place.loan for place in new}}
        for place in new:
            self.queue.appendleft(place.unopened())
        self._serve()
        return lost


def hang_up(connection: Connection) -> None:
    """Close an idle connection with a proper goodbye, where it is open."""
    place = connection._place
    if place.is_open:
        place.forget_session()
        connection.close()


def _warn_of_lost(data: dict[str, Any]) -> None:
    message = (
        "a connection that {thread!r} borrowed here {seconds:.1f} s ago was never returned: close() it".format_map(data)
    )
    try:
        warnings.warn_explicit(message, ResourceWarning, data["file"], data["line"])
    except ResourceWarning:
        # Warnings are errors here, but whoever looks up is not the culprit.
        logger.error("%s:%s: %s", data["file"], data["line"], message)


def _closer(sock: Any) -> Callable[[], object]:
    """A call that closes `sock`: if it is Python's own in C, and without regard to the file that PyMySQL reads from."""
    return functools.partial(socket.SocketType.close, sock) if isinstance(sock, socket.SocketType) else sock.close


def _poll(sock: Any) -> Callable[[int], object]:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return poll.poll

    def look(milliseconds: int) -> object:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            return selector.select(milliseconds / 1000)

    return look

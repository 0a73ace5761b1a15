"""Who may have a connection, and when."""

from __future__ import annotations

import contextlib
import decimal
import math
import numbers
import os
import queue
import threading
import warnings
import weakref
from logging import DEBUG
from sys import _getframe
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Generic, NoReturn

from pymysql.err import MySQLError

from .connection import Connection, Template
from .errors import (
    GetConnectionFromPoolError,
    PoolClosedError,
    PoolError,
    ReturnConnectionToPoolError,
    refuses_sessions,
    set_outcome,
)
from .fairqueue import LineTooLong, QueueClosed
from .log import logger
from .opening import Opener
from .place import first_user_frame
from .places import Places, close_idle
from .reset import ROLLBACK
from .session import PING_TIMEOUT, Session, is_of_signal
from .statements import BROKEN, DIRTY, DOUBTFUL, LOST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self, TypeVar  # which every type checker knows

    from .place import Place
    from .stats import PoolStats

    Connection_co = TypeVar("Connection_co", bound=Connection, default=Connection, covariant=True)
else:
    from typing import TypeVar

    Connection_co = TypeVar("Connection_co", covariant=True)
#: A pool's `size` where neither it nor a smaller `maxsize` is given.
DEFAULT_SIZE = 10

# Keywords that would go through to PyMySQL. The last two are those of the old package between its classic releases and
# its last ones.
_REFUSED = {
    "defer_connect": "the pool opens a connection when one is needed",
    "max_size": "the bound is given as maxsize=",
    "pre_create": "how many are opened at once is given as pre_create_num=",
}


class ConnectionPool(Generic[Connection_co]):
    """At most `maxsize` connections to one server, lent in the order of asking. All times are seconds, as floats.

    - `size` (None: 10, or `maxsize` where that is less): how many are meant to be open; `maxsize`: the bound under
      load (None: `size`); `pre_create_num`: how many are opened at once, up to `maxsize` (None: all of `size`).
    - `name`: defaults to `host-port-user-database`.
    - `con_lifetime` (3600.0; 0, negative or None: no end): a connection older than this is replaced when it is borrowed
      or returned.
    - `idle_timeout` (600.0; None: never): how long connections above `size` may rest.
    - `ping_after` (30.0; 0: always; None: never): one that has rested longer is pinged before it is lent.
    - `max_waiting` (None: no limit): with so many threads in the line, the next is refused at once.
    - `leak_warning` (None: never): a connection held longer is logged, with the line of the borrow.
    - `reset`: what of a borrower's session is undone before the next one's first command: "auto" what may have been
      left, "session" always all, "rollback" transactions only, None nothing.
    - `connection_class`: a subclass of `Connection`.
    - `on_connect` (None): called with each new session's connection, as PyMySQL's own without a pool, and again after
      each reset, before the next borrower gets it; what it leaves open is committed. An error in it is an error in
      opening the connection.

    All other keywords are those of `pymysql.connect()`; a `password` that is a callable is asked at each opening.

    Raises TypeError or ValueError for a bad argument and PyMySQL's own error where a connection can't be opened; what
    has been opened by then is closed.
    """

    def __init__(
        self,
        size: int | None = None,
        name: str | None = None,
        *by_name_only: NoReturn,
        maxsize: int | None = None,
        pre_create_num: int | None = None,
        con_lifetime: float | None = 3600.0,
        idle_timeout: float | None = 600.0,
        ping_after: float | None = 30.0,
        max_waiting: int | None = None,
        leak_warning: float | None = None,
        reset: str | None = "auto",
        connection_class: type[Connection_co] = Connection,  # type: ignore[assignment]  # the default of both
        on_connect: Callable[[Connection_co], object] | None = None,
        **connect_kwargs: Any,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name should be a string, not {name!r}: a bound is given as maxsize=")
        if by_name_only:
            raise TypeError(
                "only size and name are given by position: maxsize=, pre_create_num=, con_lifetime=, host= and all "
                "others by name"
            )
        size, maxsize, pre_create_num = _counts(size, maxsize, pre_create_num)
        if max_waiting is not None:
            _check_count("max_waiting", max_waiting)
        if reset not in ("auto", "session", "rollback", None):
            raise ValueError(f"reset should be 'auto', 'session', 'rollback' or None, not {reset!r}")
        if not (isinstance(connection_class, type) and issubclass(connection_class, Connection)):
            raise TypeError(
                f"connection_class should be a subclass of pymysqlpool.Connection, not {connection_class!r}"
            )
        if not (on_connect is None or callable(on_connect)):
            raise TypeError(f"on_connect should be a function of a connection, not {on_connect!r}")
        _check_keywords(connect_kwargs)
        _replace_deprecated(connect_kwargs)
        self.maxsize = maxsize
        lifetime = _seconds("con_lifetime", con_lifetime, at_least=-math.inf)
        self.con_lifetime = lifetime if lifetime is not None and lifetime > 0 else math.inf
        self.idle_timeout = _seconds("idle_timeout", idle_timeout)
        self.ping_after = _seconds("ping_after", ping_after)
        self.leak_warning = _seconds("leak_warning", leak_warning)
        self.reset = reset
        self.name = name or "{}-{}-{}-{}".format(
            connect_kwargs.get("host") or "localhost",
            connect_kwargs.get("port") or 3306,
            connect_kwargs.get("user") or "",
            connect_kwargs.get("database") or "",
        )
        self._size = size
        self._ping_after = math.inf if self.ping_after is None else self.ping_after
        self._max_waiting = max_waiting
        self._on_connect: Callable[[Any], object] | None = on_connect
        self._observers: list[Callable[[str, float], object]] = []
        self._template = Template(connection_class, connect_kwargs)
        self._opener = Opener(self.name, self.con_lifetime, reset)
        self._begin()
        _announce(self)
        try:
            for connection in [self._pool.get() for _ in range(pre_create_num)]:
                self._open(connection)
                self._pool.put(connection)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Begin with places of which none is open, in a new pool or in a forked child."""
        self._pool = Places(self._template, self.maxsize, self._max_waiting)
        # A pool that is dropped, or alive when the interpreter exits, takes its leave from the server.
        self._finalizer = weakref.finalize(self, _close_all_idle, self._pool)
        self._last_failure: MySQLError | None = None
        self._next_check = self._next_maintenance = 0.0
        _pools.add(self)

    # Borrow

    def get_connection(  # noqa: C901, PLR0912  one for each way in which it ends
        self,
        timeout: float | None = 1,
        retry_num: int = 1,
        pre_ping: bool = False,
        *,
        retry_interval: float | None = None,
    ) -> Connection_co:
        """Borrow a connection, in up to `retry_num + 1` tries of `timeout` seconds each.

        A `timeout` of 0 is at once, None for ever. It is the wait in the line, in which a retry keeps its place;
        opening a connection has PyMySQL's `connect_timeout`. Where the server is full (1040, `max_user_connections`) or
        a node of a cluster is not ready (1047) the thread waits too, for what is returned and for the server.
        `retry_interval` is the name that later releases of the old package gave the seconds of a try. With `pre_ping`
        the connection is pinged, however short it has rested.

        Raises `GetConnectionFromPoolError` when the time is over, `PoolClosedError` when the pool is closed, and
        PyMySQL's own error when the server can't be reached.
        """
        if retry_interval is not None:
            timeout = retry_interval
        wait: float | None = 2.0
        if timeout != 1 or retry_num != 1:
            wait = _whole_wait("timeout" if retry_interval is None else "retry_interval", timeout, retry_num)
        while True:
            try:
                connection = self._pool.get(True, wait)
            except LineTooLong:
                self._pool.refused.increment()
                raise self._exhausted(
                    f"now: {self._max_waiting} wait already, and max_waiting is {self._max_waiting}"
                ) from None
            except queue.Empty:
                self._pool.timed_out.increment()
                error = self._exhausted(f"within {timeout}*{retry_num + 1} second(s)")
                if self._last_failure is not None:
                    raise error from self._last_failure
                raise error  # noqa: B904  while handling queue.Empty, as ever
            except QueueClosed:
                raise PoolClosedError(f"pool({self.name}) is closed") from None
            try:
                place = connection._place
                now = monotonic()
                try:
                    place.loan.begin(_getframe(1), now)
                except ValueError:  # no line of Python has called: it is a thread's or a greenlet's first
                    place.loan.begin(_getframe(), now)
                session = place.session
                if (
                    session is None
                    or now >= session.expires_at
                    or now >= session.check_at
                    or pre_ping
                    or session.poll(0)
                ):
                    connection = self._make_ready(connection, now, pre_ping=pre_ping)
                connection._pool = self
                if now >= self._next_check:
                    self._check(now)
                    self._notify_observers("wait", place.totals.last_wait())
                if logger.level <= DEBUG:
                    logger.debug("Get connection from pool(%s)", self.name)
            except BaseException as reason:
                waited = self._put_back_unused(connection)
                if not (isinstance(reason, MySQLError) and refuses_sessions(reason)):
                    raise
            else:
                return connection  # type: ignore[return-value]  # the template makes them of this class
            # The server is full: who wants a connection waits for one, as where the pool is.
            wait = wait and max(wait - waited - (monotonic() - now), 0.0)

    @contextlib.contextmanager
    def connection(
        self,
        timeout: float | None = 1,
        retry_num: int = 1,
        pre_ping: bool = False,
        *,
        retry_interval: float | None = None,
    ) -> Iterator[Connection_co]:
        """A block with the whole `Connection`: commit, or rollback on an exception, then back. As `get_connection`."""
        connection = self.get_connection(timeout, retry_num, pre_ping, retry_interval=retry_interval)
        connection._place.loan.is_for(_getframe())
        with connection:
            if connection._block is not None:  # else a subclass has an __enter__ of its own
                connection._block.has_handle_alone = True
            yield connection

    def _make_ready(self, connection: Connection, now: float, *, pre_ping: bool) -> Connection:
        """A connection that may be lent: `connection`, opened where it was not, or another where it is not fit."""
        place = connection._place
        session = place.session
        if session is not None:
            if reason := _why_expired(session, now):
                place.end_session(reason, Session.quit)
            elif fault := self._find_fault(connection, session, now, pre_ping=pre_ping):
                place.end_session(fault, Session.abandon)
            else:
                return connection
            connection = self._template.copy(place)
        self._open(connection)
        if self._pool.closed:  # meanwhile
            raise PoolClosedError(f"pool({self.name}) is closed")
        return connection

    def _find_fault(self, connection: Connection, session: Session, now: float, *, pre_ping: bool) -> str | None:
        """Why an idle session is not there, or not clean; None where it is both. No lock is held."""
        pings = pre_ping or now - session.idle_since >= self._ping_after
        was_reset = self._on_connect is not None and session.pending not in (None, ROLLBACK)
        must_read = pings or was_reset or session.is_first_reset()
        try:
            if session.pending is not None and (must_read or session.poll(0)):
                connection._read_pending(session)
            if pings:
                with connection._timeouts(PING_TIMEOUT):
                    connection.ping()
        except (OSError, MySQLError) as error:
            if is_of_signal(error, now, PING_TIMEOUT):
                raise
            is_answer = (
                session.pending is not None and isinstance(error, MySQLError) and connection._is_reusable_after(error)
            )
            return "reset" if is_answer else "broken"
        if was_reset:
            try:
                with connection._timeouts(connection.connect_timeout):
                    self._call_on_connect(connection, session)
            except Exception:  # noqa: BLE001  if it lasts, it is raised for the session that takes the place of this
                return "reset"
        # Where no reply is pending the server has closed the session (KILL, wait_timeout, restart), perhaps with a
        # parting error packet.
        return "broken" if session.pending is None and session.poll(0) else None

    def _call_on_connect(self, connection: Connection, session: Session) -> None:
        """Call `on_connect`, outside every lock, with the connection of a session that is new, or as good as new.

        Raises what it raises.
        """
        if self._on_connect is None or session.sock is None:
            return
        token, connection._token = connection._token, None  # what it does is nothing that a borrower leaves behind
        self._on_connect(connection)
        if connection._sock is session.sock:
            connection.commit()  # which reads what it has left unread, too
        if connection._sock is not session.sock:
            raise PoolError("on_connect has closed the connection, or opened it again")
        connection._token, connection._result = token, None

    def _open(self, connection: Connection) -> None:
        """Open a connection, outside every lock. Raises PyMySQL's error where that fails."""
        place = connection._place
        place.loan.is_opening = True
        before = vars(connection).copy()
        began = monotonic()
        try:
            # The handshake, too, has `connect_timeout` for each of its steps.
            with connection._timeouts(connection.connect_timeout):
                session = self._opener.open(connection)
                self._call_on_connect(connection, session)
            self._template.remember(session, connection, before)
            session.check_at = session.idle_since + self._ping_after
            place.totals.count_opened(seconds := monotonic() - began)
            place.session = session
        except BaseException as error:
            place.totals.failed_to_open += 1
            if isinstance(error, MySQLError):
                set_outcome(error, may_have_committed=False)
                self._last_failure = _without_frames(error)
                if refuses_sessions(error):
                    self._pool.put_off_openings()
            connection._force_close()
            raise
        finally:
            place.loan.is_opening = False
        self._last_failure = None
        self._pool.allow_openings()
        self._notify_observers("create", seconds)

    def _replace_session(self, connection: Connection) -> None:
        """Give a borrowed connection another session: its own has turned out not to be clean before it was used."""
        place = connection._place
        place.end_session("reset", Session.abandon)
        connection._force_close()
        other = self._template.copy(place)
        self._open(other)
        assert place.session is not None
        connection._take_session(place.session)
        other._sock = other._rfile = None

    def _put_back_unused(self, connection: Connection) -> float:
        """Put a place back that was taken and could not be lent. Returns how many seconds it was waited for."""
        place: Place = vars(connection).pop("_place")
        place.loan.borrower = None
        waited = place.totals.last_wait()
        place.end_session("pool" if self._pool.closed else "exception", Session.abandon)
        self._pool.put(self._template.copy(place))
        return waited

    def _exhausted(self, text: str) -> GetConnectionFromPoolError:
        """The error for a borrower who has got nothing, naming the culprits."""
        self._maintain(monotonic())
        error = GetConnectionFromPoolError(f"can't get connection from pool({self.name}) {text}")
        error.holders = []
        for loan in self._pool.borrows():
            holder = loan.as_data()
            if holder is None:
                continue
            error.holders.append(holder)
            if hasattr(error, "add_note"):  # pragma: no branch  since Python 3.11
                ended = "" if holder["alive"] else " (ended)"
                own = " - which now waits for itself" if loan.borrower is threading.current_thread() else ""
                error.add_note(
                    "held for {seconds:.3f} s by {thread!r}{0}, borrowed at {file}:{line}{1}".format(
                        ended, own, **holder
                    )
                )
        if self.maxsize == self._size and hasattr(error, "add_note"):  # pragma: no branch  the latter
            error.add_note(f"the pool is fixed at {self._size}: a larger maxsize= lets it grow")
        return error

    # Care, taken at borrow and return: the pool has no thread of its own

    def _check(self, now: float) -> None:
        """Take care of what is due, and set the time of the next check: at once where there are observers.

        So a pool without observers spends no step on them.
        """
        if now >= self._next_maintenance:
            self._maintain(now)
        self._next_check = self._next_maintenance
        if self._observers:  # looked at afterwards, as one may have come meanwhile
            self._next_check = -math.inf

    def _maintain(self, now: float) -> None:
        """Log what is held for too long, and close what has rested for too long."""
        self._next_maintenance = math.inf
        if self.leak_warning is not None:
            self._check_leaks(now, self.leak_warning)
        if self.idle_timeout is not None and self._size < self.maxsize:
            latest = now - self.idle_timeout
            most = self.total_num - self._size
            self._pool.close_idle_if("idle", lambda session: session.idle_since <= latest, most)
            self._next_maintenance = min(self._next_maintenance, now + self.idle_timeout / 10)

    def _check_leaks(self, now: float, leak_warning: float) -> None:
        """Log the connections that are held for longer than `leak_warning`, each once."""
        self._next_maintenance = min(self._next_maintenance, now + leak_warning)
        for loan in self._pool.borrows():
            holder = loan.as_data()
            if loan.was_warned_of or holder is None:
                continue
            if now - loan.since >= leak_warning:
                loan.was_warned_of = True
                logger.warning(
                    "pool(%s): a connection is held for %.1f s by %r, borrowed at %s:%d",
                    self.name,
                    now - loan.since,
                    holder["thread"],
                    holder["file"],
                    holder["line"],
                )
            else:
                self._next_maintenance = min(self._next_maintenance, loan.since + leak_warning)

    def _observe(self, observer: Callable[[str, float], object]) -> None:
        """From now on call `observer` with "wait", "create" or "use", and how many seconds that took, for histograms.

        It is called for each connection that is borrowed, opened or returned, in the thread that does so, when that is
        done, and outside of every lock. What takes long there keeps that thread, and nobody else. An error is logged.
        """
        self._pool.forget_last_waits()
        self._observers.append(observer)
        self._next_check = -math.inf

    def _notify_observers(self, what: str, seconds: float) -> None:
        for observer in self._observers:
            try:
                observer(what, seconds)
            except Exception:  # noqa: BLE001  whatever it is, it is not the borrower's
                logger.exception("pool(%s): an observer has failed", self.name)

    # Return

    def put_connection(self, connection: Connection) -> None:
        """`connection.close()`. Raises `ReturnConnectionToPoolError` for what is not a connection of this pool."""
        if getattr(connection, "_pool", None) is not self:
            raise ReturnConnectionToPoolError(f"pool({self.name}) takes back its own connections, not {connection!r}")
        connection.close()

    _put_connection = put_connection

    def _take_back(  # noqa: C901  one for each way in which it ends
        self, handle: Connection, error: BaseException | None = None
    ) -> None:
        """End the loan of `handle`, which may have met with `error`. It waits for no server."""
        place = handle.__dict__.pop("_place", None)  # one atomic step: of two threads that return at once, one does
        if place is None or place.is_of_parent:
            return
        if place.record.place() is None:
            # The collector has given it up, and may have closed its socket; and then a finalizer returns it.
            handle._force_close()
            return
        if error is not None:
            handle._record_error(error)
        now = monotonic()
        session = place.session
        if not handle._detach_session(session) or session is None:  # lost, or in the middle of a reply
            connection = self._recreate(place, "broken", Session.abandon)
        elif now >= session.expires_at or (handle._left and self._is_beyond_reset(session, handle._left)):
            reason = "exception" if handle._left == BROKEN else _why_expired(session, now) or "reset"
            connection = self._recreate(place, reason, Session.quit)
        else:
            session.idle_since = now
            session.check_at = now + self._ping_after
            if handle._left or handle._may_be_in_transaction:
                connection = self._reuse(place, session, handle, error)
            else:
                connection = self._template.successor(place, handle._current_timeout)
        loan = place.loan
        loan.borrower = None
        seconds = now - loan.since
        totals = place.totals
        totals.seconds_used += seconds
        if seconds > totals.longest_use:  # noqa: PLR1730  max() takes three times as long
            totals.longest_use = seconds
        if loan.was_warned_of:
            loan.was_warned_of = False
            logger.warning(
                "pool(%s): the connection borrowed at %s:%d has come back after %.1f s",
                self.name,
                *loan.line(),
                seconds,
            )
        self._pool.put(connection)
        if now >= self._next_check:
            self._check(now)
            self._notify_observers("use", seconds)
        if logger.level <= DEBUG:
            logger.debug("Put connection back to pool(%s)", self.name)

    def _is_beyond_reset(self, session: Session, left: int) -> bool:
        """Whether what is left is what the server can't undo."""
        reset = session.reset
        return left == BROKEN or (reset is not None and left >= DIRTY and (left == LOST or bool(reset.server.kept)))

    def _reuse(self, place: Place, session: Session, handle: Connection, error: BaseException | None) -> Connection:
        """A connection with the same session, and on its way to the server what undoes what the borrower has left."""
        commands = None
        if handle._left >= DIRTY and session.reset is not None:
            is_doubtful = handle._left == DOUBTFUL or self._on_connect is not None  # which may have chosen a database
            commands = session.reset.commands(with_database=is_doubtful)
            if handle._may_be_in_transaction or is_doubtful:
                # A proxy may answer the reset itself. Nor does a reset end an XA transaction that is prepared: MariaDB
                # goes on half in it, and commits nothing any more. A ROLLBACK fails there, and costs the session.
                commands = ROLLBACK + commands
        elif handle._may_be_in_transaction and (self.reset is not None or error is not None):
            commands = ROLLBACK
        connection = self._template.successor(place, handle._current_timeout)
        if commands is not None:
            try:
                connection._send(session, commands)
            except MySQLError:
                return self._recreate(place, "broken", Session.abandon)
            if session.is_first_reset() or (self._on_connect is not None and commands != ROLLBACK):
                session.check_at = session.idle_since
        return connection

    def _recreate(self, place: Place, reason: str, end: Callable[[Session], None]) -> Connection:
        """A connection that is yet to be opened; its session is closed."""
        place.end_session(reason, end)
        return self._template.copy(place)

    # State

    def size(self) -> int:
        """How many connections can be borrowed at this moment without waiting."""
        self._pool.replace_lost()
        return self._pool.qsize()

    @property
    def available_num(self) -> int:
        """How many connections are open and idle."""
        return self._pool.number_idle()

    @property
    def total_num(self) -> int:
        """How many connections are open in all, idle or borrowed."""
        return self._pool.number_open()

    connection_num = total_num

    def stats(self) -> PoolStats:
        """What there is at this moment, and what has been counted since the pool was made. It takes no lock."""
        self._pool.replace_lost()
        return self._pool.stats()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r}: {self.available_num} idle of {self.total_num} open, "
            f"{len(self._pool.borrows())} borrowed, {self._pool.waiting()} waiting, maxsize {self.maxsize}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a ConnectionPool is bound to sockets and threads of this process and can't be pickled or copied"
        )

    # End

    def drain(self) -> None:
        """Retire every connection opened before now: the idle ones at once, the others when they come back."""
        self._pool.expire_all()
        self._pool.close_idle_if("drained", lambda session: session.expires_at == -math.inf, self.maxsize)

    def close(self, timeout: float | None = 0.0) -> int:
        """Lend no more, wake those that wait, close what is idle; what is borrowed is closed when it comes back.

        Waits up to `timeout` seconds (None: for ever) for that, and returns how many are still out. Closing again does
        no harm.
        """
        _seconds("timeout", timeout)
        for connection in self._pool.close():
            close_idle(connection, "pool")
        return self._pool.wait_until_all_back(timeout)

    def __enter__(self) -> Self:
        """The pool itself, which is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool."""
        self.close()

    def _reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        """After a fork: the sessions are the parent's, who knows nothing of what is done here. Takes no lock."""
        self._finalizer.detach()
        closed = self._pool.closed
        self._pool.leave_sessions_to_parent()
        self._template.reset_in_child()
        self._begin()
        if closed:
            self.close()


class ConnectionPoolSingleton(ConnectionPool):
    """One pool for the whole program: the first call makes it, each later one returns it and looks at no argument."""

    _first: dict[type, ConnectionPoolSingleton] = {}  # noqa: RUF012  shared on purpose

    def __new__(cls, *args: Any, **kwargs: Any) -> ConnectionPoolSingleton:
        """The pool of this class, made now if there is none or it has been closed."""
        one = cls._first.get(cls)
        while one is not None and one._pool.closed and "_next" in vars(one):
            one = vars(one)["_next"]
        if one is not None and not one._pool.closed:
            return one
        made = super().__new__(cls)
        ConnectionPool.__init__(made, *args, **kwargs)
        # setdefault is one atomic step: of two threads that get here at once, each with a pool, one is first.
        first: ConnectionPoolSingleton
        first = cls._first.setdefault(cls, made) if one is None else vars(one).setdefault("_next", made)
        if first is not made:
            made.close()
        return first

    if not TYPE_CHECKING:  # its arguments are those of the class above

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """Nothing: `__new__` has done it."""


_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
#: Called with each pool that is made from now on, before it opens a connection: `metrics` observes them all.
_watchers: list[Callable[[ConnectionPool], object]] = []


def _announce(pool: ConnectionPool) -> None:
    for watch in _watchers:
        watch(pool)


def _reset_in_child() -> None:  # pragma: no cover  in a forked child
    for pool in list(_pools):
        pool._reset_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
    os.register_at_fork(after_in_child=_reset_in_child)


def _close_all_idle(places: Places) -> None:
    """Close what is idle, without a lock, as the collector may call this inside any; a thread may go on at exit."""
    while places.queue:
        with contextlib.suppress(IndexError):
            close_idle(places.queue.pop(), "pool")


def _why_expired(session: Session, now: float) -> str | None:
    if now < session.expires_at:
        return None
    return "drained" if session.expires_at == -math.inf else "lifetime"


def _check_count(name: str, value: int, at_least: int = 0, at_most: float = math.inf) -> int:
    """`value`, if it is a whole number within the limits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} should be a whole number, not {value!r}")
    if not at_least <= value <= at_most:
        limit = f"at least {at_least}" if value < at_least else f"at most {at_most}"
        raise ValueError(f"{name} should be {limit}, not {value}")
    return value


def _counts(size: int | None, maxsize: int | None, pre_create_num: int | None) -> tuple[int, int, int]:
    """The three of a pool, with their defaults."""
    if size is None:
        size = DEFAULT_SIZE if maxsize is None else min(DEFAULT_SIZE, _check_count("maxsize", maxsize, at_least=1))
    _check_count("size", size, at_least=1)
    maxsize = size if maxsize is None else _check_count("maxsize", maxsize, at_least=size)
    pre_create_num = size if pre_create_num is None else _check_count("pre_create_num", pre_create_num, at_most=maxsize)
    return size, maxsize, pre_create_num


def _seconds(name: str, seconds: Any, at_least: float = 0) -> float | None:
    """`seconds` as a float, if it is a number of seconds, or None."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (numbers.Real, decimal.Decimal)):
        raise TypeError(f"{name} should be seconds or None, not {seconds!r}")
    value: Any = seconds
    if not value >= at_least:
        raise ValueError(f"{name} should be at least {at_least} seconds, not {seconds!r}")
    if value > threading.TIMEOUT_MAX:
        raise ValueError(f"{name} should be at most {threading.TIMEOUT_MAX:.0f} seconds, not {seconds!r}")
    return float(value)


def _whole_wait(name: str, timeout: float | None, retry_num: int) -> float | None:
    """The seconds of all tries: a retry is so long again, at the same position in the line."""
    if not isinstance(retry_num, int):
        raise TypeError(
            f"retry_num should be a whole number, not {retry_num!r}: the seconds of a try are given as retry_interval="
        )
    if retry_num < 0:
        raise ValueError(f"retry_num should be at least 0, not {retry_num}")
    seconds = _seconds(name, timeout)
    return seconds and seconds * (1 + retry_num)


def _check_keywords(connect_kwargs: dict[str, Any]) -> None:
    """Raise for what can be no keyword of PyMySQL's here."""
    for keyword, reason in _REFUSED.items():
        if keyword in connect_kwargs:
            raise TypeError(f"{keyword} is no argument: {reason}")


def _replace_deprecated(connect_kwargs: dict[str, Any]) -> None:
    """Do for PyMySQL's deprecated keywords what it does itself, but with the warning at the user's line."""
    for old, new in (("db", "database"), ("passwd", "password")):
        value = connect_kwargs.pop(old, None)
        if value is not None and not connect_kwargs.get(new):
            line = first_user_frame(_getframe(1))
            registry = line.f_globals.setdefault("__warningregistry__", {})
            warnings.warn_explicit(
                f"{old!r} is deprecated, use {new!r}",
                DeprecationWarning,
                line.f_code.co_filename,
                line.f_lineno,
                registry=registry,
            )
            connect_kwargs[new] = value


def _without_frames(error: MySQLError) -> MySQLError:
    """A copy of `error` that refers to no frames, which would keep connections alive."""
    copy = type(error).__new__(type(error), *error.args)  # not by its class, which may have a signature of its own
    vars(copy).update({name: value for name, value in vars(error).items() if name != "original_exception"})
    return copy

"""The pool: it lends connections, takes them back, and decides when a session is reused, replaced or closed."""

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

    from typing_extensions import Self, TypeVar  # part of every type checker

    from .place import Place
    from .stats import PoolStats

    Connection_co = TypeVar("Connection_co", bound=Connection, default=Connection, covariant=True)
else:
    from typing import TypeVar

    Connection_co = TypeVar("Connection_co", covariant=True)
#: A pool's `size` if neither `size` nor a smaller `maxsize` is given.
DEFAULT_SIZE = 10

# Keywords that are refused, with the reason. They would be passed on to PyMySQL otherwise. The last two are from
# unreleased development versions of pymysql-pool.
_REFUSED = {
    "defer_connect": "the pool opens a connection when one is needed",
    "max_size": "use maxsize= for the most connections",
    "pre_create": "use pre_create_num= for the number of connections to open at the start",
}


class ConnectionPool(Generic[Connection_co]):
    """A pool of at most `maxsize` connections to one server, lent in the order in which they are requested.

    All times are seconds, as floats.

    - `size` (int; default 10, or `maxsize` if that is less): the number of connections to keep open.
    - `name` (str; default `host-port-user-database`): appears in errors and in the log.
    - `maxsize` (int; default `size`): the most connections that can be open at once.
    - `pre_create_num` (int; default `size`): how many connections the constructor opens, up to `maxsize`.
    - `con_lifetime` (seconds, default 3600.0; 0, negative or None: unlimited): an older connection is replaced when it
      is borrowed or returned.
    - `idle_timeout` (seconds, default 600.0; None: unlimited): how long a connection above `size` may be idle before it
      is closed.
    - `ping_after` (seconds, default 30.0; 0: always; None: never): a connection that was idle for longer is pinged
      before it is lent.
    - `max_waiting` (int; default None, no limit): if this many threads are waiting, the next one is refused at once.
    - `leak_warning` (seconds; default None, never): a connection that has been borrowed for longer is logged as a
      warning, with the line where it was borrowed.
    - `reset` (default "auto"): what is undone between two borrowers: "auto" everything that the borrower may have
      changed, "session" always everything, "rollback" only transactions, None nothing.
    - `connection_class` (default `Connection`): the class of the connections, a subclass of `Connection`.
    - `on_connect` (default None): a callable that is called with the connection of each new session, and again after
      each reset, before the connection is lent. It can use the connection like a PyMySQL connection without a pool; an
      open transaction is committed afterwards. An error in it is treated as an error in opening the connection.

    All other keywords are passed to `pymysql.connect()`. If `password` is a callable, it is called for each new
    connection, and returns the password.

    `maxsize`, `name`, `con_lifetime` (`math.inf` if unlimited), `idle_timeout`, `ping_after`, `leak_warning` and
    `reset` are also attributes of the pool. They are meant to be read, not changed.

    Raises TypeError or ValueError for a wrong argument, and PyMySQL's own error if a connection cannot be opened, also
    if the server has no free connection (1040): the constructor does not wait. The connections that were opened before
    are then closed.
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
            raise TypeError(f"name should be a string, not {name!r}: use maxsize= for the most connections")
        if by_name_only:
            raise TypeError(
                "only size and name can be given by position: maxsize=, pre_create_num=, con_lifetime=, host= and all "
                "others must be given by name"
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
            raise TypeError(f"on_connect should be a callable that takes a connection, not {on_connect!r}")
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
        _notify_watchers(self)
        try:
            for connection in [self._pool.get() for _ in range(pre_create_num)]:
                self._open(connection)
                self._pool.put(connection)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Set up the places, without opening any: in a new pool, and in a forked child."""
        self._pool = Places(self._template, self.maxsize, self._max_waiting)
        # Closes the idle connections when the pool is garbage collected, or when the interpreter exits.
        self._finalizer = weakref.finalize(self, _close_all_idle, self._pool)
        self._last_failure: MySQLError | None = None
        # The only time that borrow and return compare with: it is -inf while there are observers.
        self._next_check = self._next_maintenance = 0.0
        _pools.add(self)

    # Borrow

    def get_connection(  # noqa: C901, PLR0912  each branch is one outcome of a borrow
        self,
        timeout: float | None = 1,
        retry_num: int = 1,
        pre_ping: bool = False,
        *,
        retry_interval: float | None = None,
    ) -> Connection_co:
        """Borrow a connection, and return it.

        - `timeout` (seconds; 0: do not wait; None: wait forever) and `retry_num` (int): wait for up to `retry_num + 1`
          times `timeout` for a connection. A retry does not change the thread's position among the waiting threads.
          Opening a connection is not included in this time; PyMySQL's `connect_timeout` limits it.
        - `pre_ping`: ping the connection before it is lent, even if it was idle for less than `ping_after`.
        - `retry_interval` (seconds): replaces `timeout`; the name that later releases of the old package used.

        If the server has no free connection (errors 1040, ER_CON_COUNT_ERROR, and 1203 or 1226, for the limits of one
        user), or a cluster node is not ready (1047, ER_UNKNOWN_COM_ERROR), the thread waits until a connection is
        returned or the server accepts a new one.

        Raises `GetConnectionFromPoolError` if there is no connection in time or `max_waiting` threads are waiting
        already, `PoolClosedError` if the pool is closed, and PyMySQL's own error if a connection cannot be opened.
        """
        if retry_interval is not None:
            timeout = retry_interval
        wait: float | None = 2.0  # the default arguments' value, which needs no check
        if timeout != 1 or retry_num != 1:
            wait = _total_timeout("timeout" if retry_interval is None else "retry_interval", timeout, retry_num)
        while True:
            try:
                connection = self._pool.get(True, wait)
            except LineTooLong:
                self._pool.refused.increment()
                raise self._exhausted(
                    f"now: {self._max_waiting} threads are waiting already, the most that max_waiting allows"
                ) from None
            except queue.Empty:
                self._pool.timed_out.increment()
                error = self._exhausted(f"within {timeout}*{retry_num + 1} second(s)")
                if self._last_failure is not None:
                    raise error from self._last_failure
                raise error  # noqa: B904  queue.Empty remains its context, as in earlier releases
            except QueueClosed:
                raise PoolClosedError(f"pool({self.name}) is closed") from None
            try:
                place = connection._place
                now = monotonic()
                try:
                    place.loan.begin(_getframe(1), now)
                except ValueError:  # pragma: no cover  no calling frame, and no tracing: the first function of a thread
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
                return connection  # type: ignore[return-value]  # the template makes connections of this class
            # The server is full: wait for a connection, as if the pool were exhausted.
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
        """Borrow a connection for a `with` block, whose target is the `Connection` itself and not a cursor.

        The end of the block commits, or rolls back after an exception, and returns the connection. Parameters and
        errors are those of `get_connection()`; an error in the commit is raised by the block.
        """
        connection = self.get_connection(timeout, retry_num, pre_ping, retry_interval=retry_interval)
        connection._place.loan.is_for(_getframe())
        with connection:
            if connection._block is not None:  # None if a subclass overrides __enter__
                connection._block.has_handle_alone = True
            yield connection

    def _make_ready(self, connection: Connection, now: float, *, pre_ping: bool) -> Connection:
        """Return a connection that can be lent: `connection`, opened if necessary, or a new one if it is not usable.

        `now` is the time of the borrow. Raises what `_open()` raises, and `PoolClosedError`.
        """
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
        if self._pool.closed:  # while the connection was being opened
            raise PoolClosedError(f"pool({self.name}) is closed")
        return connection

    def _find_fault(self, connection: Connection, session: Session, now: float, *, pre_ping: bool) -> str | None:
        """Return None if an idle session is alive and clean, else the reason for closing it, a field of `Closed`."""
        pings = pre_ping or now - session.idle_since >= self._ping_after
        was_reset = self._on_connect is not None and session.pending not in (None, ROLLBACK)
        try:
            if session.pending is not None:  # the replies have arrived, or must be read before the ping or `on_connect`
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
            except Exception:  # noqa: BLE001  if it recurs on the new session, it is raised there
                return "reset"
        # An idle session without pending replies has nothing to read unless the server has closed it (KILL,
        # wait_timeout, restart), in some cases after a last error packet.
        return "broken" if session.pending is None and session.poll(0) else None

    def _call_on_connect(self, connection: Connection, session: Session) -> None:
        """Call `on_connect` with the connection of a session that is new or has just been reset. Holds no lock.

        Raises what `on_connect` raises, and `PoolError` if it has closed or reconnected the connection.
        """
        if self._on_connect is None or session.sock is None:
            return
        token, connection._token = connection._token, None  # so that its statements are not counted as a borrower's
        self._on_connect(connection)
        if connection._sock is session.sock:
            connection.commit()  # also reads results that it has left unread
        if connection._sock is not session.sock:
            raise PoolError("on_connect has closed or reconnected the connection")
        connection._token, connection._result = token, None

    def _open(self, connection: Connection) -> None:
        """Open a connection, without a lock. Raises PyMySQL's error if that fails, and what `on_connect` raises."""
        place = connection._place
        place.loan.is_opening = True
        before = vars(connection).copy()
        began = monotonic()
        try:
            # PyMySQL applies `connect_timeout` to the connect() call only. Here it limits each handshake step too.
            with connection._timeouts(connection.connect_timeout):
                session = self._opener.open(connection)
                self._call_on_connect(connection, session)
            self._template.remember(session, connection, before)
            session.check_at = session.idle_since + self._ping_after
            place.totals.count_opened(seconds := monotonic() - began)
            place.begin_session(session)
        except BaseException as error:
            place.totals.failed_to_open += 1
            if isinstance(error, MySQLError):
                set_outcome(error, may_have_committed=bool)  # nothing was sent
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
        """Replace the session of a borrowed connection that has not been used yet.

        Called when the pending replies show that the reset of the session has failed.
        """
        place = connection._place
        place.end_session("reset", Session.abandon)
        connection._force_close()
        other = self._template.copy(place)
        self._open(other)
        assert place.session is not None
        connection._take_session(place.session)
        other._sock = other._rfile = None  # or its finalizer would close the socket

    def _put_back_unused(self, connection: Connection) -> float:
        """Put back a place that was taken but could not be lent. Return how many seconds the thread waited for it."""
        place: Place = vars(connection).pop("_place")
        place.loan.borrower = None
        waited = place.totals.last_wait()
        place.end_session("pool" if self._pool.closed else "exception", Session.abandon)
        self._pool.put(self._template.copy(place))
        return waited

    def _exhausted(self, text: str) -> GetConnectionFromPoolError:
        """Return the error for a borrower that got no connection. It lists the threads that hold the connections."""
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
                itself = " - which now waits for itself" if loan.borrower is threading.current_thread() else ""
                error.add_note(
                    "held for {seconds:.3f} s by {thread!r}{0}, borrowed at {file}:{line}{1}".format(
                        ended, itself, **holder
                    )
                )
        if self.maxsize == self._size and hasattr(error, "add_note"):  # pragma: no branch  add_note, as above
            error.add_note(f"the pool has a fixed size of {self._size}: a larger maxsize= lets it grow")
        return error

    # Maintenance, done when connections are borrowed and returned, as the pool has no thread of its own

    def _check(self, now: float) -> None:
        """Do the maintenance that is due, and set the time of the next check.

        With observers, each borrow and return runs this check and then notifies them. So borrow and return need only
        one comparison for both, and a pool without observers pays nothing for them.
        """
        if now >= self._next_maintenance:
            self._maintain(now)
        self._next_check = self._next_maintenance
        if self._observers:  # tested last, as another thread may have added one since
            self._next_check = -math.inf

    def _maintain(self, now: float) -> None:
        """Log connections that have been borrowed for too long, and close those that have been idle for too long."""
        self._next_maintenance = math.inf
        if self.leak_warning is not None:
            self._check_leaks(now, self.leak_warning)
        if self.idle_timeout is not None and self._size < self.maxsize:
            latest = now - self.idle_timeout
            most = self.total_num - self._size
            self._pool.close_idle_if("idle", lambda session: session.idle_since <= latest, most)
            self._next_maintenance = min(self._next_maintenance, now + self.idle_timeout / 10)

    def _check_leaks(self, now: float, leak_warning: float) -> None:
        """Log connections that have been borrowed for longer than `leak_warning` seconds, each of them once."""
        self._next_maintenance = min(self._next_maintenance, now + leak_warning)
        for loan in self._pool.borrows():
            holder = loan.as_data()
            if loan.was_warned_of or holder is None:
                continue
            if now - loan.since >= leak_warning:
                loan.was_warned_of = True
                logger.warning(
                    "pool(%s): a connection has been held for %.1f s by %r, borrowed at %s:%d",
                    self.name,
                    now - loan.since,
                    holder["thread"],
                    holder["file"],
                    holder["line"],
                )
            else:
                self._next_maintenance = min(self._next_maintenance, loan.since + leak_warning)

    def _observe(self, observer: Callable[[str, float], object]) -> None:
        """Call `observer(event, seconds)` after each "wait", "create" and "use" from now on. `metrics` uses this.

        It is called after a connection was borrowed, opened or returned, in the thread that did so, without a lock. A
        slow observer delays only that thread. An exception in it is logged.
        """
        self._pool.forget_last_waits()
        self._observers.append(observer)
        self._next_check = -math.inf

    def _notify_observers(self, what: str, seconds: float) -> None:
        for observer in self._observers:
            try:
                observer(what, seconds)
            except Exception:  # noqa: BLE001  an observer's error must not reach the borrower
                logger.exception("pool(%s): an observer raised an exception", self.name)

    # Return

    def put_connection(self, connection: Connection) -> None:
        """Return `connection` to the pool, as `connection.close()` does. A second call does nothing.

        Raises `ReturnConnectionToPoolError` if it is not a connection of this pool.
        """
        if getattr(connection, "_pool", None) is not self:
            raise ReturnConnectionToPoolError(f"{connection!r} is not a connection of pool({self.name})")
        connection.close()

    _put_connection = put_connection

    def _take_back(  # noqa: C901  each branch is one outcome of a return
        self, handle: Connection, error: BaseException | None = None
    ) -> None:
        """End the loan of `handle`, and put its place back into the queue. It does not wait for the server.

        `error` is the exception that ended the borrow, if there was one.
        """
        place = handle.__dict__.pop("_place", None)  # atomic: of two threads that return it, one succeeds
        if place is None or place.is_of_parent:
            return
        if place.record.place() is None:
            # A finalizer has returned the handle too late: the place is lost, and its socket may be closed.
            handle._force_close()
            return
        if error is not None:
            handle._record_error(error)
        now = monotonic()
        session = place.session
        if not handle._detach_session(session) or session is None:  # lost, or in the middle of a reply
            connection = self._recreate(place, "broken", Session.abandon)
        elif now >= session.expires_at or (
            handle._left_in_session and self._is_beyond_reset(session, handle._left_in_session)
        ):
            reason = "exception" if handle._left_in_session == BROKEN else _why_expired(session, now) or "reset"
            connection = self._recreate(place, reason, Session.quit)
        else:
            session.idle_since = now
            session.check_at = now + self._ping_after
            if handle._left_in_session or handle._may_be_in_transaction:
                connection = self._reuse(place, session, handle, error)
            else:
                connection = self._template.successor(place, handle._current_timeout)
        # The loan ends before the place is put back, as the next borrower writes to the same loan.
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
        """Whether the borrower has left something that a reset cannot undo on this server."""
        reset = session.reset
        return left == BROKEN or (reset is not None and left >= DIRTY and (left == LOST or bool(reset.server.kept)))

    def _reuse(self, place: Place, session: Session, handle: Connection, error: BaseException | None) -> Connection:
        """Send the commands that clean the session, if any are needed, and return a new connection with the session.

        The replies are pending then. They are read before the reply to the next borrower's first command.
        """
        commands = None
        if handle._left_in_session >= DIRTY and session.reset is not None:
            is_doubtful = (
                handle._left_in_session == DOUBTFUL or self._on_connect is not None
            )  # it may have changed the database
            commands = session.reset.commands(with_database=is_doubtful)
            if handle._may_be_in_transaction or is_doubtful:
                # A proxy may answer the reset itself, without ending the transaction. And a reset does not end a
                # prepared XA transaction: a MariaDB session is then left half inside it, and no longer commits
                # anything. The ROLLBACK fails in that case, and the session is replaced.
                commands = ROLLBACK + commands
        elif handle._may_be_in_transaction and (self.reset is not None or error is not None):
            commands = ROLLBACK
        connection = self._template.successor(place, handle._current_timeout)
        if commands is not None:
            try:
                connection._send(session, commands)
            except MySQLError:
                return self._recreate(place, "broken", Session.abandon)
            # Make the next borrow read the replies at once: to compare what the server's first reset has restored, or
            # to call on_connect.
            if session.is_first_reset() or (self._on_connect is not None and commands != ROLLBACK):
                session.check_at = session.idle_since
        return connection

    def _recreate(self, place: Place, reason: str, end: Callable[[Session], None]) -> Connection:
        """Close the session of `place`, and return a new connection that is not open yet."""
        place.end_session(reason, end)
        return self._template.copy(place)

    # State

    def size(self) -> int:
        """Return how many connections, open or not, can be borrowed at this moment without waiting."""
        self._pool.replace_lost()
        return self._pool.qsize()

    @property
    def available_num(self) -> int:
        """The number of connections that are open and idle."""
        return self._pool.number_idle()

    @property
    def total_num(self) -> int:
        """The number of connections that are open, idle or borrowed."""
        return self._pool.number_open()

    connection_num = total_num

    def stats(self) -> PoolStats:
        """Return a `PoolStats`: the present state of the pool, and counters since it was made. It takes no lock."""
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

    # Close

    def drain(self) -> None:
        """Replace all connections that are open now, for example after a failover.

        Idle ones are closed before this returns, borrowed ones when they are returned. The pool remains open.
        """
        self._pool.expire_all()
        self._pool.close_idle_if("drained", lambda session: session.expires_at == -math.inf, self.maxsize)

    def close(self, timeout: float | None = 0.0) -> int:
        """Close the pool and its idle connections. Waiting threads get `PoolClosedError`, as do later borrows.

        Borrowed connections are closed when they are returned. Waits up to `timeout` seconds (float; None: forever)
        for that, and returns the number of connections that are still borrowed. It may be called again.

        Raises TypeError or ValueError if `timeout` is not a number of seconds.
        """
        _seconds("timeout", timeout)
        for connection in self._pool.close():
            close_idle(connection, "pool")
        return self._pool.wait_until_all_back(timeout)

    def __enter__(self) -> Self:
        """Return the pool, which the end of the block closes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool."""
        self.close()

    def _reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        """Start with an empty pool after a fork: the sessions belong to the parent process. It takes no lock."""
        self._finalizer.detach()
        closed = self._pool.closed
        self._pool.leave_sessions_to_parent()
        self._template.reset_in_child()
        self._begin()
        if closed:
            self.close()


class ConnectionPoolSingleton(ConnectionPool):
    """One pool for the whole program: the first call creates it, later calls return it and ignore their arguments."""

    _first: dict[type, ConnectionPoolSingleton] = {}  # noqa: RUF012  shared on purpose

    def __new__(cls, *args: Any, **kwargs: Any) -> ConnectionPoolSingleton:
        """Return the pool of this class. It is created if there is none, or if the last one is closed."""
        # Each closed pool refers to the pool that replaced it, so that replacing a pool is also one atomic step.
        one = cls._first.get(cls)
        while one is not None and one._pool.closed and "_next" in vars(one):
            one = vars(one)["_next"]
        if one is not None and not one._pool.closed:
            return one
        made = super().__new__(cls)
        ConnectionPool.__init__(made, *args, **kwargs)
        # setdefault is atomic: if two threads get here, each with a new pool, one of the pools is kept.
        first: ConnectionPoolSingleton
        first = cls._first.setdefault(cls, made) if one is None else vars(one).setdefault("_next", made)
        if first is not made:
            made.close()
        return first

    if not TYPE_CHECKING:  # pragma: no branch  for type checkers, the arguments are those of ConnectionPool

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """Do nothing: `__new__` has initialized the pool."""


_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()
#: Called with each new pool, before it opens a connection. `metrics` uses this to observe all pools.
_watchers: list[Callable[[ConnectionPool], object]] = []


def _notify_watchers(pool: ConnectionPool) -> None:
    for watch in _watchers:
        watch(pool)


def _reset_in_child() -> None:  # pragma: no cover  in a forked child
    for pool in list(_pools):
        pool._reset_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
    os.register_at_fork(after_in_child=_reset_in_child)


def _close_all_idle(places: Places) -> None:
    """Close the idle connections, when the pool is garbage collected or at exit.

    It takes no lock, as the collector may run while any lock is held. At exit, other threads may still use the queue.
    """
    while places.queue:
        with contextlib.suppress(IndexError):
            close_idle(places.queue.pop(), "pool")


def _why_expired(session: Session, now: float) -> str | None:
    if now < session.expires_at:
        return None
    return "drained" if session.expires_at == -math.inf else "lifetime"


def _check_count(name: str, value: int, at_least: int = 0, at_most: float = math.inf) -> int:
    """Return `value`. Raises TypeError if it is not a whole number, ValueError if it is out of range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} should be a whole number, not {value!r}")
    if not at_least <= value <= at_most:
        limit = f"at least {at_least}" if value < at_least else f"at most {at_most}"
        raise ValueError(f"{name} should be {limit}, not {value}")
    return value


def _counts(size: int | None, maxsize: int | None, pre_create_num: int | None) -> tuple[int, int, int]:
    """Check the three arguments, and return them with their defaults filled in."""
    if size is None:
        size = DEFAULT_SIZE if maxsize is None else min(DEFAULT_SIZE, _check_count("maxsize", maxsize, at_least=1))
    _check_count("size", size, at_least=1)
    maxsize = size if maxsize is None else _check_count("maxsize", maxsize, at_least=size)
    pre_create_num = size if pre_create_num is None else _check_count("pre_create_num", pre_create_num, at_most=maxsize)
    return size, maxsize, pre_create_num


def _seconds(name: str, seconds: Any, at_least: float = 0) -> float | None:
    """Return `seconds` as a float, or None. Raises TypeError if it is not a number, ValueError if out of range."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (numbers.Real, decimal.Decimal)):
        raise TypeError(f"{name} should be a number of seconds or None, not {seconds!r}")
    value: Any = seconds
    if not value >= at_least:
        raise ValueError(f"{name} should be at least {at_least} seconds, not {seconds!r}")
    if value > threading.TIMEOUT_MAX:
        raise ValueError(f"{name} should be at most {threading.TIMEOUT_MAX:.0f} seconds, not {seconds!r}")
    return float(value)


def _total_timeout(name: str, timeout: float | None, retry_num: int) -> float | None:
    """Return the seconds of all tries together, `timeout` for each; None if there is no limit."""
    if not isinstance(retry_num, int):
        raise TypeError(
            f"retry_num should be a whole number, not {retry_num!r}: use retry_interval= for the seconds of one try"
        )
    if retry_num < 0:
        raise ValueError(f"retry_num should be at least 0, not {retry_num}")
    seconds = _seconds(name, timeout)
    return seconds and seconds * (1 + retry_num)


def _check_keywords(connect_kwargs: dict[str, Any]) -> None:
    """Raise TypeError for keywords of PyMySQL and of older releases that a pool does not accept."""
    for keyword, reason in _REFUSED.items():
        if keyword in connect_kwargs:
            raise TypeError(f"{keyword} is not an argument of a pool: {reason}")


def _replace_deprecated(connect_kwargs: dict[str, Any]) -> None:
    """Replace deprecated keywords as PyMySQL does, but with the warning at the user's line."""
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
    """Return a copy of `error` without its traceback, whose frames would keep connections alive."""
    # The class is not called, as its __init__ may take other arguments.
    copy = type(error).__new__(type(error), *error.args)
    vars(copy).update({name: value for name, value in vars(error).items() if name != "original_exception"})
    return copy

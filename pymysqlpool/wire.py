"""What PyMySQL does not know of its talk with the server: whether a reply is under way, and how the last one ended."""

from __future__ import annotations

import contextlib
import socket
import threading
import warnings
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from pymysql.constants import COMMAND, CR, ER, SERVER_STATUS
from pymysql.err import (
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    MySQLError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from pymysql.protocol import MysqlPacket

from .driver import SERVER_SESSION_STATE_CHANGED, PyMySQLConnection, PyMySQLResult
from .errors import PoolError, ReturnConnectionToPoolError, session_survives, set_outcome
from .opening import can_track, track
from .reset import names
from .session import PING_TIMEOUT, is_of_signal
from .statements import (
    BROKEN,
    DIRTY,
    READS,
    TRANSACTION,
    certainly_reads,
    ends_transaction,
    left_by,
    may_commit,
    writes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .reset import Commands
    from .session import Session

#: What the token says of the last reply: it was read to its end, or some of it is left to be read.
WHOLE, UNREAD = "whole", "unread"


class _Result(PyMySQLResult):
    """PyMySQL's result, which keeps the status in its last packet."""

    def _check_packet_is_eof(self, packet: Any) -> bool:
        data = packet._data
        if data[0] != 0xFE or len(data) >= 9:
            return False
        # PyMySQL drops the status in an EOF packet: the only word on a transaction that a SELECT has opened.
        self.warning_count = data[1] | data[2] << 8
        self.server_status = data[3] | data[4] << 8
        self.has_next = self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        return True

    def _read_load_local_packet(self, first_packet: Any) -> None:
        connection = self.connection
        try:
            super()._read_load_local_packet(first_packet)
        except OperationalError as error:
            if error.args[0] == ER.FILE_NOT_FOUND:  # PyMySQL has told the server so, and read its answer
                connection._ended(connection.server_status)
            raise

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if not self.unbuffered_active:
            return None
        connection = self.connection
        connection._begin_reading()
        row = super()._read_rowdata_packet_unbuffered()
        if row is None:
            connection._ended(self.server_status)
        else:
            connection._token.append(UNREAD)
        return row

    def _finish_unbuffered_query(self) -> None:
        # Called by finalizers, too, which could tell nobody of an error: what is left unread is closed at the return.
        # In PyMySQL 1.0 a result whose query has failed is active for ever, and not the connection's.
        connection = self.connection
        if self.unbuffered_active and connection._result is self and connection._token and connection._has_session():
            connection._begin_reading()
            super()._finish_unbuffered_query()
            if not connection._token:  # else an error packet has ended it
                connection._ended(self.server_status)


class Wire(PyMySQLConnection):
    """PyMySQL's connection which, when it is lent by a pool, knows whether a reply is under way.

    `_token` is a list with one item. Whoever writes a command or reads from a reply takes it out, in one atomic step,
    and puts it back when the protocol says that the reply is over, or, as UNREAD, where the rest is left for later. So
    of two threads that use a connection at the same time one is told so; and what interrupts a command, wherever it
    strikes, leaves the token out: then nobody touches the connection but the pool, which closes it.

    Without a pool, and within `connect()`, there is no `_token`, and everything is PyMySQL's.
    """

    #: The errors after which a connection is reused, besides those that are not the database's (the original's name).
    _reusable_expection: tuple[type[BaseException], ...] = (
        ProgrammingError,
        IntegrityError,
        NotSupportedError,
        DataError,
        PoolError,
    )

    _pool: Any = None  #: a `ConnectionPool`; None without one, and while it is opened
    _place: Any = None  #: a `Place`; None without a pool, and when it has been returned
    _rfile: Any = None

    _token: list[str] | None = None
    #: The thread that took the token last, what it wrote, and what that leaves.
    _thread_id = 0
    _statement = b""
    _leaves = READS

    # What has been done since the borrow.
    #: How much may have been left in the session, besides a transaction.
    _left = READS
    #: Whether anything since the last COMMIT or ROLLBACK may have begun a transaction, and whether that has written.
    _may_be_in_transaction = False
    _wrote = False
    #: Whether a reconnect by hand has lost what was written.
    _lost_writes = False
    #: Whether the server reports what a statement changes in the session.
    _is_tracked = False
    #: What PyMySQL, from 1.2 on, has last set on the socket.
    _current_timeout: float | None = None

    # A command

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        token = self._token
        if token is None:
            PyMySQLConnection._execute_command(self, command, sql)
            return
        place = self._place
        if place is None or place.is_of_parent:
            self._check_lent()
        if isinstance(sql, str):
            sql = sql.encode(self.encoding)
        try:
            if token.pop() is UNREAD:
                token.append(UNREAD)
                self._read_rest()
                token.pop()
        except IndexError:
            raise self._in_use() from None
        self._thread_id = get_ident()
        self._statement = sql
        self._leaves = leaves = left_by(command, sql, self.encoding)
        session: Any = place.session
        if command == COMMAND.COM_QUERY:
            self._may_be_in_transaction = True
            # None: it was lost, and perhaps reconnected by hand.
            if leaves < DIRTY and (session is None or not session.is_trusted):
                leaves = DIRTY
        self._left = max(self._left, leaves)
        try:
            if session is not None and session.pending is not None:
                self._execute_behind_reset(session, command, sql)
            else:
                PyMySQLConnection._execute_command(self, command, sql)
        except MySQLError as error:
            self._set_outcome(error)
            raise

    def _execute_behind_reset(self, session: Session, command: int, sql: bytes) -> None:
        """Write the first command while replies to the pool's reset or ROLLBACK are pending, which may have failed.

        What certainly reads is written before they are read: where one is an error it is dropped with the session, and
        repeated on another. All else waits for them.
        """
        repeats = self._leaves == READS and certainly_reads(command, sql)
        timeout = min(PING_TIMEOUT, self._read_timeout or PING_TIMEOUT)
        began = monotonic()
        try:
            if repeats and not session.poll(0):
                PyMySQLConnection._execute_command(self, command, sql)
                session.read_pending(timeout)
                return
            session.read_pending(timeout)
            self._check_nothing_unread(session)
        except (OSError, MySQLError) as error:
            if is_of_signal(error, began, timeout):
                raise
            if isinstance(error, socket.timeout) and timeout == self._read_timeout:
                session.abandon()
                self._force_close()
                raise OperationalError(CR.CR_SERVER_LOST, f"Lost connection to MySQL server: {error}") from error
            self._check_lent()  # another thread may have returned it meanwhile
            self._pool._replace_session(self)
        PyMySQLConnection._execute_command(self, command, sql)

    def _take_token(self) -> None:
        """Begin to write or read, and raise where another thread, or an interrupted one, is at that."""
        try:
            self._token.pop()  # type: ignore[union-attr]
        except IndexError:
            raise self._in_use() from None
        self._thread_id = get_ident()

    def _read_rest(self) -> None:
        """Read what is left unread of the last reply: as PyMySQL does, but before the token is taken."""
        result = self._result
        if result is not None and result.unbuffered_active:
            if self._thread_id != get_ident():
                raise self._in_use()  # another thread is at these rows
            warnings.warn("Previous unbuffered result was left incomplete", stacklevel=5)
            result._finish_unbuffered_query()
        while self._result is not None and self._result.has_next:
            self.next_result()

    # Its reply: where it has been read to its end. PyMySQL has no one place for that.

    def _read_packet(self, packet_type: Any = MysqlPacket) -> Any:
        try:
            return PyMySQLConnection._read_packet(self, packet_type)
        except MySQLError as error:
            if self._token is not None:
                self._failed(error)
            raise

    def _read_query_result(self, unbuffered: bool = False) -> int:
        token = self._token
        if token is None:
            return PyMySQLConnection._read_query_result(self, unbuffered)
        if (
            token or self._thread_id != get_ident()
        ):  # it is the next of several results, not that of the command just written
            self._begin_reading()
        self._result = None
        result: Any = _Result(self)
        if unbuffered:
            result.init_unbuffered_query()
        else:
            result.read()
        self._result = result
        affected: int = result.affected_rows
        if result.unbuffered_active:
            token.append(UNREAD)
        else:
            self._ended(result.server_status, affected)
        return affected

    def _begin_reading(self) -> None:
        self._check_lent()  # the rest of a returned connection's reply may lie in a buffer
        self._take_token()

    def _read_ok_packet(self) -> Any:
        ok = super()._read_ok_packet()
        if self._token is not None:
            self._ended(ok.server_status)
        return ok

    if hasattr(PyMySQLConnection, "set_character_set"):  # pragma: no branch  since PyMySQL 1.1

        def set_character_set(self, charset: str, collation: str | None = None) -> None:
            """PyMySQL's. In `connect()`, for a pool, it turns the tracker on as well: that saves a trip."""
            if self._token is None and self._place is not None and can_track(self):
                track(self, f"{names(charset, collation)}, ")
                return
            super().set_character_set(charset, collation)
            self._ended_without_status()

    else:  # pragma: no cover

        def set_charset(self, charset: str) -> None:
            """PyMySQL's."""
            super().set_charset(charset)
            self._ended_without_status()

    def show_warnings(self) -> Any:
        """PyMySQL's."""
        rows: Any = super().show_warnings()  # type: ignore[no-untyped-call]
        self._ended_without_status()
        return rows

    def _ended_without_status(self) -> None:
        """A reply has been read to its end whose status PyMySQL drops, to a statement that begins no transaction."""
        if self._token is not None:
            self._ended(self.server_status)

    def _ended(self, status: int, affected: int = 0) -> None:
        """A result has been read to its end; more of them may follow."""
        self.server_status = status
        if status == SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT:  # as after most statements: nothing else is to be said
            self._may_be_in_transaction = self._wrote = False
            self._token.append(WHOLE)  # type: ignore[union-attr]
            return
        more = bool(status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS)
        in_transaction = bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)
        self._wrote = in_transaction and (self._wrote or (affected > 0 and writes(self._statement)))
        # Without autocommit the status is no proof: after a SELECT from MyISAM MySQL holds a lock and does not say so.
        autocommit = status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
        self._may_be_in_transaction = more or in_transaction or not (autocommit or ends_transaction(self._statement))
        if status & SERVER_SESSION_STATE_CHANGED and self._leaves != TRANSACTION:  # MySQL reports those, too
            self._left = max(self._left, DIRTY)
        self._token.append(UNREAD if more else WHOLE)  # type: ignore[union-attr]

    def _failed(self, error: MySQLError) -> None:
        """A packet could not be read, or is an error; the latter ends the reply, and tells no status."""
        self._set_outcome(error)
        vars(self).pop("_session_in_use", None)
        self._check_lent()
        self._record_error(error)
        if self._sock is not None and not self._token:
            self._left = max(self._left, DIRTY)
            self._token.append(WHOLE)  # type: ignore[union-attr]

    def _set_outcome(self, error: MySQLError) -> None:
        """Let `error` say whether what the last statement did, or committed, may be done all the same."""
        status = self.server_status
        in_transaction = bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS) or not self.get_autocommit()
        set_outcome(error, may_have_committed=may_commit(self._statement, in_transaction=in_transaction))

    # The pool's own commands, on an idle session

    def _send(self, session: Session, commands: Commands) -> None:
        """Send commands whose replies nobody waits for. Raises PyMySQL's error where the session is lost.

        It does not block: all that was sent before has been answered, so the socket's buffer is empty.
        """
        self._write_bytes(commands.packets)
        session.pending = commands

    def _read_pending(self, session: Session) -> None:
        """Read the replies to the reset of an idle session; of a server's first, look what it has not restored.

        Raises OSError, or PyMySQL's error, where the session is not to be used.
        """
        is_first = session.is_first_reset()
        self.server_status = session.read_pending(PING_TIMEOUT)
        self._check_nothing_unread(session)
        if is_first:
            token, self._token = self._token, None
            with self._timeouts(PING_TIMEOUT):
                session.reset.server.look(self)  # type: ignore[union-attr]
            self._token, self._result = token, None
            if session.reset.server.kept:  # type: ignore[union-attr]
                raise ConnectionError("the reset has not restored all")

    def _check_nothing_unread(self, session: Session) -> None:
        """Raise where the server has closed the session, or has said more than it was asked for."""
        if session.has_unread():
            raise ConnectionError("the server has closed the session")

    @contextlib.contextmanager
    def _timeouts(self, seconds: float) -> Iterator[None]:
        """Wait at most `seconds` for each answer in this block, less where the user's timeouts say so."""
        timeouts = self._read_timeout, self._write_timeout
        self._read_timeout, self._write_timeout = (min(seconds, timeout or seconds) for timeout in timeouts)
        try:
            yield
        finally:
            self._read_timeout, self._write_timeout = timeouts

    # What is known for the return

    def _record_error(self, error: BaseException) -> None:
        """Remember that the session is not to be used again, if so, after `error`, which the borrower may catch."""
        if not self._is_reusable_after(error):
            self._left = BROKEN

    def _is_reusable_after(self, error: BaseException) -> bool:
        """Whether a session may be used again after `error`."""
        if isinstance(error, self._reusable_expection):
            return True
        if isinstance(error, (OperationalError, InternalError)):
            return session_survives(error)
        return isinstance(error, (Exception, GeneratorExit)) and not isinstance(error, Error)

    def _has_session(self) -> bool:
        """Whether a borrower in this process has it, on a socket that no finalizer has closed."""
        return (
            self._place is not None
            and not self._place.is_of_parent
            and self._sock is not None
            and self._sock.fileno() >= 0
        )

    def _check_lent(self) -> None:
        """Raise if the connection is back in its pool, or the parent process's."""
        if self._token is None:
            return
        if self._place is None:
            raise ReturnConnectionToPoolError(
                f"this connection has been returned to {self._pool_name()}: borrow another, or use it in a with block"
            )
        if self._place.is_of_parent:  # pragma: no cover  in a forked child
            raise PoolError(
                f"this connection was borrowed from {self._pool_name()} before the fork, by the parent: borrow another"
            )

    def _pool_name(self) -> str:
        return f"pool({self._pool.name})"

    def _in_use(self) -> Error:
        """The error for who comes while the token is out."""
        if self._sock is None:
            return InterfaceError(0, "")  # PyMySQL's own, which programs that connect again know
        names = [thread.name for thread in threading.enumerate() if thread.ident == self._thread_id != get_ident()]
        if names:
            return PoolError(
                f"this connection is in the middle of a reply to thread {names[0]!r}: two threads can't use one at the "
                "same time, borrow another"
            )
        return PoolError(
            "this connection was interrupted in the middle of a reply, which nobody can read any more: "
            "return it and borrow another"
        )

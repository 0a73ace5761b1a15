"""PyMySQL's connection, which also tracks whether a reply is unfinished, and the state that the last reply reported."""

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
from .reset import names_setting
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

#: The state of the last reply in the token: it was read completely, or a part of it was left to be read later.
WHOLE, UNREAD = "whole", "unread"


class _Result(PyMySQLResult):
    """PyMySQL's result, which also reports to its connection when the reply has been read, and its status flags."""

    def _check_packet_is_eof(self, packet: Any) -> bool:
        data = packet._data
        if data[0] != 0xFE or len(data) >= 9:
            return False
        # Warnings and status flags, two bytes each. PyMySQL drops the flags, but nothing else shows that a SELECT has
        # opened a transaction. https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_eof_packet.html
        self.warning_count = data[1] | data[2] << 8
        self.server_status = data[3] | data[4] << 8
        self.has_next = self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        return True

    def _read_load_local_packet(self, first_packet: Any) -> None:
        connection = self.connection
        try:
            super()._read_load_local_packet(first_packet)
        except OperationalError as error:
            if error.args[0] == ER.FILE_NOT_FOUND:  # PyMySQL has sent an empty packet and read the reply
                connection._reply_ended(connection.server_status)
            raise

    def _read_rowdata_packet_unbuffered(self) -> Any:
        if not self.unbuffered_active:
            return None
        connection = self.connection
        connection._begin_reading()
        row = super()._read_rowdata_packet_unbuffered()
        if row is None:
            connection._reply_ended(self.server_status)
        else:
            connection._token.append(UNREAD)
        return row

    def _finish_unbuffered_query(self) -> None:
        # Also called by finalizers, which cannot raise: if the token is taken, the rows stay unread, and the return
        # closes the session. In PyMySQL 1.0 a result whose query has failed stays active, but is not `_result`.
        connection = self.connection
        if not (self.unbuffered_active and connection._result is self and connection._token):
            return
        if connection._sock is not None and connection._is_lent():
            connection._begin_reading()
            super()._finish_unbuffered_query()
            if not connection._token:  # otherwise an error packet has ended the reply
                connection._reply_ended(self.server_status)


class Wire(PyMySQLConnection):
    """PyMySQL's connection, which tracks whether a reply is unfinished while it is borrowed from a pool.

    `_token` is a list with one item. A thread takes the item out, in one atomic step, before it writes a command or
    reads from a reply. It puts back WHOLE when the reply is complete, or UNREAD when the rest is left for later. If two
    threads use a connection at the same time, the second finds no item and gets an error. If a command is interrupted,
    at whatever point, the item is missing from then on: no thread can use the connection any more, and the pool closes
    its session.

    Without a pool, and during `connect()`, `_token` is None, and the connection works as PyMySQL's does.
    """

    #: PyMySQL's errors after which a connection is reused. (The old pymysql-pool spells the name like this.)
    _reusable_expection: tuple[type[BaseException], ...] = (
        ProgrammingError,
        IntegrityError,
        NotSupportedError,
        DataError,
        PoolError,
    )

    _pool: Any = None  #: the `ConnectionPool`; None without one, and while the connection is being opened
    _place: Any = None  #: the `Place`; None without a pool, and after the return
    _rfile: Any = None

    _token: list[str] | None = None
    #: The thread that took the token last, the statement that it wrote, and what that leaves (see `left_by`).
    _thread_id = 0
    _statement = b""
    _statement_leaves = READS

    # Since the borrow:
    #: What may have been left in the session, apart from a transaction.
    _left_in_session = READS
    #: Whether a transaction may be open, and whether it has written.
    _may_be_in_transaction = False
    _wrote = False
    #: Whether the borrower has called `connect()` and so lost what an open transaction had written.
    _lost_writes = False
    #: Whether the server reports that a statement has changed the session (session tracking).
    _is_tracked = False
    #: The timeout in seconds that PyMySQL (from 1.2 on) last set on the socket.
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
            raise self._in_use_error() from None
        self._thread_id = get_ident()
        self._statement = sql
        self._statement_leaves = leaves = left_by(command, sql, self.encoding)
        session: Any = place.session
        if command == COMMAND.COM_QUERY:
            self._may_be_in_transaction = True
            # None: the session was lost, and the borrower may have called `connect()`.
            if leaves < DIRTY and (session is None or not session.is_trusted):
                leaves = DIRTY
        self._left_in_session = max(self._left_in_session, leaves)
        try:
            if session is not None and session.pending is not None:
                self._execute_behind_reset(session, command, sql)
            else:
                PyMySQLConnection._execute_command(self, command, sql)
        except MySQLError as error:
            self._set_outcome(error)
            raise

    def _execute_behind_reset(self, session: Session, command: int, sql: bytes) -> None:
        """Write a borrower's first command while replies to a reset or ROLLBACK, which may have failed, are pending.

        A command that certainly only reads is written before the replies are read. If one of them is an error, the
        session is closed, the command's reply is discarded with it, and the command is repeated on a new session. All
        other commands wait for the replies.
        """
        is_repeatable = self._statement_leaves == READS and certainly_reads(command, sql)
        timeout = min(PING_TIMEOUT, self._read_timeout or PING_TIMEOUT)
        began = monotonic()
        try:
            if is_repeatable and not session.poll(0):
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
            self._check_lent()  # another thread may have returned the connection meanwhile
            self._pool._replace_session(self)
        PyMySQLConnection._execute_command(self, command, sql)

    def _take_token(self) -> None:
        """Take the token, to write or to read. Raise if another thread or an interrupted command has taken it."""
        try:
            self._token.pop()  # type: ignore[union-attr]
        except IndexError:
            raise self._in_use_error() from None
        self._thread_id = get_ident()

    def _read_rest(self) -> None:
        """Read the rest of the last reply, as PyMySQL does, but before the token is taken."""
        result = self._result
        if result is not None and result.unbuffered_active:
            if self._thread_id != get_ident():
                raise self._in_use_error()  # another thread is reading these rows
            warnings.warn("Previous unbuffered result was left incomplete", stacklevel=5)
            result._finish_unbuffered_query()
        while self._result is not None and self._result.has_next:
            self.next_result()

    # Its reply. PyMySQL has several places where the end of a reply is reached.

    def _read_packet(self, packet_type: Any = MysqlPacket) -> Any:
        try:
            return PyMySQLConnection._read_packet(self, packet_type)
        except MySQLError as error:
            if self._token is not None:
                self._reply_failed(error)
            raise

    def _read_query_result(self, unbuffered: bool = False) -> int:
        token = self._token
        if token is None:
            return PyMySQLConnection._read_query_result(self, unbuffered)
        # If this thread has taken the token, it has just written the command. Otherwise this is the next of several
        # results.
        if token or self._thread_id != get_ident():
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
            self._reply_ended(result.server_status, affected)
        return affected

    def _begin_reading(self) -> None:
        self._check_lent()  # the buffer of a returned connection may still hold the rest of a reply
        self._take_token()

    def _read_ok_packet(self) -> Any:
        ok = super()._read_ok_packet()
        if self._token is not None:
            self._reply_ended(ok.server_status)
        return ok

    if hasattr(PyMySQLConnection, "set_character_set"):  # pragma: no branch  since PyMySQL 1.1

        def set_character_set(self, charset: str, collation: str | None = None) -> None:
            """Do as PyMySQL does. When a pool opens a connection, the same statement also turns session tracking on."""
            if self._token is None and self._place is not None and can_track(self):
                track(self, f"{names_setting(charset, collation)}, ")
                return
            super().set_character_set(charset, collation)
            self._reply_ended_without_status()

    else:  # pragma: no cover

        def set_charset(self, charset: str) -> None:
            """Do as PyMySQL does."""
            super().set_charset(charset)
            self._reply_ended_without_status()

    def show_warnings(self) -> Any:
        """Do as PyMySQL does."""
        rows: Any = super().show_warnings()  # type: ignore[no-untyped-call]
        self._reply_ended_without_status()
        return rows

    def _reply_ended_without_status(self) -> None:
        """Handle the end of a reply whose status flags PyMySQL drops. Its statement does not begin a transaction."""
        if self._token is not None:
            self._reply_ended(self.server_status)

    def _reply_ended(self, status: int, affected: int = 0) -> None:
        """Handle the end of a result: store the status flags and put the token back. More results may follow."""
        self.server_status = status
        if status == SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT:  # the usual case: no other flag is set
            self._may_be_in_transaction = self._wrote = False
            self._token.append(WHOLE)  # type: ignore[union-attr]
            return
        more = bool(status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS)
        in_transaction = bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)
        self._wrote = in_transaction and (self._wrote or (affected > 0 and writes(self._statement)))
        # Without autocommit a missing IN_TRANS flag proves nothing: MySQL does not set it after a SELECT from a MyISAM
        # table, although it then holds a lock.
        autocommit = status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT
        self._may_be_in_transaction = more or in_transaction or not (autocommit or ends_transaction(self._statement))
        if status & SERVER_SESSION_STATE_CHANGED and self._statement_leaves != TRANSACTION:  # they set it on MySQL, too
            self._left_in_session = max(self._left_in_session, DIRTY)
        self._token.append(UNREAD if more else WHOLE)  # type: ignore[union-attr]

    def _reply_failed(self, error: MySQLError) -> None:
        """Handle an error packet, which ends the reply and has no flags, or a packet that could not be read."""
        self._set_outcome(error)
        # If the connection was returned while this command was running, this closes its session.
        vars(self).pop("_session_in_use", None)
        self._check_lent()
        self._record_error(error)
        if self._sock is not None and not self._token:
            self._left_in_session = max(self._left_in_session, DIRTY)
            self._token.append(WHOLE)  # type: ignore[union-attr]

    def _set_outcome(self, error: MySQLError) -> None:
        """Set `error.outcome_unknown`: whether the last statement may have been committed in spite of the error."""
        set_outcome(error, self._may_have_committed)

    def _may_have_committed(self) -> bool:
        """Whether the last statement may have committed."""
        status = self.server_status
        in_transaction = bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS) or not self.get_autocommit()
        return may_commit(self._statement, in_transaction=in_transaction)

    # The pool's own commands, on an idle session

    def _send(self, session: Session, commands: Commands) -> None:
        """Send commands without waiting for the replies. Raises PyMySQL's error if the session is lost.

        This does not block: everything sent before has been answered, so the socket's send buffer is empty.
        """
        self._write_bytes(commands.packets)
        session.pending = commands

    def _read_pending(self, session: Session) -> None:
        """Read the pending replies of an idle session. After the first reset on a server, find what it did not restore.

        Raises OSError, or PyMySQL's error, if the session must not be used.
        """
        is_first = session.is_first_reset()
        self.server_status = session.read_pending(PING_TIMEOUT)
        self._check_nothing_unread(session)
        if is_first:
            token, self._token = self._token, None
            with self._timeouts(PING_TIMEOUT):
                session.reset.server.check_first_reset(self)  # type: ignore[union-attr]
            self._token, self._result = token, None
            if session.reset.server.kept:  # type: ignore[union-attr]
                raise ConnectionError("the reset has not restored all")

    def _check_nothing_unread(self, session: Session) -> None:
        """Raise if the server has closed the session, or has sent more than the replies."""
        if session.has_unread():
            raise ConnectionError("the server has closed the session")

    @contextlib.contextmanager
    def _timeouts(self, seconds: float) -> Iterator[None]:
        """Limit the read and write timeouts to `seconds` in this block; the user's are kept if they are shorter."""
        timeouts = self._read_timeout, self._write_timeout
        self._read_timeout, self._write_timeout = (min(seconds, timeout or seconds) for timeout in timeouts)
        try:
            yield
        finally:
            self._read_timeout, self._write_timeout = timeouts

    # What the return of the connection depends on

    def _record_error(self, error: BaseException) -> None:
        """Remember an `error` after which the session must not be used again: the borrower may catch it."""
        if not self._is_reusable_after(error):
            self._left_in_session = BROKEN

    def _is_reusable_after(self, error: BaseException) -> bool:
        """Whether a session may be used again after `error`."""
        if isinstance(error, self._reusable_expection):
            return True
        if isinstance(error, (OperationalError, InternalError)):
            return session_survives(error)
        return isinstance(error, (Exception, GeneratorExit)) and not isinstance(error, Error)

    def _is_lent(self) -> bool:
        """Whether this process has borrowed the connection, and has neither returned nor lost it.

        A lost connection can still be used by finalizers.
        """
        place = self._place
        return place is not None and not place.is_of_parent and place.record.place() is not None

    def _check_lent(self) -> None:
        """Raise if the connection has been returned to its pool, or belongs to the parent process."""
        if self._token is None or self._is_lent():
            return
        if self._place is not None and self._place.is_of_parent:  # pragma: no cover  in a forked child
            raise PoolError(
                f"this connection was borrowed from {self._pool_name()} before the fork, by the parent: borrow another"
            )
        raise ReturnConnectionToPoolError(
            f"this connection has been returned to {self._pool_name()}: borrow another, or use it in a with block"
        )

    def _pool_name(self) -> str:
        return f"pool({self._pool.name})"

    def _in_use_error(self) -> Error:
        """Return the error for a thread that finds the token taken."""
        if self._sock is None:
            return InterfaceError(0, "")  # as PyMySQL raises it: programs handle it by connecting again
        names = [thread.name for thread in threading.enumerate() if thread.ident == self._thread_id != get_ident()]
        if names:
            return PoolError(
                f"this connection is in the middle of a reply to thread {names[0]!r}: two threads can't use one at the "
                "same time, borrow another"
            )
        return PoolError(
            "this connection was interrupted in the middle of a reply and can't be used any more: "
            "return it and borrow another"
        )

"""What PyMySQL does not know of its talk with the server: whose turn it is, and how the last reply left things."""

from __future__ import annotations

import contextlib
import threading
import warnings
from threading import get_ident
from typing import TYPE_CHECKING, Any

import pymysql.connections
from pymysql.constants import COMMAND, CR, ER, SERVER_STATUS
from pymysql.err import (
    DataError,
    Error,
    IntegrityError,
    InternalError,
    MySQLError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from .errors import PoolError, ReturnConnectionToPoolError, session_survives
from .session import (
    CLEAN,
    DIRTY,
    DOUBTFUL,
    STATE_CHANGED,
    TRACK,
    can_track,
    ends_transaction,
    is_of_transaction,
    names,
    trace_of,
    writes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .place import Place
    from .pool import ConnectionPool
    from .session import Cleaning, ServerFacts

    class _PyMySQL(pymysql.connections.Connection):
        """What of PyMySQL's inside this package stands on: the same in all its releases from 1.0.2 to 1.2.4."""

        _sock: Any
        _rfile: Any
        _result: Any
        _next_seq_id: int
        _read_timeout: float | None
        _write_timeout: float | None
        _connect_attrs: dict[str, str]
        connect_timeout: float
        ssl: bool
        ctx: Any
        server_capabilities: int
        collation: str | None
        db: bytes | None

        def _execute_command(self, command: int, sql: str | bytes) -> None: ...
        def _read_ok_packet(self) -> Any: ...
        def _read_query_result(self, unbuffered: bool = ...) -> int: ...
        def _write_bytes(self, data: bytes) -> None: ...
        def _force_close(self) -> None: ...
        def set_character_set(self, charset: str, collation: str | None = ...) -> None: ...

    class _PyMySQLResult(pymysql.connections.MySQLResult):
        """The same of its results."""

        connection: Any
        has_next: Any
        server_status: Any
        unbuffered_active: bool

        def _read_rowdata_packet_unbuffered(self) -> Any: ...
        def _finish_unbuffered_query(self) -> None: ...
else:
    _PyMySQL = pymysql.connections.Connection
    _PyMySQLResult = pymysql.connections.MySQLResult

#: How long the pool's own commands may take on an idle session, in seconds: taking longer costs a new one, no more.
PING_TIMEOUT = 1.0


class _Result(_PyMySQLResult):
    """PyMySQL's result, which keeps the status that its last packet tells."""

    def _check_packet_is_eof(self, packet: Any) -> bool:
        data = packet._data
        if data[0] != 0xFE or len(data) >= 9:
            return False
        # PyMySQL drops the status of an EOF packet: the only word on a transaction that a SELECT has opened.
        self.warning_count = data[1] | data[2] << 8
        self.server_status = data[3] | data[4] << 8
        self.has_next = self.server_status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        if self.unbuffered_active:
            self.connection.server_status = self.server_status
            self.connection._result_ends(self.server_status, wrote=False)
        return True

    def _read_rowdata_packet_unbuffered(self) -> Any:
        connection = self.connection
        if self.unbuffered_active:
            connection._check_lent()  # the rows may lie in a buffer already
        try:
            return super()._read_rowdata_packet_unbuffered()
        except BaseException as error:
            connection._failed(error)
            raise

    def _finish_unbuffered_query(self) -> None:
        # Also from finalizers, which nobody could tell of a failure: the pool closes what is returned with rows unread.
        if self.unbuffered_active and self.connection._has_session():
            super()._finish_unbuffered_query()


class _Rare:
    """An attribute that commands do without: a connection gets it, or its copy, when it is first asked for.

    So a successor is made from few attributes, and no borrower can change one under another. Once there, it stands in
    the connection's own dict, and Python looks no further. (`__getattr__` would do the same, but makes the access to
    every attribute slower.)
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, connection: WiredConnection, owner: type) -> Any:
        attributes = connection.__dict__
        try:
            value = attributes["_pristine"][self._name]
        except KeyError:  # not opened by a pool, or not in this release of PyMySQL
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}") from None
        return attributes.setdefault(self._name, own(value))


def own(value: Any) -> Any:
    """`value`, or a copy of it where one connection could change it under another."""
    return value.copy() if type(value) in (dict, list, set) else value


class WiredConnection(_PyMySQL):
    """PyMySQL's connection which, on a session of a pool's, knows whether it is in the middle of a reply.

    `_turn` is the mark: a list with one token in it. A command takes the token before its first byte is written, and it
    is put back when the reply has been read whole. Taking it is one atomic step, with a GIL or without: of two threads
    one gets it. Whatever interrupts a command leaves the token out, and then nobody but the pool, which closes it,
    touches the connection again. Without a pool there is no `_turn`, and everything is PyMySQL's.
    """

    #: The errors after which a connection is reused, besides those that are not the database's (the original's name).
    _reusable_expection: tuple[type[BaseException], ...] = (
        ProgrammingError,
        IntegrityError,
        NotSupportedError,
        DataError,
        PoolError,
    )

    _pool: ConnectionPool | None = None
    _rfile: Any = None
    _place: Place = None  # type: ignore[assignment]  # there is one where the pool's own code looks

    _turn: list[None] | None = None
    _user = 0
    _statement = b""

    #: Whether nothing has happened after which the session has to be given up.
    _sound = True
    #: Whether anything since the last COMMIT or ROLLBACK may have begun a transaction, and whether that has written.
    _may_be_in_transaction = False
    _wrote = False
    #: Whether a reconnect by hand has lost what was written.
    _lost = False
    #: What else may have been left in the session, and whether the server tells what a statement's text does not.
    _trace = CLEAN
    _tracked = False
    _trace_of = staticmethod(trace_of)
    #: The reset that leads back to what `connect()` made, and what the pool knows of the server.
    _reset: Cleaning
    _facts: ServerFacts
    #: What PyMySQL, from 1.2 on, has last set on the socket.
    _current_timeout: float | None = None
    #: What the `RARE` attributes were when the connection was opened.
    _pristine: dict[str, Any]

    def _execute_command(self, command: int, sql: str | bytes) -> None:
        turn = self._turn
        if turn is None:
            _PyMySQL._execute_command(self, command, sql)
            return
        place = self._place
        if place is None or place.is_of_parent:
            self._check_lent()
        if isinstance(sql, str):
            sql = sql.encode(self.encoding)
        if not turn:
            self._read_rest()
        try:
            turn.pop()
        except IndexError:
            raise self._taken() from None
        self._user = get_ident()
        if command == COMMAND.COM_QUERY:
            self._statement = sql
            self._may_be_in_transaction = True
        else:
            self._statement = b""
        if self._trace < DOUBTFUL:
            trace = self._trace_of(command, sql, tracked=self._tracked)
            if trace != CLEAN:
                self._trace = max(self._trace, trace)
        _PyMySQL._execute_command(self, command, sql)
        if place.owed is not None:
            self._read_owed(place)

    # Where a reply has been read whole, or has failed. PyMySQL has no one place for it.

    def _read_query_result(self, unbuffered: bool = False) -> int:
        if self._turn is None:
            return _PyMySQL._read_query_result(self, unbuffered)
        if self._place is None or self._place.is_of_parent:
            self._check_lent()
        if not self._turn and self._user != get_ident():
            raise self._taken()
        self._result = None
        result: Any = _Result(self)
        try:
            if unbuffered:
                result.init_unbuffered_query()
            else:
                result.read()
        except BaseException as error:
            self._failed(error)
            raise
        self._result = result
        affected: int = result.affected_rows
        if not result.unbuffered_active:
            self.server_status = status = result.server_status
            if status == SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT:  # as after most statements: nothing else is to be said
                self._may_be_in_transaction = self._wrote = False
                self._turn.append(None)
            else:
                self._result_ends(status, wrote=affected > 0 and writes(self._statement))
        return affected

    def _read_ok_packet(self) -> Any:
        with self._replying():
            ok = super()._read_ok_packet()
        if self._turn is not None:
            self._result_ends(ok.server_status, wrote=False)
        return ok

    if hasattr(_PyMySQL, "set_character_set"):  # pragma: no branch  since PyMySQL 1.1

        def set_character_set(self, charset: str, collation: str | None = None) -> None:
            """PyMySQL's. In `connect()`, for a pool, it turns the tracker on as well: that saves a trip."""
            if self._turn is None and self._place is not None and can_track(self):
                self.query(f"SET {names(charset, collation)}, {TRACK}")
                self._tracked = True
                return
            with self._replying():
                super().set_character_set(charset, collation)
            self._reply_ends()

    def set_charset(self, charset: str) -> None:
        """PyMySQL's."""
        with self._replying():
            super().set_charset(charset)
        self._reply_ends()

    def show_warnings(self) -> Any:
        """PyMySQL's."""
        with self._replying():
            rows: Any = super().show_warnings()  # type: ignore[no-untyped-call]
        self._reply_ends()
        return rows

    @contextlib.contextmanager
    def _replying(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._failed(error)
            raise

    def _failed(self, error: BaseException) -> None:
        """A reply could not be read: remember what `error` tells of the session."""
        if self._turn is None:
            return
        self._check_lent()
        self._note(error)
        # An error packet ends the reply, and tells no status. After all else the socket is closed, or the token is out.
        if self._sock is not None and isinstance(error, MySQLError) and not self._turn:
            self._trace = max(self._trace, DIRTY)
            self._turn.append(None)

    def _reply_ends(self) -> None:
        """A reply has been read whole of which PyMySQL keeps no status, to a statement that begins no transaction."""
        if self._turn == []:
            self._result_ends(self.server_status, wrote=False)

    def _result_ends(self, status: int, *, wrote: bool) -> None:
        """A result has been read to its end, and `status` is the session's; more results may follow it."""
        assert self._turn is not None
        in_transaction = bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)
        self._wrote = in_transaction and (self._wrote or wrote)
        # Without autocommit the status is no proof: after a SELECT from MyISAM MySQL holds a lock and does not say so.
        if not in_transaction and (
            status & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT or ends_transaction(self._statement)
        ):
            self._may_be_in_transaction = False
        if status & STATE_CHANGED and not is_of_transaction(self._statement):
            self._trace = max(self._trace, DIRTY)
        if not status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
            self._turn.append(None)

    def _read_rest(self) -> None:
        """Read what this thread left unread of the last reply: as PyMySQL does, but before the token is taken."""
        result = self._result
        if result is None or self._user != get_ident():
            return
        if result.unbuffered_active:
            warnings.warn("Previous unbuffered result was left incomplete", stacklevel=5)
            result._finish_unbuffered_query()
        while self._result is not None and self._result.has_next:
            self.next_result()

    # The pool's own commands, sent when nobody has the connection

    def _send(self, cleaning: Cleaning) -> None:
        """Send commands that clean the session, all in one go; their replies are owed."""
        self._write_bytes(cleaning.packets)
        self._place.owed = cleaning

    def _read_owed(self, place: Place) -> None:
        """Read the replies that are owed. After one that is an error the session is not clean: it is closed."""
        assert place.owed is not None
        turn = self._turn
        result = self._result
        try:
            self._turn = None  # these replies say nothing of what a borrower does
            for _ in range(place.owed.replies):
                self._next_seq_id = 1
                self._read_query_result()
                while self._result.has_next:
                    self.next_result()
        except BaseException as error:
            self._force_close()
            if not isinstance(error, MySQLError):
                raise
            if error.args[0] == ER.UNKNOWN_COM_ERROR:
                self._facts.can_reset = False
            raise OperationalError(CR.CR_SERVER_LOST, f"Lost connection: it could not be reset ({error})") from error
        finally:
            self._turn = turn
        if place.owed.doubtful:
            self._facts.can_reset = True
        self._result = result
        self._next_seq_id = 1
        place.owed = None

    def _has_more_in_buffer(self) -> bool:
        """Whether the server has said more than was read: a poll does not see what is in the file's buffer."""
        self._current_timeout = 0
        self._sock.settimeout(0)
        try:
            return bool(self._rfile.peek(1))
        except OSError:  # of TLS, where nothing is there
            return False

    @contextlib.contextmanager
    def _patience(self, seconds: float) -> Iterator[None]:
        """Wait at most `seconds` for each answer in this block, less where the user's timeouts say so."""
        timeouts = self._read_timeout, self._write_timeout
        self._read_timeout, self._write_timeout = (min(seconds, timeout or seconds) for timeout in timeouts)
        try:
            yield
        finally:
            self._read_timeout, self._write_timeout = timeouts

    def _force_close(self) -> None:
        # Before 1.1 PyMySQL left the file, and with it the socket, to the collector.
        if self._rfile is not None:
            self._rfile.close()
        super()._force_close()

    def __del__(self) -> None:
        if self._turn is None and self._sock is not None:  # else its place sees to the socket
            self._force_close()

    # What is known for the return

    def _note(self, error: BaseException) -> None:
        """Remember whether the session is sound after `error`."""
        self._sound = self._sound and self._survives(error)

    def _survives(self, error: BaseException) -> bool:
        """Whether a session may be used again after `error`."""
        if isinstance(error, self._reusable_expection):
            return True
        if isinstance(error, (OperationalError, InternalError)):
            return session_survives(error)
        return isinstance(error, Exception) and not isinstance(error, Error)

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
        if self._turn is None:
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
        assert self._pool is not None
        return f"pool({self._pool.name})"

    def _taken(self) -> PoolError:
        names = [thread.name for thread in threading.enumerate() if thread.ident == self._user]
        user = f"thread {names[0]!r}" if names else "a thread that has ended"
        return PoolError(
            f"this connection is in the middle of a reply to {user}: two threads can't use one at the same time, "
            "and one that was interrupted there can't be used again"
        )


#: The attributes of PyMySQL's, and of ours, that no command needs.
RARE = (
    "_auth_plugin_map", "_auth_plugin_name", "_connect_attrs", "_local_infile", "_ssl_required", "args",
    "autocommit_mode", "bind_address", "charset", "client_flag", "collation", "connect_timeout", "ctx", "db",
    "decoders", "encoders", "host", "host_info", "init_command", "kwargs", "password", "port", "protocol_version",
    "salt", "server_charset", "server_language", "server_public_key", "server_thread_id", "server_version", "sql_mode",
    "ssl", "unix_socket", "user",
)  # fmt: skip
for _name in RARE:
    setattr(WiredConnection, _name, _Rare(_name))

#: What every command or return asks for: Python finds it faster where it is not the class's.
OFTEN = (
    "_may_be_in_transaction", "_place", "_pool", "_sound", "_statement", "_trace", "_turn", "_user", "_wrote",
)  # fmt: skip

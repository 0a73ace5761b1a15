"""One connection: lent by a pool and returned to it, or PyMySQL's own when there is no pool."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import deque
from sys import _getframe
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar, overload

import pymysql.connections
from pymysql.constants import CLIENT, SERVER_STATUS
from pymysql.cursors import DictCursor
from pymysql.err import InterfaceError, MySQLError

from . import block
from .cursors import run, with_shorthands
from .log import logger
from .statements import DIRTY, TRANSACTION
from .wire import UNREAD, WHOLE, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .block import Block
    from .cursors import AnyCursor, BlockCursor
    from .place import Place
    from .pool import ConnectionPool
    from .session import Session

_new = object.__new__
_AnyCursor = TypeVar("_AnyCursor")


class Connection(Wire, pymysql.connections.Connection):
    """PyMySQL's `Connection`, which `close()` and the end of a `with` block return to its pool, if it has one.

    A handle dies when it is returned: its session lives on in a successor, which the next borrower gets. What would
    reach the server through a returned handle raises `ReturnConnectionToPoolError`; `close()` does nothing; `with` and
    `execute_query` borrow afresh.

    `args` and `kwargs` hold what it was made with.
    """

    _pool: ConnectionPool | None
    #: The block that has this very connection; `_blocks`, once there is one, has all that were begun on this handle.
    _block: Block | None = None
    _session_in_use: Session

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs
        super().__init__(*args, **kwargs)

    # Use: PyMySQL's methods that would reopen a returned handle, or pretend to work on it.

    def connect(self, sock: Any = None) -> None:
        """PyMySQL's, which asks a `password` that is a callable.

        A borrowed connection may be reconnected by hand; the pool will not keep the session that comes of it.
        """
        self._check_lent()
        is_lent = self._token is not None
        secret: Any = self.password
        try:
            if is_lent:
                self._lost_writes = self._lost_writes or self._wrote
                if self._place.session is not None:
                    self._place.session.abandon()
                self._force_close()  # PyMySQL would leave the old socket to the collector
            self._token = None  # the handshake is no command with its reply
            if callable(secret):
                self.password = _as_bytes(secret())
            super().connect(sock)
        finally:
            self.password = secret  # asked again next time, and not kept
            self._token = [WHOLE] if is_lent else None

    def ping(self, reconnect: bool | None = None) -> None:
        """PyMySQL's. With a pool it does not reconnect unless asked to, which loses the session's state."""
        self._check_lent()
        if self._token is None and reconnect is None:
            super().ping()
        elif not reconnect:
            super().ping(reconnect=False)
        else:
            # PyMySQL's own warning would point here.
            warnings.warn("The 'reconnect' argument is deprecated.", DeprecationWarning, stacklevel=2)
            try:
                super().ping(reconnect=False)
            except pymysql.err.Error:
                self.connect()
                super().ping(reconnect=False)

    def autocommit(self, value: bool | None) -> None:
        """PyMySQL's."""
        self._check_lent()
        super().autocommit(value)

    def thread_id(self) -> Any:
        """PyMySQL's. Of a returned connection it would be another borrower's by now."""
        self._check_lent()
        return super().thread_id()  # type: ignore[no-untyped-call]

    @overload
    def cursor(self, cursor: None = None) -> AnyCursor: ...
    @overload
    def cursor(self, cursor: Callable[[Any], _AnyCursor]) -> _AnyCursor: ...
    def cursor(self, cursor: Any = None) -> Any:
        """PyMySQL's cursor, of the class or by the function asked for, else by `cursorclass`.

        It has `db_query` and `db_modify` too.
        """
        if self._place is None or self._place.is_of_parent:
            self._check_lent()
        made_by: Any = cursor or self.cursorclass
        return with_shorthands(made_by)(self) if isinstance(made_by, type) else made_by(self)

    def execute_query(
        self, query: str, args: Any = (), dictcursor: bool = False, return_one: bool = False, exec_many: bool = False
    ) -> Any:
        """Run one query as a block of its own, or as part of the block that it is called in, and return its rows.

        All rows, `()` for none; with `return_one` one row, or None. `dictcursor` makes dicts of them.
        `args`, a tuple, list or dict, are formatted into the query, as PyMySQL does: a percent sign is written %%
        unless they are None. With `exec_many` the query is run for each of them.
        """
        with self._block_or_commit() as connection, connection.cursor(DictCursor if dictcursor else None) as cursor:
            run(cursor, query, args, exec_many=exec_many)
            if not cursor.description:
                return None if return_one else ()
            return cursor.fetchone() if return_one else cursor.fetchall() or ()

    # Blocks

    def __enter__(self) -> BlockCursor:
        """Begin a unit of work and return its cursor, which answers for its connection too.

        The block has this connection where it is free. What runs in a block on this handle already joins it; where
        another thread is in one, or the handle has been returned, the block borrows a connection of its own.
        """
        if self._pool is None:
            return super().__enter__()  # type: ignore[return-value]
        cursor: BlockCursor = block.enter(self, _getframe().f_back or _getframe())
        return cursor

    if TYPE_CHECKING:

        def __exit__(self, *exc_info: object) -> None:
            """End the block. The outermost commits, or rolls back after an exception, and returns the connection."""
    else:
        __exit__ = block.EndOfBlock()

    @contextlib.contextmanager
    def _block_or_commit(self) -> Iterator[Connection]:
        """A block where there is a pool; else commit or rollback, and the connection stays open."""
        if self._pool is not None:
            with self as cursor:
                yield cursor.connection
            return
        try:
            yield self
        except BaseException:
            with contextlib.suppress(Exception):
                self.rollback()
            raise
        self.commit()

    # Return

    def close(self) -> None:
        """Return the connection to its pool, rolling back what is open; without a pool: PyMySQL's.

        Closing again does nothing, and neither does closing inside a block, whose end returns the connection.
        """
        if self._pool is None:
            super().close()
        elif self._block is None:
            if self._wrote and self._place is not None:
                logger.warning(
                    "pool(%s): close() rolls back what was written, on the connection borrowed at %s:%d: "
                    "commit() before it, or make the pool with autocommit=True",
                    self._pool.name,
                    *self._place.loan.line(),
                )
            self._pool._take_back(self)

    def _detach_session(self, session: Session | None) -> bool:
        """Give up the session, and return whether it can be lent again: no reply of it is left unread."""
        token: Any = self._token
        try:
            reply = token.pop()  # takes the token from every thread
            if reply is UNREAD:
                token.append(reply)
                self._read_rest_without_waiting()
                reply = token.pop()
            is_whole = reply is WHOLE
        except (AttributeError, IndexError):  # the first: interrupted in connect()
            is_whole = False
            if session is not None:
                session.is_in_use = True
                self._session_in_use = session  # is closed when the command has its error, or drops this connection
        # PyMySQL drops a socket that has failed; or it was reconnected by hand.
        if session is None or self._sock is not session.sock:
            is_whole = False
            with contextlib.suppress(pymysql.err.Error):
                super().close()
        elif self._left == TRANSACTION:
            changed = self.server_status ^ session.connected["server_status"]
            if changed & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT:
                self._left = DIRTY
        self._sock = self._rfile = None
        return is_whole

    def _read_rest_without_waiting(self) -> None:
        """Read the rest of several results, such as the last one of a CALL, without waiting for it."""
        self._read_timeout = 0
        with contextlib.suppress(MySQLError, TypeError):  # the latter: PyMySQL's, where nothing has come
            while self._result is not None and self._result.has_next and not self._result.unbuffered_active:
                self.next_result()

    def _take_session(self, session: Session) -> None:
        """Take over a new session, in the place of one that was lost before it was used."""
        vars(self).update(session.connected)
        self._result = None

    def __del__(self) -> None:
        token = self._token
        if token is None:
            if self._sock is not None:  # else its session sees to the socket
                self._force_close()
        elif token and self._wrote and self._place is not None:  # the token is out when it has been returned
            self._place.loan.lost_writes = True

    def _force_close(self) -> None:
        # Before 1.1 PyMySQL left the file, and with it the socket, to the collector.
        if self._rfile is not None:
            self._rfile.close()
        super()._force_close()

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        # The template's, if there is one: to make one takes 24 ms and 0.85 MB.
        return vars(self).get("ctx") or super()._create_ssl_ctx(sslp)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Connection is bound to its server session and can't be pickled or copied")


class _CopiedLate:
    """A mutable attribute, of which a connection gets its copy when it is first asked for.

    So no borrower can change one under another, and a successor is made without copying them all: that would take a
    borrow and return from 2.0 to 3.2 of a LifoQueue's put and get. Once there, it stands in the connection's own dict,
    and Python looks no further.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, connection: Connection, owner: type) -> Any:
        attributes = vars(connection)
        try:
            value = attributes["_originals"][self._name]
        except KeyError:  # not opened by a pool, or not in this release of PyMySQL
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}") from None
        return attributes.setdefault(self._name, _private_copy(value))


_COPIED_LATE = ("_auth_plugin_map", "_connect_attrs", "decoders", "encoders", "kwargs")
for _name in _COPIED_LATE:
    setattr(Connection, _name, _CopiedLate(_name))


# What is the borrow's own. Python finds it faster in a dict of the connection's own than on its class, and does not
# have to enlarge the dict: a borrow and return takes 2.3 of a LifoQueue's put and get, and 2.5 without.
_BORROW_DEFAULTS = {
    name: getattr(Connection, name)
    for name in (
        "_pool",
        "_place",
        "_token",
        "_current_timeout",
        "_left",
        "_may_be_in_transaction",
        "_wrote",
        "_thread_id",
        "_statement",
        "_leaves",
    )
}


class Template:
    """What all of a pool's connections are copies of: one that is never opened. They share its SSLContext.

    Where a subclass has an `__init__`, it is run for each copy, so that what it sets is each connection's own.
    """

    def __init__(self, connection_class: type[Connection], connect_kwargs: dict[str, Any]) -> None:
        self._class = connection_class
        self._kwargs = connect_kwargs
        self._has_init = connection_class.__init__ is not Connection.__init__
        self._original = _new(connection_class)
        self._initialize(self._original)

    def copy(self, place: Place) -> Connection:
        """A connection for `place` that is yet to be opened."""
        connection = _new(self._class)
        if self._has_init:
            if hasattr(self._original, "ctx"):
                connection.ctx = self._original.ctx
            self._initialize(connection)
        else:
            connection.__dict__ = {name: _private_copy(value) for name, value in vars(self._original).items()}
        connection._place = place
        return connection

    def remember(self, session: Session, connection: Connection, before: dict[str, Any]) -> None:
        """Keep what `connection` is right after it was opened: its successors start from that.

        `before` has its attributes before that.
        """
        connection._result = None
        attributes = vars(connection)
        attributes.pop("_token", None)  # connect()'s own; each handle has one of its own
        session.connected = {name: value for name, value in attributes.items() if before.get(name, self) is not value}
        if not self._has_init:
            originals = {name: attributes.pop(name) for name in _COPIED_LATE if name in attributes}
            attributes["_originals"] = originals
            session.state = attributes.copy()
            session.state.update(
                _BORROW_DEFAULTS
            )  # which has no place: that would be a cycle of place, session and state
        session.mutable = {
            name: value for name, value in session.connected.items() if _private_copy(value) is not value
        }
        attributes.update(
            {name: _private_copy(value) for name, value in session.mutable.items()}
        )  # for the first borrower
        connection._token = [WHOLE]

    def successor(self, place: Place, current_timeout: float | None) -> Connection:
        """A connection with the session of `place`, as it was right after it was opened."""
        session: Any = place.session
        if self._has_init:
            connection = self.copy(place)
            vars(connection).update(session.connected)
        else:
            connection = _new(self._class)
            connection.__dict__ = session.state.copy()
            connection._place = place
        if session.mutable:
            vars(connection).update({name: _private_copy(value) for name, value in session.mutable.items()})
        connection._token = [WHOLE]
        connection._current_timeout = current_timeout  # what PyMySQL, from 1.2 on, has last set on the socket
        return connection

    def reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        """After a fork: tell the server the child's process number."""
        self._original._connect_attrs["_pid"] = str(os.getpid())

    def _initialize(self, connection: Connection) -> None:
        try:
            connection.__init__(**self._kwargs, defer_connect=True)  # type: ignore[misc]
        except InterfaceError as error:
            if error.args != (0, ""):
                raise
            raise InterfaceError(
                0, f"{self._class.__name__}.__init__ runs before the connection is opened: use init_command= for that"
            ) from error
        connection.kwargs = self._kwargs.copy()
        connection.client_flag |= CLIENT.SESSION_TRACK


def _private_copy(value: Any) -> Any:
    """`value`, or a copy of it where one connection could change it under another."""
    return value.copy() if isinstance(value, (dict, list, set, deque)) else value


def _as_bytes(password: str | bytes) -> bytes:
    if not isinstance(password, (str, bytes)):
        raise TypeError(f"password() should give a string or bytes, not {type(password).__name__}")
    return password.encode("latin1") if isinstance(password, str) else password

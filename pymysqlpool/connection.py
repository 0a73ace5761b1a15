"""`Connection`: the handle that a borrower gets. Without a pool it is an ordinary PyMySQL connection."""

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
    """A PyMySQL connection. If it has a pool, `close()` and the end of a `with` block return it to that pool.

    A connection object is a handle for one borrow. When it is returned, its session moves to a new handle, the
    successor, for the next borrower. On a returned handle, `close()` does nothing, `with` and `execute_query` borrow
    another connection, and every other method that would reach the server raises `ReturnConnectionToPoolError`.

    `args` and `kwargs` are the arguments that it was created with.
    """

    _pool: ConnectionPool | None
    #: The block that uses this connection. The attribute `_blocks`, created by the first block, lists all blocks that
    #: were begun on this handle, including those that use another connection.
    _block: Block | None = None
    _session_in_use: Session

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs
        super().__init__(*args, **kwargs)

    # Use. These methods of PyMySQL would reopen a returned handle, or would not notice that it has been returned.

    def connect(self, sock: Any = None) -> None:
        """Connect to the server, as PyMySQL does. If `password` is a callable, it is called for the password.

        A borrowed connection may be reconnected by hand, but the pool does not keep the new session.
        """
        self._check_lent()
        is_lent = self._token is not None
        secret: Any = self.password
        try:
            if is_lent:
                self._lost_writes = self._lost_writes or self._wrote
                if self._place.session is not None:
                    self._place.session.abandon()
                self._force_close()  # PyMySQL leaves the old socket to the garbage collector
            self._token = None  # the token is for commands and their replies, not for the handshake
            if callable(secret):
                self.password = _as_bytes(secret())
            super().connect(sock)
        finally:
            self.password = secret  # the callable, which is called again next time: the password itself is not stored
            self._token = [WHOLE] if is_lent else None

    def ping(self, reconnect: bool | None = None) -> None:
        """Ping the server, as PyMySQL does.

        A pooled connection reconnects only if `reconnect` is true, because a new session has lost the old one's state.
        """
        self._check_lent()
        if self._token is None and reconnect is None:
            super().ping()
        elif not reconnect:
            super().ping(reconnect=False)
        else:
            # PyMySQL's own warning would name this line instead of the caller's.
            warnings.warn("The 'reconnect' argument is deprecated.", DeprecationWarning, stacklevel=2)
            try:
                super().ping(reconnect=False)
            except pymysql.err.Error:
                self.connect()
                super().ping(reconnect=False)

    def autocommit(self, value: bool | None) -> None:
        """Set the autocommit mode, as PyMySQL does."""
        self._check_lent()
        super().autocommit(value)

    def thread_id(self) -> Any:
        """Return the server's id of the session, as PyMySQL does.

        A returned connection raises an error, because the session may belong to another borrower.
        """
        self._check_lent()
        return super().thread_id()  # type: ignore[no-untyped-call]

    @overload
    def cursor(self, cursor: None = None) -> AnyCursor: ...
    @overload
    def cursor(self, cursor: Callable[[Any], _AnyCursor]) -> _AnyCursor: ...
    def cursor(self, cursor: Any = None) -> Any:
        """Return a new cursor. `cursor` is the class or function that makes it; if it is None, `cursorclass` is used.

        A cursor that is made by a class also has the methods `db_query` and `db_modify`.
        """
        if self._place is None or self._place.is_of_parent:
            self._check_lent()
        made_by: Any = cursor or self.cursorclass
        return with_shorthands(made_by)(self) if isinstance(made_by, type) else made_by(self)

    def execute_query(
        self, query: str, args: Any = (), dictcursor: bool = False, return_one: bool = False, exec_many: bool = False
    ) -> Any:
        """Run one query and return its rows.

        If it is called inside a block on this connection, it is part of that block; otherwise it is a block of its own,
        which commits. On a connection that has been returned, or that is in another thread's block, it borrows a
        connection for the query.

        `args` is a tuple, list or dict that PyMySQL formats into the query. Unless it is None, a percent sign in the
        query must be written %%. With `exec_many`, the query runs once for each element of `args`.

        Returns all rows as a sequence, empty if there are none; with `return_one`, one row or None. Rows are dicts if
        `dictcursor` is true.

        Raises PyMySQL's errors, `PoolError` if the connection is being used by another thread or was borrowed before a
        fork, and, when it has to borrow, `GetConnectionFromPoolError` or `PoolClosedError`.
        """
        with self._block_or_commit() as connection, connection.cursor(DictCursor if dictcursor else None) as cursor:
            run(cursor, query, args, exec_many=exec_many)
            if not cursor.description:
                return None if return_one else ()
            return cursor.fetchone() if return_one else cursor.fetchall() or ()

    # Blocks

    def __enter__(self) -> BlockCursor:
        """Begin a block, a unit of work, and return its cursor, which also has the methods of its connection.

        Inside a block on this handle, `with` joins that block. Otherwise the new block uses this connection if it is
        free. If it is in use by another block, or has been returned, the new block borrows a connection of its own, and
        raises `GetConnectionFromPoolError` or `PoolClosedError` if it gets none.
        """
        if self._pool is None:
            return super().__enter__()  # type: ignore[return-value]
        cursor: BlockCursor = block.enter(self, _getframe().f_back or _getframe())
        return cursor

    if TYPE_CHECKING:

        def __exit__(self, *exc_info: object) -> None:
            """Leave the block. The outermost `with` commits, or rolls back, and returns the connection."""
    else:
        __exit__ = block.ExitDescriptor()

    @contextlib.contextmanager
    def _block_or_commit(self) -> Iterator[Connection]:
        """With a pool, a block. Without one, commit or roll back, and leave the connection open."""
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
        """Return the connection to its pool and roll back its open transaction. Without a pool, close it.

        A second call does nothing. Inside a block the call does nothing either: the end of the block returns the
        connection.
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
        """Detach the session from this handle. Return whether it can be lent again, with no reply left unread."""
        token: Any = self._token
        try:
            reply = token.pop()  # from now on no thread can use the handle
            if reply is UNREAD:
                token.append(reply)
                self._read_rest_without_waiting()
                reply = token.pop()
            is_whole = reply is WHOLE
        except (AttributeError, IndexError):  # connect() was interrupted: no token; or a reply was interrupted
            is_whole = False
            if session is not None:
                session.is_in_use = True
                self._session_in_use = session  # closed when the command fails, or no longer refers to this handle
        # The socket differs if PyMySQL has dropped it after an error, or after a reconnect by hand.
        if session is None or self._sock is not session.sock:
            is_whole = False
            with contextlib.suppress(pymysql.err.Error):
                super().close()
        elif self._left_in_session == TRANSACTION:
            changed = self.server_status ^ session.connected["server_status"]
            if changed & SERVER_STATUS.SERVER_STATUS_AUTOCOMMIT:
                self._left_in_session = DIRTY
        self._sock = self._rfile = None
        return is_whole

    def _read_rest_without_waiting(self) -> None:
        """Read the results that were left unread, such as the last one of a CALL, if they have already arrived."""
        self._read_timeout = 0
        with contextlib.suppress(MySQLError, TypeError):  # PyMySQL raises TypeError if nothing has arrived
            while self._result is not None and self._result.has_next and not self._result.unbuffered_active:
                self.next_result()

    def _take_session(self, session: Session) -> None:
        """Use a new session instead of the one that was lost before its first command."""
        vars(self).update(session.connected)
        self._result = None

    def __del__(self) -> None:
        if self._sock is None:  # never opened, closed, or returned
            return
        if self._token is None:
            self._force_close()  # a session closes its own socket
        elif self._token and self._wrote and self._place is not None:
            self._place.loan.lost_writes = True

    def _force_close(self) -> None:
        # PyMySQL before 1.1 leaves the file, and with it the socket, to the garbage collector.
        if self._rfile is not None:
            self._rfile.close()
        super()._force_close()

    def _create_ssl_ctx(self, sslp: Any) -> Any:
        # Use the template's, if there is one: creating a context takes 24 ms and 0.85 MB.
        return vars(self).get("ctx") or super()._create_ssl_ctx(sslp)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Connection is bound to its server session and can't be pickled or copied")


class _LazyCopy:
    """A mutable attribute that is copied for a connection when it is first read.

    Each borrower has its own copy, so that others do not see its changes. Copying all of these attributes for each
    successor would raise the cost of a borrow and return by half (it is 2.2 times that of a LifoQueue's put and get).
    The copy is stored in the instance's `__dict__`, where Python finds it before this descriptor.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, connection: Connection, owner: type) -> Any:
        attributes = vars(connection)
        try:
            value = attributes["_originals"][self._name]
        except KeyError:  # not opened by a pool, or unknown to this release of PyMySQL
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self._name!r}") from None
        return attributes.setdefault(self._name, _private_copy(value))


_LAZILY_COPIED = ("_auth_plugin_map", "_connect_attrs", "decoders", "encoders", "kwargs")
for _name in _LAZILY_COPIED:
    setattr(Connection, _name, _LazyCopy(_name))


# The attributes that describe one borrow. They are preset in the instance's `__dict__`: Python finds them there faster
# than on the class, and the dict need not grow later. A borrow and return takes 2.2 times as long as a LifoQueue's
# put and get, and 2.4 times without this.
_BORROW_DEFAULTS = {
    name: getattr(Connection, name)
    for name in (
        "_pool",
        "_place",
        "_token",
        "_current_timeout",
        "_left_in_session",
        "_may_be_in_transaction",
        "_wrote",
        "_thread_id",
        "_statement",
        "_statement_leaves",
    )
}


class Template:
    """A connection that is never opened. All connections of a pool are copies of it, and share its SSLContext.

    If the connection class has an `__init__` of its own, that is run for each copy instead, so that connections share
    none of the objects that it creates.
    """

    def __init__(self, connection_class: type[Connection], connect_kwargs: dict[str, Any]) -> None:
        self._class = connection_class
        self._kwargs = connect_kwargs
        self._has_init = connection_class.__init__ is not Connection.__init__
        self._original = _new(connection_class)
        self._initialize(self._original)

    def copy(self, place: Place) -> Connection:
        """Return a connection for `place` that is not open yet."""
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
        """Store the attributes of a `connection` that has just been opened: its successors start from them.

        `before` contains the attributes that it had before it was opened.
        """
        connection._result = None
        attributes = vars(connection)
        attributes.pop("_token", None)  # each handle gets its own
        session.connected = {name: value for name, value in attributes.items() if before.get(name, self) is not value}
        if not self._has_init:
            originals = {name: attributes.pop(name) for name in _LAZILY_COPIED if name in attributes}
            attributes["_originals"] = originals
            session.state = attributes.copy()
            # The defaults have no place: that would make a reference cycle of place, session and state.
            session.state.update(_BORROW_DEFAULTS)
        session.mutable = {
            name: value for name, value in session.connected.items() if _private_copy(value) is not value
        }
        # The first borrower must not change the originals either.
        attributes.update({name: _private_copy(value) for name, value in session.mutable.items()})
        connection._token = [WHOLE]

    def successor(self, place: Place, current_timeout: float | None) -> Connection:
        """Return a new handle with the session of `place` and the attributes that it had right after it was opened."""
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
        connection._current_timeout = current_timeout  # the socket's timeout, which PyMySQL keeps from 1.2 on
        return connection

    def reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        """After a fork, put the child's process id into the connection attributes that are sent to the server."""
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
    """Return a copy of `value` if it is mutable, so that connections do not share it, or else `value` itself."""
    return value.copy() if isinstance(value, (dict, list, set, deque)) else value


def _as_bytes(password: str | bytes) -> bytes:
    if not isinstance(password, (str, bytes)):
        raise TypeError(f"password() should give a string or bytes, not {type(password).__name__}")
    return password.encode("latin1") if isinstance(password, str) else password

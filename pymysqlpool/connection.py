"""One connection: lent by a pool and returned to it, or PyMySQL's own when there is no pool."""

from __future__ import annotations

import contextlib
import socket
import threading
from sys import _getframe
from typing import TYPE_CHECKING, Any, NoReturn

from pymysql.constants import CR
from pymysql.cursors import Cursor, DictCursor
from pymysql.err import MySQLError, OperationalError

from .cursors import of_block, with_shorthands
from .errors import PoolError
from .log import logger
from .wire import PING_TIMEOUT, WiredConnection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from .session import Cleaning


class Connection(WiredConnection):
    """PyMySQL's `Connection`, which `close()` and the end of a `with` block return to its pool, if it has one.

    A handle dies when it is returned: its session lives on in a successor, which the next borrower gets. What would
    reach the server through a returned handle raises `ReturnConnectionToPoolError`; `close()` does nothing; `with` and
    `execute_query` borrow afresh.

    `args` and `kwargs` hold what it was made with.
    """

    #: The block that has this very connection. (`_blocks`, once there are any, has all on this handle by their
    #: threads.)
    _own_block: _Block | None = None

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
        self._lost = self._lost or self._wrote
        turn = self._turn
        secret: Any = self.password
        try:
            if turn is not None:
                self._force_close()  # PyMySQL would leave the old socket to the collector
                self._place.owed = None
            self._turn = None  # the handshake is no command with its reply
            if callable(secret):
                self.password = _as_bytes(secret())
            super().connect(sock)
        finally:
            self.password = secret  # asked again next time, and not kept
            self._turn = None if turn is None else [None]

    def ping(self, *args: Any, **kwargs: Any) -> None:
        """PyMySQL's. With a pool it does not reconnect unless asked to, which would lose the session's state."""
        self._check_lent()
        if self._turn is not None and not args:
            kwargs.setdefault("reconnect", False)  # before 1.2 it was on
        super().ping(*args, **kwargs)

    def autocommit(self, value: bool | None) -> None:
        """PyMySQL's."""
        self._check_lent()
        super().autocommit(value)

    def cursor(self, cursor: type[Cursor] | None = None) -> Any:
        """PyMySQL's cursor of the class asked for, or of `cursorclass`, which has `db_query` and `db_modify` too."""
        if self._place is None or self._place.is_of_parent:
            self._check_lent()
        cursorclass: Any = cursor or self.cursorclass
        return with_shorthands(cursorclass)(self)

    def execute_query(
        self, query: str, args: Any = (), dictcursor: bool = False, return_one: bool = False, exec_many: bool = False
    ) -> Any:
        """Run one query as a block of its own, or as part of the block that this thread is in, and return its rows.

        All rows, `()` for none; with `return_one` one row, or None. `dictcursor` makes dicts of them.
        `args` are formatted into the query as PyMySQL does; with `exec_many` it is run for each of them.
        """
        with self._unit_of_work() as connection, connection.cursor(DictCursor if dictcursor else None) as cursor:
            if exec_many:
                cursor.executemany(query, args)
            else:
                cursor.execute(query, args)
            if cursor.description is None:
                return None if return_one else ()
            return cursor.fetchone() if return_one else cursor.fetchall() or ()

    # Blocks

    def __enter__(self) -> Any:
        """Begin a unit of work and return its cursor, which answers for its connection too.

        The block has this connection where it is free. A thread that is in a block on this handle already joins it;
        where another thread is, or the handle has been returned, the block borrows a connection of its own.
        """
        if self._pool is None:
            return super().__enter__()
        me = threading.get_ident()
        blocks = vars(self).setdefault("_blocks", {})
        block = blocks.get(me) or self._begin_block()
        connection = block.connection
        try:
            cursorclass: Any = connection.cursorclass
            cursor = of_block(cursorclass)(connection)
            block.cursors.append(cursor)
            blocks[me] = vars(connection).setdefault("_blocks", {})[me] = block
        except BaseException as error:
            if not block.cursors:
                self._pool._take_back(connection, error)
            raise
        return cursor

    def __exit__(  # type: ignore[override]
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the block. The outermost commits, or rolls back after an exception, and returns the connection."""
        if self._pool is None:
            super().__exit__(kind, error, traceback)
            return
        me = threading.get_ident()
        blocks = vars(self).get("_blocks", {})
        if me not in blocks and len(blocks) == 1:
            # Begun by another thread, as web frameworks do that run a generator's two halves in a thread pool.
            [me] = blocks
        if me not in blocks:
            raise PoolError("this thread is in no block on this connection")
        block = blocks[me]
        connection = block.connection
        cursor = block.cursors.pop()
        if block.cursors:
            connection._end_cursor(cursor, error)
            return
        for handle in (self, connection):
            vars(handle)["_blocks"].pop(me, None)
        connection._end_block(cursor, error)

    def _begin_block(self) -> _Block:
        """A block on this connection or, where it is not free, on one borrowed for it."""
        assert self._pool is not None
        block = _Block(self)
        # setdefault is one atomic step: of two threads that enter at once, one gets the handle's own session.
        if self._place is None or vars(self).setdefault("_own_block", block) is not block:
            block.connection = self._pool.get_connection()
            block.connection._place.loan.is_for(_getframe())
            block.connection._own_block = block
        return block

    def _end_cursor(self, cursor: Any, error: BaseException | None) -> None:
        """Read what a block's cursor has left unread, but not after an exception: that could take for ever."""
        if error is None:
            cursor.close()
        else:
            cursor.connection = None

    def _end_block(self, cursor: Any, error: BaseException | None) -> None:
        """End a unit of work on this connection: commit or roll back, and return."""
        pool: Any = self._pool
        try:
            self._end_cursor(cursor, error)
            if error is None and self._may_be_in_transaction:
                self._commit_or_give_up()
        except BaseException as failure:
            pool._take_back(self, failure)
            raise
        pool._take_back(self, error)

    def _commit_or_give_up(self) -> None:
        """Commit; where that fails nobody knows what the session is left with, so it is given up."""
        try:
            if self._lost:
                raise OperationalError(
                    CR.CR_SERVER_LOST, "Lost connection: what was written before the reconnect is gone"
                )
            self.commit()
        except BaseException:
            self._sound = False
            raise

    @contextlib.contextmanager
    def _unit_of_work(self) -> Iterator[Connection]:
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
        elif self._own_block is None:
            if self._wrote and self._place is not None:
                logger.warning(
                    "pool(%s): close() rolls back what was written, on the connection borrowed at %s:%d",
                    self._pool.name,
                    *self._place.loan.line(),
                )
            self._pool._take_back(self)

    def _has_sent(self, cleaning: Cleaning) -> bool:
        """Whether `cleaning` is on its way, which nobody waits for, or the session turned out to be lost."""
        try:
            with self._patience(PING_TIMEOUT):
                self._send(cleaning)
        except MySQLError:
            self._abandon()
            return False
        return True

    def _quit(self) -> None:
        """Close the session with a goodbye to the server."""
        super().close()

    def _abandon(self) -> None:
        """Close the socket without a word: the session is lost, or in the middle of a reply that nobody is to read."""
        if self._sock is not None:
            # A thread that reads here now, contrary to all advice, holds a lock in the file that is closed next.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._force_close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Connection is bound to its server session and can't be pickled or copied")


class _Block:
    """A unit of work: the connection that it runs on, and the cursors of the `with` statements that it consists of."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.cursors: list[Any] = []


def _as_bytes(password: str | bytes) -> bytes:
    if not isinstance(password, (str, bytes)):
        raise TypeError(f"password() should give a string or bytes, not {type(password).__name__}")
    return password.encode("latin1") if isinstance(password, str) else password

"""Blocks: units of work, which a `with` statement begins, and whose end returns the connection.

The difficult part is to find the block that a `with` belongs to. Several threads and generators may have blocks on one
handle, and neither the thread nor the handle identifies a block: the call stack does.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pymysql.constants import CR
from pymysql.err import OperationalError

from .cursors import as_block_cursor
from .driver import PyMySQLConnection
from .errors import PoolError
from .statements import BROKEN

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from .connection import Connection

_GENERATOR_FLAGS = 0x20 | 0x200  # inspect.CO_GENERATOR and inspect.CO_ASYNC_GENERATOR
# Functions that begin a block and return before its body runs: a user's own context manager, and, before Python 3.12,
# comprehensions, as in `[stack.enter_context(pool.connection()) for _ in range(4)]`.
_RETURN_BEFORE_BODY = ("__enter__", "<listcomp>", "<setcomp>", "<dictcomp>")


class Scope:
    """The frame in which a block was begun: what this frame calls, directly or not, is inside the block.

    The thread is not enough to tell: one thread of a thread pool may run the first halves of two unrelated generators.
    """

    __slots__ = ("__weakref__", "_frame", "_instructions")

    def __init__(self, frame: FrameType) -> None:
        # A generator may be suspended inside its block. Then the frame that resumed it goes on after this instruction,
        # and what it calls is inside the block too. So each frame on the way is stored with its instruction.
        self._frame = frame
        self._instructions = _body_frames(frame)

    def contains(self, frame: FrameType | None) -> bool:
        """Return whether `frame` is inside the block."""
        while frame is not None:
            if frame is self._frame:
                return True
            if frame in self._instructions:
                # If they are equal, the same call is resuming another generator, as in a loop.
                return frame.f_lasti != self._instructions[frame]
            frame = frame.f_back
        return False


class Block:
    """A unit of work that is begun on a handle. It has its own connection: the handle or, if that is in use, another.

    A `with` on the same handle inside the block joins it.
    """

    def __init__(self, handle: Connection, frame: FrameType) -> None:
        self._handle = handle
        self.connection = handle
        self.thread = get_ident()
        #: Whether every use of the handle, in any thread, is inside this block, because only the block has the handle.
        self.has_handle_alone = False
        # If the exit of the `with` is known, only the exit keeps the scope. The handle refers to the block, and the
        # scope to a frame, where a variable may refer to a generator that is no longer used: if the block kept the
        # scope, the handle would keep that generator, and the connection of its block, alive.
        self._kept: Scope | None = Scope(frame)
        self._scope = weakref.ref(self._kept)
        #: The cursor of the `with` that began the block, and the cursors of those whose exits are not known.
        self.first: Any = None
        self.unpaired: list[Any] = []

    def contains(self, frame: FrameType) -> bool:
        """Return whether `frame` is inside this block."""
        scope = self._scope()
        return self.has_handle_alone or (scope is not None and scope.contains(frame))

    def begin(self) -> None:
        """Use the handle as the block's connection if it is free, or borrow one."""
        handle = self._handle
        # setdefault is atomic: if two threads begin a block at the same time, exactly one gets the handle.
        if handle._place is None or vars(handle).setdefault("_block", self) is not self:
            assert handle._pool is not None
            self.connection = handle._pool.get_connection()
            self.connection._place.loan.is_for(_getframe())
            self.connection._block = self

    def enter(self, exit_: Exit | None) -> Any:
        """Return a cursor for a `with`. `exit_` is its exit, if it is known."""
        cursor = as_block_cursor(self.connection.cursor())
        if self.first is None:
            self.first = cursor
            vars(self._handle).setdefault("_blocks", []).append(self)
            if self.connection is not self._handle:
                vars(self.connection).setdefault("_blocks", []).append(self)
        if exit_ is None:
            self.unpaired.append(cursor)
        else:
            exit_.block, exit_.cursor = self, cursor
            if cursor is self.first:
                exit_.scope, self._kept = self._kept, None
        return cursor

    def leave(self, cursor: Any, error: BaseException | None) -> None:
        """Leave a `with`. If it is the one that began the block, end the block."""
        if cursor is self.first:
            self.end(cursor, error)
        elif error is None and cursor.connection is not None:
            cursor.close()
        else:
            cursor.connection = None

    def end(self, cursor: Any, error: BaseException | None) -> None:
        """Commit, or roll back after an `error`, and return the connection."""
        connection = self.connection
        self._release_handles()
        pool: Any = connection._pool
        connection._thread_id = get_ident()  # this thread reads what another thread may have left unread
        try:
            if error is None:
                cursor.close()  # reads the remaining rows; after an error that could take forever
                if connection._may_be_in_transaction:
                    self._commit()
            else:
                cursor.connection = None
        except BaseException as failure:
            pool._take_back(connection, failure)
            raise
        pool._take_back(connection, error)

    def abort(self) -> None:
        """Roll back and return the connection, because it is not known which block should end."""
        self.end(self.first, PoolError("it is not known which block should end"))

    def _commit(self) -> None:
        """Commit. If that fails, the state of the session is unknown, and it is not used again."""
        connection = self.connection
        try:
            if connection._lost_writes:
                raise OperationalError(
                    CR.CR_SERVER_LOST, "Lost connection: what was written before the reconnect is gone"
                )
            connection.commit()
        except BaseException:
            connection._left_in_session = BROKEN
            raise

    def _release_handles(self) -> None:
        """Break the reference cycle of block and handles, so that the rows of a large result are freed at once."""
        for handle in (self._handle, self.connection):
            with contextlib.suppress(ValueError, KeyError):
                vars(handle)["_blocks"].remove(self)
            if vars(handle).get("_block") is self:
                del handle._block
        self._handle = self.connection
        self._kept = None


class Exit:
    """The `__exit__` of one `with`. It identifies the block, no matter which thread calls it."""

    __slots__ = ("__weakref__", "block", "cursor", "handle", "scope")

    def __init__(self, handle: Connection) -> None:
        self.handle = handle
        self.block: Block | None = None
        self.scope: Scope | None = None
        self.cursor: Any = None

    def __call__(
        self,
        kind: type[BaseException] | None = None,  # noqa: ARG002  as `with` calls it
        error: BaseException | None = None,
        traceback: TracebackType | None = None,  # noqa: ARG002  the same
    ) -> None:
        """Leave the `with`; `error` is the exception that ends it, if there is one."""
        if self.block is None:
            leave(self.handle, error)
        else:
            self.block.leave(self.cursor, error)


class ExitDescriptor:
    """The descriptor of `Connection.__exit__`: each `with` gets an exit of its own, as it looks the method up first.

    `contextlib.ExitStack` looks it up on the class, so its exit is not known. Then the call stack, or else the thread,
    identifies the block.
    """

    def __get__(self, handle: Connection | None, owner: type) -> Any:
        if handle is None or handle._pool is None:
            return _exit if handle is None else functools.partial(_exit, handle)
        exit_ = Exit(handle)
        # A weak reference: if the lookup was not made by a `with`, the exit is dropped at once.
        vars(handle).setdefault("_exits", {})[get_ident()] = weakref.ref(exit_)
        return exit_


def enter(handle: Connection, frame: FrameType) -> Any:
    """Begin a block on `handle`, or join the one that `frame` is inside, and return a cursor.

    Raises `GetConnectionFromPoolError` or `PoolClosedError` if the block needs another connection and gets none.
    """
    exit_ = _exit_of_this_with(handle)
    for block in reversed(vars(handle).get("_blocks", ())):
        if block.contains(frame):
            return block.enter(exit_)
    block = Block(handle, frame)
    block.begin()
    try:
        return block.enter(exit_)
    except BaseException as error:
        pool: Any = block.connection._pool
        block._release_handles()
        pool._take_back(block.connection, error)
        raise


def leave(handle: Connection, error: BaseException | None) -> None:
    """Leave a `with` on `handle` whose exit is not known.

    Raises `PoolError` if no block, or more than one, could be the one to leave.
    """
    blocks = [block for block in vars(handle).get("_blocks", ()) if block.unpaired]
    for found in (
        [block for block in blocks if block.contains(_getframe())],
        [block for block in blocks if block.thread == get_ident()],
        blocks,
    ):
        if len(found) == 1:
            [block] = found
            block.leave(block.unpaired.pop(), error)
            return
    for block in blocks:
        block.abort()
    if blocks:
        raise PoolError(
            f"{len(blocks)} blocks on this connection could end here, begun by other threads: all are rolled back. "
            "Use a connection for each of them, or `with` statements"
        )
    raise PoolError("no block on this connection can end here")


def _exit_of_this_with(handle: Connection) -> Exit | None:
    """Return the exit of the `with` that is being entered: the one that this thread has looked up last."""
    reference: weakref.ref[Exit] | None = vars(handle).get("_exits", {}).pop(get_ident(), None)
    return reference() if reference is not None else None


def _exit(
    handle: Connection,
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    traceback: TracebackType | None = None,
) -> None:
    """`__exit__` of a connection without a pool, and where `__exit__` is looked up on the class."""
    if handle._pool is None:
        PyMySQLConnection.__exit__(handle, kind, error, traceback)
    else:
        leave(handle, error)


def _body_frames(frame: FrameType) -> dict[FrameType, int]:
    """Return the frames that may run the block's body, each with the instruction that it is at.

    They are `frame`, and the caller of each that is suspended, or returns, before the body runs.
    """
    instructions = {frame: frame.f_lasti}
    while frame.f_back is not None and (
        frame.f_code.co_flags & _GENERATOR_FLAGS
        or frame.f_code.co_filename == contextlib.__file__
        or frame.f_code.co_name in _RETURN_BEFORE_BODY
    ):
        frame = frame.f_back
        instructions[frame] = frame.f_lasti
    return instructions

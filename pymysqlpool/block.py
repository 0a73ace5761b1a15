"""A unit of work: from the `with` that begins it to its end, which commits or rolls back and returns the connection."""

from __future__ import annotations

import contextlib
import functools
import weakref
from sys import _getframe
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pymysql.constants import CR
from pymysql.err import OperationalError

from .cursors import of_block
from .driver import PyMySQLConnection
from .errors import PoolError
from .statements import BROKEN

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from .connection import Connection

_OF_GENERATOR = 0x20 | 0x200  # inspect's CO_GENERATOR and CO_ASYNC_GENERATOR
# Functions that return before the block runs that they have begun: a `with` of one's own, and, before Python 3.12,
# comprehensions, as in `[stack.enter_context(pool.connection()) for _ in range(4)]`.
_PASSED = ("__enter__", "<listcomp>", "<setcomp>", "<dictcomp>")


class Beginning:
    """Where a block was begun, and so what runs inside it.

    That is what runs further up on the stack of calls that runs on behind the `with`. (A thread is not enough: one of a
    pool of threads may run the first halves of two generators, which have nothing to do with each other.)
    """

    __slots__ = ("__weakref__", "_frame", "_instructions")

    def __init__(self, frame: FrameType) -> None:
        # Where the block was begun. Where that is a generator, which is suspended inside the block, what has resumed it
        # runs on, from this instruction.
        self._frame = frame
        self._instructions = _running_frames(frame)

    def is_around(self, frame: FrameType | None) -> bool:
        """Whether `frame` runs inside the block."""
        while frame is not None:
            if frame is self._frame:
                return True
            if frame in self._instructions:
                # Else the same call resumes another generator, as in a loop.
                return frame.f_lasti != self._instructions[frame]
            frame = frame.f_back
        return False


class Block:
    """A unit of work on a connection that it has to itself, begun on a handle, which may be that connection or not.

    What runs inside a block, and enters the same handle again, joins it.
    """

    def __init__(self, handle: Connection, frame: FrameType) -> None:
        self._handle = handle
        self.connection = handle
        self.thread = get_ident()
        #: Whether whoever uses the handle is in this block, in whatever thread: nobody else has got it.
        self.has_handle_alone = False
        # Kept by the end of the `with`, if that can be told: else a generator that nobody has any more, but which a
        # variable of the frame refers to that began it, would be kept by the handle, and its connection with it.
        self._kept: Beginning | None = Beginning(frame)
        self._beginning = weakref.ref(self._kept)
        #: The cursor of the `with` that has begun it, and of those that can't be told by their ends.
        self.first: Any = None
        self.unpaired: list[Any] = []

    def is_around(self, frame: FrameType) -> bool:
        """Whether `frame` runs inside this block."""
        beginning = self._beginning()
        return self.has_handle_alone or (beginning is not None and beginning.is_around(frame))

    def begin(self) -> None:
        """Take the handle's connection where it is free, or borrow one."""
        handle = self._handle
        # setdefault is one atomic step: of two threads that enter at once, one gets the handle's own connection.
        if handle._place is None or vars(handle).setdefault("_block", self) is not self:
            assert handle._pool is not None
            self.connection = handle._pool.get_connection()
            self.connection._place.loan.is_for(_getframe())
            self.connection._block = self

    def enter(self, end: End | None) -> Any:
        """A cursor for a `with`, whose `end` this is, if it can be told."""
        cursor = of_block(self.connection.cursor())
        if self.first is None:
            self.first = cursor
            vars(self._handle).setdefault("_blocks", []).append(self)
            if self.connection is not self._handle:
                vars(self.connection).setdefault("_blocks", []).append(self)
        if end is None:
            self.unpaired.append(cursor)
        else:
            end.block, end.cursor = self, cursor
            if cursor is self.first:
                end.beginning, self._kept = self._kept, None
        return cursor

    def leave(self, cursor: Any, error: BaseException | None) -> None:
        """A `with` ends. That which has begun the block ends it."""
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
        connection._thread_id = get_ident()  # which goes on with what another thread may have left unread
        try:
            if error is None:
                cursor.close()  # which reads what it has left unread; after an error that could take for ever
                if connection._may_be_in_transaction:
                    self._commit()
            else:
                cursor.connection = None
        except BaseException as failure:
            pool._take_back(connection, failure)
            raise
        pool._take_back(connection, error)

    def abort(self) -> None:
        """Roll back and return the connection, as nobody can tell whose end it was."""
        self.end(self.first, PoolError("the end of a block could not be told"))

    def _commit(self) -> None:
        """Commit; where that fails nobody knows what the session is left with, so it is given up."""
        connection = self.connection
        try:
            if connection._lost_writes:
                raise OperationalError(
                    CR.CR_SERVER_LOST, "Lost connection: what was written before the reconnect is gone"
                )
            connection.commit()
        except BaseException:
            connection._left = BROKEN
            raise

    def _release_handles(self) -> None:
        """Leave no cycle of references behind, for which the rows of a large result would wait."""
        for handle in (self._handle, self.connection):
            with contextlib.suppress(ValueError, KeyError):
                vars(handle)["_blocks"].remove(self)
            if vars(handle).get("_block") is self:
                del handle._block
        self._handle = self.connection
        self._kept = None


class End:
    """What `with` calls at its end: it belongs to one block, in whatever thread it is called."""

    __slots__ = ("__weakref__", "beginning", "block", "cursor", "handle")

    def __init__(self, handle: Connection) -> None:
        self.handle = handle
        self.block: Block | None = None
        self.beginning: Beginning | None = None
        self.cursor: Any = None

    def __call__(
        self,
        kind: type[BaseException] | None = None,  # noqa: ARG002  as `with` calls it
        error: BaseException | None = None,
        traceback: TracebackType | None = None,  # noqa: ARG002  the same
    ) -> None:
        """End the `with`."""
        if self.block is None:
            leave(self.handle, error)
        else:
            self.block.leave(self.cursor, error)


class EndOfBlock:
    """`Connection.__exit__`. `with` looks it up when it begins, and so each gets an end of its own.

    Where it is looked up on the class, as `contextlib.ExitStack` does, the stack of calls or the thread tells.
    """

    def __get__(self, handle: Connection | None, owner: type) -> Any:
        if handle is None or handle._pool is None:
            return _exit if handle is None else functools.partial(_exit, handle)
        end = End(handle)
        # Not for longer than the `with` itself refers to it: others look this attribute up as well.
        vars(handle).setdefault("_ends", {})[get_ident()] = weakref.ref(end)
        return end


def enter(handle: Connection, frame: FrameType) -> Any:
    """Begin a block on `handle`, or join the one around `frame`, and return its cursor."""
    end = _end_of_this_with(handle)
    for block in reversed(vars(handle).get("_blocks", ())):
        if block.is_around(frame):
            return block.enter(end)
    block = Block(handle, frame)
    block.begin()
    try:
        return block.enter(end)
    except BaseException as error:
        pool: Any = block.connection._pool
        block._release_handles()
        pool._take_back(block.connection, error)
        raise


def leave(handle: Connection, error: BaseException | None) -> None:
    """End a `with` on `handle` that can't be told by its end."""
    blocks = [block for block in vars(handle).get("_blocks", ()) if block.unpaired]
    for found in (
        [block for block in blocks if block.is_around(_getframe())],
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
            f"{len(blocks)} blocks on this connection could end here, begun by other threads: they are rolled back. "
            "Let each have a connection of its own, or use `with`"
        )
    raise PoolError("this thread is in no block on this connection")


def _end_of_this_with(handle: Connection) -> End | None:
    """The end that the `with` which enters `handle` now has looked up, just before; the thread's last, so."""
    reference: weakref.ref[End] | None = vars(handle).get("_ends", {}).pop(get_ident(), None)
    return reference() if reference is not None else None


def _exit(
    handle: Connection,
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    traceback: TracebackType | None = None,
) -> None:
    """`__exit__` of a connection without a pool, which is PyMySQL's, and where it is looked up on the class."""
    if handle._pool is None:
        PyMySQLConnection.__exit__(handle, kind, error, traceback)
    else:
        leave(handle, error)


def _running_frames(frame: FrameType) -> dict[FrameType, int]:
    """`frame`, and what may run on inside the block: what has resumed a generator, or has a `with` of its own.

    With the instruction that each is at.
    """
    instructions = {frame: frame.f_lasti}
    while frame.f_back is not None and (
        frame.f_code.co_flags & _OF_GENERATOR
        or frame.f_code.co_filename == contextlib.__file__
        or frame.f_code.co_name in _PASSED
    ):
        frame = frame.f_back
        instructions[frame] = frame.f_lasti
    return instructions

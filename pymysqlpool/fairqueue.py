"""A queue that is last in, first out for what rests in it, and first come, first served for who waits."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

#: A waiter looks up this often, in seconds, to see what nobody would wake it for: a lost handle found by the collector.
LOOK_UP = 0.5


class LineTooLong(queue.Empty):
    """Nothing is there, and as many as may wait for it do so already."""


class QueueClosed(Exception):
    """The queue is closed: nothing goes in or comes out."""


class _Waiter(Generic[T]):
    """One thread in the line. `served` is released when `item` is there; both are set under the queue's mutex."""

    __slots__ = ("item", "served")

    def __init__(self) -> None:
        self.item: T | None = None
        self.served = threading.Lock()
        self.served.acquire()


class FairQueue(queue.Queue[T]):
    """`queue.Queue`, in which a returned item goes straight to the thread that has waited longest.

    `queue.Queue` wakes a waiter and lets any passer-by take the item first; under load most threads then get nothing.
    Items are never None.

    The mutex guards the line. What rests needs none: `deque` takes and gives in one step each. Who puts lays the item
    down first and looks for waiters then; who waits joins the line first and looks for items then; so of two who do
    this at once, one sees the other. Passers-by leave what rests to the line as soon as somebody stands there.

    No lock but the mutex is taken while it is held, and nothing is called that could block.
    """

    queue: deque[T]

    def __init__(self, maxsize: int = 0, max_waiting: int | None = None) -> None:
        super().__init__(maxsize)
        # The standard library's Queue has these three already; gevent's, which takes its place, has not.
        self.mutex = threading.Lock()
        self.not_full = threading.Condition(self.mutex)
        self.queue = deque()
        self._max_waiting = max_waiting
        self._waiters: deque[_Waiter[T]] = deque()
        self._closed = False

    def look_up(self) -> None:
        """Put back what has been lost and found. Called without the mutex, before and while a thread waits."""

    def get(self, block: bool = True, timeout: float | None = None, retries: int = 0) -> T:
        """Take the item that came last; if there is none, stand in line for `timeout` seconds (None: for ever).

        Each of the `retries` is so long again, at the same place in the line.

        Raises `queue.Empty` when the time is over, `LineTooLong` at once when `max_waiting` wait already, and
        `QueueClosed`.
        """
        if not self._waiters:
            try:
                return self.queue.pop()
            except IndexError:
                pass
        return self._stand_in_line(timeout and timeout * (1 + retries) if block else 0)

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002  queue.Queue's
        """Give `item` to the thread that has waited longest, or lay it on top. There is always room for it.

        Raises `QueueClosed` when the queue is closed; the item is then still the caller's.
        """
        self.queue.append(item)
        if self._waiters or self._closed:
            self._pass_on(item)

    def close(self) -> list[T]:
        """Close the queue, wake all who wait, and return what rested in it. Closing again returns nothing."""
        items: list[T] = []
        with self.mutex:
            self._closed = True
            with contextlib.suppress(IndexError):
                while True:
                    items.append(self.queue.popleft())
            for waiter in self._waiters:
                waiter.served.release()
            self._waiters.clear()
        return items

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def resting(self) -> list[T]:
        """What rests in the queue at this moment, the next to be taken last."""
        while True:
            with contextlib.suppress(RuntimeError):  # without a GIL one may give or take amid the copying
                return list(self.queue)

    def qsize(self) -> int:
        """How many items rest in the queue."""
        return len(self.queue)

    def waiting(self) -> int:
        """How many threads stand in line."""
        return len(self._waiters)

    def _stand_in_line(self, timeout: float | None) -> T:
        self.look_up()
        waiter: _Waiter[T] = _Waiter()
        try:
            with self.mutex:
                self._waiters.append(waiter)
                self._serve()
                if waiter.item is None:
                    if self._closed:
                        raise QueueClosed
                    if timeout is not None and timeout <= 0:
                        raise queue.Empty
                    if self._max_waiting is not None and len(self._waiters) > self._max_waiting:
                        raise LineTooLong
            self._wait(waiter, timeout)
            with self.mutex:
                item = self._leave_line(waiter)
                if item is not None:
                    return item  # also when it came after the time was over, but before the mutex was ours
                if self._closed:
                    raise QueueClosed
                raise queue.Empty
        except BaseException:
            # Interrupted, perhaps in the very moment of the hand-over: what it was given goes on to the next.
            with self.mutex:
                item = self._leave_line(waiter)
                if item is not None and not self._closed:
                    self.queue.append(item)
                    self._serve()
            raise

    def _wait(self, waiter: _Waiter[T], timeout: float | None) -> None:
        """Wait until served, closed, or `timeout` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = LOOK_UP
        while waiter.item is None and not self._closed:
            if deadline is not None:
                pause = min(LOOK_UP, deadline - time.monotonic())
                if pause <= 0:
                    return
            if waiter.served.acquire(timeout=pause):
                return
            self.look_up()
            if self.queue:  # who laid it there was interrupted before it looked for waiters
                with self.mutex:
                    self._serve()

    def _pass_on(self, item: T) -> None:
        """Let those in line have `item`, which lies in the queue now, or take it out again if that is closed."""
        with self.mutex:
            if not self._closed:
                self._serve()
                return
            try:
                self.queue.remove(item)
            except ValueError:
                return  # close() has found it, or a passer-by who saw the queue open
        raise QueueClosed

    def _serve(self) -> None:
        """Hand what rests to those in line. The mutex is held."""
        # An exception may strike between any two of these lines. The waiter has the item before it has left the line,
        # and looks up by itself, so that it is neither forgotten nor served twice.
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.item is None:
                try:
                    waiter.item = self.queue.pop()
                except IndexError:
                    return
            self._waiters.popleft()
            waiter.served.release()

    def _leave_line(self, waiter: _Waiter[T]) -> T | None:
        """Take `waiter` out of the line and what it was given out of its hands. The mutex is held."""
        item, waiter.item = waiter.item, None
        # Who has an item has left the line already, unless whoever handed it over was interrupted.
        if waiter in self._waiters if item is None else self._waiters and self._waiters[0] is waiter:
            self._waiters.remove(waiter)
        return item

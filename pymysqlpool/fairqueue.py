"""A queue without a lock: last in, first out for idle items, and first come, first served for waiters."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from itertools import islice
from threading import get_ident
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")

#: A waiter looks at the queue this often by itself, in seconds: for what nobody wakes it for.
CHECK_INTERVAL = 0.5
#: A waiter that has not looked for this long, in seconds, can't take anything and no longer keeps others waiting.
ABSENT_AFTER = 4 * CHECK_INTERVAL


class LineTooLong(queue.Empty):
    """Nothing is idle, and as many threads as may wait do so already."""


class QueueClosed(Exception):
    """The queue is closed: nothing goes in or comes out."""


class Waiter:
    """A thread that waits in line. Nobody holds its lock: releasing it wakes the thread, as a semaphore would."""

    __slots__ = ("__weakref__", "_lock", "last_look", "reference", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.reference = weakref.ref(self)
        self.last_look = monotonic()
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Let `sleep()` return, now or when it is called next."""
        with contextlib.suppress(RuntimeError):  # it is awake already
            self._lock.release()

    def sleep(self, seconds: float) -> bool:
        """Return True when woken, or False after so many seconds."""
        return self._lock.acquire(timeout=seconds)


class FairQueue(queue.Queue[T], Generic[T]):
    """`queue.Queue`, in which a returned item is for the thread that has waited longest.

    `queue.Queue` wakes a waiter and lets any other thread take the item first; under load most threads get nothing.
    Items are never None.

    There is no lock, so a signal handler, `__del__` or a weak reference's callback may call any method, also when it
    interrupts another call of the same thread. Every step is one atomic operation on a deque or a dict:

    * An item is in the deque, or with the `get()` that popped it; never with a `put()`.
    * Of n idle items the first n waiters in line may take one each. Others may only while nobody waits.
    * `put()` adds the item and then looks at the line; `get()` joins the line and then looks at the items; whoever
      leaves the line looks again. So of two threads that do this at once, one sees the other. Each waiter also looks by
      itself every `CHECK_INTERVAL`, which repairs what an asynchronous exception has cut short.
    """

    queue: deque[T]

    def __init__(self, maxsize: int = 0, max_waiting: int | None = None) -> None:
        super().__init__(maxsize)  # its locks are not used
        self.queue = deque()  # where gevent's Queue takes the standard library's place, it has another
        self._max_waiting = max_waiting
        # By thread, in the order of arrival. A thread stands in it once: a get() in a signal handler that has
        # interrupted a waiting get() of the same thread waits at its position, as the other can't go on before it. Only
        # the waiting get() refers to its waiter: whatever interrupts that, nobody waits behind it for ever.
        self._line: dict[int, weakref.ref[Waiter]] = {}
        self._closed = False

    def replace_lost(self) -> None:
        """Put back items that were lost. Called before a thread waits and whenever it looks at the queue."""

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the item that was added last, or wait for one for `timeout` seconds (None: for ever).

        Raises `queue.Empty` when the time is over, `LineTooLong` at once where `max_waiting` threads wait already, and
        `QueueClosed`.
        """
        if not self._line:
            try:
                return self._get()
            except IndexError:
                pass
        return self._wait_in_line(timeout if block else 0)

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002  queue.Queue's
        """Add an item, for the thread that has waited longest. There is always room for it.

        Raises `QueueClosed` when the queue is closed; the item is then still the caller's.
        """
        self._put(item)
        if self._line or self._closed:
            self._announce(item)

    def close(self) -> list[T]:
        """Close the queue, wake all waiters, and return the items that were idle. Closing again returns nothing."""
        self._closed = True  # before the items are taken: who adds one now looks at this after adding it
        items: list[T] = []
        with contextlib.suppress(IndexError):
            while True:
                items.append(self.queue.popleft())
        for waiter in self._first(len(self._line)):
            waiter.wake()
        return items

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def idle(self) -> list[T]:
        """The items in the queue at this moment, the next to be taken last."""
        while True:
            with contextlib.suppress(RuntimeError):  # another thread, or a finalizer, has changed it meanwhile
                return list(self.queue)

    def qsize(self) -> int:
        """How many items are in the queue."""
        return len(self.queue)

    def waiting(self) -> int:
        """How many threads wait."""
        return len(self._first(len(self._line)))

    # What a subclass may order otherwise: `queue.Queue`'s own hooks.

    def _get(self) -> T:
        return self.queue.pop()

    def _put(self, item: T) -> None:
        self.queue.append(item)

    def _interval(self) -> float:
        """How many seconds a waiter sleeps before it looks by itself."""
        return CHECK_INTERVAL

    # The line

    def _wait_in_line(self, timeout: float | None) -> T:
        self.replace_lost()
        new = waiter = Waiter()
        started = new.last_look
        slept = 0.0  # by the lock's own measure, as tests may have stopped the clock
        try:
            waiter = self._join(new)
            is_new = waiter is new
            while (item := self._take(waiter)) is None:
                if self._closed:
                    raise QueueClosed
                passed = max(monotonic() - started, slept)
                interval = self._interval()
                pause = interval if timeout is None else min(interval, timeout - passed)
                if pause <= 0:
                    raise queue.Empty
                if is_new and self._max_waiting is not None and self.waiting() > self._max_waiting:
                    raise LineTooLong
                is_new = False
                if not self._wait(waiter, pause):
                    slept += pause
                self.replace_lost()
            return item
        finally:
            if waiter is new:
                self._line.pop(new.thread, None)
            if self._line and self.queue:
                self._wake_first()

    def _join(self, waiter: Waiter) -> Waiter:
        """Join the line, and return the waiter with which this thread stands in it."""
        while True:
            found = self._line.setdefault(waiter.thread, waiter.reference)()
            if found is not None:
                return found
            self._line.pop(waiter.thread, None)  # it was interrupted while it left the line

    def _wait(self, waiter: Waiter, seconds: float) -> bool:
        """Wait for so many seconds, and return whether the thread was woken before."""
        return waiter.sleep(seconds)

    def _take(self, waiter: Waiter) -> T | None:
        """Take an item if `waiter` is among the first n in line, where n items are idle."""
        self._join(waiter)  # again, where others have passed over it wrongly
        waiter.last_look = now = monotonic()
        for first in self._first(1):
            # Its thread is held up in a signal handler, or it was interrupted, and the exception keeps it alive.
            if now - first.last_look > ABSENT_AFTER:
                self._line.pop(first.thread, None)
        try:
            return self._get() if waiter in self._first(len(self.queue)) else None
        except IndexError:
            return None

    def _first(self, count: int) -> list[Waiter]:
        """The first `count` waiters in line."""
        while True:
            with contextlib.suppress(RuntimeError):  # another thread, or a finalizer, has changed it meanwhile
                first = list(islice(self._line.items(), count))
                waiters = [waiter for waiter in [reference() for _, reference in first] if waiter is not None]
                if len(waiters) == len(first):
                    return waiters
                for thread, reference in first:
                    if reference() is None:
                        self._line.pop(thread, None)

    def _wake_first(self) -> None:
        """Wake as many waiters as there are idle items."""
        for waiter in self._first(len(self.queue)):
            waiter.wake()

    def _announce(self, item: T) -> None:
        """Tell the waiters about `item`, which is in the queue now, or take it out again if that is closed."""
        if not self._closed:
            self._wake_first()
            return
        try:
            self.queue.remove(item)
        except ValueError:
            return  # close() has found it, or a thread that saw the queue open
        raise QueueClosed

"""A queue without locks: last in, first out for idle items; first come, first served for waiting threads."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from itertools import islice
from threading import get_ident
from time import monotonic
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: A waiter checks the queue at this interval, in seconds, even if nothing wakes it.
CHECK_INTERVAL = 0.5
#: A waiter that has not checked for this many seconds is removed, so that it does not block those behind it.
ABSENT_AFTER = 4 * CHECK_INTERVAL


class LineTooLong(queue.Empty):
    """No item is idle, and `max_waiting` threads are waiting already."""


class QueueClosed(Exception):
    """The queue is closed, and can neither take nor hand out items."""


class Waiter:
    """A waiting thread.

    Its lock serves as a binary semaphore: it is locked from the start, and releasing it wakes the thread.
    """

    __slots__ = ("__weakref__", "_lock", "is_asleep", "last_look", "reference", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.reference = weakref.ref(self)
        self.last_look = monotonic()
        self._lock = threading.Lock()
        self._lock.acquire()
        #: Whether nothing has woken it since it fell asleep last.
        self.is_asleep = self._lock.locked

    def wake(self) -> None:
        """Make the present call of `sleep()` return, or the next one if there is none."""
        with contextlib.suppress(RuntimeError):  # it has been woken already
            self._lock.release()

    def sleep(self, seconds: float) -> bool:
        """Sleep until woken, for at most `seconds`. Return whether it was woken."""
        return self._lock.acquire(timeout=seconds)


class FairQueue(queue.Queue[T], Generic[T]):
    """A `queue.Queue` in which a returned item goes to the thread that has waited longest.

    `queue.Queue` wakes a waiter, but any other thread may take the item before it; under load most threads get nothing.
    Items must not be None.

    It takes no lock, so a signal handler, `__del__` or a weak reference's callback may call any method, even when it
    interrupts another call in the same thread. Each step is one atomic operation on a deque or a dict:

    * An item is in the deque, or with the `get()` that popped it; `put()` adds it before it does anything else.
    * If n items are idle, the first n waiters may take one each. Other threads may take items only if nobody waits.
    * `put()` adds the item and then checks for waiters; `get()` joins the waiters and then checks for items; a thread
      that stops waiting checks for both once more. So if two threads do this at the same time, at least one of them
      sees the other. Each waiter also checks every `CHECK_INTERVAL` seconds, which repairs the effect of an
      asynchronous exception between two steps.
    """

    queue: deque[T]

    def __init__(self, maxsize: int = 0, max_waiting: int | None = None) -> None:
        super().__init__(maxsize)  # its locks are not used
        self.queue = deque()  # gevent's Queue, if it is patched in as queue.Queue, has a different type here
        self._max_waiting = max_waiting
        # The waiters by thread id, in the order of arrival. A thread has one entry at most: if a signal handler
        # interrupts a waiting get() and calls get() itself, it waits at the same position, because the interrupted call
        # cannot continue before it ends. The references are weak, and only the waiting get() refers to its waiter: if
        # an exception ends that call at any point, its entry is dead and does not block the waiters behind it.
        self._line: dict[int, weakref.ref[Waiter]] = {}
        self._closed = False

    def replace_lost(self) -> None:
        """Put back lost items. A subclass may override it. Called before a thread waits and after each sleep."""

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the item that was added last, or wait up to `timeout` seconds (None: forever) for one.

        Raises `queue.Empty` if there is none in time, `LineTooLong` if it would have to wait and `max_waiting` threads
        are waiting already, and `QueueClosed` if the queue is closed.
        """
        if not self._line:
            try:
                return self._get()
            except IndexError:
                pass
        return self._wait_in_line(timeout if block else 0)

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002  queue.Queue's
        """Add an item, for the thread that has waited longest. It never blocks.

        Raises `QueueClosed` if the queue is closed; the item then remains the caller's.
        """
        self._put(item)
        if self._line or self._closed:
            self._announce(item)

    def close(self) -> list[T]:
        """Close the queue, wake all waiters, and return the items that were idle. A second call returns none."""
        self._closed = True  # before the items are taken, as put() checks it after it has added an item
        items: list[T] = []
        with contextlib.suppress(IndexError):
            while True:
                items.append(self.queue.popleft())
        for waiter in self._first(len(self._line)):
            waiter.wake()
        return items

    @property
    def closed(self) -> bool:
        """Whether the queue is closed."""
        return self._closed

    def idle(self) -> list[T]:
        """Return a list of the idle items. The one that is taken next comes last."""
        while True:
            with contextlib.suppress(RuntimeError):  # changed by another thread or a finalizer during the copy
                return list(self.queue)

    def qsize(self) -> int:
        """Return the number of idle items."""
        return len(self.queue)

    def waiting(self) -> int:
        """Return the number of waiting threads."""
        return len(self._first(len(self._line)))

    # For subclasses to override. The first two are `queue.Queue`'s hooks.

    def _get(self) -> T:
        return self.queue.pop()

    def _put(self, item: T) -> None:
        self.queue.append(item)

    def _interval(self) -> float:
        """Return how many seconds a waiter sleeps between two checks of the queue."""
        return CHECK_INTERVAL

    # The waiters

    def _wait_in_line(self, timeout: float | None) -> T:
        self.replace_lost()
        new = waiter = Waiter()
        started = new.last_look
        slept = 0.0  # the sum of the sleeps that timed out, because tests may freeze the clock
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
        """Add `waiter` to the line, unless its thread has an entry already; return the waiter of that entry."""
        while True:
            found = self._line.setdefault(waiter.thread, waiter.reference)()
            if found is not None:
                return found
            self._line.pop(waiter.thread, None)  # a dead entry: its get() was interrupted before it could remove it

    def _wait(self, waiter: Waiter, seconds: float) -> bool:
        """Sleep for at most `seconds`, and return whether the thread was woken."""
        return waiter.sleep(seconds)

    def _take(self, waiter: Waiter) -> T | None:
        """Take an item, or return None if `waiter` is not among the first n waiters, with n idle items."""
        self._join(waiter)  # again, in case another thread has removed it as absent
        waiter.last_look = now = monotonic()
        idle = len(self.queue)
        first = self._first(idle or 1)
        # The first waiter's thread is busy in a signal handler, or its get() was ended by an exception whose traceback
        # keeps the waiter alive.
        if first and now - first[0].last_look > ABSENT_AFTER:
            self._line.pop(first[0].thread, None)
            first = self._first(idle)
        try:
            return self._get() if idle and waiter in first else None
        except IndexError:
            return None

    def _first(self, count: int) -> list[Waiter]:
        """Return the first `count` waiters, and remove dead entries."""
        while True:
            try:
                first = list(islice(self._line.items(), count))
            except RuntimeError:  # changed by another thread or a finalizer during the copy
                continue
            waiters: list[Any] = [reference() for _, reference in first]
            if None not in waiters:
                return waiters
            for thread, reference in first:
                if reference() is None:
                    self._line.pop(thread, None)

    def _wake_first(self) -> None:
        """Wake as many of the first waiters as there are idle items."""
        for waiter in self._first(len(self.queue)):
            if waiter.is_asleep():  # else it was woken for an earlier item, and has not run since
                waiter.wake()

    def _announce(self, item: T) -> None:
        """Wake waiters for `item`, which is in the queue already. If the queue is closed, take the item out again."""
        if not self._closed:
            self._wake_first()
            return
        try:
            self.queue.remove(item)
        except ValueError:
            return  # taken by close(), or by a thread that saw the queue before it was closed
        raise QueueClosed

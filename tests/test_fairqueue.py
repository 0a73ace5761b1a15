"""The queue: last in, first out for idle items; first come, first served for waiters; no item is lost."""

from __future__ import annotations

import gc
import queue
import signal
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from helpers import eventually

from pymysqlpool import fairqueue
from pymysqlpool.fairqueue import FairQueue, QueueClosed


def line_up(queue_: FairQueue[Any], threads: ThreadPoolExecutor, count: int) -> list[Future[Any]]:
    """Let threads wait without a timeout, one after the other."""
    line = []
    for _ in range(count):
        already = queue_.waiting()
        line.append(threads.submit(queue_.get))
        eventually(lambda: queue_.waiting() == already + 1)  # noqa: B023  used in this round alone
    return line


def test_it_is_a_queue() -> None:
    """It is a `queue.Queue`, with its counts and its errors."""
    items: FairQueue[int] = FairQueue(2)
    assert isinstance(items, queue.Queue)
    assert (items.qsize(), items.empty(), items.full(), items.maxsize) == (0, True, False, 2)
    for item in (1, 2):
        items.put(item)
    assert (items.qsize(), items.empty(), items.full()) == (2, False, True)
    assert items.get_nowait() == 2
    assert items.get(block=False) == 1
    for kwargs in ({"block": False}, {"timeout": 0}, {"timeout": 0.001}):
        with pytest.raises(queue.Empty):
            items.get(**kwargs)
    assert items.waiting() == 0


def test_last_in_first_out() -> None:
    """The item that was added last is taken first."""
    items: FairQueue[int] = FairQueue()
    for item in (1, 2, 3):
        items.put(item)
    assert items.idle() == [1, 2, 3]
    assert [items.get() for _ in range(3)] == [3, 2, 1]


def test_what_rests_can_be_told_while_it_changes() -> None:
    """If another thread changes the queue while `idle()` copies it, as can happen without a GIL, it is copied again."""

    class Restless(deque):  # type: ignore[type-arg]
        is_at_rest = False

        def __iter__(self) -> Any:
            if not self.is_at_rest:
                self.is_at_rest = True
                raise RuntimeError("deque mutated during iteration")
            return super().__iter__()

    items: FairQueue[int] = FairQueue()
    items.queue = Restless([1, 2])
    assert items.idle() == [1, 2]


def test_ten_waiters_are_served_in_order(threads: ThreadPoolExecutor) -> None:
    """An item goes to the thread that has waited longest, and to no other."""
    items: FairQueue[int] = FairQueue()
    line = line_up(items, threads, 10)
    for number, waiter in enumerate(line):
        items.put(number)
        assert waiter.result() == number
        assert [later.done() for later in line].count(True) == number + 1
        assert items.waiting() == 9 - number
    assert items.empty()


def test_a_passer_by_does_not_take_what_is_handed_over(threads: ThreadPoolExecutor) -> None:
    """An item that is put while a thread waits goes to no other thread, even before the waiter has woken up."""
    items: FairQueue[int] = FairQueue()
    for _ in range(100):
        [waiter] = line_up(items, threads, 1)
        items.put(1)
        with pytest.raises(queue.Empty):
            items.get(block=False)
        assert waiter.result() == 1


class EventfulQueue(FairQueue[str]):
    """A queue that calls a function at the end of this thread's wait, before it checks the queue again."""

    def __init__(self, *events: Any) -> None:
        super().__init__()
        self.events = list(events)
        self.thread = threading.current_thread()

    def _wait(self, *args: Any) -> None:
        if threading.current_thread() is not self.thread:
            super()._wait(*args)
            return
        try:
            super()._wait(*args)
        finally:
            for event in self.events:
                event(self)


def put(items: EventfulQueue) -> None:
    items.put("handed")


def interrupt(_: EventfulQueue) -> None:
    raise KeyboardInterrupt


def test_a_waiter_that_times_out_while_it_is_handed_an_item_gets_it() -> None:
    """An item that comes between the end of a wait and the waiter's last check is taken by the waiter."""
    items = EventfulQueue(put)
    assert items.get(timeout=0.1) == "handed"
    assert (items.qsize(), items.waiting()) == (0, 0)


def test_what_comes_after_the_time_rests() -> None:
    """A thread that has timed out is no longer a waiter: items that come later go to others."""
    items = EventfulQueue()
    with pytest.raises(queue.Empty):
        items.get(timeout=0.1)
    assert items.waiting() == 0
    items.put("later")
    assert items.idle() == ["later"]


@pytest.mark.parametrize("timeout", [0.1, 30])
def test_an_interrupted_waiter_hands_on_to_the_next(threads: ThreadPoolExecutor, timeout: float) -> None:
    """If a waiter is interrupted after an item was put for it, the next waiter gets the item."""
    items = EventfulQueue(put, interrupt)
    if timeout > 1:  # an item comes in time, and then the waiter is interrupted
        items.events = [interrupt]
        threading.Thread(target=lambda: (eventually(lambda: items.waiting() == 1), put(items))).start()
        with pytest.raises(KeyboardInterrupt):
            items.get(timeout=timeout)
        assert items.idle() == ["handed"]
        items.get()
        items.events = [put, interrupt]

    behind: list[Future[str]] = []
    items.events.insert(0, lambda _: behind.extend(line_up(items, threads, 2)))
    with pytest.raises(KeyboardInterrupt):
        items.get(timeout=0.1)
    assert behind[0].result() == "handed"
    assert (items.qsize(), items.waiting(), behind[1].done()) == (0, 1, False)
    items.put("next")
    assert behind[1].result() == "next"


def test_an_interrupted_waiter_lets_it_rest() -> None:
    """If no other thread waits, the item that was put for an interrupted waiter stays in the queue."""
    items = EventfulQueue(put, interrupt)
    with pytest.raises(KeyboardInterrupt):
        items.get(timeout=0.1)
    assert items.idle() == ["handed"]
    assert items.waiting() == 0


def test_an_interrupted_waiter_leaves_the_line() -> None:
    """A waiter that is interrupted before an item is put gets none."""
    items = EventfulQueue(interrupt)
    with pytest.raises(KeyboardInterrupt):
        items.get(timeout=0.1)
    items.put("later")
    assert items.idle() == ["later"]


def test_what_was_laid_down_by_one_who_was_interrupted_is_found(threads: ThreadPoolExecutor) -> None:
    """If put() is interrupted before it checks for waiters, they find the item nevertheless."""
    items: FairQueue[str] = FairQueue()
    [waiter] = line_up(items, threads, 1)
    items.queue.append("left lying")  # the first half of `put()`
    assert waiter.result() == "left lying"
    assert (items.qsize(), items.waiting()) == (0, 0)


def test_a_waiter_that_never_left_the_line_holds_nobody_up(threads: ThreadPoolExecutor) -> None:
    """A waiter whose entry was not removed, because of a second interrupt, takes no item and blocks no other waiter."""
    items: FairQueue[str] = FairQueue()
    items._line[-1] = fairqueue.Waiter().reference  # it has ended, but its entry is still there
    alive = fairqueue.Waiter()
    items._line[-2] = alive.reference
    assert items.waiting() == 1
    del items._line[-2]
    items._line[-1] = fairqueue.Waiter().reference
    items.put("one")
    assert items.get(timeout=0) == "one"
    for _ in range(2):
        items._line[threading.get_ident()] = fairqueue.Waiter().reference
        with pytest.raises(queue.Empty):
            items.get(timeout=0)
    items._line[threading.get_ident()] = fairqueue.Waiter().reference
    items.put("two")
    assert items.get(timeout=0) == "two"
    assert not items._line


def test_a_waiter_that_can_not_go_on_is_passed_over() -> None:
    """A waiter whose thread is busy in a signal handler delays the others only for a moment."""
    items: FairQueue[str] = FairQueue()
    held_up = fairqueue.Waiter()
    held_up.thread = -1
    held_up.last_look -= 2 * fairqueue.ABSENT_AFTER
    items._line[-1] = held_up.reference
    items.put("one")
    assert items.get(timeout=0) == "one"


def test_who_waits_already_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit refuses new waiters; those that are already waiting go on waiting."""
    monkeypatch.setattr(fairqueue, "CHECK_INTERVAL", 0.001)
    one_more = fairqueue.Waiter()
    one_more.thread = -1

    def come(items: EventfulQueue) -> None:
        items._join(one_more)
        items.events = [put]

    items = EventfulQueue(come)
    items._max_waiting = 1
    assert items.get() == "handed"
    assert items.waiting() == 1


def test_an_item_that_another_takes_first() -> None:
    """A waiter whose item is taken by another thread at the last moment goes on waiting."""

    class Raced(FairQueue[str]):
        tries = 0

        def _get(self) -> str:
            self.tries += 1
            if self.tries <= 2:
                raise IndexError
            return super()._get()

    items = Raced()
    items.put("one")
    with pytest.raises(queue.Empty):
        items.get(timeout=0)
    assert items.get(timeout=0) == "one"
    assert not items._line


@pytest.mark.usefixtures("control_c")
def test_control_c_interrupts_the_wait() -> None:
    """Control-C interrupts a main thread that waits without a timeout, and it is no longer a waiter."""
    items: FairQueue[str] = FairQueue()

    def press() -> None:
        eventually(lambda: items.waiting() == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        pressed = threads.submit(press)
        with pytest.raises(KeyboardInterrupt):
            items.get()
        pressed.result()
    assert items.waiting() == 0
    items.put("later")
    assert items.idle() == ["later"]


def test_close_wakes_all(threads: ThreadPoolExecutor) -> None:
    """`close()` wakes all waiters, and from then on no item can be put or taken."""
    items: FairQueue[str] = FairQueue()
    line = line_up(items, threads, 3)
    assert not items.closed
    assert items.close() == []
    for waiter in line:
        with pytest.raises(QueueClosed):
            waiter.result()
    assert items.closed
    with pytest.raises(QueueClosed):
        items.put("late")
    for kwargs in ({}, {"block": False}, {"timeout": 1}):
        with pytest.raises(QueueClosed):
            items.get(**kwargs)
    assert items.idle() == []


def test_close_returns_what_rested() -> None:
    """`close()` returns the idle items, once."""
    items: FairQueue[str] = FairQueue()
    items.put("one")
    items.put("two")
    assert sorted(items.close()) == ["one", "two"]
    assert items.close() == []
    assert items.qsize() == 0


def test_what_is_taken_out_of_a_closing_queue_is_put_back_by_nobody() -> None:
    """An item that is put while the queue is being closed belongs to `close()` alone, if that finds it."""

    class ClosedAmidPut(FairQueue[str]):
        def _announce(self, item: str) -> None:
            found.extend(self.close())
            super()._announce(item)

    found: list[str] = []
    items = ClosedAmidPut()
    items._closed = True  # as put() sees it, before `close()` has taken the idle items
    items.put("late")
    assert (found, items.idle()) == (["late"], [])


def test_what_comes_just_before_the_close_is_had_by_one() -> None:
    """`close()` gets an item that comes at the end of a wait, just before the close; the waiter gets QueueClosed."""
    found: list[str] = []
    items = EventfulQueue(put, lambda queue_: found.extend(queue_.close()))
    with pytest.raises(QueueClosed):
        items.get(timeout=0.1)
    assert found == ["handed"]


def test_nothing_comes_to_rest_in_a_closed_queue() -> None:
    """An item that was put before the close, for a waiter that did not take it, does not stay in the queue."""
    items = EventfulQueue(put, lambda queue_: queue_.close(), interrupt)
    with pytest.raises(BaseException):  # noqa: B017, PT011  the interrupt, or its consequence
        items.get(timeout=0.1)
    assert items.idle() == []
    with pytest.raises(QueueClosed):
        items.get(block=False)


# Reentrant calls


def test_a_get_in_a_signal_handler_goes_before_the_one_it_has_interrupted() -> None:
    """A get() in a signal handler gets an item before the waiting get() of the same thread, which goes on waiting."""
    items: FairQueue[str] = FairQueue()
    got: list[str] = []

    def handler(*_: object) -> None:
        items.put("one")
        got.append(items.get(timeout=30))
        items.put("two")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ThreadPoolExecutor(1) as other:
            main = threading.main_thread().ident or 0
            other.submit(lambda: (eventually(items.waiting), signal.pthread_kill(main, signal.SIGUSR1)))
            assert items.get() == "two"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == ["one"]
    assert (items.qsize(), items.waiting()) == (0, 0)


class InCycle:
    """An object in a cycle that puts and gets an item when the collector finalizes it, at any point."""

    def __init__(self, items: FairQueue[int]) -> None:
        self.items = items
        self.me = self

    def __del__(self) -> None:
        with suppress(queue.Empty):
            self.items.put(self.items.get(timeout=0))


@pytest.mark.parametrize("waiters", [1, 11])
def test_signals_and_collectors_strike_anywhere(waiters: int) -> None:
    """With signal handlers and finalizers that get and put in all threads, nothing hangs and no item is lost."""
    items: FairQueue[int] = FairQueue()
    for number in range(3):
        items.put(number)

    handling: list[None] = []

    def handler(*_: object) -> None:
        if not handling:  # else handlers would pile up
            handling.append(None)
            with suppress(queue.Empty):
                items.put(items.get(timeout=0.1))
            handling.pop()

    def work(rounds: int = 500) -> None:
        for _ in range(rounds):
            InCycle(items)
            items.put(items.get(timeout=30))

    thresholds = gc.get_threshold()
    before = signal.signal(signal.SIGVTALRM, handler)
    try:
        gc.set_threshold(10)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0007, 0.0007)
        with ThreadPoolExecutor(waiters) as others:
            done = [others.submit(work) for _ in range(waiters)]
            work()
            for each in done:
                each.result()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        gc.set_threshold(*thresholds)
    gc.collect()
    assert sorted(items.idle()) == [0, 1, 2]
    assert items.waiting() == 0

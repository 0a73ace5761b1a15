"""Many threads transfer money over a few connections while everything goes wrong: `tests/soak.py [--seconds 60]`.

The promises are checked throughout: no two threads on one session, nothing of one borrower visible to the next, the sum
of the money, never more than `maxsize` sessions, and all places back at the end. A broken promise is printed, and makes
the exit status 1.

Sessions and queries are killed; the main thread gets a signal every 0.7 ms; the collector runs at every tenth object,
where it ends generators and runs finalizers and callbacks; and all of these use the pool.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import itertools
import random
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable

import pymysql
from pymysql.cursors import SSCursor
from pymysql.err import DataError, IntegrityError, InternalError, NotSupportedError, OperationalError, ProgrammingError
from server import running_server

import pymysqlpool
from pymysqlpool import ConnectionPool, GetConnectionFromPoolError, ReturnConnectionToPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server import Server

ACCOUNTS, MONEY = 8, 1000
NAME = "pymysqlpool_soak"

# The errors that a borrower may get when its session or query is killed, or when two transfers conflict.
FATE = {0, 1053, 1205, 1213, 1317, 1927, 2006, 2013, 4031}

# What an application may raise in a block, created anew each time: an exception keeps the frames that it has passed.
FAILURES: list[Callable[[], BaseException]] = [
    lambda: ValueError("the application's own"),
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    lambda: ProgrammingError(1064, "as if"),
    lambda: IntegrityError(1062, "as if"),
    lambda: DataError(1264, "as if"),
    lambda: NotSupportedError(1235, "as if"),
    lambda: InternalError(1000, "as if"),
    lambda: OperationalError(1290, "as if"),
    lambda: OperationalError(2013, "as if"),
]

# The interval between two signals, in seconds, and how many actions of a thread may be nested in each other.
EVERY, DEPTH = 0.0007, 3


class Broken(AssertionError):
    """A promise was not kept."""


class Cycle:
    """A reference cycle, which only the collector frees."""

    kept: Any = None

    def __init__(self) -> None:
        self.myself = self


class Finalized(Cycle):
    """An object in a cycle that does something when the collector finalizes it."""

    def __init__(self, deed: Callable[[], object]) -> None:
        super().__init__()
        self.deed = deed

    def __del__(self) -> None:
        self.deed()


class Soak:
    """The bank, its pool, and what is checked."""

    def __init__(self, server: Server, seed: int, threads: int, maxsize: int) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.over = threading.Event()
        self.admin = pymysql.connect(**server.connect_kwargs, autocommit=True)
        self.found_bank()
        self.pool = ConnectionPool(
            max(maxsize // 2, 1),
            "bank",
            maxsize=maxsize,
            con_lifetime=2.0,
            idle_timeout=0.5,
            ping_after=0.2,
            read_timeout=30,
            init_command="set innodb_lock_wait_timeout = 1",
            **{**server.connect_kwargs, "user": NAME, "password": NAME, "database": NAME},
        )
        self.in_use: dict[int, str] = {}
        self.stale: list[Any] = []
        # Generators that are suspended in a block, to be ended by any thread; weak references with their callbacks.
        self.halves: list[Any] = []
        self.callbacks: list[Any] = []
        self.shared: Any = None
        self.numbers = itertools.count()
        self.depth: Counter[int] = Counter()
        self.strikes = random.Random(f"{seed} strikes")  # noqa: S311
        self.threads = [threading.Thread(target=self.work, args=(n,), name=f"clerk {n}") for n in range(threads)]

    def found_bank(self) -> None:
        """Create the schema, a user for the pool alone, and the money."""
        with self.admin.cursor() as cursor:
            cursor.execute(f"drop database if exists {NAME}")
            cursor.execute(f"drop user if exists {NAME}@'%'")
            cursor.execute(f"create database {NAME}")
            cursor.execute(f"create user {NAME}@'%' identified by '{NAME}'")
            cursor.execute(f"grant all on {NAME}.* to {NAME}@'%'")
            cursor.execute(f"create table {NAME}.accounts (id int primary key, balance bigint) engine=innodb")
            cursor.executemany(f"insert into {NAME}.accounts values (%s, %s)", [(n, MONEY) for n in range(ACCOUNTS)])

    # Checks

    def report(self, text: str) -> None:
        """Record that a promise was broken."""
        self.broken.append(text)
        print(f"BROKEN: {text}", flush=True)

    @contextmanager
    def borrowed(self, connection: Any) -> Iterator[Any]:
        """Check what the session is like at the start, and that no other thread uses it during the block."""
        with connection.cursor() as cursor:
            cursor.execute("select connection_id(), @owner")
            session, owner = cursor.fetchone()
            # A signal handler and a finalizer count as users other than the thread that they interrupt.
            me = f"{threading.current_thread().name} {next(self.numbers)}"
            user = self.in_use.setdefault(session, me)
            if user != me:
                raise Broken(f"session {session} is lent to {me} and {user}")
            try:
                if owner is not None:
                    raise Broken(f"session {session} of {me} still has a variable of {owner}'s")
                cursor.execute("set @owner = %s", (me,))
                yield connection
            finally:
                del self.in_use[session]

    def sum_up(self, connection: Any) -> None:
        """Check that no money is missing, in one snapshot."""
        with connection.cursor() as cursor:
            cursor.execute("select sum(balance), count(*) from accounts")
            found = cursor.fetchone()
        if found != (ACCOUNTS * MONEY, ACCOUNTS):
            raise Broken(f"the sum is {found}")

    def processes(self) -> list[Any]:
        """The server's process list for the pool's user."""
        with self.admin.cursor() as cursor:
            cursor.execute("show processlist")
            return [row for row in cursor.fetchall() if row[1] == NAME]

    def sessions(self) -> list[int]:
        """The ids of the server's sessions of the pool's user."""
        return [row[0] for row in self.processes()]

    def check_bound(self) -> None:
        """Check that there are no more sessions than places, except those that the server is still closing."""
        if self.pool.total_num > self.pool.maxsize:
            self.report(f"the pool has {self.pool.total_num} connections")
        deadline = time.monotonic() + 5
        while len(found := self.processes()) > self.pool.maxsize:
            if time.monotonic() > deadline:
                kept = [session.connected["server_thread_id"][0] for session in self.pool._pool._sessions()]
                self.report(f"there are {len(found)} sessions on the server: {found}; the pool has {kept}")
                faulthandler.dump_traceback()
                return
            time.sleep(0.01)

    # What the threads do

    def work(self, number: int) -> None:
        """Do random actions, one after the other."""
        chance = random.Random(f"{self.seed} {number}")  # noqa: S311  no secret
        while not self.over.is_set():
            self.do(chance.choice(self.deeds()), chance)

    def deeds(self) -> list[Callable[[random.Random], None]]:
        """The actions of a thread."""
        return [
            *[self.transfer] * 6,
            self.fail_in_a_block,
            self.close_without_commit,
            self.close_twice,
            self.lose,
            self.leave_unread,
            self.ask_for_too_long,
            self.be_impatient,
            self.use_stale,
            self.audit,
            self.break_out_of_a_generator,
            self.begin_a_generator,
            self.end_a_generator,
            self.end_a_generator,
            self.leave_to_a_finalizer,
            self.leave_to_a_callback,
        ]

    def do(self, deed: Callable[[random.Random], None], chance: random.Random, kind: str = "") -> None:
        """Do it, and check the error, if it raises one."""
        thread = threading.get_ident()
        if self.depth[thread] >= DEPTH:
            return
        self.depth[thread] += 1
        try:
            deed(chance)
            self.counts[kind or deed.__name__] += 1
        except GetConnectionFromPoolError:
            self.counts["exhausted"] += 1
        except pymysql.Error as error:
            if error.args[0] not in FATE:
                self.report(f"{kind} {deed.__name__}: {error!r}")
                traceback.print_exc()
            self.counts["struck by fate"] += 1
        except BaseException as error:  # noqa: BLE001  any other error is a finding
            self.report(f"{kind} {deed.__name__}: {error!r}")
            traceback.print_exc()
        finally:
            self.depth[thread] -= 1

    def move(self, connection: Any, chance: random.Random) -> None:
        """Take money from one account and give it to another, in two steps, in an order that may be a deadlock."""
        giver, taker = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randrange(1, 50)
        with connection.cursor() as cursor:
            cursor.execute("update accounts set balance = balance - %s where id = %s", (amount, giver))
            if chance.random() < 0.2:
                time.sleep(chance.random() / 200)
            cursor.execute("update accounts set balance = balance + %s where id = %s", (amount, taker))

    def transfer(self, chance: random.Random) -> None:
        """Transfer money in a block."""
        with self.pool.connection() as connection, self.borrowed(connection):
            self.move(connection, chance)

    def audit(self, chance: random.Random) -> None:
        """Count the money."""
        with self.pool.get_connection(pre_ping=chance.random() < 0.5) as cur, self.borrowed(cur.connection):
            self.sum_up(cur.connection)

    def fail_in_a_block(self, chance: random.Random) -> None:
        """Raise an exception after half a transfer: that exception and no other must be raised."""
        failure = chance.choice(FAILURES)()
        failed = False
        try:
            with self.pool.get_connection() as cur, self.borrowed(cur.connection):
                cur.execute("update accounts set balance = balance - 1 where id = 0")
                failed = True
                raise failure
        except BaseException as error:
            if failed and error is not failure:
                raise Broken(f"{failure!r} has become {error!r}") from error
            if not failed:
                raise

    def close_without_commit(self, _: random.Random) -> None:
        """Return half a transfer, which the pool has to roll back."""
        connection = self.pool.get_connection()
        try:
            with self.borrowed(connection):
                connection.query("update accounts set balance = balance - 1 where id = 0")
        finally:
            connection.close()

    def close_twice(self, chance: random.Random) -> None:
        """Close twice, the second time while another thread may already have the session."""
        connection = self.pool.get_connection()
        try:
            with self.borrowed(connection):
                self.move(connection, chance)
                connection.commit()
        finally:
            connection.close()
            connection.close()
            self.stale.append(connection)

    def use_stale(self, chance: random.Random) -> None:
        """Use a handle that another thread has returned."""
        if not self.stale:
            return
        with suppress(IndexError):
            connection = self.stale.pop(int(chance.random() * len(self.stale)))
            connection.close()
            try:
                connection.query("update accounts set balance = 0")
            except ReturnConnectionToPoolError:
                return
            raise Broken("a returned handle was used")

    def lose(self, chance: random.Random) -> None:
        """Drop a connection in the middle of a transfer, sometimes in a reference cycle."""
        connection = self.pool.get_connection()
        with self.borrowed(connection):
            if chance.random() < 0.5:
                connection.query("update accounts set balance = balance - 1 where id = 0")
            if chance.random() < 0.5:
                connection.myself = connection  # type: ignore[attr-defined]

    def leave_unread(self, chance: random.Random) -> None:
        """Return a connection in the middle of a result."""
        connection = self.pool.get_connection()
        try:
            with self.borrowed(connection):
                cursor = connection.cursor(SSCursor)
                cursor.execute("select a.id from accounts a, accounts b, accounts c, accounts d")
                cursor.fetchmany(chance.randrange(5))
        finally:
            connection.close()

    def ask_for_too_long(self, chance: random.Random) -> None:
        """Wait only briefly for a reply."""
        connection = self.pool.get_connection()
        try:
            with self.borrowed(connection):
                connection._read_timeout = 0.01
                with suppress(OperationalError):
                    connection.query(f"select sleep({chance.random() / 10})")
        finally:
            connection.close()

    def be_impatient(self, chance: random.Random) -> None:
        """Wait only briefly for a connection."""
        with self.pool.connection(timeout=chance.choice([0, 0.001, 0.01])) as connection, self.borrowed(connection):
            time.sleep(chance.random() / 50)

    # What generators, finalizers, callbacks and signals do

    def halve(self, chance: random.Random) -> Any:
        """A transfer in two halves, in a block of its own or on a handle that all share."""
        giver, taker = chance.sample(range(ACCOUNTS), 2)
        writes_early = chance.random() < 0.1
        # An interruption in a block on the shared handle would join that block.
        may_share = self.shared is not None and self.depth[threading.get_ident()] == 1
        handle = self.shared if may_share and chance.random() < 0.5 else self.pool.get_connection()
        with handle as cur, self.borrowed(cur.connection):
            if writes_early:
                cur.execute("update accounts set balance = balance - 1 where id = %s", (giver,))
            yield
            if not writes_early:
                cur.execute("update accounts set balance = balance - 1 where id = %s", (giver,))
            cur.execute("update accounts set balance = balance + 1 where id = %s", (taker,))

    def break_out_of_a_generator(self, chance: random.Random) -> None:
        """End a block by a `break` out of its generator."""
        for _ in self.halve(chance):
            break

    def begin_a_generator(self, chance: random.Random) -> None:
        """Do the first half, and leave the second to another thread, or undone."""
        if self.shared is None:
            self.shared = self.pool.get_connection()
            self.shared.close()
        if len(self.halves) >= self.pool.maxsize // 2:
            return
        half = self.halve(chance)
        next(half)
        if chance.random() < 0.7:
            self.halves.append(half)
        elif chance.random() < 0.5:
            Cycle().kept = half

    def end_a_generator(self, chance: random.Random) -> None:
        """Do the second half of what another thread has begun, or end it in another way."""
        try:
            half = self.halves.pop(0)
        except IndexError:
            return
        if chance.random() < 0.6:
            next(half, None)
        elif chance.random() < 0.5:
            half.close()
        else:
            with suppress(ValueError):
                half.throw(ValueError("the application's own"))

    def leave_to_a_finalizer(self, chance: random.Random) -> None:
        """Let a finalizer return a connection, sometimes with half a transfer, and do something else."""
        connection = self.pool.get_connection()
        with self.borrowed(connection):
            if chance.random() < 0.5:
                connection.query("update accounts set balance = balance - 1 where id = 0")

        def finalize() -> None:
            connection.close()
            self.strike("by a finalizer")

        Finalized(finalize)

    def leave_to_a_callback(self, _: random.Random) -> None:
        """Let the callback of a weak reference do something."""
        self.callbacks = [*self.callbacks[-20:], weakref.ref(Cycle(), lambda _: self.strike("by a callback"))]

    def strike(self, kind: str) -> None:
        """Do any action of a thread, in the middle of another one."""
        chance = self.strikes
        deed = chance.choice([self.be_impatient, self.look, self.look, self.use_stale])
        self.do(chance.choice(self.deeds()) if chance.random() < 0.1 else deed, chance, kind)

    def look(self, _: random.Random) -> None:
        """Read the pool's state and statistics."""
        repr(self.pool)
        if self.pool.size() > self.pool.maxsize or self.pool.available_num > self.pool.maxsize:
            raise Broken(repr(self.pool))

    def on_signal(self, *_: object) -> None:
        """Do an action in the main thread, and schedule the next signal."""
        self.strike("by a signal")
        if not self.over.is_set():
            signal.setitimer(signal.ITIMER_REAL, EVERY)

    def on_unraisable(self, what: Any) -> None:
        """Record an exception that was raised where nobody can catch it."""
        self.report(f"in {what.object!r}: {what.exc_value!r}")
        traceback.print_exception(what.exc_type, what.exc_value, what.exc_traceback)

    @contextmanager
    def struck_everywhere(self) -> Iterator[None]:
        """Turn the signals and frequent collections on for a block."""
        gc.set_threshold(10, 2, 2)
        sys.unraisablehook = self.on_unraisable
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, self.on_signal)
            signal.setitimer(signal.ITIMER_REAL, EVERY)
        try:
            yield
        finally:
            self.over.set()
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, 0)
            gc.set_threshold(700, 10, 10)

    # Faults

    def torment(self) -> None:
        """Kill sessions and queries, and check that there are never too many sessions."""
        chance = random.Random(f"{self.seed} fate")  # noqa: S311
        while not self.over.wait(0.02):
            sessions = self.sessions()
            if sessions:
                with self.admin.cursor() as cursor, suppress(pymysql.Error):  # it may have ended by itself
                    cursor.execute(f"kill {chance.choice(['', 'query '])}{chance.choice(sessions)}")
                    self.counts["killed"] += 1
            if chance.random() < 0.02:
                self.pool.drain()
            del self.stale[:-100]
            gc.collect()
            self.check_bound()

    def run(self, seconds: float) -> bool:
        """Run everything for so long, check that nothing is lost, and return whether all promises were kept."""
        chance = random.Random(self.seed)  # noqa: S311
        started = shown = time.monotonic()
        self.threads.append(threading.Thread(target=self.torment, name="fate"))
        faulthandler.dump_traceback_later(seconds + 120, exit=True)
        with self.struck_everywhere():
            for thread in self.threads:
                thread.start()
            while (now := time.monotonic()) < started + seconds and not self.broken:
                self.do(chance.choice(self.deeds()), chance)  # for the signals that are handled here
                if now >= shown + 5:
                    shown = now
                    print(f"{now - started:4.0f} s  {sum(self.counts.values())} done  {self.pool!r}", flush=True)
        for thread in self.threads:
            thread.join(60)
            if thread.is_alive():
                self.report(f"{thread.name} hangs")
        self.look_at_the_end()
        verdict = "BROKEN" if self.broken else "all promises kept"
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(self.counts.items()))
        print(f"{verdict} in {time.monotonic() - started:.0f} s with seed {self.seed}: {counts}")
        return not self.broken

    def look_at_the_end(self) -> None:
        """Check that all places are back, no money is missing, and `close()` leaves no session behind."""
        for kept in self.stale, self.halves, self.callbacks:
            kept.clear()
        gc.collect()
        gc.collect()  # what finalizers have left behind
        if (size := self.pool.size()) != self.pool.maxsize:
            out = [loan.as_data() for loan in self.pool._pool.borrows()]
            self.report(f"of {self.pool.maxsize} places {size} are back, out are {out}")
        try:
            connections = [self.pool.get_connection(timeout=0) for _ in range(self.pool.maxsize)]
            for connection in connections:
                self.sum_up(connection)
                connection.close()
        except BaseException as error:  # noqa: BLE001
            self.report(f"in the end: {error!r}")
        self.check_bound()
        if out := self.pool.close(timeout=5):
            self.report(f"{out} are still out")
        self.admin.close()


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the choices (default: any)")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--connections", type=int, default=4, help="the pool's maxsize (default: %(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    pymysqlpool.logger.setLevel("ERROR")
    sys.setswitchinterval(1e-6)
    print(f"seed {options.seed}", flush=True)
    gc.freeze()  # so that the many collections are quick; before there is a pool, whose connections may be lost
    with running_server() as server:
        return 0 if Soak(server, options.seed, options.threads, options.connections).run(options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())

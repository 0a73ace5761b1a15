"""Many threads transfer money over a few connections while all goes wrong that can: `tests/soak.py [--seconds 60]`.

The promises are watched throughout: no two threads on one session, nothing of one borrower's seen by the next, the sum
of the money, never more than `maxsize` sessions, and in the end all places back. Any that is broken is printed, and
makes the exit status 1.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

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

# What a borrower may meet when its session or its query is killed, or when two transfers are in each other's way.
FATE = {0, 1053, 1205, 1213, 1317, 1927, 2006, 2013, 4031}

# What an application may raise in a block.
FAILURES = [
    ValueError("the application's own"),
    KeyboardInterrupt(),
    SystemExit(),
    GeneratorExit(),
    ProgrammingError(1064, "as if"),
    IntegrityError(1062, "as if"),
    DataError(1264, "as if"),
    NotSupportedError(1235, "as if"),
    InternalError(1000, "as if"),
    OperationalError(1290, "as if"),
    OperationalError(2013, "as if"),
]


class Broken(AssertionError):
    """A promise was not kept."""


class Soak:
    """The bank, its pool, and what is watched."""

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
        self.threads = [threading.Thread(target=self.work, args=(n,), name=f"clerk {n}") for n in range(threads)]

    def found_bank(self) -> None:
        """Make the schema, the user that only the pool has, and the money."""
        with self.admin.cursor() as cursor:
            cursor.execute(f"drop database if exists {NAME}")
            cursor.execute(f"drop user if exists {NAME}@'%'")
            cursor.execute(f"create database {NAME}")
            cursor.execute(f"create user {NAME}@'%' identified by '{NAME}'")
            cursor.execute(f"grant all on {NAME}.* to {NAME}@'%'")
            cursor.execute(f"create table {NAME}.accounts (id int primary key, balance bigint) engine=innodb")
            cursor.executemany(f"insert into {NAME}.accounts values (%s, %s)", [(n, MONEY) for n in range(ACCOUNTS)])

    # Watching

    def report(self, text: str) -> None:
        """Note that a promise was broken."""
        self.broken.append(text)
        print(f"BROKEN: {text}", flush=True)

    @contextmanager
    def borrowed(self, connection: Any) -> Iterator[Any]:
        """The time in which this thread alone may be on the session, begun with a look at what it finds there."""
        with connection.cursor() as cursor:
            cursor.execute("select connection_id(), @owner")
            session, owner = cursor.fetchone()
            me = threading.current_thread().name
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
        """The money is all there, in one snapshot."""
        with connection.cursor() as cursor:
            cursor.execute("select sum(balance), count(*) from accounts")
            found = cursor.fetchone()
        if found != (ACCOUNTS * MONEY, ACCOUNTS):
            raise Broken(f"the sum is {found}")

    def sessions(self) -> list[int]:
        """The server's sessions of the pool's user."""
        with self.admin.cursor() as cursor:
            cursor.execute("show processlist")
            return [row[0] for row in cursor.fetchall() if row[1] == NAME]

    def check_bound(self) -> None:
        """There are no more sessions than places, but for those that the server is still taking down."""
        if self.pool.total_num > self.pool.maxsize:
            self.report(f"the pool has {self.pool.total_num} connections")
        deadline = time.monotonic() + 5
        while len(self.sessions()) > self.pool.maxsize:
            if time.monotonic() > deadline:
                self.report(f"there are {len(self.sessions())} sessions on the server")
                return
            time.sleep(0.01)

    # What the threads do

    def work(self, number: int) -> None:
        """Do one thing after the other, chosen at random."""
        chance = random.Random(f"{self.seed} {number}")  # noqa: S311  no secret
        deeds = [self.transfer] * 6 + [
            self.fail_in_a_block,
            self.close_without_commit,
            self.close_twice,
            self.lose,
            self.leave_unread,
            self.ask_for_too_long,
            self.be_impatient,
            self.use_stale,
            self.audit,
        ]
        while not self.over.is_set():
            deed = chance.choice(deeds)
            try:
                deed(chance)
                self.counts[deed.__name__] += 1
            except GetConnectionFromPoolError:
                self.counts["exhausted"] += 1
            except pymysql.Error as error:
                if error.args[0] not in FATE:
                    self.report(f"{deed.__name__}: {error!r}")
                self.counts["struck by fate"] += 1
            except BaseException as error:  # noqa: BLE001  whatever it is, it should not be
                self.report(f"{deed.__name__}: {error!r}")
                traceback.print_exc()

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
        """Do what a bank does."""
        with self.pool.connection() as connection, self.borrowed(connection):
            self.move(connection, chance)

    def audit(self, chance: random.Random) -> None:
        """Count the money."""
        with self.pool.get_connection(pre_ping=chance.random() < 0.5) as cur, self.borrowed(cur.connection):
            self.sum_up(cur.connection)

    def fail_in_a_block(self, chance: random.Random) -> None:
        """Raise anything after half a transfer: it must come out, and nothing else."""
        failure = chance.choice(FAILURES)
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
        """Leave half a transfer to the pool, which has to undo it."""
        connection = self.pool.get_connection()
        try:
            with self.borrowed(connection):
                connection.query("update accounts set balance = balance - 1 where id = 0")
        finally:
            connection.close()

    def close_twice(self, chance: random.Random) -> None:
        """Close, and close again, also while another thread may have the session already."""
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
            connection = self.stale.pop(chance.randrange(len(self.stale)))
            connection.close()
            try:
                connection.query("update accounts set balance = 0")
            except ReturnConnectionToPoolError:
                return
            raise Broken("a returned handle was used")

    def lose(self, chance: random.Random) -> None:
        """Forget a connection in the middle of a transfer, at times in a cycle that only the collector finds."""
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
        """Wait for an answer no longer than a moment."""
        connection = self.pool.get_connection()
        try:
            with self.borrowed(connection):
                connection._read_timeout = 0.01
                with suppress(OperationalError):
                    connection.query(f"select sleep({chance.random() / 10})")
        finally:
            connection.close()

    def be_impatient(self, chance: random.Random) -> None:
        """Wait in the line for a moment only."""
        with self.pool.connection(timeout=chance.choice([0, 0.001, 0.01])) as connection, self.borrowed(connection):
            time.sleep(chance.random() / 50)

    # What happens to them

    def torment(self, chance: random.Random) -> None:
        """One stroke of fate."""
        sessions = self.sessions()
        if sessions:
            with self.admin.cursor() as cursor, suppress(pymysql.Error):  # it may have ended by itself
                cursor.execute(f"kill {chance.choice(['', 'query '])}{chance.choice(sessions)}")
                self.counts["killed"] += 1
        if chance.random() < 0.02:
            self.pool.drain()
        del self.stale[:-100]
        gc.collect()

    def run(self, seconds: float) -> bool:
        """Let all go on for so long, look that nothing is lost, and return whether all promises were kept."""
        chance = random.Random(self.seed)  # noqa: S311
        started = shown = time.monotonic()
        for thread in self.threads:
            thread.start()
        while (now := time.monotonic()) < started + seconds and not self.broken:
            self.torment(chance)
            self.check_bound()
            if now >= shown + 5:
                shown = now
                print(f"{now - started:4.0f} s  {sum(self.counts.values())} done  {self.pool!r}", flush=True)
            time.sleep(0.02)
        self.over.set()
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
        """All places are back, all money is there, and `close()` leaves nothing behind."""
        self.stale.clear()
        gc.collect()
        if (size := self.pool.size()) != self.pool.maxsize:
            self.report(f"of {self.pool.maxsize} places {size} are back")
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
    with running_server() as server:
        return 0 if Soak(server, options.seed, options.threads, options.connections).run(options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())

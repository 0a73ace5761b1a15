"""KILL QUERY hits a pool's sessions constantly while threads transfer money: `tests/storm.py [--cycles 10000]`.

Then any reset and any ROLLBACK may fail. Each transaction inserts a row of its own, so the end shows whether one was
committed that had been rolled back, or lost that had been confirmed. Any such row is printed, and makes the exit status
1.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pymysql
from pymysql.constants import CLIENT
from server import running_server

import pymysqlpool
from pymysqlpool import ConnectionPool

if TYPE_CHECKING:
    from server import Server

ACCOUNTS, MONEY = 8, 1000

#: How many KILL QUERY each session gets before the list of sessions is read again.
STRIKES = 50

#: Query interrupted, deadlock, lock wait timeout, and a connection that was lost because a reply was an error.
FATE = {1317, 1213, 1205, 2006, 2013}


class CountingPool(ConnectionPool):
    """A pool that counts how often its own commands were killed."""

    struck = 0

    def _replace_session(self, connection: Any) -> None:
        self.struck += 1
        super()._replace_session(connection)


class Undone(Exception):
    """An exception of the application."""


class Storm:
    """The bank, its pool, and the storm of KILL QUERY."""

    def __init__(self, connect_kwargs: dict[str, Any], database: str, threads: int = 6, maxsize: int = 4) -> None:
        self._connect_kwargs = connect_kwargs
        self._admin: Any = pymysql.connect(**connect_kwargs, database=database, autocommit=True, ssl_disabled=True)
        self._ask("create table accounts (id int primary key, balance bigint) engine=innodb")
        self._ask("create table transfers (id int primary key, fate varchar(20)) engine=innodb")
        accounts = ",".join(f"({number}, {MONEY})" for number in range(ACCOUNTS))
        self._ask(f"insert into accounts values {accounts}")
        self.pool = CountingPool(
            maxsize, "bank", database=database, autocommit=False, ssl_disabled=True, read_timeout=30, **connect_kwargs
        )
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        #: The transactions with a known outcome: whose rows must be in the table, and whose must not.
        self.confirmed: set[int] = set()
        self.undone: set[int] = set()
        self._threads = threads
        self._over = threading.Event()

    def _ask(self, sql: str) -> Any:
        with self._admin.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    # What the threads do

    def _work(self, numbers: range, seed: str) -> None:
        chance = random.Random(seed)  # noqa: S311  no secret
        deeds = [
            self._transfer,
            self._transfer,
            self._commit_by_hand,
            self._undo_a_block,
            self._undo_a_block,
            self._return_with_writes,
            self._return_with_writes,
            self._leave_a_variable,
            self._block_on_a_returned_handle,
            self._audit,
        ]
        for number in numbers:
            deed = chance.choice(deeds)
            self.undone.add(number)  # until it is known to be otherwise
            try:
                deed(number, chance)
                self.counts[deed.__name__.strip("_")] += 1
            except pymysql.Error as error:
                self.counts[f"error {error.args[0]}"] += 1
                if error.args[0] not in FATE:
                    self.broken.append(f"{deed.__name__}: {error!r}")
            except BaseException as error:  # noqa: BLE001  any other error is a finding
                traceback.print_exc()
                self.broken.append(f"{deed.__name__}: {error!r}")

    @staticmethod
    def _move(cursor: Any, number: int, chance: random.Random, fate: str) -> None:
        giver, taker = chance.sample(range(ACCOUNTS), 2)
        steps = [
            f"insert into transfers values ({number}, '{fate}')",
            f"update accounts set balance = balance - {number % 7} where id = {giver}",
            f"update accounts set balance = balance + {number % 7} where id = {taker}",
        ]
        if chance.random() < 0.3:
            steps.insert(0, "begin")  # a borrower's first command, which commits what is open
        for step in steps:
            cursor.execute(step)

    def _has_ended(self, number: int) -> None:
        """Record that COMMIT was sent: its outcome is known only if the reply comes."""
        self.undone.discard(number)

    def _transfer(self, number: int, chance: random.Random) -> None:
        with self.pool.get_connection(timeout=None) as cursor:
            self._move(cursor, number, chance, "commit")
            self._has_ended(number)
        self.confirmed.add(number)

    def _commit_by_hand(self, number: int, chance: random.Random) -> None:
        connection = self.pool.get_connection(timeout=None)
        try:
            self._move(connection.cursor(), number, chance, "commit")
            self._has_ended(number)
            connection.commit()
            self.confirmed.add(number)
        finally:
            connection.close()

    def _undo_a_block(self, number: int, chance: random.Random) -> None:
        with suppress(Undone), self.pool.connection(timeout=None) as connection:
            self._move(connection.cursor(), number, chance, "exception")
            raise Undone

    def _return_with_writes(self, number: int, chance: random.Random) -> None:
        connection = self.pool.get_connection(timeout=None)
        try:
            self._move(connection.cursor(), number, chance, "close")
        finally:
            connection.close()

    def _leave_a_variable(self, number: int, chance: random.Random) -> None:
        connection = self.pool.get_connection(timeout=None)
        try:
            connection.query(f"set @left = {number}")
            self._move(connection.cursor(), number, chance, "close of a dirty one")
        finally:
            connection.close()

    def _block_on_a_returned_handle(self, number: int, chance: random.Random) -> None:
        connection = self.pool.get_connection(timeout=None)
        connection.close()
        with connection as cursor:
            self._move(cursor, number, chance, "commit")
            self._has_ended(number)
        self.confirmed.add(number)

    def _audit(self, _: int, __: random.Random) -> None:
        with self.pool.get_connection(timeout=None) as cursor:
            cursor.execute("select cast(sum(balance) as signed), @left from accounts")
            found = cursor.fetchone()
        if found != (ACCOUNTS * MONEY, None):
            self.broken.append(f"the sum, and another's variable: {found}")

    # The storm

    def _strike(self) -> None:
        """Send KILL QUERY as fast as the server takes it: many in one text, as this process has other things to do."""
        database = self._admin.db.decode()
        several = {"client_flag": CLIENT.MULTI_STATEMENTS, "autocommit": True, "ssl_disabled": True}
        with pymysql.connect(**self._connect_kwargs, **several) as killer:
            own = {killer.thread_id(), self._admin.thread_id()}
            cursor = killer.cursor()
            while not self._over.is_set():
                cursor.execute("select id from information_schema.processlist where db = %s", (database,))
                strikes = [f"kill query {session}" for (session,) in cursor.fetchall() if session not in own]
                with suppress(pymysql.Error):  # one has ended in the meantime
                    cursor.execute(";".join(["do 0", *strikes * STRIKES]))
                    while cursor.nextset():
                        self.counts["strikes"] += 1

    def run(self, cycles: int, seed: int) -> None:
        """Do so many cycles in the storm, then check the outcome of each transaction. `broken` lists what is wrong."""
        share = cycles // self._threads + 1
        workers = [
            threading.Thread(target=self._work, args=(range(n * share + 1, (n + 1) * share + 1), f"{seed} {n}"))
            for n in range(self._threads)
        ]
        striker = threading.Thread(target=self._strike)
        striker.start()
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:
            self._over.set()
            striker.join()
        self.counts["own commands struck"] = self.pool.struck
        if (size := self.pool.size()) != self.pool.maxsize:
            self.broken.append(f"of {self.pool.maxsize} places {size} are back")
        self.pool.close()
        self._look()

    def _look(self) -> None:
        found = dict(self._ask("select id, fate from transfers"))
        # What was in progress when the pool was closed is rolled back by the server a little later.
        self.broken += [f"rolled back, and committed: {number} ({found[number]})" for number in self.undone & {*found}]
        self.broken += [f"confirmed, and not there: {number}" for number in self.confirmed - {*found}]
        [(total,)] = self._ask("select cast(sum(balance) as signed) from accounts")
        if total != ACCOUNTS * MONEY:
            self.broken.append(f"the sum is {total}")
        self.counts["confirmed"], self.counts["undone"] = len(self.confirmed), len(self.undone)
        self._admin.close()


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=10_000, help="how many transactions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the choices (default: any)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    pymysqlpool.logger.setLevel("ERROR")
    with running_server() as server:
        return run(server, options.cycles, options.seed)


def run(server: Server, cycles: int, seed: int) -> int:
    """Make a schema, run, and print what was found."""
    database = f"pymysqlpool_storm_{time.time_ns()}"
    with pymysql.connect(**server.connect_kwargs) as admin, admin.cursor() as cursor:
        cursor.execute(f"create database {database}")
        begin = time.monotonic()
        storm = Storm(server.connect_kwargs, database)
        storm.run(cycles, seed)
        cursor.execute(f"drop database {database}")
        version = admin.get_server_info()
    counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in sorted(storm.counts.items()))
    print(*storm.broken, sep="\n")
    verdict = "BROKEN" if storm.broken else "all promises kept"
    print(f"{verdict} on {version} in {time.monotonic() - begin:.0f} s with seed {seed}: {counts}")
    return 1 if storm.broken else 0


if __name__ == "__main__":
    sys.exit(main())

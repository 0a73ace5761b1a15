"""A pool in front of a cluster while its nodes fail: `tests/cluster/run.py [--write]`.

Three Galera nodes stand behind HAProxy. Eight threads transfer money through a pool, each transfer with a key of its
own, and one more thread does the same on a raw connection, while faults are caused one after the other. The table has
the longest time without a commit of each. The exit status is 1 if the sum of the money is wrong, a confirmed transfer
is missing or a refused one is there, a place or a thread is missing, or the pool's gap is more than a second longer
than the raw connection's.

Afterwards the recipe that tries a unit of work again runs while sessions are cut and the writer is killed, and a pool's
sessions move back to the writer within `con_lifetime`. The exit status is 1 also if a transfer was done twice or not at
all, or a session has not moved.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar

import pymysql
import pymysql.cursors

sys.path.insert(0, str(Path(__file__).parent))

from galera import USER, HAProxy, Node, NotInstalled, running_cluster

from pymysqlpool import ConnectionPool, GetConnectionFromPoolError, is_retryable

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS, PLACES = 8, 4
ACCOUNTS, MONEY = 64, 1000
OPTIONS: dict[str, Any] = {
    "host": "127.0.0.1",
    "user": USER,
    "database": "bank",
    "ssl_disabled": True,
    "connect_timeout": 2,
    "read_timeout": 20,
}
#: Seconds before a fault, and the longest time without a commit before the run gives up.
CALM, PATIENCE = 2.0, 40.0
PAUSE = 0.02
HEAD = """\
| fault | longest gap, s | a raw connection's | confirmed | errors, by code | opened, by node | idle when the writer is back | after `drain()` |
|---|---:|---:|---:|---|---|---|---|"""  # noqa: E501  a table's head is one line
GOOD = """\
On each node the sum of the balances stayed the same, every confirmed transfer was found, and no refused one was. No
thread hung, and all connections were returned. Galera itself takes 5 s to exclude a node that does not respond."""
RESULTS = Path(__file__).parents[2] / ".github" / "cluster.md"
RECIPES = RESULTS.with_name("cluster-recipes.md")
#: How often the sessions are cut before the writer is killed, and the `con_lifetime` in seconds of sessions that move.
CUTS, LIFETIME = 30, 5.0


class Teller:
    """Transfers money, and records the outcome."""

    keys = itertools.count(1)

    def __init__(self) -> None:
        self.confirmed: list[int] = []
        self.refused: list[int] = []
        self.unknown: list[int] = []
        self.commits: list[float] = []
        self.errors: Counter[str] = Counter()
        self.mistakes: list[str] = []

    def transfer(self, cursor: Any, key: int) -> None:
        """Move money from one account to another, without a commit."""
        source, target = sorted(random.sample(range(ACCOUNTS), 2))
        amount = random.randint(-9, 9)  # noqa: S311  any number will do
        cursor.execute("update accounts set balance = balance - %s where id = %s", (amount, source))
        cursor.execute("update accounts set balance = balance + %s where id = %s", (amount, target))
        cursor.execute("insert into transfers values (%s)", (key,))

    def note(self, key: int, error: pymysql.Error, *, is_unknown: bool) -> None:
        """Record that a transfer has failed, or may have."""
        code = error.args[0] if isinstance(error, pymysql.OperationalError) else type(error).__name__
        if isinstance(error, GetConnectionFromPoolError):
            code = "GetConnectionFromPoolError"
        self.errors[str(code) + (" (outcome unknown)" if is_unknown else "")] += 1
        (self.unknown if is_unknown else self.refused).append(key)

    def confirm(self, key: int) -> None:
        """Record that a transfer is committed."""
        self.confirmed.append(key)
        self.commits.append(time.monotonic())


class PoolTeller(Teller):
    """A teller that borrows from the pool."""

    def work(self, pool: ConnectionPool, over: threading.Event) -> None:
        """Make transfers until it is over."""
        while not over.is_set():
            key = next(self.keys)
            try:
                with pool.connection() as connection, connection.cursor() as cursor:
                    self.transfer(cursor, key)
            except pymysql.Error as error:
                is_unknown = getattr(error, "outcome_unknown", False)
                if is_unknown and is_retryable(error):
                    self.mistakes.append(f"{error!r} is of unknown outcome, and retryable")
                self.note(key, error, is_unknown=is_unknown)
                over.wait(PAUSE)
            else:
                self.confirm(key)


class Hesitant(PoolTeller):
    """A teller that gives up every other transfer, in one of several ways, after it is written."""

    def transfer(self, cursor: Any, key: int) -> None:
        """Move money, and raise every other time."""
        super().transfer(cursor, key)
        if key % 2:
            raise pymysql.ProgrammingError(0, "changed its mind")


class RawTeller(Teller):
    """A teller with a raw connection of its own, which it replaces after each error."""

    def work(self, options: dict[str, Any], over: threading.Event) -> None:
        """Make transfers until it is over."""
        connection = None
        while not over.is_set():
            key = next(self.keys)
            commits = False
            try:
                connection = connection or pymysql.connect(**options)
                with connection.cursor() as cursor:
                    self.transfer(cursor, key)
                commits = True
                connection.commit()
            except pymysql.Error as error:
                self.note(key, error, is_unknown=commits and error.args[0] not in {1205, 1213, 1047, 1290})
                if connection is not None and connection.open:
                    connection._force_close()
                connection = None
                over.wait(PAUSE)
            else:
                self.confirm(key)
        if connection is not None:
            connection.close()


class LookingCursor(pymysql.cursors.Cursor):
    """A cursor that records which keys were already there when it inserted them."""

    found: ClassVar[list[int]] = []

    def execute(self, query: Any, args: Any = None) -> int:
        """Execute it."""
        count = super().execute(query, args)
        if query.startswith("insert ignore") and not count:
            self.found.append(args[0])
        return count


class RecipeTeller:
    """A teller that transfers money with the published recipe, and records why it was tried again."""

    def __init__(self, pool: ConnectionPool) -> None:
        text = RECIPES.read_text(encoding="utf-8")
        code = re.search(r"^## Trying a unit of work again$.*?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert code is not None
        names: dict[str, Any] = {"pool": pool}
        exec(code[1], names)  # noqa: S102  it is ours
        self._transfer = names["transfer"].retry_with(before_sleep=self._note)
        self.done: list[tuple[int, int, int, int]] = []
        self.failures: list[tuple[int, BaseException]] = []
        self.mistakes: list[str] = []

    def _note(self, state: Any) -> None:
        self.failures.append((state.args[0], state.outcome.exception()))

    def work(self, over: threading.Event) -> None:
        """Make transfers until it is over."""
        while not over.is_set():
            source, target = random.sample(range(ACCOUNTS), 2)
            job = next(Teller.keys), source, target, random.randint(1, 9)  # noqa: S311  any number will do
            try:
                self._transfer(*job)
            except pymysql.Error as error:
                self.mistakes.append(f"transfer {job[0]} was given up: {error!r}")
            else:
                self.done.append(job)

    def unknown(self) -> set[int]:
        """The keys of transfers whose outcome was unknown at some time."""
        return {key for key, error in self.failures if getattr(error, "outcome_unknown", False)}


class Fault:
    """A fault, and how it is repaired."""

    def __init__(self, name: str, strike: Callable[[], object], heal: Callable[[], object]) -> None:
        self.name = name
        self.strike = strike
        self.heal = heal


def faults(nodes: list[Node], proxy: HAProxy) -> Iterator[Fault]:
    """The faults, in order."""
    writer, *others = nodes

    def restart() -> None:
        writer.wait()
        writer.start(others)

    def again() -> None:
        writer.signal(signal.SIGCONT)

    def set_up(name: str, value: str) -> Callable[[], object]:
        return lambda: writer.set_global(name, value)

    yield Fault("the writer is killed (SIGKILL)", lambda: writer.signal(signal.SIGKILL), restart)
    yield Fault("the writer is stopped cleanly", lambda: writer.signal(signal.SIGTERM), restart)
    yield Fault("the writer is frozen (SIGSTOP)", lambda: writer.signal(signal.SIGSTOP), again)
    yield Fault("the writer is set read-only", set_up("read_only", "1"), set_up("read_only", "0"))
    yield Fault(
        "the writer rejects queries", set_up("wsrep_reject_queries", "ALL"), set_up("wsrep_reject_queries", "NONE")
    )
    yield Fault("HAProxy is reloaded", proxy.start, lambda: None)


def run(nodes: list[Node], proxy: HAProxy) -> tuple[list[str], list[str]]:
    """Run all; return the rows of the table and what is wrong."""
    found_bank(nodes[0])
    pool = ConnectionPool(PLACES, "bank", port=proxy.ports["pool"], **OPTIONS)
    rows, wrong = [], []
    for fault in faults(nodes, proxy):
        over = threading.Event()
        tellers = [PoolTeller() for _ in range(THREADS)]
        raw = RawTeller()
        threads = [threading.Thread(target=teller.work, args=(pool, over), daemon=True) for teller in tellers]
        raw_options = {**OPTIONS, "port": proxy.ports["raw"]}
        threads.append(threading.Thread(target=raw.work, args=(raw_options, over), daemon=True))
        sessions = proxy.sessions()
        began = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(CALM)
        struck = time.monotonic()
        fault.strike()
        wait_for_commits(tellers, raw, struck)
        fault.heal()
        for node in nodes:
            node.wait_until_synced(among=len(nodes))
        proxy.wait_until_up()
        time.sleep(CALM)
        over.set()
        ended = time.monotonic()
        for thread in threads:
            thread.join(30)
        if any(thread.is_alive() for thread in threads):
            wrong.append(f"{fault.name}: a thread hangs")
        if pool.size() != PLACES:
            wrong.append(f"{fault.name}: {pool.size()} places of {PLACES} are back")
        gap = longest([began, *itertools.chain(*(teller.commits for teller in tellers)), ended])
        raw_gap = longest([began, *raw.commits, ended])
        if gap > raw_gap + 1:
            wrong.append(f"{fault.name}: {gap:.1f} s without a commit, where the raw connection had {raw_gap:.1f}")
        wrong += [f"{fault.name}: {each}" for each in check(nodes, [*tellers, raw])]
        after = proxy.sessions()
        opened = [after[key] - sessions.get(key, 0) for key in sorted(after) if key[0] == "pool"]
        errors: Counter[str] = sum((teller.errors for teller in tellers), Counter())
        told = ", ".join(f"{count} of {code}" for code, count in sorted(errors.items())) or "none"
        confirmed = sum(len(teller.confirmed) for teller in tellers)
        on_return = where(pool, nodes)
        pool.drain()
        drained = where(pool, nodes)
        if drained != [PLACES] + [0] * (len(nodes) - 1):
            wrong.append(f"{fault.name}: after drain() the sessions are on {drained}")
        counts = " | ".join(" / ".join(map(str, count)) for count in (opened, on_return, drained))
        row = f"| {fault.name} | {gap:.2f} | {raw_gap:.2f} | {confirmed} | {told} | {counts} |"
        print(row, flush=True)
        rows.append(row)
    pool.close()
    return rows, wrong


def where(pool: ConnectionPool, nodes: list[Node]) -> list[int]:
    """The number of the pool's sessions on each node. Borrows all of them for a moment."""
    connections = [pool.get_connection(timeout=10) for _ in range(PLACES)]
    ports = []
    for connection in connections:
        with connection.cursor() as cursor:
            cursor.execute("select @@port")
            ports += [port for (port,) in cursor.fetchall()]
        connection.close()
    return [ports.count(node.port) for node in nodes]


def try_again(nodes: list[Node], proxy: HAProxy) -> tuple[str, list[str]]:
    """Run the recipe while sessions are cut and the writer is killed; return the page's text, and what is wrong."""
    writer, *others = nodes
    expected = dict(writer.run("select id, balance from bank.accounts"))
    pool = ConnectionPool(PLACES, "bank", port=proxy.ports["pool"], cursorclass=LookingCursor, **OPTIONS)
    over = threading.Event()
    tellers = [RecipeTeller(pool) for _ in range(THREADS)]
    threads = [threading.Thread(target=teller.work, args=(over,), daemon=True) for teller in tellers]
    for thread in threads:
        thread.start()
    for _ in range(CUTS):
        time.sleep(random.uniform(0.05, 0.15))  # noqa: S311  any moment will do
        proxy.cut(writer)
    writer.signal(signal.SIGKILL)
    writer.wait()
    writer.start(others)
    for node in nodes:
        node.wait_until_synced(among=len(nodes))
    proxy.wait_until_up()
    time.sleep(CALM)
    over.set()
    for thread in threads:
        thread.join(60)
    wrong = ["a thread hangs" for thread in threads if thread.is_alive()]
    if pool.size() != PLACES:
        wrong.append(f"{pool.size()} places of {PLACES} are back")
    pool.close()
    done = [job for teller in tellers for job in teller.done]
    for _, source, target, amount in done:
        expected[source] -= amount
        expected[target] += amount
    for node in nodes:
        balances = dict(node.run("select id, balance from bank.accounts"))
        wrong += [
            f"{node.name}: account {id_} has {balances[id_]}, not {sum_}"
            for id_, sum_ in expected.items()
            if balances[id_] != sum_
        ]
    unknown = set[int]().union(*(teller.unknown() for teller in tellers))
    found = set(LookingCursor.found)
    wrong += [f"transfer {key} was done, and its error says that nothing was" for key in found - unknown]
    wrong += [mistake for teller in tellers for mistake in teller.mistakes]
    if not found:
        wrong.append("no reply to a COMMIT was lost")
    failed = sum(len(teller.failures) for teller in tellers)
    text = f"""\
The recipe for [trying again](cluster-recipes.md#trying-a-unit-of-work-again) ran in {THREADS} threads.
The sessions on the writer were cut {CUTS} times, and then the writer was killed and started again.
{len(done)} transfers were made, after {failed} failed tries. None was done twice or given up: on each node
each account has the balance that follows from these transfers. The outcome of {len(unknown)} was unknown at some time;
{len(found)} of these were found by their keys at the next try."""
    return text, [f"the recipe: {each}" for each in wrong]


def move_back(nodes: list[Node], proxy: HAProxy) -> tuple[str, list[str]]:
    """Let the writer return to a pool that is not drained; return the text for the page, and what is wrong."""
    writer = nodes[0]
    pool = ConnectionPool(PLACES, "bank", port=proxy.ports["pool"], con_lifetime=LIFETIME, **OPTIONS)
    writer.set_global("read_only", "1")
    proxy.wait_until_down(writer)
    away = where(pool, nodes)
    writer.set_global("read_only", "0")
    proxy.wait_until_up()
    returned = time.monotonic()
    home = [PLACES] + [0] * (len(nodes) - 1)
    while (now := where(pool, nodes)) != home and time.monotonic() < returned + LIFETIME + 1:
        time.sleep(0.05)
    took = time.monotonic() - returned
    expired = pool.stats().closed.lifetime
    pool.close()
    before, after = (" / ".join(map(str, count)) for count in (away, now))
    wrong = []
    if away[0] or now != home or not expired:
        wrong.append(f"within con_lifetime the sessions moved from {before} to {after}; {expired} expired")
    text = f"""\
Sessions also move back without `drain()`. With `con_lifetime={LIFETIME:g}` a pool's idle sessions were on {before}
while the writer was read-only. {took:.1f} s after it was writable again, they were on {after}."""
    return text, wrong


def reset_on(nodes: list[Node], _: HAProxy) -> tuple[str, list[str]]:
    """Let a node leave between a session's opening and its first reset; return the page's text, and what is wrong."""
    node, *_, last = nodes
    with ConnectionPool(1, "bank", port=node.port, **OPTIONS) as pool:
        last.signal(signal.SIGTERM)
        while node.sees() == len(nodes):
            time.sleep(0.05)
        for _ in range(3):
            with pool.connection() as connection:
                connection.execute_query("set @left = 1")
        with pool.connection() as connection:
            connection.execute_query("select 1")
        opened = pool.stats().opened
    text = """\
When a node leaves, Galera changes `auto_increment_increment` on the others. The pool's sessions get the new value at
their next reset, and are not replaced."""
    return text, [] if opened == 1 else [f"after a node has left, a session is replaced: {opened} were opened"]


def reject_now_and_then(node: Node, seconds: float) -> list[str]:
    """Toggle `wsrep_reject_queries` on one node, while every other transfer is rolled back; return what is wrong."""
    found_bank(node)
    pool = ConnectionPool(PLACES, "bank", port=node.port, **OPTIONS)
    over = threading.Event()
    tellers = [Hesitant() for _ in range(THREADS)]
    threads = [threading.Thread(target=teller.work, args=(pool, over), daemon=True) for teller in tellers]
    for thread in threads:
        thread.start()
    ends_at = time.monotonic() + seconds
    toggled = 0
    with node.connect() as connection, connection.cursor() as cursor:
        while time.monotonic() < ends_at:
            for value in "ALL", "NONE":
                cursor.execute(f"set global wsrep_reject_queries = {value}")
                over.wait(random.uniform(0.001, 0.05))  # noqa: S311  any moment will do
            toggled += 1
    over.set()
    for thread in threads:
        thread.join(30)
    errors: Counter[str] = sum((teller.errors for teller in tellers), Counter())
    print(
        f"toggled {toggled} times; {sum(len(teller.confirmed) for teller in tellers)} transfers confirmed, "
        f"{sum(len(teller.refused) for teller in tellers)} refused or given up; errors: {dict(errors)}"
    )
    wrong = ["a thread hangs" for thread in threads if thread.is_alive()]
    if pool.size() != PLACES:
        wrong.append(f"{pool.size()} places of {PLACES} are back")
    return wrong + check([node], tellers)


def found_bank(node: Node) -> None:
    """Make the tables and the money."""
    node.run("create table bank.accounts (id int primary key, balance bigint) engine=innodb")
    node.run("create table bank.transfers (id bigint primary key) engine=innodb")
    node.run("insert into bank.accounts values " + ", ".join(f"({n}, {MONEY})" for n in range(ACCOUNTS)))


def wait_for_commits(tellers: list[PoolTeller], raw: RawTeller, since: float) -> None:
    """Return when all stalled tellers have committed again, after the cluster has had time to notice the fault."""
    time.sleep(CALM)
    deadline = since + PATIENCE
    while time.monotonic() < deadline:
        now = time.monotonic()
        lasts = [max((commit for teller in tellers for commit in teller.commits), default=0.0), *raw.commits[-1:]]
        if all(now - last < 0.5 for last in lasts) and now - since > 3 * CALM:
            return
        time.sleep(0.05)


def longest(times: list[float]) -> float:
    """The longest time between two of these, in seconds."""
    times.sort()
    return max(after - before for before, after in zip(times, times[1:]))


def check(nodes: list[Node], tellers: list[Any]) -> list[str]:
    """Check the tables, and return what is wrong."""
    wrong: list[str] = []
    for node in nodes:
        [(total,)] = node.run("select sum(balance) from bank.accounts")
        if total != ACCOUNTS * MONEY:
            wrong.append(f"{node.name}: the sum is {total}")
    there = {key for (key,) in nodes[-1].run("select id from bank.transfers")}
    for teller in tellers:
        wrong += [f"transfer {key} was confirmed, and is not there" for key in teller.confirmed if key not in there]
        wrong += [f"transfer {key} was refused, and is there" for key in teller.refused if key in there]
        wrong += teller.mistakes
    return wrong


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the table to {RESULTS.name} as well")
    parser.add_argument("--reject", type=float, metavar="SECONDS", help="instead: one node that rejects now and then")
    arguments = parser.parse_args()
    try:
        with running_cluster(1 if arguments.reject else 3) as (nodes, proxy):
            if arguments.reject:
                wrong = reject_now_and_then(nodes[0], arguments.reject)
                print(*(f"WRONG: {each}" for each in wrong), sep="\n")
                return bool(wrong)
            [(version,)] = nodes[0].run("select version()")
            print(HEAD, flush=True)
            rows, wrong = run(nodes, proxy)
            texts = []
            for phase in try_again, move_back, reset_on:
                text, mistakes = phase(nodes, proxy)
                print(text, flush=True)
                texts += [] if mistakes else [text]
                wrong += mistakes
    except NotInstalled as error:
        print(error, file=sys.stderr)
        return 1
    for each in wrong:
        print(f"WRONG: {each}")
    if arguments.write:
        text = f"""\
# In front of a cluster

Three nodes of MariaDB {version} with Galera run behind HAProxy, all on one machine with {os.cpu_count()} cores.
One node is the writer, which is where the faults are caused, and two are standbys.
{THREADS} threads transfer money over a pool of {PLACES} connections with autocommit off.
For comparison, another thread uses a raw connection, which it replaces after each error.
A failed transfer is not tried again. Where a cell has three numbers, they belong to the three nodes.
`drain()` is called when the writer is back. `tox -e cluster -- --write` generates this page.

{HEAD}
{chr(10).join(rows)}

{chr(10).join(f"WRONG: {each}" for each in wrong) or GOOD}

{(chr(10) * 2).join(texts)}
"""
        RESULTS.write_text(text)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

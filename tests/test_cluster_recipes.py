"""The recipes for clusters, run as they are printed, against the faults that they are for."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import eventually, session_of
from protocol_proxy import Command, ProtocolProxy, error_packet
from server import _make_server

from pymysqlpool import ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool
    from server import Server

RECIPES = Path(__file__).parents[1] / ".github" / "cluster-recipes.md"
THREADS, TRANSFERS, ACCOUNTS, MONEY = 4, 120, 8, 100


def recipe(heading: str) -> str:
    """The code under this heading."""
    text = RECIPES.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(heading)}$.*?^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def run_recipe(heading: str, **names: Any) -> dict[str, Any]:
    """Run it, with the names that it expects to be defined, and return what it defines."""
    exec(recipe(heading), names)  # noqa: S102  it is ours
    return names


class Misfortune:
    """A proxy at which some COMMITs lose the connection, before or after they are done, and some statements fail."""

    def __init__(self) -> None:
        self._commits = self._updates = 0
        self.lost = 0

    def answer(self, command: Command) -> list[bytes] | None:
        """Lose a COMMIT, or refuse an UPDATE."""
        if command.text == b"COMMIT":
            self._commits += 1
            if self._commits % 12 == 0:
                self.lost += 1
                raise EOFError
        elif command.text.startswith(b"update"):
            self._updates += 1
            if self._updates % 29 in {0, 7}:
                code = 1047 if self._updates % 29 else 1213
                return [error_packet(code, "as if")]
        return None

    def alter(self, command: Command, reply: list[bytes]) -> list[bytes]:
        """Lose the reply to a COMMIT."""
        if command.text == b"COMMIT" and self._commits % 12 == 6:
            self.lost += 1
            raise EOFError
        return reply


def test_no_transfer_is_done_twice(server: Server, make_pool: MakePool, database: str, admin: Admin) -> None:
    """Whatever goes wrong, even at a COMMIT, each transfer is done exactly once."""
    with admin.cursor() as cursor, ProtocolProxy(server.host, server.port) as proxy:
        cursor.execute(f"create table {database}.transfers (id varchar(40) primary key) engine=innodb")
        cursor.execute(f"create table {database}.accounts (id int primary key, balance int) engine=innodb")
        cursor.executemany(
            f"insert into {database}.accounts values (%s, %s)", [(number, MONEY) for number in range(ACCOUNTS)]
        )
        pool = make_pool(size=4, host=proxy.host, port=proxy.port, ssl_disabled=True)
        transfer = run_recipe("Trying a unit of work again", pool=pool)["transfer"]
        misfortune = Misfortune()
        proxy.answer, proxy.alter = misfortune.answer, misfortune.alter
        with ThreadPoolExecutor(THREADS) as threads:
            done = [threads.submit(transfer, uuid.uuid4().hex, 0, 1 + n % 7, 1) for n in range(TRANSFERS)]
            for each in done:
                each.result()
        assert misfortune.lost > 5
        cursor.execute(f"select balance from {database}.accounts order by id")
        balances = [balance for (balance,) in cursor.fetchall()]
        assert balances[0] == MONEY - TRANSFERS
        assert balances[1:] == [MONEY + len(range(n, TRANSFERS, 7)) for n in range(7)]
        cursor.execute(f"select count(*) from {database}.transfers")
        assert cursor.fetchone() == (TRANSFERS,)
        assert pool.size() == 4


def test_drained_sessions_are_opened_anew(make_pool: MakePool) -> None:
    """After `drain()` every session is a new one; a borrowed one is closed when it is returned."""
    pool = make_pool(size=2)
    held = pool.get_connection()
    with pool.connection() as connection:
        before = {session_of(connection), session_of(held)}
    run_recipe("Moving sessions back", pool=pool)
    held.close()
    with pool.connection() as first, pool.connection() as second:
        assert not {session_of(first), session_of(second)} & before


@contextmanager
def running_replica_pair() -> Iterator[tuple[Server, Server]]:
    """A MariaDB server with a binary log, and one that follows it."""
    with ExitStack() as stack:
        servers = []
        for number in (1, 2):
            folder = Path(tempfile.mkdtemp(prefix="pymysqlpool-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            log = stack.enter_context((folder / "log").open("ab"))
            server = _make_server(folder, log, tls=False)
            assert server.process is not None
            server.process.command_parts += ["--log-bin=binlog", f"--server-id={number}", "--log-slave-updates"]
            server.start()
            stack.callback(server.stop)
            servers.append(server)
        yield servers[0], servers[1]


@pytest.mark.timeout(60)
def test_who_has_written_reads_it_on_a_replica(server: Server, on_mariadb: bool) -> None:
    """A read that waits for a write's position sees the write; if the replica lags too far, the writer is read."""
    if not on_mariadb:
        pytest.skip("MariaDB's GTIDs")
    if not server.supports_faults:
        pytest.skip("this server is not ours")
    with ExitStack() as stack:
        primary, replica = stack.enter_context(running_replica_pair())
        boss, follower = (
            stack.enter_context(pymysql.connect(**each.connect_kwargs, autocommit=True, ssl_disabled=True))
            for each in (primary, replica)
        )
        boss.query("create database shop")
        boss.query("create table shop.t (n int primary key) engine=innodb")
        follower.query(
            f"change master to master_host='127.0.0.1', master_port={primary.port}, master_user='root',"
            " master_use_gtid=slave_pos"
        )
        follower.query("start slave")

        def has_table() -> bool:
            with follower.cursor() as cursor:
                return bool(cursor.execute("select 1 from information_schema.tables where table_name = 't'"))

        eventually(has_table)
        writer, replicas = (
            stack.enter_context(ConnectionPool(2, database="shop", **each.connect_kwargs))
            for each in (primary, replica)
        )
        names = run_recipe("Reading from replicas", writer=writer, replicas=replicas)

        def count(connection: Any) -> Any:
            [row] = connection.execute_query("select count(*), @@server_id from t")
            return row

        for n in range(20):
            position = names["write"](lambda connection, n=n: connection.execute_query(f"insert into t values ({n})"))
            assert names["read"](count, after=position, timeout=20) == (n + 1, 2)
        follower.query("stop slave sql_thread")
        position = names["write"](lambda connection: connection.execute_query("insert into t values (99)"))
        assert names["read"](count) == (20, 2)
        assert names["read"](count, after=position, timeout=0.05) == (21, 1)

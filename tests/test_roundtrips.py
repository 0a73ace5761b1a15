"""How many commands the pool itself sends: none if nothing was left, otherwise one write for the whole reset."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from helpers import Deed, ask, by_block, by_block_of_the_pool, by_close, by_exception, check_answers, running
from protocol_proxy import COM_RESET_CONNECTION
from pymysql.constants import COMMAND

import pymysqlpool

if TYPE_CHECKING:
    from helpers import Admin, MakePool


CYCLES = 10
INSERT = "insert into t values (1, 'ann@example.org')"
WAYS = [by_close, by_block, by_block_of_the_pool, by_exception]


@pytest.fixture
def wire() -> type[Recorder]:
    """A class of connections with a record of its own."""
    return type("Recorder", (Recorder,), {"writes": []})


class Recorder(pymysqlpool.Connection):
    """A connection that records what it writes."""

    writes: ClassVar[list[list[int]]]
    """The commands in each write."""

    def _write_bytes(self, data: bytes) -> None:
        commands, at = [], 0
        while at < len(data):
            # In a handshake the sequence numbers continue the server's.
            if data[at + 3] == 0:
                commands.append(data[at + 4])
            at += 4 + int.from_bytes(data[at : at + 3], "little")
        type(self).writes.append(commands)
        super()._write_bytes(data)

    @classmethod
    def count(cls) -> int:
        """The number of commands."""
        return sum(map(len, cls.writes))


def turn(connection: Any, autocommit: str) -> None:
    connection.autocommit(autocommit == "on")
    connection.commit()


@pytest.fixture
def people(database: str, admin: Admin) -> str:
    """A table of people, by its full name."""
    ask(admin, f"create table {database}.t (n int, email varchar(99))")
    return f"{database}.t"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("autocommit", "deed", "commands"),
    [
        (True, running(), 0),
        (False, running(), 0),
        (True, running("select n from t"), 1),
        (True, running("select * from t where email = 'ann@example.org'"), 1),
        (True, lambda connection: ask(connection, "select * from t where email = %s", "ann@example.org"), 1),
        (False, running("select n from t"), 2),
        (False, running("select * from t where email = 'ann@example.org'"), 2),
        (True, running("begin", "select n from t for update", "commit"), 3),
        (False, running("begin", "select n from t", "commit"), 3),
        (False, lambda connection: (connection.begin(), connection.commit()), 2),
        (True, lambda connection: connection.ping(reconnect=False), 1),
        (True, lambda connection: (turn(connection, "off"), ask(connection, "select 1"), turn(connection, "on")), 5),
        (False, lambda connection: (turn(connection, "on"), ask(connection, "select 1"), turn(connection, "off")), 5),
    ],
)
def test_a_clean_cycle_costs_no_command(  # noqa: PLR0917 - fixtures
    autocommit: bool, deed: Deed, commands: int, way: Any, wire: type[Recorder], people: str, make_pool: MakePool
) -> None:
    """The pool adds no command to those of a borrower, except one if a transaction has to be ended."""
    pool = make_pool(size=1, autocommit=autocommit, connection_class=wire)
    check_answers(pool)
    wire.writes.clear()
    for _ in range(CYCLES):
        way(pool, deed)
    assert wire.count() == commands * CYCLES


@pytest.mark.parametrize(("autocommit", "commands"), [(True, 1), (False, 2)])
def test_execute_query_costs_no_more_than_its_query(
    autocommit: bool, commands: int, wire: type[Recorder], people: str, make_pool: MakePool
) -> None:
    """`execute_query` sends its query and, without autocommit, the commit."""
    pool = make_pool(size=1, autocommit=autocommit, connection_class=wire)
    connection = pool.get_connection()
    connection.close()
    wire.writes.clear()
    for _ in range(CYCLES):
        connection.execute_query("select * from t where email = %s", ("ann@example.org",))
    assert wire.count() == commands * CYCLES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "deed",
    [
        running("set @v = 1"),
        running("select @v := 1"),
        running("begin", INSERT, "set @v = 1"),
        running(INSERT),
        running(" Update t set n = 1 where email like '%@example.org' ;"),
        running("begin", INSERT, "commit"),
    ],
)
def test_a_reset_is_one_trip(deed: Deed, way: Any, wire: type[Recorder], people: str, make_pool: MakePool) -> None:
    """The reset and all that has to be applied again are sent in one write; the pool sends nothing else."""
    pool = make_pool(size=1, autocommit=True, connection_class=wire, init_command="set @w = 2", sql_mode="ANSI")
    check_answers(pool)
    wire.writes.clear()
    for _ in range(CYCLES):
        way(pool, deed)
        connection = pool.get_connection()
        assert ask(connection, "select 1") == ((1,),)
        connection.close()
    resets = [commands for commands in wire.writes if COM_RESET_CONNECTION in commands]
    assert len(resets) == CYCLES
    assert all(len(commands) >= 3 for commands in resets)
    own = [commands for commands in wire.writes if commands not in ([], *resets)]
    assert all(len(commands) == 1 for commands in own)
    # The first on a server has one more, to see whether a reset has any effect.
    assert {len(commands) for commands in resets[1:]} == {len(resets[0]) - 1}
    assert set(itertools.chain(*own)) == {COMMAND.COM_QUERY}


def test_only_an_open_transaction_is_rolled_back(wire: type[Recorder], people: str, make_pool: MakePool) -> None:
    """If nothing but a transaction may have been left, the return sends one ROLLBACK and no reset."""
    pool = make_pool(size=1, connection_class=wire)
    check_answers(pool)
    wire.writes.clear()
    for _ in range(CYCLES):
        by_close(pool, running("select * from t for update"))
    check_answers(pool)
    assert [commands for commands in wire.writes if commands != [COMMAND.COM_QUERY]] == []
    assert wire.count() == 2 * CYCLES + 2

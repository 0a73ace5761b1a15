"""What a server, or a proxy in front of it, may refuse, lack or do by itself, and its effect on borrowers."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import pymysql
import pytest
from helpers import GENEROUS, eventually, is_in, one_thread, run
from protocol_proxy import (
    COM_RESET_CONNECTION,
    OK,
    Command,
    ProtocolProxy,
    error_packet,
    in_transaction,
    without_tracking,
)
from proxy import Proxy
from pymysql.constants import CLIENT, COMMAND, ER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool
    from server import Server

    from pymysqlpool import ConnectionPool


@pytest.fixture
def make_proxied_pool(make_pool: MakePool, protocol_proxy: ProtocolProxy, schema: str) -> MakePool:
    """Make pools of one place behind the proxy."""

    def make(**kwargs: Any) -> ConnectionPool:
        return make_pool(
            size=1, host=protocol_proxy.host, port=protocol_proxy.port, ssl_disabled=True, database=schema, **kwargs
        )

    return make


@pytest.fixture
def plain(server: Server, database: str) -> Iterator[Admin]:
    """A PyMySQL connection to the test's own schema, which sees what is committed."""
    with pymysql.connect(**server.connect_kwargs, database=database, autocommit=True, ssl_disabled=True) as connection:
        yield connection


@pytest.fixture
def schema(database: str, plain: Admin) -> str:
    """The test's own schema, with a table `t`, and a procedure and a function that write to it."""
    with plain.cursor() as cursor:
        cursor.execute("create table t (name varchar(20)) engine=innodb")
        cursor.execute("create procedure adds() begin insert into t values ('b'); select 'added'; end")
        cursor.execute(
            "create function adds_too() returns int reads sql data begin insert into t values ('b'); return 1; end"
        )
    return database


def names(plain: Admin) -> list[str]:
    """The committed rows of the table."""
    with plain.cursor() as cursor:
        cursor.execute("select name from t")
        return [name for (name,) in cursor.fetchall()]


class Refusal:
    """Refuses the n-th command from now on, as a server does after KILL QUERY or while it is not ready."""

    def __init__(self, protocol_proxy: ProtocolProxy, n: int, *, is_done: bool = False, code: int = 1047) -> None:
        self._left = n
        self.is_over = False
        self._is_done = is_done
        self._error = error_packet(code, "refused by the test")
        self.refused: Command | None = None
        protocol_proxy.answer = self._answer
        protocol_proxy.alter = self._alter

    def _is_it(self, command: Command) -> bool:
        self._left -= 1
        if self._left == -1 and not self.is_over:
            self.refused = command
        return self._left == -1 and not self.is_over

    def _answer(self, command: Command) -> list[bytes] | None:
        return [self._error] if not self._is_done and self._is_it(command) else None

    def _alter(self, command: Command, reply: list[bytes]) -> list[bytes]:
        return [self._error] if self._is_done and self._is_it(command) else reply


# The pool's arguments, and what its borrower leaves, so that these replies are pending.
OWED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rollback": ({"autocommit": False, "reset": "rollback"}, ["insert into t values ('a')"]),
    "rollback, autocommit on": ({"autocommit": True, "reset": "rollback"}, ["begin", "insert into t values ('a')"]),
    "reset": ({"autocommit": False}, ["insert into t values ('a')"]),
    "reset, autocommit on": ({"autocommit": True}, ["begin", "set @left = 1", "insert into t values ('a')"]),
    "reset, database": ({"autocommit": False}, ["use mysql", "insert into {0}.t values ('a')"]),
    "reset, init_command": (
        {"autocommit": False, "init_command": "set @init = 1"},
        ["set @left = 1", "insert into t values ('a')"],
    ),
    "reset, init_command that reads": (
        {"autocommit": False, "init_command": "select 1 from t", "sql_mode": "ANSI"},
        ["insert into t values ('a')"],
    ),
    "reset always": ({"autocommit": True, "reset": "session"}, ["begin", "insert into t values ('a')"]),
}


class First(NamedTuple):
    """What the next borrower does first, the rows that this adds, and what it gets."""

    run: Callable[[Any], object]
    added: list[str]
    gets: object = ()
    is_committed: bool | None = None
    """None: where autocommit is on."""


def sql(*statements: str) -> Callable[[Any], object]:
    return lambda connection: run(connection, *statements)


FIRST: dict[str, First] = {
    "select": First(sql("select count(*), @left from t"), [], ((0, None),)),
    "insert": First(sql("insert into t values ('b')"), ["b"]),
    "begin": First(lambda connection: connection.begin(), [], None),
    "begin, insert": First(sql("begin", "insert into t values ('b')"), ["b"], is_committed=False),
    "call": First(sql("call adds()"), ["b"], (("added",),)),
    "function": First(sql("select adds_too()"), ["b"], ((1,),)),
    "commit": First(lambda connection: connection.commit(), [], None),
    "rollback": First(lambda connection: connection.rollback(), [], None),
    "autocommit": First(sql("set autocommit = 1"), []),
    "database": First(lambda connection: connection.select_db("information_schema"), [], None),
    "ping": First(lambda connection: connection.ping(reconnect=False), [], None),
    "lock": First(sql("lock tables t read"), []),
    "ddl": First(sql("create table other (n int)"), []),
    "for update": First(sql("select * from t for update"), []),
}


def borrow_and_run(pool: ConnectionPool, protocol_proxy: ProtocolProxy, first: First, *, is_late: bool) -> Any:
    """Borrow and do it; the pending replies have come before, or come only when they are waited for."""
    connection = pool.get_connection()
    if not is_late:
        assert first.run(connection) == first.gets
        return connection
    with one_thread() as thread:
        doing = thread.submit(first.run, connection)
        [worker] = thread._threads
        eventually(lambda: is_in(worker, "read_pending"))
        protocol_proxy.let_go()
        assert doing.result(GENEROUS) == first.gets
    return connection


def leave_first(pool: ConnectionPool) -> None:
    """Let the pool do its first reset, for whose replies it always waits."""
    for _ in range(2):
        with pool.connection() as connection:
            run(connection, "set @first = 1")


@pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("is_late", [False, True], ids=["come", "late"])
@pytest.mark.parametrize("owed", OWED)
def test_where_a_reset_is_refused_nothing_runs_on_its_session(  # noqa: PLR0917 - fixtures
    make_proxied_pool: MakePool,
    protocol_proxy: ProtocolProxy,
    plain: Admin,
    schema: str,
    owed: str,
    is_late: bool,
    is_done: bool,
) -> None:
    """Whichever command of a reset or ROLLBACK fails, the next borrower's command runs once, on a clean session."""
    options, deeds = OWED[owed]
    pool = make_proxied_pool(**options)
    leave_first(pool)
    refused = set()
    for name, first in FIRST.items():
        n = replies = 0
        while n <= replies:  # in the last round no command is refused
            connection = pool.get_connection()
            run(connection, *(deed.format(schema) for deed in deeds))
            if is_late:
                protocol_proxy.hold()
            refusal = Refusal(protocol_proxy, n, is_done=is_done)
            protocol_proxy.commands.clear()
            connection.close()
            session = pool._pool.queue[-1]._place.session
            assert session is not None
            assert session.pending is not None
            replies = session.pending.replies
            if n == replies:
                refusal.is_over = True
            if not is_late:
                eventually(lambda: len(protocol_proxy.commands) >= replies)  # noqa: B023  called at once
            connection = borrow_and_run(pool, protocol_proxy, first, is_late=is_late)
            where = f"{name}, refused: {refusal.refused}"
            assert (refusal.refused is None) == (n == replies), where
            refused.add(refusal.refused)
            is_committed = options["autocommit"] if first.is_committed is None else first.is_committed
            assert names(plain) == (first.added if is_committed else []), where
            connection.rollback()
            assert names(plain) == (first.added if is_committed else []), where
            run(connection, "unlock tables")  # what is not undone with reset="rollback"
            connection.autocommit(options["autocommit"])
            connection.select_db(schema)
            connection.close()
            run(plain, "delete from t", *(["drop table other"] if name == "ddl" else []))
            n += 1
    assert pool.size() == 1
    assert len(refused) >= 2


@pytest.fixture
def role(plain: Admin) -> Iterator[str]:
    """A role that the pool's user may take."""
    name = f"role_{uuid.uuid4().hex[:16]}"
    run(plain, f"create role {name}")
    try:
        [(user,)] = run(plain, "select current_user()")
        run(plain, "grant {} to {}@'{}'".format(name, *user.split("@")))
        yield name
    finally:
        run(plain, f"drop role {name}")


STATE = "select @left, ifnull(nullif(current_role(), 'NONE'), 'none'), @@autocommit, @@sql_mode, database(), @init"


@pytest.mark.parametrize("code", [ER.UNKNOWN_COM_ERROR, ER.QUERY_INTERRUPTED])
def test_where_a_question_at_an_opening_is_refused(
    make_proxied_pool: MakePool, protocol_proxy: ProtocolProxy, schema: str, role: str, code: int
) -> None:
    """Whatever is refused while a session is opened, or reset and checked for the first time, nothing is left over."""
    n = 0
    is_last = False
    while not is_last:
        pool = make_proxied_pool(pre_create_num=0, sql_mode="ANSI_QUOTES", init_command="set @init = 1")
        refusal = Refusal(protocol_proxy, n, code=code)
        with suppress(pymysql.Error), pool.connection() as connection:
            run(connection, f"set role {role}", "set @left = 1")
        with suppress(pymysql.Error), pool.connection() as connection:
            assert run(connection, STATE) == ((None, "none", 0, "ANSI_QUOTES", schema, 1),), refusal.refused
        is_last = refusal.refused is None
        refusal.is_over = True
        with pool.connection() as connection:
            assert run(connection, STATE) == ((None, "none", 0, "ANSI_QUOTES", schema, 1),), refusal.refused
        assert pool.size() == 1
        pool.close()
        n += 1
    assert n > 12


# What a proxy may lack or do by itself


def announces_no_tracking(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.capabilities = ~CLIENT.SESSION_TRACK


def passes_no_tracking_on(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.alter = lambda _, reply: without_tracking(reply)


def knows_no_reset(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.answer = lambda command: (
        [error_packet(ER.UNKNOWN_COM_ERROR, "Unknown command")] if command.is_reset else None
    )


def answers_resets_itself(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.answer = lambda command: [OK] if command.is_reset else None


def drops_what_is_behind(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.answer = lambda command: [] if command.is_behind else None


def drops_what_is_behind_a_reset(protocol_proxy: ProtocolProxy) -> None:
    last: list[Command] = []

    def answer(command: Command) -> list[bytes] | None:
        dropped = command.is_behind and last[0].is_reset
        last[:] = [last[0] if dropped else command]
        return [] if dropped else None

    protocol_proxy.answer = answer


def closes_at_what_is_behind(protocol_proxy: ProtocolProxy) -> None:
    def answer(command: Command) -> None:
        if command.is_behind:
            raise EOFError

    protocol_proxy.answer = answer


def greets_as_old_mysql(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.version = b"5.7.44"


def greets_as_mysql(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.version = b"8.0.35"


def greets_as_mariadb(protocol_proxy: ProtocolProxy) -> None:
    protocol_proxy.version = b"5.5.5-10.11.6-MariaDB"


def shares_sessions(protocol_proxy: ProtocolProxy) -> None:
    """Share sessions as a multiplexing proxy does, except in a transaction or with state that can't be moved."""
    protocol_proxy.sessions = 3
    keeping: list[bytes] = []

    def may_switch(command: Command, reply: list[bytes]) -> bool:
        if command.is_reset:
            keeping.clear()
        elif any(what in command.text for what in (b"@left", b"@pymysqlpool", b"temporary", b"lock")):
            keeping.append(command.text)
        return not keeping and not in_transaction(reply)

    protocol_proxy.may_switch = may_switch
    protocol_proxy.is_for_all = lambda command: (
        command.code in (COMMAND.COM_INIT_DB, COM_RESET_CONNECTION) or command.text.lower().startswith(b"set ")
    )


PROXIES = [
    announces_no_tracking,
    passes_no_tracking_on,
    knows_no_reset,
    answers_resets_itself,
    drops_what_is_behind,
    drops_what_is_behind_a_reset,
    closes_at_what_is_behind,
    greets_as_old_mysql,
    greets_as_mysql,
    greets_as_mariadb,
    shares_sessions,
]

LEAVINGS = [
    "set @left = 1",
    "create temporary table temporary_one (n int)",
    "do get_lock('{0}', 0)",
    "set session transaction isolation level serializable",
    "set sql_mode = 'ANSI_QUOTES'",
    "set role {1}",
    "set autocommit = 0",
    "insert into t values ('a')",
]


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("impair", PROXIES)
def test_what_a_proxy_lacks_lets_nothing_through(  # noqa: PLR0917 - fixtures
    make_proxied_pool: MakePool,
    protocol_proxy: ProtocolProxy,
    plain: Admin,
    schema: str,
    role: str,
    impair: Callable[[ProtocolProxy], None],
    autocommit: bool,
) -> None:
    """Behind each kind of proxy a borrower gets the state of `connect()`, and a reply to each statement."""
    impair(protocol_proxy)
    look = (
        "select @left, is_used_lock(%s), @@transaction_isolation, @@sql_mode, @@autocommit, database(), "
        "ifnull(nullif(current_role(), 'NONE'), 'none')"
    )
    pool = make_proxied_pool(autocommit=autocommit)
    with pool.connection() as connection:
        if "transaction_isolation" not in str(run(connection, "show variables like 'transaction_isolation'")):
            look = look.replace("transaction_isolation", "tx_isolation")
        fresh = connection.execute_query(look, (schema,))
    for leaving in LEAVINGS * 2:
        connection = pool.get_connection()
        run(connection, leaving.format(schema, role))
        connection.close()
        with pool.connection() as connection:
            assert connection.execute_query(look, (schema,)) == fresh, leaving
            with pytest.raises(pymysql.err.ProgrammingError, match="temporary_one"):
                run(connection, "select * from temporary_one")
        if autocommit:
            run(plain, "delete from t")
        assert names(plain) == []
        with pool.connection() as connection:
            run(connection, "insert into t values ('b')")
        assert names(plain) == ["b"]
        run(plain, "delete from t")
    assert pool.size() == 1


@pytest.mark.parametrize("impair", [drops_what_is_behind, drops_what_is_behind_a_reset, closes_at_what_is_behind])
def test_few_resets_wait_for_what_a_proxy_drops(
    make_proxied_pool: MakePool, protocol_proxy: ProtocolProxy, impair: Callable[[ProtocolProxy], None]
) -> None:
    """After three resets with missing replies, sessions are replaced instead, and no later borrower waits."""
    impair(protocol_proxy)
    pool = make_proxied_pool()
    for _ in range(4):
        with pool.connection() as connection:
            run(connection, "set @left = 1")
    protocol_proxy.commands.clear()
    with pool.connection() as connection:
        assert run(connection, "select @left") == ((None,),)
    assert not any(command.is_behind for command in protocol_proxy.commands)


def test_an_empty_packet_in_place_of_a_reply_costs_the_session(
    make_proxied_pool: MakePool, protocol_proxy: ProtocolProxy
) -> None:
    """An empty packet is not part of the protocol: the session is closed, and the next borrower notices nothing."""
    pool = make_proxied_pool()
    for statement in ("set @left = 1", "set @left = 1", "select 1"):  # the last waits for the reply to the reset
        with pool.connection() as connection:
            run(connection, statement)
    protocol_proxy.answer = lambda command: [b""] if command.is_reset else None
    with pool.connection() as connection:
        run(connection, "set @left = 1")
    with pool.connection() as other:
        assert run(other, "select @left") == ((None,),)
        assert other.server_thread_id[0] != connection.server_thread_id[0]


def test_the_proxy_that_shares_sessions_does_so(make_proxied_pool: MakePool, protocol_proxy: ProtocolProxy) -> None:
    """The proxy sends each command that is not bound to a session to another one."""
    shares_sessions(protocol_proxy)
    with make_proxied_pool(autocommit=True).connection() as connection:
        assert len({run(connection, "select connection_id()") for _ in range(3)}) == 3
        run(connection, "begin")
        assert len({run(connection, "select connection_id(), count(*) from t") for _ in range(3)}) == 1


# Old servers and slow networks


class Old(Proxy):
    """A proxy that hides authentication plugins, like Sphinx, Manticore and old proxies, which do not have them."""

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection(*self._target)
        greeting = bytearray(await server_reader.read(65536))
        upper_capabilities = greeting.index(b"\0", 5) + 1 + 4 + 8 + 1 + 2 + 1 + 2
        greeting[upper_capabilities] &= ~(CLIENT.PLUGIN_AUTH >> 16) & 0xFF
        client.write(greeting)
        response = bytearray(await client_reader.read(65536))
        response[4 + 2] &= ~(CLIENT.PLUGIN_AUTH >> 16) & 0xFF  # PyMySQL claims it all the same
        server.write(response)
        await self._link(client_reader, client, server_reader, server)


def test_a_server_without_authentication_plugins(make_pool: MakePool, server: Server, on_mariadb: bool) -> None:
    """The pool can connect to it, as PyMySQL can."""
    if not on_mariadb:
        pytest.skip("MySQL 9 lets no such client in")
    with Old(server.host, server.port) as old:
        with pymysql.connect(**{**server.connect_kwargs, "port": old.port, "host": old.host}, ssl_disabled=True) as raw:
            assert not raw.server_capabilities & CLIENT.PLUGIN_AUTH  # type: ignore[attr-defined]
        pool = make_pool(size=1, host=old.host, port=old.port, ssl_disabled=True)
        for _ in range(2):
            assert pool.get_connection().execute_query("select 1") == ((1,),)


def test_a_reply_that_comes_in_pieces(make_pool: MakePool, server: Any) -> None:
    """The whole reply is read, and the session is kept."""

    class Crumbs(Proxy):
        async def _pump(self, reader: Any, writer: Any) -> None:
            with suppress(OSError):  # a connection reset is treated like any other end
                while data := await reader.read(4096):
                    for at in range(0, len(data), 5):
                        writer.write(data[at : at + 5])
                        await writer.drain()
                        await asyncio.sleep(0.0005)
            writer.close()

    with Crumbs(server.host, server.port) as proxy:
        pool = make_pool(size=1, host=proxy.host, port=proxy.port, ssl_disabled=True, autocommit=True)
        for _ in range(5):
            pool.get_connection().execute_query("do 1")
        assert pool.stats().opened == 1


def test_an_answer_without_rows_at_the_look_at_a_first_reset(
    make_proxied_pool: MakePool, protocol_proxy: ProtocolProxy
) -> None:
    """If the check of a first reset gets a reply without rows, the session is closed; no borrower gets an error."""
    seen = 0

    def answer(command: Command) -> list[bytes] | None:
        nonlocal seen
        is_look = b"SHOW SESSION VARIABLES" in command.text
        seen += is_look
        return [OK] if is_look else None

    pool = make_proxied_pool()
    with pool.connection() as connection:
        run(connection, "set @left = 1")
    protocol_proxy.answer = answer
    connection = pool.get_connection()
    assert run(connection, "select @left") == ((None,),)
    assert seen == 1

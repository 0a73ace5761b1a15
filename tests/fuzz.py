"""Random statements by one borrower, then a check of what the next one gets: `tests/fuzz.py [--seconds 30] [--seed N]`.

The next borrower has to get the same as with a new session, whatever the statements were and however the connection was
returned; what was not committed must stay so, and what a block has written must be there. A finding is reduced to the
fewest statements and printed, and makes the exit status 1; the printed seed reproduces it.

Not checked, because the README excludes it: what a view or a stored function does inside a SELECT, and FOUND_ROWS(),
ROW_COUNT() and SHOW WARNINGS before the borrower's own first statement.

It takes table locks and the global read lock for short times, so it needs a server of its own.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable

import pymysql
from fuzz_grammar import (
    CALLS,
    CLEAN_UP,
    DEFAULT_ROLE,
    FIRST_OF_SEEDS,
    GROUP,
    LOCKS,
    NAME,
    ODD_CALLS,
    OTHER,
    PREPARED,
    ROLE,
    TABLES,
    TEMPORARY,
    VARIABLES,
    VARIATIONS,
    Grammar,
    Step,
    schema,
)
from proxy import Proxy
from pymysql.constants import CLIENT, SERVER_STATUS
from pymysql.cursors import Cursor, DictCursor, SSCursor
from server import running_server

import pymysqlpool
from pymysqlpool import ConnectionPool, PoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server import Server

    Connection = pymysql.connections.Connection[Any]
    State = dict[str, Any]

# Variables of the server that are different in each session, or that any statement changes. Those that matter are
# checked separately.
VOLATILE = {
    "error_count", "external_user", "gtid_binlog_pos", "gtid_binlog_state", "gtid_current_pos", "gtid_executed",
    "gtid_slave_pos", "identity", "in_transaction", "last_gtid", "last_insert_id", "pseudo_thread_id", "rand_seed1",
    "rand_seed2", "statement_id", "timestamp", "warning_count",
}  # fmt: skip
#: Variables of replication, which MariaDB lists for the session, but which all sessions share.
SHARED = ("gtid_slave_", "max_relay_", "relay_", "replicate_", "slave_", "sql_slave_")
#: What the pool sets for its own use in each session.
TRACKER = "variable session_track_state_change"

#: The attributes of PyMySQL's connection that a borrower may change.
ATTRIBUTES = [
    "_connect_attrs", "_local_infile", "_read_timeout", "_write_timeout", "autocommit_mode", "charset", "cursorclass",
    "db", "decoders", "encoders", "encoding", "host", "init_command", "max_allowed_packet", "port", "sql_mode",
    "use_unicode", "user",
]  # fmt: skip

#: Seconds that a slow network takes in each direction.
LATENCY = 0.005
#: How long the server may take to end a session that the pool has closed.
PATIENCE = 5.0
#: The timeout, in seconds, of a borrow that should not have to wait at all.
GENEROUS = 10.0

#: The errors that a borrower must not get if no other thread uses its connection.
MISTAKES = (PoolError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


class Broken(Exception):
    """A promise was not kept."""


# Trials


@dataclass(frozen=True)
class Round:
    """What one borrower does, how it returns the connection, and with what the next one begins on each connection."""

    steps: tuple[Step, ...]
    ending: str
    firsts: tuple[str, ...]
    #: Whether the next borrower is already waiting.
    in_line: bool
    #: Whether the network is slow from the return to the next borrower's first answer: what it begins with is written
    #: before it is known how the return went.
    slow: bool


@dataclass(frozen=True)
class Trial:
    """Rounds on a pool of its own."""

    autocommit: bool | None
    variation: str
    size: int
    rounds: tuple[Round, ...]

    @property
    def is_slow(self) -> bool:
        """Whether the network is slow in any round."""
        return any(one.slow for one in self.rounds)

    def __str__(self) -> str:
        lines = [f"a pool of {self.size}, autocommit={self.autocommit}, {self.variation}"]
        for number, one in enumerate(self.rounds, 1):
            lines += [f"{number}. borrower"]
            lines += [f"     {step}" for step in one.steps]
            lines += [f"   returned by: {one.ending}"]
            extras = ", waiting in line" * one.in_line + ", over a slow network" * one.slow
            lines += [f"   the next one begins with: {', '.join(one.firsts)}{extras}"]
        return "\n".join(lines)


def make_trial(seed: int, settings: list[str], *, on_mariadb: bool) -> Trial:
    """The trial of this seed."""
    chance = random.Random(seed)  # noqa: S311  no secret
    grammar = Grammar(chance, settings, on_mariadb=on_mariadb)
    size = chance.choice([1, 1, 2])
    slow = chance.random() < 0.5

    def make_round() -> Round:
        return Round(
            steps=tuple(step for _ in range(chance.choice([1, 1, 2, 2, 3, 4, 5, 7])) for step in grammar.steps()),
            ending=chance.choice([*ENDINGS]),
            firsts=tuple(chance.choice([*FIRSTS, *WRITING]) for _ in range(size)),
            in_line=size == 1 and chance.random() < 0.2,
            slow=slow and chance.random() < 0.7,
        )

    return Trial(
        autocommit=chance.choice([True, True, False, False, None]),
        variation=chance.choice(["plain"] * 5 + ["no database", "no database", "a default role"] + [*VARIATIONS]),
        size=size,
        rounds=tuple(make_round() for _ in range(chance.choice([1, 2, 3, 5, 8]))),
    )


# The server, seen from outside the pool


class World:
    """The schema, the users, and connections that watch. After a trial all is as before."""

    def __init__(self, server: Server, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy
        self.name, self.other = NAME, OTHER
        self.names: list[str] = []
        self.admin = self.connect(
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            init_command="set lock_wait_timeout = 1, innodb_lock_wait_timeout = 5",
        )
        self.on_mariadb = "MariaDB" in self.admin.get_server_info()
        # It sees uncommitted rows.
        self.peeper = self.connect(
            autocommit=True, init_command="set session transaction isolation level read uncommitted"
        )
        self.variables = self.variables_of_sessions()
        self.settings = self.settings_of_sessions()
        self.fresh: dict[tuple[Any, ...], State] = {}
        self.make_users()
        self.make_schema()

    def connect(self, **kwargs: Any) -> Connection:
        """Open a connection as the administrator."""
        return pymysql.connect(**{**self.server.connect_kwargs, "ssl_disabled": True, "read_timeout": 60, **kwargs})

    def ask(self, statement: str, connection: Connection | None = None) -> tuple[Any, ...]:
        """Run a statement as the administrator, and return its rows."""
        with (connection or self.admin).cursor() as cursor:
            cursor.execute(self.named(statement))
            return cursor.fetchall()

    def named(self, text: str) -> str:
        """The text with the names of the schemas that are in use."""
        if self.name == NAME:
            return text
        return (
            text.replace(f"{NAME}.", f"{self.name}.").replace(f"`{NAME}`", f"`{self.name}`").replace(OTHER, self.other)
        )

    def make_users(self) -> None:
        """Create a user with roles but no default role, one with a default role, and one without roles."""
        for role in (ROLE, DEFAULT_ROLE):
            self.ask(f"drop role if exists {role}")
            self.ask(f"create role {role}")
        for kind in ("roles", "default", "plain"):
            user = f"{NAME}_{kind}@'%'"
            self.ask(f"drop user if exists {user}")
            self.ask(f"create user {user}")
            self.ask(f"grant all on *.* to {user}")
            if kind != "plain":
                self.ask(f"grant {ROLE} to {user}")
                self.ask(f"grant {DEFAULT_ROLE} to {user}")
        for_user = "for" if self.on_mariadb else "to"
        self.ask(f"set default role {DEFAULT_ROLE} {for_user} {NAME}_default@'%'")
        if not self.on_mariadb:
            self.drop_group()
            with suppress(pymysql.Error):  # the machine may have none
                self.ask(f"create resource group {GROUP} type = user")

    def drop_group(self) -> None:
        """Drop the resource group, if there is one."""
        with suppress(pymysql.Error):
            self.ask(f"drop resource group {GROUP} force")

    def variables_of_sessions(self) -> list[str]:
        """The variables that each session has of its own."""
        return [name for (name, _) in self.ask("show session variables") if self.can(f"select @@session.{name}")]

    def settings_of_sessions(self) -> list[str]:
        """Those of them that the session may set."""
        with self.connect() as scratch:
            return [
                name
                for name in self.variables
                if not name.startswith(SHARED) and self.can(f"set session {name} = default", scratch)
            ]

    def can(self, statement: str, connection: Connection | None = None) -> bool:
        """Whether the server does this."""
        try:
            self.ask(statement, connection)
        except pymysql.Error:
            return False
        return True

    def make_schema(self) -> None:
        """Create two schemas, under new names if the last ones are locked forever."""
        self.name = f"{NAME}_{len(self.names)}" if self.names else NAME
        self.other = f"{self.name}_other"
        self.names += [self.name, self.other]
        for name in (self.name, self.other):
            self.ask(f"drop database if exists `{name}`")
            self.ask(f"create database `{name}`")
        self.ask(f"create table {OTHER}.t1 {TABLES['t1']}")
        self.admin.select_db(self.name)
        # Triggers run as the user that has created them, and do not set roles for anybody else.
        with self.connect(database=self.name, user=f"{NAME}_roles", password="", autocommit=True) as owner:
            for statement in schema(on_mariadb=self.on_mariadb):
                self.can(statement, owner)  # not every server allows every effect everywhere
        self.dirty = self.connect(database=self.name)
        self.ask("insert into dirty values (1)", self.dirty)
        self.clean_up()

    def clean_up(self) -> None:
        """Restore the rows."""
        self.roll_back_prepared()
        with self.admin.cursor() as cursor:
            cursor.execute(self.named(";".join(CLEAN_UP)))
            while cursor.nextset():
                pass

    def roll_back_prepared(self) -> None:
        """End the XA transactions that were prepared, which outlive their sessions on purpose."""
        deadline = time.monotonic() + PATIENCE
        while rows := self.ask("xa recover"):
            for row in rows:
                with suppress(pymysql.Error):  # its session has not ended yet
                    self.ask(f"xa rollback '{_text(row[3])}'")
            if time.monotonic() > deadline:
                raise Broken("a session has a prepared XA transaction for ever")

    def key(self, trial: Trial) -> tuple[Any, ...]:
        """What a fresh session depends on."""
        return self.name, trial.autocommit, trial.variation, trial.is_slow

    def committed(self) -> frozenset[int]:
        """The committed rows."""
        return frozenset(row[0] for row in self.ask(f"select id from {NAME}.ledger"))

    def written(self) -> frozenset[int]:
        """The rows that are there, committed or not."""
        return frozenset(row[0] for row in self.ask(f"select id from {NAME}.ledger", self.peeper))

    def wait_for(self, session: int) -> None:
        """Let the server finish the session's commands: it may still be working if a reply is not read."""
        deadline = time.monotonic() + 1
        while [row for row in self.ask("show processlist") if row[0] == session and row[4] not in ("Sleep", "Killed")]:
            if time.monotonic() > deadline:  # it waits for the rows to be read
                return

    def locks(self) -> list[tuple[int | None, Any]]:
        """The locks of the pool's sessions, named locks and others, each with its holder, if known."""
        names = ", ".join(f"is_used_lock('{lock}')" for lock in LOCKS)
        held = zip(self.ask(f"select {names}")[0], LOCKS)
        locks: list[tuple[int | None, Any]] = [(holder, f"named lock {lock}") for holder, lock in held if holder]
        return locks + (self.locks_of_mariadb() if self.on_mariadb else self.locks_of_mysql())

    def locks_of_mysql(self) -> list[tuple[int | None, Any]]:
        """The metadata locks, which named locks are too."""
        return [
            (row[0], row[1:])
            for row in self.ask(
                "select processlist_id, object_type, object_schema, object_name, lock_type "
                "from performance_schema.metadata_locks join performance_schema.threads on owner_thread_id = thread_id "
                f"where processlist_user like '{NAME}%'"
            )
        ]

    def locks_of_mariadb(self) -> list[tuple[int | None, Any]]:
        """The locks that block another session, which waits for a second."""
        tables = ", ".join(f"{NAME}.{table} write" for table in TABLES if table != "dirty")
        locks: list[tuple[int | None, Any]] = []
        for statement, after in (
            (f"lock tables {tables}, {OTHER}.t1 write", "unlock tables"),
            ("backup stage start", "backup stage end"),
            (f"alter table {NAME}.t1 comment 'x'", "do 0"),
        ):
            try:
                self.ask(statement)
                self.ask(after)
            except pymysql.Error as error:
                locks.append((None, f"{statement[:12]}...: {error}"))
        return locks

    def close(self) -> None:
        """Leave nothing on the server."""
        self.dirty.close()
        for name in self.names:
            with suppress(pymysql.Error):  # locked forever
                self.ask(f"drop database if exists `{name}`")
        for kind in ("roles", "default", "plain"):
            self.ask(f"drop user {NAME}_{kind}@'%'")
        self.ask(f"drop role {ROLE}, {DEFAULT_ROLE}")
        if not self.on_mariadb:
            self.drop_group()
        self.peeper.close()
        self.admin.close()


def _ask(connection: Any, statement: str) -> tuple[Any, ...]:
    """The rows of a statement, whatever the class of cursor that the connection has."""
    with connection.cursor(Cursor) as cursor:
        cursor.execute(statement)
        rows: tuple[Any, ...] = cursor.fetchall()
        return rows


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin1")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:150]} ... {text[-150:]}"


# What a session is


def attributes(connection: Any) -> State:
    """The attributes of PyMySQL's connection, before any statement."""
    state = {f"attribute {name}": getattr(connection, name, None) for name in ATTRIBUTES}
    state["attribute client_flag"] = connection.client_flag & ~CLIENT.SESSION_TRACK
    state["attribute mine"] = hasattr(connection, "mine")
    for name in ("decoders", "encoders", "_connect_attrs"):
        state[f"attribute {name}"] = dict(state[f"attribute {name}"])
    state["attribute _connect_attrs"].pop("_pid", None)
    state["insert_id()"] = connection.insert_id() or 0
    state["get_autocommit()"] = connection.get_autocommit()
    state["open"] = connection.open
    return state


def has_transaction(connection: Any) -> bool:
    """Whether the session is in a transaction, by the status that the server sends with OK."""
    connection.query("do 0")
    return bool(connection.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)


def looks(world: World) -> dict[str, str]:
    """The queries to a session. What fails in a new session has to fail."""
    variables = ", ".join(f"@{name}" for name in [*VARIABLES, "boot", "first"])
    questions = {
        "database(), current_user(), current_role(), last_insert_id()": "select {}",
        variables: "select {}",
        "the clock goes": "select abs(@@timestamp - unix_timestamp(sysdate())) < 100",
        "rand() has known seeds": f"select abs(rand() - {FIRST_OF_SEEDS}) < 1e-12",
        "optimizer trace": "select query from information_schema.optimizer_trace",
        "profiles": "show profiles",
        "handler t1": "handler {0}.t1 read first",
        "handler h": "handler h read first",
        "savepoint": "release savepoint sp1",
    }
    if world.on_mariadb:
        questions["lastval()"] = "select lastval({0}.s1)"
    else:
        questions["resource group"] = (
            "select resource_group from performance_schema.threads where processlist_id = connection_id()"
        )
    for name in PREPARED:
        questions[f"prepared {name}"] = f"execute {name}"
    for database in (world.name, world.other):
        for name in TEMPORARY:
            questions[f"table {database}.{name}"] = f"show create table `{database}`.{name}"
    return {name: text.replace("{}", name).replace("{0}", world.name) for name, text in questions.items()}


def state_of(connection: Any, world: World) -> State:
    """The state of a session, as it reports it."""
    names = [name for name in world.variables if name not in VOLATILE]
    [values] = _ask(connection, "select " + ", ".join(f"@@session.{name}" for name in names))
    state = {f"variable {name}": value for name, value in zip(names, values)}
    for name, look in looks(world).items():
        try:
            state[name] = _ask(connection, look)
            if look.startswith("show create table"):
                state[name] = "TEMPORARY" if "TEMPORARY" in str(state[name]) else "a table"
        except pymysql.Error as error:
            if not connection.open:
                raise
            state[name] = f"error {error.args[0]}"
    return state


def differences(found: State, expected: State) -> list[str]:
    """The differences, as text."""
    return [
        f"{name} is {_short(found.get(name))}, in a fresh session {_short(expected.get(name))}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]


# How a statement is run


def _read_all(cursor: Any) -> None:
    cursor.fetchall()
    while cursor.nextset():
        cursor.fetchall()


def run_statement(connection: Any, step: Step, text: str, left: list[Any]) -> None:
    """Run it as the step says; `left` keeps the cursors that are not closed."""
    if step.how == "query":
        connection.query(text)
        return
    kinds = {"cursor": Cursor, "rows left": Cursor, "dict": DictCursor}
    cursor = connection.cursor(kinds.get(step.how, SSCursor))
    if step.how in ("rows left", "unread"):
        left.append(cursor)
        cursor.execute(text)
        return
    with cursor:
        cursor.execute(text)
        if step.how == "half read":
            cursor.fetchone()
        else:
            _read_all(cursor)


# How a connection is returned. Each function gets the game, calls `game.work` with the borrowed connection, and
# `game.leave` just before the return.


def _close(game: Game) -> None:
    connection = game.borrowed()
    game.work(connection)
    game.leave(commits=False)
    connection.close()


def _put(game: Game) -> None:
    connection = game.borrowed()
    game.work(connection)
    game.leave(commits=False)
    game.pool.put_connection(connection)


def _close_elsewhere(game: Game) -> None:
    connection = game.borrowed()
    game.work(connection)
    game.leave(commits=False)
    game.others.submit(connection.close).result()


def _close_after(method: str) -> Callable[[Game], None]:
    def end(game: Game) -> None:
        connection = game.borrowed()
        game.work(connection)
        with suppress(pymysql.Error):
            getattr(connection, method)()
        game.leave(commits=False)
        connection.close()

    return end


def _close_amid(statement: str, cursor_class: type[Cursor]) -> Callable[[Game], None]:
    def end(game: Game) -> None:
        connection = game.borrowed()
        game.work(connection)
        cursor = connection.cursor(cursor_class)
        with suppress(pymysql.Error):
            cursor.execute(game.world.named(statement))
            cursor.fetchone()
        game.leave(commits=False)
        connection.close()

    return end


def _drop(game: Game) -> None:
    connection = game.borrowed()
    game.work(connection)
    game.leave(commits=False)
    game.left.clear()
    del connection  # the last thing that refers to it


def _execute_query(game: Game) -> None:
    connection = game.borrowed()
    game.work(connection)
    game.leave(commits=True)
    connection.execute_query("select 1")


def _block(game: Game) -> None:
    with game.borrowed() as cursor:
        game.work(cursor.connection)
        game.leave(commits=True)


def _block_of_pool(game: Game) -> None:
    with game.pool.connection(timeout=GENEROUS) as connection:
        game.work(connection)
        game.leave(commits=True)


def _block_of_returned(game: Game) -> None:
    connection = game.borrowed()
    connection.close()
    with connection as cursor:
        game.work(cursor.connection)
        game.leave(commits=True)


def _block_in_block(game: Game) -> None:
    connection = game.borrowed()
    with connection, connection as cursor:
        game.work(cursor.connection)
        connection.close()
        game.leave(commits=True)


def _block_ended_elsewhere(game: Game) -> None:
    connection = game.borrowed()
    cursor = connection.__enter__()
    game.work(cursor.connection)
    game.leave(commits=True)
    game.others.submit(connection.__exit__, None, None, None).result()


def _block_amid(statement: str, cursor_class: type[Cursor]) -> Callable[[Game], None]:
    def end(game: Game) -> None:
        with game.borrowed() as cursor:
            connection = cursor.connection
            game.work(connection)
            game.left.append(cursor := connection.cursor(cursor_class))
            with suppress(pymysql.Error):
                cursor.execute(game.world.named(statement))
            game.leave(commits=True)

    return end


def _block_failing(error: BaseException) -> Callable[[Game], None]:
    def end(game: Game) -> None:
        try:
            with game.borrowed() as cursor:
                game.work(cursor.connection)
                game.leave(commits=False)
                raise error
        except Broken:
            raise
        except BaseException as caught:
            if caught is not error:
                raise Broken(f"the block raised {caught!r} instead") from caught

    return end


_ROWS = f"select a.a from {NAME}.t1 a, {NAME}.t1 b, {NAME}.t1 c, {NAME}.t1 d"
_RESULTS = f"call {NAME}.p_results()"
ENDINGS: dict[str, Callable[[Game], None]] = {
    "close()": _close,
    "put_connection()": _put,
    "close() in another thread": _close_elsewhere,
    "commit(), close()": _close_after("commit"),
    "rollback(), close()": _close_after("rollback"),
    "begin(), close()": _close_after("begin"),
    "close() amid rows": _close_amid(_ROWS, SSCursor),
    "close() amid results": _close_amid(_RESULTS, Cursor),
    "losing the handle": _drop,
    "execute_query()": _execute_query,
    "a block": _block,
    "a block of pool.connection()": _block_of_pool,
    "a block of a returned handle": _block_of_returned,
    "a block in a block": _block_in_block,
    "a block that another thread ends": _block_ended_elsewhere,
    "a block amid rows": _block_amid(_ROWS, SSCursor),
    "a block amid results": _block_amid(_RESULTS, Cursor),
    **{
        f"a block ended by {error!r}": _block_failing(error)
        for error in (
            ValueError("the application's"),
            KeyboardInterrupt(),
            pymysql.err.ProgrammingError(1064, "as if"),
            pymysql.err.OperationalError(1205, "as if"),
            pymysql.err.OperationalError(2013, "as if"),
        )
    },
}


# What the next borrower begins with


def _select(statement: str, cursor_class: type[Cursor] = Cursor) -> Callable[[Game, Any], None]:
    def first(game: Game, connection: Any) -> None:
        token = game.token()
        with connection.cursor(cursor_class) as cursor:
            cursor.execute(game.world.named(statement), (token,))
            game.expect(cursor.fetchone(), (token,))

    return first


def _see_what_is_not_committed(game: Game, connection: Any) -> None:
    game.expect(_ask(connection, f"select count(*) from {game.world.name}.dirty"), ((0,),))


def _see_rows(game: Game, connection: Any) -> None:
    found = frozenset(row[0] for row in _ask(connection, f"select id from {game.world.name}.ledger"))
    game.expect(found, game.world.committed())


def _write(game: Game, connection: Any) -> None:
    row = game.row()
    with connection.cursor(Cursor) as cursor:
        game.expect(cursor.execute(f"insert into {game.world.name}.ledger values ({row}, 'next')"), 1)
    if connection.get_autocommit():
        game.commits(row)


def _write_many(game: Game, connection: Any) -> None:
    rows = [game.row(), game.row()]
    with connection.cursor(Cursor) as cursor:
        cursor.executemany(f"insert into {game.world.name}.ledger (id) values (%s)", rows)
    if connection.get_autocommit():
        game.commits(*rows)


def _write_and_commit(game: Game, connection: Any) -> None:
    row = game.row()
    connection.query(f"insert into {game.world.name}.ledger values ({row}, 'next')")
    connection.commit()
    game.commits(row)


def _begin(method: Callable[[Any], object]) -> Callable[[Game, Any], None]:
    def first(game: Game, connection: Any) -> None:
        method(connection)
        connection.query(f"insert into {game.world.name}.ledger values ({game.row()}, 'next')")

    return first


def _set(game: Game, connection: Any) -> None:
    token = game.token()
    connection.query(f"set @first = '{token}'")
    game.expect(_ask(connection, "select @first"), ((token,),))
    connection.query("set @first = null")


def _do(game: Game, connection: Any) -> None:
    game.expect(has_transaction(connection), False)  # noqa: FBT003


#: Each with whether a transaction may be open after it.
FIRSTS: dict[str, tuple[Callable[[Game, Any], None], bool]] = {
    "nothing": (lambda *_: None, False),
    "SHOW": (lambda _, connection: _ask(connection, "show tables in information_schema like 'x'"), True),
    "SELECT": (_select("select %s"), False),
    "SELECT, unbuffered": (_select("select %s union all select 'more'", SSCursor), False),
    "WITH": (_select("with x as (select %s as word) select word from x"), False),
    "SELECT with a comment": (_select("/* it's */ select /* @ */ %s"), False),
    "SELECT of what is not committed": (_see_what_is_not_committed, True),
    "SELECT of the rows": (_see_rows, True),
    "INSERT": (_write, True),
    "executemany()": (_write_many, True),
    "INSERT, commit()": (_write_and_commit, True),
    "begin()": (_begin(lambda connection: connection.begin()), True),
    "START TRANSACTION": (_begin(lambda connection: connection.query("start transaction")), True),
    "BEGIN with a comment": (_begin(lambda connection: connection.query("begin /* with a comment */")), True),
    "commit()": (lambda _, connection: connection.commit(), False),
    "rollback()": (lambda _, connection: connection.rollback(), False),
    "ping()": (lambda _, connection: connection.ping(), False),
    "DO": (_do, False),
    "SET": (_set, False),
    "CALL": (_select(f"call {NAME}.p_echo(%s)"), True),
}


#: Those that do harm if the session is not clean.
WRITING = ["INSERT", "executemany()", "INSERT, commit()", "begin()", "START TRANSACTION", "BEGIN with a comment"]


class Game:
    """One trial, played on a pool of its own."""

    def __init__(self, world: World, trial: Trial, others: ThreadPoolExecutor, **options: Any) -> None:
        self.world = world
        self.trial = trial
        #: Two additional threads.
        self.others = others
        self.connect_kwargs = connect_kwargs(world, trial)
        self.pool = ConnectionPool(trial.size, "fuzz", pre_create_num=0, **self.connect_kwargs, **options)
        self.round = trial.rounds[0]
        #: The cursors that the borrower has not closed.
        self.left: list[Any] = []
        #: The future of the next borrower's connection, if that borrower is already waiting.
        self.in_line: Future[Any] | None = None
        #: Whether the borrower has done something that may cause a PoolError.
        self.is_odd = False
        #: Whether COMMIT may have done less than it should, and its borrower has got an error for it.
        self.is_vague = False
        #: Whether any borrower so far has prepared an XA transaction.
        self.has_prepared = False
        #: What rows may be committed after the return: one of these sets.
        self.expected: list[frozenset[int]] = []
        self.rows = 0
        self.tokens = 0

    def play(self) -> None:
        """Play it. A finding is raised as Broken."""
        with self.pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the server's, and those of handles that are lost on purpose
            fresh = self.fresh()
            for number, one in enumerate(self.trial.rounds, 1):
                self.round = one
                try:
                    self.borrow()
                    self.look(fresh)
                except Broken as found:
                    raise Broken(f"after borrower {number}: {found}") from found.__cause__

    # The borrower

    def borrow(self) -> None:
        """Borrow, do everything in the round, and return."""
        self.is_odd = False
        self.is_vague = self.has_prepared  # what a session that is not closed yet has prepared looks written
        self.expected = []
        try:
            ENDINGS[self.round.ending](self)
        except MISTAKES as error:
            if not self.is_odd:
                raise Broken(f"the borrower got {error!r} from the return") from error
            self.is_vague = True
        except pymysql.Error as error:
            if not self.expected:
                raise Broken(f"the borrower got {error!r} when it borrowed") from error
            self.is_vague = True
        finally:
            self.left.clear()
        if self.round.in_line or self.pool.size() != self.trial.size:
            gc.collect()
        if any("xa prepare" in step.text.lower() for step in self.round.steps):
            self.has_prepared = True
            self.world.roll_back_prepared()

    def borrowed(self) -> Any:
        """A connection."""
        return self.pool.get_connection(timeout=GENEROUS, retry_num=0)

    def work(self, connection: Any) -> None:
        """Do the round's steps, like an application that goes on after any error."""
        for step in self.round.steps:
            self.is_odd = self.is_odd or step.text in ODD_CALLS
            self.is_vague = self.is_vague or self.is_odd or "xa " in step.text.lower()
            try:
                if step.how == "call":
                    {**CALLS, **ODD_CALLS}[step.text](connection)
                else:
                    run_statement(connection, step, self.world.named(step.text), self.left)
            except MISTAKES as error:
                if not self.is_odd:
                    raise Broken(f"{step} got {error!r}") from error
            except Exception as error:  # noqa: BLE001  what the server says, or PyMySQL of what was done to it
                # What PyMySQL itself stumbles over, as bytes that it can't decode, leaves it in the middle of a reply.
                self.is_odd = self.is_odd or not isinstance(error, pymysql.Error)
            self.is_vague = self.is_vague or not connection.open
        self.world.wait_for(connection.thread_id())

    def leave(self, *, commits: bool) -> None:
        """Read the rows just before the return, and let the next borrower begin to wait, if it is to."""
        committed, written = self.world.committed(), self.world.written()
        self.expected = [written, committed] if commits else [committed]
        if self.round.slow:
            self.world.proxy.delay = LATENCY
        if self.round.in_line:
            self.in_line = self.others.submit(self.pool.get_connection, timeout=GENEROUS, retry_num=0)
            while " 1 waiting" not in repr(self.pool):
                time.sleep(0.0005)

    # The next borrower

    def look(self, fresh: State) -> None:
        """Borrow all connections, begin as the round says, and compare."""
        if not self.is_vague:
            del self.expected[1:]
        lent: list[Any] = []
        try:
            for first in self.round.firsts:
                lent.append(connection := self.in_line.result() if self.in_line else self.borrowed())
                self.in_line = None
                if self.round.slow:
                    self.world.proxy.delay = LATENCY
                try:
                    self.look_at(connection, first, fresh)
                except (pymysql.Error, UnicodeError, LookupError) as error:
                    found = self.world.committed()
                    harm = "" if found in self.expected else f", and now the rows are {sorted(found)}"
                    raise Broken(f"the next borrower, which begins with {first}, got {error!r}{harm}") from error
            self.look_at_locks({connection.thread_id() for connection in lent})
        except pymysql.Error as error:
            raise Broken(f"the next borrower got {error!r}") from error
        finally:
            self.world.proxy.delay = 0.0
            for connection in lent:
                connection.close()

    def fresh(self) -> State:
        """The state of a new session."""
        key = self.world.key(self.trial)
        if key not in self.world.fresh:
            self.world.fresh[key] = fresh_state(self.world, self.connect_kwargs)
        return self.world.fresh[key]

    def look_at(self, connection: Any, first: str, fresh: State) -> None:
        """Begin, then compare the session with a new one."""
        state = attributes(connection)
        check(differences(state, {name: fresh[name] for name in state}))
        begin, may_open_transaction = FIRSTS[first]
        begin(self, connection)
        self.world.proxy.delay = 0.0
        if not may_open_transaction and has_transaction(connection):
            raise Broken("the next borrower is in a transaction")
        connection.rollback()
        found = self.world.committed()
        # What is prepared is written, but not yet committed.
        is_between = self.has_prepared and self.expected[-1] <= found <= self.expected[0]
        if found not in self.expected and not is_between:
            more, less = sorted(found - self.expected[0]), sorted(self.expected[0] - found)
            raise Broken(f"rows were committed that should not be: {more}, or are missing: {less}")
        self.expected = [found]
        state.update(state_of(connection, self.world))
        check(differences(state, fresh))
        connection.rollback()

    def look_at_locks(self, sessions: set[int]) -> None:
        """Check that nothing is locked; a session that the pool has closed may take a moment to end."""
        deadline = time.monotonic() + PATIENCE
        while locks := self.world.locks():
            if time.monotonic() > deadline or any(holder in sessions for holder, _ in locks):
                raise Broken(f"these are still locked: {[lock for _, lock in locks]}")

    def token(self) -> str:
        """A word that is in no earlier reply."""
        self.tokens += 1
        return f"token {self.tokens}"

    def row(self) -> int:
        """The number of a new row: the borrower's are above 0."""
        self.rows += 1
        return -self.rows

    def commits(self, *rows: int) -> None:
        """Record that these rows are committed now."""
        self.expected = [expected.union(rows) for expected in self.expected]

    def expect(self, found: object, expected: object) -> None:
        """Check that the reply is the right one."""
        if found != expected:
            raise Broken(f"the next borrower's first answer is {found!r}, not {expected!r}")


def check(lines: list[str]) -> None:
    """Check that there are no differences."""
    if lines:
        raise Broken("; ".join(lines))


def connect_kwargs(world: World, trial: Trial) -> dict[str, Any]:
    """The keywords of the trial's connections."""
    end = world.proxy if trial.is_slow else world.server
    return {
        "host": end.host,
        "port": end.port,
        "user": f"{NAME}_roles",
        "password": "",
        "database": world.name,
        "ssl_disabled": True,
        "read_timeout": 5,
        "autocommit": trial.autocommit,
        **VARIATIONS[trial.variation],
    }


def fresh_state(world: World, kwargs: dict[str, Any]) -> State:
    """The states of sessions without a pool, and of the first session of a pool."""
    states = []
    for _ in range(2):
        with pymysql.connect(**kwargs) as connection:
            state = attributes(connection)
            states.append({**state, **state_of(connection, world)})
    if lines := differences(*states):
        raise SystemExit(f"two fresh sessions differ, so nothing can be compared: {lines}")
    with ConnectionPool(1, "fresh", **kwargs) as pool, pool.connection() as connection:
        state = attributes(connection)
        state.update(state_of(connection, world))
    expected = {**states[0], TRACKER: state[TRACKER]}
    if lines := differences(state, expected):
        raise Broken("; ".join(["the first session of a pool differs", *lines]))
    return expected


# Reduction


class Fuzzer:
    """Plays trials, and reduces the one that finds something."""

    def __init__(self, server: Server, proxy: Proxy, others: ThreadPoolExecutor, **options: Any) -> None:
        self.world = World(server, proxy)
        self.others = others
        self.options = options
        self.counts: Counter[str] = Counter()

    def trial(self, seed: int) -> Trial:
        """The trial of this seed."""
        return make_trial(seed, self.world.settings, on_mariadb=self.world.on_mariadb)

    def finding(self, trial: Trial) -> str | None:
        """Play the trial, and return the finding, if there is one."""
        try:
            Game(self.world, trial, self.others, **self.options).play()
        except Broken as found:
            self.look_at_the_server(trial)
            return str(found)
        finally:
            self.clean_up()
        return None

    def look_at_the_server(self, trial: Trial) -> None:
        """Check that the reference for comparisons is still valid: somebody may have set a global variable."""
        before = self.world.fresh.get(self.world.key(trial))
        if before is None:
            return
        now = fresh_state(self.world, connect_kwargs(self.world, trial))
        if lines := differences(now, before):
            raise SystemExit(f"the server is not what it was, so nothing can be compared: {lines}")

    def clean_up(self) -> None:
        """Restore everything; in a new schema if the last one is locked forever."""
        try:
            self.world.clean_up()
        except (Broken, pymysql.Error):
            self.counts["schemas locked for good"] += 1
            self.world.make_schema()

    def run(self, seed: int, seconds: float) -> tuple[int, Trial, str] | None:
        """Play one trial after the other, and return the first finding with its seed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            trial = self.trial(seed)
            self.counts["trials"] += 1
            self.counts["borrowers"] += len(trial.rounds)
            self.counts["statements"] += sum(len(one.steps) for one in trial.rounds)
            if found := self.finding(trial):
                return seed, trial, found
            seed += 1
        return None

    def reduced(self, trial: Trial, seconds: float) -> tuple[Trial, str]:
        """The simplest trial found in this time that still has a finding, and the finding."""
        deadline = time.monotonic() + seconds
        found = None
        for _ in range(10):
            found = found or self.finding(trial)
        if found is None:
            return trial, "nothing when it was repeated: it depends on the moment"
        again = True
        while again:
            again = False
            for candidate in simpler(trial):
                if time.monotonic() > deadline:
                    return trial, found
                if finding := self.finding(candidate):
                    trial, found, again = candidate, finding, True
                    break
        return trial, found


def simpler(trial: Trial) -> Iterator[Trial]:
    """The trials that are simpler in one respect, the much simpler ones first."""
    for number in range(len(trial.rounds)):
        if len(trial.rounds) > 1:
            yield replace(trial, rounds=trial.rounds[:number] + trial.rounds[number + 1 :])
    for number, one in enumerate(trial.rounds):
        for simple in simpler_rounds(one):
            yield replace(trial, rounds=(*trial.rounds[:number], simple, *trial.rounds[number + 1 :]))
    if trial.size > 1:
        rounds = tuple(replace(one, firsts=one.firsts[:1]) for one in trial.rounds)
        yield replace(trial, size=1, rounds=rounds)
    if trial.variation != "plain":
        yield replace(trial, variation="plain")
    if trial.autocommit is not True:
        yield replace(trial, autocommit=True)


def simpler_rounds(one: Round) -> Iterator[Round]:
    """The same for a round."""
    yield from with_fewer_steps(one)
    if one.in_line:
        yield replace(one, in_line=False)
    if one.slow:
        yield replace(one, slow=False)
    for ending in ("close()", "a block"):
        if one.ending == ending:
            break
        yield replace(one, ending=ending)
    if (simple := tuple("nothing" for _ in one.firsts)) != one.firsts:
        yield replace(one, firsts=simple)


def with_fewer_steps(one: Round) -> Iterator[Round]:
    """The same with fewer or simpler steps."""
    for size in (len(one.steps) // 2, 1):
        for start in range(0, len(one.steps), size) if size else ():
            yield replace(one, steps=one.steps[:start] + one.steps[start + size :])
    for number, step in enumerate(one.steps):
        plain = step.plain or step.text
        for simple_step in (replace(step, text=plain), replace(step, how="query", text=plain)):
            if step.how != "call" and simple_step != step:
                yield replace(one, steps=(*one.steps[:number], simple_step, *one.steps[number + 1 :]))


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9, help="of the first trial (default: any)")
    parser.add_argument("--reset", default="auto", help="the pool's `reset` (default: %(default)s)")
    parser.add_argument("--go-on", action="store_true", help="after a finding, until the time is over")
    parser.add_argument(
        "--self-check", action="store_true", help="a session for each borrower: nothing of another can be found"
    )
    given = parser.parse_args()
    pymysqlpool.logger.setLevel("CRITICAL")
    options: dict[str, Any] = {"reset": given.reset}
    if given.self_check:
        options["con_lifetime"] = 1e-9
    print(f"seed {given.seed}", flush=True)
    with running_server() as server, Proxy(server.host, server.port) as proxy, ThreadPoolExecutor(2) as others:
        fuzzer = Fuzzer(server, proxy, others, **options)
        try:
            return report(fuzzer, given)
        finally:
            fuzzer.world.close()


def report(fuzzer: Fuzzer, given: argparse.Namespace) -> int:
    """Run, and print what is found."""
    started = time.monotonic()
    seed, findings = given.seed, 0
    while (left := given.seconds - (time.monotonic() - started)) > 0 and (given.go_on or not findings):
        if (finding := fuzzer.run(seed, left)) is None:
            break
        findings += 1
        seed, trial, found = finding
        print(f"\nFOUND with --seed {seed}: {found}", flush=True)
        trial, found = fuzzer.reduced(trial, 60)
        print(f"Reduced to {trial}\nwhich finds: {found}", flush=True)
        seed += 1
    counts = ", ".join(f"{count} {what}" for what, count in fuzzer.counts.items())
    print(f"{findings or 'no'} findings in {time.monotonic() - started:.0f} s with seed {given.seed}: {counts}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

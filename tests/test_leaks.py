from __future__ import annotations

import gc
import time
import uuid
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

import pymysql
import pytest
from protocol_proxy import OK, Command, ProtocolProxy
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor, SSCursor

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin
    from server import Server

    Plain = pymysql.connections.Connection[Any]
    MakePool = Callable[..., pymysqlpool.ConnectionPool]

Deed = Callable[[Any], object]
Probe = Union[str, Callable[[Any, "Plain"], object]]


class Boom(Exception):
    """The application's own failure."""


class Leak(NamedTuple):
    """What a borrower leaves in its session, and what shows it to whoever has the session next."""

    deed: str | Deed
    """SQL, or something else done to the connection."""
    probe: Probe
    """A query of the session itself, or of another that knows about it."""
    connect: dict[str, Any] = {}  # noqa: RUF012 - the default of a NamedTuple
    only: str = ""
    """The server that has this kind of state; both where empty."""
    outside: bool = False
    """Whether the probe sees the session from outside, when the server gets round to it."""


def ask(connection: Any, sql: str) -> Any:
    """All rows, or the code of the error that came in their place."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    except pymysql.Error as error:
        return error.args[0]


def run(sql: str) -> Deed:
    """Execute the statements, each on a line of its own, as an application does."""

    def deed(connection: Any) -> None:
        with connection.cursor() as cursor:
            for statement in sql.split(";\n"):
                cursor.execute(statement)

    return deed


def failing(sql: str) -> Deed:
    """Execute a statement that fails, and go on."""

    def deed(connection: Any) -> None:
        with connection.cursor() as cursor, pytest.raises(pymysql.Error):
            cursor.execute(sql)

    return deed


def attribute(name: str, value: object) -> Leak:
    """Something set on the Python object."""
    return Leak(
        lambda connection: setattr(connection, name, value), lambda connection, _: getattr(connection, name, None)
    )


def in_transaction(connection: Any, admin: Plain) -> Any:
    trx = "select trx_id is not null from information_schema.innodb_trx where trx_mysql_thread_id = {}"
    return ask(admin, trx.format(connection.server_thread_id[0]))


def level_of_next_transaction(connection: Any, admin: Plain) -> Any:
    """Whether a new row shows in a transaction that has read the table already."""
    run("start transaction;\nselect count(*) from news")(connection)
    before = ask(connection, "select count(*) from news")
    run(f"insert into {connection.db.decode()}.news values (1)")(admin)
    after = ask(connection, "select count(*) from news")
    connection.rollback()
    return before == after


def metadata_lock(connection: Any, admin: Plain) -> Any:
    locks = "performance_schema.metadata_locks join performance_schema.threads on owner_thread_id = thread_id"
    known = f"select distinct object_type, lock_type from {locks} where processlist_id = {{}} and "
    known += "(object_name = 'old' or object_type = 'BACKUP LOCK')"
    return ask(admin, known.format(connection.server_thread_id[0]))


def leave_unread(sql: str) -> Deed:
    """Read nothing, or not all, of what comes."""

    def deed(connection: Any) -> None:
        # Kept with the connection: a cursor that goes would read the rest.
        connection.left = cursor = connection.cursor(SSCursor if "seq" in sql else None)
        cursor.execute(sql)
        cursor.fetchone()

    return deed


def is_unread(connection: Any, _: Plain) -> bool:
    result = connection._result
    return result is not None and bool(result.unbuffered_active or result.has_next)


def rename_charset(connection: Any) -> None:
    is_there = hasattr(pymysql.connections.Connection, "set_character_set")
    getattr(connection, "set_character_set" if is_there else "set_charset")("latin1")


VARIABLE = "select @v"
NAMES = "select @@character_set_client, @@character_set_results, @@character_set_connection, @@collation_connection"
LEVEL = "show session variables where variable_name in ('tx_isolation', 'transaction_isolation')"
ON = {"autocommit": True}
OFF = {"autocommit": False}
NO_DATABASE = {"database": None}
# 0x60 is a backtick to who does not know the charset, and here the half of a letter.
GBK = {"charset": "gbk"}
SETS_IN_PASSING = [
    "select @v := 1",
    "select 1 into @v",
    "do @v := 1",
    "update t set n = (@v := 1)",
    "insert into t values (@v := 1)",
    "delete from t where n = (@v := 7)",
    "with c as (select @v := 1) select * from c",
    "drop table if exists made;\ncreate table made as select @v := 1 as n",
    "select 'it\\'s', @v := 1, '\\''",
    'select "it\'s", @v := 1, "\'"',
    "select 1 as `it's`, @v := 1, 2 as `'`",
    "/* it's */ select @v := '1'",
    "select 1 -- it's\n, @v := '1'",
    "select 1 # it's\n, @v := '1'",
    "/*! set @v = 1 */",
    "/*!select*/ 1 into @v",
    "get diagnostics @v = number",
]

# What can be done in a stored procedure too, and there is done once more.
IN_SQL = {
    "transaction": Leak("start transaction;\ninsert into t values (1)", in_transaction, ON, outside=True),
    "transaction by select": Leak("select * from t", in_transaction, OFF, outside=True),
    "transaction by autocommit": Leak(
        "set autocommit = 0;\ninsert into t values (1)", in_transaction, ON, outside=True
    ),
    "lock by select": Leak("select * from old", metadata_lock, OFF, only="mysql", outside=True),
    "autocommit off": Leak("set autocommit = 0", "select @@autocommit", ON),
    "autocommit on": Leak("set autocommit = 1", "select @@autocommit", OFF),
    "variable": Leak("set @v = 1", VARIABLE),
    "session variable": Leak("set session wait_timeout = 1234", "select @@wait_timeout"),
    "session variable by @@": Leak("set @@lock_wait_timeout = 1234", "select @@lock_wait_timeout"),
    "names": Leak("set names latin1", NAMES),
    "character set": Leak("set character set latin1", NAMES),
    "use, prepared": Leak("execute immediate 'use mysql'", "select database()", only="mariadb"),
    "temporary table": Leak("create temporary table temp (n int)", "select * from temp"),
    "temporary table in the place of another": Leak(
        "create temporary table u (only_here int)", "select only_here from u"
    ),
    "prepared statement": Leak("prepare p from 'select 1'", "execute p"),
    "get_lock": Leak("do get_lock(database(), 0)", "select is_used_lock(database()) <=> connection_id()"),
    "get_lock by select": Leak("select get_lock(database(), 0)", "select is_used_lock(database()) <=> connection_id()"),
    "flush tables with read lock": Leak("flush tables with read lock", "update t set n = n", ON),
    "flush a table with read lock": Leak("flush tables t with read lock", "update t set n = n", ON),
    "flush a table for export": Leak("flush tables t for export", "update t set n = n", ON),
    "lock tables, prepared": Leak("execute immediate 'lock tables t read'", "select * from u", only="mariadb"),
    "lock instance": Leak("lock instance for backup", metadata_lock, only="mysql", outside=True),
    "level of next transaction": Leak("set transaction isolation level read committed", level_of_next_transaction, ON),
    "next transaction read only": Leak("set transaction read only", "insert into t values (1)", ON),
    "level of session": Leak("set session transaction isolation level serializable", LEVEL),
    "session read only": Leak("set session transaction read only", "insert into t values (1)", ON),
    "role": Leak("set role {role}", "select current_role()"),
    **{f"variable by {sql!r}": Leak(sql, VARIABLE) for sql in SETS_IN_PASSING},
}
ALONE = {
    "sql_mode": Leak("set sql_mode = 'ANSI'", "select @@sql_mode"),
    "variable between letters": Leak("select 1 as 乣, @v := 1, 2 as 乣", VARIABLE, GBK),
    # Its first half is ß in Latin-1, which is SS in capitals.
    "variable between letters of which one half has capitals": Leak("select 1 as 違, @v := 1, 2 as 違", VARIABLE, GBK),
    "variable by second statement": Leak("select 1; set @v = 1", VARIABLE, {"client_flag": CLIENT.MULTI_STATEMENTS}),
    "variable by init": Leak("set @v = 1", VARIABLE, {"init_command": "set @v = 2"}),
    "variable by trigger on insert": Leak("insert into triggers values (1)", VARIABLE),
    "variable by trigger on update": Leak("update triggers set n = n", VARIABLE),
    "names by trigger": Leak("insert into names values (1)", NAMES),
    "variable by trigger that fails": Leak(failing("delete from triggers"), VARIABLE),
    "transaction of a call that fails": Leak(failing("call fails()"), in_transaction, ON, outside=True),
    "autocommit()": Leak(lambda connection: connection.autocommit(value=False), "select @@autocommit", ON),
    "autocommit() on": Leak(lambda connection: connection.autocommit(value=True), "select @@autocommit", OFF),
    "begin()": Leak(lambda c: (c.begin(), run("select * from t")(c)), in_transaction, ON, outside=True),
    "set_character_set": Leak(rename_charset, NAMES),
    "use": Leak("use mysql", "select database()"),
    "use, no database": Leak("use mysql", "select database()", NO_DATABASE),
    "use, prepared, no database": Leak(
        "execute immediate 'use mysql'", "select database()", NO_DATABASE, only="mariadb"
    ),
    "select_db": Leak(lambda connection: connection.select_db("mysql"), "select database()"),
    "select_db, no database": Leak(lambda connection: connection.select_db("mysql"), "select database()", NO_DATABASE),
    "lock tables read": Leak("lock tables t read", "select * from u"),
    "lock tables write": Leak("lock tables t write", "select * from u"),
    "handler": Leak("handler t open", "handler t read first"),
    "backup stage": Leak("backup stage start", "backup stage end", only="mariadb"),
    "unread rows": Leak(leave_unread("select n from seq"), is_unread),
    "unread result sets": Leak(leave_unread("call two()"), is_unread),
    "cursorclass": attribute("cursorclass", DictCursor),
    "encoders": attribute("encoders", {}),
    "decoders": attribute("decoders", {}),
    "autocommit_mode": attribute("autocommit_mode", 1),
    "added attribute": attribute("added", 1),
    "inside encoders": Leak(lambda c: c.encoders.clear(), lambda c, _: len(c.encoders)),
    "inside decoders": Leak(lambda c: c.decoders.clear(), lambda c, _: len(c.decoders)),
}
TABLES = """create table t (n int) engine = innodb;
insert into t values (0);
create table u like t;
create table news like t;
create table old (n int) engine = myisam;
create table seq as select 1 as n union select 2 union select 3;
create table triggers as select 1 as n;
create table names like t;
create trigger on_insert before insert on triggers for each row set @v = 1;
create trigger on_update before update on triggers for each row set @v = 1;
create trigger on_delete before delete on triggers for each row begin set @v = 1; signal sqlstate '45000'; end;
create procedure fails() begin start transaction; insert into t values (1); signal sqlstate '45000'; end;
create procedure two() begin select 1; select 2; end;
create trigger on_names before insert on names for each row set names latin1;
create function notes() returns int no sql return @v := 1;
create function plays_role() returns int no sql begin set role {role}; return 1; end"""
LEAKS = {
    **IN_SQL,
    **{
        f"in a procedure: {name}": leak._replace(deed=f"call {{schema}}.p{n}()")
        for n, (name, leak) in enumerate(IN_SQL.items())
    },
    **ALONE,
}


def by_close(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    connection = pool.get_connection()
    deed(connection)
    connection.close()
    return connection.server_thread_id[0]


def by_block(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    with pool.get_connection() as cursor:
        deed(cursor.connection)
        return cursor.connection.server_thread_id[0]


def by_exception(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    connection = pool.get_connection()
    with suppress(Boom), connection:
        deed(connection)
        raise Boom
    return connection.server_thread_id[0]


def by_block_of_the_pool(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    with pool.connection() as connection:
        deed(connection)
        return connection.server_thread_id[0]


def by_dropping(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    connection = pool.get_connection()
    deed(connection)
    session = connection.server_thread_id[0]
    del connection
    gc.collect()
    return session


class Scene:
    """A schema with all that the deeds need, which stays as they leave it, and PyMySQL's own connections to it."""

    def __init__(self, server: Server, *, on_mariadb: bool) -> None:
        self.connect_kwargs = server.connect_kwargs
        self.here = "mariadb" if on_mariadb else "mysql"
        self.schema = f"pymysqlpool_{uuid.uuid4().hex}"
        self.role = f"role_{uuid.uuid4().hex[:20]}"

    def connect(self, **kwargs: Any) -> Plain:
        """Connect, without TLS, for which PyMySQL would build a context each time."""
        return pymysql.connect(**{**self.connect_kwargs, "ssl_disabled": True, "database": self.schema, **kwargs})

    def has(self, leak: Leak) -> bool:
        """Whether the server has this kind of state."""
        return leak.only in ("", self.here)

    def deed(self, leak: Leak) -> Deed:
        """What a borrower does."""
        return run(self.filled(leak.deed)) if isinstance(leak.deed, str) else leak.deed

    def filled(self, sql: str) -> str:
        """The statement with the names that belong here."""
        return sql.replace("{schema}", self.schema).replace("{role}", self.role)

    @contextmanager
    def set_up(self) -> Iterator[Scene]:
        """Make it all, and take it away."""
        with closing(self.connect(database=None, autocommit=True)) as admin:
            run(f"create database {self.schema};\nuse {self.schema};\ncreate role {self.role}")(admin)
            if self.here == "mysql":
                run(f"grant {self.role} to current_user()")(admin)
            run(self.filled(TABLES))(admin)
            for number, leak in enumerate(IN_SQL.values()):
                if self.has(leak):
                    body = self.filled(leak.deed).replace(";\n", "; ")
                    run(f"create procedure p{number}() begin {body}; end")(admin)
            yield self
            run(f"drop database {self.schema};\ndrop role {self.role}")(admin)


@pytest.fixture(scope="module")
def scene(server: Server, on_mariadb: bool) -> Iterator[Scene]:
    with Scene(server, on_mariadb=on_mariadb).set_up() as scene:
        yield scene


def eventually(question: Callable[[], bool], pause: float = 0.01) -> bool:
    """Ask until it is so."""
    deadline = time.monotonic() + 30
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


# InnoDB's view of its transactions is renewed only when nobody has looked at it for 0.1 s.
RENEWAL = 0.11


def is_alive(session: int, admin: Plain) -> bool:
    return ask(admin, f"select count(*) from information_schema.processlist where id = {session}") == ((1,),)


@pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # in a ring that is dropped
@pytest.mark.parametrize("way", [by_close, by_block, by_exception, by_block_of_the_pool, by_dropping])
@pytest.mark.parametrize("name", LEAKS)
def test_nothing_that_a_borrower_left_reaches_the_next(
    name: str, way: Callable[[pymysqlpool.ConnectionPool, Deed], int], scene: Scene, admin: Plain, make_pool: MakePool
) -> None:
    """What a borrower may leave in a session is gone before the next one's first command, however it was returned."""
    leak = LEAKS[name]
    if not scene.has(leak):
        pytest.skip(f"{leak.only} only")
    deed = scene.deed(leak)
    connect = {"database": scene.schema, **leak.connect}

    def probe(connection: Any) -> object:
        return ask(connection, leak.probe) if isinstance(leak.probe, str) else leak.probe(connection, admin)

    with closing(scene.connect(**connect)) as plain:
        clean = probe(plain)
        deed(plain)
        assert eventually(lambda: probe(plain) != clean, RENEWAL), "the probe can't tell"
        ask(plain, "do 0")  # reads what was left unread

    def deed_seen(connection: Any) -> None:
        deed(connection)
        assert not leak.outside or eventually(lambda: probe(connection) != clean, RENEWAL)

    pool = make_pool(size=1, **connect)
    session = way(pool, deed_seen)
    connection = pool.get_connection()
    if leak.outside:
        assert ask(connection, "select 1") == ((1,),)
        assert eventually(lambda: probe(connection) == clean, RENEWAL)
    else:
        assert probe(connection) == clean
    unique = uuid.uuid4().hex
    assert ask(connection, f"select '{unique}'") == ((unique,),)
    assert connection.server_thread_id[0] == session or eventually(lambda: not is_alive(session, admin))
    connection.close()


def test_what_is_changed_inside_an_attribute_reaches_no_other_connection(make_pool: MakePool) -> None:
    """Each of a pool's connections has mutable attributes of its own, whether it was there before the change or not."""
    names = "encoders", "decoders", "_connect_attrs"
    pool = make_pool(size=2, maxsize=3)
    culprit, other = pool.get_connection(), pool.get_connection()
    for name in names:
        assert getattr(other, name)
        getattr(culprit, name).clear()
        assert not getattr(culprit, name)
    late = pool.get_connection()
    culprit.close()
    for connection in other, late, pool.get_connection():
        assert all(getattr(connection, name) for name in names)
        connection.close()


VOLATILE = {"timestamp", "pseudo_thread_id", "rand_seed1", "rand_seed2", "session_track_state_change", "statement_id"}
UNTIDY = """set names greek collate greek_bin;
set sql_mode = 'NO_ZERO_DATE', wait_timeout = 4321, @v = 9, autocommit = 1 - @@autocommit;
set session transaction isolation level serializable"""
INIT = {"init_command": "set @v = 7, wait_timeout = 1234, autocommit = 1, sql_mode = 'NO_ZERO_IN_DATE'"}
CONNECTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "autocommit": {"autocommit": True},
    "autocommit off": {"autocommit": False},
    "autocommit of the server": {"autocommit": None},
    "charset": {"charset": "latin1"},
    "charset and collation": {"charset": "utf8mb4", "collation": "utf8mb4_bin"},
    "sql_mode": {"sql_mode": "ANSI,NO_BACKSLASH_ESCAPES"},
    "init_command": INIT,
    "init_command, autocommit": {**INIT, "autocommit": True},
    "init_command, autocommit of the server": {**INIT, "autocommit": None},
    "init_command with an answer": {"init_command": "select 1"},
    "init_command of names": {"init_command": "set names latin1"},
    "no database": {"database": None},
    "all": {**INIT, "autocommit": False, "charset": "latin1", "sql_mode": "ANSI"},
}


def state(connection: Any) -> dict[str, Any]:
    """All that a session can be asked about itself, and what PyMySQL thinks of it."""
    variables = {name: value for name, value in ask(connection, "show session variables") if name not in VOLATILE}
    [(database, variable, role)] = ask(connection, "select database(), @v, current_role()")
    python = {name: getattr(connection, name) for name in ("charset", "encoding", "autocommit_mode", "db")}
    return {**variables, **python, "in": database, "@v": variable, "as": role, "commits": connection.get_autocommit()}


@pytest.mark.parametrize("name", CONNECTS)
def test_after_a_reset_a_session_is_what_connect_made_it(name: str, scene: Scene, make_pool: MakePool) -> None:
    """A reset session is, in all that it can be asked, like one that was just opened with the same arguments."""
    connect = {"database": scene.schema, **CONNECTS[name]}
    if "collation" in connect and not hasattr(pymysql.connections.Connection, "set_character_set"):
        pytest.skip("this PyMySQL has no collation")
    with closing(scene.connect(**connect)) as plain:
        fresh = state(plain)
    pool = make_pool(size=1, **connect)
    connection = pool.get_connection()
    assert state(connection) == fresh
    run(UNTIDY + (";\nuse mysql" if connect["database"] else ""))(connection)
    untidy = state(connection)
    changed = {"character_set_client", "collation_connection", "sql_mode", "wait_timeout", "@v", "autocommit"}
    assert not any(untidy[name] == fresh[name] for name in changed)
    connection.close()
    again = pool.get_connection()
    assert again.server_thread_id[0] == connection.server_thread_id[0]
    assert state(again) == fresh
    again.close()


@pytest.mark.parametrize("autocommit", [False, None, True])
def test_what_an_init_command_begins_has_ended_after_a_reset(
    autocommit: bool | None, make_pool: MakePool, admin: Admin, database: str
) -> None:
    """What `init_command` writes in a reset is committed, as it is by `connect()`."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.logins (n int)")
        pool = make_pool(size=1, autocommit=autocommit, init_command="insert into logins values (1)")
        for logins in (1, 2, 3):
            connection = pool.get_connection()
            run("set @v = 9")(connection)  # which waits for the reset
            assert cursor.execute(f"select n from {database}.logins") == logins
            connection.close()


def test_the_look_at_a_first_reset_begins_no_transaction(make_pool: MakePool, admin: Admin, database: str) -> None:
    """Without autocommit, too, the next borrower sees what others commit after it has got its connection."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.news (n int) engine=innodb")
        pool = make_pool(size=1, autocommit=False)
        connection = pool.get_connection()
        run("set @v = 1")(connection)
        connection.close()
        with pool.connection() as other:
            assert other.server_thread_id[0] == connection.server_thread_id[0]
            assert not in_transaction(other, admin)
            cursor.execute(f"insert into {database}.news values (1)")
            assert ask(other, "select count(*) from news") == ((1,),)


class Stubborn(pymysqlpool.Connection):
    """Speaks to a server that does not know COM_RESET_CONNECTION."""

    def _write_bytes(self, data: bytes) -> None:
        super()._write_bytes(data.replace(b"\1\0\0\0\x1f", b"\1\0\0\0\x7f"))


class Mute(pymysqlpool.Connection):
    """Speaks to a server that does not tell what a statement has changed."""

    def _get_server_information(self) -> None:
        super()._get_server_information()
        self.server_capabilities &= ~CLIENT.SESSION_TRACK
        self.client_flag &= ~CLIENT.SESSION_TRACK


@pytest.mark.parametrize("reset", ["auto", "session"])
def test_a_server_that_can_not_reset_gets_a_new_connection(reset: str, scene: Scene, make_pool: MakePool) -> None:
    """Where COM_RESET_CONNECTION is unknown, what would need it is replaced, and what does not is kept."""
    pool = make_pool(size=1, database=scene.schema, connection_class=Stubborn, reset=reset, autocommit=True)
    connection = pool.get_connection()
    run("set @v = 1")(connection)
    connection.close()
    second = pool.get_connection()
    assert ask(second, VARIABLE) == ((None,),)
    assert second.server_thread_id[0] != connection.server_thread_id[0]
    second.close()
    third = pool.get_connection()
    assert ask(third, "select 3") == ((3,),)
    third.close()
    fourth = pool.get_connection()
    assert (fourth.server_thread_id[0] == third.server_thread_id[0]) is (reset == "auto")
    fourth.close()


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_proxy_that_answers_a_reset_itself(
    server: Server, admin: Admin, database: str, make_pool: MakePool, autocommit: bool
) -> None:
    """A transaction has ended also where a proxy has come to keep COM_RESET_CONNECTION from the server."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.numbers (n int) engine=innodb")
    with (
        ProtocolProxy(server.host, server.port) as proxy,
        make_pool(size=1, host=proxy.host, port=proxy.port, ssl_disabled=True, autocommit=autocommit) as pool,
    ):
        for _ in range(2):  # the first reset is looked at, and is one of the server's
            with pool.connection() as connection:
                run("set @v = 9")(connection)
        proxy.answer = lambda command: [OK] if command.is_reset else None
        connection = pool.get_connection()
        run("start transaction;\ninsert into numbers values (1);\nset @v = 9")(connection)
        connection.close()
        with pool.connection() as other:
            assert other.server_thread_id[0] == connection.server_thread_id[0]
            assert ask(other, "select count(*) from numbers") == ((0,),)


def test_more_than_was_asked_for_behind_a_reset(server: Server, make_pool: MakePool) -> None:
    """What lies behind the reply to a reset, in the same piece from the network, answers no borrower's command."""
    added = []

    def add(command: Command, reply: list[bytes]) -> list[bytes]:
        if added or b"autocommit" not in command.text:  # the last command of a reset
            return reply
        added.append(OK)
        return [*reply, OK]

    with (
        ProtocolProxy(server.host, server.port) as proxy,
        make_pool(size=1, host=proxy.host, port=proxy.port, ssl_disabled=True, autocommit=True) as pool,
    ):
        for _ in range(2):  # of the first reset the pool waits for the reply
            connection = pool.get_connection()
            run("set @v = 1")(connection)
            added.clear()
            proxy.alter = add
            connection.close()
            assert eventually(lambda: bool(added))
            with pool.connection() as other:
                run("set @w = 1")(other)
                assert ask(other, "select @v, @w") == ((None, 1),)
                assert other.server_thread_id[0] != connection.server_thread_id[0]


@pytest.mark.parametrize("deed", ["insert into triggers values (1)", "select notes()", "select 1"])
def test_a_server_without_session_tracking_is_reset_in_doubt(deed: str, scene: Scene, make_pool: MakePool) -> None:
    """Where the server does not tell what a statement has changed, each may have changed all."""
    pool = make_pool(size=1, database=scene.schema, connection_class=Mute)
    with closing(scene.connect()) as plain:
        run("set @v = 1")(plain)
        assert ask(plain, VARIABLE) == ((1,),)
    first = pool.get_connection()
    run(deed)(first)
    first.close()
    second = pool.get_connection()
    assert ask(second, VARIABLE) == ((None,),)
    assert second.server_thread_id[0] == first.server_thread_id[0]
    second.close()


def test_reset_session_undoes_what_no_client_can_see(scene: Scene, make_pool: MakePool) -> None:
    """With `reset="session"` not even what a stored function does inside a SELECT reaches the next borrower."""
    pool = make_pool(size=1, database=scene.schema, reset="session")
    probe = "select @v, nullif(current_role(), 'NONE')"
    for deed in "select notes()", "select plays_role()":
        with closing(scene.connect()) as plain:
            run(deed)(plain)
            assert ask(plain, probe) != ((None, None),)
        first = pool.get_connection()
        run(deed)(first)
        first.close()
        second = pool.get_connection()
        assert ask(second, probe) == ((None, None),)
        second.close()


def test_reset_rollback_undoes_transactions_only(scene: Scene, admin: Plain, make_pool: MakePool) -> None:
    """With `reset="rollback"` what is open is rolled back, and everything else stays."""
    pool = make_pool(size=1, database=scene.schema, reset="rollback")
    first = pool.get_connection()
    run("set @v = 1;\ninsert into t values (1)")(first)
    assert eventually(lambda: in_transaction(first, admin) == ((1,),), RENEWAL)
    first.close()
    second = pool.get_connection()
    assert ask(second, VARIABLE) == ((1,),)
    assert second.server_thread_id[0] == first.server_thread_id[0]
    assert eventually(lambda: in_transaction(second, admin) == (), RENEWAL)
    second.close()


def test_no_reset_undoes_nothing(scene: Scene, make_pool: MakePool) -> None:
    """With `reset=None` the next borrower finds the session as it was left, in the middle of a transaction."""
    pool = make_pool(size=1, database=scene.schema, reset=None)
    first = pool.get_connection()
    run("set @v = 1;\ninsert into t values (2)")(first)
    first.close()
    second = pool.get_connection()
    assert ask(second, "select @v, count(*) from t where n = 2") == ((1, 1),)
    assert second.server_thread_id[0] == first.server_thread_id[0]
    second.rollback()
    assert ask(second, "select @v, count(*) from t where n = 2") == ((1, 0),)
    second.rollback()
    second.close()


@pytest.mark.parametrize("reset", ["auto", "session", "rollback", None])
def test_a_block_is_a_unit_of_work_whatever_the_reset(reset: str | None, scene: Scene, make_pool: MakePool) -> None:
    """An exception rolls the block back, and success commits it, also where nothing is reset."""
    pool = make_pool(size=1, database=scene.schema, reset=reset)
    with pool.connection() as connection:
        run("truncate news;\ninsert into news values (1)")(connection)
    with suppress(Boom), pool.connection() as connection:
        run("insert into news values (2)")(connection)
        raise Boom
    with pool.connection() as connection:
        assert ask(connection, "select n from news") == ((1,),)


@pytest.mark.parametrize("word", ["profiling", "optimizer_trace", "resource group", "session authorization", "use x"])
def test_words_in_the_strings_of_a_write_cost_no_session(make_pool: MakePool, word: str) -> None:
    """What only looks like a statement that no reset undoes costs a reset, and nothing else."""
    pool = make_pool(size=1, autocommit=True)
    connection = pool.get_connection()
    connection.query("create table t (word varchar(80))")
    for statement in (
        "insert into t values ('{}')",
        "insert into t values ('a; b')",
        "update t set word = '{}'",
        "delete from t where word = '{}'",
    ):
        connection.query(statement.format(word))
        connection.close()
        session = connection.server_thread_id[0]
        connection = pool.get_connection()
        assert ask(connection, "select connection_id()") == ((session,),)

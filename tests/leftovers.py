"""What borrowers leave in their sessions, what shows it to the next borrower, and a schema for all of it."""

from __future__ import annotations

import gc
import uuid
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

import pymysql
import pytest
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor, SSCursor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, Deed
    from server import Server

    import pymysqlpool


Probe = Union[str, Callable[[Any, "Admin"], object]]


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


def ask_or_code(connection: Any, sql: str) -> Any:
    """All rows, or the code of the error that was raised instead."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    except pymysql.Error as error:
        return error.args[0]


def script(sql: str) -> Deed:
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


def transaction_of(connection: Any, admin: Admin) -> Any:
    trx = "select trx_id is not null from information_schema.innodb_trx where trx_mysql_thread_id = {}"
    return ask_or_code(admin, trx.format(connection.server_thread_id[0]))


def level_of_next_transaction(connection: Any, admin: Admin) -> Any:
    """Whether a transaction that has already read the table sees a new row."""
    script("start transaction;\nselect count(*) from news")(connection)
    before = ask_or_code(connection, "select count(*) from news")
    script(f"insert into {connection.db.decode()}.news values (1)")(admin)
    after = ask_or_code(connection, "select count(*) from news")
    connection.rollback()
    return before == after


def metadata_lock(connection: Any, admin: Admin) -> Any:
    locks = "performance_schema.metadata_locks join performance_schema.threads on owner_thread_id = thread_id"
    known = f"select distinct object_type, lock_type from {locks} where processlist_id = {{}} and "
    known += "(object_name = 'old' or object_type = 'BACKUP LOCK')"
    return ask_or_code(admin, known.format(connection.server_thread_id[0]))


def leave_unread(sql: str) -> Deed:
    """Read none or only some of the rows."""

    def deed(connection: Any) -> None:
        # Kept with the connection: a cursor that is finalized would read the rest.
        connection.left = cursor = connection.cursor(SSCursor if "seq" in sql else None)
        cursor.execute(sql)
        cursor.fetchone()

    return deed


def is_unread(connection: Any, _: Admin) -> bool:
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


# 0x60 is a backtick in ASCII, but here it is the second byte of a character.
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


# Statements that are run once more in a stored procedure.
IN_SQL = {
    "transaction": Leak("start transaction;\ninsert into t values (1)", transaction_of, ON, outside=True),
    "transaction by select": Leak("select * from t", transaction_of, OFF, outside=True),
    "transaction by autocommit": Leak(
        "set autocommit = 0;\ninsert into t values (1)", transaction_of, ON, outside=True
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
    "transaction of a call that fails": Leak(failing("call fails()"), transaction_of, ON, outside=True),
    "autocommit()": Leak(lambda connection: connection.autocommit(value=False), "select @@autocommit", ON),
    "autocommit() on": Leak(lambda connection: connection.autocommit(value=True), "select @@autocommit", OFF),
    "begin()": Leak(lambda c: (c.begin(), script("select * from t")(c)), transaction_of, ON, outside=True),
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


def by_dropping(pool: pymysqlpool.ConnectionPool, deed: Deed) -> int:
    connection = pool.get_connection()
    deed(connection)
    session = connection.server_thread_id[0]
    del connection
    gc.collect()
    return session


# InnoDB's view of its transactions is renewed only when nobody has looked at it for 0.1 s.
RENEWAL = 0.11


class Scene:
    """A schema with everything that the deeds need, which is not cleaned after them, and PyMySQL connections to it."""

    def __init__(self, server: Server, *, on_mariadb: bool) -> None:
        self.connect_kwargs = server.connect_kwargs
        self.here = "mariadb" if on_mariadb else "mysql"
        self.schema = f"pymysqlpool_{uuid.uuid4().hex}"
        self.role = f"role_{uuid.uuid4().hex[:20]}"

    def connect(self, **kwargs: Any) -> Admin:
        """Connect, without TLS, for which PyMySQL would build a context each time."""
        return pymysql.connect(**{**self.connect_kwargs, "ssl_disabled": True, "database": self.schema, **kwargs})

    def has(self, leak: Leak) -> bool:
        """Whether the server has this kind of state."""
        return leak.only in ("", self.here)

    def deed(self, leak: Leak) -> Deed:
        """Return the function that a borrower runs."""
        return script(self.filled(leak.deed)) if isinstance(leak.deed, str) else leak.deed

    def filled(self, sql: str) -> str:
        """The statement with this schema's names filled in."""
        return sql.replace("{schema}", self.schema).replace("{role}", self.role)

    @contextmanager
    def set_up(self) -> Iterator[Scene]:
        """Create the schema and its users, and drop them at the end."""
        with closing(self.connect(database=None, autocommit=True)) as admin:
            script(f"create database {self.schema};\nuse {self.schema};\ncreate role {self.role}")(admin)
            if self.here == "mysql":
                script(f"grant {self.role} to current_user()")(admin)
            script(self.filled(TABLES))(admin)
            for number, leak in enumerate(IN_SQL.values()):
                if self.has(leak):
                    body = self.filled(leak.deed).replace(";\n", "; ")
                    script(f"create procedure p{number}() begin {body}; end")(admin)
            yield self
            script(f"drop database {self.schema};\ndrop role {self.role}")(admin)

"""What a reset restores, what the pool restores in addition, and each value of `reset=`."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from helpers import Boom, ask, eventually, session_of
from leftovers import RENEWAL, VARIABLE, Scene, script, transaction_of
from protocol_proxy import OK, Command, ProtocolProxy
from pymysql.constants import CLIENT

import pymysqlpool

if TYPE_CHECKING:
    from helpers import Admin, MakePool
    from server import Server


# As `connect()` left it


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
    """All the state of a session that can be queried, and PyMySQL's attributes for it."""
    variables = {name: value for name, value in ask(connection, "show session variables") if name not in VOLATILE}
    [(database, variable, role)] = ask(connection, "select database(), @v, current_role()")
    python = {name: getattr(connection, name) for name in ("charset", "encoding", "autocommit_mode", "db")}
    return {**variables, **python, "in": database, "@v": variable, "as": role, "commits": connection.get_autocommit()}


@pytest.mark.parametrize("name", CONNECTS)
def test_after_a_reset_a_session_is_what_connect_made_it(name: str, scene: Scene, make_pool: MakePool) -> None:
    """A session that was reset has the same state as one that was just opened with the same arguments."""
    connect = {"database": scene.schema, **CONNECTS[name]}
    if "collation" in connect and not hasattr(pymysql.connections.Connection, "set_character_set"):
        pytest.skip("this PyMySQL has no collation")
    with closing(scene.connect(**connect)) as plain:
        fresh = state(plain)
    pool = make_pool(size=1, **connect)
    connection = pool.get_connection()
    assert state(connection) == fresh
    script(UNTIDY + (";\nuse mysql" if connect["database"] else ""))(connection)
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
    """What `init_command` writes during a reset is committed, as in `connect()`."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.logins (n int)")
        pool = make_pool(size=1, autocommit=autocommit, init_command="insert into logins values (1)")
        for logins in (1, 2, 3):
            connection = pool.get_connection()
            script("set @v = 9")(connection)  # which waits for the reset
            assert cursor.execute(f"select n from {database}.logins") == logins
            connection.close()


def test_the_look_at_a_first_reset_begins_no_transaction(make_pool: MakePool, admin: Admin, database: str) -> None:
    """Even without autocommit, the next borrower sees what others commit after it has got its connection."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.news (n int) engine=innodb")
        pool = make_pool(size=1, autocommit=False)
        connection = pool.get_connection()
        script("set @v = 1")(connection)
        connection.close()
        with pool.connection() as other:
            assert other.server_thread_id[0] == connection.server_thread_id[0]
            assert not transaction_of(other, admin)
            cursor.execute(f"insert into {database}.news values (1)")
            assert ask(other, "select count(*) from news") == ((1,),)


def test_an_init_command_with_several_results(make_pool: MakePool, database: str, admin: Any) -> None:
    """All results of an `init_command` are read when it is run again."""
    with admin.cursor() as cur:
        cur.execute(f"create procedure {database}.two() begin select 1; select 2; set @v = 3; end")
    pool = make_pool(size=1, init_command="call two()")
    for _ in range(3):
        with pool.get_connection() as cur:
            assert cur.db_query("select @v") == ((3,),)
            cur.execute("set @v = 4")
    assert pool.total_num == 1


# What a reset does not restore


def test_what_a_reset_does_not_restore_is_restored(make_pool: MakePool) -> None:
    """Variables that the client's flags have set, and that a reset does not restore, are set again."""
    pool = make_pool(size=1, client_flag=CLIENT.IGNORE_SPACE)
    mode = pool.get_connection().execute_query("select @@sql_mode")
    assert "IGNORE_SPACE" in mode[0][0]
    for _ in range(3):
        with pool.get_connection() as cur:
            assert cur.db_query("select @@sql_mode") == mode
            cur.execute("set @v = 1")


def test_a_server_whose_resets_do_not_restore_all(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """If a variable can't be restored, sessions are replaced, and a warning names it once."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection._place.session.reset.server._variables["external_user"] = "another"
    connection.execute_query("set @v = 1")
    connection.close()
    sessions = set()
    for _ in range(3):
        with pool.get_connection() as cur:
            [(session, left)] = cur.db_query("select connection_id(), @v")
            assert left is None
            sessions.add(session)
            cur.execute("set @v = 1")
    assert len(sessions) == 3
    assert [record.message.count("external_user") for record in caplog.records] == [1]


def test_a_variable_of_the_server_is_not_a_session_s(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """If others change a global variable between a session's opening and its first reset, the session is kept."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection._place.session.reset.server._variables["version_comment"] = "another"
    session = session_of(connection)
    for _ in range(3):
        connection.execute_query("set @v = 1")
        connection.close()
        connection = pool.get_connection()
        assert session_of(connection) == session
    assert not caplog.records


def test_a_change_of_a_global_variable_is_no_fault_of_a_reset(
    make_pool: MakePool, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    """After an administrator's SET GLOBAL, a session that is reset is like one that is opened, and it is kept."""
    ask_for = "select @@max_sort_length, @@net_write_timeout"
    pool = make_pool(size=1, init_command="set net_write_timeout = 63")
    with admin.cursor() as cursor:
        cursor.execute("select @@global.max_sort_length, @@global.net_write_timeout")
        before = cursor.fetchone()
        assert before == (1024, 60)
        try:
            cursor.execute("set global max_sort_length = 1025, global net_write_timeout = 61")
            session = session_of(connection := pool.get_connection())
            for _ in range(3):
                assert ask(connection, ask_for) in {((1024, 63),), ((1025, 63),)}
                connection.execute_query("set @v = 1, max_sort_length = 2000")
                connection.close()
                connection = pool.get_connection()
                assert session_of(connection) == session
                assert ask(connection, ask_for) == ((1025, 63),)
            connection.close()
        finally:
            cursor.execute("set global max_sort_length = %s, global net_write_timeout = %s", before)
    assert not caplog.records


def test_what_a_reset_does_not_restore_is_restored_after_a_set_global(make_pool: MakePool, admin: Admin) -> None:
    """A value that a new session does not have from the global variable is restored, although that has changed."""
    with admin.cursor() as cursor:
        cursor.execute("select @@global.wait_timeout, @@global.interactive_timeout")
        before = cursor.fetchone()
        try:
            cursor.execute("set global interactive_timeout = 2000")
            pool = make_pool(size=1, client_flag=CLIENT.INTERACTIVE)
            connection = pool.get_connection()
            cursor.execute("set global wait_timeout = 1500")
            for _ in range(3):
                assert ask(connection, "select @@wait_timeout") == ((2000,),)
                connection.query("set @v = 1, wait_timeout = 1501")
                connection.close()
                connection = pool.get_connection()
            assert ask(connection, "select @@wait_timeout") == ((2000,),)
            connection.close()
        finally:
            cursor.execute("set global wait_timeout = %s, global interactive_timeout = %s", before)


def test_a_prepared_xa_transaction_costs_its_session(make_pool: MakePool, admin: Admin, database: str) -> None:
    """No reset ends a prepared XA transaction: the session is replaced, and the next borrower can commit."""
    pool = make_pool(size=1, autocommit=True)
    with admin.cursor() as other:
        other.execute(f"create table {database}.t (n int) engine=innodb")
        xid = f"'{database}'"
        with pool.get_connection() as cur:
            for statement in (f"xa start {xid}", "insert into t values (1)", f"xa end {xid}", f"xa prepare {xid}"):
                cur.execute(statement)
            cur.execute("set @v = 1")
            cur.connection._may_be_in_transaction = False  # as a procedure's last status may have it
        try:
            with pool.get_connection() as cur:
                cur.execute("insert into t values (2)")
            other.execute(f"select * from {database}.t")
            assert other.fetchall() == ((2,),)
        finally:
            eventually(lambda: other.execute(f"xa rollback {xid}") == 0)


def test_a_prepared_xa_transaction_can_be_ended_by_another_session(
    make_pool: MakePool, admin: Admin, database: str
) -> None:
    """Its session is closed at the return, and not reset: MariaDB would keep the locks of the transaction forever."""
    pool = make_pool(size=1)
    with admin.cursor() as other:
        other.execute(f"create table {database}.t (n int) engine=innodb")
        connection = pool.get_connection()
        for statement in ("start {}", "end {}", "prepare {}"):
            connection.query(f"xa {statement}".format(f"'{database}'"))
            if statement == "start {}":
                connection.query("insert into t values (1)")
        connection.close()

        def rolls_back() -> bool:
            with suppress(pymysql.Error):  # the session has not ended yet
                other.execute(f"xa rollback '{database}'")
            return not any(database in str(row) for row in ask(admin, "xa recover"))

        eventually(rolls_back)
        other.execute("set session lock_wait_timeout = 2, innodb_lock_wait_timeout = 2")
        other.execute(f"drop table {database}.t")


def test_a_user_s_time_limit_is_restored(
    make_pool: MakePool, admin: Admin, database: str, server: Server, on_mariadb: bool
) -> None:
    """The user's MAX_STATEMENT_TIME, which MariaDB loses in a reset, is restored."""
    if not on_mariadb:
        pytest.skip("MariaDB's")
    user = f"u{database[-12:]}"
    with admin.cursor() as cursor:
        cursor.execute(f"create user {user} identified by 'p' with max_statement_time 17")
        try:
            cursor.execute(f"grant all on {database}.* to {user}")
            pool = make_pool(size=1, user=user, password="p")  # noqa: S106  a user for this test
            for _ in range(3):
                with pool.get_connection() as cur:
                    assert cur.db_query("select @@max_statement_time") == ((17.0,),)
                    cur.execute("set @v = 1, max_statement_time = 3")
            pool.close()
        finally:
            cursor.execute(f"drop user {user}")


# Servers that differ


class Stubborn(pymysqlpool.Connection):
    """A connection to a server that does not support COM_RESET_CONNECTION."""

    def _write_bytes(self, data: bytes) -> None:
        super()._write_bytes(data.replace(b"\1\0\0\0\x1f", b"\1\0\0\0\x7f"))


class Mute(pymysqlpool.Connection):
    """A connection to a server that does not report what a statement has changed."""

    def _get_server_information(self) -> None:
        super()._get_server_information()
        self.server_capabilities &= ~CLIENT.SESSION_TRACK
        self.client_flag &= ~CLIENT.SESSION_TRACK


@pytest.mark.parametrize("reset", ["auto", "session"])
def test_a_server_that_can_not_reset_gets_a_new_connection(reset: str, scene: Scene, make_pool: MakePool) -> None:
    """Without COM_RESET_CONNECTION, sessions that need a reset are replaced, and others are kept."""
    pool = make_pool(size=1, database=scene.schema, connection_class=Stubborn, reset=reset, autocommit=True)
    connection = pool.get_connection()
    script("set @v = 1")(connection)
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
    """A transaction is ended even if a proxy begins to answer COM_RESET_CONNECTION instead of the server."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.numbers (n int) engine=innodb")
    with (
        ProtocolProxy(server.host, server.port) as proxy,
        make_pool(size=1, host=proxy.host, port=proxy.port, ssl_disabled=True, autocommit=autocommit) as pool,
    ):
        for _ in range(2):  # the first reset, which is checked, is still done by the server
            with pool.connection() as connection:
                script("set @v = 9")(connection)
        proxy.answer = lambda command: [OK] if command.is_reset else None
        connection = pool.get_connection()
        script("start transaction;\ninsert into numbers values (1);\nset @v = 9")(connection)
        connection.close()
        with pool.connection() as other:
            assert other.server_thread_id[0] == connection.server_thread_id[0]
            assert ask(other, "select count(*) from numbers") == ((0,),)


def test_more_than_was_asked_for_behind_a_reset(server: Server, make_pool: MakePool) -> None:
    """Extra data that comes together with the reply to a reset is not taken for the reply to a borrower's command."""
    added = []

    def add(command: Command, reply: list[bytes]) -> list[bytes]:
        if added or not command.text.startswith(last):
            return reply
        added.append(OK)
        return [*reply, OK]

    with (
        ProtocolProxy(server.host, server.port) as proxy,
        make_pool(size=1, host=proxy.host, port=proxy.port, ssl_disabled=True, autocommit=True) as pool,
    ):
        for _ in range(2):  # the pool waits for the reply to the first reset
            connection = pool.get_connection()
            script("set @v = 1")(connection)
            reset = connection._place.session.reset
            *_, last = reset._set, *reset._after
            added.clear()
            proxy.alter = add
            connection.close()
            eventually(lambda: bool(added))
            with pool.connection() as other:
                script("set @w = 1")(other)
                assert ask(other, "select @v, @w") == ((None, 1),)
                assert other.server_thread_id[0] != connection.server_thread_id[0]


@pytest.mark.parametrize("deed", ["insert into triggers values (1)", "select notes()", "select 1"])
def test_a_server_without_session_tracking_is_reset_in_doubt(deed: str, scene: Scene, make_pool: MakePool) -> None:
    """If the server does not report what a statement has changed, the session is reset after each statement."""
    pool = make_pool(size=1, database=scene.schema, connection_class=Mute)
    with closing(scene.connect()) as plain:
        script("set @v = 1")(plain)
        assert ask(plain, VARIABLE) == ((1,),)
    first = pool.get_connection()
    script(deed)(first)
    first.close()
    second = pool.get_connection()
    assert ask(second, VARIABLE) == ((None,),)
    assert second.server_thread_id[0] == first.server_thread_id[0]
    second.close()


class WithoutRoles(pymysqlpool.Connection):
    """A connection to a server without roles, like MySQL 5.7."""

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """Query for a function that the server does not have."""
        return super().query(sql.replace("CURRENT_ROLE", "NO_SUCH_FUNCTION"), unbuffered)


def test_a_server_without_roles(make_pool: MakePool) -> None:
    """The reset works on a server without roles."""
    pool = make_pool(size=1, connection_class=WithoutRoles)
    connection = pool.get_connection()
    session = session_of(connection)
    connection.execute_query("set @v = 1")
    with pool.get_connection() as cur:
        assert cur.db_query("select @v, connection_id()") == ((None, session),)


class Killed(pymysqlpool.Connection):
    """A connection that loses its session when it queries its role."""

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """Kill the session first."""
        if "CURRENT_ROLE" in sql:
            self._sock.shutdown(2)
        return super().query(sql, unbuffered)


def test_a_session_that_is_lost_while_it_is_prepared(make_pool: MakePool) -> None:
    """If a session ends before it is ready, the opening has failed, and no place is lost."""
    with pytest.raises(pymysql.err.OperationalError):
        make_pool(size=1, connection_class=Killed)
    pool = make_pool(size=1, pre_create_num=0, connection_class=Killed)
    with pytest.raises(pymysql.err.OperationalError):
        pool.get_connection()
    assert pool.size() == 1


# `reset=`


def test_reset_session_undoes_what_no_client_can_see(scene: Scene, make_pool: MakePool) -> None:
    """With `reset="session"` even what a stored function does inside a SELECT is undone."""
    pool = make_pool(size=1, database=scene.schema, reset="session")
    probe = "select @v, nullif(current_role(), 'NONE')"
    for deed in "select notes()", "select plays_role()":
        with closing(scene.connect()) as plain:
            script(deed)(plain)
            assert ask(plain, probe) != ((None, None),)
        first = pool.get_connection()
        script(deed)(first)
        first.close()
        second = pool.get_connection()
        assert ask(second, probe) == ((None, None),)
        second.close()


def test_reset_rollback_undoes_transactions_only(scene: Scene, admin: Admin, make_pool: MakePool) -> None:
    """With `reset="rollback"` an open transaction is rolled back, and everything else is kept."""
    pool = make_pool(size=1, database=scene.schema, reset="rollback")
    first = pool.get_connection()
    script("set @v = 1;\ninsert into t values (1)")(first)
    eventually(lambda: transaction_of(first, admin) == ((1,),), RENEWAL)
    first.close()
    second = pool.get_connection()
    assert ask(second, VARIABLE) == ((1,),)
    assert second.server_thread_id[0] == first.server_thread_id[0]
    eventually(lambda: transaction_of(second, admin) == (), RENEWAL)
    second.close()


def test_no_reset_undoes_nothing(scene: Scene, make_pool: MakePool) -> None:
    """With `reset=None` the next borrower finds the session as it was left, in the middle of a transaction."""
    pool = make_pool(size=1, database=scene.schema, reset=None)
    first = pool.get_connection()
    script("set @v = 1;\ninsert into t values (2)")(first)
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
    """Even if nothing is reset, an exception rolls the block back, and success commits it."""
    pool = make_pool(size=1, database=scene.schema, reset=reset)
    with pool.connection() as connection:
        script("truncate news;\ninsert into news values (1)")(connection)
    with suppress(Boom), pool.connection() as connection:
        script("insert into news values (2)")(connection)
        raise Boom
    with pool.connection() as connection:
        assert ask(connection, "select n from news") == ((1,),)

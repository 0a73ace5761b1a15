"""What a borrower sees while the reply to its session's ROLLBACK or reset is pending, with and without TLS.

If the reset has failed, the borrower gets a new session, before it is lent one or at its first command, and notices
nothing. A borrower never gets a reply to one of the pool's own commands.
"""

from __future__ import annotations

import select
import signal
import ssl
import threading
import time
import uuid
import warnings
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import pymysql
import pytest
from helpers import (
    FORK_AND_THREADS,
    GENEROUS,
    by_fork,
    eventually,
    kill,
    one_thread,
    refuses_after_fork,
    run,
    session_of,
    strike_when_in,
)
from proxy import Dam
from pymysql.constants import COMMAND, CR
from pymysql.err import OperationalError
from server import Server, running_server

from pymysqlpool.statements import certainly_reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool

    from pymysqlpool import ConnectionPool


@pytest.fixture(scope="module", params=["plain", "TLS"])
def link(request: pytest.FixtureRequest) -> str:
    """How client and server communicate."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def server(server: Server, link: str) -> Iterator[Server]:
    """The server for the whole run, or one that offers TLS."""
    if link == "plain":
        yield server
        return
    with running_server(tls=True) as encrypted:
        yield encrypted


@pytest.fixture
def dam(server: Server) -> Iterator[Dam]:
    """A network between the pool and the server."""
    with Dam(server.host, server.port) as network:
        yield network


@pytest.fixture
def make_dammed_pool(make_pool: MakePool, server: Server, link: str, dam: Dam) -> MakePool:
    """Make pools of one place behind the dam."""
    # A server that the tests did not start may not have a certificate that can be verified.
    talk: Any = {"ssl": {"ca": server.ca} if server.ca else {"check_hostname": False}}
    if link == "plain":
        talk = {"ssl_disabled": True}

    def make(**kwargs: Any) -> ConnectionPool:
        try:
            pool = make_pool(size=1, host=dam.host, port=dam.port, **talk, **kwargs)
        except OperationalError as error:
            if link == "TLS" and server.ca is None and error.args[0] == CR.CR_SSL_CONNECTION_ERROR:
                pytest.skip("this server offers no TLS")
            raise
        with pool.connection() as connection:
            is_encrypted = isinstance(connection._sock, ssl.SSLSocket)
        if link == "TLS" and server.ca is None and not is_encrypted:
            pytest.skip("this server offers no TLS")
        assert is_encrypted == (link == "TLS")
        return pool

    return make


LEAVE_A_VARIABLE = "set @left = 1"
# The pool's arguments, and what its borrower does, so that this reply is pending.
OWED: dict[str, tuple[dict[str, Any], str]] = {
    "reset": ({"autocommit": True}, LEAVE_A_VARIABLE),
    "reset, autocommit off": ({"autocommit": False}, LEAVE_A_VARIABLE),
    "rollback": ({"autocommit": False}, "select 1"),
}


class Pending(NamedTuple):
    """A session with a pending reply, and its socket."""

    session: int
    sock: Any

    def has_news(self, patience: float) -> bool:
        """Whether something can be read within so many seconds."""
        return bool(select.select([self.sock], [], [], patience)[0])


def return_behind(dam: Dam, pool: ConnectionPool, deed: str, begin: Callable[[], object]) -> Pending:
    """Borrow, do it, `begin` the fault, and return, so that the reply to the pool's own command is pending."""
    # The pool waits for the reply to the first reset before it lends the session: the server may not support it.
    connection = pool.get_connection()
    run(connection, LEAVE_A_VARIABLE)
    connection.close()
    connection = pool.get_connection()
    pending = Pending(session_of(connection), connection._sock)
    run(connection, deed)
    begin()
    connection.close()
    return pending


def check(connection: Any) -> int:
    """Return the session's id. Check that the reply is the right one, and that nothing of another borrower is left.

    Also check that the timeouts are the user's again, and not those of the pool's own commands.
    """
    unique = uuid.uuid4().hex
    with connection.cursor() as cursor:
        cursor.execute(f"select '{unique}', @left, connection_id()")
        [(answer, left, session)] = cursor.fetchall()
    assert (answer, left) == (unique, None)
    assert connection._sock.gettimeout() == connection.kwargs.get("read_timeout")
    return int(session)


BEFORE_THE_BORROW, BEFORE_THE_COMMAND, DURING_THE_COMMAND = MOMENTS = [
    "before the borrow",
    "before the first command",
    "during the first command",
]


def borrow_and_check(
    pool: ConnectionPool, dam: Dam, pending: Pending, moment: str, strike: Callable[[], object]
) -> int:
    """Borrow, call `strike` at this moment, and return the session's id, or raise what the borrower sees."""
    assert not pending.has_news(0)
    if moment == BEFORE_THE_BORROW:
        strike()
        assert pending.has_news(GENEROUS)
    connection = pool.get_connection(timeout=0)
    try:
        if moment == BEFORE_THE_COMMAND:
            strike()
        if moment != DURING_THE_COMMAND:
            return check(connection)
        with one_thread() as thread:
            asked = dam.asked
            session = thread.submit(check, connection)
            eventually(lambda: dam.asked > asked)
            assert not session.done()
            strike()
            return session.result(GENEROUS)
    finally:
        connection.close()


def costs_the_session(
    pool: ConnectionPool, dam: Dam, pending: Pending, moment: str, strike: Callable[[], object]
) -> None:
    """Check that a borrower gets its reply from a new session, which is kept, and nobody gets this one any more."""
    fresh = borrow_and_check(pool, dam, pending, moment, strike)
    assert fresh != pending.session
    with pool.connection(timeout=0) as connection:
        assert check(connection) == fresh
    goes_on_without(pending, pool)


def goes_on_without(pending: Pending, pool: ConnectionPool) -> None:
    """Check that the place is still there, with another session."""
    assert pool.size() == 1
    with pool.connection(timeout=0) as connection:
        assert check(connection) != pending.session
    assert (pool.size(), pool.total_num) == (1, 1)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("owed", OWED)
def test_a_late_reply(make_dammed_pool: MakePool, dam: Dam, owed: str, moment: str) -> None:
    """Whenever the pending reply comes, the next borrower gets its own reply, on the same session."""
    options, deed = OWED[owed]
    pool = make_dammed_pool(**options)
    pending = return_behind(dam, pool, deed, dam.hold)
    eventually(lambda: dam.held)
    assert borrow_and_check(pool, dam, pending, moment, dam.let_go) == pending.session


@pytest.fixture
def large_packets(admin: Admin) -> Iterator[None]:
    """Let the server accept statements of more than 16 MB, which take several packets."""
    with admin.cursor() as cursor:
        cursor.execute("select @@global.max_allowed_packet")
        [(before,)] = cursor.fetchall()
        cursor.execute(f"set global max_allowed_packet = {2**26}")
        yield
        cursor.execute(f"set global max_allowed_packet = {before}")


@pytest.mark.usefixtures("large_packets")
def test_a_statement_of_several_packets(make_dammed_pool: MakePool, dam: Dam) -> None:
    """However long a statement is, it is classified quickly, and gets its own reply after the pending one."""
    pool = make_dammed_pool(autocommit=True)
    pending = return_behind(dam, pool, LEAVE_A_VARIABLE, dam.hold)
    eventually(lambda: dam.held)
    long = 2**24 + 1
    connection = pool.get_connection(timeout=0)

    def ask() -> Any:
        with connection.cursor() as cursor:
            cursor.execute(f"select length('{'a' * long}'), connection_id()")
            return cursor.fetchall()

    with one_thread() as thread:
        asked = dam.asked
        answer = thread.submit(ask)
        eventually(lambda: dam.asked > asked + long)
        dam.let_go()
        assert answer.result(GENEROUS) == ((long, pending.session),)
    connection.close()


@pytest.mark.parametrize("owed", OWED)
def test_a_reconnect_by_hand(make_dammed_pool: MakePool, dam: Dam, owed: str) -> None:
    """A borrower that reconnects does not wait for the pending replies of the old session."""
    options, deed = OWED[owed]
    pool = make_dammed_pool(read_timeout=GENEROUS, **options)
    pending = return_behind(dam, pool, deed, dam.hold)
    eventually(lambda: dam.held)
    connection = pool.get_connection(timeout=0)
    connection.connect()
    assert check(connection) != pending.session
    connection.close()
    goes_on_without(pending, pool)


# KILL


# Not during the first command: the server has answered that as well before the KILL.
@pytest.mark.parametrize("moment", [BEFORE_THE_BORROW, BEFORE_THE_COMMAND])
@pytest.mark.parametrize("owed", OWED)
def test_a_kill_behind_the_reply(make_dammed_pool: MakePool, admin: Admin, dam: Dam, owed: str, moment: str) -> None:
    """If a session is killed while the reply is on its way, its borrower notices nothing."""
    options, deed = OWED[owed]
    pool = make_dammed_pool(**options)
    pending = return_behind(dam, pool, deed, dam.hold)
    eventually(lambda: dam.held)

    def strike() -> None:
        kill(admin, {pending.session})
        dam.let_go()
        eventually(lambda: dam.is_rid_of_held)

    costs_the_session(pool, dam, pending, moment, strike)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_kill_amid_the_reset(  # noqa: PLR0917 - fixtures
    make_dammed_pool: MakePool, admin: Admin, database: str, dam: Dam, autocommit: bool, moment: str
) -> None:
    """If a session is killed while the server executes its reset, its borrower notices nothing."""
    with admin.cursor() as cursor:
        # Every opening and every reset takes this lock, which admin may hold.
        pass_through = f"do if(get_lock('{database}', 1000), release_lock('{database}'), 0)"
        pool = make_dammed_pool(autocommit=autocommit, init_command=pass_through)

        def begin() -> None:
            cursor.execute(f"do get_lock('{database}', 0)")
            dam.hold()

        pending = return_behind(dam, pool, LEAVE_A_VARIABLE, begin)

        def waits() -> bool:
            cursor.execute("show processlist")
            return any(row[0] == pending.session and row[6] == "User lock" for row in cursor.fetchall())

        def strike() -> None:
            kill(admin, {pending.session})
            cursor.execute(f"do release_lock('{database}')")
            dam.let_go()
            eventually(lambda: dam.is_rid_of_held)

        eventually(waits)
        costs_the_session(pool, dam, pending, moment, strike)


# Failing


# Every opening and every reset reads this table, which may not exist.
GATE = "set @gate = (select count(*) from gate)"
# The pool's arguments, what its borrower does, and what makes the pool's own command fail after that.
FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "init_command": ({"autocommit": True, "init_command": GATE}, LEAVE_A_VARIABLE, "drop table {0}.gate"),
    "database": ({"autocommit": True}, "use {0}", "drop database {0}"),
    "database, autocommit off": ({"autocommit": False}, "use {0}", "drop database {0}"),
    # The server refuses to ROLLBACK an XA transaction.
    "rollback": ({"reset": "rollback"}, "xa start '{0}'", "do 0"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failing_reset(  # noqa: PLR0917 - fixtures
    make_dammed_pool: MakePool, server: Server, admin: Admin, database: str, dam: Dam, failure: str, moment: str
) -> None:
    """If the server refuses a reset or ROLLBACK, the session is closed, and no borrower gets the error."""
    options, deed, harm = FAILURES[failure]
    with admin.cursor() as cursor:

        def password() -> str:
            """Undo the fault, so that a new session can be opened."""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pymysql.Warning)
                cursor.execute(f"create database if not exists {database}")
                cursor.execute(f"create table if not exists {database}.gate (n int)")
            return server.password

        pool = make_dammed_pool(password=password, **options)

        def begin() -> None:
            cursor.execute(harm.format(database))
            dam.hold()

        pending = return_behind(dam, pool, deed.format(database), begin)
        eventually(lambda: dam.held)
        costs_the_session(pool, dam, pending, moment, dam.let_go)


@pytest.mark.parametrize(
    ("sql", "is_certain"),
    [
        ("select 1", True),
        ("select ((1)), count(*), LENGTH (concat(a, 'b')) from t where a in (1, 2) and (b = 1 or -(c) < +(d))", True),
        *((f"select count(*), {function}(1)", False) for function in ("f", "f\n", "f_abs", "f$abs", "éabs", "`abs`")),
        *((f"select count(*), {function}(1)", False) for function in ("d.abs", "`d`.abs", "d . abs", "f/**/")),
    ],
)
def test_what_may_be_repeated(sql: str, is_certain: bool) -> None:
    """A statement that calls what may be a stored function, which may write, waits for the reply to the reset."""
    assert certainly_reads(COMMAND.COM_QUERY, sql.encode()) is is_certain


# No reply at all


def turn_deaf(dam: Dam) -> None:
    dam.deaf = True


@pytest.mark.parametrize("silence", [Dam.hold, turn_deaf])
@pytest.mark.parametrize("owed", OWED)
def test_read_timeout_covers_the_pending_reply(
    make_dammed_pool: MakePool, dam: Dam, owed: str, silence: Callable[[Dam], object]
) -> None:
    """If the reply never comes, the first command fails within `read_timeout`, and the session is not lent again."""
    options, deed = OWED[owed]
    pool = make_dammed_pool(read_timeout=0.3, **options)
    pending = return_behind(dam, pool, deed, lambda: silence(dam))
    connection = pool.get_connection(timeout=0)
    started = time.monotonic()
    with pytest.raises(OperationalError) as raised:
        check(connection)
    assert raised.value.args[0] == CR.CR_SERVER_LOST
    assert time.monotonic() - started < GENEROUS
    connection.close()
    dam.deaf = False
    goes_on_without(pending, pool)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("owed", OWED)
def test_a_network_that_breaks(make_dammed_pool: MakePool, dam: Dam, owed: str, moment: str) -> None:
    """If the connection is reset before or after the first command is written, the borrower gets another session."""
    options, deed = OWED[owed]
    pool = make_dammed_pool(**options)
    pending = return_behind(dam, pool, deed, dam.hold)
    eventually(lambda: dam.held)

    def strike() -> None:
        dam.reset()
        dam.let_go()
        eventually(lambda: dam.is_rid_of_held)

    costs_the_session(pool, dam, pending, moment, strike)


# What the pool itself waits for before it lends: a ping, or a reset that may be refused by a live session.
LOOKS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "ping": ({"autocommit": True}, LEAVE_A_VARIABLE, True),
    "ping, rollback": ({"autocommit": False}, "select 1", True),
    "role": ({"autocommit": True}, "set role none", False),
    "database": ({"autocommit": True, "database": None}, "use information_schema", False),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_at_a_session_that_does_not_reply(make_dammed_pool: MakePool, dam: Dam, look: str) -> None:
    """If the pool itself waits for a reply that never comes, the borrower gets a new session, without any timeout."""
    options, deed, pre_ping = LOOKS[look]
    pool = make_dammed_pool(**options)
    pending = return_behind(dam, pool, deed, dam.hold)
    eventually(lambda: dam.held)
    started = time.monotonic()
    with pool.connection(pre_ping=pre_ping) as connection:
        assert check(connection) != pending.session
    assert time.monotonic() - started < GENEROUS
    goes_on_without(pending, pool)


# Fork


@pytest.mark.filterwarnings(f"ignore:{FORK_AND_THREADS}:DeprecationWarning")
@pytest.mark.parametrize("is_borrowed", [False, True], ids=["idle", "borrowed"])
@pytest.mark.parametrize("has_come", [False, True], ids=["on its way", "unread"])
@pytest.mark.parametrize("owed", OWED)
def test_a_fork(make_dammed_pool: MakePool, dam: Dam, owed: str, has_come: bool, is_borrowed: bool) -> None:
    """The pending reply is the parent's, like its session: the child reads nothing of it, whatever it does."""
    options, deed = OWED[owed]
    pool = make_dammed_pool(**options)
    pending = return_behind(dam, pool, deed, dam.hold)
    eventually(lambda: dam.held)
    handles = [pool.get_connection(timeout=0)] if is_borrowed else []
    if has_come:
        dam.let_go()
        assert pending.has_news(GENEROUS)

    def child() -> None:
        assert pool.total_num == 0
        for handle in handles:
            refuses_after_fork(handle)
        with pool.connection(timeout=0) as connection:
            assert check(connection) != pending.session
        handles.clear()
        assert pool.total_num == 1

    assert by_fork(child) == 0
    dam.let_go()
    for handle in handles:
        assert check(handle) == pending.session
        handle.close()
    with pool.connection(timeout=0) as connection:
        assert check(connection) == pending.session


# Interrupted


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals here")
@pytest.mark.parametrize("pre_ping", [False, True])
def test_an_alarm_while_a_reset_is_pending(make_dammed_pool: MakePool, dam: Dam, pre_ping: bool) -> None:
    """A signal handler's TimeoutError is raised in the borrower, not taken for the reset's, and no command is run."""

    def strike(*_: object) -> None:
        raise TimeoutError("alarm")

    with one_thread() as other:
        pool = make_dammed_pool(autocommit=True)
        pool.get_connection().execute_query("create table t (n int)")
        assert pool.get_connection().execute_query("select count(*) from t") == ((0,),)
        connection = pool.get_connection()
        connection.query("do 1")
        dam.hold()
        connection.close()
        former = signal.signal(signal.SIGUSR1, strike)
        try:
            other.submit(strike_when_in, threading.current_thread(), "read_pending", "_read")
            with pytest.raises(TimeoutError, match="alarm"):
                pool.get_connection(pre_ping=pre_ping).execute_query("insert into t values (1)")
        finally:
            signal.signal(signal.SIGUSR1, former)
            dam.let_go()
        assert pool.size() == 1
        assert pool.get_connection().execute_query("select count(*) from t") == ((0,),)

"""What an error implies: whether the session is reused, whether to try again, and whether the outcome is known."""

from __future__ import annotations

import copy
import pickle
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from protocol_proxy import Command, ProtocolProxy, error_packet
from pymysql.err import Error, IntegrityError, InterfaceError, OperationalError, ProgrammingError

import pymysqlpool
from pymysqlpool import (
    GetConnectionFromPoolError,
    PoolClosedError,
    PoolError,
    ReturnConnectionToPoolError,
    is_retryable,
)
from pymysqlpool.statements import may_commit

if TYPE_CHECKING:
    from helpers import MakePool

    from pymysqlpool import ConnectionPool

RETRYABLE = [1040, 1047, 1203, 1205, 1213, 1290, 1792, 1836, 2002, 2003, 2005, 3100, 3101]
FINAL = [1045, 1049, 1053, 1062, 1064, 1105, 1180, 1226, 1317, 1927, 2006, 2013]


@pytest.mark.parametrize("code", RETRYABLE)
def test_what_certainly_was_not_done_may_be_done_again(code: int) -> None:
    """An error is retryable if nothing was done for certain, and another node or a later try may succeed."""
    assert is_retryable(OperationalError(code, "why"))


@pytest.mark.parametrize("code", FINAL)
def test_what_may_be_done_or_never_will_is_not_done_again(code: int) -> None:
    """An error is not retryable if its code alone does not say that nothing was done, or if no try will succeed."""
    assert not is_retryable(OperationalError(code, "why"))


def test_other_errors() -> None:
    """The pool's own exhaustion is retryable; a closed pool, an application's error and one without a code are not."""
    assert is_retryable(GetConnectionFromPoolError("why"))
    for error in (PoolClosedError("why"), PoolError("why"), ValueError(1213), ProgrammingError(), IntegrityError(1062)):
        assert not is_retryable(error)
    assert is_retryable(OperationalError(1226, "User 'x' has exceeded the 'max_user_connections' resource"))
    assert not PoolError("why").outcome_unknown


def test_a_server_that_can_not_be_reached(make_pool: MakePool) -> None:
    """A failure to connect is retryable, as nothing was done."""
    with pytest.raises(OperationalError) as raised:
        make_pool(port=1)
    assert is_retryable(raised.value)


# What is executed, with autocommit or not; where the connection is lost; whether it may have been committed.
LOST: list[tuple[bool, list[str], bool]] = [
    (True, ["insert into t values (1)"], True),
    (True, ["select 1"], False),
    (True, ["begin", "insert into t values (1)"], False),
    (True, ["begin", "insert into t values (1)", "commit"], True),
    (True, ["begin", "insert into t values (1)", "rollback"], False),
    (True, ["create table other (n int)"], True),
    (False, ["insert into t values (1)"], False),
    (False, ["insert into t values (1)", "commit"], True),
    (False, ["insert into t values (1)", "select * from t"], False),
    (False, ["insert into t values (1)", "create table other (n int)"], True),
    (False, ["insert into t values (1)", "begin"], True),
    (False, ["insert into t values (1)", "do 1; commit"], True),
]


@pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize(("autocommit", "statements", "is_unknown"), LOST)
def test_a_lost_connection_says_whether_the_outcome_is_known(  # noqa: PLR0917 - fixtures
    make_pool: MakePool,
    protocol_proxy: ProtocolProxy,
    autocommit: bool,
    statements: list[str],
    is_unknown: bool,
    is_done: bool,
) -> None:
    """If the connection is lost at a command that may have committed, the outcome is unknown; else nothing was done."""
    pool = make_proxied(make_pool, protocol_proxy, autocommit=autocommit)

    def cut(command: Command, *_: Any) -> Any:
        if command.text.decode() == statements[-1]:
            raise EOFError
        return _[0] if _ else None

    with pool.connection() as connection:
        connection.query("create table t (n int) engine=innodb")
    with pool.connection() as connection:
        connection.query("select 1")
    connection = pool.get_connection()
    for statement in statements[:-1]:
        connection.query(statement)
    if is_done:
        protocol_proxy.alter = cut
    else:
        protocol_proxy.answer = cut
    with pytest.raises(OperationalError) as raised:
        connection.query(statements[-1])
    assert raised.value.args[0] == 2013
    assert raised.value.outcome_unknown is is_unknown  # type: ignore[attr-defined]
    assert is_retryable(raised.value) is not is_unknown
    connection.close()


def make_proxied(make_pool: MakePool, protocol_proxy: ProtocolProxy, **kwargs: Any) -> ConnectionPool:
    return make_pool(
        size=1, host=protocol_proxy.host, port=protocol_proxy.port, ssl_disabled=True, client_flag=1 << 16, **kwargs
    )  # CLIENT.MULTI_STATEMENTS


@pytest.mark.parametrize("code", [1047, 1180, 1290, 1836, 3100, 3101, 1213, 1205])
def test_a_node_that_refuses_costs_the_session_and_a_conflict_does_not(
    make_pool: MakePool, protocol_proxy: ProtocolProxy, code: int
) -> None:
    """After an error that means "not this node" the next borrower has another session; 1213 and 1205 keep it."""
    pool = make_proxied(make_pool, protocol_proxy, autocommit=True)
    connection = pool.get_connection()
    session = connection.server_thread_id
    protocol_proxy.answer = lambda command: [error_packet(code, "refused")] if command.text == b"do 1" else None
    with pytest.raises(pymysql.Error) as raised:
        connection.query("do 1")
    assert raised.value.outcome_unknown is (code == 1180)  # type: ignore[attr-defined]
    connection.close()
    with pool.connection() as connection:
        assert (connection.server_thread_id == session) is (code in {1205, 1213})


def test_a_node_that_is_not_ready_is_waited_for(make_pool: MakePool, protocol_proxy: ProtocolProxy) -> None:
    """If opening fails with 1047 the borrower waits, within its timeout, and opening is not tried often."""
    pool = make_proxied(make_pool, protocol_proxy, pre_create_num=0)
    refusals = iter([1, 2, 3])
    protocol_proxy.answer = lambda _: [error_packet(1047, "not ready")] if next(refusals, None) else None
    with pool.connection(timeout=20) as connection:
        connection.query("select 1")
    protocol_proxy.answer = lambda _: [error_packet(1047, "not ready")]
    pool.drain()
    protocol_proxy.commands.clear()
    with pytest.raises(GetConnectionFromPoolError) as raised:
        pool.get_connection(timeout=0.5, retry_num=0)
    assert raised.value.__cause__ is not None
    assert raised.value.__cause__.args[0] == 1047
    assert len([command for command in protocol_proxy.commands if command.code == 3]) < 20


@pytest.mark.parametrize(
    ("sql", "inside", "outside"),
    [
        (b"SELECT 1", False, False),
        (b"select f(1)", False, True),
        (b"/* x */ insert into t values (1)", False, True),
        (b"insert into t values (';')", True, True),  # a second statement is not distinguished from quoted text
        (b"update t set n = 1; commit", True, True),
        (b"savepoint a", False, True),
        (b"rollback", False, False),
        (b"rollback to a", False, False),
        (b"call p()", True, True),
        (b"alter table t add m int", True, True),
        (b"/*!50000 commit */", True, True),
    ],
)
def test_what_may_commit(sql: bytes, inside: bool, outside: bool) -> None:
    """A read commits nothing, nor does a statement that writes rows in a transaction; any other statement may."""
    assert may_commit(sql, in_transaction=True) is inside
    assert may_commit(sql, in_transaction=False) is outside


def test_where_no_other_session_can_be_had_nothing_was_done(make_pool: MakePool, protocol_proxy: ProtocolProxy) -> None:
    """If a session's reset fails and no other can be opened, the error is retryable: no command was sent."""
    pool = make_proxied(make_pool, protocol_proxy, autocommit=True)
    for _ in range(2):
        with pool.connection() as connection:
            connection.query("set @left = 1")
    connection = pool.get_connection()
    connection.query("set @left = 1")
    protocol_proxy.hold()
    connection.close()
    connection = pool.get_connection()

    def cut(command: Command) -> None:
        raise EOFError

    protocol_proxy.answer = cut
    protocol_proxy.let_go()
    with pytest.raises(OperationalError) as raised:
        connection.query("create table t (n int)")
    assert raised.value.outcome_unknown is False  # type: ignore[attr-defined]
    assert is_retryable(raised.value)
    assert not any(command.text.startswith(b"create") for command in protocol_proxy.commands)


# Classes, pickles and copies


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (PoolError, {Error}),
        (GetConnectionFromPoolError, {PoolError, OperationalError}),
        (ReturnConnectionToPoolError, {PoolError, InterfaceError}),
        (PoolClosedError, {PoolError, InterfaceError}),
    ],
)
def test_errors_have_their_place(error: type[Exception], bases: set[type]) -> None:
    """Each error is derived from the right PyMySQL errors, and prints and pickles under its public name."""
    assert set(error.__bases__) == bases
    assert error.__module__ == "pymysqlpool"
    text = f"pymysqlpool.{error.__name__}: why\n"
    assert traceback.format_exception_only(error, error("why")) == [text]
    same = pickle.loads(pickle.dumps(error("why")))  # noqa: S301
    assert (type(same), same.args) == (error, ("why",))


def test_an_exhausted_pool_error_survives_pickling(make_pool: MakePool) -> None:
    """The list of holders is plain data and survives pickling with the text."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with pytest.raises(GetConnectionFromPoolError) as raised:
        pool.get_connection(timeout=0, retry_num=0)
    connection.close()
    error = raised.value
    same = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(same), str(same), same.holders) == (GetConnectionFromPoolError, str(error), error.holders)
    [holder] = same.holders
    assert holder["file"] == __file__


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_pools_and_connections_are_not_copied(make_pool: MakePool, copied: Callable[[object], object]) -> None:
    """Neither a pool nor a connection can be pickled or copied, and the error says so."""
    pool = make_pool()
    with pool.connection() as connection:
        for thing, name in ((pool, "ConnectionPool"), (connection, "Connection")):
            with pytest.raises(TypeError, match=rf"\b{name}\b.*pickled"):
                copied(thing)


# Unchanged errors


def test_an_error_with_a_signature_of_its_own_arrives_as_it_is(make_pool: MakePool) -> None:
    """An error in opening a connection is stored for other borrowers; the borrower itself gets that same object."""

    class Odd(pymysql.err.OperationalError):
        def __init__(self, host: str, *, hint: str) -> None:
            super().__init__(2003, host)
            self.hint = hint

    class Refused(pymysqlpool.Connection):
        def connect(self, _: Any = None) -> None:
            raise Odd("h", hint="mind the gap")

    pool = make_pool(size=1, pre_create_num=0, connection_class=Refused)
    with pytest.raises(Odd) as caught:
        pool.get_connection()
    assert caught.value.hint == "mind the gap"
    held = pool._pool.get()
    with pytest.raises(pymysqlpool.GetConnectionFromPoolError) as exhausted:
        pool.get_connection(timeout=0, retry_num=0)
    cause: Any = exhausted.value.__cause__
    assert (type(cause), cause.args, cause.hint) == (Odd, (2003, "h"), "mind the gap")
    pool._pool.put(held)


def test_what_pymysql_deprecates_is_told_of_the_caller_s_line(make_pool: MakePool) -> None:
    """A deprecation warning names the caller's line, not one in this package."""
    connection = make_pool(size=1).get_connection()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection.set_charset("utf8mb4")
        connection.ping(reconnect=True)
    assert "The 'reconnect' argument is deprecated." in [str(warning.message) for warning in caught]
    assert {warning.filename for warning in caught} == {__file__}

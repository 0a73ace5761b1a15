"""What the text of a statement shows: what it may leave in the session, and whether it certainly only reads."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

import pymysql
import pytest
from helpers import ask, session_of
from pymysql.constants import COMMAND

from pymysqlpool.statements import certainly_reads

if TYPE_CHECKING:
    from helpers import MakePool


def test_a_long_statement_is_not_read(make_pool: MakePool) -> None:
    """What is at the end of a long statement is also undone."""
    pool = make_pool(size=1, autocommit=True)
    with pool.get_connection() as cur:
        cur.execute("select '" + 20_000 * "x" + "', @v := 1")
    with pool.get_connection() as cur:
        assert cur.db_query("select @v") == ((None,),)


@pytest.mark.parametrize(
    ("statement", "mode"),
    [
        ("select 1.5into @v", ""),
        ("select .5into @v", ""),
        ("select 1e5into @v", ""),
        ("select `get_lock`/**/('x', 0)", ""),
        ("select `get_lock`-- \n('x', 0)", ""),
        ("select `get_lock`#\n('x', 0)", ""),
        ("select \"get_lock\"/**/('x', 0)", "ANSI_QUOTES"),
        ("select last_insert_id/**/(7)", ""),
        ("select last_insert_id#\n(7)", ""),
        ("select a --\u00a0, get_lock('x', 0) from (select 1 as a, 2 as `\u00a0`) as t", ""),
        ("select 1 --\x7f'\n, get_lock('x', 0) -- '", ""),
    ],
)
def test_what_a_statement_that_reads_can_hide(make_pool: MakePool, statement: str, mode: str) -> None:
    """A number before INTO, comments between a function and its parenthesis, text that only looks like a comment."""
    pool = make_pool(size=1, sql_mode=mode)
    connection = pool.get_connection()
    connection.query(statement)
    connection.close()
    found = pool.get_connection().execute_query("select @v, is_used_lock('x'), last_insert_id()")
    assert found == ((None, None, 0),)


@pytest.mark.parametrize(("charset", "character"), [("sjis", b"\xfa`"), ("gbk", b"\xfe`")])
def test_a_character_that_python_does_not_know(
    make_pool: MakePool, on_mariadb: bool, charset: str, character: bytes
) -> None:
    """To the server its second byte is no quote; MariaDB does not know it either, and refuses the statement."""
    pool = make_pool(size=1, charset=charset)
    connection = pool.get_connection()
    with suppress(pymysql.Error) if on_mariadb else nullcontext():
        connection.query(b"select 1 as %b, get_lock('x', 0) as %b" % (character, character))
    connection.close()
    assert pool.get_connection().execute_query("select is_used_lock('x')") == ((None,),)


@pytest.mark.parametrize(
    "read",
    ["select next/**/value for s", "select default(id) from t", "select s.`nextval`", 'select s . "nextval"'],
)
def test_a_sequence_behind_a_default_or_a_comment(make_pool: MakePool, on_mariadb: bool, read: str) -> None:
    """The next borrower does not get the previous one's last value of the sequence."""
    if not on_mariadb:
        pytest.skip("MariaDB's")
    pool = make_pool(size=1, autocommit=True, sql_mode="ORACLE")
    connection = pool.get_connection()
    connection.query("create sequence s")
    connection.query("create table t (id int default (next value for s), n int)")
    connection.query("insert into t values (1, 1)")
    connection.close()
    connection = pool.get_connection()
    connection.query(read)
    connection.close()
    assert pool.get_connection().execute_query("select lastval(s)") == ((None,),)


def test_a_long_word_is_read_once(make_pool: MakePool) -> None:
    """A read with a long word in it is classified as quickly with a pending reset as without one."""
    pool = make_pool(size=1)
    for _ in range(20):
        pool.get_connection().execute_query("do 1")  # has a reset pending
        assert pool.get_connection().execute_query(f"select length('{'x' * 200_000}')") == ((200_000,),)


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("select f -- in\n(1)", False),
        ("select f # in\n(1)", False),
        ("select d . abs (1)", False),
        ("-- name: x\nselect abs(1), count(*) from t where a in (1, 2)", True),
        ("select '" + "x" * 1000 + "', max(a) from t", True),
    ],
)
def test_what_certainly_calls_no_stored_function(statement: str, reads: bool) -> None:
    """Nothing that may write runs before a pending reset is answered, so nothing is written twice."""
    assert certainly_reads(COMMAND.COM_QUERY, statement.encode()) is reads


@pytest.mark.parametrize(
    "statement",
    [
        "set profiling = 1",
        "set optimizer_trace = 'enabled=on'",
        "set resource group g",
        "xa /**/ prepare 'x'",
        "/*!50000xa prepare 'x'*/",
    ],
)
def test_what_no_reset_undoes_costs_the_session(make_pool: MakePool, statement: str) -> None:
    """A session is replaced after statements that no reset undoes, such as those for profiles and traces."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = session_of(connection)
    with suppress(pymysql.Error):
        connection.query(statement)
    connection.close()
    assert session_of(pool.get_connection()) != session


@pytest.mark.parametrize(
    "word", ["profiling", "optimizer_trace", "resource group", "session authorization", "use x", "xa prepare"]
)
def test_words_in_the_strings_of_a_write_cost_no_session(make_pool: MakePool, word: str) -> None:
    """A write whose strings only look like a statement that no reset undoes is followed by a reset as usual."""
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

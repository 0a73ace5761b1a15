"""`execute_query`: its rows, its unit of work, and how arguments are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from pymysql.cursors import DictCursor, SSCursor

if TYPE_CHECKING:
    from helpers import MakePool, Numbers


@pytest.mark.parametrize(
    ("query", "kwargs", "result"),
    [
        ("select 1 union all select 2", {}, ((1,), (2,))),
        ("select 1 from dual where 1 = 0", {}, ()),
        ("select 1 from dual where 1 = 0", {"dictcursor": True}, ()),
        ("select 1 from dual where 1 = 0", {"return_one": True}, None),
        ("select 1 union all select 2", {"return_one": True}, (1,)),
        ("select 1 as one", {"dictcursor": True}, [{"one": 1}]),
        ("select 1 as one", {"dictcursor": True, "return_one": True}, {"one": 1}),
        ("do 1", {}, ()),
        ("do 1", {"return_one": True}, None),
        ("select %s, %s", {"args": (1, "it's")}, ((1, "it's"),)),
        ("select %(one)s", {"args": {"one": 1}}, ((1,),)),
        ("select '100%%'", {}, (("100%",),)),
        ("select '100%%'", {"args": None}, (("100%%",),)),
        ("insert into numbers (number) values (%s)", {"args": [(1,), (2,)], "exec_many": True}, ()),
        ("insert into numbers (number) values (3)", {}, ()),
        ("insert into numbers (number) values (3)", {"return_one": True}, None),
    ],
)
@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("returned", [False, True])
def test_execute_query(make_pool: MakePool, returned: bool, query: str, kwargs: dict[str, Any], result: Any) -> None:
    """`execute_query` gives all rows or one, formats arguments as PyMySQL does, and returns."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    if returned:
        handle.close()
    assert handle.execute_query(query, **kwargs) == result
    assert pool.size() == 1


def test_execute_query_commits(make_pool: MakePool, numbers: Numbers, table: str) -> None:
    """`execute_query` is a unit of work, also with many sets of arguments."""
    handle = make_pool().get_connection()
    handle.execute_query(f"insert into {table} (number) values (1)")
    handle.execute_query(f"insert into {table} (number) values (%s)", [(2,), (3,)], exec_many=True)
    assert numbers() == [1, 2, 3]


def test_a_failed_execute_query_is_undone(make_pool: MakePool, numbers: Numbers, table: str) -> None:
    """An `execute_query` that fails halfway leaves nothing behind, and returns the connection."""
    pool = make_pool(size=1)
    handle = pool.get_connection()
    with pytest.raises(pymysql.err.IntegrityError):
        handle.execute_query(f"insert into {table} (id) select %s", [(1,), (2,), (1,)], exec_many=True)
    assert numbers() == []
    assert pool.size() == 1


def test_execute_query_uses_the_pools_cursorclass(make_pool: MakePool) -> None:
    """Without `dictcursor` the rows are those of the pool's `cursorclass`."""
    handle = make_pool(cursorclass=DictCursor).get_connection()
    assert handle.execute_query("select 1 as one") == [{"one": 1}]
    handle = make_pool(cursorclass=SSCursor).get_connection()
    assert handle.execute_query("select 1 as one") == [(1,)]


def test_a_percent_sign_without_arguments(make_pool: MakePool) -> None:
    """Even empty arguments are formatted into the query; the error says how to write a percent sign."""
    connection = make_pool(size=1).get_connection()
    with connection as cur:
        for ask in (cur.db_query, cur.db_modify, connection.execute_query):
            with pytest.raises((TypeError, ValueError, pymysql.err.ProgrammingError), match=r"write %% .* args=None"):
                ask("select 'a' like 'a%'")
            ask("select 'a' like 'a%'", None)
            ask("select 'a' like 'a%%'")
        with pytest.raises(pymysql.err.ProgrammingError) as caught:  # the server's, which mentions a format
            cur.db_query("select format from")
        assert caught.value.args[0] != 0


def test_a_single_argument_is_deprecated_at_the_caller_s_line(make_pool: MakePool) -> None:
    """A single argument that is not in a tuple is deprecated, as in PyMySQL; the warning names the caller's line."""
    connection = make_pool(size=1).get_connection()
    with connection as cur:
        for ask in (cur.db_query, connection.execute_query):
            with pytest.warns(DeprecationWarning, match="a single argument is deprecated") as caught:
                assert ask("select %s", 7) == ((7,),)
            assert [warning.filename for warning in caught] == [__file__]

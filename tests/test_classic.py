"""The classic session: the exact log lines and the exact text of the error."""

from __future__ import annotations

import queue
import traceback
from typing import TYPE_CHECKING, Any

import pytest

import pymysqlpool
from pymysqlpool import ConnectionPool, GetConnectionFromPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import MakePool
    from server import Server

GET = "Get connection from pool(pool1)"
PUT = "Put connection back to pool(pool1)"


def test_the_classic_session(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Each step of the classic session logs the classic lines and nothing else, and returns the classic results."""

    def logged() -> list[str]:
        lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return lines

    caplog.set_level("DEBUG", logger="pymysqlpool")
    pool = pymysqlpool.ConnectionPool(size=2, name="pool1", autocommit=True, **server.connect_kwargs)
    assert logged() == []
    con1 = pool.get_connection()
    assert logged() == [f"DEBUG {GET}"]
    con2 = pool.get_connection()
    assert logged() == [f"DEBUG {GET}"]
    assert pool.size() == 0
    with pytest.raises(pymysqlpool.GetConnectionFromPoolError) as raised:
        pool.get_connection(timeout=0, retry_num=0)
    assert str(raised.value) == "can't get connection from pool(pool1) within 0*1 second(s)"
    assert logged() == []
    con1.close()
    assert logged() == [f"DEBUG {PUT}"]
    con2.close()
    assert logged() == [f"DEBUG {PUT}"]
    assert pool.size() == 2
    con2.close()
    assert logged() == []
    with con1 as cur:
        assert logged() == [f"DEBUG {GET}"]
        cur.execute("select 1+1")
        assert cur.fetchone() == (2,)
        assert logged() == []
    assert logged() == [f"DEBUG {PUT}"]
    assert con1.execute_query("select 1+1") == ((2,),)
    assert logged() == [f"DEBUG {GET}", f"DEBUG {PUT}"]
    with pool.get_connection() as cur:
        cur.execute("select 1+1")
    assert logged() == [f"DEBUG {GET}", f"DEBUG {PUT}"]
    pool.close()
    assert logged() == []


@pytest.fixture
def exhausted(make_pool: MakePool) -> Iterator[ConnectionPool]:
    """A pool of one connection, which this thread holds."""
    pool = make_pool(size=1)
    with pool.connection():
        yield pool


@pytest.mark.parametrize(
    ("kwargs", "seconds"),
    [
        ({"timeout": 0, "retry_num": 0}, "0*1"),
        ({"timeout": 0}, "0*2"),
        ({"timeout": 0, "retry_num": 3}, "0*4"),
        ({"timeout": 0.01, "retry_num": 2}, "0.01*3"),
        ({"retry_interval": 0.01, "retry_num": 1}, "0.01*2"),
    ],
)
@pytest.mark.parametrize("method", ["get_connection", "connection"])
def test_the_error_tells_seconds_and_tries(
    exhausted: ConnectionPool, method: str, kwargs: dict[str, Any], seconds: str
) -> None:
    """The error's text has the timeout and the number of tries, `retry_num + 1`."""
    with pytest.raises(GetConnectionFromPoolError) as raised, getattr(exhausted, method)(**kwargs):
        pass
    assert str(raised.value) == f"can't get connection from pool(pool1) within {seconds} second(s)"


def test_the_error_is_raised_while_handling_queue_empty(exhausted: ConnectionPool) -> None:
    """A traceback shows the two classic parts: `queue.Empty`, and the pool's error raised while handling it."""
    with pytest.raises(GetConnectionFromPoolError) as raised:
        exhausted.get_connection(0, 0)
    error = raised.value
    assert isinstance(error.__context__, queue.Empty)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    first, second = text.split("\nDuring handling of the above exception, another exception occurred:\n")
    assert "queue.Empty" in first
    line = "pymysqlpool.GetConnectionFromPoolError: can't get connection from pool(pool1) within 0*1 second(s)"
    assert line in second.splitlines()

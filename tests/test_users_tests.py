"""What users' own tests do: `connect` patched out, a frozen clock, every warning shown."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pymysql
import pytest
from helpers import set_clock

import pymysqlpool
from pymysqlpool import Connection, ConnectionPool, GetConnectionFromPoolError

if TYPE_CHECKING:
    from helpers import MakePool


@pytest.mark.parametrize("patched", [Connection, pymysql.connections.Connection])
def test_connect_patched_away(monkeypatch: pytest.MonkeyPatch, patched: type) -> None:
    """With `connect` patched out and no server, borrowing, blocks, returning and counting work."""
    monkeypatch.setattr(patched, "connect", lambda *_: None)
    with ConnectionPool(2, "pool1", host="127.0.0.1", port=1) as pool:
        assert (pool.size(), pool.total_num) == (2, 2)
        connection = pool.get_connection()
        assert isinstance(connection, Connection)
        assert (pool.size(), pool.available_num) == (1, 1)
        connection.close()
        connection.close()
        with connection as cursor:
            assert isinstance(cursor, pymysql.cursors.Cursor)
            assert isinstance(cursor.connection, Connection)
            assert pool.size() == 1
        with pytest.raises(ZeroDivisionError), pool.connection() as connection, connection.cursor():
            1 / 0  # noqa: B018
        connections = [pool.get_connection() for _ in range(2)]
        with pytest.raises(GetConnectionFromPoolError):
            pool.get_connection(timeout=0)
        for connection in connections:
            pool.put_connection(connection)
        assert (pool.size(), pool.available_num, pool.total_num) == (2, 2, 2)


def test_no_warning_escapes_a_plain_session(make_pool: MakePool) -> None:
    """A plain session emits no warning, even if every warning is shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with make_pool() as pool:
            with pool.get_connection() as cursor:
                cursor.execute("select 1")
            assert pool.get_connection().execute_query("select 1") == ((1,),)
    assert caught == []


def test_a_dead_handle_without_a_socket(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a user's test patches out `connect`, a session without a socket is closed like any other."""
    monkeypatch.setattr(pymysqlpool.Connection, "connect", lambda *_: None)
    pool = make_pool(size=1, pre_create_num=0)
    connection = pool.get_connection()
    connection._token.clear()  # interrupted in the middle of a reply
    connection.close()
    assert pool.total_num == 0


def test_a_clock_that_stands_still_makes_nobody_wait_for_ever(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait times out even if the clock is frozen, as in a user's test with freezegun."""
    pool = make_pool(size=1)
    held = pool.get_connection()
    set_clock(monkeypatch, lambda: 1.0)
    monkeypatch.setattr("pymysqlpool.fairqueue.monotonic", lambda: 1.0)
    with pytest.raises(pymysqlpool.GetConnectionFromPoolError):
        pool.get_connection(timeout=0.1, retry_num=0)
    held.close()

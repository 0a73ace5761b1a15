"""`ConnectionPoolSingleton`: one pool for all callers, as long as it is open."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from helpers import eventually, sessions

from pymysqlpool import ConnectionPool, ConnectionPoolSingleton

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pymysql
    from server import Server


@pytest.fixture
def singleton_kwargs(server: Server, database: str) -> Iterator[dict[str, Any]]:
    """The pool's arguments. The pool is closed afterwards."""
    kwargs = {"size": 2, "database": database, **server.connect_kwargs}
    yield kwargs
    ConnectionPoolSingleton(**kwargs).close()


def test_singleton_is_kept(singleton_kwargs: dict[str, Any]) -> None:
    """The second call returns the pool of the first call unchanged, whatever its arguments are."""
    pool = ConnectionPoolSingleton(**singleton_kwargs)
    connection = pool.get_connection()
    assert isinstance(pool, ConnectionPool)
    assert ConnectionPoolSingleton() is pool
    assert ConnectionPoolSingleton(size=7, name="other") is pool
    assert (pool.maxsize, pool.size()) == (2, 1)
    connection.close()
    assert pool.size() == 2


def test_singleton_is_replaced_after_close(singleton_kwargs: dict[str, Any]) -> None:
    """A closed pool is not kept: the next call makes another, which works."""
    first = ConnectionPoolSingleton(**singleton_kwargs)
    first.close()
    second = ConnectionPoolSingleton(**singleton_kwargs)
    assert second is not first
    assert second.get_connection().execute_query("select 1") == ((1,),)


@pytest.mark.parametrize("one_was_closed", [False, True])
def test_singleton_from_many_threads(
    server: Server,
    database: str,
    admin: pymysql.connections.Connection[Any],
    one_was_closed: bool,
) -> None:
    """Threads that make it at the same time get the same pool, and only its connections stay open."""

    class Singleton(ConnectionPoolSingleton):
        """One that no other test has made yet."""

    barrier = threading.Barrier(8)

    def make() -> ConnectionPool:
        barrier.wait()
        return Singleton(2, database=database, **server.connect_kwargs)

    if one_was_closed:
        Singleton(1, database=database, **server.connect_kwargs).close()
    with ThreadPoolExecutor(8) as threads:
        pools = [future.result() for future in [threads.submit(make) for _ in range(8)]]
    assert {id(pool) for pool in pools} == {id(pools[0])}
    assert pools[0].get_connection().execute_query("select 1") == ((1,),)
    eventually(lambda: len(sessions(admin, database)) == 2)
    pools[0].close()

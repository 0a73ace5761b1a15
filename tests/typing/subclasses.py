"""Subclasses of the connection and of the pool, the singleton, and pools that stand in annotations."""

from __future__ import annotations

from typing import Any

from pymysqlpool import Connection, ConnectionPool, ConnectionPoolSingleton


class Mine(Connection):
    """A connection with a method of its own."""

    def answer(self) -> int:
        """Ask for it."""
        row: tuple[int] = self.execute_query("select 42", return_one=True)
        return row[0]


class Pool(ConnectionPool):
    """A pool with arguments of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(size=1, name="mine", **config)

    def ping(self) -> bool:
        """Whether the server answers."""
        with self.get_connection() as cur:
            return cur.execute("select 1") == 1


class Repository:
    """A class that has a pool."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool

    def count(self) -> int:
        """Ask for it."""
        with self.pool.get_connection() as cur:
            cur.execute("select 1")
            number: int = cur.fetchone()[0]
            return number


def takes_pool_of_mine(pool: ConnectionPool[Mine]) -> int:
    """A pool by the class of its connections."""
    return pool.get_connection().answer()


def prepare(connection: Mine) -> None:
    """What each new session is prepared with."""
    assert connection.answer() == 42


def main(config: dict[str, Any]) -> None:
    """Run it."""
    with ConnectionPool(size=1, connection_class=Mine, on_connect=prepare, **config) as pool:
        conn = pool.get_connection()
        assert conn.answer() == 42
        conn.close()
        with pool.connection() as conn:
            assert conn.answer() == 42
        with pool.get_connection() as cur:
            assert cur.answer() == 42
        assert takes_pool_of_mine(pool) == 42
        assert Repository(pool).count() == 1
    with Pool(config) as mine:
        assert mine.ping()
        assert Repository(mine).count() == 1
    one: ConnectionPool = ConnectionPoolSingleton(size=1, **config)
    assert one.get_connection().execute_query("select 1") == ((1,),)
    assert (one.available_num, one.total_num, one.maxsize) == (1, 1, 1)
    one.close()

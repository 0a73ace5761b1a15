"""One adapter for each pool that is measured: how to create it, borrow, query and return."""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import queue
from typing import Any, Callable

#: The table for INSERTs, which `run.py` creates.
DATABASE = "pymysqlpool_benchmarks"
INSERT = f"insert into {DATABASE}.t values (1)"


class Unsupported(Exception):
    """The pool can't do what is measured."""


def select(connection: Any) -> Any:
    """Run a query and read all its rows."""
    cursor = connection.cursor()
    cursor.execute("select 1")
    rows = cursor.fetchall()
    cursor.close()
    return rows


def insert(connection: Any) -> None:
    """Write a row."""
    execute(connection, INSERT)


def transfer(connection: Any) -> None:
    """Write in a transaction of three statements."""
    for sql in ("begin", INSERT, INSERT, f"select count(*) from {DATABASE}.empty", "commit"):
        execute(connection, sql)


def execute(connection: Any, sql: str) -> None:
    """Run a statement, and read what rows it has."""
    cursor = connection.cursor()
    cursor.execute(sql)
    if cursor.description:
        cursor.fetchall()
    cursor.close()


def plain(connection: Any) -> Any:
    """A plain PyMySQL connection on the session of one that is a subclass of it."""
    pymysql = importlib.import_module("pymysql")
    # Some attributes are made when they are first asked for.
    late = {name: getattr(connection, name) for name in getattr(connection, "_originals", ())}
    raw = object.__new__(pymysql.connections.Connection)
    raw.__dict__.update(vars(connection), **late)
    return raw


class Pool:
    """A pool of `size` connections, of which `opened` are opened at once (None: all)."""

    title: str
    requirement: str | None = None
    """What to install in a folder of its own, for a pool that has our import name."""
    module: str

    borrow: Callable[[], Any]
    """Take a connection; it raises, or waits for ever, where there is none."""
    wait: Callable[[], Any]
    """Take a connection, however long that takes."""
    select = staticmethod(select)
    insert = staticmethod(insert)
    resets_all: dict[str, Any] | None = None
    """What to make it with, so that it undoes all that a borrower may have left; None if it can't."""
    give_back = staticmethod(operator.methodcaller("close"))

    def __init__(self, size: int, *, opened: int | None = None, autocommit: bool = True, **connect_kwargs: Any) -> None:
        raise NotImplementedError

    def read(self, sql: str) -> None:
        """Run a query in the usual way for this pool."""
        connection = self.borrow()
        execute(connection, sql)
        self.give_back(connection)

    def raw(self) -> Any:
        """A plain PyMySQL connection on the session that is borrowed next."""
        connection = self.borrow()
        raw = self._inner(connection)
        self.give_back(connection)
        return raw

    def _inner(self, connection: Any) -> Any:
        return plain(connection)


class PyMySQLPool(Pool):
    """The pool of this package."""

    title = "pymysqlpool"
    module = "pymysqlpool"
    resets_all = {"reset": "session"}  # noqa: RUF012  nobody changes it

    def __init__(self, size: int, *, opened: int | None = None, **connect_kwargs: Any) -> None:
        self.pool = importlib.import_module("pymysqlpool").ConnectionPool(size, pre_create_num=opened, **connect_kwargs)
        self.borrow = self.pool.get_connection
        self.wait = functools.partial(self.pool.get_connection, timeout=None)

    def read(self, sql: str) -> None:
        """Run a query in a block."""
        with self.pool.get_connection() as cursor:
            cursor.execute(sql)
            cursor.fetchall()


class LifoQueue(Pool):
    """No pool: raw connections in a `queue.LifoQueue`, and nothing else. It is the lower bound."""

    title = "bare LifoQueue"
    module = "queue"

    def __init__(self, size: int, *, opened: int | None = None, **connect_kwargs: Any) -> None:
        if opened is not None:
            raise Unsupported("it opens nothing")
        pymysql = importlib.import_module("pymysql")
        self.pool: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(size):
            self.pool.put(pymysql.connect(**connect_kwargs))
        self.borrow = self.wait = self.pool.get
        self.give_back = self.pool.put  # type: ignore[assignment]

    def _inner(self, connection: Any) -> Any:
        return connection


class OldPyMySQLPool(Pool):
    """The older package of the same name, with the same import name."""

    title = "pymysql-pool 0.5.0"
    requirement = "pymysql-pool==0.5.0"
    module = "pymysqlpool"

    def __init__(self, size: int, *, opened: int | None = None, **connect_kwargs: Any) -> None:
        module = importlib.import_module("pymysqlpool")
        self._exhausted = module.GetConnectionFromPoolError
        self.pool = module.ConnectionPool(
            size, maxsize=size, pre_create_num=size if opened is None else opened, **connect_kwargs
        )
        self.borrow = self.pool.get_connection

    def wait(self) -> Any:
        """Take a connection, after as many tries as necessary."""
        while True:
            with contextlib.suppress(self._exhausted):
                return self.borrow()


class SQLAlchemy(Pool):
    """SQLAlchemy's QueuePool by itself, as it stands under its engine."""

    title = "SQLAlchemy QueuePool"
    module = "sqlalchemy.pool"

    def __init__(self, size: int, *, opened: int | None = None, **connect_kwargs: Any) -> None:
        pymysql, pool = importlib.import_module("pymysql"), importlib.import_module("sqlalchemy.pool")
        creator = functools.partial(pymysql.connect, **connect_kwargs)
        self.pool = pool.QueuePool(creator, pool_size=size, max_overflow=0, timeout=3600)
        self.borrow = self.wait = self.pool.connect
        for connection in [self.borrow() for _ in range(size if opened is None else opened)]:
            self.give_back(connection)

    def _inner(self, connection: Any) -> Any:
        return connection.dbapi_connection


class DBUtils(Pool):
    """DBUtils' PooledDB with PyMySQL."""

    title = "DBUtils PooledDB"
    module = "dbutils.pooled_db"

    def __init__(self, size: int, *, opened: int | None = None, **connect_kwargs: Any) -> None:
        pymysql, pooled_db = importlib.import_module("pymysql"), importlib.import_module("dbutils.pooled_db")
        self.pool = pooled_db.PooledDB(
            pymysql,
            mincached=size if opened is None else opened,
            maxconnections=size,
            blocking=True,
            **connect_kwargs,
        )
        self.borrow = self.wait = self.pool.connection

    def _inner(self, connection: Any) -> Any:
        return connection._con._con


class MySQLConnector(Pool):
    """MySQL's own driver, in pure Python, with its pool."""

    title = "mysql-connector-python, pure"
    module = "mysql.connector.pooling"
    resets_all = {}  # noqa: RUF012  it always does

    def __init__(self, size: int, *, opened: int | None = None, **connect_kwargs: Any) -> None:
        if size > 32 or opened is not None:
            raise Unsupported("it has 32 connections at most, and opens all at once")
        self._connect_kwargs = connect_kwargs
        self.pool = importlib.import_module("mysql.connector.pooling").MySQLConnectionPool(
            pool_size=size,
            use_pure=True,
            charset="utf8mb4",
            collation="utf8mb4_general_ci",  # its default is unknown to MariaDB
            **{"autocommit": False, **connect_kwargs},
        )
        self.borrow = self.pool.get_connection

    @property
    def wait(self) -> Any:  # type: ignore[override]
        """Not supported: it has no queue of waiters."""
        raise Unsupported("nobody can wait for a connection")

    def raw(self) -> Any:
        """A plain PyMySQL connection, on a session of its own, as the driver is a different one."""
        return importlib.import_module("pymysql").connect(**self._connect_kwargs)


class Peewee(Pool):
    """Peewee's PooledMySQLDatabase with PyMySQL, which always has autocommit on."""

    title = "peewee PooledMySQLDatabase"
    module = "playhouse.pool"

    def __init__(
        self,
        size: int,
        *,
        opened: int | None = None,
        autocommit: bool = True,
        database: str = "information_schema",
        **connect_kwargs: Any,
    ) -> None:
        if size > 1 or opened is not None or not autocommit:
            raise Unsupported("a thread has one connection, opens it when it borrows, and with autocommit")
        pool = importlib.import_module("playhouse.pool")
        self.pool = pool.PooledMySQLDatabase(database, max_connections=size, **connect_kwargs)

    def borrow(self) -> Any:
        """Take a connection, which is this thread's."""
        self.pool.connect()
        return self.pool

    @staticmethod
    def select(connection: Any) -> Any:
        """Run a query and read all its rows."""
        return connection.execute_sql("select 1").fetchall()

    @staticmethod
    def insert(connection: Any) -> None:
        """Write a row."""
        connection.execute_sql(INSERT)

    def read(self, sql: str) -> None:
        """Run a query and read all its rows."""
        self.borrow().execute_sql(sql).fetchall()
        self.pool.close()

    def _inner(self, connection: Any) -> Any:
        return connection.connection()


PEERS: dict[str, type[Pool]] = {
    peer.__name__: peer
    for peer in (PyMySQLPool, LifoQueue, OldPyMySQLPool, SQLAlchemy, DBUtils, MySQLConnector, Peewee)
}

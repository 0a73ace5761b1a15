"""A connection pool for PyMySQL: nothing crosses from one borrower to the next.

pool = pymysqlpool.ConnectionPool(size=2, name="pool1", host=..., user=..., password=..., database=...)
with pool.get_connection() as cur:
    cur.execute("select 1+1")
"""

import logging

from .connection import Connection
from .cursors import Cursor, DictCursor
from .errors import GetConnectionFromPoolError, PoolClosedError, PoolError, ReturnConnectionToPoolError, is_retryable
from .log import logger
from .pool import ConnectionPool, ConnectionPoolSingleton
from .stats import PoolStats

__version__ = "1.0.0"

__all__ = [
    "Connection",
    "ConnectionPool",
    "ConnectionPoolSingleton",
    "Cursor",
    "DictCursor",
    "GetConnectionFromPoolError",
    "PoolClosedError",
    "PoolError",
    "PoolStats",
    "ReturnConnectionToPoolError",
    "__version__",
    "is_retryable",
    "logger",
    "logging",
]

"""A thread-safe connection pool for PyMySQL that gives every borrower a clean session.

pool = pymysqlpool.ConnectionPool(size=2, name="pool1", host=..., user=..., password=..., database=...)
with pool.get_connection() as cur:
    cur.execute("select 1+1")

The terms used in the code:

==========  ======================================================================================================
connection  The `Connection` object that a borrower uses, also called a handle. It is valid for one borrow only.
place       The right to one server connection. A pool always has `maxsize` places.
session     The connection as the server sees it, with its socket. It outlives the handles that use it in turn.
successor   The new handle that gets the session when a connection is returned. Handles are copies of a template.
token       What a thread must hold to send a command or read a reply on a handle; see `Wire` in `wire.py`.
loan        The record of one borrow: which thread has the place, since when, and from which source line.
block       A `with` block: a unit of work that commits or rolls back, and then returns its connection.
reset       The commands that clean a session after a borrow. They are sent on return; the replies are read later.
pending     Said of those replies until they are read, and of a session that still has such replies to read.
==========  ======================================================================================================

Read `connection.py` and `pool.py` first. Next come the places and the queue that holds them: `places.py`, `place.py`
and `fairqueue.py`; then what a borrower works with: `block.py` and `cursors.py`; then what depends on the server:
`session.py`, `reset.py`, `opening.py`, `wire.py`, `statements.py` and `driver.py`; and last `errors.py`, `stats.py`,
`log.py` and `metrics.py`. `__main__.py` is the command-line tool, `django/` the backend for Django.
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

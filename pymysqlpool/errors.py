"""The pool's errors, each at its place among PyMySQL's, and what an error says about the session it came from."""

from __future__ import annotations

from typing import Any

from pymysql.err import Error, InterfaceError, InternalError, OperationalError


class PoolError(Error):
    """What goes wrong in the pool or in the way it is used, not on the server."""


class GetConnectionFromPoolError(PoolError, OperationalError):
    """No connection came free in time.

    `holders` tells who has them: a list of dicts with `thread` (name), `alive` (whether it still runs), `seconds` (held
    so far), `file` and `line` of the borrow, and `opening` (True) while the connection is being opened.
    """

    holders: list[dict[str, Any]]


class ReturnConnectionToPoolError(PoolError, InterfaceError):
    """The connection is back in the pool, or another pool's: what was asked of it can't be done."""


class PoolClosedError(PoolError, InterfaceError):
    """The pool is closed and lends no connections any more."""


for _error in (PoolError, GetConnectionFromPoolError, ReturnConnectionToPoolError, PoolClosedError):
    _error.__module__ = "pymysqlpool"

# Server errors after which the session is gone: shutdown, killed, idle for too long, and the network errors.
# https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-codes/
_SESSION_GONE = {1053, 1927, 4031, *range(1152, 1162)}
# The session lives, but its server has become read-only, as after a failover: another connection may find the new
# primary.
_SERVER_READ_ONLY = {1290, 1792, 1836}


def session_survives(error: OperationalError | InternalError) -> bool:
    """Whether the session that answered with this error is sound.

    PyMySQL puts every code that it does not know in these two classes.

    Codes below 1000 are not a server's, and those from 2000 to 2999 mean that the client lost the session or its place
    in the protocol.
    """
    code = error.args[0] if error.args else None
    return (
        isinstance(code, int)
        and (1000 <= code < 2000 or code >= 3000)
        and code not in _SESSION_GONE
        and code not in _SERVER_READ_ONLY
    )

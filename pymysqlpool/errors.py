"""The pool's errors, which are derived from PyMySQL's, and what an error means for its session."""

from __future__ import annotations

from typing import Any, Callable

from pymysql.err import Error, InterfaceError, InternalError, MySQLError, OperationalError


class PoolError(Error):
    """The base class of the pool's errors. The cause is the pool or the way it is used, not the server."""

    #: Whether the command may have been committed in spite of the error. The pool sets this attribute on every
    #: MySQLError that a borrower's command raises.
    outcome_unknown = False


class GetConnectionFromPoolError(PoolError, OperationalError):
    """No connection became free in time.

    `__cause__` is the last error in opening a connection, if none has been opened since. It is None if the borrower was
    refused because of `max_waiting`.
    """

    #: The loans at that moment: dicts with `thread` (its name), `alive` (whether that thread still runs), `seconds`
    #: (how long the connection has been borrowed, a float), `file` and `line` of the borrow, and, only while the
    #: connection is being opened, `opening` (True).
    holders: list[dict[str, Any]]


class ReturnConnectionToPoolError(PoolError, InterfaceError):
    """The connection has been returned, or belongs to another pool."""


class PoolClosedError(PoolError, InterfaceError):
    """The pool is closed."""


for _error in (PoolError, GetConnectionFromPoolError, ReturnConnectionToPoolError, PoolClosedError):
    _error.__module__ = "pymysqlpool"

# Codes below 1000 and from 2000 to 2999 come from the client, all others from the server.
# https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html
# https://dev.mysql.com/doc/mysql-errors/en/client-error-reference.html
# https://mariadb.com/kb/en/mariadb-error-codes/

# The server has ended the session.
_SESSION_GONE = {
    1053,  # ER_SERVER_SHUTDOWN
    1927,  # ER_CONNECTION_KILLED, in MariaDB
    4031,  # ER_CLIENT_INTERACTION_TIMEOUT: idle for longer than wait_timeout, in MySQL
    *range(1152, 1162),  # the network errors, from ER_ABORTING_CONNECTION to ER_NET_WRITE_INTERRUPTED
}
# The session is alive, but its server refuses the command. A new connection may reach another node, which accepts it.
_NOT_THIS_NODE = {
    1047,  # ER_UNKNOWN_COM_ERROR: a Galera node that is not ready, or rejects queries (wsrep_reject_queries)
    1180,  # ER_ERROR_DURING_COMMIT: a Galera node was lost in the middle of a COMMIT
    1290,  # ER_OPTION_PREVENTS_STATEMENT: the server is set --read-only, for example after a failover
    1792,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    1836,  # ER_READ_ONLY_MODE
    3100,  # ER_RUN_HOOK_ERROR: group replication cannot certify the transaction
    3101,  # ER_TRANSACTION_ROLLBACK_DURING_COMMIT: group replication has rolled the transaction back
}
_CONFLICT = {
    1205,  # ER_LOCK_WAIT_TIMEOUT: the statement was rolled back, but not the transaction
    1213,  # ER_LOCK_DEADLOCK: the transaction was rolled back
}
# The client could not reach a server: CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR and CR_UNKNOWN_HOST.
_NOT_CONNECTED = {2002, 2003, 2005}
# ER_CON_COUNT_ERROR and ER_TOO_MANY_USER_CONNECTIONS.
_FULL = {1040, 1203}
# ER_USER_LIMIT_REACHED, for `max_user_connections` and also for limits per hour.
_USER_LIMIT = 1226
# The client has lost the session: CR_SERVER_GONE_ERROR, CR_SERVER_LOST and CR_SERVER_LOST_EXTENDED.
_CONNECTION_LOST = {2006, 2013, 2055} | _SESSION_GONE


def _code(error: BaseException) -> int:
    code = error.args[0] if error.args else None
    return code if isinstance(code, int) else 0


def is_retryable(error: BaseException) -> bool:
    """Return whether `error` means that nothing was done, and that another try may succeed.

    This applies to the transaction that failed, or to the single statement under autocommit, but not to what the same
    unit of work has committed before. After 1205 (ER_LOCK_WAIT_TIMEOUT) the server has rolled back only the statement:
    let the error end the block, which rolls back the rest. An error from a connection without a pool is judged by its
    code alone.
    """
    code = _code(error)
    if not isinstance(error, MySQLError) or getattr(error, "outcome_unknown", code == 1180):
        return False
    return (
        isinstance(error, GetConnectionFromPoolError)
        or code in _CONFLICT
        or code in _NOT_THIS_NODE
        or code in _NOT_CONNECTED
        or is_full(error)
        or (code in _CONNECTION_LOST and "outcome_unknown" in vars(error))
    )


def is_full(error: BaseException) -> bool:
    """Return whether the server, or its limit for this user, allows no more connections at the moment."""
    code = _code(error)
    return code in _FULL or (code == _USER_LIMIT and "max_user_connections" in str(error))


def refuses_sessions(error: BaseException) -> bool:
    """Return whether a connection may be opened later: the server is full, or a cluster node is not ready."""
    return is_full(error) or _code(error) == 1047


def set_outcome(error: MySQLError, may_have_committed: Callable[[], bool]) -> None:
    """Set `error.outcome_unknown`: whether the connection, or the node, was lost at a command that may have committed.

    `may_have_committed` is called only if the connection was lost: it reads the whole statement, which may be long.
    """
    if "outcome_unknown" in vars(error):
        return
    code = _code(error)
    error.outcome_unknown = code == 1180 or (code in _CONNECTION_LOST and may_have_committed())  # type: ignore[attr-defined]


def session_survives(error: OperationalError | InternalError) -> bool:
    """Return whether the session can still be used after this error.

    The code decides, because PyMySQL uses these two classes for every code that it does not know. A code of the
    client's own means that it has lost the session, or its position in the protocol.
    """
    code = _code(error)
    return (1000 <= code < 2000 or code >= 3000) and code not in _SESSION_GONE and code not in _NOT_THIS_NODE

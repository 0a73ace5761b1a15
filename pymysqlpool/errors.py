"""The pool's errors, each at its place among PyMySQL's, and what an error says about the session it came from."""

from __future__ import annotations

from typing import Any

from pymysql.err import Error, InterfaceError, InternalError, MySQLError, OperationalError


class PoolError(Error):
    """What goes wrong in the pool or in the way it is used, not on the server."""

    #: Every MySQLError that a borrower's command meets with has it: whether it may have been committed all the same.
    outcome_unknown = False


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

# https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html, https://mariadb.com/kb/en/mariadb-error-codes/

# Server errors after which the session is gone: shutdown, killed, idle for too long, and the network errors.
_SESSION_GONE = {1053, 1927, 4031, *range(1152, 1162)}
# The session lives, but its server does not take what was asked of it: another connection may find a node that does.
_NOT_THIS_NODE = {
    1047,  # ER_UNKNOWN_COM_ERROR: a Galera node that is not ready, or rejects queries (wsrep_reject_queries)
    1180,  # ER_ERROR_DURING_COMMIT: Galera, where the node is lost in the middle of a COMMIT
    1290,  # ER_OPTION_PREVENTS_STATEMENT: --read-only, as after a failover
    1792,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    1836,  # ER_READ_ONLY_MODE
    3100,  # ER_RUN_HOOK_ERROR: group replication can't certify
    3101,  # ER_TRANSACTION_ROLLBACK_DURING_COMMIT: group replication has rolled it back
}
# The transaction was rolled back, or, after 1205, the statement.
_CONFLICT = {1205, 1213}
# The client has not reached a server, or it was full: 1203 is ER_TOO_MANY_USER_CONNECTIONS, and so is 1226 for
# `max_user_connections`, but not for what is counted by the hour.
_NOT_CONNECTED = {2002, 2003, 2005}
_FULL = {1040, 1203}
_USER_LIMIT = 1226
# The client has lost the session.
_CONNECTION_LOST = {2006, 2013, 2055} | _SESSION_GONE


def _code(error: BaseException) -> int:
    code = error.args[0] if error.args else None
    return code if isinstance(code, int) else 0


def is_retryable(error: BaseException) -> bool:
    """Whether nothing was done for certain, and to do the same again may succeed.

    It speaks of the transaction that has met with `error`, or of the one statement under autocommit; what the same unit
    of work has committed before is not undone. After 1205 the server has undone the statement only: let the block end
    by the error, which rolls back the rest. Errors of other connections than the pool's are judged by their code.
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
    """Whether the server takes no more connections at the moment."""
    code = _code(error)
    return code in _FULL or (code == _USER_LIMIT and "max_user_connections" in str(error))


def refuses_sessions(error: BaseException) -> bool:
    """Whether an opening has found a server that will take sessions later: it is full, or a node not ready."""
    return is_full(error) or _code(error) == 1047


def set_outcome(error: MySQLError, *, may_have_committed: bool) -> None:
    """Set `error.outcome_unknown`: the connection was lost, or the server gave up, where it may have committed."""
    if "outcome_unknown" in vars(error):
        return
    code = _code(error)
    error.outcome_unknown = code == 1180 or (may_have_committed and code in _CONNECTION_LOST)  # type: ignore[attr-defined]


def session_survives(error: OperationalError | InternalError) -> bool:
    """Whether the session that answered with this error is sound.

    PyMySQL puts every code that it does not know in these two classes.

    Codes below 1000 are not a server's, and those from 2000 to 2999 mean that the client lost the session or its place
    in the protocol.
    """
    code = _code(error)
    return (1000 <= code < 2000 or code >= 3000) and code not in _SESSION_GONE and code not in _NOT_THIS_NODE

"""Open a session, and find out what a reset of it has to restore."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pymysql.constants import CLIENT, ER
from pymysql.err import DatabaseError

from .driver import SERVER_SESSION_STATE_CHANGED
from .reset import TRACKING, Reset, Server, fetch_rows
from .session import Session

if TYPE_CHECKING:
    import ssl

    from .driver import PyMySQLConnection


# MySQL 5.7, and other servers that speak its protocol, have no roles. They answer a query for the role with one of
# these errors.
_NO_ROLES_ERRORS = frozenset(
    [
        ER.NO_DB_ERROR,
        ER.PARSE_ERROR,
        ER.UNKNOWN_ERROR,
        ER.UNKNOWN_TABLE,
        ER.NO_SUCH_TABLE,
        ER.NOT_SUPPORTED_YET,
        ER.SP_DOES_NOT_EXIST,
    ]
)


class Opener:
    """Opens a pool's sessions. What it learns about a server is kept for all sessions on that server.

    `lifetime` is the lifetime of a session in seconds; `reset` is the pool's option of that name.
    """

    def __init__(self, pool_name: str, lifetime: float, reset: str | None) -> None:
        self._pool_name = pool_name
        self._lifetime = lifetime
        self._resets = reset in ("auto", "session")
        self._trusts = reset != "session"
        self._servers: dict[object, Server] = {}
        self._tls_session: ssl.SSLSession | None = None

    def open(self, connection: PyMySQLConnection) -> Session:
        """Connect `connection`, turn session tracking on, and return the new session.

        Raises the errors of `connect()`.
        """
        context = connection.ctx if connection.ssl else None
        if context is not None and self._tls_session is not None:
            # Resuming the TLS session of an earlier connection saves the server a signature, and halves the time.
            resume = functools.partial(context.wrap_socket, session=self._tls_session)
            connection.ctx = SimpleNamespace(wrap_socket=resume)
        try:
            connection.connect()
        finally:
            if context is not None:
                connection.ctx = context
        session = Session(connection, self._lifetime)
        if session.sock is None:  # a user's unit test has patched out `connect`
            return session
        self._tls_session = getattr(session.sock, "session", None)
        if can_track(connection) and not hasattr(connection, "set_character_set"):  # pragma: no cover  before 1.1
            track(connection, "")
        session.is_trusted = connection._is_tracked and self._trusts
        if self._resets:
            session.reset = self._make_reset(connection)
        return session

    def _make_reset(self, connection: PyMySQLConnection) -> Reset:
        identity, database, role = _query_identity(connection)
        server = self._servers.get(identity)
        if server is None:
            server = self._servers.setdefault(identity, Server(self._pool_name, connection))
        if not connection.get_autocommit():
            connection.commit()  # `init_command`, or a query above, may have begun a transaction, with its snapshot
        return Reset(server, connection, database=database, role=role)


def can_track(connection: PyMySQLConnection) -> bool:
    """Whether the server, or the proxy in front of it, announces that it can report changes to the session."""
    return bool(connection.server_capabilities & CLIENT.SESSION_TRACK)


def track(connection: PyMySQLConnection, settings: str) -> None:
    """Turn session tracking on, in one SET with `settings`, and check that it works.

    A proxy may announce session tracking but not pass the reports on. Turning it on is itself a change to the session,
    so the reply to this statement has to report a change.
    """
    connection.query(f"SET {settings}{TRACKING}")
    connection._is_tracked = bool(connection.server_status & SERVER_SESSION_STATE_CHANGED)


def _query_identity(connection: PyMySQLConnection) -> tuple[object, str | None, str | None]:
    """Return the server's identity, the session's database, and what restores its role (None if it has no role).

    On MariaDB that is `ROLE x`, a part of a SET; on MySQL it is the statement `SET ROLE x`. The format of the role's
    name tells the two apart. The version in the handshake cannot, as it may be that of a proxy.
    """
    query = "SELECT @@hostname, @@port, DATABASE(), {}"
    try:
        [row] = fetch_rows(
            connection, query.format("CURRENT_ROLE(), (SELECT COUNT(*) > 0 FROM information_schema.applicable_roles)")
        )
    except DatabaseError as error:
        if error.args[0] not in _NO_ROLES_ERRORS:
            raise
        [row] = fetch_rows(connection, query.format("'NONE', 0"))
    hostname, port, database, role, may_have_role = row
    identity = (hostname, port, connection.get_server_info(), connection.server_capabilities)
    if role is None or (role != "NONE" and role[0] not in '`"'):  # MariaDB, which does not quote the name
        return identity, database, f"ROLE {'NONE' if role is None else connection.escape(role)}"
    return identity, database, f"SET ROLE {role}" if may_have_role == "1" else None

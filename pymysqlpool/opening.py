"""Opening a session, and asking what of it a reset has to restore."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pymysql.constants import CLIENT, ER
from pymysql.err import DatabaseError

from .driver import SERVER_SESSION_STATE_CHANGED
from .reset import TRACKING, Reset, Server, rows, session_variables
from .session import Session

if TYPE_CHECKING:
    import ssl

    from .driver import PyMySQLConnection


# MySQL 5.7, and what only speaks its protocol, have no roles, and say so in one of these ways.
_NO_ROLES_THERE = frozenset(
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
    """Opens a pool's sessions, and keeps what one of them tells about its server for the next one on that server."""

    def __init__(self, pool_name: str, lifetime: float, reset: str | None) -> None:
        self._pool_name = pool_name
        self._lifetime = lifetime
        self._resets = reset in ("auto", "session")
        self._trusts = reset != "session"
        self._servers: dict[object, Server] = {}
        self._tls_session: ssl.SSLSession | None = None

    def open(self, connection: PyMySQLConnection) -> Session:
        """Connect, with the tracker on, and return the session.

        Raises what `connect()` raises.
        """
        context = connection.ctx if connection.ssl else None
        if context is not None and self._tls_session is not None:
            # To resume what another connection has agreed on saves the server its signature, half of the time.
            resume = functools.partial(context.wrap_socket, session=self._tls_session)
            connection.ctx = SimpleNamespace(wrap_socket=resume)
        try:
            connection.connect()
        finally:
            if context is not None:
                connection.ctx = context
        session = Session(connection, self._lifetime)
        if session.sock is None:  # where `connect` has been patched away
            return session
        self._tls_session = getattr(session.sock, "session", None)
        if can_track(connection) and not hasattr(connection, "set_character_set"):  # pragma: no cover  before 1.1
            track(connection, "")
        session.is_trusted = connection._is_tracked and self._trusts
        if self._resets:
            session.reset = self._make_reset(connection)
        return session

    def _make_reset(self, connection: PyMySQLConnection) -> Reset:
        identity, database, role = _ask(connection)
        server = self._servers.get(identity)
        if server is None:
            server = self._servers.setdefault(identity, Server(self._pool_name, session_variables(connection)))
        if not connection.get_autocommit():
            connection.commit()  # `init_command`, or a question here, may have begun a transaction with its snapshot
        return Reset(server, connection, database=database, role=role)


def can_track(connection: PyMySQLConnection) -> bool:
    """Whether the server, and a proxy in front of it, report changes in the session."""
    return bool(connection.server_capabilities & CLIENT.SESSION_TRACK)


def track(connection: PyMySQLConnection, settings: str) -> None:
    """Turn the tracker on, together with other `settings`, and see whether it works.

    A proxy may announce what it does not pass on. To turn it on is a change itself, and the first that is reported.
    """
    connection.query(f"SET {settings}{TRACKING}")
    connection._is_tracked = bool(connection.server_status & SERVER_SESSION_STATE_CHANGED)


def _ask(connection: PyMySQLConnection) -> tuple[object, str | None, str | None]:
    """Which server this is, the session's database, and what leads back to its role; None where it can have none.

    MariaDB has `ROLE x` within a SET, MySQL `SET ROLE x`. Their answers tell which it is: the greeting is a proxy's.
    """
    ask = "SELECT @@hostname, @@port, DATABASE(), {}"
    try:
        [row] = rows(
            connection, ask.format("CURRENT_ROLE(), (SELECT COUNT(*) > 0 FROM information_schema.applicable_roles)")
        )
    except DatabaseError as error:
        if error.args[0] not in _NO_ROLES_THERE:
            raise
        [row] = rows(connection, ask.format("'NONE', 0"))
    hostname, port, database, role, may_have_role = row
    identity = (hostname, port, connection.get_server_info(), connection.server_capabilities)
    if role is None or (role != "NONE" and role[0] not in '`"'):  # MariaDB's, which quotes no name
        return identity, database, f"ROLE {'NONE' if role is None else connection.escape(role)}"
    return identity, database, f"SET ROLE {role}" if may_have_role == "1" else None

"""Opening a session, and how it is reset: back to what `connect()` made of it."""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pymysql.charset import charset_by_name
from pymysql.constants import CLIENT, COMMAND
from pymysql.err import DatabaseError

from .driver import COM_RESET_CONNECTION, SERVER_SESSION_STATE_CHANGED
from .log import logger
from .session import Commands, Session, to_commands

if TYPE_CHECKING:
    import ssl

    from .driver import PyMySQLConnection

# What stands behind SET to let the tracker also report what has no tracker of its own.
_TRACKING = "SESSION session_track_state_change = 1"

# These session variables change by themselves, or tell of the last statement or transaction.
_VOLATILE = frozenset(
    """
    error_count gtid_next identity in_transaction insert_id last_gtid last_insert_id pseudo_thread_id rand_seed1
    rand_seed2 session_track_state_change statement_id timestamp warning_count
    """.split()  # noqa: SIM905  a list takes a line for each
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
            server = self._servers.setdefault(identity, Server(self._pool_name, _session_variables(connection)))
        if not connection.get_autocommit():
            connection.commit()  # `init_command`, or a question here, may have begun a transaction with its snapshot
        return Reset(server, connection, database=database, role=role)


class Server:
    """What a server does not restore when it resets a session.

    The server's `init_connect`, the client's flags and the user's limits are not applied again. What came of them is
    not listed here but looked at: by comparing the variables of a session that was reset with those of a new one.
    """

    def __init__(self, pool_name: str, variables: dict[str, str]) -> None:
        self._pool_name = pool_name
        #: A new session's variables.
        self._variables = variables
        #: What stands behind SET to restore them; None: no session was reset and looked at yet.
        self.settings: tuple[str, ...] | None = None
        #: The names of those that can't be restored.
        self.kept: tuple[str, ...] = ()

    def look(self, connection: PyMySQLConnection) -> None:
        """Look at the first session that was reset, and restore what the reset has not.

        Raises PyMySQL's error where the session is lost.
        """
        settings = []
        changed = self._changed_in(connection)
        for name, value in changed.items():
            setting = f"SESSION {name} = {_literal(connection, value)}"
            with contextlib.suppress(DatabaseError):
                connection.query(f"SET {setting}")
                settings.append(setting)
        self.kept = tuple(self._changed_in(connection)) if changed else ()
        self.settings = tuple(settings)
        if not connection.get_autocommit():
            connection.commit()  # the questions may have begun a transaction with its snapshot
        if self.kept:
            logger.warning(
                "pool(%s): a reset does not restore %s on this server: its sessions are replaced instead of reset",
                self._pool_name,
                ", ".join(self.kept),
            )

    def _changed_in(self, connection: PyMySQLConnection) -> dict[str, str]:
        found = _session_variables(connection)
        return {
            name: value
            for name, value in self._variables.items()
            if found.get(name, value) != value and _is_of_session(connection, name)
        }


class Reset:
    """How one session is made again what `connect()` has made it.

    Two things are kept by COM_RESET_CONNECTION. The role is set again. The database is chosen again only where a
    statement may have changed it; the SET fails where it is another one all the same, and then the session is replaced.
    """

    def __init__(
        self,
        server: Server,
        connection: PyMySQLConnection,
        *,
        database: str | None,
        role: str | None,
    ) -> None:
        self.server = server
        encode = functools.partial(str.encode, encoding=connection.encoding)
        autocommit = connection.autocommit_mode
        final_autocommit = "@@autocommit" if autocommit is None else str(int(autocommit))
        # connect() leaves the server's own in force until `init_command` has run, so that no transaction begins.
        first_autocommit = final_autocommit if connection.init_command is None else "@@autocommit"
        wanted = "NULL" if database is None else connection.escape(database)
        settings = [
            names(connection.charset, _collation(connection)),
            # There is no autocommit 2: the statement fails.
            f"autocommit = IF(DATABASE() <=> {wanted}, {first_autocommit}, 2)",
        ]
        if connection.sql_mode is not None:
            settings.append(f"sql_mode = {connection.escape(connection.sql_mode)}")
        if connection._is_tracked:
            settings.append(_TRACKING)
        after: list[str] = []
        if role is not None and _is_mariadb(connection):
            settings.append(f"ROLE {role}")
        elif role is not None:  # pragma: no cover  on MySQL, which has it as a statement of its own
            after.append(f"SET ROLE {role}")
        if connection.init_command is not None:
            after.append(connection.init_command)
            after.append(f"SET autocommit = {final_autocommit}")
            if autocommit is not True:
                after.append("COMMIT")
        self._set = encode("SET " + ", ".join(settings))
        self._after = [encode(statement) for statement in after]
        self._database = None if database is None else encode(database)
        self._built_for: tuple[str, ...] | None = ()
        self._plain, self._with_database = self._build(b"")

    def commands(self, *, with_database: bool) -> Commands:
        """The commands for it, to be written in one go."""
        server = self.server
        if server.settings and server.settings is not self._built_for:
            self._built_for = server.settings
            self._plain, self._with_database = self._build(b"".join(b", " + each.encode() for each in server.settings))
        return self._with_database if with_database else self._plain

    def _build(self, restored: bytes) -> tuple[Commands, Commands]:
        first = [(COM_RESET_CONNECTION, b"")]
        database = [] if self._database is None else [(COMMAND.COM_INIT_DB, self._database)]
        rest = [(COMMAND.COM_QUERY, statement) for statement in (self._set + restored, *self._after)]
        return to_commands(*first, *rest), to_commands(*first, *database, *rest)


def can_track(connection: PyMySQLConnection) -> bool:
    """Whether the server, and a proxy in front of it, report changes in the session."""
    return bool(connection.server_capabilities & CLIENT.SESSION_TRACK)


def track(connection: PyMySQLConnection, settings: str) -> None:
    """Turn the tracker on, together with other `settings`, and see whether it works.

    A proxy may announce what it does not pass on. To turn it on is a change itself, and the first that is reported.
    """
    connection.query(f"SET {settings}{_TRACKING}")
    connection._is_tracked = bool(connection.server_status & SERVER_SESSION_STATE_CHANGED)


def names(charset: str, collation: str | None) -> str:
    """What stands behind SET for a character set."""
    return f"NAMES {charset}" + (f" COLLATE {collation}" if collation else "")


def _collation(connection: PyMySQLConnection) -> str | None:
    # Before 1.1 PyMySQL did not say SET NAMES in connect(), and the collation was that of the handshake.
    handshake: Any = charset_by_name(connection.charset)
    collation: str | None = getattr(connection, "collation", handshake.collation)
    return collation


def _is_mariadb(connection: PyMySQLConnection) -> bool:
    return "MariaDB" in connection.get_server_info()


def _ask(connection: PyMySQLConnection) -> tuple[object, str | None, str | None]:
    """Which server this is, the session's database, and its role as SET ROLE takes it.

    The role is None where the session can have none.
    """
    may_have_role = "1" if _is_mariadb(connection) else "(SELECT COUNT(*) > 0 FROM information_schema.applicable_roles)"
    try:
        [row] = _rows(connection, f"SELECT @@hostname, @@port, DATABASE(), {may_have_role}, CURRENT_ROLE()")
    except DatabaseError:
        if not connection.open:
            raise
        [row] = _rows(connection, "SELECT @@hostname, @@port, DATABASE(), 0, NULL")  # MySQL 5.7 has no roles
    hostname, port, database, may_have_role, role = row
    identity = (hostname, port, connection.get_server_info(), connection.server_capabilities)
    if may_have_role != "1":
        role = None
    elif _is_mariadb(connection):  # pragma: no branch  on MySQL it is a list already
        role = "NONE" if role is None else connection.escape(role)
    return identity, database, role


def _session_variables(connection: PyMySQLConnection) -> dict[str, str]:
    return {name: value for name, value in _rows(connection, "SHOW SESSION VARIABLES") if name not in _VOLATILE}


def _is_of_session(connection: PyMySQLConnection, variable: str) -> bool:
    """Whether it is a session's, and not one of the server, which SHOW shows too and others may change meanwhile."""
    try:
        connection.query(f"SELECT @@SESSION.{variable}")
    except DatabaseError:
        return False
    return True


def _rows(connection: PyMySQLConnection, sql: str) -> Any:
    """The rows of a query as strings, whatever the user's converters make of them."""
    converters = connection.decoders, connection.use_unicode
    connection.decoders, connection.use_unicode = {}, True
    try:
        connection.query(sql)
        return connection._result.rows
    finally:
        connection.decoders, connection.use_unicode = converters


def _literal(connection: PyMySQLConnection, value: str) -> str:
    """How `value`, as SHOW VARIABLES has it, is written in a SET."""
    try:
        float(value)
    except ValueError:
        return connection.escape(value)
    return value

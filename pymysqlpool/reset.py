"""Reset a session: restore the state in which `connect()` left it."""

from __future__ import annotations

import contextlib
import functools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from pymysql.charset import charset_by_name
from pymysql.constants import COMMAND, CR, ER
from pymysql.err import DatabaseError, OperationalError

from .driver import COM_RESET_CONNECTION
from .log import logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .driver import PyMySQLConnection

#: A setting for SET. With it the server reports every change to the session, not only those that have a tracker of
#: their own: https://dev.mysql.com/doc/refman/8.4/en/session-state-tracking.html
TRACKING = "SESSION session_track_state_change = 1"

# Session variables that change by themselves, or that describe the last statement or transaction.
_VOLATILE = frozenset(
    """
    error_count gtid_next identity in_transaction insert_id last_gtid last_insert_id pseudo_thread_id rand_seed1
    rand_seed2 session_track_state_change statement_id timestamp warning_count
    """.split()  # noqa: SIM905  a list takes a line for each
)
# A Galera node sets these for all sessions that are opened or reset after a node has joined or left the cluster:
# https://mariadb.com/docs/galera-cluster/reference/galera-cluster-system-variables
_SET_BY_GALERA = frozenset(["auto_increment_increment", "auto_increment_offset"])


class Commands(NamedTuple):
    """Packets with commands, which are sent in one write, and the number of replies to them."""

    packets: bytes
    replies: int

    def __add__(self, after: Commands) -> Commands:  # type: ignore[override]
        return Commands(self.packets + after.packets, self.replies + after.replies)


def pack_commands(*commands: tuple[int, bytes]) -> Commands:
    """Build the packets of commands, each given by its code and its text.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html: three bytes for the length, one
    for the sequence number, which is 0, and one for the command.
    """
    return Commands(
        b"".join(struct.pack("<IB", len(sql) + 1, command) + sql for command, sql in commands), len(commands)
    )


#: Ends a transaction. Sent alone if a borrower has left nothing else.
ROLLBACK = pack_commands((COMMAND.COM_QUERY, b"ROLLBACK"))

# Sent before the first reset on a server. If the variable is still set after it, the reset had no effect.
_PROBE = pack_commands((COMMAND.COM_QUERY, b"SET @pymysqlpool = 1"))


class Server:
    """What a reset does not restore on one server.

    A reset does not apply the server's `init_connect`, the client's flags and the user's limits again. Which variables
    they have set is found out by comparing a session that was reset with a new one, which is that of `connection`.
    """

    def __init__(self, pool_name: str, connection: PyMySQLConnection) -> None:
        self._pool_name = pool_name
        #: The variables of a new session, and the global ones at that time.
        self._variables = session_variables(connection)
        self._globals = _global_variables(connection)
        #: The settings for SET that restore them; None until the first reset has been checked.
        self.settings: tuple[str, ...] | None = None
        #: What cannot be restored. If there is anything, sessions are replaced instead of reset.
        self.kept: tuple[str, ...] = ()
        self._partial_replies = 0

    def check_first_reset(self, connection: PyMySQLConnection) -> None:
        """Compare the first session that was reset with a new one, and restore what the reset did not.

        Raises PyMySQL's error if the session is lost.
        """
        settings = []
        changed = self._changed_in(connection)
        for name, value in changed.items():
            setting = f"SESSION {name} = {_literal(connection, value)}"
            with contextlib.suppress(DatabaseError):
                connection.query(f"SET {setting}")
                settings.append(setting)
        kept = tuple(self._changed_in(connection)) if changed else ()
        if fetch_rows(connection, "SELECT @pymysqlpool") != ((None,),):
            kept = ("user variables", *kept)  # a proxy has answered the reset instead of passing it on
        self._store(settings, kept)

    def count_partial_reply(self) -> None:
        """Count a first reset of which only some commands were answered.

        The connection may have been lost by accident, or a proxy may drop all commands but the first of one write.
        The third time, the latter is assumed.
        """
        self._partial_replies += 1
        if self._partial_replies == 3:
            self._store((), ("anything (of several commands sent at once only the first is answered)",))

    def _store(self, settings: Iterable[str], kept: tuple[str, ...]) -> None:
        """Store what was found for later sessions, and warn if they will be replaced."""
        self.kept = kept
        self.settings = tuple(settings)
        if kept:
            logger.warning(
                "pool(%s): a reset does not restore %s on this server: its sessions are replaced instead of reset",
                self._pool_name,
                ", ".join(kept),
            )

    def _changed_in(self, connection: PyMySQLConnection) -> dict[str, str]:
        """Return the variables that the reset has not restored, each with its value in a new session.

        A variable that had its global value, and has it after a SET GLOBAL too, is not one of them: it is the same in a
        session that is opened now.
        """
        found = session_variables(connection)
        changed = {name: value for name, value in self._variables.items() if found.get(name, value) != value}
        if changed:
            now = _global_variables(connection)
            for name, value in list(changed.items()):
                is_global = value == self._globals.get(name) and found[name] == now.get(name)
                if is_global or not _is_of_session(connection, name):
                    del changed[name]
        return changed


class Reset:
    """The commands that restore one session to the state in which `connect()` left it.

    COM_RESET_CONNECTION keeps the role and the database. The role is set again by `role`, which is part of a SET or a
    statement of its own. The database is selected again only if a statement may have changed it. In any case the SET
    fails in a database other than `database`, and then the session is replaced.
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
        # As in connect(), the server's autocommit applies until `init_command` has run. This begins no transaction.
        first_autocommit = final_autocommit if connection.init_command is None else "@@autocommit"
        wanted = "NULL" if database is None else connection.escape(database)
        settings = [
            names_setting(connection.charset, _collation(connection)),
            # autocommit cannot be 2, so the statement fails in any other database.
            f"autocommit = IF(DATABASE() <=> {wanted}, {first_autocommit}, 2)",
        ]
        if connection.sql_mode is not None:
            settings.append(f"sql_mode = {connection.escape(connection.sql_mode)}")
        if connection._is_tracked:
            settings.append(TRACKING)
        after: list[str] = []
        if role is not None:
            (after if role.startswith("SET") else settings).append(role)
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
        """Return the commands of a reset; `with_database` selects the database again."""
        server = self.server
        if server.settings is None:
            return _PROBE + (self._with_database if with_database else self._plain)
        if server.settings and server.settings is not self._built_for:
            self._built_for = server.settings
            self._plain, self._with_database = self._build(b"".join(b", " + each.encode() for each in server.settings))
        return self._with_database if with_database else self._plain

    def _build(self, restored: bytes) -> tuple[Commands, Commands]:
        first = [(COM_RESET_CONNECTION, b"")]
        database = [] if self._database is None else [(COMMAND.COM_INIT_DB, self._database)]
        rest = [(COMMAND.COM_QUERY, statement) for statement in (self._set + restored, *self._after)]
        return pack_commands(*first, *rest), pack_commands(*first, *database, *rest)


def names_setting(charset: str, collation: str | None) -> str:
    """Return the setting for SET that chooses a character set."""
    return f"NAMES {charset}" + (f" COLLATE {collation}" if collation else "")


def _collation(connection: PyMySQLConnection) -> str | None:
    # Before 1.1 PyMySQL did not send SET NAMES in connect(), and the collation was that of the handshake.
    handshake: Any = charset_by_name(connection.charset)
    collation: str | None = getattr(connection, "collation", handshake.collation)
    return collation


def session_variables(connection: PyMySQLConnection) -> dict[str, str]:
    """Return the variables of the session and the server, except those that change by themselves."""
    variables = dict(fetch_rows(connection, "SHOW SESSION VARIABLES"))
    is_galera = variables.get("wsrep_on") == variables.get("wsrep_auto_increment_control") == "ON"
    ignored = _VOLATILE | _SET_BY_GALERA if is_galera else _VOLATILE
    return {name: value for name, value in variables.items() if name not in ignored}


def _global_variables(connection: PyMySQLConnection) -> dict[str, str]:
    """Return the global variables, which are those of a new session unless something else sets them."""
    return dict(fetch_rows(connection, "SHOW GLOBAL VARIABLES"))


def _is_of_session(connection: PyMySQLConnection, variable: str) -> bool:
    """Whether `variable` belongs to the session.

    SHOW SESSION VARIABLES also lists the server's own, which others may change at any time.
    """
    try:
        connection.query(f"SELECT @@SESSION.{variable}")
    except DatabaseError as error:
        return error.args[0] not in {ER.INCORRECT_GLOBAL_LOCAL_VAR, ER.UNKNOWN_SYSTEM_VARIABLE}
    return True


def fetch_rows(connection: PyMySQLConnection, sql: str) -> Any:
    """Return the rows of a query as strings, without the user's converters."""
    converters = connection.decoders, connection.use_unicode
    connection.decoders, connection.use_unicode = {}, True
    try:
        connection.query(sql)
        rows = connection._result.rows
    finally:
        connection.decoders, connection.use_unicode = converters
    if rows is None:
        raise OperationalError(CR.CR_MALFORMED_PACKET, f"no rows in the reply to {sql}")
    return rows


def _literal(connection: PyMySQLConnection, value: str) -> str:
    """Return `value`, as SHOW VARIABLES displays it, as a literal for SET."""
    try:
        float(value)
    except ValueError:
        return connection.escape(value)
    return value

"""How a session is reset: back to what `connect()` made of it."""

from __future__ import annotations

import contextlib
import functools
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from pymysql.charset import charset_by_name
from pymysql.constants import COMMAND, ER
from pymysql.err import DatabaseError

from .driver import COM_RESET_CONNECTION
from .log import logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .driver import PyMySQLConnection

#: What stands behind SET to let the tracker also report what has no tracker of its own.
TRACKING = "SESSION session_track_state_change = 1"

# These session variables change by themselves, or tell of the last statement or transaction.
_VOLATILE = frozenset(
    """
    error_count gtid_next identity in_transaction insert_id last_gtid last_insert_id pseudo_thread_id rand_seed1
    rand_seed2 session_track_state_change statement_id timestamp warning_count
    """.split()  # noqa: SIM905  a list takes a line for each
)


class Commands(NamedTuple):
    """Commands to be written in one go, and how many replies they get."""

    packets: bytes
    replies: int

    def __add__(self, after: Commands) -> Commands:  # type: ignore[override]
        return Commands(self.packets + after.packets, self.replies + after.replies)


def pack_commands(*commands: tuple[int, bytes]) -> Commands:
    """Put commands, each with its text, into packets."""
    return Commands(
        b"".join(struct.pack("<IB", len(sql) + 1, command) + sql for command, sql in commands), len(commands)
    )


#: The command that ends a transaction, where nothing else is to be undone.
ROLLBACK = pack_commands((COMMAND.COM_QUERY, b"ROLLBACK"))

# In front of the first reset on a server: to see that it has an effect.
_PROBE = pack_commands((COMMAND.COM_QUERY, b"SET @pymysqlpool = 1"))


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
        #: What can't be restored, so that sessions are replaced.
        self.kept: tuple[str, ...] = ()
        self._half_answered = 0

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
        kept = tuple(self._changed_in(connection)) if changed else ()
        if rows(connection, "SELECT @pymysqlpool") != ((None,),):
            kept = ("user variables", *kept)  # a proxy has answered the reset by itself
        self._set(settings, kept)

    def count_half_answered(self) -> None:
        """Of the commands of a first reset only some were answered: a proxy drops those behind, or it was an accident.

        The third time it is no accident.
        """
        self._half_answered += 1
        if self._half_answered == 3:
            self._set((), ("anything, as commands behind the first in one packet are not answered,",))

    def _set(self, settings: Iterable[str], kept: tuple[str, ...]) -> None:
        """Keep what was found out, the warning included."""
        self.kept = kept
        self.settings = tuple(settings)
        if kept:
            logger.warning(
                "pool(%s): a reset does not restore %s on this server: its sessions are replaced instead of reset",
                self._pool_name,
                ", ".join(kept),
            )

    def _changed_in(self, connection: PyMySQLConnection) -> dict[str, str]:
        found = session_variables(connection)
        return {
            name: value
            for name, value in self._variables.items()
            if found.get(name, value) != value and _is_of_session(connection, name)
        }


class Reset:
    """How one session is made again what `connect()` has made it.

    Two things are kept by COM_RESET_CONNECTION. The role is set again, by `role`: part of a SET, or a statement of its
    own. The database is chosen again only where a statement may have changed it; the SET fails where it is another one
    all the same, and then the session is replaced.
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
        """The commands for it, to be written in one go."""
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


def names(charset: str, collation: str | None) -> str:
    """What stands behind SET for a character set."""
    return f"NAMES {charset}" + (f" COLLATE {collation}" if collation else "")


def _collation(connection: PyMySQLConnection) -> str | None:
    # Before 1.1 PyMySQL did not say SET NAMES in connect(), and the collation was that of the handshake.
    handshake: Any = charset_by_name(connection.charset)
    collation: str | None = getattr(connection, "collation", handshake.collation)
    return collation


def session_variables(connection: PyMySQLConnection) -> dict[str, str]:
    """The session's variables, and the server's, but for those that change by themselves."""
    return {name: value for name, value in rows(connection, "SHOW SESSION VARIABLES") if name not in _VOLATILE}


def _is_of_session(connection: PyMySQLConnection, variable: str) -> bool:
    """Whether it is a session's, and not one of the server, which SHOW shows too and others may change meanwhile."""
    try:
        connection.query(f"SELECT @@SESSION.{variable}")
    except DatabaseError as error:
        return error.args[0] not in {ER.INCORRECT_GLOBAL_LOCAL_VAR, ER.UNKNOWN_SYSTEM_VARIABLE}
    return True


def rows(connection: PyMySQLConnection, sql: str) -> Any:
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

"""What a borrower may leave behind in the server's session, and what undoes it. Every rule of it is here."""

from __future__ import annotations

import re
import struct
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from pymysql.charset import charset_by_name
from pymysql.constants import CLIENT, COMMAND
from pymysql.err import DatabaseError

if TYPE_CHECKING:
    import ssl

    from .connection import Connection
    from .wire import WiredConnection

# COM_RESET_CONNECTION, in MySQL from 5.7.3 and MariaDB from 10.2.4 on: it undoes transaction, locks, variables,
# temporary tables and prepared statements, sets charset, autocommit, sql_mode and tracking to the server's defaults,
# and keeps the database and the role.
# https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_reset_connection.html
_COM_RESET_CONNECTION = 0x1F

#: The bit of the server status with which the session tracker says that a statement has changed something in the
#: session.
STATE_CHANGED = 0x4000
#: What stands behind SET to have it said also for what has no tracker of its own.
TRACK = "SESSION session_track_state_change = 1"

#: How much of a borrower's doing is left in the session, besides a transaction: nothing; what a reset undoes; what it
#: may keep, a role or a database, so that nobody may use the session before it is known to have been undone.
CLEAN, DIRTY, DOUBTFUL = range(3)

# What these change in the session, also by a trigger, the tracker reports, but for the suspects found in them. The list
# is of what is known, so that all else is in doubt: SET, USE, CALL, PREPARE, HANDLER, FLUSH and what servers will yet
# think of.
_VERBS = ["SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "SHOW", "EXPLAIN", "DESCRIBE", "DESC", "TRUNCATE"]
_BEGIN_AS_USUAL = tuple(f"{verb} " for verb in _VERBS)
# All patterns are for statements in capitals, and made by `re` when they are first asked for: that takes its time.
_KNOWN = (
    r"(?:\s|/\*(?![!M])(?s:.)*?\*/)*\(*\s*"  # comments before it, though not those that the server executes
    rf"(?:{'|'.join(_VERBS)}|(?:CREATE|ALTER|DROP)\s+(?:TABLE|INDEX|VIEW))\b"
)
# Whether a transaction is open is told by each reply. MySQL's tracker reports these as a change, which they are not.
_OF_TRANSACTION = (
    rb"\s*(?:BEGIN(?:\s+WORK)?|START\s+TRANSACTION[\s\w,]*"
    rb"|(?:COMMIT|ROLLBACK|SAVEPOINT|RELEASE\s+SAVEPOINT)[\s\w]*);?\s*"
)
_ENDS_TRANSACTION = rb"\s*(?:COMMIT|ROLLBACK)(?:\s+WORK)?\s*;?\s*"
_READS = rb"[\s(]*(?:SELECT|SHOW|EXPLAIN|DESC)"
_QUOTED = r"'[^']*'|\"[^\"]*\"|`[^`]*`"
# Where these are the quotes need not pair up, as in 'it\'s' or in a comment, and nothing can be said of what is quoted.
_UNPAIRED = r"[\\]|[^\x00-\x7f]|--|#|/\*"
# What may set a role or choose a database, by itself or in code that the client does not see.
_MAY_LAST = r"\b(?:ROLE|USE|DATABASE|SCHEMA|CALL|EXECUTE|BEGIN)\b"
# A statement longer than this costs more to read than the session costs to reset.
_LONG = 16 * 1024


def trace_of(command: int, sql: bytes, *, tracked: bool) -> int:
    """What `command` leaves in the session that the status of its reply would not tell: CLEAN, DIRTY or DOUBTFUL."""
    if command != COMMAND.COM_QUERY:
        return CLEAN if command == COMMAND.COM_PING else DOUBTFUL
    if len(sql) > _LONG:
        return DOUBTFUL
    # In a str `in` takes a fifth of the time that it takes in bytes. What is not ASCII has to stay so in capitals.
    text = sql.decode("ascii", "replace").upper()
    if text.startswith(_BEGIN_AS_USUAL) or re.match(_KNOWN, text, re.ASCII):
        if not _has_suspects(text) or _are_harmless(text):
            return CLEAN if tracked else DIRTY
    elif is_of_transaction(sql):
        return CLEAN if tracked else DIRTY
    return DOUBTFUL if re.search(_MAY_LAST, text, re.ASCII) else DIRTY


def always_in_doubt(command: int, sql: bytes, *, tracked: bool) -> int:  # noqa: ARG001  as `trace_of`
    """The same by the choice of `reset="session"`, which is made for what no client sees, be it a role."""
    return DOUBTFUL


def is_of_transaction(sql: bytes) -> bool:
    """Whether the statement does no more than begin or end a transaction or a part of one."""
    return re.fullmatch(_OF_TRANSACTION, sql, re.IGNORECASE) is not None


def ends_transaction(sql: bytes) -> bool:
    """Whether no transaction is open after the statement, also where the status can't tell."""
    return re.fullmatch(_ENDS_TRANSACTION, sql, re.IGNORECASE) is not None


def writes(sql: bytes) -> bool:
    """Whether the rows that the statement has affected are rows that it has written, not read."""
    return re.match(_READS, sql, re.IGNORECASE) is None


def _are_harmless(text: str) -> bool:
    """Whether what is suspect is only a `;` at the end, or stands in quoted strings such as an e-mail address."""
    text = text.rstrip("; \t\r\n")
    return not _has_suspects(text) or (
        re.search(_UNPAIRED, text) is None and not _has_suspects(re.sub(_QUOTED, "", text))
    )


def _has_suspects(text: str) -> bool:
    # Each `in` is a fast search in C; a loop over them takes twice as long, one regular expression ten times.
    return (
        "@" in text  # a variable, which the tracker misses in a SELECT
        or ";" in text  # a second statement
        or "LOCK" in text  # GET_LOCK, of which it knows nothing
        or "/*!" in text  # a comment that servers execute
        or "/*M!" in text
        or "TEMPORARY" in text
    )


class Cleaning(NamedTuple):
    """Commands that clean a session, to be written in one go, and how many replies they get."""

    packets: bytes
    replies: int
    #: Whether they may fail though the session is alive; then it is not lent before they are known to have succeeded.
    doubtful: bool = False


def _cleaning(commands: list[tuple[int, bytes]]) -> Cleaning:
    return Cleaning(
        b"".join(struct.pack("<IB", len(sql) + 1, command) + sql for command, sql in commands), len(commands)
    )


_ROLLBACK = _cleaning([(COMMAND.COM_QUERY, b"ROLLBACK")])
#: What a session needs that the server has no way of resetting: it is given up.
IMPOSSIBLE = _cleaning([])


class ServerFacts:
    """What is found out about the server, once for all sessions of a pool."""

    def __init__(self) -> None:
        #: The role that a session begins with, as an SQL literal; None: the server has none, or it is not known yet.
        self.role: str | None = None
        self.knows_role = False
        #: Whether the server knows COM_RESET_CONNECTION; None: not known yet.
        self.can_reset: bool | None = None
        #: The TLS session of the connection opened last.
        self.tls_session: ssl.SSLSession | None = None


def cleaning_after(connection: Connection, reset: str | None, error: BaseException | None) -> Cleaning | None:
    """What has to be undone after `connection` was borrowed, by the pool's choice of `reset`; None if nothing.

    After an `error` that ends a block the transaction is rolled back in any case.
    """
    if reset in ("auto", "session") and connection._trace:
        can_reset = connection._facts.can_reset
        if can_reset is False:
            return IMPOSSIBLE
        is_doubtful = connection._trace == DOUBTFUL or can_reset is None
        return connection._reset._replace(doubtful=True) if is_doubtful else connection._reset
    if (reset is not None or error is not None) and connection._may_be_in_transaction:
        return _ROLLBACK
    return None


def open_session(connection: Connection) -> None:
    """Connect, with the tracker on, and lay out the reset that leads back to what the session is then."""
    facts = connection._facts
    context = connection.ctx if connection.ssl else None
    if context is not None and facts.tls_session is not None:
        # To take up what another connection has agreed on saves the server its signature, half the time of all.
        connection.ctx = SimpleNamespace(wrap_socket=partial(context.wrap_socket, session=facts.tls_session))
    try:
        connection.connect()
    finally:
        if context is not None:
            connection.ctx = context
    if not connection.open:  # where `connect` has been patched away
        return
    facts.tls_session = getattr(connection._sock, "session", None)
    if not connection._tracked and can_track(connection):  # pragma: no cover  before PyMySQL 1.1 alone
        connection.query(f"SET {TRACK}")
        connection._tracked = True
    if not facts.knows_role:
        facts.role = _current_role(connection)
        facts.knows_role = True
    connection._reset = _reset_to(connection, facts.role)


def can_track(connection: WiredConnection) -> bool:
    """Whether the server, and a proxy before it, tell of changes in the session."""
    return bool(connection.server_capabilities & CLIENT.SESSION_TRACK)


def names(charset: str, collation: str | None) -> str:
    """What stands behind SET for a character set."""
    return f"NAMES {charset}" + (f" COLLATE {collation}" if collation else "")


def _current_role(connection: Connection) -> str | None:
    """The role that the session has, as an SQL literal; None where the server has no roles."""
    try:
        connection.query("SELECT CURRENT_ROLE()")
    except DatabaseError:
        if not connection.open:
            raise
        return None
    return connection.escape(connection._result.rows[0][0])


def _reset_to(connection: Connection, role: str | None) -> Cleaning:
    """The reset that makes the session what `connect()` has made it, in one trip.

    What COM_RESET_CONNECTION keeps and no statement brings back makes it fail: a role that was set, or a database where
    `connect()` had chosen none. Then a new session is opened.
    """
    # Before 1.1 PyMySQL did not say SET NAMES in connect(), and the collation was that of the handshake.
    handshake: Any = charset_by_name(connection.charset)
    collation = getattr(connection, "collation", handshake.collation)
    autocommit = "@@autocommit" if connection.autocommit_mode is None else str(int(connection.autocommit_mode))
    unchanged = [] if role is None else [f"CURRENT_ROLE() <=> {role}"]
    if not connection.db:
        unchanged.append("DATABASE() IS NULL")
    # connect() leaves the server's own in force until `init_command` has run, so that no transaction begins with it.
    at_first = autocommit if connection.init_command is None else "@@autocommit"
    settings = [
        names(connection.charset, collation),
        # No autocommit is 2: there the statement fails.
        f"autocommit = IF({' AND '.join(unchanged) or 'TRUE'}, {at_first}, 2)",
    ]
    if connection.sql_mode is not None:
        settings.append(f"sql_mode = {connection.escape(connection.sql_mode)}")
    if connection._tracked:
        settings.append(TRACK)
    statements = ["SET " + ", ".join(settings)]
    if connection.init_command is not None:
        statements.append(connection.init_command)
        if connection.autocommit_mode is not None:
            statements.append(f"SET autocommit = {autocommit}")
    commands = [(_COM_RESET_CONNECTION, b"")]
    if connection.db:  # bytes since connect()
        commands.append((COMMAND.COM_INIT_DB, connection.db))
    commands += [(COMMAND.COM_QUERY, statement.encode(connection.encoding)) for statement in statements]
    return _cleaning(commands)

"""The private parts of PyMySQL that this package uses.

They are the same in all releases from 1.0.2 to 1.2.4, except that `collation` exists from 1.1 on, and
`_current_timeout` from 1.2 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pymysql.connections

if TYPE_CHECKING:

    class PyMySQLConnection(pymysql.connections.Connection):
        """PyMySQL's connection, with the types of its private parts."""

        _sock: Any
        _rfile: Any
        _result: Any
        _read_timeout: float | None
        _write_timeout: float | None
        _current_timeout: float | None
        _connect_attrs: dict[str, str]
        connect_timeout: float
        ssl: bool
        ctx: Any
        server_capabilities: int
        server_thread_id: tuple[int]
        server_status: int
        collation: str | None
        _is_tracked: bool  # of Wire
        db: bytes | None

        def _create_ssl_ctx(self, sslp: Any) -> Any: ...
        def _execute_command(self, command: int, sql: str | bytes) -> None: ...
        def _force_close(self) -> None: ...
        def _read_ok_packet(self) -> Any: ...
        def _read_packet(self, packet_type: Any = ...) -> Any: ...
        def _read_query_result(self, unbuffered: bool = ...) -> int: ...
        def _write_bytes(self, data: bytes) -> None: ...
        def get_autocommit(self) -> bool: ...  # noqa: D102  PyMySQL's
        def get_server_info(self) -> str: ...  # noqa: D102  PyMySQL's

    class PyMySQLResult(pymysql.connections.MySQLResult):
        """PyMySQL's result, with the types of its private parts."""

        connection: Any
        has_next: Any
        server_status: Any
        unbuffered_active: bool

        def _read_load_local_packet(self, first_packet: Any) -> None: ...
        def _read_rowdata_packet_unbuffered(self) -> Any: ...
        def _finish_unbuffered_query(self) -> None: ...
else:
    PyMySQLConnection = pymysql.connections.Connection
    PyMySQLResult = pymysql.connections.MySQLResult

#: COM_RESET_CONNECTION, which PyMySQL does not define. MySQL has it from 5.7.3 on, MariaDB from 10.2.4 on. It rolls
#: back the transaction, releases locks, and removes variables, temporary tables and prepared statements. It sets the
#: character set, autocommit, sql_mode and session tracking to the server's defaults, and keeps the database and role.
#: https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_reset_connection.html
COM_RESET_CONNECTION = 0x1F

#: SERVER_SESSION_STATE_CHANGED, a status flag that PyMySQL does not define. The server sets it in the OK packet of a
#: statement that has changed the session, if session tracking is on.
#: https://dev.mysql.com/doc/dev/mysql-server/latest/mysql__com_8h.html
#: https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_ok_packet.html
SERVER_SESSION_STATE_CHANGED = 0x4000

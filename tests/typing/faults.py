"""What a type checker has to find: each line that ends in `# fault`. This program does not run."""

from __future__ import annotations

from pymysqlpool import Connection, ConnectionPool

ConnectionPool(10, 100)  # fault
ConnectionPool(10, "name", 5)  # fault
ConnectionPool(size="10")  # fault
ConnectionPool(connection_class=int)  # fault
pool = ConnectionPool(2)
pool.get_connection(timeout="1")  # fault
pool.get_connection(3, 0.1)  # fault
pool.connections()  # fault
pool.size + 1  # fault
conn = pool.get_connection()
conn.executes_query("select 1")  # fault
conn.execute_query(1)  # fault
number: int = pool.connection()  # fault
with pool.connection() as whole:
    whole.answer()  # fault
with pool.get_connection() as cur:
    cur.execute(1)  # fault


def needs_own(pool: ConnectionPool[Connection], connection: Connection) -> None:
    """Plain ones are right."""


needs_own(pool, conn)
needs_own(conn, pool)  # fault

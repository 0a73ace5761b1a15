"""Blocks: the cursor that answers for its connection, both ways of naming it, and the whole connection."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pymysqlpool
from pymysqlpool import ConnectionPool

if TYPE_CHECKING:
    import pymysql

    from pymysqlpool.cursors import BlockCursor


def takes_pymysqls_cursor(cursor: pymysql.cursors.Cursor) -> int:
    """As in a program that knows PyMySQL only."""
    return cursor.execute("select 1")


def takes_a_connection(connection: pymysqlpool.Connection) -> Any:
    """As in a program that hands connections on."""
    return connection.execute_query("select 1")


def takes_a_block(cur: BlockCursor) -> None:
    """What a block gives has a name for annotations."""
    cur.execute("select 1")
    cur.commit()


def main(config: dict[str, Any]) -> None:
    """Run it."""
    with ConnectionPool(size=2, maxsize=4, pre_create_num=0, **config) as pool:
        with pool.get_connection() as cur:
            affected: int = cur.execute("select 1 as one, 2 as two")
            first, second = cur.fetchone()
            assert (affected, first, second) == (1, 1, 2)
            assert takes_pymysqls_cursor(cur) == 1
            takes_a_block(cur)
            cur.rollback()
            assert cur.db_query("select 1") == ((1,),)
            assert cur.connection.get_autocommit() is False
        with pool.get_connection() as conn:
            with conn.cursor() as cur2:
                cur2.execute("select 1")
                for row in cur2:
                    assert row[0] == 1
                count: int = cur2.db_modify("select 1")["rowcount"]
                assert count == 1
            conn.begin()
            conn.commit()
            takes_a_connection(conn)
        with pool.get_connection() as conn, conn.cursor() as cursor:
            cursor.execute("select 1")
        with pool.connection(timeout=5) as whole:
            whole.begin()
            with whole as joined:
                joined.execute("select 1")
            whole.rollback()
        with ExitStack() as stack:
            entered = stack.enter_context(pool.get_connection())
            entered.execute("select 1")

"""Rows that are dicts: by the pool's `cursorclass`, by a cursor's own class, by a function that makes it."""

from __future__ import annotations

import functools
from typing import Any

import pymysql.cursors

import pymysqlpool
from pymysqlpool import ConnectionPool, DictCursor


class Mine(pymysql.cursors.DictCursor):
    """A cursor class with a method of its own."""

    def one(self, query: str) -> dict[str, Any] | None:
        """The first row."""
        self.execute(query)
        return self.fetchone()


def takes_dicts(cursor: pymysql.cursors.DictCursor) -> dict[str, Any] | None:
    """As in a program that has them everywhere."""
    return cursor.fetchone()


def main(config: dict[str, Any]) -> None:
    """Run it."""
    with ConnectionPool(size=1, cursorclass=pymysql.cursors.DictCursor, **config) as pool:
        with pool.get_connection() as cur:
            cur.execute("select 1 as n")
            assert cur.fetchone()["n"] == 1
            cur.execute("select 2 as n")
            row = takes_dicts(cur)
            assert row is not None
            assert row["n"] == 2
        with pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("select 3 as n")
            assert [each["n"] for each in cursor.fetchall()] == [3]
    with ConnectionPool(size=1, cursorclass=DictCursor, **config) as pool, pool.connection() as conn:
        with conn.cursor(DictCursor) as dicts:
            dicts.execute("select 4 as n")
            found = dicts.fetchone()
            assert found is not None
            assert found["n"] == 4
        with conn.cursor(pymysqlpool.Cursor) as tuples:
            assert tuples.db_query("select 5") == ((5,),)
        with conn.cursor(functools.partial(Mine)) as mine:
            one = mine.one("select 6 as n")
            assert one is not None
            assert one["n"] == 6
    with ConnectionPool(size=1, cursorclass=Mine, **config) as pool, pool.get_connection() as cur:
        assert cur.one("select 7 as n") == {"n": 7}

"""The classic session: size and name, borrow and return, blocks, `execute_query`."""

from __future__ import annotations

from typing import Any

import pymysqlpool


def main(config: dict[str, Any]) -> None:
    """Run it."""
    pool = pymysqlpool.ConnectionPool(2, "pool1", autocommit=True, **config)
    idle: int = pool.size()
    conn: pymysqlpool.Connection = pool.get_connection(1, 1)
    cursor = conn.cursor()
    cursor.execute("select %s", (idle,))
    row = cursor.fetchone()
    assert row[0] == 2
    cursor.close()
    conn.commit()
    conn.close()
    with conn as cur:
        cur.execute("select 1+1")
        (answer,) = cur.fetchone()
        assert answer == 2
    assert conn.execute_query("select 1") == ((1,),)
    assert conn.execute_query("select %s", (1,), return_one=True) == (1,)
    assert conn.execute_query("select 1 as n", dictcursor=True)[0]["n"] == 1
    try:
        taken = [pool.get_connection(timeout=0, retry_num=0) for _ in range(3)]
    except pymysqlpool.GetConnectionFromPoolError as error:
        file: str = error.holders[0]["file"]
        assert file
    else:
        raise AssertionError(taken)
    out: int = pool.close(timeout=0.1)
    assert out == 0

"""Nothing that a borrower leaves in its session or on its handle reaches the next borrower."""

from __future__ import annotations

import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any, Callable

import pytest
from helpers import Deed, ask, by_block, by_block_of_the_pool, by_close, by_exception, eventually, is_alive
from leftovers import LEAKS, RENEWAL, Scene, ask_or_code, by_dropping

if TYPE_CHECKING:
    from helpers import Admin, MakePool

    import pymysqlpool


@pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # in a reference cycle that is dropped
@pytest.mark.parametrize("way", [by_close, by_block, by_exception, by_block_of_the_pool, by_dropping])
@pytest.mark.parametrize("name", LEAKS)
def test_nothing_that_a_borrower_left_reaches_the_next(
    name: str, way: Callable[[pymysqlpool.ConnectionPool, Deed], int], scene: Scene, admin: Admin, make_pool: MakePool
) -> None:
    """What a borrower leaves in a session is gone before the next one's first command, however it was returned."""
    leak = LEAKS[name]
    if not scene.has(leak):
        pytest.skip(f"{leak.only} only")
    deed = scene.deed(leak)
    connect = {"database": scene.schema, **leak.connect}

    def probe(connection: Any) -> object:
        return ask_or_code(connection, leak.probe) if isinstance(leak.probe, str) else leak.probe(connection, admin)

    with closing(scene.connect(**connect)) as plain:
        clean = probe(plain)
        deed(plain)
        eventually(lambda: probe(plain) != clean, RENEWAL)  # otherwise the probe proves nothing
        ask(plain, "do 0")  # reads what was left unread

    def deed_seen(connection: Any) -> None:
        deed(connection)
        if leak.outside:
            eventually(lambda: probe(connection) != clean, RENEWAL)

    pool = make_pool(size=1, **connect)
    session = way(pool, deed_seen)
    connection = pool.get_connection()
    if leak.outside:
        assert ask(connection, "select 1") == ((1,),)
        eventually(lambda: probe(connection) == clean, RENEWAL)
    else:
        assert probe(connection) == clean
    unique = uuid.uuid4().hex
    assert ask(connection, f"select '{unique}'") == ((unique,),)
    if connection.server_thread_id[0] != session:
        eventually(lambda: not is_alive(session, admin))
    connection.close()


def test_what_is_changed_inside_an_attribute_reaches_no_other_connection(make_pool: MakePool) -> None:
    """Each connection has mutable attributes of its own, whether it was opened before or after the change."""
    names = "encoders", "decoders", "_connect_attrs"
    pool = make_pool(size=2, maxsize=3)
    culprit, other = pool.get_connection(), pool.get_connection()
    for name in names:
        assert getattr(other, name)
        getattr(culprit, name).clear()
        assert not getattr(culprit, name)
    late = pool.get_connection()
    culprit.close()
    for connection in other, late, pool.get_connection():
        assert all(getattr(connection, name) for name in names)
        connection.close()

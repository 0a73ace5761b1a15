"""A block leaves no garbage: the rows that were read in it are freed when it ends, as with PyMySQL alone."""

from __future__ import annotations

import gc
import tracemalloc
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Callable

import pytest

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool

    from pymysqlpool import ConnectionPool

MEGABYTE = 1 << 20


@pytest.fixture
def collector_rests() -> Iterator[None]:
    """Disable the garbage collector; the test calls it explicitly."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def read(cursor: Any) -> None:
    cursor.execute("select 1")
    assert cursor.fetchall()


def block(pool: ConnectionPool) -> None:
    with pool.get_connection() as cursor:
        read(cursor)


def block_of_the_pool(pool: ConnectionPool) -> None:
    with pool.connection() as connection:
        read(connection.cursor())


def block_on_a_returned_handle(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.close()
    with connection as cursor:
        read(cursor)


def joined_blocks(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    with connection as outer, connection as inner:
        read(outer)
        read(inner)


def block_by_a_stack(pool: ConnectionPool) -> None:
    with ExitStack() as stack:
        read(stack.enter_context(pool.get_connection()))


def block_with_a_failure(pool: ConnectionPool) -> None:
    try:
        with pool.get_connection() as cursor:
            read(cursor)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass


def block_with_a_failed_query(pool: ConnectionPool) -> None:
    try:
        with pool.get_connection() as cursor:
            cursor.execute("select nothing")
    except Exception:  # noqa: BLE001, S110
        pass


def block_that_writes(pool: ConnectionPool) -> None:
    with pool.get_connection() as cursor:
        cursor.execute("set @variable = 1")
        read(cursor)


def block_in_a_generator(pool: ConnectionPool) -> None:
    def numbers() -> Iterator[int]:
        with pool.get_connection() as cursor:
            read(cursor)
            yield 1
            yield 2

    for _ in numbers():
        break


def query_of_the_handle(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    connection.execute_query("select 1")
    connection.close()
    connection.execute_query("select 1")


def borrow_and_return(pool: ConnectionPool) -> None:
    connection = pool.get_connection()
    read(connection.cursor())
    connection.close()


def borrow_and_lose(pool: ConnectionPool) -> None:
    read(pool.get_connection().cursor())


BLOCKS = [
    block,
    block_of_the_pool,
    block_on_a_returned_handle,
    joined_blocks,
    block_by_a_stack,
    block_with_a_failure,
    block_with_a_failed_query,
    block_that_writes,
    block_in_a_generator,
    query_of_the_handle,
    borrow_and_return,
    pytest.param(borrow_and_lose, marks=pytest.mark.filterwarnings("ignore::ResourceWarning")),
]


@pytest.mark.usefixtures("collector_rests")
@pytest.mark.parametrize("block", BLOCKS)
def test_no_cycle_is_left(make_pool: MakePool, block: Callable[[ConnectionPool], None]) -> None:
    """The collector finds nothing after a block, however it was begun and ended."""
    pool = make_pool(size=1)
    for _ in range(3):
        block(pool)  # what is created once stays
    gc.collect()
    block(pool)
    assert gc.collect() == 0


@pytest.mark.usefixtures("collector_rests")
@pytest.mark.parametrize("block", BLOCKS)
def test_nothing_piles_up(make_pool: MakePool, block: Callable[[ConnectionPool], None]) -> None:
    """A hundred more blocks leave the number of objects unchanged, including those that the collector can't find."""
    pool = make_pool(size=1)
    for _ in range(3):
        block(pool)
    before = len(gc.get_objects())
    for _ in range(100):
        block(pool)
    assert len(gc.get_objects()) - before < 50


def test_large_results_are_not_kept(make_pool: MakePool, admin: Admin) -> None:
    """The peak of memory in sixty reads of 8 MB is at most a fifth higher than raw PyMySQL's."""
    sql = f"select repeat('x', {8 * MEGABYTE})"
    pool = make_pool(size=1)

    def read_in_blocks() -> None:
        for _ in range(60):
            with pool.get_connection() as cursor:
                cursor.execute(sql)
                assert cursor.fetchone()

    def read_raw() -> None:
        for _ in range(6):
            with admin.cursor() as cursor:
                cursor.execute(sql)
                assert cursor.fetchone()

    raw_peak = peak_of(read_raw)
    peak = peak_of(read_in_blocks)
    assert peak <= 1.2 * raw_peak, f"{peak / MEGABYTE:.0f} MB beside {raw_peak / MEGABYTE:.0f} MB"


def peak_of(work: Callable[[], object]) -> int:
    """The peak of the memory in use, in bytes, above what was in use before."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_block_leaves_no_cycle(make_pool: MakePool) -> None:
    """The rows that a block has read are freed with the last reference to them, without the collector."""
    pool = make_pool(size=1)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            with pool.get_connection() as cur:
                cur.execute("select 1")
            del cur
        gc.collect()
        assert [each for each in gc.garbage if isinstance(each, pymysqlpool.Connection)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()

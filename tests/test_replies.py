"""Replies that are interrupted, fail halfway, or are read by two threads: nobody reads the rest of one."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, ClassVar

import pymysql
import pytest
from helpers import (
    Deed,
    ask,
    by_block,
    by_block_of_the_pool,
    by_close,
    check_answers,
    eventually,
    is_alive,
    is_in,
    kill,
    one_thread,
    running,
    session_of,
    strike_when_in,
)
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import SSCursor
from pymysql.err import DataError
from server import Server, running_server

import pymysqlpool
from pymysqlpool import ConnectionPool, PoolError, ReturnConnectionToPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers import Admin, MakePool


SET_CHARSET = "set_character_set" if hasattr(pymysql.connections.Connection, "set_character_set") else "set_charset"


class Struck(BaseException):
    """An exception that `except Exception` does not catch."""


def waits_for_lock(session: int, admin: Admin) -> bool:
    known = "select count(*) from information_schema.processlist where id = %s and state = 'User lock'"
    return bool(ask(admin, known, session) == ((1,),))


@pytest.fixture
def held(database: str, admin: Admin) -> Iterator[str]:
    """A query that waits until `admin` calls `release_lock()`."""
    assert ask(admin, f"select get_lock('{database}', 0)") == ((1,),)
    yield f"select get_lock('{database}', 10) + 41"
    release(admin)


def release(admin: Admin) -> None:
    ask(admin, "select release_all_locks()")


# Interrupted


class Fault:
    """Raises an exception at one of the points that a connection's socket passes."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.moments = 0
        """How many moments are left until it strikes; 0 while it is not armed."""
        self.has_struck = False

    def arm(self, moments: int) -> None:
        """Raise at this point from now on, counted from 1."""
        self.moments = moments
        self.has_struck = False

    def disarm(self) -> None:
        """Do not raise any more."""
        self.moments = 0

    def moment(self) -> None:
        """Raise if this is the chosen point."""
        if self.moments:
            self.moments -= 1
            if self.moments == 0:
                self.has_struck = True
                raise self.kind("injected")


class FaultySocket:
    """A socket, or its file, with points before, in and after a send, and before and after a read."""

    def __init__(self, real: Any, fault: Fault) -> None:
        self._real = real
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sendall(self, data: bytes) -> None:
        """Send in two halves."""
        middle = len(data) // 2
        self._fault.moment()
        self._real.sendall(data[:middle])
        self._fault.moment()
        self._real.sendall(data[middle:])
        self._fault.moment()

    def read(self, size: int) -> bytes:
        """Read as the file does."""
        self._fault.moment()
        data: bytes = self._real.read(size)
        self._fault.moment()
        return data


class FaultyConnection(pymysqlpool.Connection):
    """A connection whose socket raises the fault, from the server's greeting on."""

    fault: ClassVar[Fault]

    def _get_server_information(self) -> None:
        self._sock = FaultySocket(self._sock, self.fault)
        self._rfile = FaultySocket(self._rfile, self.fault)
        super()._get_server_information()

    def _write_bytes(self, data: bytes) -> None:
        self.fault.moment()
        super()._write_bytes(data)
        self.fault.moment()


@pytest.fixture(params=[KeyboardInterrupt, ValueError, Struck])
def fault(request: pytest.FixtureRequest) -> Fault:
    return Fault(request.param)


@pytest.fixture
def faulty_pool(fault: Fault, database: str, table: str, admin: Admin, make_pool: MakePool) -> Iterator[ConnectionPool]:
    """A pool of one place, with such connections."""
    gc.collect()
    gc.freeze()  # so that the many collections in these tests are quick
    ask(admin, f"create procedure {database}.two() begin select 1; select 2; end")
    connection_class = type("Faulty", (FaultyConnection,), {"fault": fault})
    pool = make_pool(size=1, connection_class=connection_class, ssl_disabled=True)
    by_close(pool, running("set @v = 1"))
    check_answers(pool)  # after the first reset it compares all variables, which takes a thousand reads
    yield pool
    gc.unfreeze()


def unbuffered(connection: Any) -> None:
    with connection.cursor(SSCursor) as cursor:
        cursor.execute("select 1 union select 2 union select 3")
        cursor.fetchall()


def refused(connection: Any) -> None:
    with pytest.raises(pymysql.err.OperationalError, match="nothing"):
        ask(connection, "select nothing")


OPERATIONS: dict[str, Deed] = {
    "query": running("select 1"),
    "rows": running("select 1 union select 2 union select 3"),
    "rows, unbuffered": unbuffered,
    "results": running("call two()"),
    "error": refused,
    "commit": lambda connection: connection.commit(),
    "ping": lambda connection: connection.ping(reconnect=False),
    "select_db": lambda connection: connection.select_db("mysql"),
    "set_charset": lambda connection: getattr(connection, SET_CHARSET)("latin1"),
}


def closing_it(pool: ConnectionPool, deed: Deed) -> None:
    connection = pool.get_connection()
    try:
        deed(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("way", [closing_it, by_block, by_block_of_the_pool])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupted_in_the_middle_of_a_reply_means_closed(
    operation: str, way: Callable[[ConnectionPool, Deed], None], fault: Fault, faulty_pool: ConnectionPool, admin: Admin
) -> None:
    """If any exception interrupts any send or read of a command, its session is closed, and no place is lost."""
    closed = set()
    for moment in itertools.count(1):
        session = check_answers(faulty_pool)
        assert session not in closed

        def deed(connection: Any, moment: int = moment) -> None:
            fault.arm(moment)
            try:
                OPERATIONS[operation](connection)
            finally:
                fault.disarm()

        try:
            way(faulty_pool, deed)
        except fault.kind:
            closed.add(session)
            assert faulty_pool.size() == 1
        else:
            break
    assert not fault.has_struck, "the exception was swallowed"
    assert len(closed) > 8
    assert check_answers(faulty_pool) == session
    eventually(lambda: not any(is_alive(session, admin) for session in closed))


def with_a_reset(pool: ConnectionPool, fault: Callable[[], None], admin: Admin) -> None:
    connection = pool.get_connection()
    ask(connection, "set @v = 1")
    fault()
    connection.close()


def with_a_rollback(pool: ConnectionPool, fault: Callable[[], None], admin: Admin) -> None:
    connection = pool.get_connection()
    ask(connection, "select * from numbers")
    fault()
    connection.close()


def with_a_commit(pool: ConnectionPool, fault: Callable[[], None], admin: Admin) -> None:
    with pool.connection() as connection:
        ask(connection, "insert into numbers (number) values (1)")
        fault()


def with_another_session(pool: ConnectionPool, fault: Callable[[], None], admin: Admin) -> None:
    connection = pool.get_connection()
    connection.close()
    with suppress(pymysql.Error):  # it may have been closed already
        admin.kill(connection.server_thread_id[0])
    eventually(lambda: not is_alive(connection.server_thread_id[0], admin))
    fault()


@pytest.mark.parametrize("go_on", [with_a_reset, with_a_rollback, with_a_commit, with_another_session])
def test_interrupted_between_two_borrowers_means_closed(
    go_on: Callable[[ConnectionPool, Callable[[], None], Admin], None],
    fault: Fault,
    faulty_pool: ConnectionPool,
    admin: Admin,
) -> None:
    """If any exception interrupts any send or read of the pool's own commands, the session is not lent again."""
    closed = set()
    for moment in itertools.count(1):
        session = check_answers(faulty_pool)
        assert session not in closed
        try:
            go_on(faulty_pool, lambda moment=moment: fault.arm(moment), admin)
            check_answers(faulty_pool)
        except fault.kind:
            pass
        finally:
            fault.disarm()
        if not fault.has_struck:
            break
        closed.add(session)
        gc.collect()
        assert faulty_pool.size() == 1
        with faulty_pool.connection() as connection:
            assert ask(connection, "select @v") == ((None,),)
    assert len(closed) > 8
    eventually(lambda: not any(is_alive(session, admin) for session in closed))


class Asynchronous(Exception):
    """An exception that one thread raises in another."""


def test_an_asynchronous_exception_in_a_query_means_closed(held: str, admin: Admin, make_pool: MakePool) -> None:
    """If another thread raises an exception in one that waits for a reply, the next borrower gets none of the reply."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with ThreadPoolExecutor(1) as executor:
        thread = executor.submit(threading.get_ident).result()
        query = executor.submit(ask, connection, held)
        eventually(lambda: waits_for_lock(connection.server_thread_id[0], admin))
        # It is delivered when the thread runs Python code again, as soon as the first byte of the reply has come.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Asynchronous))
        release(admin)
        with pytest.raises(Asynchronous):
            query.result()
    connection.close()
    assert check_answers(pool) != connection.server_thread_id[0]
    eventually(lambda: not is_alive(connection.server_thread_id[0], admin))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
@pytest.mark.parametrize("way", [closing_it, by_block])
def test_an_exception_from_a_signal_handler_in_a_query_means_closed(
    way: Callable[[ConnectionPool, Deed], None], held: str, server: Server, admin: Admin, make_pool: MakePool
) -> None:
    """If a signal handler raises during the wait for a reply, the next borrower gets none of the reply."""
    pool = make_pool(size=1)
    session = check_answers(pool)
    main = threading.get_ident()

    def handler(*_: object) -> None:
        raise Struck

    def watch() -> None:
        eventually(lambda: waits_for_lock(session, admin))
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ThreadPoolExecutor(1) as executor:
            watching = executor.submit(watch)
            with pytest.raises(Struck):
                way(pool, lambda connection: ask(connection, held))
            watching.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert check_answers(pool) != session
    eventually(lambda: not is_alive(session, admin))


IN_GEVENT = """
from gevent import monkey; monkey.patch_all()
import json, sys, gevent, pymysqlpool
pool = pymysqlpool.ConnectionPool(size=1, **json.loads(sys.argv[1]))
for by_block in False, True:
    conn = pool.get_connection()
    timeout = gevent.Timeout(0.01)  # however early: the first switch to another greenlet is in the wait for the reply
    try:
        if by_block:
            with conn as cur:
                timeout.start()
                cur.execute(sys.argv[2])
        else:
            timeout.start()
            conn.query(sys.argv[2])
    except gevent.Timeout as error:
        assert error is timeout
    else:
        raise AssertionError("no timeout")
    conn.close()
    with pool.connection() as another:
        assert another.server_thread_id[0] != conn.server_thread_id[0]
        assert another.execute_query("select 42") == ((42,),)
    assert pool.size() == 1
"""


def test_a_gevent_timeout_in_a_query_means_closed(server: Server, held: str) -> None:
    """After a gevent timeout during the wait for a reply, the next borrower gets none of the reply."""
    pytest.importorskip("gevent")
    command = [sys.executable, "-c", IN_GEVENT, json.dumps({**server.connect_kwargs, "ssl_disabled": True}), held]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=False, env=environment, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Two threads


CALLS: dict[str, Deed] = {
    "query": lambda connection: connection.query("select 1"),
    "cursor": running("select 1"),
    "unbuffered": unbuffered,
    "ping": lambda connection: connection.ping(reconnect=False),
    "begin": lambda connection: connection.begin(),
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "select_db": lambda connection: connection.select_db("mysql"),
    "autocommit": lambda connection: connection.autocommit(value=True),
    "set_charset": lambda connection: getattr(connection, SET_CHARSET)("latin1"),
    "show_warnings": lambda connection: connection.show_warnings(),
    "next_result": lambda connection: connection.next_result(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_second_thread_is_told_so(call: str, held: str, admin: Admin, make_pool: MakePool) -> None:
    """While a thread waits for a reply, another's call on the connection raises, and the first gets its reply."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with ThreadPoolExecutor(1, "first") as executor:
        query = executor.submit(ask, connection, held)
        eventually(lambda: waits_for_lock(connection.server_thread_id[0], admin))
        with pytest.raises(pymysqlpool.PoolError, match=r"in the middle of a reply to thread 'first.*two threads"):
            CALLS[call](connection)
        release(admin)
        assert query.result() == ((42,),)
        assert executor.submit(ask, connection, "select 43").result() == ((43,),)
    connection.close()
    assert check_answers(pool) == connection.server_thread_id[0]


def test_a_second_thread_does_not_read_the_rows_of_the_first(make_pool: MakePool) -> None:
    """While one thread has unread rows, another's call on the connection raises, and the first can read on."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    cursor = connection.cursor(SSCursor)
    cursor.execute("select 1 union select 2 union select 3")
    assert cursor.fetchone() == (1,)
    with ThreadPoolExecutor(1) as executor, pytest.raises(pymysqlpool.PoolError, match="two threads"):
        executor.submit(ask, connection, "select 4").result()
    assert cursor.fetchall() == [(2,), (3,)]
    assert ask(connection, "select 5") == ((5,),)
    connection.close()
    assert check_answers(pool) == connection.server_thread_id[0]


@pytest.mark.parametrize("ends_by", ["close", "block"])
def test_a_connection_returned_while_another_thread_reads_from_it(ends_by: str) -> None:
    """The reading thread does not touch the next session, whose socket has the same descriptor, even over TLS."""
    with running_server(tls=True) as server, one_thread() as other:
        if server.ca is None:
            pytest.skip("this server is not ours")
        thread = other.submit(threading.current_thread).result()
        with ConnectionPool(1, ssl={"ca": server.ca}, **server.connect_kwargs) as pool:
            for _ in range(20):
                connection = pool.get_connection()
                end = connection.close
                if ends_by == "block":
                    connection.__enter__()
                    end = functools.partial(connection.__exit__, None, TimeoutError(), None)
                query = other.submit(connection.query, "select sleep(60)")
                eventually(lambda: is_in(thread, "readinto"))
                end()
                assert pool.get_connection().execute_query("select 1") == ((1,),)
                assert isinstance(query.exception(), ReturnConnectionToPoolError)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals here")
def test_a_connection_returned_by_a_signal_handler_that_strikes_its_query() -> None:
    """The interrupted query does not read from the session that the handler borrows, even over TLS."""
    borrowed = []

    def strike(*_: object) -> None:
        connection.close()
        borrowed.append(pool.get_connection())

    with running_server(tls=True) as server, one_thread() as other:
        if server.ca is None:
            pytest.skip("this server is not ours")
        former = signal.signal(signal.SIGUSR1, strike)
        try:
            with ConnectionPool(1, ssl={"ca": server.ca}, **server.connect_kwargs) as pool:
                for _ in range(5):
                    connection = pool.get_connection()
                    other.submit(strike_when_in, threading.current_thread(), "readinto")
                    with pytest.raises(ReturnConnectionToPoolError):
                        connection.query("select sleep(60)")
                    assert borrowed.pop().execute_query("select 1") == ((1,),)
        finally:
            signal.signal(signal.SIGUSR1, former)


# Failing halfway


def test_a_file_that_fails_half_way_leaves_no_reply(make_pool: MakePool, admin: Admin, tmp_path: Path) -> None:
    """If LOAD DATA LOCAL loses its server, it fails, and the session is closed."""
    pool = make_pool(size=1, local_infile=True)
    connection = pool.get_connection()
    connection.query("create table t (n int)")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def feed() -> None:
        with fifo.open("w") as file, suppress(BrokenPipeError):
            file.write("1\n" * 100_000)
            file.flush()
            kill(admin, {connection.server_thread_id[0]})
            file.write("1\n" * 1_000_000)

    with one_thread() as other:
        feeding = other.submit(feed)
        try:
            connection.query(f"load data local infile '{fifo}' into table t")
        except (pymysql.err.OperationalError, AttributeError) as error:  # the latter: PyMySQL has dropped the socket
            lost = error.args[0] in {2006, 2013, 1927, 1053, 1317} or "sendall" in str(error)
        if not lost:
            fifo.read_text()
            pytest.skip("this server does not take local files")
        feeding.result()
    connection.close()
    assert pool.get_connection().execute_query("select 1") == ((1,),)


def test_a_file_that_is_not_there_does_not_cost_the_session(make_pool: MakePool, database: str, tmp_path: Path) -> None:
    """After LOAD DATA LOCAL of a file that does not exist the connection can be used, as with PyMySQL."""
    pool = make_pool(size=1, local_infile=True)
    connection = pool.get_connection()
    connection.query("create table t (n int)")
    try:
        connection.query(f"load data local infile '{tmp_path / 'none'}' into table t")
    except pymysql.err.OperationalError as error:
        if error.args[0] != 1017:
            pytest.skip("this server does not take local files")
    assert connection.execute_query("select 1") == ((1,),)
    connection.close()


@pytest.mark.parametrize("is_time_limit", [True, False])
def test_rows_that_end_in_an_error_while_they_are_drained(
    make_pool: MakePool, on_mariadb: bool, is_time_limit: bool
) -> None:
    """If the rest of an unbuffered query ends in an error packet, the reply is over, and the connection can be used."""
    connection = make_pool(size=1).get_connection()
    connection.query("create table t (n int primary key, word varchar(500))")
    with connection.cursor() as cur:
        cur.executemany("insert into t values (%s, repeat('x', 500))", [(n,) for n in range(2000)])
    statement = "select word, (select a.n from t a where a.n <= if(t.n < 1990, 0, 9)) from t order by n"
    if is_time_limit:  # which PyMySQL takes for the end of the rows
        limit = (
            "set statement max_statement_time = 0.2 for select"
            if on_mariadb
            else "select /*+ max_execution_time(200) */"
        )
        statement = f"{limit} word, sleep(t.n > 1900) from t order by n"
    cursor = connection.cursor(SSCursor)
    cursor.execute(statement)
    assert cursor.fetchone() is not None
    with suppress(pymysql.Error):
        cursor.close()
    assert connection.execute_query("select 1") == ((1,),)


def test_a_decoder_that_raises_interrupts_the_reply(make_pool: MakePool) -> None:
    """A decoder's exception interrupts the reply: the next command raises, and the session is replaced."""

    def decode(value: str) -> str:
        raise DataError(value)

    connection = make_pool(size=1, conv={**conversions, FIELD_TYPE.VAR_STRING: decode}).get_connection()
    session = connection.thread_id()
    with pytest.raises(DataError, match="a"):
        connection.query("select 'a' union all select 'b'")
    with pytest.raises(PoolError, match="interrupted in the middle of a reply"):
        connection.query("select 1")
    connection.close()
    with connection as cur:
        assert cur.connection.thread_id() != session


def test_warnings_and_charsets_are_whole_replies(make_pool: MakePool) -> None:
    """After `show_warnings()`, `set_charset()` and `set_character_set()`, even failed ones, the session is kept."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = session_of(connection)
    connection.query("select 1/0")
    assert connection.show_warnings()[0][2] == "Division by 0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyMySQL's, of set_charset
        connection.set_charset("latin1")
    if hasattr(pymysql.connections.Connection, "set_character_set"):
        with pytest.raises(pymysql.Error):
            connection.set_character_set("utf8mb4", "latin1_bin")
        connection.set_character_set("utf8mb4")
    assert session_of(connection) == session
    connection.close()
    with pool.get_connection() as cur:
        assert cur.db_query("select connection_id(), @@character_set_client") == ((session, "utf8mb4"),)

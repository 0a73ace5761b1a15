from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable, ClassVar

import pymysql
import pytest
from pymysql.constants import COMMAND
from pymysql.cursors import SSCursor

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server import Server

    Plain = pymysql.connections.Connection[Any]
    Pool = pymysqlpool.ConnectionPool
    MakePool = Callable[..., Pool]
    Deed = Callable[[Any], object]

COM_RESET_CONNECTION = 0x1F
SET_CHARSET = "set_character_set" if hasattr(pymysql.connections.Connection, "set_character_set") else "set_charset"
CYCLES = 10


class Boom(Exception):
    """The application's own failure."""


class Struck(BaseException):
    """What no `except Exception` catches."""


def ask(connection: Any, sql: str, *args: object) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, args or None)
        return cursor.fetchall()


def check_answers(pool: Pool) -> int:
    """Borrow, get the right answer, and return whose session it is."""
    unique = uuid.uuid4().hex
    with pool.connection() as connection:
        assert ask(connection, f"select '{unique}'") == ((unique,),)
        return connection.server_thread_id[0]


def eventually(question: Callable[[], bool]) -> bool:
    """Ask until it is so."""
    deadline = time.monotonic() + 30
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_alive(session: int, admin: Plain) -> bool:
    return ask(admin, f"select count(*) from information_schema.processlist where id = {session}") == ((1,),)


def waits_for_lock(session: int, admin: Plain) -> bool:
    known = "select count(*) from information_schema.processlist where id = %s and state = 'User lock'"
    return bool(ask(admin, known, session) == ((1,),))


@pytest.fixture
def table(database: str, admin: Plain) -> str:
    ask(admin, f"create table {database}.t (n int, email varchar(99))")
    return f"{database}.t"


@pytest.fixture
def held(database: str, admin: Plain) -> Iterator[str]:
    """A query that waits until `admin` lets it go on, with `release_lock()`."""
    assert ask(admin, f"select get_lock('{database}', 0)") == ((1,),)
    yield f"select get_lock('{database}', 10) + 41"
    release(admin)


def release(admin: Plain) -> None:
    ask(admin, "select release_all_locks()")


# Counts


@pytest.fixture
def wire() -> type[Recorder]:
    """A class of connections with a record of its own."""
    return type("Recorder", (Recorder,), {"writes": []})


class Recorder(pymysqlpool.Connection):
    """Tells what it writes."""

    writes: ClassVar[list[list[int]]]
    """The commands in each write."""

    def _write_bytes(self, data: bytes) -> None:
        commands, at = [], 0
        while at < len(data):
            # The numbers of the packets of a handshake go on from the server's.
            if data[at + 3] == 0:
                commands.append(data[at + 4])
            at += 4 + int.from_bytes(data[at : at + 3], "little")
        type(self).writes.append(commands)
        super()._write_bytes(data)

    @classmethod
    def count(cls) -> int:
        """How many commands there were."""
        return sum(map(len, cls.writes))


def by_close(pool: Pool, deed: Deed) -> None:
    connection = pool.get_connection()
    deed(connection)
    connection.close()


def by_block(pool: Pool, deed: Deed) -> None:
    with pool.get_connection() as cursor:
        deed(cursor.connection)


def by_block_of_the_pool(pool: Pool, deed: Deed) -> None:
    with pool.connection() as connection:
        deed(connection)


def by_exception(pool: Pool, deed: Deed) -> None:
    with suppress(Boom), pool.get_connection() as cursor:
        deed(cursor.connection)
        raise Boom


def running(*statements: str) -> Deed:
    def deed(connection: Any) -> None:
        for statement in statements:
            ask(connection, statement)

    return deed


def turn(connection: Any, autocommit: str) -> None:
    connection.autocommit(autocommit == "on")
    connection.commit()


INSERT = "insert into t values (1, 'ann@example.org')"
WAYS = [by_close, by_block, by_block_of_the_pool, by_exception]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("autocommit", "deed", "commands"),
    [
        (True, running(), 0),
        (False, running(), 0),
        (True, running("select n from t"), 1),
        (True, running("select * from t where email = 'ann@example.org'"), 1),
        (True, lambda connection: ask(connection, "select * from t where email = %s", "ann@example.org"), 1),
        (False, running("select n from t"), 2),
        (False, running("select * from t where email = 'ann@example.org'"), 2),
        (True, running("begin", "select n from t for update", "commit"), 3),
        (False, running("begin", "select n from t", "commit"), 3),
        (False, lambda connection: (connection.begin(), connection.commit()), 2),
        (True, lambda connection: connection.ping(reconnect=False), 1),
        (True, lambda connection: (turn(connection, "off"), ask(connection, "select 1"), turn(connection, "on")), 5),
        (False, lambda connection: (turn(connection, "on"), ask(connection, "select 1"), turn(connection, "off")), 5),
    ],
)
def test_a_clean_cycle_costs_no_command(  # noqa: PLR0917 - fixtures
    autocommit: bool, deed: Deed, commands: int, way: Any, wire: type[Recorder], table: str, make_pool: MakePool
) -> None:
    """The pool adds nothing to what a borrower sends, but one command where a transaction has to be ended."""
    pool = make_pool(size=1, autocommit=autocommit, connection_class=wire)
    check_answers(pool)
    wire.writes.clear()
    for _ in range(CYCLES):
        way(pool, deed)
    assert wire.count() == commands * CYCLES


@pytest.mark.parametrize(("autocommit", "commands"), [(True, 1), (False, 2)])
def test_execute_query_costs_no_more_than_its_query(
    autocommit: bool, commands: int, wire: type[Recorder], table: str, make_pool: MakePool
) -> None:
    """`execute_query` sends its query and, without autocommit, the commit."""
    pool = make_pool(size=1, autocommit=autocommit, connection_class=wire)
    connection = pool.get_connection()
    connection.close()
    wire.writes.clear()
    for _ in range(CYCLES):
        connection.execute_query("select * from t where email = %s", ("ann@example.org",))
    assert wire.count() == commands * CYCLES


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "deed",
    [
        running("set @v = 1"),
        running("select @v := 1"),
        running("begin", INSERT, "set @v = 1"),
        running(INSERT),
        running(" Update t set n = 1 where email like '%@example.org' ;"),
        running("begin", INSERT, "commit"),
    ],
)
def test_a_reset_is_one_trip(deed: Deed, way: Any, wire: type[Recorder], table: str, make_pool: MakePool) -> None:
    """The reset and all that has to be applied again leave in one write, and nothing else but the borrowers' own."""
    pool = make_pool(size=1, autocommit=True, connection_class=wire, init_command="set @w = 2", sql_mode="ANSI")
    check_answers(pool)
    wire.writes.clear()
    for _ in range(CYCLES):
        way(pool, deed)
        connection = pool.get_connection()
        assert ask(connection, "select 1") == ((1,),)
        connection.close()
    resets = [commands for commands in wire.writes if COM_RESET_CONNECTION in commands]
    assert len(resets) == CYCLES
    assert all(len(commands) >= 3 for commands in resets)
    own = [commands for commands in wire.writes if commands not in ([], *resets)]
    assert all(len(commands) == 1 for commands in own)
    # The first on a server has one more, to see whether a reset has any effect.
    assert {len(commands) for commands in resets[1:]} == {len(resets[0]) - 1}
    assert set(itertools.chain(*own)) == {COMMAND.COM_QUERY}


def test_only_an_open_transaction_is_rolled_back(wire: type[Recorder], table: str, make_pool: MakePool) -> None:
    """Where nothing else may have been left, the return sends one ROLLBACK and no reset."""
    pool = make_pool(size=1, connection_class=wire)
    check_answers(pool)
    wire.writes.clear()
    for _ in range(CYCLES):
        by_close(pool, running("select * from t for update"))
    check_answers(pool)
    assert [commands for commands in wire.writes if commands != [COMMAND.COM_QUERY]] == []
    assert wire.count() == 2 * CYCLES + 2


# Interrupted


class Fault:
    """Raises an exception at one of the moments that a connection's socket comes to."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.moments = 0
        """How many moments are left until it strikes; 0 while it is not armed."""
        self.has_struck = False

    def arm(self, moments: int) -> None:
        """Let it strike at this moment from now, counted from 1."""
        self.moments = moments
        self.has_struck = False

    def disarm(self) -> None:
        """Let it not strike any more."""
        self.moments = 0

    def moment(self) -> None:
        """Here it may strike."""
        if self.moments:
            self.moments -= 1
            if self.moments == 0:
                self.has_struck = True
                raise self.kind("injected")


class FaultySocket:
    """A socket, or the file to read from it, struck before, in and after a send, and before and after a read."""

    def __init__(self, real: Any, fault: Fault) -> None:
        self._real = real
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sendall(self, data: bytes) -> None:
        """Send one half and the other."""
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
    """Its socket may be struck by a fault, from the server's greeting on."""

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
def faulty_pool(fault: Fault, table: str, admin: Plain, make_pool: MakePool) -> Iterator[Pool]:
    """A pool of one place, whose sessions are struck."""
    gc.collect()
    gc.freeze()  # so that the many collections of these tests are quick
    ask(admin, f"create procedure {table}wo() begin select 1; select 2; end")
    connection_class = type("Faulty", (FaultyConnection,), {"fault": fault})
    pool = make_pool(size=1, connection_class=connection_class, ssl_disabled=True)
    by_close(pool, running("set @v = 1"))
    check_answers(pool)  # after the first reset it looks at all variables, in a thousand reads
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


def closing_it(pool: Pool, deed: Deed) -> None:
    connection = pool.get_connection()
    try:
        deed(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("way", [closing_it, by_block, by_block_of_the_pool])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupted_in_the_middle_of_a_reply_means_closed(
    operation: str, way: Callable[[Pool, Deed], None], fault: Fault, faulty_pool: Pool, admin: Plain
) -> None:
    """Whatever strikes at whatever send or read of a command, its session is closed, and its place is not lost."""
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
    assert eventually(lambda: not any(is_alive(session, admin) for session in closed))


def with_a_reset(pool: Pool, fault: Callable[[], None], admin: Plain) -> None:
    connection = pool.get_connection()
    ask(connection, "set @v = 1")
    fault()
    connection.close()


def with_a_rollback(pool: Pool, fault: Callable[[], None], admin: Plain) -> None:
    connection = pool.get_connection()
    ask(connection, "select * from t")
    fault()
    connection.close()


def with_a_commit(pool: Pool, fault: Callable[[], None], admin: Plain) -> None:
    with pool.connection() as connection:
        ask(connection, INSERT)
        fault()


def with_another_session(pool: Pool, fault: Callable[[], None], admin: Plain) -> None:
    connection = pool.get_connection()
    connection.close()
    with suppress(pymysql.Error):  # it may have gone already
        admin.kill(connection.server_thread_id[0])
    assert eventually(lambda: not is_alive(connection.server_thread_id[0], admin))
    fault()


@pytest.mark.parametrize("go_on", [with_a_reset, with_a_rollback, with_a_commit, with_another_session])
def test_interrupted_between_two_borrowers_means_closed(
    go_on: Callable[[Pool, Callable[[], None], Plain], None], fault: Fault, faulty_pool: Pool, admin: Plain
) -> None:
    """Whatever strikes at whatever send or read of the pool's own commands, no borrower gets that session again."""
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
    assert eventually(lambda: not any(is_alive(session, admin) for session in closed))


class Asynchronous(Exception):
    """Raised in a thread by another."""


def test_an_asynchronous_exception_in_a_query_means_closed(held: str, admin: Plain, make_pool: MakePool) -> None:
    """What another thread raises in one that waits for a reply leaves nothing of it to the next borrower."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with ThreadPoolExecutor(1) as executor:
        thread = executor.submit(threading.get_ident).result()
        query = executor.submit(ask, connection, held)
        assert eventually(lambda: waits_for_lock(connection.server_thread_id[0], admin))
        # It is delivered when the thread runs Python again: the moment that the first byte of the reply is there.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Asynchronous))
        release(admin)
        with pytest.raises(Asynchronous):
            query.result()
    connection.close()
    assert check_answers(pool) != connection.server_thread_id[0]
    assert eventually(lambda: not is_alive(connection.server_thread_id[0], admin))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
@pytest.mark.parametrize("way", [closing_it, by_block])
def test_an_exception_from_a_signal_handler_in_a_query_means_closed(
    way: Callable[[Pool, Deed], None], held: str, server: Server, admin: Plain, make_pool: MakePool
) -> None:
    """What a signal handler raises while a reply is awaited leaves nothing of it to the next borrower."""
    pool = make_pool(size=1)
    session = check_answers(pool)
    main = threading.get_ident()

    def handler(*_: object) -> None:
        raise Struck

    def watch() -> None:
        assert eventually(lambda: waits_for_lock(session, admin))
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
    assert eventually(lambda: not is_alive(session, admin))


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
    """A gevent timeout while a reply is awaited leaves nothing of it to the next borrower."""
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
def test_a_second_thread_is_told_so(call: str, held: str, admin: Plain, make_pool: MakePool) -> None:
    """While a thread waits for a reply another's call on the same connection raises, and the first gets its answer."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    with ThreadPoolExecutor(1, "first") as executor:
        query = executor.submit(ask, connection, held)
        assert eventually(lambda: waits_for_lock(connection.server_thread_id[0], admin))
        with pytest.raises(pymysqlpool.PoolError, match=r"in the middle of a reply to thread 'first.*two threads"):
            CALLS[call](connection)
        release(admin)
        assert query.result() == ((42,),)
        assert executor.submit(ask, connection, "select 43").result() == ((43,),)
    connection.close()
    assert check_answers(pool) == connection.server_thread_id[0]


def test_a_second_thread_does_not_read_the_rows_of_the_first(make_pool: MakePool) -> None:
    """While one thread has rows unread another's call on the same connection raises, and the first can read on."""
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


def test_one_handle_shared_by_32_threads(make_pool: MakePool) -> None:
    """Of threads that enter blocks on one handle at the same time each has a session of its own."""
    threads, rounds = 32, 3
    pool = make_pool(size=threads, ssl_disabled=True)
    handle = pool.get_connection()
    everybody = threading.Barrier(threads)

    def work(number: int) -> list[int]:
        sessions = []
        try:
            for _ in range(rounds):
                with handle as cursor:
                    everybody.wait()
                    cursor.execute("select %s, connection_id()", (number,))
                    [(answer, session)] = cursor.fetchall()
                    assert answer == number
                    assert session == cursor.connection.server_thread_id[0]
                    sessions.append(session)
                    everybody.wait()
                everybody.wait()  # all are back
        except threading.BrokenBarrierError:
            pass  # the culprit tells
        except BaseException:
            everybody.abort()
            raise
        return sessions

    with ThreadPoolExecutor(threads) as executor:
        sessions = list(executor.map(work, range(threads)))
    for of_round in zip(*sessions):
        assert len(set(of_round)) == threads
    assert pool.size() == threads


# A unit of work


def rows(admin: Plain, table: str) -> Any:
    return ask(admin, f"select n from {table}")


@contextmanager
def block_on_handle(pool: Pool) -> Iterator[Any]:
    with pool.get_connection() as cursor:
        yield cursor.connection


@contextmanager
def block_of_pool(pool: Pool) -> Iterator[Any]:
    with pool.connection() as connection:
        yield connection


@contextmanager
def block_in_a_block(pool: Pool) -> Iterator[Any]:
    with pool.get_connection() as cursor, cursor.connection as inner:
        yield inner.connection


@contextmanager
def block_on_a_returned_handle(pool: Pool) -> Iterator[Any]:
    handle = pool.get_connection()
    handle.close()
    with handle as cursor:
        yield cursor.connection


BLOCKS = [block_on_handle, block_of_pool, block_in_a_block, block_on_a_returned_handle]
Block = Callable[["Pool"], Any]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("autocommit", "begin"), [(False, "do 0"), (False, "begin"), (True, "begin"), (True, "start transaction")]
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, pymysql.err.ProgrammingError])
def test_an_exception_never_commits(  # noqa: PLR0917 - fixtures
    error: type[BaseException],
    autocommit: bool,
    begin: str,
    block: Block,
    table: str,
    admin: Plain,
    make_pool: MakePool,
) -> None:
    """Where an exception ends a block, nothing of its transaction is left; a session is sound after an `Exception`."""
    pool = make_pool(size=1, autocommit=autocommit)
    session = check_answers(pool)
    with pytest.raises(error), block(pool) as connection:  # noqa: PT012 - the end of the block raises
        running(begin, INSERT)(connection)
        raise error
    assert rows(admin, table) == ()
    assert check_answers(pool) == session or not issubclass(error, Exception)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sql", ["select nothing", "insert into t values (1)", "selec"])
def test_a_failing_statement_never_commits(
    sql: str, block: Block, table: str, admin: Plain, make_pool: MakePool
) -> None:
    """BEGIN, INSERT and a statement that the server refuses leave nothing, and the session is sound."""
    pool = make_pool(size=1)
    session = check_answers(pool)
    with pytest.raises(pymysql.Error), block(pool) as connection:
        running("begin", INSERT, sql)(connection)
    assert rows(admin, table) == ()
    assert check_answers(pool) == session


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("swallows", [True, False])
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_session_killed_in_a_block_is_no_success(  # noqa: PLR0917 - fixtures
    autocommit: bool, swallows: bool, block: Block, table: str, admin: Plain, make_pool: MakePool
) -> None:
    """Where a block's session is lost, its end raises, also where the block has noticed nothing or kept silent."""
    pool = make_pool(size=1, autocommit=autocommit)
    with pytest.raises(pymysql.Error), block(pool) as connection:  # noqa: PT012 - the end of the block raises
        running("begin", INSERT)(connection)
        session = connection.server_thread_id[0]
        admin.kill(session)
        assert eventually(lambda: not is_alive(session, admin))
        if swallows:
            with suppress(pymysql.Error):
                ask(connection, "select 1")
    assert rows(admin, table) == ()
    assert pool.size() == 1
    assert check_answers(pool) != session


@pytest.mark.parametrize("block", BLOCKS)
def test_the_exception_of_a_block_is_not_hidden_by_a_lost_session(
    block: Block, table: str, admin: Plain, make_pool: MakePool
) -> None:
    """Where an exception ends a block whose session is lost too, it is that exception which comes out."""
    pool = make_pool(size=1)
    with pytest.raises(Boom), block(pool) as connection:  # noqa: PT012 - the end of the block raises
        ask(connection, INSERT)
        session = connection.server_thread_id[0]
        admin.kill(session)
        assert eventually(lambda: not is_alive(session, admin))
        raise Boom
    assert rows(admin, table) == ()
    assert pool.size() == 1
    assert check_answers(pool) != session


def test_a_commit_that_the_server_refuses_is_raised(table: str, admin: Plain, make_pool: MakePool) -> None:
    """Where the commit at a block's end fails, its error comes out, and nobody gets the session again."""
    pool = make_pool(size=1)
    with pytest.raises(pymysql.Error), pool.connection() as connection:  # noqa: PT012 - the end of the block raises
        running("xa start 'half'", INSERT)(connection)  # the server refuses to COMMIT an XA transaction
        session = connection.server_thread_id[0]
    assert rows(admin, table) == ()
    assert pool.size() == 1
    assert check_answers(pool) != session
    assert eventually(lambda: not is_alive(session, admin))

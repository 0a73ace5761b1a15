"""What can strike a place, a block or a reset: collectors, other threads, subclasses, servers that differ."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import functools
import gc
import os
import socket
import threading
import warnings
from collections import OrderedDict
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import (
    borrow_all,
    eventually,
    kill,
    one_thread,
    program_arguments,
    run_as_program,
    session_of,
    set_clock,
)
from proxy import Proxy
from pymysql.constants import CLIENT, COMMAND, FIELD_TYPE
from pymysql.converters import conversions
from pymysql.cursors import Cursor, SSCursor
from pymysql.err import DataError

import pymysqlpool
from pymysqlpool import ConnectionPool, PoolClosedError, PoolError, ReturnConnectionToPoolError
from pymysqlpool.place import Place
from pymysqlpool.reset import pack_commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers import Admin, MakePool
    from server import Server


# A place


class ReturnsLate:
    """In a cycle, and returns its connection when the collector finds it."""

    def __init__(self, connection: pymysqlpool.Connection) -> None:
        self.connection = connection
        self.me = self

    def __del__(self) -> None:
        self.connection.close()


def leave_nothing(_: Any) -> None:
    """Do nothing."""


def leave_a_variable(connection: Any) -> None:
    connection.query("set @left = 1")


def leave_a_transaction(connection: Any) -> None:
    connection.query("begin")


def leave_results(connection: Any) -> None:
    connection.cursor().execute("begin not atomic select 1; select 2; end")


def reconnect(connection: Any) -> None:
    connection.connect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("leave", [leave_nothing, leave_a_variable, leave_a_transaction, leave_results, reconnect])
def test_a_place_that_was_given_up_does_not_come_back(
    make_pool: MakePool, on_mysql: bool, leave: Callable[[Any], None]
) -> None:
    """A finalizer that returns a connection which the collector has found makes no place more, and is told of nothing.

    The collector may have closed the socket before, so that nothing can be undone in the session.
    """
    if on_mysql and leave is leave_results:
        pytest.skip("no statement of several results here")
    pool = make_pool(size=2, read_timeout=30)  # with which PyMySQL sets the socket's timeout before it writes
    for _ in range(10):
        late = ReturnsLate(pool.get_connection())
        leave(late.connection)
        del late
        gc.collect()
        assert pool.size() == 2
        connections = [pool.get_connection(timeout=0) for _ in range(2)]
        assert len({session_of(connection) for connection in connections}) == 2
        with pytest.raises(pymysqlpool.GetConnectionFromPoolError):
            pool.get_connection(timeout=0)
        for connection in connections:
            connection.close()


def test_an_opener_whose_pool_is_closed_is_told_so(make_pool: MakePool) -> None:
    """Who opens a connection is a holder, and gets PoolClosedError where the pool is closed meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(pymysqlpool.Connection):
        def connect(self, sock: Any = None) -> None:
            begun.set()
            assert go_on.wait(30)
            super().connect(sock)

    pool = make_pool(size=1, pre_create_num=0, connection_class=Slow)
    with one_thread() as thread:
        opening = thread.submit(pool.get_connection)
        assert begun.wait(30)
        [loan] = pool._pool.borrows()
        assert (loan.as_data() or {})["opening"] is True
        assert pool.close() == 1
        go_on.set()
        with pytest.raises(PoolClosedError):
            opening.result()
    assert pool.close(timeout=10) == 0


# A block


@pytest.mark.parametrize("is_returned", [True, False])
def test_a_generator_that_is_lost_ends_its_block(make_pool: MakePool, is_returned: bool) -> None:
    """The place of a generator that nobody has any more comes back, also where others keep the handle of its block."""
    pool = make_pool(size=1)
    shared = pool.get_connection()
    if is_returned:
        shared.close()

    def request() -> Any:
        with shared as cur:
            yield cur

    def begin() -> None:
        first_half = request()  # a variable of the frame that the block is begun in
        next(first_half)

    begin()
    gc.collect()
    assert pool.size() == 1


def test_the_halves_of_generators_end_their_own_blocks(make_pool: MakePool, admin: Admin, database: str) -> None:
    """Two generators that are begun in one thread and ended in another's order have a session and an end each."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")
    pool = make_pool(size=3)
    handle = pool.get_connection()

    def request() -> Any:
        with handle as cur:
            yield cur

    with one_thread() as first, one_thread() as second:
        good, bad = request(), request()
        cur, other = first.submit(next, good).result(), first.submit(next, bad).result()
        assert session_of(cur.connection) != session_of(other.connection)
        cur.execute("insert into t values (1)")
        other.execute("insert into t values (2)")
        with pytest.raises(ZeroDivisionError):
            second.submit(bad.throw, ZeroDivisionError()).result()
        assert second.submit(next, good, "ended").result() == "ended"
    with admin.cursor() as cursor:
        cursor.execute(f"select n from {database}.t")
        assert cursor.fetchall() == ((1,),)
    assert pool.size() == 3


def test_an_end_that_can_not_be_told_commits_nothing(make_pool: MakePool, admin: Admin, database: str) -> None:
    """Where ExitStack ends a block and it could be either of two, both are rolled back and returned, in words."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")
    pool = make_pool(size=3)
    handle = pool.get_connection()

    def begin(number: int) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(handle).execute(f"insert into t values ({number})")
        return stack

    with one_thread() as first, one_thread() as second:
        stacks = [first.submit(begin, 1).result(), second.submit(begin, 2).result()]
    with pytest.raises(PoolError, match="2 blocks on this connection could end here"):
        stacks[0].close()
    with pytest.raises(PoolError, match="no block"):
        stacks[1].close()
    with admin.cursor() as cursor:
        assert cursor.execute(f"select n from {database}.t") == 0
    assert pool.size() == 3


def test_a_block_leaves_no_cycle(make_pool: MakePool) -> None:
    """What a block has read is gone with the last reference to it, without the collector."""
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


# Subclasses and cursors


def test_what_a_subclass_sets_is_each_connections_own(make_pool: MakePool) -> None:
    """Where a subclass has an `__init__` it is run for each object; what `connect()` sets is copied."""

    class Mine(pymysqlpool.Connection):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.nested: OrderedDict[str, list[int]] = OrderedDict(a=[])

        def connect(self, sock: Any = None) -> None:
            super().connect(sock)
            self.seen: list[int] = []

    pool = make_pool(size=2, connection_class=Mine)
    for _ in range(2):
        one, other = pool.get_connection(), pool.get_connection()
        assert one.nested == other.nested == {"a": []}
        assert one.seen == other.seen == []
        one.nested["a"].append(1)
        one.seen.append(1)
        assert (other.nested, other.seen) == ({"a": []}, [])
        assert getattr(one, "ctx", None) is getattr(other, "ctx", None)
        one.close()
        other.close()


def test_cursors_as_with_pymysql(make_pool: MakePool) -> None:
    """A function makes a cursor as with PyMySQL, and a cursor class's own `__getattr__` and `db_query` stay."""

    class Mine(Cursor):
        def __getattr__(self, name: str) -> Any:
            if name == "colour":
                return "blue"
            raise AttributeError(name)

        def db_query(self, query: str) -> str:
            return f"mine: {query}"

    pool = make_pool(size=1, cursorclass=Mine)
    with pool.get_connection() as cur:
        assert (cur.colour, cur.db_query("x")) == ("blue", "mine: x")
        assert cur.get_autocommit() is False
        assert type(cur.connection.cursor(functools.partial(Cursor))) is Cursor


def test_a_returned_connection_has_no_thread_id(make_pool: MakePool) -> None:
    """`thread_id()` of a returned connection could be another borrower's: it is refused."""
    connection = make_pool(size=1).get_connection()
    assert connection.thread_id() == session_of(connection)
    connection.close()
    with pytest.raises(ReturnConnectionToPoolError):
        connection.thread_id()


def test_an_interrupted_replacement_is_found_again(make_pool: MakePool) -> None:
    """Whoever is interrupted between two steps of it leaves a new place that is dead, and found like any other."""
    pool = make_pool(size=1)
    record = pool._pool._records[0]
    del pool._pool.queue[0]
    gc.collect()
    replacement = Place(pool._pool._dead.append, pool._pool._totals[0])
    record.replace_with(replacement.record)
    del replacement
    assert pool.size() == 1
    assert len(borrow_all(pool)) == 1


def test_of_two_that_replace_a_place_one_does(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that does it within somebody else's replacement comes first, and the bound holds."""
    pool = make_pool(size=1)
    del pool._pool.queue[0]
    gc.collect()

    def interrupted(*args: Any) -> Place:
        monkeypatch.undo()
        assert pool.size() == 1
        return Place(*args)

    monkeypatch.setattr("pymysqlpool.places.Place", interrupted)
    assert pool.size() == 1
    assert len(borrow_all(pool)) == 1


def test_others_take_what_a_borrower_looks_at(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for a session that is ready, while all others are taken, takes the one that is left."""
    pool = make_pool(size=3)
    for connection in [pool.get_connection() for _ in range(3)]:
        connection.execute_query("do 1")
        connection.close()
    others: list[Any] = []

    looks = 0

    def taken(_: Any) -> bool:
        nonlocal looks
        looks += 1
        while looks == 2 and pool._pool.qsize() > 1:
            others.append(pool._pool.queue.popleft())
        return False

    monkeypatch.setattr("pymysqlpool.places._is_ready", taken)
    assert pool.get_connection(timeout=0).execute_query("select 1") == ((1,),)
    assert len(others) == 2
    pool._pool.queue.extend(others)


def test_a_dead_handle_without_a_socket(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where users' tests patch `connect` away, a session without a socket is closed like any other."""
    monkeypatch.setattr(pymysqlpool.Connection, "connect", lambda *_: None)
    pool = make_pool(size=1, pre_create_num=0)
    connection = pool.get_connection()
    connection._token.clear()  # interrupted in the middle of a reply
    connection.close()
    assert pool.total_num == 0


def test_a_subclass_that_closes_when_it_can_not_connect(make_pool: MakePool, server: Server) -> None:
    """It gives no place back twice, also where its session is replaced while it is lent."""

    class Closing(pymysqlpool.Connection):
        fails = False

        def connect(self, sock: Any = None) -> None:
            if self.fails:
                self.close()
                raise pymysql.err.OperationalError(2003, "refused")
            super().connect(sock)

    pool = make_pool(size=1, connection_class=Closing, autocommit=True)
    pool.get_connection().execute_query("do 1")
    connection = pool.get_connection()
    connection._place.session.pending = pack_commands((COMMAND.COM_PING, b""))
    connection._place.session.sock.shutdown(socket.SHUT_RDWR)
    Closing.fails = True
    with pytest.raises(pymysql.err.OperationalError, match="refused"):
        connection.query("do 1")
    assert pool.size() == 0
    connection.close()
    assert pool.size() == 1


def test_another_thread_has_looked_up_the_end_of_a_block(make_pool: MakePool) -> None:
    """An end that somebody has looked up and not used is no other block's."""
    connection = make_pool(size=1).get_connection()
    with one_thread() as other:
        end = other.submit(getattr, connection, "__exit__").result()
        with connection as cur:
            cur.execute("select 1")
        assert connection._place is None
    del end


def test_an_attribute_of_an_object_that_was_never_initialized() -> None:
    """It is not there, as with PyMySQL."""
    assert not hasattr(pymysqlpool.Connection.__new__(pymysqlpool.Connection), "decoders")


def test_a_subclass_with_an_init_without_tls(make_pool: MakePool) -> None:
    """There is no context to be shared then."""

    class WithInit(pymysqlpool.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mine: list[int] = []

    pool = make_pool(size=1, connection_class=WithInit, ssl_disabled=True, cursorclass=pymysqlpool.DictCursor)
    for _ in range(2):
        with pool.connection() as connection:
            assert connection.execute_query("select 1 as n") == [{"n": 1}]
            assert connection.mine == []
            connection.mine.append(1)


def test_the_state_is_told_of_what_is_lent_meanwhile(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who counts what is idle counts on, where others borrow and return at the same time."""
    pool = make_pool(size=2)
    before = pool._pool.idle()
    with pool.get_connection():
        pass
    assert any("_place" not in vars(connection) for connection in before)
    monkeypatch.setattr(pool._pool, "idle", lambda: before)
    assert pool.available_num == 1
    assert "1 idle of 2 open" in repr(pool)
    pool.drain()


def test_a_borrow_that_no_line_of_python_calls(make_pool: MakePool) -> None:
    """A thread may begin with it; there is no line to be named then, and nothing is lost."""
    pool = make_pool(size=1, pre_create_num=0)
    _thread.start_new_thread(pool.get_connection, ())
    eventually(lambda: pool._pool._dead)
    with pytest.warns(ResourceWarning, match="never returned"):
        assert pool.size() == 1
    assert len(borrow_all(pool)) == 1


def test_a_borrow_at_exit(server: Server) -> None:
    """The same where the interpreter calls it."""
    status, _, errors = run_as_program(__file__, server.connect_kwargs)
    assert (status, errors) == (0, "")


def test_a_generator_that_ends_early_keeps_its_session(make_pool: MakePool) -> None:
    """It is rolled back, as after any exception, and costs nothing."""
    pool = make_pool(size=1)
    pool.get_connection().execute_query("create table t (n int)")

    def numbers() -> Iterator[int]:
        with pool.get_connection() as cur:
            cur.execute("insert into t values (1)")
            cur.execute("select n from t union all select 2")
            for (number,) in cur:
                yield number

    sessions = set()
    for _ in range(5):
        for _ in numbers():
            break
        connection = pool.get_connection()
        sessions.add(session_of(connection))
        assert connection.execute_query("select n from t") == ()
    assert len(sessions) == 1


def test_a_clock_that_stands_still_makes_nobody_wait_for_ever(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does in a user's test under freezegun."""
    pool = make_pool(size=1)
    held = pool.get_connection()
    set_clock(monkeypatch, lambda: 1.0)
    monkeypatch.setattr("pymysqlpool.fairqueue.monotonic", lambda: 1.0)
    with pytest.raises(pymysqlpool.GetConnectionFromPoolError):
        pool.get_connection(timeout=0.1, retry_num=0)
    held.close()


def test_an_error_with_a_signature_of_its_own_arrives_as_it_is(make_pool: MakePool) -> None:
    """An opening's error is remembered for others, and the borrower gets the very error."""

    class Odd(pymysql.err.OperationalError):
        def __init__(self, host: str, *, hint: str) -> None:
            super().__init__(2003, host)
            self.hint = hint

    class Refused(pymysqlpool.Connection):
        def connect(self, _: Any = None) -> None:
            raise Odd("h", hint="mind the gap")

    pool = make_pool(size=1, pre_create_num=0, connection_class=Refused)
    with pytest.raises(Odd) as caught:
        pool.get_connection()
    assert caught.value.hint == "mind the gap"
    held = pool._pool.get()
    with pytest.raises(pymysqlpool.GetConnectionFromPoolError) as exhausted:
        pool.get_connection(timeout=0, retry_num=0)
    cause: Any = exhausted.value.__cause__
    assert (type(cause), cause.args, cause.hint) == (Odd, (2003, "h"), "mind the gap")
    pool._pool.put(held)


def test_what_pymysql_deprecates_is_told_of_the_caller_s_line(make_pool: MakePool) -> None:
    """Not of a line in this package."""
    connection = make_pool(size=1).get_connection()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection.set_charset("utf8mb4")
        connection.ping(reconnect=True)
    assert "The 'reconnect' argument is deprecated." in [str(warning.message) for warning in caught]
    assert {warning.filename for warning in caught} == {__file__}


# The server


class Old(Proxy):
    """In front of a server it is one that knows of no authentication plugins, as Sphinx, Manticore and old proxies."""

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server_reader, server = await asyncio.open_connection(*self._target)
        greeting = bytearray(await server_reader.read(65536))
        upper_capabilities = greeting.index(b"\0", 5) + 1 + 4 + 8 + 1 + 2 + 1 + 2
        greeting[upper_capabilities] &= ~(CLIENT.PLUGIN_AUTH >> 16) & 0xFF
        client.write(greeting)
        response = bytearray(await client_reader.read(65536))
        response[4 + 2] &= ~(CLIENT.PLUGIN_AUTH >> 16) & 0xFF  # PyMySQL claims it all the same
        server.write(response)
        self._links[client] = server
        await asyncio.gather(self._pump(client_reader, server), self._pump(server_reader, client))
        for writer in client, server:
            with suppress(OSError):
                await writer.wait_closed()
        del self._links[client]


def test_a_server_without_authentication_plugins(make_pool: MakePool, server: Server, on_mariadb: bool) -> None:
    """It can be reached, as with PyMySQL."""
    if not on_mariadb:
        pytest.skip("MySQL 9 lets no such client in")
    with Old(server.host, server.port) as old:
        with pymysql.connect(**{**server.connect_kwargs, "port": old.port, "host": old.host}, ssl_disabled=True) as raw:
            assert not raw.server_capabilities & CLIENT.PLUGIN_AUTH  # type: ignore[attr-defined]
        pool = make_pool(size=1, host=old.host, port=old.port, ssl_disabled=True)
        for _ in range(2):
            assert pool.get_connection().execute_query("select 1") == ((1,),)


def test_what_a_reset_does_not_restore_is_restored(make_pool: MakePool) -> None:
    """What came of the client's flags, and a reset forgets, is set again."""
    pool = make_pool(size=1, client_flag=CLIENT.IGNORE_SPACE)
    mode = pool.get_connection().execute_query("select @@sql_mode")
    assert "IGNORE_SPACE" in mode[0][0]
    for _ in range(3):
        with pool.get_connection() as cur:
            assert cur.db_query("select @@sql_mode") == mode
            cur.execute("set @v = 1")


def test_a_server_whose_resets_do_not_restore_all(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """Where a variable can't be restored sessions are replaced, and a warning names it once."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection._place.session.reset.server._variables["external_user"] = "another"
    connection.execute_query("set @v = 1")
    connection.close()
    sessions = set()
    for _ in range(3):
        with pool.get_connection() as cur:
            [(session, left)] = cur.db_query("select connection_id(), @v")
            assert left is None
            sessions.add(session)
            cur.execute("set @v = 1")
    assert len(sessions) == 3
    assert [record.message.count("external_user") for record in caplog.records] == [1]


def test_a_variable_of_the_server_is_not_a_session_s(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """What others change on the server between a session's opening and its first reset costs no session."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection._place.session.reset.server._variables["version_comment"] = "another"
    session = session_of(connection)
    for _ in range(3):
        connection.execute_query("set @v = 1")
        connection.close()
        connection = pool.get_connection()
        assert session_of(connection) == session
    assert not caplog.records


def test_a_file_that_is_not_there_does_not_cost_the_session(make_pool: MakePool, database: str, tmp_path: Path) -> None:
    """After LOAD DATA LOCAL of a file that is not there the connection goes on, as with PyMySQL."""
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


def test_a_prepared_xa_transaction_costs_its_session(make_pool: MakePool, admin: Admin, database: str) -> None:
    """No reset ends it; the next borrower gets a session that is in no part of it, and commits."""
    pool = make_pool(size=1, autocommit=True)
    with admin.cursor() as other:
        other.execute(f"create table {database}.t (n int) engine=innodb")
        xid = f"'{database}'"
        with pool.get_connection() as cur:
            for statement in (f"xa start {xid}", "insert into t values (1)", f"xa end {xid}", f"xa prepare {xid}"):
                cur.execute(statement)
            cur.execute("set @v = 1")
            cur.connection._may_be_in_transaction = False  # as a procedure's last status may have it
        try:
            with pool.get_connection() as cur:
                cur.execute("insert into t values (2)")
            other.execute(f"select * from {database}.t")
            assert other.fetchall() == ((2,),)
        finally:
            eventually(lambda: other.execute(f"xa rollback {xid}") == 0)


def test_a_failing_unbuffered_query_is_over(make_pool: MakePool) -> None:
    """What is left of it reads nothing of a later reply."""
    connection = make_pool(size=1).get_connection()
    cursor = connection.cursor(SSCursor)
    with pytest.raises(pymysql.err.ProgrammingError):
        cursor.execute("select from")
    failed = cursor._result
    other = connection.cursor(SSCursor)
    other.execute("select 1 union all select 2")
    del failed, cursor
    gc.collect()
    assert other.fetchall() in ([(1,), (2,)], ((1,), (2,)))
    assert connection.execute_query("select 3") == ((3,),)


def test_a_replacement_that_fails_leaves_a_place_to_be_opened(make_pool: MakePool, server: Server) -> None:
    """The borrower gets PyMySQL's error, may connect again by hand, and the place comes back."""
    with Proxy(server.host, server.port) as proxy:
        pool = make_pool(size=1, autocommit=True, host=proxy.host, port=proxy.port, ssl_disabled=True)
        for reconnects in (False, True):
            pool.get_connection().execute_query("do 1")  # has a reset pending
            connection = pool.get_connection()
            connection._place.session.pending = pack_commands((COMMAND.COM_PING, b""))  # whose reply never comes
            proxy.refuse = True
            proxy.cut()
            with pytest.raises(pymysql.err.OperationalError, match=r"2003|2013"):
                connection.query("do 1")
            with pytest.raises(pymysql.err.InterfaceError):
                connection.query("do 1")
            proxy.refuse = False
            if reconnects:
                connection.connect()
                assert connection.execute_query("select 1") == ((1,),)
            connection.close()
            eventually(lambda: proxy.connections == 0)
            assert pool.get_connection().execute_query("select 1") == ((1,),)


def test_what_is_done_on_a_replacement_is_known(make_pool: MakePool, admin: Admin, database: str) -> None:
    """A block commits what it wrote on the session that has replaced its own, whatever its first command was."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.t (n int) engine=innodb")
    connection = make_pool(size=1).get_connection()
    connection._send(connection._place.session, pack_commands((COMMAND.COM_QUERY, b"no SQL")))
    session = connection.thread_id()
    with connection as cur:
        connection.select_db(database)
        assert connection.thread_id() != session
        cur.execute("insert into t values (1)")
    with admin.cursor() as cursor:
        cursor.execute(f"select n from {database}.t")
        assert cursor.fetchall() == ((1,),)


def test_a_ping_behind_a_reset_that_fails(make_pool: MakePool) -> None:
    """A borrower whose session is pinged before the reply to its reset has come gets another where that is an error."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    connection.query("set @left = 1")
    connection.close()  # the first reset, which the next borrower waits for
    connection = pool.get_connection()
    number = connection.thread_id()
    connection.close()
    [idle] = pool._pool.idle()
    session: Any = idle._place.session
    idle._send(session, pack_commands((COMMAND.COM_QUERY, b"no SQL")))
    wait = session.poll
    session.poll = lambda milliseconds: wait(milliseconds) if milliseconds else []  # as if it was still on its way
    connection = pool.get_connection(pre_ping=True)
    assert session_of(connection) != number
    connection.close()


def test_a_session_that_is_closed_while_another_looks_at_it(make_pool: MakePool) -> None:
    """It owes nothing any more."""
    pool = make_pool(size=1)
    [idle] = pool._pool.idle()
    session: Any = idle._place.session
    session.pending = pack_commands((COMMAND.COM_PING, b""))
    session._close_socket()
    assert not session.awaits_replies()


@pytest.mark.parametrize(
    "statement", ["set profiling = 1", "set optimizer_trace = 'enabled=on'", "set resource group g"]
)
def test_what_no_reset_undoes_costs_the_session(make_pool: MakePool, statement: str) -> None:
    """Profiles and traces hold a borrower's statements. The text alone decides."""
    pool = make_pool(size=1)
    connection = pool.get_connection()
    session = session_of(connection)
    with suppress(pymysql.Error):
        connection.query(statement)
    connection.close()
    assert session_of(pool.get_connection()) != session


def test_a_user_s_time_limit_is_restored(
    make_pool: MakePool, admin: Admin, database: str, server: Server, on_mariadb: bool
) -> None:
    """MariaDB forgets it in a reset."""
    if not on_mariadb:
        pytest.skip("MariaDB's")
    user = f"u{database[-12:]}"
    with admin.cursor() as cursor:
        cursor.execute(f"create user {user} identified by 'p' with max_statement_time 17")
        try:
            cursor.execute(f"grant all on {database}.* to {user}")
            pool = make_pool(size=1, user=user, password="p")  # noqa: S106  a user for this test
            for _ in range(3):
                with pool.get_connection() as cur:
                    assert cur.db_query("select @@max_statement_time") == ((17.0,),)
                    cur.execute("set @v = 1, max_statement_time = 3")
            pool.close()
        finally:
            cursor.execute(f"drop user {user}")


# An answer


def test_a_file_that_fails_half_way_leaves_no_reply(make_pool: MakePool, admin: Admin, tmp_path: Path) -> None:
    """LOAD DATA LOCAL that loses its server fails, and costs the session."""
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


@pytest.mark.parametrize("is_time_limit", [True, False])
def test_rows_that_end_in_an_error_while_they_are_drained(
    make_pool: MakePool, on_mariadb: bool, is_time_limit: bool
) -> None:
    """An unbuffered query whose rest ends in the server's error packet is over, and the connection goes on."""
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
    """Nobody reads on in it: the next command says so, and the session is replaced."""

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


# Arguments


@pytest.mark.parametrize("seconds", [-1, float("nan"), 1e12, Decimal(-1), "1", True])
@pytest.mark.parametrize("name", ["idle_timeout", "ping_after", "leak_warning"])
def test_seconds_that_make_no_sense_are_refused(server: Server, name: str, seconds: Any) -> None:
    """At once, by name."""
    with pytest.raises((TypeError, ValueError), match=f"{name} should be"):
        ConnectionPool(1, pre_create_num=0, **{name: seconds}, **server.connect_kwargs)


@pytest.mark.parametrize("seconds", [-1, float("nan"), 1e12, Decimal(-1), "1", False])
def test_a_wait_that_makes_no_sense_is_refused(make_pool: MakePool, seconds: Any) -> None:
    """At once, not when the pool is exhausted."""
    pool = make_pool(size=1)
    for name in ("timeout", "retry_interval"):
        with pytest.raises((TypeError, ValueError), match="should be"):
            pool.get_connection(**{name: seconds})
    with pytest.raises((TypeError, ValueError), match="timeout should be"):
        pool.close(seconds)
    assert pool.get_connection(timeout=Decimal("0.5")).execute_query("select 1") == ((1,),)


# Words


def test_an_error_of_an_init_arrives_as_it_is(server: Server) -> None:
    """Also one of PyMySQL's classes."""

    class Failing(pymysqlpool.Connection):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise pymysql.err.InterfaceError(7, "mine")

    with pytest.raises(pymysql.err.InterfaceError, match="mine") as caught:
        ConnectionPool(1, connection_class=Failing, **server.connect_kwargs)
    assert caught.value.args == (7, "mine")


def test_a_query_in_the_init_of_a_connection_class(server: Server) -> None:
    """Nothing is connected there yet, and the error says so."""

    class Early(pymysqlpool.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.query("set @v = 1")

    with pytest.raises(pymysql.err.InterfaceError, match=r"Early\.__init__ runs before .* opened: use init_command"):
        ConnectionPool(1, connection_class=Early, **server.connect_kwargs)


def test_a_percent_sign_without_arguments(make_pool: MakePool) -> None:
    """Even no arguments are formatted into the query; the error says how a percent sign is written."""
    connection = make_pool(size=1).get_connection()
    with connection as cur:
        for ask in (cur.db_query, cur.db_modify, connection.execute_query):
            with pytest.raises((TypeError, ValueError, pymysql.err.ProgrammingError), match=r"write %% .* args=None"):
                ask("select 'a' like 'a%'")
            ask("select 'a' like 'a%'", None)
            ask("select 'a' like 'a%%'")
        with pytest.raises(pymysql.err.ProgrammingError) as caught:  # the server's own, also where it tells of a format
            cur.db_query("select format from")
        assert caught.value.args[0] != 0


def test_a_single_argument_is_deprecated_at_the_caller_s_line(make_pool: MakePool) -> None:
    """As PyMySQL has it."""
    connection = make_pool(size=1).get_connection()
    with connection as cur:
        for ask in (cur.db_query, connection.execute_query):
            with pytest.warns(DeprecationWarning, match="a single argument is deprecated") as caught:
                assert ask("select %s", 7) == ((7,),)
            assert [warning.filename for warning in caught] == [__file__]


if __name__ == "__main__":
    [connect_kwargs] = program_arguments()
    atexit.register(ConnectionPool(1, **connect_kwargs).get_connection)

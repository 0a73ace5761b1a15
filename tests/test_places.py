"""Places that are lost or replaced: none is lost for good, and none is duplicated."""

from __future__ import annotations

import _thread
import atexit
import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import borrow_all, eventually, is_alive, one_thread, program_arguments, run_as_program, session_of
from proxy import Proxy
from pymysql.constants import COMMAND

import pymysqlpool
from pymysqlpool import ConnectionPool
from pymysqlpool.place import Place
from pymysqlpool.reset import pack_commands

if TYPE_CHECKING:
    from helpers import Admin, MakePool
    from server import Server


# Lost


class Acts:
    """An object in a cycle that does something with its connection when the collector finalizes it."""

    connection: Any

    def __init__(self, act: Callable[[Any], object]) -> None:
        self.me = self
        self.act = act

    def __del__(self) -> None:
        self.act(self.connection)


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
    """If a finalizer returns a connection that the collector has found, no place is added, and no error is raised.

    The collector may have closed the socket before, so that nothing can be undone in the session.
    """
    if on_mysql and leave is leave_results:
        pytest.skip("no statement of several results here")
    pool = make_pool(size=2, read_timeout=30)  # with which PyMySQL sets the socket's timeout before it writes
    for _ in range(10):
        late = Acts(pymysqlpool.Connection.close)
        late.connection = pool.get_connection()
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


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_session_of_a_lost_place_ends_before_another_is_lent(make_pool: MakePool, admin: Admin) -> None:
    """There are no more sessions than places, even while other finalizers of the same collection run for long."""
    ended = []

    def wait(_: Any) -> None:
        pool.get_connection(timeout=0).close()
        eventually(lambda: not is_alive(lost, admin))
        ended.append(lost)

    late = Acts(wait)  # before the pool and its places: finalizers run in the order of creation
    pool = make_pool(size=1)
    late.connection = pool.get_connection()
    lost = session_of(late.connection)
    del late
    gc.collect()
    assert ended == [lost]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_finalizer_that_uses_a_lost_connection_opens_no_session(make_pool: MakePool) -> None:
    """A finalizer that uses a lost connection gets an error, and no session is opened even if the reset has failed."""
    errors = []

    def use(connection: Any) -> None:
        pool.get_connection(timeout=0).close()
        try:
            connection.query("do 1")
        except pymysql.Error as error:
            errors.append(error)

    late = Acts(use)  # before the pool and its places: finalizers run in the order of creation
    pool = make_pool(size=1)
    late.connection = pool.get_connection()
    late.connection._place.session.pending = pack_commands((COMMAND.COM_PING, b""))  # whose reply never comes
    del late
    gc.collect()
    assert [type(error) for error in errors] == [pymysqlpool.ReturnConnectionToPoolError]
    assert pool.stats().opened == 2


def test_a_borrow_that_no_line_of_python_calls(make_pool: MakePool) -> None:
    """A thread may begin with a borrow; there is no calling line to be reported then, and no place is lost."""
    pool = make_pool(size=1, pre_create_num=0)
    _thread.start_new_thread(pool.get_connection, ())
    eventually(lambda: pool._pool._dead)
    with pytest.warns(ResourceWarning, match="never returned"):
        assert pool.size() == 1
    assert len(borrow_all(pool)) == 1


def test_a_borrow_at_exit(server: Server) -> None:
    """The same is true if the interpreter calls it at exit."""
    status, _, errors = run_as_program(__file__, server.connect_kwargs)
    assert (status, errors) == (0, "")


# Replaced


def test_an_interrupted_replacement_is_found_again(make_pool: MakePool) -> None:
    """If a replacement is interrupted between two steps, the unused new place is found like any other lost place."""
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
    """If a signal handler interrupts a replacement and does the same, its place is used, and `maxsize` is kept."""
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


def test_a_replacement_that_fails_leaves_a_place_to_be_opened(make_pool: MakePool, server: Server) -> None:
    """If replacing its session fails, the borrower gets PyMySQL's error, may reconnect, and the place comes back."""
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


def test_a_ping_behind_a_reset_that_fails(make_pool: MakePool) -> None:
    """If a session is pinged while its reset is pending, and the reset turns out to have failed, it is replaced."""
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
    session.poll = lambda milliseconds: wait(milliseconds) if milliseconds else []  # as if it were still on its way
    connection = pool.get_connection(pre_ping=True)
    assert session_of(connection) != number
    connection.close()


# Polled by other threads


def test_others_take_what_a_borrower_looks_at(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all other sessions are taken while a borrower looks for one that is ready, it gets the remaining one."""
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


def test_a_session_that_is_closed_while_another_looks_at_it(make_pool: MakePool) -> None:
    """A session that is closed while another thread polls it counts as ready."""
    pool = make_pool(size=1)
    [idle] = pool._pool.idle()
    session: Any = idle._place.session
    session.pending = pack_commands((COMMAND.COM_PING, b""))
    session._close_socket()
    assert not session.awaits_replies()


def test_a_session_that_two_look_at(make_pool: MakePool) -> None:
    """If two threads poll a session, the second does not wait for the first, and takes the session as ready."""
    pool = make_pool(size=1)
    [idle] = pool._pool.idle()
    session: Any = idle._place.session
    session.pending = pack_commands((COMMAND.COM_PING, b""))  # whose reply never comes
    assert session.awaits_replies()

    def poll() -> object:
        while True:
            with suppress(RuntimeError):  # the test was polling
                return session._poll_by_others(60_000)

    with one_thread() as thread:
        first = thread.submit(poll)
        eventually(lambda: not session.awaits_replies())
        session.shut_down()
        assert first.result()


if __name__ == "__main__":
    [connect_kwargs] = program_arguments()
    atexit.register(ConnectionPool(1, **connect_kwargs).get_connection)

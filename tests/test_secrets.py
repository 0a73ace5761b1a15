"""Passwords that are never shown, passwords that change, and encryption."""

from __future__ import annotations

import logging
import ssl
import traceback
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
from helpers import SECRET, borrow_all, kill
from pymysql.err import OperationalError

import pymysqlpool
from pymysqlpool import ConnectionPool, GetConnectionFromPoolError, PoolClosedError, ReturnConnectionToPoolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import Admin, MakePool
    from server import Server


def alter(admin: Admin, user: str, password: str) -> None:
    with admin.cursor() as cursor:
        cursor.execute(f"alter user {user}@'%%' identified by %s", (password,))


def texts_of(error: BaseException) -> Iterator[str]:
    """Everything that a log or an error tracker would show of an error, its causes and contexts."""
    yield "".join(traceback.format_exception(type(error), error, error.__traceback__))
    yield from (repr(error), str(error), repr(error.args), repr(vars(error)))
    for other in (error.__cause__, error.__context__):
        if other is not None:
            yield from texts_of(other)


@pytest.mark.parametrize("is_callable", [False, True])
def test_no_password_is_seen(
    make_pool: MakePool, user: str, caplog: pytest.LogCaptureFixture, is_callable: bool
) -> None:
    """No repr, log line, error, note or list of holders contains the password."""
    caplog.set_level(logging.DEBUG, logger=pymysqlpool.logger.name)
    texts: list[str] = []

    def note_error(kind: type[BaseException], call: Callable[..., object], *arguments: Any, **keywords: Any) -> None:
        with pytest.raises(kind) as raised:
            call(*arguments, **keywords)
        texts.extend(texts_of(raised.value))

    def password() -> str:
        return SECRET

    options: dict[str, Any] = {"user": user, "password": password if is_callable else SECRET, "name": None}
    pool = make_pool(size=1, leak_warning=0, **options)
    connection = pool.get_connection()
    texts += [repr(pool), str(pool), pool.name, repr(connection), str(connection), repr(connection.cursor())]
    texts += [repr(vars(pool)), repr(pool._pool), repr(pool.__dict__["_pool"].borrows())]
    note_error(GetConnectionFromPoolError, pool.get_connection, timeout=0)
    connection.close()
    texts += [repr(pool), repr(connection)]
    note_error(ReturnConnectionToPoolError, connection.cursor)
    note_error(ReturnConnectionToPoolError, pool.put_connection, pymysqlpool.Connection(**options_of(connection)))
    pool.close()
    note_error(PoolClosedError, pool.get_connection)
    for bad in ({"size": 0}, {"name": 1}, {"reset": "x"}, {"defer_connect": True}, {"connection_class": int}):
        note_error((TypeError, ValueError), make_pool, **{**options, **bad})  # type: ignore[arg-type]
    note_error(OperationalError, make_pool, **{**options, "user": "nobody"})
    note_error(OperationalError, make_pool, **{**options, "port": 1})
    texts += [record.getMessage() for record in caplog.records]
    assert len(caplog.records) > 2
    assert [text for text in texts if SECRET in text] == []


def options_of(connection: pymysqlpool.Connection) -> dict[str, Any]:
    """What makes an unconnected connection like this one."""
    return {**connection.kwargs, "defer_connect": True}


def test_a_callable_password(make_pool: MakePool, user: str) -> None:
    """A callable password is called once for each opening, and at no other time."""
    asked: list[str] = []

    def password() -> str:
        asked.append(SECRET)
        return SECRET

    pool = make_pool(size=2, maxsize=3, user=user, password=password)
    assert len(asked) == 2
    borrow_all(pool)
    borrow_all(pool)
    assert len(asked) == 3
    pool.drain()
    borrow_all(pool)
    assert len(asked) == 6


@pytest.mark.parametrize("encode", [str, str.encode])
def test_a_rotating_password(
    make_pool: MakePool, admin: Admin, user: str, encode: Callable[[str], str | bytes]
) -> None:
    """When the password changes, open connections still work, and those opened later use the new one."""
    current = [SECRET]
    pool = make_pool(size=2, user=user, password=lambda: encode(current[-1]))
    before = borrow_all(pool)
    current.append("another-" + SECRET)
    alter(admin, user, current[-1])
    assert borrow_all(pool) == before
    kill(admin, before)
    assert not borrow_all(pool) & before


def test_a_password_that_has_become_wrong(make_pool: MakePool, admin: Admin, user: str) -> None:
    """If the server no longer accepts the password, its error is raised, and no place is lost."""
    pool = make_pool(size=2, user=user, password=SECRET)
    alter(admin, user, "changed")
    pool.drain()
    for _ in range(3):
        with pytest.raises(OperationalError) as raised:
            pool.get_connection()
        assert raised.value.args[0] == 1045
    alter(admin, user, SECRET)
    borrow_all(pool)


@pytest.mark.parametrize("answer", [None, 1, ZeroDivisionError()])
def test_a_callable_that_fails(make_pool: MakePool, user: str, answer: object) -> None:
    """An exception in the callable is raised in the borrower, and no place is lost."""
    fails = [False]

    def password() -> Any:
        if fails[0] and isinstance(answer, Exception):
            raise answer
        return answer if fails[0] else SECRET

    pool = make_pool(size=1, user=user, password=password)
    pool.drain()
    fails[0] = True
    for _ in range(2):
        with pytest.raises((TypeError, ZeroDivisionError)):
            pool.get_connection()
    fails[0] = False
    borrow_all(pool)


# Encryption


@pytest.fixture(scope="module")
def encrypted_server(tls_server: Server) -> Server:
    """A server with a certificate, and a user that must use it."""
    with pymysql.connect(**tls_server.connect_kwargs) as admin, admin.cursor() as cursor:
        cursor.execute("create user careful@'%' identified by 'careful' require ssl")
    return tls_server


def ciphers(pool: ConnectionPool) -> list[str]:
    """The TLS cipher of each connection of a pool."""
    connections = [pool.get_connection(timeout=0) for _ in range(pool.maxsize)]
    rows = [connection.execute_query("show status like 'Ssl_cipher'", return_one=True) for connection in connections]
    for connection in connections:
        connection.close()
    return [cipher for _, cipher in rows]


@pytest.mark.parametrize("is_dict", [False, True])
def test_encryption(encrypted_server: Server, is_dict: bool) -> None:
    """A user that requires TLS can connect, and each connection is encrypted, including replacements."""
    ca = encrypted_server.ca
    tls = {"ssl": {"ca": ca}} if is_dict else {"ssl_ca": ca, "ssl_verify_cert": True, "ssl_verify_identity": True}
    options = {**encrypted_server.connect_kwargs, "user": "careful", "password": "careful", **tls}
    with ConnectionPool(2, "pool1", maxsize=4, **options) as pool:
        assert all(ciphers(pool))
        with pymysql.connect(**encrypted_server.connect_kwargs) as admin:
            kill(admin, borrow_all(pool))
        assert all(ciphers(pool))


def test_the_tls_session_is_taken_up(encrypted_server: Server) -> None:
    """A connection resumes the TLS session of an earlier one, unless the server has forgotten it."""
    options = {**encrypted_server.connect_kwargs, "ssl": {"ca": encrypted_server.ca}}

    def reused(pool: ConnectionPool) -> list[bool]:
        connections = [pool.get_connection() for _ in range(3)]
        found = [connection._sock.session_reused for connection in connections]
        for connection in connections:
            assert isinstance(connection.ctx, ssl.SSLContext)
            connection.close()
        return found

    with ConnectionPool(3, pre_create_num=0, **options) as pool:
        assert reused(pool) == [False, True, True]
        encrypted_server.restart()
        assert reused(pool) == [False, True, True]


def test_a_certificate_of_somebody_else(encrypted_server: Server) -> None:
    """A server whose certificate can't be verified is refused, if verification is requested."""
    options = {**encrypted_server.connect_kwargs, "ssl_verify_cert": True}
    with pytest.raises(OperationalError, match=r"(?i)certificate"):
        ConnectionPool(1, "pool1", **options)


def test_no_encryption_for_who_requires_it(encrypted_server: Server) -> None:
    """A user that requires TLS can't connect without it."""
    options = {**encrypted_server.connect_kwargs, "user": "careful", "password": "careful", "ssl_disabled": True}
    with pytest.raises(OperationalError) as raised:
        ConnectionPool(1, "pool1", **options)
    assert raised.value.args[0] == 1045


@pytest.mark.parametrize("keyword", ["password", pytest.param("passwd", marks=pytest.mark.filterwarnings("ignore"))])
def test_repr_keeps_the_password_to_itself(keyword: str) -> None:
    """A pool's repr and name do not contain the password."""
    pool = ConnectionPool(pre_create_num=0, **{keyword: "s3cret"})
    assert "s3cret" not in repr(pool) + pool.name

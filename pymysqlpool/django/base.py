"""Django's MySQL backend on PyMySQL, with one pool for each alias and process."""

from __future__ import annotations

import contextlib
import inspect
import os
from sys import _getframe
from typing import TYPE_CHECKING, Any, ClassVar

import django
import pymysql
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError
from django.db.backends.base.base import NO_DB_ALIAS
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property
from pymysql.converters import conversions

from pymysqlpool.errors import PoolClosedError
from pymysqlpool.pool import ConnectionPool

from . import stand_in  # noqa: F401  must come before Django's own backend, which imports MySQLdb

# isort: split
from django.db.backends.mysql import base

if TYPE_CHECKING:
    from types import FrameType

#: PyMySQL's conversions, with Django's for TIME. Django's own table is for mysqlclient if that is installed.
_CONVERSIONS = {**conversions, base.FIELD_TYPE.TIME: base.django_conversions[base.FIELD_TYPE.TIME]}

#: The keys that `OPTIONS["pool"]` may have.
_POOL_OPTIONS = frozenset([*inspect.signature(ConnectionPool).parameters, "timeout"]) - {
    "by_name_only",
    "connect_kwargs",
}

#: The files whose frames lie between the user's line and the borrow.
_INTERNAL_FILES = (
    __file__,
    contextlib.__file__,
    *(os.path.join(os.path.dirname(django.__file__), folder, "") for folder in ("db", "utils")),  # noqa: PTH118, PTH120
)


class AliasPool(ConnectionPool):
    """The pool of one alias in this process."""

    def __init__(self, alias: str, options: dict[str, Any], connect_kwargs: dict[str, Any]) -> None:
        #: The settings that it was made with. If they change, as in tests, another pool is made.
        self.made_with = options, connect_kwargs
        arguments = {"name": alias, "pre_create_num": 0, **options}
        #: How long a request waits for a connection, in seconds. The default is that of Django's PostgreSQL pools.
        self.timeout: float | None = arguments.pop("timeout", 30.0)
        #: The server's version and settings, as Django queries them, shared by the wrappers of all threads.
        self.server_data: dict[str, Any] | None = None
        super().__init__(**arguments, **connect_kwargs)


class CursorWrapper(base.CursorWrapper):
    """Django's cursor wrapper, for PyMySQL's errors: Django's own expects mysqlclient's if that is installed."""

    def execute(self, query: Any, args: Any = None) -> Any:
        """Run a query, as Django does."""
        try:
            return self.cursor.execute(query, args)
        except pymysql.OperationalError as error:
            self._raise_if_of_integrity(error)
            raise

    def executemany(self, query: Any, args: Any) -> Any:
        """Run a query for each element of `args`, as Django does."""
        try:
            return self.cursor.executemany(query, args)
        except pymysql.OperationalError as error:
            self._raise_if_of_integrity(error)
            raise

    def _raise_if_of_integrity(self, error: Any) -> None:
        if error.args and error.args[0] in self.codes_for_integrityerror:
            raise IntegrityError(*error.args) from error


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's connection, which borrows from the pool of its alias, and returns the connection when it is closed.

    `OPTIONS["pool"]` is a dict with the options of `ConnectionPool` and `timeout`, the seconds to wait for a connection
    (30.0; None waits forever). True, or no such key, means all defaults, and False means no pool. The other OPTIONS
    are for `pymysql.connect()`.
    """

    Database = pymysql
    isolation_level: str | None

    _pools: ClassVar[dict[str, AliasPool]] = {}

    # The pool

    @property
    def pool(self) -> AliasPool | None:
        """The pool, which is made when it is first needed; None if the settings ask for no pool.

        Raises ImproperlyConfigured if the settings are wrong or contradict each other.
        """
        return self._pool_with(self.get_connection_params())

    def close_pool(self) -> None:
        """Close the pool, without waiting for borrowed connections: they are closed when they are returned.

        The next query makes another pool.
        """
        pool = self._pools.pop(self.alias, None)
        if pool is not None:
            pool.close()

    def _pool_options(self) -> dict[str, Any] | None:
        options = self.settings_dict["OPTIONS"].get("pool", True)
        if options in (False, None) or self.alias == NO_DB_ALIAS:
            return None
        return {} if options is True else options

    def _pool_with(self, connect_kwargs: dict[str, Any]) -> AliasPool | None:
        options = self._pool_options()
        if options is None:
            return None
        current = self._pools.get(self.alias)
        if current is not None and current.made_with == (options, connect_kwargs) and not current._pool.closed:
            return current
        self._check(options)
        pool = AliasPool(self.alias, options.copy(), connect_kwargs)
        if current is not None:
            self._pools.pop(self.alias, current).close()
        # setdefault is atomic: if two threads have made a pool at the same time, both get the same one.
        first = self._pools.setdefault(self.alias, pool)
        if first is not pool:
            pool.close()
        return first

    def _check(self, options: Any) -> None:
        name = f"DATABASES[{self.alias!r}]"
        if not isinstance(options, dict):
            raise ImproperlyConfigured(f"{name}['OPTIONS']['pool'] should be True, False or a dict, not {options!r}")
        unknown = sorted(map(str, options.keys() - _POOL_OPTIONS))
        if unknown:
            raise ImproperlyConfigured(f"{name}['OPTIONS']['pool'] has options that no pool has: {', '.join(unknown)}")
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured(
                f"{name} has a pool, which keeps connections open itself: CONN_MAX_AGE should be 0; "
                "con_lifetime in OPTIONS['pool'] limits the age of a connection"
            )

    # Its connections

    def get_connection_params(self) -> dict[str, Any]:
        """Return the keyword arguments for `pymysql.connect()`."""
        params: dict[str, Any] = super().get_connection_params()
        params.pop("pool", None)
        if params["conv"] is base.django_conversions:
            params["conv"] = _CONVERSIONS
        params["autocommit"] = self.settings_dict["AUTOCOMMIT"]
        if self.isolation_level:
            # Set it once for each session, and not at each borrow. Django may send it in one query with another SET,
            # which PyMySQL does not allow by default.
            level = f"SET SESSION TRANSACTION ISOLATION LEVEL {self.isolation_level.upper()}"
            if params.get("init_command"):
                params["client_flag"] |= base.CLIENT.MULTI_STATEMENTS
                # It may end with a semicolon, or with a comment, which the line break ends.
                level = params["init_command"].rstrip("; \t\r\n") + f"\n; {level}"
            params["init_command"] = level
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection, or open one if there is no pool.

        Raises `GetConnectionFromPoolError`, an OperationalError, if none becomes free within the pool's `timeout`.
        """
        while True:
            pool = self._pool_with(conn_params)
            if pool is None:
                return pymysql.connect(**conn_params)
            try:
                connection = pool.get_connection(pool.timeout, 0, pre_ping=self.settings_dict["CONN_HEALTH_CHECKS"])
            except PoolClosedError:
                if not pool._pool.closed:  # it was a pool that `on_connect` uses
                    raise
                continue  # another thread has closed the pool, by `close_pool()` or because the settings have changed
            connection._place.loan.is_for(_first_user_frame(_getframe()))
            return connection

    def init_connection_state(self) -> None:
        """Do as Django does, but leave out the isolation level, which `init_command` has set."""
        _ = self.mysql_server_data  # Django reads it next; the first time, that sets the isolation level again
        level, self.isolation_level = self.isolation_level, None
        try:
            super().init_connection_state()
        finally:
            self.isolation_level = level

    @async_unsafe
    def create_cursor(self, name: str | None = None) -> CursorWrapper:  # noqa: ARG002  Django's signature
        """Return a cursor."""
        return CursorWrapper(self.connection.cursor())

    def is_usable(self) -> bool:
        """Return whether the server answers a ping."""
        try:
            self.connection.ping(reconnect=False)
        except pymysql.Error:
            return False
        return True

    def _rollback(self) -> None:
        with contextlib.suppress(pymysql.NotSupportedError):
            super()._rollback()

    @cached_property
    def mysql_server_data(self) -> dict[str, Any]:
        """The server's version and settings, queried once for each pool and not in each thread."""
        pool = self.pool
        if pool is None or pool.server_data is None:
            data: dict[str, Any] = super().mysql_server_data
            if pool is None:
                return data
            pool.server_data = data
        return pool.server_data


def _first_user_frame(frame: FrameType) -> FrameType:
    """Return `frame`, or the first of its callers that is neither in this module nor in Django's database layer."""
    while frame.f_code.co_filename.startswith(_INTERNAL_FILES) and frame.f_back is not None:
        frame = frame.f_back
    return frame

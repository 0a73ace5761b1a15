"""Django's MySQL backend, on PyMySQL and a pool."""

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

from pymysqlpool.pool import ConnectionPool

from . import stand_in  # noqa: F401  before Django's own backend, which imports MySQLdb

# isort: split
from django.db.backends.mysql import base

if TYPE_CHECKING:
    from types import FrameType

#: Django's, for PyMySQL's types, also where mysqlclient is installed too and Django's are for that.
_CONVERSIONS = {**conversions, base.FIELD_TYPE.TIME: base.django_conversions[base.FIELD_TYPE.TIME]}

#: What may stand in `OPTIONS["pool"]`.
_POOL_OPTIONS = frozenset(inspect.signature(ConnectionPool).parameters) - {"connect_kwargs"} | {"timeout"}

#: The files that stand between the user's line and the borrow.
_IN_BETWEEN = (
    __file__,
    contextlib.__file__,
    *(os.path.join(os.path.dirname(django.__file__), folder, "") for folder in ("db", "utils")),  # noqa: PTH118, PTH120
)


class AliasPool(ConnectionPool):
    """The pool of one alias in this process."""

    def __init__(self, alias: str, options: dict[str, Any], connect_kwargs: dict[str, Any]) -> None:
        #: What it was made with: other settings, as in tests, make another pool.
        self.made_with = options, connect_kwargs
        arguments = {"name": alias, "pre_create_num": 0, **options}
        #: How long a request waits for a connection, in seconds: as in Django's pools for PostgreSQL.
        self.timeout: float | None = arguments.pop("timeout", 30.0)
        #: What the server has told of itself, which all threads' wrappers want to know.
        self.server_data: dict[str, Any] | None = None
        super().__init__(**arguments, **connect_kwargs)


class CursorWrapper(base.CursorWrapper):
    """Django's, which looks out for PyMySQL's errors also where mysqlclient is installed too."""

    def execute(self, query: Any, args: Any = None) -> Any:
        """Run a query."""
        try:
            return self.cursor.execute(query, args)
        except pymysql.OperationalError as error:
            self._raise_if_of_integrity(error)
            raise

    def executemany(self, query: Any, args: Any) -> Any:
        """Run a query for each of `args`."""
        try:
            return self.cursor.executemany(query, args)
        except pymysql.OperationalError as error:
            self._raise_if_of_integrity(error)
            raise

    def _raise_if_of_integrity(self, error: Any) -> None:
        if error.args and error.args[0] in self.codes_for_integrityerror:
            raise IntegrityError(*error.args) from error


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's connection, which borrows from the pool of its alias in this process, and returns at each close.

    `OPTIONS["pool"]` has the pool's options, and `timeout`, the seconds to wait for a connection; True, and none, are
    the defaults, False is no pool. The rest of OPTIONS is for `pymysql.connect()`.
    """

    Database = pymysql
    isolation_level: str | None

    _pools: ClassVar[dict[str, AliasPool]] = {}

    # The pool

    @property
    def pool(self) -> AliasPool | None:
        """The pool, made now if there is none yet; None where there is to be none.

        Raises ImproperlyConfigured where the settings do not go together.
        """
        return self._pool_with(self.get_connection_params())

    def close_pool(self) -> None:
        """Close the pool: what is idle at once, what is borrowed when it comes back. The next query makes another."""
        pool = self._pools.pop(self.alias, None)
        if pool is not None:
            pool.close()

    def _pool_options(self) -> dict[str, Any] | None:
        options = self.settings_dict["OPTIONS"].get("pool", True)
        if not options or self.alias == NO_DB_ALIAS:
            return None
        return {} if options is True else options

    def _pool_with(self, connect_kwargs: dict[str, Any]) -> AliasPool | None:
        options = self._pool_options()
        if options is None:
            return None
        current = self._pools.get(self.alias)
        if current is not None and current.made_with == (options, connect_kwargs):
            return current
        self._check(options)
        pool = AliasPool(self.alias, options.copy(), connect_kwargs)
        if current is not None:
            self._pools.pop(self.alias, current).close()
        # One atomic step: of two threads that get here at once, each with a pool, one is first.
        first = self._pools.setdefault(self.alias, pool)
        if first is not pool:
            pool.close()
        return first

    def _check(self, options: Any) -> None:
        name = f"DATABASES[{self.alias!r}]"
        if not isinstance(options, dict):
            raise ImproperlyConfigured(f"{name}['OPTIONS']['pool'] should be True, False or a dict, not {options!r}")
        unknown = sorted(options.keys() - _POOL_OPTIONS)
        if unknown:
            raise ImproperlyConfigured(f"{name}['OPTIONS']['pool'] has options that no pool has: {', '.join(unknown)}")
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured(
                f"{name} has a pool, which keeps connections open by itself: CONN_MAX_AGE should be 0, and "
                "con_lifetime in OPTIONS['pool'] says how old a connection may become"
            )

    # Its connections

    def get_connection_params(self) -> dict[str, Any]:
        """The keywords for PyMySQL."""
        params: dict[str, Any] = super().get_connection_params()
        params.pop("pool", None)
        if params["conv"] is base.django_conversions:
            params["conv"] = _CONVERSIONS
        params["autocommit"] = self.settings_dict["AUTOCOMMIT"]
        if self._pool_options() is not None and self.isolation_level:
            # Once for each session, and not at each borrow.
            level = f"SET SESSION TRANSACTION ISOLATION LEVEL {self.isolation_level.upper()}"
            if params.get("init_command"):
                params["client_flag"] |= base.CLIENT.MULTI_STATEMENTS
                level = f"{params['init_command']}; {level}"
            params["init_command"] = level
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection, or open one where there is no pool."""
        pool = self._pool_with(conn_params)
        if pool is None:
            return pymysql.connect(**conn_params)
        connection = pool.get_connection(pool.timeout, 0, pre_ping=self.settings_dict["CONN_HEALTH_CHECKS"])
        connection._place.loan.is_for(_users(_getframe()))
        return connection

    def init_connection_state(self) -> None:
        """Django's, without the isolation level where `connect()` has set it."""
        level = self.isolation_level
        if self._pool_options() is not None:
            self.isolation_level = None
        try:
            super().init_connection_state()
        finally:
            self.isolation_level = level

    @async_unsafe
    def create_cursor(self, name: str | None = None) -> CursorWrapper:  # noqa: ARG002  Django's signature
        """A cursor."""
        return CursorWrapper(self.connection.cursor())

    def is_usable(self) -> bool:
        """Whether the server answers."""
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
        """Django's, asked once for each pool and not in each thread."""
        pool = self.pool
        if pool is None or pool.server_data is None:
            data: dict[str, Any] = super().mysql_server_data
            if pool is None:
                return data
            pool.server_data = data
        return pool.server_data


def _users(frame: FrameType) -> FrameType:
    """The first frame from `frame` upwards that is not Django's way to the database."""
    while frame.f_code.co_filename.startswith(_IN_BETWEEN) and frame.f_back is not None:
        frame = frame.f_back
    return frame

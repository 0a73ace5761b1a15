"""Cursors: PyMySQL's with the shorthand methods of the old package's later releases, and the cursor of a block."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import pymysql.cursors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .connection import Connection


class Shorthands:
    """The methods that every cursor of a `Connection` has in addition, unless its class has methods of these names."""

    def db_query(self: Any, query: str, args: Any = ()) -> Any:
        """Run `query` with `args`, a tuple, list or dict, and return all its rows. Raises PyMySQL's errors."""
        run(self, query, args)
        return self.fetchall()

    def db_modify(self: Any, query: str, args: Any = (), exec_many: bool = False) -> dict[str, int]:
        """Run `query` with `args`, or, with `exec_many`, once for each element of `args`.

        Returns a dict with the cursor's `rowcount` and `lastrowid`. Raises PyMySQL's errors.
        """
        run(self, query, args, exec_many=exec_many)
        return {"rowcount": self.rowcount, "lastrowid": self.lastrowid}


def run(cursor: Any, query: str, args: Any, *, exec_many: bool = False) -> None:
    """Run `query` for a public method; a warning names the line that called that method."""
    if exec_many:
        cursor.executemany(query, args)
        return
    if not (args is None or isinstance(args, (tuple, list, dict))):
        # PyMySQL's own warning would name this line instead of the caller's.
        warnings.warn(
            "a single argument is deprecated: put it into a tuple, as in (value,)", DeprecationWarning, stacklevel=3
        )
        args = (args,)
    try:
        cursor.execute(query, args)
    except (TypeError, ValueError, pymysql.err.ProgrammingError) as error:
        reason = error.args[0] if error.args else None
        if args != () or "format" not in str(reason):
            raise
        raise type(error)(
            f"{reason}: the query is formatted with args, even if they are empty; write %% for a percent sign, "
            "or pass args=None"
        ) from error


class Cursor(pymysql.cursors.Cursor, Shorthands):
    """PyMySQL's cursor, with `db_query` and `db_modify`."""


class DictCursor(pymysql.cursors.DictCursor, Shorthands):  # type: ignore[misc]  # types-PyMySQL's own
    """PyMySQL's cursor whose rows are dicts, with `db_query` and `db_modify`."""


class _BlockCursor:
    """The cursor of a block: it also has its connection's attributes, so that both `as cur` and `as conn` work.

    This also holds after the cursor is closed or the block has ended: a returned connection raises its own error.
    """

    def __getattr__(self, name: str) -> Any:
        with contextlib.suppress(AttributeError):
            return super().__getattr__(name)  # type: ignore[misc]  # the cursor class may have a __getattr__
        if name != "connection" and hasattr(handle := vars(self).get("_pymysqlpool_handle"), name):
            return getattr(handle, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


if TYPE_CHECKING:
    # A type checker does not know a pool's `cursorclass`: rows may be tuples or dicts.

    class AnyCursor(Cursor, DictCursor):
        """A cursor of the connection's `cursorclass`."""

        connection: Connection

        def fetchone(self) -> Any: ...  # noqa: D102  PyMySQL's
        def fetchmany(self, size: int | None = None) -> Any: ...  # noqa: D102  PyMySQL's
        def fetchall(self) -> Any: ...  # noqa: D102  PyMySQL's
        def __iter__(self) -> Iterator[Any]: ...
        def __next__(self) -> Any: ...
        def __getattr__(self, name: str) -> Any:
            """Return an attribute of the user's own `cursorclass`."""

    class BlockCursor(AnyCursor, Connection):
        """The cursor of a block, of the connection's `cursorclass`, which also has its connection's methods.

        So both `with pool.get_connection() as cur: cur.execute(...)` and `with pool.get_connection() as conn: with
        conn.cursor() as cur: ...` work.
        """

        def __enter__(self) -> BlockCursor: ...
        def close(self) -> None:
            """Close the cursor. The block continues, and its end returns the connection."""
else:
    BlockCursor = _BlockCursor


def with_shorthands(cursorclass: Any) -> Any:
    """Return `cursorclass`, or a subclass of it, that has the shorthand methods."""
    if issubclass(cursorclass, Shorthands):
        return cursorclass
    return _BUILT_IN.get(cursorclass) or _subclass(cursorclass, "_pymysqlpool_with_shorthands", cursorclass, Shorthands)


_BUILT_IN = {pymysql.cursors.Cursor: Cursor, pymysql.cursors.DictCursor: DictCursor}


def as_block_cursor(cursor: Any) -> Any:
    """Make `cursor`, of any class, the cursor of a block, and return it."""
    cls = cursor.__class__  # not type(cursor): a tracing package's proxy gives the class of the cursor that it wraps
    with contextlib.suppress(TypeError):  # a class with another memory layout: it does not get the connection's methods
        cursor.__class__ = _subclass(cls, "_pymysqlpool_block_cursor", _BlockCursor, cls)
        cursor._pymysqlpool_handle = cursor.connection
    return cursor


def _subclass(cls: Any, attribute: str, *bases: type) -> Any:
    """Return a class with these `bases`. It is cached on `cls`, so that both can be collected together."""
    made = vars(cls).get(attribute)
    if made is None:
        body = {"__doc__": cls.__doc__, "__module__": cls.__module__, "__slots__": ()}
        metaclass: Any = type(cls)
        made = metaclass(cls.__name__, bases, body)
        with contextlib.suppress(TypeError):  # a class written in C, whose attributes cannot be set
            setattr(cls, attribute, made)
    return made

"""Cursors: PyMySQL's, with the short-hands of later releases of the old package, and the cursor of a `with` block."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import pymysql.cursors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .connection import Connection


class Shorthands:
    """What every cursor of a `Connection` can do besides PyMySQL's, unless its class has a method of that name."""

    def db_query(self: Any, query: str, args: Any = ()) -> Any:
        """Run `query` and return all its rows."""
        run(self, query, args)
        return self.fetchall()

    def db_modify(self: Any, query: str, args: Any = (), exec_many: bool = False) -> dict[str, int]:
        """Run `query`, for each element of `args` with `exec_many`, and return `rowcount` and `lastrowid`."""
        run(self, query, args, exec_many=exec_many)
        return {"rowcount": self.rowcount, "lastrowid": self.lastrowid}


def run(cursor: Any, query: str, args: Any, *, exec_many: bool = False) -> None:
    """Run `query` for a method of this package that the user has called: warnings are for the line of that call."""
    if exec_many:
        cursor.executemany(query, args)
        return
    if not (args is None or isinstance(args, (tuple, list, dict))):
        # As PyMySQL has it, whose own warning would point here.
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
            f"{reason}: the arguments, even none, are formatted into the query; write %% for a percent sign, "
            "or pass args=None"
        ) from error


class Cursor(pymysql.cursors.Cursor, Shorthands):
    """PyMySQL's cursor, with `db_query` and `db_modify`."""


class DictCursor(pymysql.cursors.DictCursor, Shorthands):  # type: ignore[misc]  # types-PyMySQL's own
    """PyMySQL's cursor whose rows are dicts, with `db_query` and `db_modify`."""


class _OfBlock:
    """The cursor of a `with` block, which answers for its connection, so that `as cur` and `as conn` are both right.

    Also when it is closed, or the block has ended: a returned connection says so itself.
    """

    def __getattr__(self, name: str) -> Any:
        with contextlib.suppress(AttributeError):
            return super().__getattr__(name)  # type: ignore[misc]  # the cursor class's own, if it has one
        if name != "connection" and hasattr(handle := vars(self).get("_pymysqlpool_handle"), name):
            return getattr(handle, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


if TYPE_CHECKING:
    # What cursors are for a type checker, which can't know a pool's `cursorclass`: their rows may be tuples or dicts.

    class AnyCursor(Cursor, DictCursor):
        """A cursor of the connection's `cursorclass`."""

        connection: Connection

        def fetchone(self) -> Any: ...  # noqa: D102  PyMySQL's
        def fetchmany(self, size: int | None = None) -> Any: ...  # noqa: D102  PyMySQL's
        def fetchall(self) -> Any: ...  # noqa: D102  PyMySQL's
        def __iter__(self) -> Iterator[Any]: ...
        def __next__(self) -> Any: ...
        def __getattr__(self, name: str) -> Any:
            """What a `cursorclass` of the user's has."""

    class BlockCursor(AnyCursor, Connection):
        """The cursor of a `with` block, of the connection's `cursorclass`, which also answers for its connection.

        So `with pool.get_connection() as cur: cur.execute(...)` is right, and `with pool.get_connection() as conn:
        with conn.cursor() as cur: ...` too.
        """

        def __enter__(self) -> BlockCursor: ...
        def close(self) -> None:
            """Close the cursor. The block goes on, and its end returns the connection."""
else:
    BlockCursor = _OfBlock


def with_shorthands(cursorclass: Any) -> Any:
    """`cursorclass`, with the short-hands."""
    if issubclass(cursorclass, Shorthands):
        return cursorclass
    return _BUILT_IN.get(cursorclass) or _subclass(cursorclass, "_pymysqlpool_with_shorthands", cursorclass, Shorthands)


_BUILT_IN = {pymysql.cursors.Cursor: Cursor, pymysql.cursors.DictCursor: DictCursor}


def of_block(cursor: Any) -> Any:
    """`cursor`, of whatever class, as the cursor of a block."""
    cls = cursor.__class__  # which of a proxy, as those that trace are, is the class of the cursor in it
    with contextlib.suppress(TypeError):  # of another layout: it does not answer for its connection
        cursor.__class__ = _subclass(cls, "_pymysqlpool_of_block", _OfBlock, cls)
        cursor._pymysqlpool_handle = cursor.connection
    return cursor


def _subclass(cls: Any, attribute: str, *bases: type) -> Any:
    """A class made of `bases`, which `cls` keeps as an attribute: so a class made on the fly can be collected."""
    made = vars(cls).get(attribute)
    if made is None:
        body = {"__doc__": cls.__doc__, "__module__": cls.__module__, "__slots__": ()}
        metaclass: Any = type(cls)
        made = metaclass(cls.__name__, bases, body)
        with contextlib.suppress(TypeError):  # a class of C, which takes no attribute
            setattr(cls, attribute, made)
    return made

"""Cursors: PyMySQL's, with the short-hands of later releases of the old package, and the cursor of a `with` block."""

from __future__ import annotations

import contextlib
from typing import Any

import pymysql.cursors


class Shorthands:
    """What every cursor of a `Connection` can do besides PyMySQL's, unless its class has a method of that name."""

    def db_query(self: Any, query: str, args: Any = ()) -> Any:
        """Run `query` and return all its rows."""
        self.execute(query, args)
        return self.fetchall()

    def db_modify(self: Any, query: str, args: Any = (), exec_many: bool = False) -> dict[str, int]:
        """Run `query`, for each element of `args` with `exec_many`, and return `rowcount` and `lastrowid`."""
        if exec_many:
            self.executemany(query, args)
        else:
            self.execute(query, args)
        return {"rowcount": self.rowcount, "lastrowid": self.lastrowid}


class Cursor(pymysql.cursors.Cursor, Shorthands):
    """PyMySQL's cursor, with `db_query` and `db_modify`."""


class DictCursor(pymysql.cursors.DictCursor, Shorthands):  # type: ignore[misc]  # types-PyMySQL's own
    """PyMySQL's cursor whose rows are dicts, with `db_query` and `db_modify`."""


class _OfBlock:
    """The cursor of a `with` block, which answers for its connection, so that `as cur` and `as conn` are both right."""

    connection: Any

    def __getattr__(self, name: str) -> Any:
        with contextlib.suppress(AttributeError):
            return super().__getattr__(name)  # type: ignore[misc]  # the cursor class's own, if it has one
        if name != "connection" and (connection := vars(self).get("connection")) is not None:
            return getattr(connection, name)
        hint = ": its connection has been returned" if hasattr(pymysql.connections.Connection, name) else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")


def with_shorthands(cursorclass: Any) -> Any:
    """`cursorclass`, with the short-hands."""
    if issubclass(cursorclass, Shorthands):
        return cursorclass
    return _BUILT_IN.get(cursorclass) or _subclass(cursorclass, "_pymysqlpool_with_shorthands", cursorclass, Shorthands)


_BUILT_IN = {pymysql.cursors.Cursor: Cursor, pymysql.cursors.DictCursor: DictCursor}


def of_block(cursor: Any) -> Any:
    """`cursor`, of whatever class, as the cursor of a block."""
    cls = type(cursor)
    with contextlib.suppress(TypeError):  # of another layout: it does not answer for its connection
        cursor.__class__ = _subclass(cls, "_pymysqlpool_of_block", _OfBlock, cls)
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

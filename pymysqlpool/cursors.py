"""Cursors: PyMySQL's, with the short-hands of later releases of the old package, and the cursor of a `with` block."""

from __future__ import annotations

import functools
from typing import Any


class Shorthands:
    """What every cursor of a `Connection` can do besides PyMySQL's."""

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


class OfBlock:
    """The cursor of a `with` block, which answers for its connection, so that `as cur` and `as conn` are both right."""

    connection: Any

    def __getattr__(self, name: str) -> Any:
        if name != "connection" and self.connection is not None:
            return getattr(self.connection, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@functools.cache
def with_shorthands(cursorclass: Any) -> Any:
    """`cursorclass` with the short-hands; a class that has them already stays as it is."""
    return cursorclass if issubclass(cursorclass, Shorthands) else _combined(Shorthands, cursorclass)


@functools.cache
def of_block(cursorclass: Any) -> Any:
    """`cursorclass`, as the cursor of a block."""
    return _combined(OfBlock, with_shorthands(cursorclass))


def _combined(mixin: type, cursorclass: Any) -> type:
    return type(
        cursorclass.__name__,
        (mixin, cursorclass),
        {"__doc__": cursorclass.__doc__, "__module__": cursorclass.__module__},
    )

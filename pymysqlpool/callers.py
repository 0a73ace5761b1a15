"""Whose line it was: the first one above the pool's own."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_HERE = os.path.dirname(__file__)  # noqa: PTH120  pathlib takes longer to import than this package does
#: The files that borrow by themselves, and the standard library's that runs `pool.connection()`.
_INTERNAL = frozenset([*(os.path.join(_HERE, name) for name in ("pool.py", "connection.py")), contextlib.__file__])  # noqa: PTH118


def caller(frame: FrameType) -> FrameType:
    """The first frame from `frame` upwards that runs a line of the user's."""
    while frame.f_code.co_filename in _INTERNAL and frame.f_back is not None:
        frame = frame.f_back
    return frame


def warn_caller(message: str, category: type[Warning], frame: FrameType) -> None:
    """Warn at the user's line, however deep in the pool the reason is found."""
    user = caller(frame)
    registry = user.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, user.f_code.co_filename, user.f_lineno, registry=registry)

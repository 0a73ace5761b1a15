"""Whose line it was: the first one above the pool's own."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

#: The package's own files, and the standard library's that runs `pool.connection()`.
INTERNAL = frozenset([*map(str, Path(__file__).parent.glob("*.py")), contextlib.__file__])


def caller(frame: FrameType) -> FrameType:
    """The first frame from `frame` upwards that runs a line of the user's."""
    while frame.f_code.co_filename in INTERNAL and frame.f_back is not None:
        frame = frame.f_back
    return frame


def warn_caller(message: str, category: type[Warning], frame: FrameType) -> None:
    """Warn at the user's line, however deep in the pool the reason is found."""
    user = caller(frame)
    registry = user.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, user.f_code.co_filename, user.f_lineno, registry=registry)

"""The package's logger. `logger.setLevel("DEBUG")` is enough to see its messages on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler


class _Fallback(_StreamHandler):
    """Writes to stderr, unless a handler that the application has configured receives the message as well.

    `sys.stderr` is looked up for each message, as `logging.lastResort` does, because it may be replaced at run time.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)8s: %(message)s", "%Y-%m-%d %H:%M:%S"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  logging's
        level: logging.Logger | None = logger
        while level is not None:
            if any(handler is not self for handler in level.handlers):
                return False
            level = level.parent if level.propagate else None
        return True


#: The logger "pymysqlpool". Its level is WARNING until the application sets another.
logger = logging.getLogger("pymysqlpool")
logger.setLevel(logging.WARNING)
logger.addHandler(_Fallback())

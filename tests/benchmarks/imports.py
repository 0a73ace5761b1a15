"""The time to import a pool."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

from common import Figure, Measure, Setting, ratio

if TYPE_CHECKING:
    from peers import Pool

PROGRAM = "import time; begin = time.process_time(); import {}; print(time.process_time() - begin)"


def import_time(modules: str) -> float:
    """The processor's time in an interpreter of its own."""
    command = [sys.executable, "-c", PROGRAM.format(modules)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """The pool and PyMySQL beside PyMySQL alone."""
    both = f"pymysql, {peer.module}"
    return {"imports": ratio(partial(import_time, both), partial(import_time, "pymysql"), setting.rounds(40))}


MEASURE = Measure(measure, [Figure("imports", "import time, to that of pymysql", at_most=1.3)])

"""The memory of idle connections, and of large results, with PyMySQL's defaults."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import resource
import statistics
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
import pymysql
from common import Figure, Measure, Setting
from peers import PEERS, Unsupported, execute

if TYPE_CHECKING:
    from peers import Pool

COUNT = 60
SQL = "select repeat('x', 8 << 20)"


def measure(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """By how much the process grows, beside one that has as many raw connections."""
    return {"memory": _ratio("idle", peer, setting)}


def measure_peak(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """By how much it grows while it reads large results one after the other, beside one that reads without a pool."""
    return {"peak": _ratio("peak", peer, setting)}


def _ratio(what: str, peer: type[Pool], setting: Setting) -> float:
    connect_kwargs = setting.defaults["plain"]
    return statistics.median(
        _in_a_process(what, peer.__name__, connect_kwargs) / _in_a_process(what, "", connect_kwargs)
        for _ in range(setting.rounds(5))
    )


def _in_a_process(what: str, name: str, connect_kwargs: dict[str, Any]) -> float:
    command = [sys.executable, __file__, what, name, json.dumps(connect_kwargs)]
    growth = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    if not growth:
        raise Unsupported("so many")
    return float(growth)


def _growth(name: str, connect_kwargs: dict[str, Any]) -> int:
    """The growth in bytes by a pool's idle connections, or by raw ones."""
    process = psutil.Process()
    if name:
        importlib.import_module(PEERS[name].module)
    first = pymysql.connect(**connect_kwargs)  # not counted; kept so that its memory is not reused
    gc.collect()
    before: int = process.memory_info().rss
    if name:
        held: Any = PEERS[name](COUNT, **connect_kwargs)
    else:
        held = [pymysql.connect(**connect_kwargs) for _ in range(COUNT)]
    after: int = process.memory_info().rss
    assert first
    assert held
    return after - before


def _peak(name: str, connect_kwargs: dict[str, Any]) -> int:
    """The growth in bytes, at its highest, by reading large results from a pool's connection, or from a raw one."""
    process = psutil.Process()
    if name:
        read = PEERS[name](1, **connect_kwargs).read
    else:
        read = functools.partial(execute, pymysql.connect(**connect_kwargs))
    gc.collect()
    before: int = process.memory_info().rss
    for _ in range(COUNT):
        read(SQL)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


MEASURE = Measure(
    measure, [Figure("memory", f"memory of {COUNT} idle connections, to that of {COUNT} raw ones", at_most=0.05)]
)
PEAK = Measure(
    measure_peak, [Figure("peak", f"peak of the memory in {COUNT} reads of 8 MB, to that of raw ones", at_most=1.2)]
)

if __name__ == "__main__":
    with suppress(Unsupported):
        measured = {"idle": _growth, "peak": _peak}[sys.argv[1]]
        print(measured(sys.argv[2], json.loads(sys.argv[3])))

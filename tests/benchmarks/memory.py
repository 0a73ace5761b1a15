"""The memory of idle connections, with PyMySQL's defaults."""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
import pymysql
from common import Figure, Measure, Setting
from peers import PEERS, Unsupported

if TYPE_CHECKING:
    from peers import Pool

COUNT = 60


def measure(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """By how much the process grows, beside one that has as many raw connections."""
    connect_kwargs = setting.defaults["plain"]
    ratios = [
        _in_a_process(peer.__name__, connect_kwargs) / _in_a_process("", connect_kwargs)
        for _ in range(setting.rounds(5))
    ]
    return {"memory": statistics.median(ratios)}


def _in_a_process(name: str, connect_kwargs: dict[str, Any]) -> float:
    command = [sys.executable, __file__, name, json.dumps(connect_kwargs)]
    growth = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    if not growth:
        raise Unsupported("so many")
    return float(growth)


def _growth(name: str, connect_kwargs: dict[str, Any]) -> int:
    """The growth in bytes by a pool's idle connections, or by raw ones."""
    process = psutil.Process()
    if name:
        importlib.import_module(PEERS[name].module)
    first = pymysql.connect(**connect_kwargs)  # what it loads is nobody's; it stays, lest others reuse its memory
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


MEASURE = Measure(
    measure, [Figure("memory", f"memory of {COUNT} idle connections, to that of {COUNT} raw ones", at_most=0.05)]
)

if __name__ == "__main__":
    with suppress(Unsupported):
        print(_growth(sys.argv[1], json.loads(sys.argv[2])))

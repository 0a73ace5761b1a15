"""Measure this pool beside raw PyMySQL and other pools, and write what was found to .github/.

Each figure is a ratio of two things that ran side by side, but for commands and longest waits.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import commands
import cpu
import django_view
import fairness
import imports
import memory
import opening
import pymysql
import report
import trips
from common import Measure, Setting
from peers import DATABASE, PEERS, PyMySQLPool, Unsupported
from proxy import Proxy
from server import ServerNotFound, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

MEASURES: dict[str, Measure] = {
    "commands": commands.MEASURE,
    "trips": trips.MEASURE,
    "inserts": trips.INSERT,
    "transactions": trips.TRANSACTIONS,
    "cycle": cpu.CYCLE,
    "growth": cpu.GROWTH,
    "select": cpu.SELECT,
    "insert": cpu.INSERT,
    "reset": cpu.RESET,
    "opening": opening.MEASURE,
    "memory": memory.MEASURE,
    "peak": memory.PEAK,
    "fairness": fairness.FAIRNESS,
    "many": fairness.MANY,
    "rush": fairness.RUSH,
    "imports": imports.MEASURE,
}
DJANGO = "django"
FOLDER = Path(__file__).parent.parent.parent / ".github"


@contextmanager
def setting(*, quick: bool) -> Iterator[Setting]:
    """Start the servers, and a proxy that makes one of them slow."""
    with running_server() as server, running_server(tls=True) as secure, Proxy(server.host, server.port) as proxy:
        proxy.delay = 0.001
        near = {**server.connect_kwargs, "ssl_disabled": True, "autocommit": True}
        far = {**near, "host": proxy.host, "port": proxy.port}
        defaults = {"plain": server.connect_kwargs, "tls": secure.connect_kwargs}
        with pymysql.connect(**near) as connection, connection.cursor() as cursor:
            cursor.execute(f"drop database if exists {DATABASE}")
            cursor.execute(f"create database {DATABASE}")
            cursor.execute(f"create table {DATABASE}.t (n int) engine=innodb")
            cursor.execute(f"create table {DATABASE}.empty (n int) engine=innodb")
            yield Setting(near, far, defaults, quick)
            cursor.execute(f"drop database {DATABASE}")


@contextmanager
def installed_apart() -> Iterator[dict[str, str]]:
    """Install the peers with our import name in separate folders, and yield the folders by the peers' names."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {}
        for name, peer in PEERS.items():
            if peer.requirement:
                target = str(Path(folder, name))
                command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
                if subprocess.run([*command, peer.requirement], check=False).returncode == 0:
                    folders[name] = target
        yield folders


def in_a_process(measure: str, peer: str, where: Setting, folders: dict[str, str]) -> dict[str, float]:
    """The figures of one peer; none where it is not installed, or can't do what is measured."""
    path = os.environ.get("PYTHONPATH", "")
    if PEERS[peer].requirement:
        if peer not in folders:
            return {}
        path = folders[peer]
    elif importlib.util.find_spec(PEERS[peer].module.partition(".")[0]) is None:
        return {}
    command = [sys.executable, __file__, "--child", measure, peer, json.dumps(dataclasses.asdict(where))]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        print(f"{measure}: {peer} has failed", file=sys.stderr)
        return {}
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def in_processes(measure: str, peer: str, where: Setting, folders: dict[str, str]) -> dict[str, float]:
    """The figures of one peer, as the median of several processes where the measure asks for that."""
    each = [in_a_process(measure, peer, where, folders)]
    if each[0]:
        each += [in_a_process(measure, peer, where, folders) for _ in range(1, MEASURES[measure].processes)]
    return {key: statistics.median(figures[key] for figures in each if key in figures) for key in each[0]}


def child(measure: str, peer: str, where: str) -> None:
    """Measure in this process, and exit at once: what pools do and print at exit is not part of a figure."""
    try:
        figures = MEASURES[measure].run(PEERS[peer], Setting(**json.loads(where)))
    except Unsupported:
        figures = {}
    print(json.dumps(figures), flush=True)
    os._exit(0)


def lines_of(name: str, where: Setting, folders: dict[str, str]) -> list[dict[str, Any]]:
    """Measure all peers, and return the lines of the table."""
    values = {peer: in_processes(name, peer, where, folders) for peer in PEERS}
    return [
        {
            "measure": name,
            "key": figure.key,
            "title": figure.title,
            "target": figure.target,
            "holds": figure.key in values["PyMySQLPool"] and figure.holds(values["PyMySQLPool"][figure.key]),
            "values": {peer: found[figure.key] for peer, found in values.items() if figure.key in found},
        }
        for figure in MEASURES[name].figures
    ]


def measure_django(where: Setting) -> list[dict[str, Any]]:
    """Measure a Django view, where Django is installed, and print what was found."""
    if importlib.util.find_spec("django") is None:
        print("no Django view: Django is not installed", file=sys.stderr)
        return []
    views = django_view.measure(where)
    print(f"\n{django_view.table(views)}", flush=True)
    return views


def main() -> int:
    """Measure, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: under five minutes")
    parser.add_argument(
        "--only", action="append", choices=[*MEASURES, DJANGO], help="print one measure, and write nothing"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a figure misses its target")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
    titles = {name: peer.title for name, peer in PEERS.items()}
    lines: list[dict[str, Any]] = []
    views: list[dict[str, Any]] = []
    print(report.head(titles))
    with setting(quick=options.quick) as where, installed_apart() as folders:
        for name in options.only or [*MEASURES, DJANGO]:
            if name == DJANGO:
                views = measure_django(where)
                continue
            found = lines_of(name, where, folders)
            print(*map(report.row, found, [titles] * len(found)), sep="\n", flush=True)
            lines += found
        machine = report.machine(where)
    if not options.only:
        FOLDER.mkdir(exist_ok=True)
        report.write(FOLDER, machine, lines, titles, views)
    missed = [f"{line['measure']}: {line['title']}" for line in lines if not line["holds"]]
    if views and not django_view.holds(views):
        missed.append(f"{DJANGO}: {django_view.TITLE}")
    for title in missed:
        print(f"{PyMySQLPool.title} misses: {title}", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerNotFound as error:
        sys.exit(str(error))

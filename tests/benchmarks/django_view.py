"""A small Django view with two queries under 16 threads: requests per second, and connections to the server."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql

if TYPE_CHECKING:
    from common import Setting

TITLE = "A Django view with two queries, 16 threads"
NOTE = """\
With CONN_MAX_AGE=None a request saves the processor time of Django's connection set-up and of the borrow and return,
which makes it faster, but each thread needs a connection of its own.
"""
THREADS, SIZE = 16, 4
SITE = str(Path(__file__).parent.parent / "frameworks")

#: By name: the title, and the settings in DATABASES.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "pool": (f"pymysqlpool.django, a pool of {SIZE}", {"ENGINE": "pymysqlpool.django", "pool": {"size": SIZE}}),
    "fresh": ("Django, CONN_MAX_AGE=0", {"ENGINE": "django.db.backends.mysql"}),
    "persistent": ("Django, CONN_MAX_AGE=None", {"ENGINE": "django.db.backends.mysql", "CONN_MAX_AGE": None}),
    "peer": (
        f"django-db-connection-pool, a pool of {SIZE}",
        {
            "ENGINE": "dj_db_conn_pool.backends.mysql",
            "POOL_OPTIONS": {"POOL_SIZE": SIZE, "MAX_OVERFLOW": 0, "TIMEOUT": 30},
        },
    ),
}


class Way:
    """A process that serves the view in one of the ways, with a schema of its own, and runs rounds on request."""

    def __init__(self, name: str, where: Setting) -> None:
        self.title, settings = WAYS[name]
        self.rates: list[float] = []
        self.shares: list[float] = []
        self.costs: list[float] = []
        self.connections = 0
        self._admin: Any = pymysql.connect(**where.near)
        self._database = f"bench_{uuid.uuid4().hex}"
        self._run(f"create database {self._database}")
        path = os.pathsep.join([SITE, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(settings), json.dumps({**where.near, "database": self._database})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.works = self._answer() == "ready"

    def round(self, seconds: float) -> None:
        """Let it make requests for so long, and count its connections in the meantime."""
        assert self._process.stdin
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=[over])
        watcher.start()
        try:
            counts, cpu = json.loads(self._answer())
        finally:
            over.set()
            watcher.join()
        self.rates.append(sum(counts) / seconds)
        self.shares.append(min(counts) / max(counts))
        self.costs.append(1000 * cpu / sum(counts))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._run(f"drop database {self._database}")
        self._admin.close()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.05):
            [(count,)] = self._run(f"select count(*) from information_schema.processlist where db = '{self._database}'")
            self.connections = max(self.connections, count)

    def _run(self, statement: str) -> Any:
        with self._admin.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def measure(where: Setting) -> list[dict[str, Any]]:
    """A line for each way, all with the same driver. They take turns in short rounds, and the median counts."""
    with ExitStack() as stack:
        ways = {}
        for name in WAYS:
            ways[name] = Way(name, where)
            stack.callback(ways[name].end)
        working = {name: way for name, way in ways.items() if way.works}
        for _ in range(where.rounds(40)):
            for way in working.values():
                way.round(1.0)
        return [
            {
                "way": name,
                "title": way.title,
                "requests_per_second": statistics.median(way.rates),
                "connections": way.connections,
                "share": statistics.median(way.shares),
                "cpu_ms": statistics.median(way.costs),
            }
            for name, way in working.items()
        ]


def holds(lines: list[dict[str, Any]]) -> bool:
    """Whether this package's backend is the fastest, with no more connections than its pool has."""
    best = max(lines, key=lambda line: float(line["requests_per_second"]))
    return best["way"] == "pool" and best["connections"] <= SIZE


def table(lines: list[dict[str, Any]]) -> str:
    """The lines, as Markdown."""
    columns = (
        "requests per second",
        "most connections to the server",
        "fewest requests of a thread, to the most",
        "processor time of a request, ms",
    )
    rows = [
        f"| {line['title']} | {line['requests_per_second']:.0f} | {line['connections']} | {line['share']:.2g} "
        f"| {line['cpu_ms']:.2f} |"
        for line in lines
    ]
    return "\n".join([f"| {TITLE} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}", *rows, "", NOTE])


def child(settings: dict[str, Any], connect_kwargs: dict[str, Any]) -> None:
    """Serve requests in 16 threads, like a server's worker, for as many seconds as each line of the input says."""
    settings["OPTIONS"] = {"ssl_disabled": True}
    if "pool" in settings:
        settings["OPTIONS"]["pool"] = settings.pop("pool")
    else:
        pymysql.install_as_MySQLdb()
    for key, keyword in (("HOST", "host"), ("USER", "user"), ("PASSWORD", "password"), ("NAME", "database")):
        settings[key] = connect_kwargs[keyword]
    settings["PORT"] = str(connect_kwargs["port"])
    os.environ.update(DJANGO_SETTINGS_MODULE="shop.settings", DATABASE=json.dumps(settings))

    from django.core.management import call_command  # noqa: PLC0415  where it is installed
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    application = get_wsgi_application()
    call_command("migrate", run_syncdb=True, verbosity=0)
    connection.close()
    print("ready", flush=True)
    with ThreadPoolExecutor(THREADS) as executor:
        for line in sys.stdin:
            before = time.process_time()
            counts = race(executor, application, float(line))
            print(json.dumps([counts, time.process_time() - before]), flush=True)


def race(executor: ThreadPoolExecutor, application: Any, seconds: float) -> list[int]:
    """Let the threads make requests for so long, all starting together, and return how many each has made."""
    ends_at = 0.0

    def begin() -> None:
        nonlocal ends_at
        ends_at = time.perf_counter() + seconds

    start = threading.Barrier(THREADS, action=begin)

    def work() -> int:
        start.wait()
        count = 0
        while time.perf_counter() < ends_at:
            request(application)
            count += time.perf_counter() < ends_at
        return count

    return [job.result() for job in [executor.submit(work) for _ in range(THREADS)]]


def request(application: Any) -> None:
    """Make one request, as a WSGI server does."""
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    statuses: list[str] = []
    response = application(environ, lambda status, _: statuses.append(status))
    b"".join(response)
    response.close()
    assert statuses == ["200 OK"]


if __name__ == "__main__":
    child(*map(json.loads, sys.argv[1:]))

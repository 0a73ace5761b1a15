"""Metrics: those of the conventions for each pool, with the real libraries."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
import recipes
from helpers import eventually

import pymysqlpool
import pymysqlpool.metrics
from pymysqlpool.metrics import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import MakePool
    from server import Server

    Figures = dict[tuple[str, ...], float]

GAUGES = {"count": "{connection}", "idle.max": "{connection}", "idle.min": "{connection}", "max": "{connection}"}
GAUGES["pending_requests"] = "{request}"
HISTOGRAMS = ["create_time", "wait_time", "use_time"]


@pytest.fixture(autouse=True)
def watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the collectors after each test."""
    monkeypatch.setattr("pymysqlpool.pool._watchers", [])


@contextlib.contextmanager
def in_use(pool: pymysqlpool.ConnectionPool) -> Iterator[None]:
    """All connections of the pool are borrowed, one thread is waiting, and one has timed out."""
    connections = [pool.get_connection() for _ in range(pool.maxsize)]
    with pytest.raises(pymysqlpool.GetConnectionFromPoolError):
        pool.get_connection(timeout=0)
    waiter = threading.Thread(target=lambda: pool.get_connection(timeout=None).close())
    waiter.start()
    eventually(lambda: pool.stats().waiting == 1)
    yield
    for connection in connections:
        connection.close()
    waiter.join()


# Prometheus


class Prometheus:
    """A registry, served over HTTP."""

    def __init__(self) -> None:
        self.client = pytest.importorskip("prometheus_client")
        self.registry = self.client.CollectorRegistry()

    def __enter__(self) -> Prometheus:
        pymysqlpool.metrics.prometheus(self.registry)
        self._server, self._thread = self.client.start_http_server(0, "127.0.0.1", self.registry)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def scrape(self) -> Figures:
        """Each sample, by its name and the values of its labels."""
        with urlopen(f"http://127.0.0.1:{self._server.server_port}", timeout=10) as answer:
            return samples(answer.read().decode())


def samples(text: str) -> Figures:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix("db_client_connection_"), *sample.labels.values())
            assert key not in found, "a sample is there twice"
            assert set(sample.labels) <= {"db_client_connection_pool_name", "db_client_connection_state", "le"}
            found[key] = sample.value
    return found


def test_a_scrape(make_pool: MakePool) -> None:
    """Pools made before and after are included, each with all metrics of the conventions."""
    before = make_pool(size=2, name="before")
    with Prometheus() as prometheus:
        after = make_pool(size=1, maxsize=2, name="after")
        with in_use(after):
            found = prometheus.scrape()
            assert found["count", "after", "used"] == 2
            assert found["count", "after", "idle"] == 0
            assert found["pending_requests", "after"] == 1
            assert found["timeouts_total", "after"] == 1
            assert (found["max", "after"], found["idle_max", "after"], found["idle_min", "after"]) == (2, 2, 1)
            assert found["create_time_seconds_count", "after"] == 2
            assert found["wait_time_seconds_count", "after"] == 2
            assert found["use_time_seconds_count", "after"] == 0
            assert found["count", "before", "idle"] == 2
            assert found["create_time_seconds_count", "before"] == 0, "it began to be observed after they were opened"
            assert found["create_time_seconds_sum", "before"] == 0
        found = prometheus.scrape()
        assert found["count", "after", "used"] == found["pending_requests", "after"] == 0
        assert found["use_time_seconds_count", "after"] == found["wait_time_seconds_count", "after"] == 3
        assert 0 < found["use_time_seconds_sum", "after"] == pytest.approx(after.stats().seconds_used)
        assert 0 < found["wait_time_seconds_sum", "after"] == pytest.approx(after.stats().seconds_waited)
        buckets = [found["use_time_seconds_bucket", "after", str(bound)] for bound in BOUNDS]
        assert buckets == sorted(buckets)
        assert found["use_time_seconds_bucket", "after", "+Inf"] == 3
        assert before.size() == 2


def test_buckets(make_pool: MakePool) -> None:
    """A time equal to a bound is in its bucket, and a time above all bounds is in the last bucket."""
    with Prometheus() as prometheus:
        pool = make_pool(size=1, name="one")
        for seconds in (0.0, *BOUNDS, 11.0):
            pool._notify_observers("use", seconds)
        found = prometheus.scrape()
        assert [found["use_time_seconds_bucket", "one", str(bound)] for bound in BOUNDS] == [*range(2, 11)]
        assert found["use_time_seconds_bucket", "one", "+Inf"] == found["use_time_seconds_count", "one"] == 11


def test_a_closed_pool_is_gone(make_pool: MakePool) -> None:
    """A closed pool is included while connections are borrowed; so is a new one of its name, but not a dropped one."""
    with Prometheus() as prometheus:
        pool = make_pool(size=2, name="one")
        connection = pool.get_connection()
        pool.close()
        assert prometheus.scrape()["count", "one", "used"] == 1
        connection.close()
        assert ("count", "one", "used") not in prometheus.scrape()
        pool = make_pool(size=3, name="one")
        found = prometheus.scrape()
        assert (found["count", "one", "idle"], found["create_time_seconds_count", "one"]) == (3, 3)


def test_a_dropped_pool_is_gone(server: Server) -> None:
    """Collectors do not keep pools alive."""
    with Prometheus() as prometheus:
        pool = pymysqlpool.ConnectionPool(1, "dropped", **server.connect_kwargs)
        assert prometheus.scrape()["max", "dropped"] == 1
        del pool
        assert ("max", "dropped") not in prometheus.scrape()


def test_pools_of_one_name_are_one(make_pool: MakePool) -> None:
    """Two pools with the same name are added up, as Prometheus refuses duplicate samples."""
    with Prometheus() as prometheus:
        pools = [make_pool(size=size, name="same") for size in (1, 2)]
        with in_use(pools[0]):
            found = prometheus.scrape()
            assert (found["max", "same"], found["count", "same", "idle"], found["count", "same", "used"]) == (3, 2, 1)
            assert found["create_time_seconds_count", "same"] == 3
            assert found["timeouts_total", "same"] == 1


def test_twice_is_refused() -> None:
    """A second registration raises the registry's error."""
    with Prometheus() as prometheus, pytest.raises(ValueError, match="Duplicated"):
        pymysqlpool.metrics.prometheus(prometheus.registry)


def test_pools_made_while_it_is_registered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that another thread makes at that moment is there once, as are the others."""
    client = pytest.importorskip("prometheus_client")
    made: list[pymysqlpool.ConnectionPool] = []

    def make() -> None:
        made.append(pymysqlpool.ConnectionPool(1, "same", pre_create_num=0, **server.connect_kwargs))

    class Pools(weakref.WeakSet):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            for pool in super().__iter__():
                if len(made) < 3:
                    make()
                yield pool

    monkeypatch.setattr("pymysqlpool.pool._pools", Pools())
    make()
    registry = client.CollectorRegistry()
    pymysqlpool.metrics.prometheus(registry)
    assert samples(client.generate_latest(registry).decode())["max", "same"] == len(made) == 3
    assert [len(pool._observers) for pool in made] == [1, 1, 1]


def test_threads_lose_no_count(make_pool: MakePool) -> None:
    """Many threads at once, while it is scraped: each borrow and return is counted."""
    with Prometheus() as prometheus, ThreadPoolExecutor(8) as executor:
        pool = make_pool(size=2, name="busy")

        def work(_: int) -> None:
            for _ in range(100):
                pool.get_connection(timeout=None).close()

        jobs = [executor.submit(work, number) for number in range(8)]
        while not all(job.done() for job in jobs):
            found = prometheus.scrape()
            assert found["count", "busy", "used"] <= 2
        for job in jobs:
            job.result()
        found = prometheus.scrape()
        assert found["wait_time_seconds_count", "busy"] == found["use_time_seconds_count", "busy"] == 800


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_worker_begins_at_zero(make_pool: MakePool) -> None:
    """A child's metrics are its own, and the parent's do not change."""
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    pymysqlpool.metrics.prometheus(registry)
    pool = make_pool(size=2, name="one")
    pool.get_connection().close()
    before = samples(client.generate_latest(registry).decode())

    def job() -> Any:
        first = client.generate_latest(registry).decode()
        pool.get_connection().close()
        return [first, client.generate_latest(registry).decode()]

    first, second = map(samples, in_a_child(job))
    assert (first["count", "one", "idle"], first["max", "one"]) == (0, 2)
    assert [first[f"{what}_seconds_count", "one"] for what in HISTOGRAMS] == [0, 0, 0]
    assert [first[f"{what}_seconds_sum", "one"] for what in HISTOGRAMS] == [0, 0, 0]
    assert second["count", "one", "idle"] == 1
    assert [second[f"{what}_seconds_count", "one"] for what in HISTOGRAMS] == [1, 1, 1]
    assert samples(client.generate_latest(registry).decode()) == before
    assert before["create_time_seconds_count", "one"] == 2


def in_a_child(job: Any) -> Any:
    """Run `job` in a forked child, and return its result by way of JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.write(writing, json.dumps(job()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123  a descriptor
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(text)


# OpenTelemetry


class OpenTelemetry:
    """A meter provider, whose metrics are read from memory."""

    def __init__(self) -> None:
        metrics = pytest.importorskip("opentelemetry.sdk.metrics")
        export = pytest.importorskip("opentelemetry.sdk.metrics.export")
        self.reader = export.InMemoryMetricReader()
        self.provider = metrics.MeterProvider([self.reader])
        self.made = pymysqlpool.metrics.opentelemetry(self.provider)

    def metrics(self) -> dict[str, Any]:
        """The metrics, by their names."""
        data = self.reader.get_metrics_data()
        found = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return {metric.name.removeprefix("db.client.connection."): metric for metric in found}

    def figures(self) -> Figures:
        """Each point, by its name and the values of its attributes; of a histogram how many, and the sum."""
        found: Figures = {}
        for name, metric in self.metrics().items():
            for point in metric.data.data_points:
                assert set(point.attributes) <= {"db.client.connection.pool.name", "db.client.connection.state"}
                key = tuple(point.attributes.values())
                if name in HISTOGRAMS:
                    assert tuple(point.explicit_bounds) == BOUNDS
                    found[(name, "count", *key)], found[(name, "sum", *key)] = point.count, point.sum
                else:
                    found[(name, *key)] = point.value
        return found


def test_instruments(make_pool: MakePool) -> None:
    """Each instrument of the conventions is there, with its unit and its values."""
    telemetry = OpenTelemetry()
    pool = make_pool(size=1, maxsize=2, name="one")
    other = make_pool(size=2, name="other")
    with in_use(pool):
        found = telemetry.figures()
        assert (found["count", "one", "used"], found["count", "one", "idle"]) == (2, 0)
        assert (found["max", "one"], found["idle.max", "one"], found["idle.min", "one"]) == (2, 2, 1)
        assert (found["pending_requests", "one"], found["timeouts", "one"]) == (1, 1)
        assert (found["create_time", "count", "one"], found["wait_time", "count", "one"]) == (2, 2)
        assert (found["count", "other", "used"], found["count", "other", "idle"]) == (0, 2)
    found = telemetry.figures()
    assert found["use_time", "count", "one"] == found["wait_time", "count", "one"] == 3
    assert 0 < found["use_time", "sum", "one"] == pytest.approx(pool.stats().seconds_used)
    metrics = telemetry.metrics()
    assert {name: metrics[name].unit for name in GAUGES} == GAUGES
    assert (metrics["timeouts"].unit, metrics["timeouts"].data.is_monotonic) == ("{timeout}", True)
    assert not metrics["count"].data.is_monotonic
    assert {metrics[name].unit for name in HISTOGRAMS} == {"s"}
    other.close()
    assert ("max", "other") not in telemetry.figures()


def test_the_names_are_the_conventions() -> None:
    """The names are those of the package in which OpenTelemetry publishes its conventions."""
    conventions = pytest.importorskip("opentelemetry.semconv._incubating.metrics.db_metrics")
    attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.db_attributes")
    wanted = {
        value
        for name, value in vars(conventions).items()
        if name.startswith("DB_CLIENT_CONNECTION_") and isinstance(value, str)
    }
    ours = {f"db.client.connection.{name}" for name in [*GAUGES, "timeouts", *HISTOGRAMS]}
    assert ours == wanted
    assert attributes.DB_CLIENT_CONNECTION_POOL_NAME == pymysqlpool.metrics._POOL
    assert attributes.DB_CLIENT_CONNECTION_STATE == pymysqlpool.metrics._STATE
    assert {state.value for state in attributes.DbClientConnectionStateValues} == {"idle", "used"}


def test_nothing_is_lost_between_two_collections(make_pool: MakePool) -> None:
    """With more borrows than are kept, by many threads, all are recorded, and few are kept."""
    telemetry = OpenTelemetry()
    pool = make_pool(size=2, name="busy")

    def work(_: int) -> None:
        for _ in range(250):
            pool.get_connection(timeout=None).close()

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert len(telemetry.made._kept) <= 1100
    found = telemetry.figures()
    assert found["use_time", "count", "busy"] == found["wait_time", "count", "busy"] == 2000


def test_a_borrower_records_few_durations(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not record what others add as fast as it records, which would never end."""
    telemetry = OpenTelemetry()
    pool = make_pool(size=2, name="busy")
    real = telemetry.made._histograms["use"]
    added = []

    class Busy:
        """While a duration is recorded, another thread borrows and returns."""

        def record(self, *what: Any) -> None:
            real.record(*what)
            if len(added) < 5000:
                added.append(("wait", "busy", 0.0))
                telemetry.made._kept.extend([added[-1], ("use", "busy", 0.0)])

    with monkeypatch.context() as patch:
        patch.setitem(telemetry.made._histograms, "use", Busy())
        patch.setattr(telemetry.made, "_MOST_KEPT", 100)
        for _ in range(100):
            pool.get_connection().close()
    assert len(added) < 1000
    assert telemetry.figures()["wait_time", "count", "busy"] == 100 + len(added)


def test_a_return_records_nothing(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer may return a connection in a thread that holds a lock of the SDK, which recording takes."""
    telemetry = OpenTelemetry()
    pool = make_pool(size=1, name="one")
    telemetry.figures()
    connection = pool.get_connection()
    monkeypatch.setattr(telemetry.made, "_MOST_KEPT", 0)
    connection.close()
    assert len(telemetry.made._kept) == 2
    pool.get_connection().close()
    assert len(telemetry.made._kept) == 1


def test_a_provider_has_the_instruments_once() -> None:
    """To create them a second time is an error: each duration would be recorded twice."""
    telemetry = OpenTelemetry()
    with pytest.raises(ValueError, match="registered with this meter provider already"):
        pymysqlpool.metrics.opentelemetry(telemetry.provider)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_worker_has_metrics_of_its_own(make_pool: MakePool) -> None:
    """A child that sets up its own provider, as the SDK requires, reports its own pool."""
    pytest.importorskip("opentelemetry.sdk.metrics")
    parents = OpenTelemetry()
    pool = make_pool(size=2, name="one")
    pool.get_connection().close()

    def job() -> Any:
        telemetry = OpenTelemetry()
        pool.get_connection().close()
        return [[*key, value] for key, value in telemetry.figures().items()]

    found = {tuple(key): value for *key, value in in_a_child(job)}
    assert (found["count", "one", "idle"], found["create_time", "count", "one"], found["use_time", "count", "one"]) == (
        1,
        1,
        1,
    )
    mine = parents.figures()
    assert (mine["count", "one", "idle"], mine["create_time", "count", "one"]) == (2, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_no_fork_while_a_duration_is_recorded(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child could not record any more, and its borrowers would wait forever: a lock of the SDK would be held."""
    telemetry = OpenTelemetry()
    pool = make_pool(size=1, name="one")
    lock = threading.Lock()
    is_over = threading.Event()

    class Locking:
        """Holds a lock nearly all the time, and lets other threads run meanwhile, as the SDK does if it is busy."""

        def record(self, *_: Any) -> None:
            with lock:
                for _ in range(100):
                    time.sleep(0)

    def work() -> None:
        while not is_over.is_set():
            pool.get_connection().close()

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(telemetry.made, "_histograms", dict.fromkeys(["create", "wait", "use"], Locking()))
        patch.setattr(telemetry.made, "_MOST_KEPT", 0)
        job = executor.submit(work)
        eventually(lock.locked)
        found = [in_a_child(lock.locked) for _ in range(20)]
        is_over.set()
        job.result()
    assert found == [False] * 20


# What is shipped


def test_the_recipes(server: Server, database: str) -> None:
    """Both recipes run side by side; the first serves metrics over HTTP."""
    pytest.importorskip("prometheus_client")
    pytest.importorskip("opentelemetry.metrics")
    made = recipes.run(server, database, "Metrics: Prometheus", "Metrics: OpenTelemetry")
    try:
        with urlopen(f"http://127.0.0.1:{made['server'].server_port}", timeout=10) as answer:
            name = made["pool"].name
            assert samples_of(answer.read().decode(), name)["count", name, "idle"] == 4
    finally:
        made["server"].shutdown()
        made["server"].server_close()
        made["pool"].close()


def samples_of(text: str, pool: str) -> Figures:
    lines = [line for line in text.splitlines() if pool in line]
    return samples("\n".join(lines) + "\n")


OTHERS = "django prometheus_client opentelemetry matplotlib sqlalchemy ddtrace MySQLdb"


@pytest.mark.parametrize("module", ["pymysqlpool", "pymysqlpool.metrics", "pymysqlpool.__main__"])
def test_none_of_them_is_imported(module: str) -> None:
    """Importing this package imports none of the optional ones, which may be missing."""
    program = f"import sys, {module}; print(*(set({OTHERS.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

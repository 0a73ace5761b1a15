"""Metrics of all pools in this process, with the names, units and attributes of OpenTelemetry's conventions.

pymysqlpool.metrics.prometheus()  # pip install pymysql-pool[prometheus]
pymysqlpool.metrics.opentelemetry()  # pip install pymysql-pool[opentelemetry]

Called once, where the program begins. Pools that are made later are there too; one that is closed, and has all its
connections back, is there no more. A forked worker has metrics of its own, which begin at zero. Pools of one name count
as one.
https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple
from weakref import ref

from . import pool as _pool
from .stats import Count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .pool import ConnectionPool

#: The bounds of the histograms' buckets, in seconds: those that the conventions have for operations of a client.
BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

_NAME = "db.client.connection."
_POOL, _STATE = "db.client.connection.pool.name", "db.client.connection.state"

#: What is asked for when metrics are collected: description, unit, and for each state the value of one pool.
_GAUGES: dict[str, tuple[str, str, dict[str | None, Callable[[_Moment], int]]]] = {
    "count": (
        "The number of connections that are open, by state.",
        "{connection}",
        {"idle": lambda now: now.idle, "used": lambda now: now.used},
    ),
    "idle.max": ("How many idle connections may be open.", "{connection}", {None: lambda now: now.max}),
    "idle.min": (
        "How many connections are not closed for being idle.",
        "{connection}",
        {None: lambda now: now.idle_min},
    ),
    "max": ("How many connections may be open.", "{connection}", {None: lambda now: now.max}),
    "pending_requests": ("How many threads wait for a connection.", "{request}", {None: lambda now: now.pending}),
}
_TIMEOUTS = "timeouts", "How many borrows have got no connection in time."
#: The histograms, by what the pool calls it: name, description, and the seconds of it in the pool's statistics.
_TIMES = {
    "create": ("create_time", "How long it took to open a connection.", "seconds_opening"),
    "wait": ("wait_time", "How long a borrower waited for a connection.", "seconds_waited"),
    "use": ("use_time", "How long a connection was borrowed.", "seconds_used"),
}


class _Moment(NamedTuple):
    """The pools of one name at one moment."""

    idle: int
    used: int
    idle_min: int
    max: int
    pending: int
    timeouts: int

    def __add__(self, other: _Moment) -> _Moment:  # type: ignore[override]
        return _Moment(*map(sum, zip(self, other)))


class _Watch:
    """The pools of this process, those that are yet to be made included."""

    def __init__(self) -> None:
        self._pools: list[ref[ConnectionPool]] = []

    def begin(self) -> None:
        """Watch all pools from now on, in this process and in those that are forked from it."""
        if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
            os.register_at_fork(after_in_child=self._reset_in_child)
        _pool._watchers.append(self.add)
        for pool in list(_pool._pools):
            self.add(pool)

    def add(self, pool: ConnectionPool) -> None:
        """Watch a pool."""
        if pool not in self.pools():
            self._pools.append(ref(pool))
            pool._observe(self._observer(pool))

    def pools(self) -> list[ConnectionPool]:
        """Those that are open, or have connections out."""
        found = [(known, known()) for known in list(self._pools)]
        for known, pool in found:
            if pool is None:
                with suppress(ValueError):  # another thread has done so
                    self._pools.remove(known)
        return [pool for _, pool in found if pool is not None and not (pool._pool.closed and not pool._pool.borrows())]

    def now(self) -> dict[str, _Moment]:
        """How they are, by name."""
        found: dict[str, _Moment] = {}
        for pool in self.pools():
            stats = pool.stats()
            used = stats.borrowed - stats.opening
            moment = _Moment(stats.idle, used, pool._size, pool.maxsize, stats.waiting, stats.timed_out)
            found[pool.name] = moment + found[pool.name] if pool.name in found else moment
        return found

    def _observer(self, pool: ConnectionPool) -> Callable[[str, float], object]:
        """What is told how long things took. It must not refer to the pool."""
        raise NotImplementedError

    def _reset_in_child(self) -> None:
        raise NotImplementedError


# Prometheus


class _Histograms:
    """How long things took in one pool: counted without a lock, as a finalizer or a signal handler may come between."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.name = pool.name
        self.pool = ref(pool)
        stats = pool.stats()
        self.begin({what: getattr(stats, field) for what, (_, _, field) in _TIMES.items()})

    def begin(self, seconds_before: dict[str, float]) -> None:
        """Begin at zero. What the pool has summed up by now does not count."""
        self._seconds_before = seconds_before
        self._counts = {what: [Count() for _ in range(len(BOUNDS) + 1)] for what in _TIMES}

    def __call__(self, what: str, seconds: float) -> None:
        """Something took so long."""
        self._counts[what][bisect_left(BOUNDS, seconds)].increment()

    def of(self, what: str) -> tuple[list[int], float]:
        """How many there were in each bucket, and how many seconds in all."""
        pool = self.pool()
        total = getattr(pool.stats(), _TIMES[what][2]) if pool is not None else self._seconds_before[what]
        return [count.value() for count in self._counts[what]], total - self._seconds_before[what]


class PrometheusCollector(_Watch):
    """A collector for a registry of `prometheus_client`. It takes no lock of the pools'."""

    def __init__(self) -> None:
        self._histograms: list[_Histograms] = []
        super().__init__()

    def collect(self) -> Iterable[Any]:
        """The metrics, as the registry asks for them."""
        from prometheus_client import core  # noqa: PLC0415  an extra

        now = self.now()
        for name, (text, _, values) in _GAUGES.items():
            labels = [_POOL] if None in values else [_POOL, _STATE]
            gauge = core.GaugeMetricFamily(_flat(name), text, labels=[*map(_underscored, labels)])
            for pool, moment in now.items():
                for state, value in values.items():
                    gauge.add_metric([pool] if state is None else [pool, state], value(moment))
            yield gauge
        counter = core.CounterMetricFamily(_flat(_TIMEOUTS[0]), _TIMEOUTS[1], labels=[_underscored(_POOL)])
        for pool, moment in now.items():
            counter.add_metric([pool], moment.timeouts)
        yield counter
        for what, (name, text, _) in _TIMES.items():
            histogram = core.HistogramMetricFamily(_flat(name) + "_seconds", text, labels=[_underscored(_POOL)])
            for pool, (counts, seconds) in self._sums(what).items():
                total = 0
                buckets = []
                for bound, count in zip([*map(str, BOUNDS), "+Inf"], counts):
                    total += count
                    buckets.append((bound, total))
                histogram.add_metric([pool], buckets, seconds)
            yield histogram

    describe = collect  # by which a registry sees that it has them already

    def _sums(self, what: str) -> dict[str, tuple[list[int], float]]:
        alive = {id(pool) for pool in self.pools()}
        self._histograms = [each for each in self._histograms if each.pool() is not None]
        found: dict[str, tuple[list[int], float]] = {}
        for each in self._histograms:
            if id(each.pool()) in alive:
                counts, seconds = each.of(what)
                others, more = found.get(each.name, ([0] * len(counts), 0.0))
                found[each.name] = [*map(sum, zip(counts, others))], seconds + more
        return found

    def _observer(self, pool: ConnectionPool) -> Callable[[str, float], object]:
        histograms = _Histograms(pool)
        self._histograms.append(histograms)
        return histograms

    def _reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        for each in self._histograms:
            each.begin(dict.fromkeys(_TIMES, 0.0))


def prometheus(registry: Any = None) -> PrometheusCollector:
    """Register a collector of all pools with `registry`, or with `prometheus_client.REGISTRY`, and return it.

    The names are those that OpenTelemetry's get on their way to Prometheus: `db_client_connection_count`,
    `db_client_connection_wait_time_seconds` and so on, with the label `db_client_connection_pool_name`.

    Raises ImportError where `prometheus_client` is not installed, ValueError where they are registered already.
    """
    from prometheus_client import REGISTRY  # noqa: PLC0415  an extra

    collector = PrometheusCollector()
    (REGISTRY if registry is None else registry).register(collector)
    collector.begin()
    return collector


def _flat(name: str) -> str:
    return _underscored(_NAME + name)


def _underscored(name: str) -> str:
    return name.replace(".", "_")


# OpenTelemetry


class OpenTelemetryInstruments(_Watch):
    """The conventions' instruments, on a meter.

    What took how long is kept until the metrics are collected: a finalizer of the user's may return a connection while
    this thread is inside a lock of the SDK's.
    """

    #: So many may be kept; then they are recorded by the next borrower.
    _MOST_KEPT = 1000

    def __init__(self, meter: Any) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415  an extra

        self._observation = Observation
        self._kept: deque[tuple[str, str, float]] = deque()
        self._recording = threading.Lock()
        self._histograms = {
            what: meter.create_histogram(
                _NAME + name, unit="s", description=text, explicit_bucket_boundaries_advisory=BOUNDS
            )
            for what, (name, text, _) in _TIMES.items()
        }
        super().__init__()
        for name, (text, unit, values) in _GAUGES.items():
            meter.create_observable_up_down_counter(
                _NAME + name, callbacks=[self._callback(values)], unit=unit, description=text
            )
        timeouts: dict[str | None, Callable[[_Moment], int]] = {None: lambda now: now.timeouts}
        meter.create_observable_counter(
            _NAME + _TIMEOUTS[0], callbacks=[self._callback(timeouts)], unit="{timeout}", description=_TIMEOUTS[1]
        )

    def _callback(self, values: dict[str | None, Callable[[_Moment], int]]) -> Callable[[Any], Iterator[Any]]:
        def observe(_options: Any) -> Iterator[Any]:
            self._record()
            for pool, moment in self.now().items():
                for state, value in values.items():
                    attributes = {_POOL: pool} if state is None else {_POOL: pool, _STATE: state}
                    yield self._observation(value(moment), attributes)

        return observe

    def _observer(self, pool: ConnectionPool) -> Callable[[str, float], object]:
        name, kept = pool.name, self._kept

        def keep(what: str, seconds: float) -> None:
            kept.append((what, name, seconds))
            if len(kept) > self._MOST_KEPT:
                self._record()

        return keep

    def _record(self) -> None:
        """Record what was kept. One thread does it, and nobody waits for that."""
        if not self._recording.acquire(blocking=False):
            return
        try:
            with suppress(IndexError):  # there is no more
                while True:
                    what, pool, seconds = self._kept.popleft()
                    self._histograms[what].record(seconds, {_POOL: pool})
        finally:
            self._recording.release()

    def _reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        self._recording = threading.Lock()
        self._kept.clear()


def opentelemetry(meter_provider: Any = None) -> OpenTelemetryInstruments:
    """Create the instruments for all pools, with `meter_provider` or the global one, and return them.

    Raises ImportError where `opentelemetry-api` is not installed.
    """
    from opentelemetry.metrics import get_meter  # noqa: PLC0415  an extra

    from . import __version__  # noqa: PLC0415  which is there by now

    instruments = OpenTelemetryInstruments(get_meter("pymysqlpool", __version__, meter_provider=meter_provider))
    instruments.begin()
    return instruments

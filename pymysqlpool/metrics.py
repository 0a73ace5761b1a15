"""Metrics of all pools in this process, with the names, units and attributes of OpenTelemetry's conventions.

pymysqlpool.metrics.prometheus()  # pip install pymysql-pool[prometheus]
pymysqlpool.metrics.opentelemetry()  # pip install pymysql-pool[opentelemetry]

Call one of them once, when the program starts. Pools that are made later are included. A closed pool is left out as
soon as none of its connections is borrowed any more. A forked worker has metrics of its own, which start at zero. The
metrics of pools with the same name are added up.
https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple
from weakref import WeakSet, ref

from . import pool as _pool
from .stats import Count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .pool import ConnectionPool

#: The bounds of the histograms' buckets, in seconds, from the conventions for the duration of client operations:
#: https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#metric-dbclientoperationduration
BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

_NAME = "db.client.connection."
_POOL, _STATE = "db.client.connection.pool.name", "db.client.connection.state"

#: The metrics that are read at collection: description, unit, and for each state the function that reads it.
_GAUGES: dict[str, tuple[str, str, dict[str | None, Callable[[_Moment], int]]]] = {
    "count": (
        "The number of connections that are open, by state.",
        "{connection}",
        {"idle": lambda now: now.idle, "used": lambda now: now.used},
    ),
    "idle.max": ("The maximum number of idle connections.", "{connection}", {None: lambda now: now.max}),
    "idle.min": (
        "The number of connections that are kept open when idle.",
        "{connection}",
        {None: lambda now: now.idle_min},
    ),
    "max": ("The maximum number of open connections.", "{connection}", {None: lambda now: now.max}),
    "pending_requests": (
        "The number of threads that are waiting for a connection.",
        "{request}",
        {None: lambda now: now.pending},
    ),
}
#: How long a fork waits for the end of a recording, which takes some microseconds, in seconds.
_LONGEST_RECORDING = 1.0
_TIMEOUTS = "timeouts", "The number of borrows that got no connection in time."
#: The histograms, by the event that observers are called with: name, description, and the field of `PoolStats` with
#: the total seconds.
_TIMES = {
    "create": ("create_time", "The time it took to open a connection.", "seconds_opening"),
    "wait": ("wait_time", "The time a borrower waited for a connection.", "seconds_waited"),
    "use": ("use_time", "The time between borrowing a connection and returning it.", "seconds_used"),
}


class _Moment(NamedTuple):
    """The state of all pools with one name at one moment."""

    idle: int
    used: int
    idle_min: int
    max: int
    pending: int
    timeouts: int

    def __add__(self, other: _Moment) -> _Moment:  # type: ignore[override]
        return _Moment(*map(sum, zip(self, other)))


class _Watch:
    """The pools of this process, including those that are made later."""

    def __init__(self) -> None:
        #: Each pool's observer.
        self._observers: dict[ref[ConnectionPool], Any] = {}

    def begin(self) -> None:
        """Observe all pools from now on, in this process and in processes forked from it."""
        if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
            os.register_at_fork(after_in_child=self._reset_in_child)
        _pool._watchers.append(self.add)
        for pool in _all_pools():
            self.add(pool)

    def add(self, pool: ConnectionPool) -> None:
        """Observe `pool`, if it is not observed yet."""
        observer = self._observer(pool)
        # setdefault is atomic: `begin()` and the thread that makes the pool may add it at the same time.
        if self._observers.setdefault(ref(pool), observer) is observer:
            pool._observe(observer)

    def pools(self) -> list[tuple[ConnectionPool, Any]]:
        """Return the pools that are open, or still have borrowed connections, each with its observer."""
        found = [(known(), known, observer) for known, observer in list(self._observers.items())]
        for pool, known, _ in found:
            if pool is None:
                self._observers.pop(known, None)
        return [
            (pool, observer)
            for pool, _, observer in found
            if pool is not None and not (pool._pool.closed and not pool._pool.borrows())
        ]

    def now(self) -> dict[str, _Moment]:
        """Return the present state of the pools, by name."""
        found: dict[str, _Moment] = {}
        for pool, _ in self.pools():
            stats = pool.stats()
            used = stats.borrowed - stats.opening
            moment = _Moment(stats.idle, used, pool._size, pool.maxsize, stats.waiting, stats.timed_out)
            found[pool.name] = moment + found[pool.name] if pool.name in found else moment
        return found

    def _observer(self, pool: ConnectionPool) -> Callable[[str, float], object]:
        """Return an observer for `pool`. It must not refer to the pool, which would otherwise never be collected."""
        raise NotImplementedError

    def _reset_in_child(self) -> None:
        raise NotImplementedError


def _all_pools() -> list[ConnectionPool]:
    while True:
        with suppress(RuntimeError):  # another thread has made a pool in the meantime
            return list(_pool._pools)


# Prometheus


class _Histograms:
    """The histograms of one pool.

    They are counted without a lock, as a finalizer or a signal handler may return a connection during the count.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        stats = pool.stats()
        self.begin({what: getattr(stats, field) for what, (_, _, field) in _TIMES.items()})

    def begin(self, seconds_before: dict[str, float]) -> None:
        """Start at zero. `seconds_before` are the pool's total seconds until now, which are subtracted later."""
        self._seconds_before = seconds_before
        self._counts = {what: [Count() for _ in range(len(BOUNDS) + 1)] for what in _TIMES}

    def __call__(self, what: str, seconds: float) -> None:
        """Count an event that took `seconds`."""
        self._counts[what][bisect_left(BOUNDS, seconds)].increment()

    def of(self, pool: ConnectionPool, what: str) -> tuple[list[int], float]:
        """Return the number of events in each bucket, and their total seconds. `pool` is the pool they belong to."""
        total = getattr(pool.stats(), _TIMES[what][2])
        return [count.value() for count in self._counts[what]], total - self._seconds_before[what]


class PrometheusCollector(_Watch):
    """A collector for a registry of `prometheus_client`. Collecting takes no lock in a pool."""

    def collect(self) -> Iterable[Any]:
        """Yield the metrics. The registry calls this when it is scraped."""
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

    describe = collect  # so that a registry detects a second registration

    def _sums(self, what: str) -> dict[str, tuple[list[int], float]]:
        found: dict[str, tuple[list[int], float]] = {}
        for pool, histograms in self.pools():
            counts, seconds = histograms.of(pool, what)
            others, more = found.get(pool.name, ([0] * len(counts), 0.0))
            found[pool.name] = [*map(sum, zip(counts, others))], seconds + more
        return found

    def _observer(self, pool: ConnectionPool) -> _Histograms:
        return _Histograms(pool)

    def _reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        for histograms in self._observers.values():
            histograms.begin(dict.fromkeys(_TIMES, 0.0))


def prometheus(registry: Any = None) -> PrometheusCollector:
    """Register a collector of all pools with `registry` (default `prometheus_client.REGISTRY`), and return it.

    The names are OpenTelemetry's, converted as an OpenTelemetry exporter for Prometheus would do it:
    `db_client_connection_count`, `db_client_connection_wait_time_seconds` and so on, with the label
    `db_client_connection_pool_name`.

    Raises ImportError if `prometheus_client` is not installed, and ValueError if the metrics are registered already.
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
    """The instruments of the conventions, created with `meter`, an OpenTelemetry `Meter`.

    Durations are kept here, and recorded when the metrics are collected. Recording takes a lock of the SDK, and a
    finalizer may return a connection while the same thread holds that lock.
    """

    #: If more durations than this are kept, each borrow records some: more than it adds, and so few that it is not
    #: delayed. A return records none: see above.
    _MOST_KEPT, _AT_ONCE = 1000, 10

    def __init__(self, meter: Any) -> None:
        from opentelemetry.metrics import Observation  # noqa: PLC0415  an extra

        self._observation = Observation
        self._kept: deque[tuple[str, str, float]] = deque()
        self._local = threading.local()
        # Held while durations are recorded, and during a fork: a child would find the SDK's locks held forever.
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

    def begin(self) -> None:
        """Observe all pools from now on, in this process and in processes forked from it."""
        if hasattr(os, "register_at_fork"):  # pragma: no branch  not on Windows
            os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork)
        super().begin()

    def _before_fork(self) -> None:
        if not self._is_recording():
            self._local.is_recording = True
            self._local.is_forking = self._recording.acquire(timeout=_LONGEST_RECORDING)

    def _after_fork(self) -> None:
        if "is_forking" in vars(self._local):
            if vars(self._local).pop("is_forking"):
                self._recording.release()
            self._local.is_recording = False

    def _callback(self, values: dict[str | None, Callable[[_Moment], int]]) -> Callable[[Any], Iterator[Any]]:
        def observe(_options: Any) -> Iterator[Any]:
            self._record(len(self._kept))
            for pool, moment in self.now().items():
                for state, value in values.items():
                    attributes = {_POOL: pool} if state is None else {_POOL: pool, _STATE: state}
                    yield self._observation(value(moment), attributes)

        return observe

    def _observer(self, pool: ConnectionPool) -> Callable[[str, float], object]:
        name, kept = pool.name, self._kept

        def keep(what: str, seconds: float) -> None:
            kept.append((what, name, seconds))
            if what == "wait" and len(kept) > self._MOST_KEPT:
                self._record(self._AT_ONCE)

        return keep

    def _record(self, most: int) -> None:
        """Record the oldest durations that are kept, at most `most` of them.

        It does nothing in a signal handler or a finalizer that interrupts it.
        """
        if self._is_recording():
            return
        self._local.is_recording = True
        try:
            with self._recording, suppress(IndexError):  # no more are kept
                for _ in range(most):
                    what, pool, seconds = self._kept.popleft()
                    self._histograms[what].record(seconds, {_POOL: pool})
        finally:
            self._local.is_recording = False

    def _is_recording(self) -> bool:
        """Whether this thread is recording or forking, and runs a signal handler, a finalizer or a hook now."""
        return getattr(self._local, "is_recording", False)

    def _reset_in_child(self) -> None:  # pragma: no cover  in a forked child
        self._local = threading.local()
        self._recording = threading.Lock()
        self._kept.clear()


#: The meter providers that have instruments already.
_providers: WeakSet[Any] = WeakSet()


def opentelemetry(meter_provider: Any = None) -> OpenTelemetryInstruments:
    """Create the instruments for all pools, with `meter_provider` (default: the global one), and return them.

    Raises ImportError if `opentelemetry-api` is not installed, and ValueError if this provider has them already: each
    duration would be recorded twice.
    """
    from opentelemetry.metrics import get_meter, get_meter_provider  # noqa: PLC0415  an extra

    from . import __version__  # noqa: PLC0415  a circular import at the top

    provider = get_meter_provider() if meter_provider is None else meter_provider
    if provider in _providers:
        raise ValueError("the metrics of all pools are registered with this meter provider already")
    instruments = OpenTelemetryInstruments(get_meter("pymysqlpool", __version__, meter_provider=provider))
    _providers.add(provider)
    instruments.begin()
    return instruments

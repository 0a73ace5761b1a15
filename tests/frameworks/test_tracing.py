"""With the recipes, each query through the pool creates one span in the real tracers."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any, Callable

import pymysql
import pytest
import recipes
from helpers import program_arguments, run_as_program
from pymysql.cursors import SSCursor, SSDictCursor
from server import Server

if TYPE_CHECKING:
    import pymysqlpool

OPENTELEMETRY, DATADOG = "Traces: OpenTelemetry", "Traces: Datadog"


def by_block(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pool.get_connection() as cur:
        cur.execute("select 1 + 1")
        assert cur.fetchall() == ((2,),)
    return ["select 1 + 1"]


def by_cursor_of_block(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pool.get_connection() as conn, conn.cursor() as cursor:
        cursor.execute("select %s", (1,))
        conn.execute("select 2")
        conn.commit()
    return ["select %s", "select 2"]


def by_connection(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
    return ["select 1"]


def by_handle(pool: pymysqlpool.ConnectionPool) -> list[str]:
    connection = pool.get_connection()
    cursor = connection.cursor()
    cursor.execute("select 1")
    cursor.close()
    connection.close()
    return ["select 1"]


def by_execute_query(pool: pymysqlpool.ConnectionPool) -> list[str]:
    connection = pool.get_connection()
    assert connection.execute_query("select 1", return_one=True) == (1,)
    assert connection.execute_query("select 2 as n", dictcursor=True) == [{"n": 2}]
    return ["select 1", "select 2 as n"]


def by_execute_many(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pool.get_connection() as cur:
        cur.execute("create temporary table t (n int)")
        cur.executemany("insert into t values (%s)", [(1,), (2,)])
        cur.connection.execute_query("insert into t values (%s)", [(3,), (4,)], exec_many=True)
        cur.execute("select sum(n) from t")
        assert cur.fetchone() == (10,)
    insert = "insert into t values (%s)"
    return ["create temporary table t (n int)", insert, insert, "select sum(n) from t"]


def by_unbuffered_cursor(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pool.get_connection() as cur:
        for cursorclass in (SSCursor, SSDictCursor):
            with cur.cursor(cursorclass) as cursor:
                cursor.execute("select 1 as n union select 2")
                assert len(list(cursor)) == 2
    return ["select 1 as n union select 2"] * 2


def by_procedure(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pool.get_connection() as cur:
        cur.callproc("p", (1,))
        cur.fetchall()
    return ["p"]


def by_failing(pool: pymysqlpool.ConnectionPool) -> list[str]:
    with pytest.raises(pymysql.err.Error), pool.get_connection() as cur:
        cur.execute("select nothing")
    return ["select nothing"]


WAYS = [
    by_block,
    by_cursor_of_block,
    by_connection,
    by_handle,
    by_execute_query,
    by_execute_many,
    by_unbuffered_cursor,
    by_procedure,
    by_failing,
]


def opentelemetry_spans() -> Callable[[], list[str]]:
    """Keep spans in memory, and return a function that returns the statements of those since its last call."""
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    # A program with other PyMySQL connections instruments them like this, which must not double the pool's spans.
    PyMySQLInstrumentor().instrument()

    def spans() -> list[str]:
        found = exporter.get_finished_spans()
        for span in found:
            assert {"db.system", "db.statement", "db.user", "db.name", "net.peer.name"} <= set(span.attributes), span
        exporter.clear()
        return [span.attributes["db.statement"] for span in found]

    return spans


def datadog_spans() -> Callable[[], list[str]]:
    from ddtrace.trace import TraceFilter, tracer  # noqa: PLC0415

    kept: list[Any] = []

    class Keep(TraceFilter):
        def process_trace(self, trace: list[Any]) -> None:
            kept.extend(trace)

    tracer.configure(trace_processors=[Keep()])

    def spans() -> list[str]:
        found = [span.resource for span in kept]
        for span in kept:
            assert (span.name, span.get_tag("out.host")) == ("pymysql.query", "127.0.0.1")
        kept.clear()
        return found

    return spans


@pytest.mark.parametrize(
    ("section", "package"), [(OPENTELEMETRY, "opentelemetry.instrumentation.pymysql"), (DATADOG, "ddtrace")]
)
def test_one_span_for_each_query(
    section: str, package: str, server: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One span each for queries in blocks, on handles and cursors, for `execute_query`, procedures and failures."""
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    # In a separate program, as both tracers affect the whole process.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    status, output, errors = run_as_program(
        __file__, section, server.host, server.port, server.user, server.password, database
    )
    assert status == 0, errors
    assert output.split() == [way.__name__ for way in WAYS]


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what it is in is not installed either
        return False


def main(section: str, *where: Any) -> None:
    spans = {OPENTELEMETRY: opentelemetry_spans, DATADOG: datadog_spans}[section]()
    pool: Any = recipes.run(Server(*where[:-1]), where[-1], section)["pool"]
    with pool.connection() as connection:
        connection.query("create procedure p (n int) select n")
    assert spans() == [], "opening gives none"
    for way in WAYS:
        wanted = way(pool)
        assert spans() == wanted, (way.__name__, wanted)
        assert pool.size() == pool.maxsize
        print(way.__name__)


if __name__ == "__main__":
    main(*program_arguments())

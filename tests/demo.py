"""A demo on a throwaway server: the classic session, 32 threads on 4 connections, the size command."""

from __future__ import annotations

import doctest
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from queue import SimpleQueue
from typing import Any, Callable, NamedTuple

import pymysql
from server import Server, ServerNotFound, running_server

import pymysqlpool

SESSION = """
>>> pool = pymysqlpool.ConnectionPool(size=2, name="pool1", autocommit=True, **config)
>>> con1 = pool.get_connection()
yyyy-mm-dd hh:mm:ss    DEBUG: Get connection from pool(pool1)
>>> con2 = pool.get_connection()
yyyy-mm-dd hh:mm:ss    DEBUG: Get connection from pool(pool1)
>>> pool.size()
0
>>> pool.get_connection(timeout=0, retry_num=0)
pymysqlpool.GetConnectionFromPoolError: can't get connection from pool(pool1) within 0*1 second(s)
>>> con1.close()
yyyy-mm-dd hh:mm:ss    DEBUG: Put connection back to pool(pool1)
>>> con2.close()
yyyy-mm-dd hh:mm:ss    DEBUG: Put connection back to pool(pool1)
>>> pool.size()
2
>>> with con1 as cur:  # what was returned borrows afresh
...     cur.execute("select 1+1")
...     cur.fetchone()
yyyy-mm-dd hh:mm:ss    DEBUG: Get connection from pool(pool1)
1
(2,)
yyyy-mm-dd hh:mm:ss    DEBUG: Put connection back to pool(pool1)
>>> con1.execute_query("select 1+1")
yyyy-mm-dd hh:mm:ss    DEBUG: Get connection from pool(pool1)
yyyy-mm-dd hh:mm:ss    DEBUG: Put connection back to pool(pool1)
((2,),)
>>> pool.close()  # how many are still out
0
"""
THREADS = 32
POOL_SIZE = 4
# The query keeps the server busy for 10 ms, like a real one. With a quicker one Python would limit the rate.
SEARCH = ["--query", "SELECT SLEEP(0.01)", "--threads", "8", "--sizes", "1,2,4,8,16", "--seconds", "0.5"]


class Result(NamedTuple):
    """The result of a job, and the time that it took."""

    label: str
    queries: int
    wrong: int
    seconds: float
    connections: int


def main() -> int:
    """Run it all, and return the exit status."""
    # If it is terminated, it removes its server as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print("Starting a server ...", flush=True)
    try:
        with running_server() as server:
            print(f"{server.host}:{server.port} is up.\n\nThe classic session\n")
            session_is_right = run_session(server.connect_kwargs)
            print(f"\n{THREADS} threads, each query on a connection from a pool of {POOL_SIZE}, or on one of its own\n")
            results = run_jobs(server.connect_kwargs)
            print_table(results)
            print("\nHow large should the pool be? The command that measures it, for 8 threads and a query of 10 ms\n")
            command_is_right = run_command(server)
    except ServerNotFound as error:
        print(error)
        return 1
    jobs_are_right = not any(result.wrong for result in results) and results[0].connections <= POOL_SIZE
    is_right = session_is_right and jobs_are_right and command_is_right
    print("\nAll as it should be." if is_right else "\nSomething is wrong.")
    return 0 if is_right else 1


def run_session(config: dict[str, Any]) -> bool:
    """Run the session's lines one by one, show the output, and return whether it is the expected one."""
    level = pymysqlpool.logger.level
    pymysqlpool.logger.setLevel("DEBUG")
    names = {"pymysqlpool": pymysqlpool, "config": config}
    try:
        right = [run_example(example, names) for example in doctest.DocTestParser().get_examples(SESSION)]
        return all(right)
    finally:
        pymysqlpool.logger.setLevel(level)


def run_example(example: doctest.Example, names: dict[str, Any]) -> bool:
    """Run one example as the interactive interpreter would."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            exec(compile(example.source, "<demo>", "single"), names)  # noqa: S102 - the lines above
        except Exception as error:  # noqa: BLE001 - it is shown, and compared with what should come
            print(f"{type(error).__module__}.{type(error).__name__}: {error}")
    print(">>> " + example.source.rstrip().replace("\n", "\n... "))
    print(output.getvalue(), end="", flush=True)
    if re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "yyyy-mm-dd hh:mm:ss", output.getvalue()) == example.want:
        return True
    print(f"!!! This should have come:\n{example.want}")
    return False


def run_jobs(config: dict[str, Any]) -> list[Result]:
    """Do the same work with a pool and without."""
    # The pool opens its connections when they are needed, so that their time and number are included here too.
    pool = pymysqlpool.ConnectionPool(size=POOL_SIZE, pre_create_num=0, **config)
    with pymysql.connect(**config) as admin, pool:

        def with_pool() -> Any:
            with pool.get_connection() as cursor:
                cursor.execute("select 1+1")
                return cursor.fetchall()

        def without() -> Any:
            with pymysql.connect(**config) as connection, connection.cursor() as cursor:
                cursor.execute("select 1+1")
                return cursor.fetchall()

        def run(label: str, query: Callable[[], Any], count: int) -> Result:
            before = connections_so_far(admin)
            start = time.perf_counter()
            wrong = run_threads(label, query, count)
            seconds = time.perf_counter() - start
            return Result(label, THREADS * count, wrong, seconds, connections_so_far(admin) - before)

        return [
            run(f"pool of {POOL_SIZE}", with_pool, 200),
            # A tenth of the queries: all of them would take minutes.
            run("one for each query", without, 20),
        ]


def connections_so_far(admin: pymysql.connections.Connection[Any]) -> int:
    """How many connections the server has had since it started."""
    with admin.cursor() as cursor:
        cursor.execute("show global status like 'Connections'")
        return int(cursor.fetchone()[1])


def run_threads(label: str, query: Callable[[], Any], count: int) -> int:
    """Query `count` times in each thread, show the progress, and return how many results were wrong."""
    answers: SimpleQueue[Any] = SimpleQueue()
    interrupted = threading.Event()

    def work() -> None:
        for _ in range(count):
            if interrupted.is_set():
                return
            try:
                answers.put(query())
            except Exception as error:  # noqa: BLE001 - a wrong answer like any other
                answers.put(error)

    for _ in range(THREADS):
        threading.Thread(target=work).start()
    total = THREADS * count
    wrong = 0
    try:
        for done in range(1, total + 1):
            answer = answers.get()
            if answer != ((2,),):
                wrong += 1
                print(f"\n{label}: {answer!r}")
            show_progress(label, done, total)
    except BaseException:
        interrupted.set()
        raise
    return wrong


def show_progress(label: str, done: int, total: int) -> None:
    """Update one line on a terminal, write four lines otherwise."""
    on_terminal = sys.stdout.isatty()
    if done % (total // (100 if on_terminal else 4)) == 0:
        print(f"{label}: {done} of {total} queries", end="\r" if on_terminal and done < total else "\n", flush=True)


def print_table(results: list[Result]) -> None:
    """One line for each job."""
    print(f"\n{'connections':20}{'queries':>9}{'seconds':>9}{'queries/s':>11}{'opened on the server':>22}")
    for label, queries, _, seconds, connections in results:
        print(f"{label:20}{queries:9}{seconds:9.1f}{queries / seconds:11.0f}{connections:22}")


def run_command(server: Server) -> bool:
    """Show the command and what it prints, and return whether it succeeded."""
    command = ["-m", "pymysqlpool", "--host", server.host, "--port", str(server.port), "--user", server.user, *SEARCH]
    print(f"$ python {shlex.join(command)}", flush=True)
    status = subprocess.call([sys.executable, *command], env={**os.environ, "MYSQL_PASSWORD": server.password})
    if status:
        print(f"!!! It ended with status {status}.")
    return status == 0


if __name__ == "__main__":
    sys.exit(main())

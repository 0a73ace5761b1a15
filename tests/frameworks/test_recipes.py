"""Each recipe of `.github/recipes.md` does what it promises, with the real package and a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Callable
from urllib.request import urlopen

import pytest
import recipes
from helpers import eventually, kill, sessions

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers import Admin
    from server import Server

    Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(server: Server, database: str) -> Iterator[Recipe]:
    """Run a recipe's block, and close its pools after the test."""
    with ExitStack() as stack:

        def run(*sections: str) -> dict[str, Any]:
            made = recipes.run(server, database, *sections)
            stack.enter_context(made["pool"])
            return made

        yield run


@pytest.fixture
def numbers(database: str, admin: Admin) -> Callable[[], list[int]]:
    """A table of numbers, and a function that returns its committed rows."""
    with admin.cursor() as cursor:
        cursor.execute(f"create table {database}.numbers (number int primary key)")

    def look() -> list[int]:
        with admin.cursor() as cursor:
            cursor.execute(f"select number from {database}.numbers order by number")
            return [number for (number,) in cursor.fetchall()]

    return look


def is_whole(pool: pymysqlpool.ConnectionPool) -> bool:
    return pool.size() == pool.maxsize and pool.total_num <= pool.maxsize


# SQLAlchemy, pandas, peewee


def test_sqlalchemy_core(recipe: Recipe, numbers: Callable[[], list[int]]) -> None:
    """Core: commits, rollbacks and isolation levels work, and each connection is returned."""
    sqlalchemy = pytest.importorskip("sqlalchemy", "2")
    made = recipe("SQLAlchemy")
    engine, pool = made["engine"], made["pool"]
    insert = sqlalchemy.text("insert into numbers values (:number)")
    with engine.begin() as connection:
        connection.execute(insert, {"number": 1})
    with engine.connect() as connection:
        connection.execute(insert, {"number": 2})
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:  # noqa: PT012  what is to be undone
        connection.execute(insert, [{"number": 3}, {"number": 4}])
        _ = 1 / 0
    assert numbers() == [1]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert, {"number": 5})
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("select @@autocommit")).scalar() == 0
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            connection.execute(insert, {"number": 5})
    assert numbers() == [1, 5]
    assert sqlalchemy.inspect(engine).get_table_names() == ["numbers"]
    assert is_whole(pool)


def test_sqlalchemy_orm(recipe: Recipe, numbers: Callable[[], list[int]]) -> None:
    """ORM sessions work in many threads at once."""
    sqlalchemy = pytest.importorskip("sqlalchemy", "2")
    orm = pytest.importorskip("sqlalchemy.orm")
    made = recipe("SQLAlchemy")
    engine, pool = made["engine"], made["pool"]

    base = orm.declarative_base()
    number_class = type(
        "Number",
        (base,),
        {"__tablename__": "numbers", "number": sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)},
    )

    def add(number: int) -> int:
        with orm.Session(engine) as session:
            session.add(number_class(number=number))
            session.commit()
            found: int = session.get(number_class, number).number
            return found

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(add, range(40))) == list(range(40))
    assert numbers() == list(range(40))
    assert is_whole(pool)


def test_sqlalchemy_recognises_a_disconnect(recipe: Recipe, admin: Admin, database: str) -> None:
    """A session that is killed in use is reported as a disconnect; one that is killed while idle is not noticed."""
    sqlalchemy = pytest.importorskip("sqlalchemy", "2")
    made = recipe("SQLAlchemy")
    select = sqlalchemy.text("select connection_id()")
    with made["engine"].connect() as connection:
        session = connection.execute(select).scalar()
        kill(admin, {session})
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            connection.execute(select)
        assert caught.value.connection_invalidated
    kill(admin, sessions(admin, database))
    with made["engine"].connect() as connection:
        assert connection.execute(select).scalar() != session
    assert is_whole(made["pool"])


def test_sqlalchemy_in_vain(recipe: Recipe) -> None:
    """If no connection becomes free, SQLAlchemy's OperationalError has the pool's error as its cause."""
    sqlalchemy = pytest.importorskip("sqlalchemy", "2")
    made = recipe("SQLAlchemy")
    engine = made["engine"]
    held = [engine.connect() for _ in range(4)]
    with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
        engine.connect()
    assert isinstance(caught.value.orig, pymysqlpool.GetConnectionFromPoolError)
    for connection in held:
        connection.close()


def test_pandas(recipe: Recipe) -> None:
    """`read_sql` returns a frame, and leaves nothing borrowed."""
    pytest.importorskip("pandas")
    made = recipe("SQLAlchemy", "pandas")
    assert made["frame"].to_dict("list") == {"one": [1]}
    assert is_whole(made["pool"])


def test_peewee(recipe: Recipe, numbers: Callable[[], list[int]]) -> None:
    """Models, transactions, and threads that open and close connections work."""
    peewee = pytest.importorskip("peewee")
    made = recipe("peewee")
    db = made["db"]
    number_class: Any = type(
        "Number",
        (peewee.Model,),
        {
            "number": peewee.IntegerField(primary_key=True),
            "Meta": type("Meta", (), {"database": db, "table_name": "numbers"}),
        },
    )

    def add(number: int) -> None:
        with db.connection_context(), db.atomic():
            number_class.create(number=number)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(add, range(20)))
    with pytest.raises(ZeroDivisionError), db:  # noqa: PT012  what is to be undone
        number_class.create(number=99)
        _ = 1 / 0
    assert numbers() == list(range(20))
    assert is_whole(made["pool"])


# Web frameworks


@pytest.mark.parametrize(("is_plain", "count"), [(False, 100), (True, 15)])
def test_fastapi(is_plain: bool, count: int, recipe: Recipe, numbers: Callable[[], list[int]]) -> None:
    """Many requests at once work, whichever threads the server uses for their parts."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    made = recipe("FastAPI")
    app, pool = made["app"], made["pool"]
    seen: set[int] = set()

    def plain() -> Iterator[Any]:
        with pool.connection(timeout=None) as conn:
            yield conn

    on_connection = made["Depends"](plain if is_plain else made["connection"])

    @app.post("/items/{number}")
    def add(number: int, conn: Any = on_connection) -> dict[str, int]:
        seen.add(threading.get_ident())
        with conn.cursor() as cursor:
            cursor.execute("insert into numbers values (%s)", (number,))
        return {"rest": 10 % (number % 7)}

    async def work() -> list[Any]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            gets = [client.get(f"/items/{number}") for number in range(count)]
            posts = [client.post(f"/items/{number}") for number in range(count)]
            return list(await asyncio.gather(*gets, *posts))

    answers = asyncio.run(work())
    assert [answer.json() for answer in answers[:count]] == [{"item": [number]} for number in range(count)]
    statuses = [answer.status_code for answer in answers[count:]]
    assert statuses == [200 if number % 7 else 500 for number in range(count)]
    assert numbers() == [number for number in range(count) if number % 7]
    assert len(seen) > 1
    eventually(lambda: is_whole(pool))


def test_flask(recipe: Recipe) -> None:
    """A request borrows once, and returns the connection at its end, even if it fails."""
    pytest.importorskip("flask")
    made = recipe("Flask")
    app, pool = made["app"], made["pool"]

    @app.route("/fail")
    def fail() -> str:
        made["connection"]().execute_query("select nothing")
        return "never"

    def get(number: int) -> Any:
        return app.test_client().get(f"/items/{number}").get_json()

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(get, range(40))) == [{"item": [number]} for number in range(40)]
    assert app.test_client().get("/fail").status_code == 500
    assert is_whole(pool)


def test_concurrent_futures(recipe: Recipe) -> None:
    """16 threads on 4 connections."""
    made = recipe("concurrent.futures")
    assert made["squares"] == [number * number for number in range(100)]
    assert is_whole(made["pool"])


# Servers that fork


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], *descriptors: int) -> Iterator[None]:
    """A separate program, which is terminated after the block. Its output is printed if the block fails."""
    with folder.joinpath("log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, pass_fds=descriptors)
    try:
        yield
        assert process.poll() is None, "it has ended by itself"
    except BaseException:
        print(folder.joinpath("log").read_text())
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def gunicorn(app: str, folder: Path, environment: dict[str, str], *options: str) -> Iterator[str]:
    """Run gunicorn with two workers, on a socket that is already listening; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "http://{}:{}".format(*listener.getsockname())
        bind = ["-b", f"fd://{listener.fileno()}", "-w", "2"]
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", *bind, *options, app]
        with running(command, folder, environment, listener.fileno()):
            yield address


def get(address: str) -> str:
    with urlopen(address, timeout=20) as answer:  # noqa: S310  http
        text: str = answer.read().decode()
        return text


WORKERS = {"sync": [], "gthread": ["--threads", "8"], "gevent": []}


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("worker", WORKERS)
def test_gunicorn(  # noqa: PLR0917  fixtures
    worker: str, preload: bool, server: Server, database: str, tmp_path: Path, admin: Admin
) -> None:
    """Two workers of each kind, each with sessions of its own, and no more than its pool's size."""
    pytest.importorskip("gunicorn")
    options = ["-k", worker, *WORKERS[worker], *(["--preload"] if preload else [])]
    if worker == "gevent":
        pytest.importorskip("gevent")
        tmp_path.joinpath("gunicorn.conf.py").write_text(recipes.blocks("gunicorn")[1])
    tmp_path.joinpath("site_of_test.py").write_text(recipes.program(server, database, "gunicorn"))
    with gunicorn("site_of_test:app", tmp_path, recipes.environment(tmp_path), *options) as address:
        with ThreadPoolExecutor(16) as executor:
            used = set(executor.map(lambda _: int(get(address)), range(200)))
        open_now = sessions(admin, database)
        assert used <= open_now
        # A preloaded parent keeps its own sessions, which no worker uses.
        assert len(open_now) <= 2 * 4 + (4 if preload else 0)
        assert "rror" not in tmp_path.joinpath("log").read_text()
    eventually(lambda: not sessions(admin, database))


def test_celery(server: Server, database: str, tmp_path: Path, numbers: Callable[[], list[int]], admin: Admin) -> None:
    """A worker with two children, which commit what their tasks write."""
    pytest.importorskip("celery")
    for name in ("queue", "results", "control"):
        tmp_path.joinpath(name).mkdir()
    queue = str(tmp_path / "queue")
    broker = {"data_folder_in": queue, "data_folder_out": queue, "control_folder": str(tmp_path / "control")}
    where = (
        f"app.conf.update(broker_url='filesystem://', broker_transport_options={broker!r}, "
        f"result_backend={'file://' + str(tmp_path / 'results')!r})\n"
    )
    tmp_path.joinpath("tasks_of_test.py").write_text(recipes.program(server, database, "Celery") + where)
    command = [sys.executable, "-m", "celery", "-A", "tasks_of_test", "worker", "-c", "2", "--pool", "prefork"]
    environment = recipes.environment(tmp_path)
    with running([*command, "--loglevel", "info"], tmp_path, environment):
        send = (
            "import tasks_of_test as t; jobs = [t.add.delay(n) for n in range(20)];"
            "print([job.get(timeout=40) for job in jobs])"
        )
        done = subprocess.run(
            [sys.executable, "-c", send], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(list(range(20)))
        assert numbers() == list(range(20))
    eventually(lambda: not sessions(admin, database))


def test_django(server: Server, database: str, tmp_path: Path, admin: Admin) -> None:
    """The settings of the recipe serve a site."""
    pytest.importorskip("django")
    [block] = recipes.blocks("Django")
    settings = (
        block.replace('"localhost"', repr(server.host), 1)
        .replace('"app"', repr(server.user), 1)
        .replace('"secret"', repr(server.password), 1)
        .replace('"shop"', repr(database), 1)
        .replace('"HOST"', f'"PORT": {server.port}, "HOST"')
    )
    tmp_path.joinpath("settings_of_test.py").write_text(f"from shop.settings import *\n{settings}")
    site = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'settings_of_test'\n"
        "from django.core.wsgi import get_wsgi_application\napp = get_wsgi_application()\n"
        "from django.core.management import call_command; call_command('migrate', run_syncdb=True, verbosity=0)\n"
        "from shop.models import Item\nItem.objects.count()  # the connection of the parent is still lent at the fork\n"
    )
    tmp_path.joinpath("site_of_test.py").write_text(site)
    environment = recipes.environment(tmp_path)
    environment["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)  # noqa: PTH120
    options = ("-k", "gthread", "--threads", "8", "--preload")
    with gunicorn("site_of_test:app", tmp_path, environment, *options) as address:
        with ThreadPoolExecutor(16) as executor:
            pages = [json.loads(text) for text in executor.map(lambda _: get(address), range(200))]
        assert len({page["process"] for page in pages}) == 2
        assert len(sessions(admin, database)) <= 1 + 2 * 8
        parents = sessions(admin, database) - {page["session"] for page in pages}
        assert parents
    eventually(lambda: not sessions(admin, database))


def test_no_recipe_is_without_a_test() -> None:
    """Each section of the recipes is named by a test in this folder."""
    here = recipes.ROOT.joinpath("tests", "frameworks")
    tests = "".join(file.read_text() for file in here.glob("test_*.py"))
    assert [title for title in recipes.titles() if f'"{title}"' not in tests] == []

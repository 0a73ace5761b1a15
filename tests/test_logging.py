"""The package's logger: what is written where, in programs that have configured logging and in others."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pymysqlpool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers import MakePool


@contextmanager
def unconfigured_logging(monkeypatch: pytest.MonkeyPatch, level: str) -> Iterator[None]:
    """Logging as in a program that has not configured it, except for the pool's level."""
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        pymysqlpool.logger.setLevel(level)
        try:
            yield
        finally:
            pymysqlpool.logger.setLevel("WARNING")


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_debug_alone_makes_the_classic_lines_appear(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`logger.setLevel("DEBUG")` alone makes the lines appear on stderr, in the classic format."""
    pool = make_pool()
    with unconfigured_logging(monkeypatch, "DEBUG"):
        pool.get_connection().close()
    assert re.fullmatch(
        rf"{STAMP}    DEBUG: Get connection from pool\(pool1\)\n"
        rf"{STAMP}    DEBUG: Put connection back to pool\(pool1\)\n",
        capsys.readouterr().err,
    )


def test_lines_go_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a program replaces `sys.stderr`, the lines go to the new one."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with unconfigured_logging(monkeypatch, "WARNING"):
        pymysqlpool.logger.warning("mind the %s", "gap")
        pymysqlpool.logger.debug("nothing")
    assert re.fullmatch(rf"{STAMP}  WARNING: mind the gap\n", stderr.getvalue())


@pytest.mark.parametrize("name", [None, "pymysqlpool"])
def test_the_applications_handlers_get_each_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str | None
) -> None:
    """An application's handler, on the root logger or the pool's, gets each line once, and stderr none."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    with unconfigured_logging(monkeypatch, "DEBUG"):
        logging.getLogger(name).addHandler(handler)
        try:
            pymysqlpool.logger.debug("once")
        finally:
            logging.getLogger(name).removeHandler(handler)
    assert lines.getvalue() == "once\n"
    assert capsys.readouterr().err == ""


def test_a_handler_that_does_not_get_the_lines_does_not_silence_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the pool's logger does not propagate, a handler on the root logger does not silence stderr."""
    monkeypatch.setattr(pymysqlpool.logger, "propagate", False)
    with unconfigured_logging(monkeypatch, "DEBUG"):
        logging.getLogger().addHandler(logging.NullHandler())
        pymysqlpool.logger.debug("once")
    assert capsys.readouterr().err.endswith("once\n")


def test_import_touches_nothing_else() -> None:
    """Importing the package touches neither the root logger nor warning filters; its own logger is at WARNING."""
    program = """
import logging, warnings, pymysql
filters = list(warnings.filters)
import pymysqlpool
assert warnings.filters == filters, warnings.filters
root = logging.getLogger()
assert (root.handlers, root.level) == ([], logging.WARNING), root
assert pymysqlpool.logger is logging.getLogger("pymysqlpool")
assert pymysqlpool.logger.level == logging.WARNING
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FROM_A_ZIP = """
import pymysqlpool
assert ".zip" in pymysqlpool.__file__
pymysqlpool.Connection.connect = lambda *_: None
pool = pymysqlpool.ConnectionPool(1)
with pool.connection():
    try:
        pool.get_connection(0, 0)
    except pymysqlpool.GetConnectionFromPoolError as error:
        print(error.holders[0]["file"], error.holders[0]["line"])
"""


def test_from_a_zip_file(tmp_path: Path) -> None:
    """The package also works from a zip file, and distinguishes its own lines from the user's."""
    package = Path(pymysqlpool.__file__).parent
    archive = shutil.make_archive(str(tmp_path / "package"), "zip", package.parent, package.name)
    environment = {**os.environ, "PYTHONPATH": archive}
    command = [sys.executable, "-W", "error", "-c", FROM_A_ZIP]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "<string> 6\n", "")

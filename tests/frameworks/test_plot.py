"""The command draws its results if matplotlib is installed, and it is also installed as a program."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pymysqlpool import __main__

if TYPE_CHECKING:
    from server import Server

QUICK = ["--threads", "4", "--sizes", "1,2", "--seconds", "0.1", "--query", "select '$1', '$x_'"]


def where(server: Server) -> list[str]:
    return ["--host", server.host, "--port", str(server.port), "--user", server.user]


@pytest.mark.parametrize(("name", "begins"), [("rates.png", b"\x89PNG"), ("rates.svg", b"<?xml")])
def test_a_plot(server: Server, tmp_path: Path, name: str, begins: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """`--plot` writes a picture in the format of the file's suffix, in addition to the table."""
    pytest.importorskip("matplotlib")
    assert __main__.main([*where(server), *QUICK, "--plot", str(tmp_path / name)]) == 0
    assert "Use size=" in capsys.readouterr().out
    assert tmp_path.joinpath(name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["nowhere/rates.png", "rates.nothing"])
def test_a_plot_that_can_not_be_written(
    server: Server, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is still printed, and the reason is given in one line."""
    pytest.importorskip("matplotlib")
    assert __main__.main([*where(server), *QUICK, "--plot", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert "Use size=" in out
    assert err.count("\n") == 1
    assert "no plot: " in err


def test_a_program(server: Server) -> None:
    """`pymysqlpool` is the command if the package is installed."""
    try:
        importlib.metadata.distribution("pymysql-pool")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("it is not installed, but run from its folder")
    program = Path(sysconfig.get_path("scripts"), "pymysqlpool")
    done = subprocess.run([program, *where(server), *QUICK], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), sys.executable
    assert "Use size=" in done.stdout
    assert (
        "usage: pymysqlpool " in subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    )

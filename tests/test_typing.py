"""Strict type checkers find no fault in sample programs for each idiom, and the programs run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pymysqlpool

if TYPE_CHECKING:
    from server import Server

SAMPLES = Path(__file__).parent / "typing"
FAULTS = SAMPLES / "faults.py"
PACKAGE = Path(pymysqlpool.__file__).parent
#: Where a checker finds the package, if it is not installed.
OUTSIDE = [] if "site-packages" in PACKAGE.parts else [str(PACKAGE.parent)]


@pytest.mark.parametrize(
    "sample", [path for path in SAMPLES.glob("*.py") if path != FAULTS], ids=lambda path: path.stem
)
def test_the_samples_run(sample: Path, server: Server, database: str) -> None:
    """Each sample program runs, so what the checkers check is what users do."""
    runpy.run_path(str(sample))["main"]({**server.connect_kwargs, "database": database})


def marked() -> list[int]:
    """The lines that are marked as faults."""
    return [number for number, line in enumerate(FAULTS.read_text().splitlines(), 1) if line.endswith("# fault")]


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy(tmp_path: Path) -> None:
    """`mypy --strict` finds the marked faults, and no others."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(SAMPLES)]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(OUTSIDE)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    found = re.findall(r"^(\S+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert [each for each in found if Path(each[0]).name != FAULTS.name] == []
    assert sorted({int(line) for _, line, _ in found}) == marked(), done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_pyright(tmp_path: Path) -> None:
    """So does pyright, at its standard setting."""
    beside = Path(sys.executable).parent
    places = [shutil.which(name) or shutil.which(name, path=beside) for name in ("pyright", "basedpyright")]
    checker = next(filter(None, places), None)
    if checker is None:
        pytest.skip("pyright is not installed")
    shutil.copytree(SAMPLES, tmp_path / "samples")
    config = {"include": ["samples"], "extraPaths": OUTSIDE, "typeCheckingMode": "standard"}
    tmp_path.joinpath("pyrightconfig.json").write_text(json.dumps(config))
    command = [checker, "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)["generalDiagnostics"]
    errors = [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in report
        if each["severity"] == "error"
    ]
    assert [each for each in errors if each[0] != FAULTS.name] == []
    assert sorted({line for _, line, _ in errors}) == marked()

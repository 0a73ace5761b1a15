"""The test run itself leaves nothing behind, and also passes in the background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from helpers import eventually
from server import ServerNotFound, running_server

if TYPE_CHECKING:
    from server import Server

HERE = Path(__file__).parent


def environment(**variables: str) -> dict[str, str]:
    """The environment of this process, without the variables that select a server."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MYSQL_", "PYTEST_"))}
    return {**ours, **variables, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_a_terminated_run_leaves_no_server(way: signal.Signals) -> None:
    """If the test process is terminated, its server ends, and its folder is removed."""
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as program:
        assert program.stdout is not None
        line = program.stdout.readline().strip()
        if not line:
            pytest.skip("no server program on this machine")
        pid, folder = line.split(maxsplit=1)
        assert not is_gone(int(pid))
        program.send_signal(way)
        assert program.wait() == -way
    eventually(lambda: is_gone(int(pid)) and not Path(folder).exists())


def test_where_control_c_is_ignored(server: Server) -> None:
    """The tests of Control-C also pass in a background job, which starts with SIGINT ignored."""
    tests = ["test_fairqueue.py::test_control_c_interrupts_the_wait", "test_interruption.py::test_keyboard_interrupt"]
    kwargs = server.connect_kwargs
    variables = {f"MYSQL_{name.upper()}": str(kwargs[name]) for name in ("host", "port", "user", "password")}
    program = "import pytest, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); pytest.main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", *tests]
    done = subprocess.run(command, cwd=HERE, env=environment(**variables), capture_output=True, text=True, check=False)
    assert "5 passed" in done.stdout.splitlines()[-1], done.stdout


def main() -> None:
    """Start a server, print where it is, and wait to be terminated."""
    try:
        with running_server() as server:
            socket: Any = server.unix_socket
            print(server.pid, Path(socket).parent, flush=True)
            signal.pause()
    except ServerNotFound:
        pass


if __name__ == "__main__":
    main()

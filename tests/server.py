"""A MariaDB or MySQL server for tests, demo and benchmarks: one that is already running, or a throwaway one."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mirakuru import TCPExecutor
from mirakuru.base import cleanup_subprocesses
from mirakuru.exceptions import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Iterator


# At its exit a process that has imported mirakuru would kill whatever was started by one whose number, or whose random
# identifier, has this process's number in it: "816" is in "28165". The watchdog sees to what is left of ours.
atexit.unregister(cleanup_subprocesses)


class ServerNotFound(Exception):
    """The machine has no server program."""


@dataclass(frozen=True)
class Server:
    """The address of a server, with the means to stop it if the tests have started it."""

    host: str
    port: int
    user: str = "root"
    password: str = ""
    unix_socket: str | None = None
    ca: str | None = None
    """The PEM file that proves the server's certificate, where TLS was asked for."""
    process: TCPExecutor | None = None

    @property
    def connect_kwargs(self) -> dict[str, Any]:
        """What `pymysql.connect()` needs."""
        return {"host": self.host, "port": self.port, "user": self.user, "password": self.password}

    @property
    def supports_faults(self) -> bool:
        """Whether the tests have started it, so that they may stop it."""
        return self.process is not None

    @property
    def pid(self) -> int | None:
        """The process id; None if the tests have not started it, or it is not running."""
        return self.process.process.pid if self.process and self.process.process else None

    def start(self) -> None:
        """Start it on its port with its data, and return when it listens."""
        assert self.process
        self.process.start()

    def stop(self) -> None:
        """Shut it down cleanly, and return when it has ended. Does nothing if it is not running."""
        assert self.process
        self.process.stop()

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()


@contextmanager
def running_server(*, tls: bool = False) -> Iterator[Server]:
    """Yield the server that MYSQL_HOST or MYSQL_PORT selects, or a throwaway one that is removed afterwards."""
    if "MYSQL_HOST" in os.environ or "MYSQL_PORT" in os.environ:
        yield Server(
            host=os.environ.get("MYSQL_HOST", "127.0.0.1"),
            port=int(os.environ.get("MYSQL_PORT", "3306")),
            user=os.environ.get("MYSQL_USER", "root"),
            password=os.environ.get("MYSQL_PASSWORD", ""),
        )
        return
    with _watched_folder() as folder, Path(folder, "log").open("ab") as log:
        try:
            server = _make_server(Path(folder), log, tls=tls)
            server.start()
        except (subprocess.CalledProcessError, ExecutorError) as error:
            raise RuntimeError(Path(log.name).read_text()) from error
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def _watched_folder() -> Iterator[str]:
    """A folder for a server. Both are removed when this process ends, in whatever way."""
    # The watchdog waits for the end of a pipe that only this process has open. A parent-death signal is not enough: the
    # server loses it when it switches to another user.
    watchdog = [sys.executable, str(Path(__file__).with_name("watchdog.py"))]
    with (
        tempfile.TemporaryDirectory(prefix="pymysqlpool-") as folder,
        subprocess.Popen([*watchdog, folder], stdin=subprocess.PIPE, start_new_session=True) as process,
    ):
        yield folder
        process.communicate(b"stopped in good order")


def _make_server(folder: Path, log: IO[bytes], *, tls: bool) -> Server:
    """Make a data folder, and a server on it that is yet to be started."""
    program = _find("mariadbd", "mysqld")
    if program is None:
        raise ServerNotFound("no MariaDB or MySQL server on this machine: apt-get install -y mariadb-server")
    version = subprocess.run([program, "--no-defaults", "--version"], capture_output=True, text=True, check=True).stdout
    on_mariadb = "MariaDB" in version

    common = ["--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
    if os.getuid() == 0:
        # A server whose root account has no password must not run as the machine's root.
        shutil.chown(folder, "mysql")
        common.append("--user=mysql")
    if on_mariadb:
        installer = _find("mariadb-install-db", "mysql_install_db") or "mariadb-install-db"
        install = [installer, *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    else:
        install = [program, *common, "--initialize-insecure"]
    subprocess.run(install, stdout=log, stderr=log, check=True)

    certificate = folder / "certificate.pem"
    no_encryption = "--skip-ssl" if on_mariadb else "--tls-version="
    encryption = _make_certificate(certificate) if tls else [no_encryption]
    port = _free_port()
    unix_socket = folder / "socket"
    command = [
        program,
        *common,
        *encryption,
        "--bind-address=127.0.0.1",
        f"--port={port}",
        f"--socket={unix_socket}",
        "--loose-mysqlx=OFF",  # MySQL's second port, a fixed one
        f"--secure-file-priv={folder}",
        "--local-infile=ON",
        "--max-connections=2000",
        "--host-cache-size=0",  # tests break handshakes, and a server that counts these would block this host
        # Quick rather than safe: its data need not survive a crash.
        "--skip-log-bin",
        "--innodb-buffer-pool-size=64M",
        "--innodb-doublewrite=OFF",
        "--innodb-flush-log-at-trx-commit=0",
        "--loose-innodb-log-file-size=16M",
    ]
    return Server(
        host="127.0.0.1",
        port=port,
        unix_socket=str(unix_socket),
        ca=str(certificate) if tls else None,
        process=TCPExecutor(command, "127.0.0.1", port, timeout=60, sleep=0.02, stdout=log, stderr=log),
    )


def _find(*names: str) -> str | None:
    """Return the first of these programs that exists, even in folders outside an ordinary user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _make_certificate(path: Path) -> list[str]:
    """Write a certificate for 127.0.0.1 that is its own authority, and return the server's options for it."""
    key = path.with_suffix(".key")
    request = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*request.split(), "-out", path, "-keyout", key], capture_output=True, check=True)
    if os.getuid() == 0:
        shutil.chown(key, "mysql")
    return [f"--ssl-cert={path}", f"--ssl-key={key}"]

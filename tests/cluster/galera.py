"""Three Galera nodes on this machine, and HAProxy in front of them: the first is the writer, the others stand by."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql
from pymysql.constants import ER

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = "app"

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
_PROVIDERS = ["/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so"]


class NotInstalled(Exception):
    """The machine has no Galera or no HAProxy."""


def find(program: str) -> str:
    """The path of a program, even in folders outside an ordinary user's PATH."""
    found = shutil.which(program, path=_PATH)
    if found is None:
        raise NotInstalled(f"no {program} here: apt-get install -y mariadb-server galera-4 rsync haproxy")
    return found


def free_ports(count: int) -> list[int]:
    """So many ports on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Node:
    """One server of the cluster."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"node{number}"
        self.folder = folder / self.name
        self.folder.mkdir()
        self.port, self.group, sst, ist, self.check_port = free_ports(5)
        self.process: subprocess.Popen[bytes] | None = None
        self._as_user = []
        if os.getuid() == 0:
            shutil.chown(self.folder, "mysql")
            self._as_user = ["--user=mysql"]
        provider = next(filter(os.path.exists, _PROVIDERS), None)
        if provider is None:
            raise NotInstalled("no Galera here: apt-get install -y mariadb-server galera-4 rsync")
        provider_options = (
            f"base_port={self.group};gmcast.listen_addr=tcp://127.0.0.1:{self.group};"
            f"ist.recv_addr=127.0.0.1:{ist};gcache.size=32M"
        )
        self._options = [
            *self._as_user,
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.folder / 'socket'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-ssl",
            "--skip-name-resolve",
            "--max-connections=500",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
            "--wsrep-on=ON",
            f"--wsrep-provider={provider}",
            "--wsrep-cluster-name=pymysqlpool",
            f"--wsrep-node-name={self.name}",
            f"--wsrep-node-address=127.0.0.1:{self.group}",
            f"--wsrep-sst-receive-address=127.0.0.1:{sst}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-provider-options={provider_options}",
        ]

    def install(self) -> None:
        """Make its data folder."""
        with (self.folder / "log").open("ab") as log:
            subprocess.run(
                [
                    find("mariadb-install-db"),
                    "--no-defaults",
                    *self._as_user,
                    f"--datadir={self.folder / 'data'}",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                ],
                stdout=log,
                stderr=log,
                check=True,
            )

    def start(self, others: list[Node]) -> None:
        """Start it, as the first of a cluster where there are no `others`, and return when it is in step with them."""
        address = "gcomm://" + ",".join(f"127.0.0.1:{other.group}" for other in others)
        new = [] if others else ["--wsrep-new-cluster"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [find("mariadbd"), "--no-defaults", *self._options, f"--wsrep-cluster-address={address}", *new],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.wait_until_synced()

    def wait_until_synced(self, among: int = 1) -> None:
        """Return when it takes queries and is in step with the others, and sees at least so many nodes."""
        deadline = time.monotonic() + 90
        while not (self.is_synced() and self.sees() >= among):
            if time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-4000:])
            time.sleep(0.1)

    def sees(self) -> int:
        """The number of nodes that it sees in the cluster."""
        with suppress(pymysql.Error, OSError):
            return int(self.run("show status like 'wsrep_cluster_size'")[0][1])
        return 0

    def connect(self, **kwargs: Any) -> pymysql.connections.Connection[Any]:
        """Connect as its administrator, bypassing HAProxy."""
        return pymysql.connect(
            **{
                "host": "127.0.0.1",
                "port": self.port,
                "user": "root",
                "autocommit": True,
                "ssl_disabled": True,
                "connect_timeout": 2,
                "read_timeout": 2,
                **kwargs,
            }
        )

    def run(self, sql: str) -> Any:
        """Run one statement as administrator, in step with the other nodes, and return its rows."""
        settings = "set wsrep_sync_wait = 1, lock_wait_timeout = 1"
        with self.connect(init_command=settings, read_timeout=20) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    def set_global(self, name: str, value: str) -> None:
        """Set a global variable.

        To set `read_only` the server waits until no statement writes, and lets no other begin. One that waits for a row
        lock then waits for a transaction that can't go on, so the server has to try again.
        """
        for _ in range(20):
            try:
                self.run(f"set global {name} = {value}")
            except pymysql.OperationalError as error:
                if error.args[0] != ER.LOCK_WAIT_TIMEOUT:
                    raise
            else:
                return
        raise RuntimeError(f"{name} can't be set to {value}")

    def is_synced(self) -> bool:
        """Whether it takes queries and is in step with the others, and is not read-only."""
        # It reads a table, because a node that rejects queries still answers those that read none.
        table = "select count(*) from mysql.plugin"
        look = "select variable_value, @@read_only from information_schema.global_status where variable_name = %s"
        try:
            with self.connect(connect_timeout=1, read_timeout=1) as connection, connection.cursor() as cursor:
                cursor.execute(table)
                cursor.execute(look, ("wsrep_local_state_comment",))
                return cursor.fetchall() == (("Synced", 0),)
        except (pymysql.Error, OSError):
            return False

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> None:
        """Return when its process has ended."""
        assert self.process is not None
        self.process.wait(60)

    def end(self) -> None:
        """Kill it, if it is running."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class HAProxy:
    """HAProxy with one port for the pool and one for raw connections, so that it counts them separately."""

    def __init__(self, folder: Path, nodes: list[Node]) -> None:
        self._program = find("haproxy")
        self._folder = folder
        self._nodes = nodes
        self.ports = dict(zip(("pool", "raw"), free_ports(2)))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._counted: dict[tuple[str, str], int] = {}
        self._checks = [_serve_check(node) for node in nodes]
        (folder / "haproxy.cfg").write_text(self._configuration())

    def _configuration(self) -> str:
        lines = ["global", "  hard-stop-after 1s", "defaults", "  mode tcp", "  timeout connect 1s"]
        lines += [
            "  timeout client 1h",
            "  timeout server 1h",
            "  timeout check 1s",
            "  option httpchk GET /",
            "  retries 1",
        ]
        for name, port in self.ports.items():
            lines += [f"listen {name}", f"  bind 127.0.0.1:{port}"]
            for node in self._nodes:
                backup = "" if node is self._nodes[0] else " backup"
                check = f"check port {node.check_port} inter 250ms fall 2 rise 2" if name == "pool" else ""
                lines.append(
                    f"  server {node.name} 127.0.0.1:{node.port} {check or f'track pool/{node.name}'}"
                    f" on-marked-down shutdown-sessions{backup}"
                )
        return "\n".join(lines) + "\n"

    def start(self) -> None:
        """Start it in place of the running one: a reload, which ends the old one's sessions a second later."""
        before = self._processes[-1:]
        if before:
            self._count()
        stats = self._folder / f"stats{len(self._processes)}"
        configuration = self._folder / "haproxy.cfg"
        text = self._configuration().replace("global\n", f"global\n  stats socket {stats} level admin\n", 1)
        configuration.write_text(text)
        with (self._folder / "haproxy.log").open("ab") as log:
            command = [self._program, "-db", "-f", str(configuration)]
            command += [argument for process in before for argument in ("-sf", str(process.pid))]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        self._stats = stats
        deadline = time.monotonic() + 20
        while not self._up():
            if time.monotonic() > deadline:
                raise RuntimeError((self._folder / "haproxy.log").read_text())
            time.sleep(0.05)

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._stats))
            sock.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    def _table(self) -> list[dict[str, str]]:
        return list(csv.DictReader(self._ask("show stat").lstrip("# ").splitlines()))

    def cut(self, node: Node) -> None:
        """End the pool's sessions on one node, whatever they are doing."""
        self._ask(f"shutdown sessions server pool/{node.name}")

    def _up(self) -> bool:
        with suppress(OSError):
            return any(row["pxname"] == "pool" and row["svname"] == "node1" for row in self._table())
        return False

    def wait_until_up(self) -> None:
        """Return when it reports that it sends clients to all nodes."""
        self._wait_for("UP", "node")

    def wait_until_down(self, node: Node) -> None:
        """Return when it reports that it sends clients to the other nodes only."""
        self._wait_for("DOWN", node.name)

    def _wait_for(self, status: str, nodes: str) -> None:
        deadline = time.monotonic() + 30
        while not all(row["status"].startswith(status) for row in self._table() if row["svname"].startswith(nodes)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{nodes} does not become {status}")
            time.sleep(0.05)

    def _count(self) -> None:
        for key, count in self._now().items():
            self._counted[key] = self._counted.get(key, 0) + count

    def _now(self) -> dict[tuple[str, str], int]:
        rows = [row for row in self._table() if row["svname"].startswith("node")]
        return {(row["pxname"], row["svname"]): int(row["stot"]) for row in rows}

    def sessions(self) -> dict[tuple[str, str], int]:
        """How many sessions were opened so far, by port and node."""
        return {key: count + self._counted.get(key, 0) for key, count in self._now().items()}

    def end(self) -> None:
        """Kill it, and end the checks."""
        for process in self._processes:
            process.kill()
            process.wait()
        for check in self._checks:
            check.shutdown()
            check.server_close()


def _serve_check(node: Node) -> ThreadingHTTPServer:
    """Serve HAProxy's checks whether a node may be used, as the usual `clustercheck` script does."""

    class Check(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 200 if node.is_synced() else 503
            with suppress(OSError):  # HAProxy has closed the connection
                self.send_response(status)
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", node.check_port), Check)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), name=f"check of {node.name}", daemon=True).start()
    return server


@contextmanager
def running_cluster(size: int = 3) -> Iterator[tuple[list[Node], HAProxy]]:
    """Start nodes and HAProxy; all are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="pymysqlpool-cluster-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        nodes: list[Node] = []
        proxy = None
        try:
            for number in range(1, size + 1):
                node = Node(folder, number)
                node.install()
                node.start(nodes.copy())
                nodes.append(node)
                print(f"{node.name} on port {node.port}", file=sys.stderr, flush=True)
            nodes[0].run(f"create user {USER}@'%'")
            nodes[0].run("create database bank")
            nodes[0].run(f"grant all on bank.* to {USER}@'%'")
            proxy = HAProxy(folder, nodes)
            proxy.start()
            yield nodes, proxy
        finally:
            for node in nodes:
                with suppress(ProcessLookupError):
                    node.signal(signal.SIGCONT)
                node.end()
            if proxy is not None:
                proxy.end()

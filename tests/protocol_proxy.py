"""A proxy that understands the protocol: it passes commands on one by one, or answers some of them itself."""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, NamedTuple

from pymysql.constants import CLIENT, COMMAND, SERVER_STATUS

if TYPE_CHECKING:
    from types import TracebackType

COM_RESET_CONNECTION = 0x1F
#: The status flag that reports a change to the session.
STATE_CHANGED = 0x4000

OK = b"\x00\x00\x00\x02\x00\x00\x00"
"""The packet of a command that has done nothing, with autocommit on."""


def error_packet(code: int, text: str, state: str = "HY000") -> bytes:
    """The packet with which a server refuses a command."""
    return b"\xff" + struct.pack("<H", code) + b"#" + state.encode() + text.encode()


class Command(NamedTuple):
    """A command of a client."""

    code: int
    text: bytes
    is_behind: bool
    """Whether it came in the same read as the command before it."""

    @property
    def is_reset(self) -> bool:
        """Whether it is COM_RESET_CONNECTION."""
        return self.code == COM_RESET_CONNECTION

    def __str__(self) -> str:
        return self.text.decode("utf8", "replace") if self.code == COMMAND.COM_QUERY else f"command {self.code}"


class Stream:
    """One side of a link, in packets."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._buffer = bytearray()
        self.is_behind = False

    def has_packet(self) -> bool:
        """Whether a whole packet has been read already."""
        return len(self._buffer) >= 4 and len(self._buffer) >= 4 + int.from_bytes(self._buffer[:3], "little")

    def read(self) -> tuple[int, bytes]:
        """The next packet, its number and its contents. Raises EOFError at the end."""
        self.is_behind = self.has_packet()
        while not self.has_packet():
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        length = int.from_bytes(self._buffer[:3], "little")
        number, packet = self._buffer[3], bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return number, packet

    def write(self, *packets: bytes, first: int = 0) -> None:
        """Send packets, numbered from `first` on."""
        self.sock.sendall(
            b"".join(
                struct.pack("<I", len(packet))[:3] + bytes([(first + n) % 256]) + packet
                for n, packet in enumerate(packets)
            )
        )

    def close(self) -> None:
        """Close it, and wake the thread that reads from it."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Backend:
    """A session on the server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.stream = Stream(socket.create_connection(address))

    def ask(self, code: int, text: bytes) -> list[bytes]:
        """Send a command and return the packets of its whole reply."""
        self.stream.write(bytes([code]) + text)
        return [] if code == COMMAND.COM_QUIT else self._read_reply()

    def _read_reply(self) -> list[bytes]:
        packets: list[bytes] = []
        more = True
        while more:
            packets.append(self.stream.read()[1])
            first = packets[-1][0]
            if first == 0xFF:
                break
            if first == 0:
                status = status_of(packets[-1])
            else:
                self._read_to_eof(packets)
                status = self._read_to_eof(packets)
            more = bool(status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS)
        return packets

    def _read_to_eof(self, packets: list[bytes]) -> int:
        while True:
            packet = self.stream.read()[1]
            packets.append(packet)
            if packet[0] == 0xFF:
                return 0
            if packet[0] == 0xFE and len(packet) < 9:
                return int.from_bytes(packet[3:5], "little")


class ProtocolProxy:
    """Stand between clients and the server at `host:port`, from `with` to the end of the block.

    It has a thread for each client, and waits for the reply to a command before it passes the next one on. The public
    attributes are hooks, which may be set at any time and apply from then on; each is called in the client's thread.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self.answer: Callable[[Command], list[bytes] | None] = lambda _: None
        """The packets with which the proxy answers a command itself; None: it is passed on; []: it is dropped."""
        self.alter: Callable[[Command, list[bytes]], list[bytes]] = lambda _, reply: reply
        """What becomes of a reply of the server's."""
        self.version: bytes | None = None
        """What the greeting says for the server's version."""
        self.capabilities = -1
        """Those of the server's capabilities that the greeting keeps, as a mask."""
        self.sessions = 1
        """How many sessions on the server a client has, which take turns where `may_switch` lets them."""
        self.may_switch: Callable[[Command, list[bytes]], bool] = lambda *_: False
        """Whether the next command may go to the next session."""
        self.is_for_all: Callable[[Command], bool] = lambda _: False
        """Whether a command is for all of a client's sessions, as what chooses a character set or a database is."""
        self.commands: list[Command] = []
        """All that clients have asked for."""
        self._flows = threading.Event()
        self._flows.set()
        self._links: set[Stream] = set()
        self._threads = [threading.Thread(target=self._accept, name="protocol proxy")]

    def __enter__(self) -> ProtocolProxy:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flows.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for stream in list(self._links):
            stream.close()
        for thread in self._threads[1:]:
            thread.join()

    def hold(self) -> None:
        """Hold back all replies from now on."""
        self._flows.clear()

    def let_go(self) -> None:
        """Pass the held replies on."""
        self._flows.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = Stream(self._listener.accept()[0])
                self._links.add(client)
                thread = threading.Thread(target=self._serve, args=(client,), name="link of the protocol proxy")
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: Stream) -> None:
        backends: list[Backend] = []
        try:
            backends.append(Backend(self._target))
            response = self._shake_hands(client, backends[0].stream)
            for _ in range(self.sessions - 1):
                backends.append(Backend(self._target))
                self._log_in_again(backends[-1].stream, response)
            self._pass_on(client, backends)
        except (EOFError, OSError, ValueError):  # the last: of a socket that was closed
            pass
        finally:
            for backend in backends:
                backend.stream.close()
            client.close()
            self._links.discard(client)

    def _shake_hands(self, client: Stream, server: Stream) -> bytes:
        """Pass on the greeting, the client's response and what follows, up to the server's OK; return the response."""
        number, greeting = server.read()
        client.write(self._change(greeting), first=number)
        number, response = client.read()
        flags = int.from_bytes(response[:4], "little") & self.capabilities & 0xFFFFFFFF & ~CLIENT.SSL
        response = struct.pack("<I", flags) + response[4:]
        server.write(response, first=number)
        while True:
            for stream in select.select([server.sock, client.sock], [], [])[0]:
                is_server = stream is server.sock
                number, packet = (server if is_server else client).read()
                (client if is_server else server).write(packet, first=number)
                if is_server and packet[0] == 0xFF:
                    raise EOFError
                if is_server and packet[0] == 0:
                    return response

    def _log_in_again(self, server: Stream, response: bytes) -> None:
        """Open another session for the same user, which needs no password."""
        server.read()
        server.write(response, first=1)
        while (packet := server.read()[1])[0] != 0:
            if packet[0] == 0xFE:  # an authentication switch, which needs the password
                server.write(b"", first=3)

    def _change(self, greeting: bytes) -> bytes:
        end = greeting.index(b"\0")
        version, rest = greeting[1:end], bytearray(greeting[end:])
        low, high = slice(14, 16), slice(19, 21)
        capabilities = int.from_bytes(rest[low] + rest[high], "little") & self.capabilities & ~CLIENT.SSL
        rest[low], rest[high] = struct.pack("<H", capabilities & 0xFFFF), struct.pack("<H", capabilities >> 16)
        return greeting[:1] + (self.version or version) + bytes(rest)

    def _pass_on(self, client: Stream, backends: list[Backend]) -> None:
        turn = 0
        while True:
            while not client.has_packet():
                streams = [client, *(backend.stream for backend in backends)]
                ready = select.select([stream.sock for stream in streams], [], [])[0]
                if client.sock in ready:
                    break
                for stream in streams:
                    if stream.sock in ready:
                        number, packet = stream.read()  # an error packet before the end, or the end
                        client.write(packet, first=number)
            packet = client.read()[1]
            command = Command(packet[0], packet[1:], client.is_behind)
            self.commands.append(command)
            reply = self.answer(command)
            if reply is None:
                reply = self.alter(command, backends[turn].ask(command.code, command.text))
                for backend in backends if self.is_for_all(command) else []:
                    if backend is not backends[turn]:
                        backend.ask(command.code, command.text)
                if self.may_switch(command, reply):
                    turn = (turn + 1) % len(backends)
            self._flows.wait()
            client.write(*reply, first=1)


def status_of(ok: bytes) -> int:
    """The status in an OK packet."""
    at = _status_at(ok)
    return int.from_bytes(ok[at : at + 2], "little")


def in_transaction(reply: list[bytes]) -> bool:
    """Whether a transaction is open after it."""
    last = reply[-1] if reply else OK
    status = status_of(last) if last[0] == 0 else int.from_bytes(last[3:5], "little")
    return bool(status & SERVER_STATUS.SERVER_STATUS_IN_TRANS)


def without_tracking(reply: list[bytes]) -> list[bytes]:
    """The reply, without reports of changes to the session in its OK packets."""
    return [_clear(packet) if packet[0] == 0 and len(packet) >= 7 else packet for packet in reply]


def _clear(ok: bytes) -> bytes:
    at = _status_at(ok)
    status = int.from_bytes(ok[at : at + 2], "little") & ~STATE_CHANGED
    return ok[:at] + struct.pack("<H", status) + ok[at + 2 : at + 4]


def _status_at(ok: bytes) -> int:
    at = 1
    for _ in range(2):
        at += {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(ok[at], 1)
    return at

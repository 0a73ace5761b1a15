"""A session on a server: its socket, its age, how it is reset, and the replies that are pending from that."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import select
import selectors
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable

from pymysql.constants import COMMAND, SERVER_STATUS
from pymysql.err import raise_mysql_exception

from .reset import ROLLBACK

if TYPE_CHECKING:
    from .driver import PyMySQLConnection
    from .reset import Commands, Reset

#: How long the pool's own commands may take on an idle session, in seconds: taking longer costs a new one, no more.
PING_TIMEOUT = 1.0

# Lifetimes are shortened by up to this part, never lengthened, so that sessions opened together do not all expire
# together.
_JITTER = 0.1

_QUIT = struct.pack("<IB", 1, COMMAND.COM_QUIT)


class Session:
    """One session on a server. What is known of it is never believed of another, which may be on another server."""

    __slots__ = (
        "_ahead",
        "_close_socket",
        "_has_set_timeout",
        "_is_plain",
        "_look",
        "_rfile",
        "_timeout",
        "check_at",
        "connected",
        "expires_at",
        "idle_since",
        "is_in_use",
        "is_trusted",
        "mutable",
        "pending",
        "poll",
        "reset",
        "sock",
        "state",
    )

    def __init__(self, connection: PyMySQLConnection, lifetime: float) -> None:
        now = monotonic()
        #: Its socket; None where users patch `connect` away in tests of their own.
        self.sock: Any = connection._sock
        self._rfile: Any = connection._rfile
        #: Waits so many milliseconds for the server to say something, or to close: an idle session hears nothing.
        self.poll: Callable[[int], object] = bool if self.sock is None else _poll(self.sock)
        # The same for any thread, while another may be at the one above: a poll is for one thread at a time.
        self._look: Callable[[int], object] = bool if self.sock is None else _poll(self.sock)
        self._close_socket: Callable[[], object] = bool if self.sock is None else _closer(self.sock)
        #: When it is so old that it is replaced, since when it is idle, and when it is looked at before it is lent.
        self.expires_at = now + lifetime * (1 - _JITTER * os.urandom(1)[0] / 256)
        self.idle_since = now
        self.check_at = math.inf
        # Whether what the server says is there when a poll sees it; with TLS it may be only the beginning of it.
        self._is_plain = type(self.sock) is socket.socket
        # While pending replies are read: how long each may take, whether that was set on the socket, and how many bytes
        # of them are in the file's buffer at least.
        self._timeout = PING_TIMEOUT
        self._has_set_timeout = False
        self._ahead = 0
        #: Whether a command may still read or write here whose connection was returned, by another thread or a signal
        #: handler.
        self.is_in_use = False
        #: The commands whose replies are still to be read, before any reply to a borrower's.
        self.pending: Commands | None = None
        #: Whether a statement that reads is believed to leave nothing: the server, and a proxy in front of it, report
        #: what it changes all the same.
        self.is_trusted = False
        #: The attributes of a connection right after `connect()`, from which each of its handles starts; those of them
        #: that `connect()` has set; and those of these that are copied for each handle.
        self.state: dict[str, Any] = {}
        self.connected: dict[str, Any] = {}
        self.mutable: dict[str, Any] = {}
        #: How it is reset; None where the pool does not reset.
        self.reset: Reset | None = None

    # Reset

    def awaits_replies(self) -> bool:
        """Whether replies are pending that have yet to come. Any thread may ask."""
        if self.pending is None:
            return False
        try:
            return not self._look(0)
        except (RuntimeError, ValueError):
            return False  # another thread looks at the same time, or has closed it meanwhile

    def read_pending(self, timeout: float) -> int:
        """Read the replies to the pool's own commands, waiting for each at most `timeout` seconds.

        Returns the status in the last one.

        Raises OSError, or PyMySQL's error where one is an error: the session is not clean then, and is to be closed.
        """
        assert self.pending is not None
        self._timeout = timeout
        self._has_set_timeout = False
        self._ahead = status = 0
        before = self.sock.gettimeout()
        for number in range(self.pending.replies):
            try:
                status = self._read_reply()
            except OSError:
                if number > 0 and self.is_first_reset():
                    self.reset.server.count_half_answered()  # type: ignore[union-attr]
                raise
        if self._has_set_timeout:
            self.sock.settimeout(before)
        self.pending = None
        return status

    def is_first_reset(self) -> bool:
        """Whether its reset is the first one on its server, after which one has to look what that has not restored."""
        reset = self.reset
        return reset is not None and reset.server.settings is None and self.pending not in (None, ROLLBACK)

    def _read_reply(self) -> int:
        """Read one reply, with all its results, and return its status. PyMySQL's own way takes nearly twice as long."""
        status = SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        while status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
            packet = self._read_packet()
            if packet[0] == 0:
                at = 1 + _length(packet, 1)
                at += _length(packet, at)
                status = packet[at] | packet[at + 1] << 8
            else:  # columns, rows, and an EOF packet behind each
                self._read_to_eof()
                status = self._read_to_eof()
        return status

    def _read_to_eof(self) -> int:
        """Read up to an EOF packet, and return the status in it."""
        packet = self._read_packet()
        while packet[0] != 0xFE or len(packet) >= 9:
            packet = self._read_packet()
        return packet[3] | packet[4] << 8

    def _read_packet(self) -> bytes:
        """Read a packet that is no error."""
        header = self._read(4)
        packet = self._read(int.from_bytes(header[:3], "little"))
        if not packet:
            raise ConnectionError("the server has sent an empty packet")
        if packet[0] == 0xFF:
            raise_mysql_exception(packet)
        return packet

    def _read(self, size: int) -> bytes:
        """Read so many bytes.

        Replies mostly come whole. To wait for them by a poll, and not by the socket's timeout, saves two system calls
        in which that is set and set back: 72 us of the processor for an INSERT with its reset, or 63.
        """
        if self._is_plain and not self._has_set_timeout:
            if self._ahead == 0:
                if not self.poll(math.ceil(self._timeout * 1000)):
                    raise socket.timeout("timed out")
                self._ahead = len(self._rfile.peek(1))
            if self._ahead >= size:
                self._ahead -= size
                whole: bytes = self._rfile.read(size)
                return whole
        if not self._has_set_timeout:
            self.sock.settimeout(self._timeout)
            self._has_set_timeout = True
        self._ahead = 0  # this takes what is there of it
        data: bytes = self._rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the server has closed the connection")
        return data

    def has_unread(self) -> bool:
        """Whether the server has said more than was read: a poll does not see what is in the file's buffer."""
        if self.poll(0) or self._ahead:
            return True
        if not self._has_set_timeout:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return bool(self._rfile.peek(1))
        except OSError:  # of TLS, where nothing is there
            return False
        finally:
            self.sock.settimeout(before)

    # End

    def quit(self) -> None:
        """Close it, and tell the server."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.sendall(_QUIT)
        self.close()

    def abandon(self) -> None:
        """Close it without a word: it is lost, or in the middle of a reply that nobody is to read."""
        if self.sock is not None:
            # A thread that reads here now, contrary to all advice, holds a lock in the file that is closed next.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        # OpenSSL goes on with the number of a closed socket, which the next one may have got by then.
        if not self.is_in_use:
            self.close()

    def close(self) -> None:
        """Close the socket. In a forked child: without effect on the parent's session."""
        self.pending = None
        self._close_socket()

    def __del__(self) -> None:
        # Nobody has it any more. One call of C: no lock is taken, nothing can come between, and all that it needs is
        # here, also when the interpreter is finalized.
        self._close_socket()


def is_of_signal(error: BaseException, since: float, timeout: float) -> bool:
    """Whether `error` has come from a signal handler, such as an alarm's, in a wait that has lasted since `since`.

    Such handlers usually raise TimeoutError, as sockets do, but not before their `timeout` is over.
    """
    reason = error if isinstance(error, OSError) else error.__context__  # of PyMySQL's
    return isinstance(reason, TimeoutError) and reason.errno is None and monotonic() - since < timeout


def _length(packet: bytes, at: int) -> int:
    """How many bytes a length-encoded integer takes."""
    return {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(packet[at], 1)


def _closer(sock: Any) -> Callable[[], object]:
    """A call that closes `sock`: if it is Python's own in C, and without regard to the file that PyMySQL reads from."""
    return functools.partial(socket.SocketType.close, sock) if isinstance(sock, socket.SocketType) else sock.close


def _poll(sock: Any) -> Callable[[int], object]:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return poll.poll

    def look(milliseconds: int) -> object:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            return selector.select(milliseconds / 1000)

    return look

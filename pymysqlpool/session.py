"""A session on a server: its socket, its age, its reset, and the replies that are pending."""

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

#: How long a reply to the pool's own command on an idle session may take, in seconds. After that the session is
#: replaced, which costs a new connection and nothing more.
PING_TIMEOUT = 1.0

# The lifetime of each session is shortened by up to this fraction, and never lengthened, so that sessions that were
# opened together do not expire together.
_JITTER = 0.1

_QUIT = struct.pack("<IB", 1, COMMAND.COM_QUIT)


# The sockets of all open sessions, by id, with the files that PyMySQL reads from. The garbage collector finalizes
# objects in no particular order: a socket that is finalized while it is open raises a ResourceWarning, and a cursor
# that reads the rest of its rows then must not find the file closed. So both stay reachable until the session is
# closed.
_open_sockets: dict[int, tuple[Any, Any]] = {}


class Session:
    """One session on a server. What is known about one is not assumed of another, which may be on another server.

    `connection` has been opened; `lifetime` is in seconds, and may be infinite.
    """

    __slots__ = (
        "_ahead",
        "_close_socket",
        "_has_set_timeout",
        "_is_plain",
        "_poll_by_others",
        "_release_socket",
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
        #: Its socket; None if a user's unit test has patched out `connect`.
        self.sock: Any = connection._sock
        self._rfile: Any = connection._rfile
        #: Waits up to the given number of milliseconds until there is something to read, or the server has closed the
        #: session. An idle session has nothing to read except pending replies.
        self.poll: Callable[[int], object] = bool if self.sock is None else _poll(self.sock)
        # The same for threads that have not borrowed the session: only one thread at a time can use a poll object.
        self._poll_by_others: Callable[[int], object] = bool if self.sock is None else _poll(self.sock)
        self._close_socket: Callable[[], object] = bool if self.sock is None else _closer(self.sock)
        self._release_socket = functools.partial(_open_sockets.pop, id(self.sock), None)
        if self.sock is not None:
            _open_sockets[id(self.sock)] = self.sock, self._rfile
        #: Times by the monotonic clock: when the session expires, when it became idle, and from when on it is checked
        #: before it is lent.
        self.expires_at = now + lifetime * (1 - _JITTER * os.urandom(1)[0] / 256)
        self.idle_since = now
        self.check_at = math.inf
        # Whether data can be read as soon as the poll reports it. With TLS, a part of the record may still be missing.
        self._is_plain = type(self.sock) is socket.socket
        # For reading pending replies: the timeout for each of them in seconds, whether it was set on the socket, and
        # at least how many bytes are in the buffer of `_rfile`.
        self._timeout = PING_TIMEOUT
        self._has_set_timeout = False
        self._ahead = 0
        #: Whether a borrower's command may still be using the socket, because its connection was returned in the
        #: meantime by another thread or a signal handler.
        self.is_in_use = False
        #: The pool's commands whose replies have not been read. They come before the replies to a borrower's commands.
        self.pending: Commands | None = None
        #: Whether a statement that only reads, by its text, is assumed to leave nothing behind. That requires the
        #: server, and any proxy in front of it, to report it if the statement has changed the session after all.
        self.is_trusted = False
        #: The attributes of a connection right after `connect()`, with which each handle starts; those of them that
        #: `connect()` has set; and those of the latter that are mutable, and copied for each handle.
        self.state: dict[str, Any] = {}
        self.connected: dict[str, Any] = {}
        self.mutable: dict[str, Any] = {}
        #: Its reset; None if the pool does not reset sessions.
        self.reset: Reset | None = None

    # Reset

    def awaits_replies(self) -> bool:
        """Whether the replies that are pending have not arrived yet. Any thread may call this."""
        try:
            return not self._poll_by_others(0)
        except (RuntimeError, ValueError):
            return False  # another thread polls at the same time, or has closed the session

    def read_pending(self, timeout: float) -> int:
        """Read the pending replies to the pool's own commands, and return the status flags in the last one.

        `timeout` is how long to wait for each reply, in seconds.

        Raises OSError if a reply cannot be read, and PyMySQL's error if one is an error. Then the session is not clean,
        and has to be closed.
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
                    self.reset.server.count_partial_reply()  # type: ignore[union-attr]
                raise
        if self._has_set_timeout:
            self.sock.settimeout(before)
        self.pending = None
        return status

    def is_first_reset(self) -> bool:
        """Whether the pending commands are the first reset on the server, after which its effect has to be checked."""
        reset = self.reset
        return reset is not None and reset.server.settings is None and self.pending not in (None, ROLLBACK)

    def _read_reply(self) -> int:
        """Read one reply, with all of its results, and return the status flags in it.

        PyMySQL's own functions take nearly twice as long.
        https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query_response.html
        """
        status = SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS
        while status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS:
            packet = self._read_packet()
            if packet[0] == 0:  # an OK packet: affected rows, last insert id, status flags
                at = 1 + _length(packet, 1)
                at += _length(packet, at)
                status = packet[at] | packet[at + 1] << 8
            else:  # the number of columns; then the columns and the rows, each followed by an EOF packet
                self._read_to_eof()
                status = self._read_to_eof()
        return status

    def _read_to_eof(self) -> int:
        """Read up to an EOF packet, and return the status flags in it.

        It begins with 0xFE, as does a row with a value of 16 MB or more, and is shorter than 9 bytes.
        https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_eof_packet.html
        """
        packet = self._read_packet()
        while packet[0] != 0xFE or len(packet) >= 9:
            packet = self._read_packet()
        return packet[3] | packet[4] << 8

    def _read_packet(self) -> bytes:
        """Read one packet; raise PyMySQL's error if it is an error packet, which begins with 0xFF.

        The header has three bytes for the length and one for the sequence number.
        https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html
        """
        header = self._read(4)
        packet = self._read(int.from_bytes(header[:3], "little"))
        if not packet:
            raise ConnectionError("the server has sent an empty packet")
        if packet[0] == 0xFF:
            raise_mysql_exception(packet)
        return packet

    def _read(self, size: int) -> bytes:
        """Read exactly `size` bytes.

        Replies usually arrive complete. Waiting for them with a poll saves the two system calls that set the socket's
        timeout and restore it: an INSERT with its reset takes 63 us of processor time instead of 72.
        """
        if self._is_plain and not self._has_set_timeout:
            if self._ahead == 0:
                if not self.poll(math.ceil(self._timeout * 1000)):
                    raise socket.timeout("timed out")
                self._ahead = len(self._rfile.peek(1))
            if self._ahead >= size:
                self._ahead -= size
                buffered: bytes = self._rfile.read(size)
                return buffered
        if not self._has_set_timeout:
            self.sock.settimeout(self._timeout)
            self._has_set_timeout = True
        self._ahead = 0  # this read uses up the buffer
        data: bytes = self._rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the server has closed the connection")
        return data

    def has_unread(self) -> bool:
        """Whether there is more to read. The poll does not see what is in the buffer of `_rfile`."""
        if self.poll(0) or self._ahead:
            return True
        if not self._has_set_timeout:
            return False
        before = self.sock.gettimeout()
        self.sock.settimeout(0)
        try:
            return bool(self._rfile.peek(1))
        except OSError:  # TLS raises it if there is nothing
            return False
        finally:
            self.sock.settimeout(before)

    # End

    def quit(self) -> None:
        """Send COM_QUIT and close the socket."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.sendall(_QUIT)
        self.close()

    def abandon(self) -> None:
        """Close the socket without COM_QUIT: the session is lost, or in the middle of a reply."""
        # Ends the read of another thread that is still using the connection (which it should not do): such a read holds
        # a lock of the file that is closed next.
        self.shut_down()
        # OpenSSL goes on using the file descriptor of a closed socket, which may belong to a new socket by then.
        if not self.is_in_use:
            self.close()

    def shut_down(self) -> None:
        """End the session, and any read from it, but leave the socket open. Any thread may call this."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket only. In a forked child this does not affect the parent's session."""
        self.pending = None
        self._close_socket()
        self._release_socket()

    def __del__(self) -> None:
        # Nothing refers to the session any more. These are calls into C: they take no lock, and they use no module
        # global, so that they also work while the interpreter is finalized.
        self._close_socket()
        self._release_socket()


def is_of_signal(error: BaseException, since: float, timeout: float) -> bool:
    """Whether `error` was raised by a signal handler, such as one for SIGALRM, and not by the socket.

    `since` is when the wait began, by the monotonic clock, and `timeout` the socket's timeout in seconds. Both usually
    raise TimeoutError, but the socket only when its timeout has passed.
    """
    reason = error if isinstance(error, OSError) else error.__context__  # PyMySQL's error has it as its context
    return isinstance(reason, TimeoutError) and reason.errno is None and monotonic() - since < timeout


def _length(packet: bytes, at: int) -> int:
    """Return how many bytes the length-encoded integer at index `at` takes.

    https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_dt_integers.html
    """
    return {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(packet[at], 1)


def _closer(sock: Any) -> Callable[[], object]:
    """Return a function that closes `sock` at once.

    For Python's own sockets it is the method of their C base class: `socket.socket.close` waits until the file that
    PyMySQL reads from is closed.
    """
    return functools.partial(socket.SocketType.close, sock) if isinstance(sock, socket.SocketType) else sock.close


def _poll(sock: Any) -> Callable[[int], object]:
    """Return a function that waits up to the given number of milliseconds until `sock` is readable."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return poll.poll

    def poll_by_selector(milliseconds: int) -> object:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            return selector.select(milliseconds / 1000)

    return poll_by_selector

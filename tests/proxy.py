"""A TCP proxy in this process that can delay, drop or hold back data, send garbage, or cut connections."""

from __future__ import annotations

import asyncio
import math
import selectors
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType


class Proxy:
    """Stand between clients and the server at `host:port`; one thread runs it, from `with` to the end of the block.

    The public attributes may be set at any time and apply from then on.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.host = "127.0.0.1"
        self.port = 0
        """Where it listens, known in the block."""
        self.delay = 0.0
        """Seconds that bytes are on their way, in each direction, counted for each chunk from its own arrival."""
        self.deaf = False
        """Swallow what comes, both ways, and keep the connections open."""
        self.refuse = False
        """Accept new connections and close them at once."""
        self.opened = 0
        """How many connections there have been, refused ones not counted."""
        # Client to server; changed in the loop's thread only.
        self._links: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        # select() keeps time in microseconds, where epoll would round a delay up to the next millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """The number of connections that go through it now."""
        return len(self._links)

    def cut(self) -> None:
        """Close all connections now, in both directions, and drop data that is on its way."""
        self._run(self._drop())

    def reset(self) -> None:
        """Cut with an RST instead of a FIN."""
        self._run(self._drop(struct.pack("ii", 1, 0)))

    def garbage(self, data: bytes) -> None:
        """Send these bytes to all clients, as if the server had."""
        self._run(self._inject(data))

    def _run(self, job: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(job, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        # Not once: a client that was accepted a moment ago may not be a link yet.
        while len(asyncio.all_tasks()) > 1:
            await self._drop()

    async def _drop(self, linger: bytes | None = None) -> None:
        for writer in [*self._links, *self._links.values()]:
            if linger is not None:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        # The loop closes the sockets in its next round.
        await asyncio.sleep(0)

    async def _inject(self, data: bytes) -> None:
        for writer in self._links:
            writer.write(data)

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self.refuse:
            client.transport.abort()
            await asyncio.sleep(0)  # the loop closes the socket in its next round
            return
        try:
            server_reader, server = await asyncio.open_connection(*self._target)
        except OSError:
            client.close()
            return
        self.opened += 1
        await self._link(client_reader, client, server_reader, server)

    async def _link(
        self,
        client_reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        """Pass data between the two until the end."""
        self._links[client] = server
        await asyncio.gather(self._pump(client_reader, server), self._pump(server_reader, client))
        for writer in client, server:
            with suppress(OSError):
                await writer.wait_closed()
        del self._links[client]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on the data, each chunk when it is due, and the end of the stream."""
        due = 0.0
        with suppress(OSError):  # a connection reset is treated like any other end
            while data := await reader.read(65536):
                if not self.deaf:
                    due = self._due_after(due)
                    self._loop.call_at(due, writer.write, data)
        self._loop.call_at(self._due_after(due), writer.close)

    def _due_after(self, last: float) -> float:
        """When the data that has come now is due: strictly after the last, as the loop does not order equal times."""
        return max(self._loop.time() + self.delay, math.nextafter(last, math.inf))


class Dam(Proxy):
    """A network that can hold back what the server sends, on the connections that exist at that time."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.asked = 0
        """How many bytes have come from clients."""
        self.held = 0
        """How many bytes of the server's have been held back since the last `hold()`."""
        self._behind: set[asyncio.StreamWriter] = set()
        self._were_behind: set[asyncio.StreamWriter] = set()

    def hold(self) -> None:
        """Hold back everything that comes from now on, including the end of the stream."""
        self._run(self._hold())

    def let_go(self) -> None:
        """Pass on what was held back, and what follows."""
        self._run(self._detach_session())

    async def _listen(self) -> None:
        self._is_open = asyncio.Event()  # here, as before Python 3.10 it belongs to the loop that it is made in
        await super()._listen()

    @property
    def is_rid_of_held(self) -> bool:
        """Whether the connections that existed at the last `hold()` are closed."""
        return not self._were_behind & set(self._links)

    async def _hold(self) -> None:
        self._is_open.clear()
        self._behind = self._were_behind = set(self._links)
        self.held = 0

    async def _detach_session(self) -> None:
        self._behind = set()
        self._is_open.set()

    async def _end(self) -> None:
        await self._detach_session()
        await super()._end()

    async def _pump(self, reader: Any, writer: asyncio.StreamWriter) -> None:
        await super()._pump(_Reader(self, reader, writer), writer)  # type: ignore[arg-type]


class _Reader:
    """One direction of a link, dammed where it leads to the client."""

    def __init__(self, dam: Dam, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._dam = dam
        self._reader = reader
        self._writer = writer

    async def read(self, size: int) -> bytes:
        """Read, and wait while the dam is closed."""
        data = await self._reader.read(size)
        if self._writer not in self._dam._links:
            self._dam.asked += len(data)
        elif self._writer in self._dam._behind:
            self._dam.held += len(data)
            await self._dam._is_open.wait()
        return data

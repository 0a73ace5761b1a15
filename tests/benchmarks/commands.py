"""The commands on the wire for {borrow, SELECT, return}."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from common import Figure, Measure, Setting
from peers import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peers import Pool

CYCLES = 20


class Counter:
    """A proxy that counts the commands."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.port = 0
        self.commands = 0

    @contextmanager
    def running(self) -> Iterator[Counter]:
        """Pass on the data, in a thread of its own."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1"), loop).result()
        self.port = listener.sockets[0].getsockname()[1]
        yield self
        loop.call_soon_threadsafe(loop.stop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._count(reader, to_server), self._pass(from_server, writer))

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A packet is 3 bytes of length, its number, and its body. A command's first packet, and no other, has number 0.
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(head[:3], "little"))
                self.commands += head[3] == 0
                writer.write(head + body)
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()


def measure(peer: type[Pool], setting: Setting) -> dict[str, float]:
    """Commands per cycle, from one SELECT to the next: when a reply is here, all commands before it have passed."""
    figures = {}
    with Counter(setting.near["host"], setting.near["port"]).running() as counter:
        for key, autocommit in ("on", True), ("off", False):
            with suppress(Unsupported):
                pool = peer(1, **{**setting.near, "port": counter.port, "autocommit": autocommit})
                counts = []
                for _ in range(CYCLES + 1):
                    connection = pool.borrow()
                    rows = pool.select(connection)
                    assert [tuple(row) for row in rows] == [(1,)], rows
                    counts.append(counter.commands)
                    pool.give_back(connection)
                figures[key] = (counts[-1] - counts[0]) / CYCLES
    return figures


MEASURE = Measure(
    measure,
    [
        Figure("on", "commands for {borrow, SELECT, return}, autocommit on", at_most=1),
        Figure("off", "the same, autocommit off", at_most=2),
    ],
)

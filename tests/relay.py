"""A way to a server on which connections die without a word, as behind a router that has forgotten them.

Why: neither side is told, so only a limit of time ends a wait for an answer. What a connection that is closed
shows, or a server that is stopped, is something else.
"""

import asyncio
import contextlib
import math
import threading
from asyncio import StreamReader, StreamWriter

from tests.harness import free_port

CHUNK = 1 << 16


class Way:
    """One connection. `left` are the bytes that still come back on it."""

    def __init__(self) -> None:
        self.left = math.inf


class Relay:
    """Leads from `port` to the server's.

    A request with `loses` in it is the last one on its connection, of whose answer `passes` bytes come.
    """

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self.loses = b""
        self.passes = 0
        self.lost = 0
        self._to = to
        self._open: set[StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        server = asyncio.start_server(self._led, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(server, self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for each in self._open:
            each.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    async def _led(self, reader: StreamReader, writer: StreamWriter) -> None:
        way = Way()
        back, forth = await asyncio.open_connection("127.0.0.1", self._to)
        self._open |= {writer, forth}
        answers = asyncio.create_task(self._answers(back, writer, way))
        with contextlib.suppress(OSError):
            await self._requests(reader, forth, way)
        forth.close()
        await answers
        writer.close()
        self._open -= {writer, forth}

    async def _requests(self, reader: StreamReader, forth: StreamWriter, way: Way) -> None:
        while chunk := await reader.read(CHUNK):
            if self.loses and self.loses in chunk:
                way.left = self.passes
                self.lost += 1
            if way.left:
                forth.write(chunk)
                await forth.drain()

    async def _answers(self, back: StreamReader, writer: StreamWriter, way: Way) -> None:
        with contextlib.suppress(OSError):
            while chunk := await back.read(CHUNK):
                part = chunk[: int(min(way.left, CHUNK))]
                way.left -= len(part)
                writer.write(part)
                await writer.drain()
        # The end of a connection that has died is not told either.
        if way.left:
            writer.close()

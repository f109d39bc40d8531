"""A connection of the server, with an end to what it waits for.

Why: whoever sends a request byte by byte, or asks for a stream and reads nothing of it, would keep a
connection and a place among the followers for ever. A few hundred of those, a broken proxy is enough, and
nobody else is served.

A connection that is kept open between two requests has uvicorn's own end.

Known gap: a client that reads slowly, but reads, is served as long as it likes.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_WITHIN = 30.0
"""Seconds from a connection, or from the first byte of a request, to its last."""
READ_WITHIN = 60.0
"""Seconds in which something of what was sent has to be read."""


class Connection(HttpToolsProtocol):
    """uvicorn makes one for each."""

    _request: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._request = self.loop.call_later(REQUEST_WITHIN, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._request)
        _cancel(self._reading)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        _cancel(self._request)
        self._request = self.loop.call_later(REQUEST_WITHIN, self.transport.close)
        super().on_message_begin()

    def on_message_complete(self) -> None:
        _cancel(self._request)
        super().on_message_complete()

    def pause_writing(self) -> None:
        # Not close, which would wait for what is not read.
        self._reading = self.loop.call_later(READ_WITHIN, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        _cancel(self._reading)
        super().resume_writing()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

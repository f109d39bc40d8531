"""The daemon's socket for a server: one connection, many requests at once, no thread.

Why: hundreds of followers wait on the daemon at the same time. One connection and a number per request
carries them all; when it breaks, all who wait are told at once, and the next request connects anew.

Source of the readiness rules: ZeroMQ's FD is edge-triggered, so whatever is there is taken in after every
event and after every send. It connects in the background: a daemon that dies between our look at its socket
and that is a connection that never was. It would try again for ever, and say so to a monitor that perhaps
nobody reads any more, until its thread waits for that one and serves no other socket of the process. So it is
told to wait for days before it does, and we try again. (Told not to try at all, it would throw away replies
that came right before the end of a connection.)

Known gap: a reply that comes after its time-out is thrown away. Without a descriptor left ZeroMQ may end the
process; so `serve` raises that limit as far as it may.
"""

import asyncio
import logging
import socket
from typing import TypeVar

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from dpipectl import trust
from dpipectl.client import CHANGES, MARGIN, TIMEOUT, Failed, WentAway
from dpiped import messages
from dpiped.errors import InvalidInput, Unreachable
from dpiped.messages import AnyReply, AnyRequest

_R = TypeVar("_R")
log = logging.getLogger("dpipectl.http")
AGAIN = 0.1
"""Between two attempts to connect to a daemon that has not accepted all who came before (seconds)."""
EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
"""Of a connection: it stands, it could not be made, it broke."""
NO_RETRY = 1_000_000_000
"""Milliseconds; at most as many are added by chance."""
PENDING_LIMIT = 1024
"""Requests that wait for the daemon at once; it takes four times as many, from all its clients."""
LONG_LIMIT = PENDING_LIMIT * 7 // 8
"""Those of them that only wait for something to happen: a stop or a start still finds its place."""


WENT_AWAY = "dpiped went away before it answered"


class NeverReached(WentAway):
    """There was no connection yet, or none any more: nothing was asked."""


class Daemon:
    """`ask` raises Failed for an error reply, Unreachable for none, InvalidInput for a request too large."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._decoder = messages.reply_decoder()
        self._number = 0
        self._pending: dict[bytes, asyncio.Future[bytes]] = {}
        self._connected = False
        self._long = 0
        self._distrusted = ""

    async def ask(self, request: AnyRequest, kind: type[_R], wait: float = 0.0) -> _R:
        """The reply, which is of that kind. `wait` is how long the daemon itself may take (seconds)."""
        long = wait > 0 and not isinstance(request, CHANGES)
        if long and self._long >= LONG_LIMIT:
            raise _busy()
        self._long += long
        try:
            reply = self._decoded(await self._twice(request, wait + MARGIN if wait else TIMEOUT))
        finally:
            self._long -= long
        assert isinstance(reply, kind), f"{type(request).__name__} was answered with {type(reply).__name__}"
        return reply

    @property
    def waiting(self) -> int:
        """Requests that are not answered yet."""
        return len(self._pending)

    def close(self) -> None:
        """Whoever waits is told so."""
        self._drop(Unreachable("the server is ending"))

    def __del__(self) -> None:
        """Where nobody has closed it: the monitor might be gone before the connection is, see `_close`."""
        if self._socket is not None:
            self._close()

    def _drop(self, error: Unreachable) -> None:
        if self._socket is None or self._monitor is None:
            return
        loop = asyncio.get_running_loop()
        for each in (self._socket, self._monitor):
            loop.remove_reader(_descriptor(each))
        self._close()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(error)

    def _close(self) -> None:
        assert self._socket is not None
        # In this order: it would wait for somebody to read what it tells a monitor that is gone.
        self._socket.disable_monitor()
        self._socket.close(linger=0)
        self._socket = self._monitor = None

    async def _twice(self, request: AnyRequest, timeout: float) -> bytes:
        """A question that went down with a daemon which reloads is asked once more."""
        try:
            return await self._reach(request, timeout)
        except WentAway:
            if isinstance(request, CHANGES):
                raise
        # The next daemon is there already, or its socket waits for it.
        return await self._reach(request, timeout)

    async def _reach(self, request: AnyRequest, timeout: float) -> bytes:
        """Asks as soon as somebody accepts the connection. Raises Unreachable if nobody listens."""
        clock = asyncio.get_running_loop().time
        until, left = clock() + timeout, timeout
        while left > 0:
            try:
                return await self._exchange(request, left)
            except NeverReached:
                await asyncio.sleep(AGAIN)
            left = until - clock()
        raise Unreachable("dpiped does not take connections any more")

    async def _exchange(self, request: AnyRequest, timeout: float) -> bytes:
        body = messages.encode(request)
        if len(body) > messages.REQUEST_BYTES:
            raise InvalidInput("the request is too large")
        if len(self._pending) >= PENDING_LIMIT:
            raise _busy()
        connection = self._connection()
        self._number += 1
        number = self._number.to_bytes(8, "big")
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            connection.send_multipart((number, body), zmq.NOBLOCK)
            self._take_in()
            async with asyncio.timeout(timeout):
                return await future
        except zmq.Again as error:
            # Broken just now, it takes nothing either; what is not taken is not asked.
            future.cancel()
            self._take_in()
            self._look_at_monitor()
            if self._socket is not connection:
                raise NeverReached("dpiped went away before it was asked") from error
            raise Unreachable("dpiped does not take requests any more") from error
        except TimeoutError as error:
            # Whether it stands may be known and not be read yet; what others asked must not be asked twice.
            self._look_at_monitor()
            if self._socket is connection and not self._connected:
                # As without a descriptor left to connect with, of which ZeroMQ says nothing.
                self._drop(WentAway(WENT_AWAY))
            later = "; it may still do what it was asked" if isinstance(request, CHANGES) else ""
            raise Unreachable(f"dpiped does not answer{later}") from error
        finally:
            self._pending.pop(number, None)

    def _connection(self) -> "zmq.Socket[bytes]":
        """The one that is there, unless it belongs to another event loop, which then has ended."""
        if self._socket is not None and self._loop is not asyncio.get_running_loop():
            self._pending = {}
            self._close()
        # What is sent over one that has broken is lost; that it has need not have been told yet.
        self._look_at_monitor()
        if self._socket is not None:
            return self._socket
        try:
            return self._connect()
        except zmq.ZMQError as error:
            raise Unreachable(f"no connection to dpiped can be made: {error}") from error

    def _probe(self) -> None:
        """Raises Unreachable unless somebody listens who may be trusted."""
        try:
            trust.check(self._path)
        except Unreachable as error:
            # Where the socket is, is no business of who asks over HTTP. Said once: a page asks all the time.
            if str(error) != self._distrusted:
                log.warning("%s", error)
            self._distrusted = str(error)
            raise Unreachable("dpiped's socket may be another user's; the server's log says why") from error
        self._distrusted = ""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                probe.connect(self._path)
        except BlockingIOError:
            return  # Somebody listens, and has not accepted all who came before.
        except OSError as error:
            raise Unreachable("dpiped can't be reached") from error

    def _connect(self) -> "zmq.Socket[bytes]":
        """ZeroMQ would wait for a socket that is not there, so that is looked at first."""
        self._probe()
        # The process's own context: one that is thrown away waits for its sockets.
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        connection = context.socket(zmq.DEALER)
        connection.setsockopt(zmq.LINGER, 0)
        connection.setsockopt(zmq.RECONNECT_IVL, NO_RETRY)
        try:
            monitor = connection.get_monitor_socket(EVENTS)
            connection.connect(f"ipc://{self._path}")
        except zmq.ZMQError:
            connection.close(linger=0)
            raise
        self._connected = False
        loop = self._loop = asyncio.get_running_loop()
        loop.add_reader(_descriptor(connection), self._take_in)
        loop.add_reader(_descriptor(monitor), self._look_at_monitor)
        self._socket, self._monitor = connection, monitor
        # Only a reader that has found nothing is signalled.
        self._look_at_monitor()
        if self._socket is None:
            raise self._broken()
        return connection

    def _take_in(self) -> None:
        while self._socket is not None:
            try:
                number, body = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            future = self._pending.get(number)
            if future is not None and not future.done():
                future.set_result(body)

    def _look_at_monitor(self) -> None:
        while self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_CONNECTED:
                self._connected = True
                continue
            self._take_in()
            self._drop(self._broken())

    def _broken(self) -> WentAway:
        """What is to be said of the connection that is no more."""
        if self._connected:
            return WentAway(WENT_AWAY)
        return NeverReached("dpiped can't be reached")

    def _decoded(self, body: bytes) -> AnyReply:
        try:
            reply = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise Unreachable("dpiped answers in another protocol; `dpipectl reload` it") from error
        if isinstance(reply, messages.Error):
            raise Failed(reply)
        return reply


def _busy() -> Failed:
    return Failed(messages.Error("busy", "too many requests are waiting; try again"))


def _descriptor(connection: "zmq.Socket[bytes]") -> int:
    found = connection.getsockopt(zmq.FD)
    assert isinstance(found, int)
    return found

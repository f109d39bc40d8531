"""The socket: a ZeroMQ ROUTER on a Unix socket, one task per request, errors as replies.

Why: a malformed, oversized or hostile message must cost its sender an error and nobody else anything.
So decoding happens in one place, into types, before any of our code runs; a request that waits does
not block the next; and the number of waiting requests is bounded.

A message is two frames after the sender's identity: a request number of at most 16 bytes, given back
with the reply, and the MessagePack body.

Known gap: a peer that vanished can't be seen; what it has asked for is waited for to its end. Each socket
file that was deleted and put back costs a descriptor until the daemon's end.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine

import msgspec
import zmq
import zmq.asyncio

from dpiped import messages, peers
from dpiped.errors import DpipedError
from dpiped.listening import Listening
from dpiped.messages import AnyReply, AnyRequest
from dpiped.outbox import Outbox

PENDING_LIMIT = 4096
CROWDED = 3072
"""From so many waiting requests on, the oldest long polls are answered early, with what is."""
CLIENT_LIMIT = 1024
"""Of one client."""
TURN_AFTER = 64
"""Messages that are taken in before those who are to be answered have their turn."""
REQUEST_NUMBER_LIMIT = 16
LINGER = 300
"""Milliseconds."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the socket file."""

log = logging.getLogger("dpiped.server")


class Server:
    """Serves `answer` on `listening`. `bind`, then `serve` until cancelled, then `close`."""

    def __init__(
        self,
        listening: Listening,
        answer: Callable[[AnyRequest], Awaitable[AnyReply]],
        relieve: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`relieve` has so many of the oldest long polls answered now."""
        self.listening = listening
        self._answer = answer
        self._relieve = relieve
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._decoder = messages.request_decoder()
        self._outbox = Outbox(self._socket)
        self._pending: set[asyncio.Task[None]] = set()
        self._of_client: Counter[bytes] = Counter()
        self._mirror: zmq.asyncio.Socket | None = None
        self._asked = 0

    def bind(self) -> None:
        """Raises SettingsError if the directory is not safe or the socket can't be bound."""
        self.listening.open()
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, messages.REQUEST_BYTES)
        peers.only_for(self._socket, self.listening.group)
        self._listen()

    def _listen(self) -> None:
        """ZeroMQ neither makes nor removes the file of a socket that it is given."""
        self._socket.setsockopt(zmq.USE_FD, self.listening.duplicate())
        self._socket.bind(self._address)

    @property
    def _address(self) -> str:
        return f"ipc://{self.listening.path}"

    async def serve(self) -> None:
        taken = 0
        while True:
            frames = await self._socket.recv_multipart()
            taken += 1
            if len(self._pending) >= CROWDED:
                # A client that has vanished can't be told from one that waits; all can ask again.
                self._relieve(len(self._pending) - CROWDED + 1)
            if len(self._pending) >= CROWDED or taken % TURN_AFTER == 0:
                await asyncio.sleep(0)
            refused = len(self._pending) >= PENDING_LIMIT or self._of_client[frames[0]] >= CLIENT_LIMIT
            self._take(frames[0], self._refuse(frames) if refused else self._handle(frames))

    async def stay_reachable(self, tell: Callable[[str], Awaitable[None]]) -> None:
        """Listens anew whenever the socket file is gone. Those who are connected notice nothing."""
        failed = ""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if not self.listening.lost():
                continue
            try:
                self.listening.renew()
                # Not instead of the listener before: its end would be that of its connections.
                self._listen()
            except (DpipedError, OSError, zmq.ZMQError) as error:
                self.listening.forget()
                text = f"the socket file is gone and can't be made again: {error}"
                if text != failed:
                    await tell(text)
                failed = text
            else:
                failed = ""
                await tell("the socket file was deleted or replaced; dpiped listens at its path anew")

    async def answers(self, within: float) -> bool:
        """Does a request that takes a client's way get a reply?"""
        if self._mirror is None:
            self._mirror = self._context.socket(zmq.DEALER)
            self._mirror.setsockopt(zmq.LINGER, 0)
            self._mirror.connect(self._address)
        self._asked += 1
        number = self._asked.to_bytes(8, "big")
        try:
            async with asyncio.timeout(within):
                await self._mirror.send_multipart([number, messages.encode(messages.Hello())])
                while (await self._mirror.recv_multipart())[0] != number:
                    pass
        except (TimeoutError, zmq.ZMQError):
            self._mirror.close()
            self._mirror = None
            return False
        return True

    async def close(self, keep: bool = False) -> None:
        """`keep`: the listening socket is handed on."""
        for task in self._pending:
            task.cancel()
        if self._mirror is not None:
            self._mirror.close()
        # Replies on their way get a moment to leave.
        self._socket.close(linger=LINGER)
        self._context.term()
        if not keep:
            self.listening.close()

    def _take(self, client: bytes, work: Coroutine[None, None, None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._pending.discard(task)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

        task = asyncio.create_task(work)
        self._pending.add(task)
        self._of_client[client] += 1
        task.add_done_callback(done)

    async def _refuse(self, frames: list[bytes]) -> None:
        await self._reply(frames, messages.Error("busy", "too many requests are waiting; try again"))

    async def _handle(self, frames: list[bytes]) -> None:
        try:
            reply = await self._reply_to(frames)
        except Exception:  # the border: one request's fault must not end the daemon
            log.exception("a request failed")
            reply = messages.Error("internal", "the daemon failed on this request; its log says where")
        await self._reply(frames, reply)

    async def _reply_to(self, frames: list[bytes]) -> AnyReply:
        if len(frames) != 3 or len(frames[1]) > REQUEST_NUMBER_LIMIT:
            return messages.Error("bad_request", "a message is a request number and a body, two frames")
        try:
            request = self._decoder.decode(frames[2])
        except msgspec.ValidationError as error:
            field = _field(str(error))
            return messages.Error("invalid", _said(str(error), field), field=field)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return messages.Error("bad_request", f"not a MessagePack request: {error}")
        return await self._answer(request)

    async def _reply(self, frames: list[bytes], reply: AnyReply) -> None:
        number = frames[1][:REQUEST_NUMBER_LIMIT] if len(frames) > 1 else b""
        await self._outbox.send(frames[0], number, messages.encode(reply))


def _said(text: str, field: str | None) -> str:
    """``Expected `int` >= 1 - at `$.num_gpus` `` → ``num_gpus: expected `int` >= 1``."""
    what = text.partition(" - at `")[0]
    return f"{field}: {what[:1].lower()}{what[1:]}" if field else what


def _field(text: str) -> str | None:
    """The field that msgspec's text names: ``missing required field `x` ``, ``... - at `$.env[...]` ``."""
    named = text.partition("field `")[2].partition("`")[0]
    path = text.rpartition("`$")[2].rstrip("`").lstrip(".").removesuffix("[...]") if "`$" in text else ""
    return named or path or None

"""Replies on their way: to those who take them, without keeping many for those who don't.

Why: a client that asks for megabytes of a log again and again and reads nothing would have the daemon keep
them all; and a reply that ZeroMQ drops because its queue is full leaves a client that reads waiting for it.
So the queue of each client is short, a full one is waited for without keeping anybody else, and what waits is
bounded in bytes: beyond that, a client gets the word that it is too slow in the place of its reply.

Sources: zmq_setsockopt(3) for ZMQ_SNDHWM and ZMQ_ROUTER_MANDATORY (a full queue is told, nothing is dropped).

Known gap: a reply that is not taken within TAKEN_WITHIN is dropped.
"""

import asyncio
import logging
from collections import Counter

import zmq
import zmq.asyncio

from dpiped import messages

QUEUED = 32
"""Replies that ZeroMQ keeps for one client, besides what the kernel does."""
HELD_BYTES = 8 << 20
"""Bytes that wait here for one client's queue."""
TAKEN_WITHIN = 10.0
FIRST_TICK = 0.005
LAST_TICK = 0.25

log = logging.getLogger("dpiped.server")
TOO_SLOW = messages.Error("busy", "the replies before this one have not been taken yet; try again")


class Outbox:
    """Sends by a ROUTER socket, which is to be bound after this was made."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._held: Counter[bytes] = Counter()
        socket.setsockopt(zmq.SNDHWM, QUEUED)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    async def send(self, client: bytes, number: bytes, body: bytes) -> None:
        """To a client that is still there, once it takes it."""
        if await self._sent(client, number, body):
            return
        if self._held[client] + len(body) > HELD_BYTES:
            body = messages.encode(TOO_SLOW)
        self._held[client] += len(body)
        try:
            await self._keep_trying(client, number, body)
        finally:
            self._held[client] -= len(body)
            if not self._held[client]:
                del self._held[client]

    async def _keep_trying(self, client: bytes, number: bytes, body: bytes) -> None:
        now = asyncio.get_running_loop().time
        until, tick = now() + TAKEN_WITHIN, FIRST_TICK
        while now() < until:
            await asyncio.sleep(tick)
            tick = min(2 * tick, LAST_TICK)
            if await self._sent(client, number, body):
                return
        log.debug("a reply was not taken within %g s", TAKEN_WITHIN)

    async def _sent(self, client: bytes, number: bytes, body: bytes) -> bool:
        """False while the client's queue is full."""
        try:
            await self._socket.send_multipart([client, number, body], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            log.debug("a reply could not be sent: %s", error)
        return True

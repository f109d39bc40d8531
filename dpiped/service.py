"""What the service manager is told, and when: ready, alive, how far the training is, how long the end takes.

Why: "active" must mean that clients are answered, and a daemon that does not answer any more must be
replaced; the training does not notice either. So READY comes after recovery and bind, and a sign of life
only after a request has gone a client's way, through the socket, the event loop and back.

A stop may take longer than the unit allows, by DIFFPIPE_STOP_TIMEOUT; systemd is told once at each rung of
the ladder, not all the time: a daemon that hangs has to be killed some day.

Known gap: the training itself is not watched; a run that hangs is told as a warning of its own.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator

from dpiped import lifecycle, view
from dpiped.notify import Notifier
from dpiped.server import Server
from dpiped.settings import ServiceManager
from dpiped.supervisor import Supervisor

STATUS_EVERY = 1.0
START_LOOK = 2.0
GOING_ON_EVERY = 1.0
START_GRACE = 60.0
"""Reading the log of a run that goes on may take this long between two signs of life (seconds)."""
STOP_GRACE = 60.0
"""For SIGKILL, TensorBoard and the last replies, beside the deadline of the rung (seconds)."""

log = logging.getLogger("dpiped.service")


class Service:
    """Reports to `manager`; without one, nothing happens."""

    def __init__(self, manager: ServiceManager, supervisor: Supervisor, server: Server | None = None) -> None:
        self._notifier = Notifier(manager.notify)
        self._watchdog = manager.watchdog if manager.notify else None
        self._supervisor = supervisor
        self._server = server
        self._guarded = manager.notify is not None and server is not None
        self._told = ""
        self._went_on = float("-inf")

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[None]:
        """The start may take as long as the event loop turns. A daemon that hangs is killed by SIGALRM.

        systemd would have to send a SIGTERM first, which means that the run is to end.
        """
        self._notifier.status("looking at the runs that are there")
        self.going_on()
        extending = asyncio.create_task(self._extend_start())
        try:
            yield
        finally:
            extending.cancel()
            signal.alarm(0)

    def going_on(self) -> None:
        """The start takes its time, and does not hang. Told often where nothing else may have its turn."""
        if (now := time.monotonic()) < self._went_on + GOING_ON_EVERY:
            return
        self._went_on = now
        self._notifier.extend(START_GRACE)
        signal.alarm(int(START_GRACE) if self._guarded else 0)
        # After a reload the watchdog waits already.
        self._notifier.alive()

    def ready(self) -> None:
        self._tell(view.line(self._supervisor))
        self._notifier.ready()

    def reloading(self) -> None:
        self._notifier.reloading()

    def stopping(self) -> None:
        self._notifier.stopping()

    async def keep_status(self) -> None:
        """Tells what changes, at most once a second, and extends a stop at each rung."""
        rung = None
        while True:
            self._tell(view.line(self._supervisor))
            state = self._supervisor.machine.state
            if self._supervisor.ending and isinstance(state, lifecycle.Stopping) and state.rung != rung:
                rung = state.rung
                self._notifier.extend(max(state.deadline - time.monotonic(), 0.0) + STOP_GRACE)
            await asyncio.sleep(STATUS_EVERY)

    async def keep_alive(self) -> None:
        """A sign of life twice as often as asked for, as long as the socket answers."""
        if self._watchdog is None or self._server is None:
            return
        every = self._watchdog / 2
        while True:
            begun = time.monotonic()
            if await self._server.answers(within=every):
                self._notifier.alive()
            else:
                log.error("the daemon's own request was not answered within %.1f s", every)
            await asyncio.sleep(max(begun + every - time.monotonic(), 0.0))

    async def _extend_start(self) -> None:
        while True:
            self.going_on()
            await asyncio.sleep(START_LOOK)

    def _tell(self, text: str) -> None:
        if text != self._told and self._notifier.status(text):
            self._told = text

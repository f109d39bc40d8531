"""What `status` shows has changed: counted, and told to all who wait for it.

Why: a client that follows must neither ask again and again nor miss a change between two questions. Each
change has a number, and who waits is woken by the next one. Where too many clients wait, the polls of the
oldest end early: a client that vanished is not told from one that is patient.

Known gap: a change wakes all who wait, whatever they wait for.
"""

import asyncio
from collections.abc import Callable
from itertools import islice


class Changes:
    """`revision` is the number of the last change. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self.revision = 0
        self._changed = asyncio.Condition()
        self._polls: dict[asyncio.Timeout, None] = {}
        """Those of clients that wait, the oldest first."""

    async def announce(self) -> None:
        """Something that `status` shows has changed: wakes all who wait."""
        async with self._changed:
            self.revision += 1
            self._changed.notify_all()

    async def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits for a change that makes `condition` true. False after `seconds`."""
        return await self._wait(condition, asyncio.timeout(seconds))

    async def poll_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """The same for a client. False sooner where too many clients wait."""
        until = asyncio.timeout(seconds)
        self._polls[until] = None
        try:
            return await self._wait(condition, until)
        finally:
            self._polls.pop(until, None)

    def end_polls(self, count: int) -> None:
        """The oldest polls end now, as if their time were over."""
        for until in list(islice(self._polls, count)):
            del self._polls[until]
            if not until.expired():
                until.reschedule(asyncio.get_running_loop().time())

    async def _wait(self, condition: Callable[[], bool], until: asyncio.Timeout) -> bool:
        try:
            async with until, self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            return False
        return True

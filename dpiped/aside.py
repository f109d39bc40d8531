"""Work that takes long, done in a thread beside the event loop.

Why: a log may have lines of hundreds of megabytes, and a million steps to be read again. Whoever watches a
training must be answered meanwhile, and the daemon must be able to end. So such work is done in a thread, in
steps of a fraction of a second where it can be cut, and only a few at a time: the threads share one
interpreter.

Known gap: a step that has begun is not cancelled; the end of the daemon waits for it.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
AT_A_TIME = 2


class Aside:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_A_TIME)

    async def do(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """What `work` returns or raises. It must not touch what the event loop changes."""
        async with self._slots:
            return await asyncio.to_thread(work, *args, **kwargs)

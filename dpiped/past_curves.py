"""The loss curves of past runs: each read once from its log, the last few kept.

Why: a log of a million lines takes a second to read. The daemon has to answer others meanwhile, so it is read
in chunks; and a page asks for the same curve more than once.

Known gap: one log is read at a time; who asks for another one waits for it.
"""

import asyncio
from collections import OrderedDict
from pathlib import Path

from dpiped import logs
from dpiped.curve import Curve

KEPT = 4


class PastCurves:
    """By run and length of its log: a process that outlived its run may still have printed something."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], Curve] = OrderedDict()
        self._reading = asyncio.Lock()

    async def of(self, run: str, path: Path) -> Curve:
        """The curve of a run that is over."""
        async with self._reading:
            key = run, logs.extent(path)[1]
            curve = self._kept.pop(key, None) or await _read(path)
            self._kept[key] = curve
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return curve


async def _read(path: Path) -> Curve:
    curve = Curve()
    follower = logs.Follower(path)
    try:
        while chunk := follower.read():
            curve.feed(chunk)
            await asyncio.sleep(0)
    finally:
        follower.close()
    curve.finish()
    return curve

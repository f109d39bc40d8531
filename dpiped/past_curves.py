"""The loss curves of past runs: each read once from its log, the last few kept.

Why: a log of a million lines takes a second to read, and a page asks for the same curve more than once. So
what was read is kept, and so is the curve of a run that this daemon has followed to its end. A log that has
to be read is read in steps, beside the event loop.

Known gap: one log is read at a time; who asks for another one that has to be read waits for it.
"""

import asyncio
from collections import OrderedDict
from pathlib import Path

from dpiped import curve, logfile, logs
from dpiped.aside import Aside
from dpiped.curve import Curve

KEPT = 4


class PastCurves:
    """By run and length of its log: a process that outlived its run may still have printed something."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside
        self._kept: OrderedDict[tuple[str, int], Curve] = OrderedDict()
        self._reading = asyncio.Lock()

    def keep(self, run: str, length: int, curve: Curve) -> None:
        """The curve of a run that is over, made of so many bytes of its log."""
        curve.finish()
        self._kept[run, length] = curve
        self._kept.move_to_end((run, length))
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    async def of(self, run: str, path: Path) -> Curve:
        """The curve of a run that is over. Raises OSError."""
        key = run, logfile.size(path)
        found = self._kept.get(key)
        if found is None:
            async with self._reading:
                # Somebody else may have read it meanwhile.
                found = self._kept.get(key)
                if found is None:
                    found = await self._read(path)
        self.keep(*key, found)
        return found

    async def _read(self, path: Path) -> Curve:
        made, position = Curve(), 0
        while length := await self._aside.do(_feed, made, path, position):
            position += length
        return made


def _feed(made: Curve, path: Path, position: int) -> int:
    """The next chunk; its length."""
    chunk = logfile.read_bytes(path, position, position + logs.CHUNK, logs.CHUNK)
    for at in range(0, len(chunk), curve.PIECE):
        made.feed(chunk[at : at + curve.PIECE])
    return len(chunk)

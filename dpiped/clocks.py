"""How long something has lasted, by a clock that nobody sets.

Why: a rented machine may get the right time minutes after its start, and jump by hours then. Whoever
subtracts two wall-clock times across such a jump tells a training of a minute that it is a day old, looks for
its files in the wrong hour, or takes it for silent.

Known gap: a clock that was set and set back since the launch is not noticed.
"""

import os
import time
from pathlib import Path

from dpiped import procs
from dpiped.rundir import Identity, Launched

_TICKS = os.sysconf("SC_CLK_TCK")
SAME = 5.0
"""Seconds by which the wall clock may differ from the other one before it counts as set."""


def since_start(who: Identity) -> float | None:
    """Seconds since that process was started; None if that was before the last boot."""
    if who.boot != procs.boot_id():
        return None
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - who.start / _TICKS, 0.0)


def since_launch(launched: Launched) -> float:
    """Seconds since the launch: by the wall clock only if the machine has been booted since."""
    elapsed = since_start(launched.child)
    return elapsed if elapsed is not None else max(time.time() - launched.at, 0.0)


def launched_at(launched: Launched) -> float:
    """When the launch was, by the wall clock as it goes now."""
    return time.time() - since_launch(launched)


def unchanged_for(path: Path, launched: Launched) -> float:
    """Seconds since a file of the run was last written to.

    0 if it is not there, or if the clock was set since the launch: the file's time says nothing then.
    """
    elapsed = since_launch(launched)
    if abs(time.time() - launched.at - elapsed) > SAME:
        return 0.0
    try:
        return min(max(time.time() - path.stat().st_mtime, 0.0), elapsed)
    except OSError:
        return 0.0


class Rewritten:
    """How long ago a file was written, that is looked at again and again.

    Only what was there before the first look is told by the file's own time.
    """

    def __init__(self) -> None:
        self._looked = False
        self._written: int | None = None
        self._seen = 0.0

    def look(self, path: Path) -> float | None:
        """Seconds; None if it is not there."""
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            self._looked, self._written = True, None
            return None
        if written != self._written:
            ago = 0.0 if self._looked else max(time.time() - written / 1e9, 0.0)
            self._written, self._seen = written, time.monotonic() - ago
        self._looked = True
        return time.monotonic() - self._seen

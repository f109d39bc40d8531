"""How long a training has printed nothing, and what follows from it.

Why: a training that hangs looks like one that works: its processes live, and one that waits for another GPU
even computes. Only its silence tells. It is said in `status`; and where `DIFFPIPE_HANG_TIMEOUT` says how long
is too long, the run is ended, so that nobody pays for a night of it.

Any byte counts as a word, a progress bar's too. Only time that the daemon has itself listened counts, by
CLOCK_MONOTONIC: a clock that is set, a machine or a container that was paused, make nobody silent.

Known gap: a long step, eval pass or save is silent as well, so the timeout has to be longer than any of them.
"""

import time

HANG_TIMEOUT = "DIFFPIPE_HANG_TIMEOUT"
"""The setting; and who stopped a run that was ended for it."""
WARNED_AFTER = 600.0
"""Seconds, where nothing is ended; else half of what ends it, if that is less."""


LONGEST_LOOK = 2.0
"""Seconds between two looks; in what is more than that, the daemon itself stood still."""


class Silence:
    """Of one run. `limit` is the setting (seconds), None if no run is to be ended for it."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._seconds = 0.0
        self._looked = time.monotonic()

    def heard(self, ago: float = 0.0) -> None:
        """It printed something, so many seconds ago, as far as a file's time tells.

        That counts the sleep of a machine as well, so half of the limit is left to be listened to.
        """
        self._seconds = min(ago, self._limit / 2) if self._limit else ago
        self._looked = time.monotonic()

    def listen(self) -> None:
        """It has printed nothing since the last look. To be called all the time."""
        now = time.monotonic()
        self._seconds += min(now - self._looked, LONGEST_LOOK)
        self._looked = now

    @property
    def lasts(self) -> bool:
        """Is it to be told?"""
        return self._seconds >= min(WARNED_AFTER, self._limit / 2 if self._limit else WARNED_AFTER)

    def warning(self, phase: str) -> str:
        """For `status`, while it lasts."""
        seconds = self._seconds
        then = f"; the run is ended after {spoken(self._limit)} ({HANG_TIMEOUT})" if self._limit else ""
        return f"nothing was printed for {spoken(seconds)} (phase {phase}){then}"

    @property
    def too_long(self) -> bool:
        """Is the run to be ended?"""
        return self._limit is not None and self._seconds >= self._limit

    def fault(self, phase: str, known: str | None) -> str:
        """Why it is. `known` is what already tells that it hangs."""
        said = f"nothing was printed for {spoken(self._seconds)}"
        return f"{known}; after that {said}" if known else f"{said} (phase {phase})"

    def of_hang(self, known: str) -> str:
        """The warning about what is known to leave train.py waiting for ever."""
        if self._limit is None:
            return f"{known}; if nothing more happens, train.py hangs and has to be stopped"
        limit = spoken(self._limit)
        return f"{known}; if nothing more is printed for {limit}, the run is ended ({HANG_TIMEOUT})"


def spoken(seconds: float) -> str:
    """In words that do not change all the time."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min"

"""SIGTERM, for each process of a run, and for those too that come to be while it is sent.

Why: a launcher starts its ranks one by one. A rank that is born after the look at the run's processes, of a
launcher that then dies of the signal, has not been told to end: it would train on for all of the stop
timeout, and be killed in the end without a chance to tidy up.

The child of a process that was told is that one's own matter: who tidies up may need a helper.

Known gap: a helper that makes itself a daemon counts as one that nobody has told.
"""

import signal
import time
from collections.abc import Callable, Iterable

from dpiped import procs
from dpiped.rundir import Identity

LOOK_EVERY = 0.5
"""Seconds. A look goes through all processes of the machine."""


class Told:
    """Who of one run was sent SIGTERM."""

    def __init__(self) -> None:
        self._told: set[Identity] = set()
        self._looked_at = 0.0

    def tell(self, members: Iterable[Identity]) -> None:
        """Also those that were told before."""
        for who in members:
            procs.send(who, signal.SIGTERM)
            self._told.add(who)

    def tell_latecomers(self, members: Callable[[], list[Identity]]) -> None:
        """Those that nobody has told. Looks for them no more often than `LOOK_EVERY`."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        living = members()
        told = {who.pid for who in living if who in self._told}
        self.tell(who for who in living if who not in self._told and procs.parent_of(who) not in told)

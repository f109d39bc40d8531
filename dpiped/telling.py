"""SIGTERM and SIGKILL, for each process of a run, and for those too that come to be while they are sent.

Why: a launcher starts its ranks one by one. A rank that is born after the look at the run's processes, of a
launcher that then dies of the signal, has not been told to end: it would train on for all of the stop
timeout, and be killed in the end without a chance to tidy up.

The child of a process that was told is that one's own matter: who tidies up may need a helper.

A runner records the end once nobody is left. One that hangs would keep a stopped run for ever.

Known gap: a helper that makes itself a daemon counts as one that nobody has told. A runner that waits for a
slow disk is not told from one that hangs.
"""

import signal
import time
from collections.abc import Callable, Iterable

from dpiped import procs
from dpiped.rundir import Identity

LOOK_EVERY = 0.5
"""Seconds. A look goes through all processes of the machine."""
RUNNER_TAKES = 10
"""Times that SIGKILL may find nobody, a second each, before the runner is taken to hang."""


class Told:
    """Who of one run was sent SIGTERM, and how often nobody was left for SIGKILL."""

    def __init__(self) -> None:
        self._told: set[Identity] = set()
        self._looked_at = 0.0
        self._nobody = 0

    def tell(self, members: Iterable[Identity]) -> None:
        """Also those that were told before. Raises PermissionError where one may not be, at the end."""
        told = list(members)
        self._told.update(told)
        procs.send_all(told, signal.SIGTERM)

    def tell_latecomers(self, members: Callable[[], list[Identity]]) -> None:
        """Those that nobody has told. Looks for them no more often than `LOOK_EVERY`."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        living = members()
        told = {who.pid for who in living if who in self._told}
        self.tell(who for who in living if who not in self._told and procs.parent_of(who) not in told)

    def kill(self, members: Iterable[Identity]) -> bool:
        """SIGKILL to each. False once the runner has had the time to see that nobody is left.

        Raises PermissionError where one may not be killed, once the others are.
        """
        self._nobody = 0 if procs.send_all(members, signal.SIGKILL) else self._nobody + 1
        return self._nobody <= RUNNER_TAKES

"""The records of an end: that a stop was asked for, and how the run came out.

Why: a full disk or a damaged record must neither keep a run from being stopped nor leave it without an
outcome. What can't be written or read is said in `status`, and the rest goes on.

Known gap: an outcome that could not be written before the daemon ended is concluded anew by the next one,
from the log.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from dpiped import checkpoints, history, messages, procs, rundir
from dpiped.errors import RunDamaged
from dpiped.live import LiveRun
from dpiped.outcome import conclude, failing, hang
from dpiped.rundir import Concluded, Exit, StopAsked

REQUESTED = "request"
"""Who stopped a run that a client asked to stop."""
AGAIN_AFTER = 2.0
"""Seconds between two attempts to write what could not be written."""
_R = TypeVar("_R", bound=Struct)
Notice = Callable[[str], None]

log = logging.getLogger("dpiped.run")


def record_of(live: LiveRun, kind: type[_R], notice: Notice) -> _R | None:
    """A record of the active run; one that can't be read is said and counts as not written."""
    try:
        return rundir.read(live.folder, kind)
    except RunDamaged as error:
        notice(f"run {live.id} is damaged: {error}")
        return None


def ask_to_stop(live: LiveRun, how: messages.How, by: str, deadline: float, notice: Notice) -> None:
    """Writes stop.json; who asked first, and what was already wrong then, stays. A client's wish outranks."""
    before, said = record_of(live, StopAsked, notice), live.progress.snapshot()
    fault = before.fault if before else live.hung or hang(said)
    about_to = before.failing if before else failing(said)
    by = before.by if before and by != REQUESTED else by
    asked = StopAsked(how, by, time.time(), deadline, procs.boot_id(), fault, about_to)
    _keep(live, "that it was asked to stop", lambda: rundir.write(live.folder, asked), notice)


def ask_as_well(live: LiveRun, notice: Notice) -> None:
    """A client wants the stop that is under way, too: then no service goes on with the run by itself."""
    before = record_of(live, StopAsked, notice)
    if before is not None and before.by != REQUESTED:
        asked = msgspec.structs.replace(before, by=REQUESTED)
        _keep(live, "that a client asked to stop it", lambda: rundir.write(live.folder, asked), notice)


class Unrecorded:
    """Outcomes that could not be written: tried again until they can."""

    def __init__(self, notice: Notice, withdraw: Notice) -> None:
        self._notice = notice
        self._withdraw = withdraw
        self._left: dict[Path, tuple[Concluded, str]] = {}
        self._task: asyncio.Task[None] | None = None

    def conclude(self, folder: Path, concluded: Concluded) -> None:
        """Writes it now or later."""
        try:
            rundir.conclude(folder, concluded)
        except OSError as error:
            text = f"run {folder.name}: its outcome can't be recorded: {error}"
            self._notice(text)
            self._left[folder] = concluded, text
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._try_again())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _try_again(self) -> None:
        while self._left:
            await asyncio.sleep(AGAIN_AFTER)
            for folder, (concluded, text) in list(self._left.items()):
                try:
                    rundir.conclude(folder, concluded)
                except FileNotFoundError:
                    log.info("run %s was deleted", folder.name)
                except OSError as error:
                    log.debug("run %s can't be concluded yet: %s", folder.name, error)
                    continue
                self._withdraw(text)
                del self._left[folder]


def conclude_run(live: LiveRun, notice: Notice, unrecorded: Unrecorded) -> messages.LastRun:
    """Names the outcome, records it, and tidies up what the trainer was told by files."""
    live.progress.finish()
    exit_, asked = record_of(live, Exit, notice), record_of(live, StopAsked, notice)
    concluded = conclude(exit_, asked, live.progress.snapshot(), live.spec.completes, live.on_disk)
    if exit_ is None and concluded.outcome == "unknown":
        concluded = _as_the_runner_says(live, concluded)
    unrecorded.conclude(live.folder, concluded)
    if live.train_dir is not None:
        try:
            checkpoints.clear_signal_files(live.train_dir)
        except OSError as error:
            notice(f"run {live.id}: a signal file can't be removed: {error}")
    live.close()
    because = f" ({concluded.reason})" if concluded.reason else ""
    log.info("run %s: %s%s", live.id, concluded.outcome, because)
    return history.as_last_run(live.id, concluded, exit_)


def _as_the_runner_says(live: LiveRun, concluded: Concluded) -> Concluded:
    """It may have said why there is no record of the end, or of a launch."""
    said = live.runner_log()
    if not rundir.was_launched(live.folder):
        why = live.warning or said or "the runner ended before it launched the training"
        return Concluded("failed", why, time.time())
    if not said:
        return concluded
    return msgspec.structs.replace(concluded, reason=f"{concluded.reason}; the runner said: {said}")


def _keep(live: LiveRun, what: str, write: Callable[[], None], notice: Notice) -> None:
    try:
        write()
    except OSError as error:
        notice(f"run {live.id}: {what} can't be recorded: {error}")

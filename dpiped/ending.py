"""The records of an end: that a stop was asked for, and how the run came out.

Why: a full disk or a damaged record must neither keep a run from being stopped nor leave it without an
outcome. What can't be written or read is said in `status`, and the rest goes on.

Known gap: an outcome that could not be written is concluded anew by the next daemon, from the log.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from dpiped import checkpoints, history, messages, procs, rundir
from dpiped.errors import RunDamaged
from dpiped.live import LiveRun
from dpiped.outcome import conclude, hang
from dpiped.rundir import Concluded, Exit, StopAsked

REQUESTED = "request"
"""Who stopped a run that a client asked to stop."""
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
    before = record_of(live, StopAsked, notice)
    fault = before.fault if before else hang(live.progress.snapshot())
    by = before.by if before and by != REQUESTED else by
    asked = StopAsked(how, by, time.time(), deadline, procs.boot_id(), fault)
    _keep(live, "that it was asked to stop", lambda: rundir.write(live.folder, asked), notice)


def conclude_run(live: LiveRun, notice: Notice) -> messages.LastRun:
    """Names the outcome, records it, and tidies up what the trainer was told by files."""
    live.progress.finish()
    exit_, asked = record_of(live, Exit, notice), record_of(live, StopAsked, notice)
    on_disk = checkpoints.complete_checkpoint(live.train_dir) if live.train_dir else None
    concluded = conclude(exit_, asked, live.progress.snapshot(), live.spec.completes, on_disk)
    if exit_ is None and live.launched is None and concluded.outcome == "unknown":
        why = live.warning or live.runner_log() or "the runner ended before it launched the training"
        concluded = Concluded("failed", why, time.time())
    _keep(live, "its outcome", lambda: rundir.conclude(live.folder, concluded), notice)
    if live.train_dir is not None:
        try:
            checkpoints.clear_signal_files(live.train_dir)
        except OSError as error:
            notice(f"run {live.id}: a signal file can't be removed: {error}")
    live.close()
    because = f" ({concluded.reason})" if concluded.reason else ""
    log.info("run %s: %s%s", live.id, concluded.outcome, because)
    return history.as_last_run(live.id, concluded, exit_)


def _keep(live: LiveRun, what: str, write: Callable[[], None], notice: Notice) -> None:
    try:
        write()
    except OSError as error:
        notice(f"run {live.id}: {what} can't be recorded: {error}")

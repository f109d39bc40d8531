"""What a new daemon does with the runs of the one before it.

Why: the daemon before may have been killed in the middle of anything. Each run without a recorded
outcome is looked at: alive, then it is adopted; ended, then its outcome is concluded from its records
and its log; unreadable, then it is left alone and said.

Known gap: a run that is alive beside the adopted one (which only a hand-made state can bring about) is
reported, not followed.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from dpiped import history, lifecycle, messages, procs, redaction, rundir
from dpiped.errors import InvalidInput, RunDamaged
from dpiped.live import LiveRun
from dpiped.rundir import Concluded, Spec, StopAsked
from dpiped.settings import Settings

log = logging.getLogger("dpiped.run")
Recorder: TypeAlias = Callable[[Path, Concluded], None]


def sort_out(
    settings: Settings,
    runs: Path,
    conclude: Recorder = rundir.conclude,
    going_on: Callable[[], None] = lambda: None,
) -> tuple[list[LiveRun], list[str]]:
    """Concludes what ended unseen. Returns the runs that are alive, newest first, and what went wrong."""
    alive: list[LiveRun] = []
    problems: list[str] = []
    rundir.remove_unfinished(runs)
    for name in rundir.names(runs):
        going_on()
        try:
            if rundir.read(runs / name, Concluded) is not None:
                # The daemon before may have been killed right after it had written that.
                rundir.tidy(runs / name)
            elif found := _look_at(settings, runs / name, conclude, going_on):
                alive.append(found)
        except (OSError, RunDamaged) as error:
            what = "is damaged" if isinstance(error, RunDamaged) else "can't be looked at"
            alive_too = "; processes of it are alive, and nobody follows them" if procs.marked(name) else ""
            problems.append(f"run {name} {what}: {error}{alive_too}")
            problems += _hide_key(runs / name)
        except Exception as error:  # one run's fault must not keep the daemon from starting
            log.exception("run %s can't be looked at", name)
            problems.append(f"run {name} is damaged: {error!r}")
    problems += [f"run {other.id} is alive beside {alive[0].id}; it is not followed" for other in alive[1:]]
    return alive, problems


def unfollowed(runs: Path, followed: str | None) -> list[str]:
    """Other runs with living processes: their records are damaged, or they are alive beside that one."""
    others = (name for name in rundir.names(runs) if name != followed)
    return [name for name in others if not _is_over(runs / name) and procs.marked(name)]


def _is_over(folder: Path) -> bool:
    try:
        return rundir.read(folder, Concluded) is not None
    except RunDamaged:
        return False


def last_run(runs: Path, active: str | None) -> messages.LastRun | None:
    """The newest run with a recorded outcome, the active one left out."""
    for name in rundir.names(runs):
        try:
            if name != active and (found := history.last_run(runs / name, name)):
                return found
        except RunDamaged:
            log.debug("run %s is damaged", name)
    return None


def pending_stop(live: LiveRun, ladder: lifecycle.Ladder) -> lifecycle.Stopping | None:
    """The stop that was under way. A deadline of another boot has passed."""
    try:
        asked = rundir.read(live.folder, StopAsked)
    except RunDamaged as error:
        log.warning("run %s is damaged: %s", live.id, error)
        asked = None
    if asked is None:
        return None
    deadline = asked.deadline if asked.boot == procs.boot_id() else time.monotonic()
    return lifecycle.Stopping(live.id, asked.how, deadline, ladder)


def _lives(live: LiveRun) -> bool:
    return live.exit_record() is None and (live.runner_is_alive() or bool(live.members()))


def _hide_key(folder: Path) -> list[str]:
    """Takes a key out of a damaged run's config, if no process of it is left. What went wrong."""
    try:
        if not procs.marked(folder.name):
            redaction.clean(folder / rundir.TRAINING_TOML)
    except FileNotFoundError:
        return []
    except (OSError, InvalidInput) as error:
        return [f"run {folder.name}: a key may stand in its config: {error}"]
    return []


def _look_at(
    settings: Settings, folder: Path, conclude: Recorder, going_on: Callable[[], None]
) -> LiveRun | None:
    spec = rundir.read(folder, Spec)
    if spec is None:
        raise RunDamaged("it has no spec.json", field="spec.json")
    if spec.run != folder.name:
        # A copy made by hand: what is done to it must not be done to the other one.
        raise RunDamaged(f"its spec.json is of run {spec.run}", field="spec.json")
    live = LiveRun(settings, spec)
    live.look_for_launch()
    # After a re-execution its runner is this process's child still.
    procs.reap(live.runner)
    # First without the claim: a runner that has just been spawned must find it free.
    if _lives(live):
        return live
    claim = rundir.claim(folder)
    if claim is None:
        return live
    try:
        # Again, since one may have come meanwhile: from here on none will launch this run any more.
        if _lives(live):
            return live
        live.find_files()
        live.hide_key(over=True)
        conclude(folder, history.conclude_from_records(folder, spec, going_on))
    finally:
        os.close(claim)
    log.info("run %s ended while no daemon ran", spec.run)
    return None

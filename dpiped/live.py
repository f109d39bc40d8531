"""The run that is going on, as the daemon sees it from outside: its log, its progress, its processes.

Why: a run that this daemon started and one that it adopted must be followed by the same code, or the
second path is the one that loses lines. So everything here is learnt from the run directory and the
process table; nothing comes from having been the parent.

Known gap: none of this is written down; a new daemon reads the log from its beginning.
"""

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dpiped import arguments, checkpoints, clocks, events, limits, logs, messages, procs, redaction, rundir
from dpiped.curve import PIECE, Curve
from dpiped.errors import InvalidInput
from dpiped.outcome import failing, hang
from dpiped.progress import Progress, Snapshot
from dpiped.rundir import Exit, Identity, Launched, Spec, TrainDir
from dpiped.settings import Settings, without_secrets
from dpiped.silence import Silence
from dpiped.telling import Told

LOOK_FOR_FILES_EVERY = 1.0
KEPT_OPEN = 60.0
"""Seconds for which a log that was moved away can still be read after the run's end."""
TRUNCATED = f"{rundir.LOG} was truncated; what stood there before is gone, what is printed now is kept"
MOVED = (
    f"{rundir.LOG} was deleted or moved away; what is printed can be read until the run ends, "
    "and is lost after that unless it was moved"
)

log = logging.getLogger("dpiped.run")


class LiveRun:
    """One active run. `runner` is known once it was spawned here or recorded itself."""

    def __init__(self, settings: Settings, spec: Spec) -> None:
        self.settings = settings
        self.spec = spec
        self.id = spec.run
        self.folder = settings.state_dir / "runs" / spec.run
        self.progress = Progress(anew=arguments.RESET_DATALOADER in spec.args)
        self.ring = logs.Ring(settings.log_lines, settings.log_bytes)
        self.curve = Curve()
        self.launched: Launched | None = None
        self.runner: Identity | None = None
        self.train_dir: Path | None = Path(spec.train_dir) if spec.train_dir else None
        self.warning: str | None = None
        self.on_disk: checkpoints.Found | None = None
        """The checkpoint that was looked for at the run's end."""
        self.unsaved: str | None = None
        """Why the trainer could not be asked to save when the stop began with that."""
        self.hung: str | None = None
        """Why it was ended for its silence."""
        self.told = Told()
        self._follower = logs.Follower(self.folder / rundir.LOG, self._printed_into)
        self._silence = Silence(settings.hang_timeout)
        self._latest = clocks.Rewritten()
        self._remarks: list[str] = []
        self._caught_up = False
        """What was there at an adoption has been read."""
        self._draining = asyncio.Lock()
        self._train_dir_recorded = spec.train_dir is not None
        self._looked_at = 0.0
        self._troubles: dict[str, str] = {}
        self._key_hidden = False

    def spawn_runner(self, environment: dict[str, str], adopt: bool = False) -> None:
        """Starts the runner in its own session; it outlives this process. Raises OSError."""
        # -E and -P: what the user adds to the training's environment must not change our own imports.
        command = [sys.executable, "-E", "-P", "-m", "dpiped", "runner", str(self.folder)]
        command += ["--files", str(limits.inherited_files())]
        if adopt:
            # It launches nothing, so it needs no key.
            command, environment = [*command, "--adopt"], without_secrets(environment)
        errors = self._open_runner_log(required=not adopt)
        try:
            pid = os.posix_spawn(
                sys.executable,
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, errors, 1),
                    (os.POSIX_SPAWN_DUP2, errors, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(errors)
        self.runner = procs.identify(pid)

    def _open_runner_log(self, required: bool) -> int:
        """A runner that has to take over does so without it as well."""
        try:
            return os.open(self.folder / rundir.RUNNER_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError:
            if required:
                raise
            return os.open(os.devnull, os.O_WRONLY)

    def look_for_launch(self) -> bool:
        """True once the runner has recorded its child. Raises RunDamaged."""
        if self.launched is None:
            self.launched = rundir.read(self.folder, Launched)
            if self.launched is not None:
                self.runner = self.launched.runner
                self._silence.heard(clocks.unchanged_for(self.folder / rundir.LOG, self.launched))
        return self.launched is not None

    def runner_is_alive(self) -> bool:
        """Before anything is recorded, any process with the run's marker may be the runner."""
        if self.runner is not None:
            return procs.is_alive(self.runner)
        return procs.marked(self.id) and not self._runner_is_dead()

    def _runner_is_dead(self) -> bool:
        """A runner claims the run before it opens the log, and holds it for all its life."""
        if not (self.folder / rundir.LOG).exists():
            return False
        claim = rundir.claim(self.folder)
        if claim is not None:
            os.close(claim)
        return claim is not None

    def look_for_another_runner(self) -> bool:
        """Has one taken over that this daemon did not spawn? Raises RunDamaged."""
        found = rundir.read(self.folder, Launched)
        if found is None or not procs.is_alive(found.runner):
            return False
        self.launched, self.runner = found, found.runner
        return True

    def members(self) -> list[Identity]:
        """Every living process of the run but the runner."""
        return procs.members(self.id, self.runner, self.launched.child if self.launched else None)

    def exit_record(self) -> Exit | None:
        return rundir.read(self.folder, Exit)

    def runner_log(self) -> str:
        """What the runner said of itself: empty unless something is wrong with it."""
        try:
            return (self.folder / rundir.RUNNER_LOG).read_text(errors="replace").strip()[-2000:]
        except OSError:
            return ""

    def hide_key(self, over: bool = False) -> None:
        """Takes a key out of the launched config once no rank has to read it any more."""
        if self.spec.holds_key and not self._key_hidden and (over or self._ranks_have_read()):
            file = self.folder / rundir.TRAINING_TOML
            self._key_hidden = self._keep("the config without its key", lambda: redaction.clean(file))

    def _ranks_have_read(self) -> bool:
        """train.py reads its config before the ranks meet, and caches after it."""
        phase = self.progress.snapshot().phase
        return phase != "launching" and (phase != "loading" or self.spec.num_gpus == 1)

    async def drain(self) -> bool:
        """Takes in what the log gained. True if it gained anything."""
        async with self._draining:
            # What is found at an adoption was printed some time ago.
            first = self.launched is not None and not self._caught_up
            quiet = (
                clocks.unchanged_for(self._follower.path, self.launched) if first and self.launched else 0.0
            )
            gained = False
            while chunk := self._follower.read():
                gained = True
                await self._take_in(chunk)
            if gained or not self._follower.opened:
                self._silence.heard(quiet)
            else:
                self._silence.listen()
            self._caught_up = self._caught_up or first
            return gained

    async def _take_in(self, chunk: bytes) -> None:
        if self._follower.begins_anew():
            self._remarks.append(f"run {self.id}: {TRUNCATED}")
            self.ring.begin_anew()
            self.progress.feed(b"\n")
            self.curve.feed(b"\n")
        self.progress.feed(chunk)
        self.ring.feed(chunk)
        # A chunk full of steps takes some 15 ms here and twice as long there.
        for at in range(0, len(chunk), PIECE):
            await asyncio.sleep(0)
            self.curve.feed(chunk[at : at + PIECE])
        await asyncio.sleep(0)

    @property
    def log(self) -> Path:
        """Where the log can be read: the open file, once it stands no more where it was made."""
        return self._follower.where()

    def remarks(self) -> list[str]:
        """What was met since the last call and should be known."""
        found, self._remarks = self._remarks, []
        return found

    def silent_too_long(self) -> str | None:
        """Why the run is to be ended: it hangs, and `DIFFPIPE_HANG_TIMEOUT` says how long that may last."""
        if not self._silence.too_long:
            return None
        said = self.progress.snapshot()
        return self._silence.fault(said.phase, hang(said))

    def silence(self) -> str | None:
        """What `status` says about it. Its change is to be announced, as nothing else changes then."""
        return self._silence.warning(self.progress.snapshot().phase) if self._silence.lasts else None

    def look_for_files(self) -> None:
        """Finds the directory that train.py made and links its event files; not more than once a second."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_FOR_FILES_EVERY:
            return
        self._looked_at = now
        self.find_files()
        if self._follower.moved():
            self._remarks.append(f"run {self.id}: {MOVED}")

    def find_files(self) -> None:
        if self.train_dir is None:
            # A clock that was set back dates the directory before the run.
            began = clocks.launched_at(self.launched) if self.launched else self.spec.created
            since = min(began, self.spec.created) - 60
            found = checkpoints.find_train_dir(Path(self.spec.output_dir), self.id, since)
            if found is None:
                return
            self.train_dir = found
            log.info("run %s writes to %s", self.id, found)
        train_dir, folder = self.train_dir, events.run_folder(self.settings, self.id)
        self._latest.look(train_dir / "latest")
        if not self._train_dir_recorded:
            record = TrainDir(str(train_dir))
            self._train_dir_recorded = self._keep(
                "the training's directory", lambda: rundir.write(self.folder, record)
            )
        self._keep("event files", lambda: events.link_events(train_dir, folder))
        if self.spec.holds_key:
            self._keep("copies of the config without their key", lambda: redaction.clean_copies(train_dir))

    def close(self) -> None:
        if self._follower.where() == self._follower.path:
            self._follower.close()
        else:
            # Whoever was given the number of the open file must not find another one behind it.
            asyncio.get_running_loop().call_later(KEPT_OPEN, self._follower.close)

    def view(self, stopping: str | None) -> messages.ActiveRun:
        """What `status` says of it."""
        said = self.progress.snapshot()
        total = total_steps(self.spec, said)
        rest = total - said.step if total is not None and said.step is not None else None
        started = self.launched.at if self.launched else None
        tag = checkpoints.latest_tag(self.train_dir) if self.train_dir else None
        return messages.ActiveRun(
            id=self.id,
            pid=self.launched.child.pid if self.launched else None,
            phase=said.phase,
            step=said.step,
            total_steps=total,
            epoch=said.epoch,
            epochs=self.spec.epochs,
            loss=said.loss,
            samples_per_second=said.samples_per_second,
            eta_seconds=rest * said.seconds_per_step if rest is not None and said.seconds_per_step else None,
            started_at=started,
            elapsed_seconds=clocks.since_launch(self.launched) if self.launched else None,
            detail=said.detail,
            warning=next(iter(self._warnings(said)), None),
            checkpoint=tag or said.checkpoint,
            train_dir=str(self.train_dir) if self.train_dir else None,
            stopping=stopping,
            failing=None if stopping else failing(said),
            first_step=said.first_step,
            checkpoint_step=checkpoints.step_of(tag or said.checkpoint),
            checkpoint_age_seconds=self._latest.look(self.train_dir / "latest")
            if self.train_dir and tag
            else None,
        )

    def _warnings(self, said: Snapshot) -> list[str]:
        """What is wrong, the gravest first."""
        known = hang(said)
        hangs = self._silence.of_hang(known) if known else None
        found = (hangs, self.warning, diverged(said), self.silence(), *self._troubles.values())
        return [warning for warning in found if warning]

    def _printed_into(self) -> int | None:
        """The pid of a process that has the log open, wherever it stands."""
        return self.launched.child.pid if self.launched and procs.is_alive(self.launched.child) else None

    def _keep(self, what: str, action: Callable[[], object]) -> bool:
        """Did it work? If not, `status` says so until it does."""
        try:
            action()
        except (OSError, InvalidInput) as error:
            self._troubles[what] = f"{what} can't be recorded: {error}"
            return False
        self._troubles.pop(what, None)
        return True


def total_steps(spec: Spec, said: Snapshot) -> int | None:
    """The step at which the training will end, once that can be known; never one that it has passed."""
    by_epochs = said.steps_of(spec.epochs) if spec.epochs else None
    total = min((n for n in (by_epochs, spec.max_steps) if n is not None), default=None)
    # A resume may do a step too many, and one at `max_steps` goes beyond it.
    return None if total is None else max(total, said.step or 0)


def diverged(said: Snapshot) -> str | None:
    """JSON has no NaN, and a person may not look at the loss for hours."""
    if said.loss is None or math.isfinite(said.loss):
        return None
    return f"the loss is {said.loss} at step {said.step}: the training has diverged"

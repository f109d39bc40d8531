"""The async shell round the state machine: carries its actions out and feeds it what happens.

Why: one place decides (lifecycle.py), one place acts (here). Every run, started or adopted, is followed
by `_follow`; every stop, from a client, a signal or a deadline, is an event to the same machine.

Known gap: a process in uninterruptible sleep can't be killed by anybody; the run then stays in
`stopping` and `status` says how many processes are left.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import dpiped
from dpiped import checkpoints, history, launch, lifecycle, messages, procs, rundir
from dpiped.errors import InvalidInput, LaunchFailed, Refused, RunDamaged
from dpiped.launch import Wanted
from dpiped.lifecycle import (
    Adopt,
    Climb,
    Conclude,
    Ended,
    Fall,
    Launched,
    Record,
    Spawn,
    Starting,
    Stop,
    Stopping,
)
from dpiped.live import LiveRun
from dpiped.outcome import conclude
from dpiped.rundir import Concluded, Spec, StopAsked
from dpiped.settings import RUN_MARKER, Settings, training_environment

TICK = 0.1
LAUNCH_TICK = 0.02
LAUNCH_TIMEOUT = 60.0
ALREADY_RUNNING = "A training process is already running."
NOTHING_RUNNING = "No training process tracked."

log = logging.getLogger("dpiped.run")


class Supervisor:
    """Owns the one active run. All methods belong to the event loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runs = settings.state_dir / "runs"
        self.machine = lifecycle.Machine()
        self.live: LiveRun | None = None
        self.last: messages.LastRun | None = None
        self.notices: list[str] = []
        self.revision = 0
        self.changed = asyncio.Condition()
        self._environment: dict[str, str] = {}
        self._stop_by = "dpiped"
        self._follower: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # --- what clients ask for

    async def start(self, wanted: Wanted, resumed_from: str | None = None) -> messages.Started:
        """Starts a run and waits until its launcher runs. Raises Refused, InvalidInput, LaunchFailed."""
        if not isinstance(self.machine.state, lifecycle.Idle):
            raise Refused(ALREADY_RUNNING, hint="`dpipectl status` shows it, `dpipectl stop` ends it")
        plan = launch.make(self.settings, wanted)
        spec = plan.spec if resumed_from is None else _resumed(plan.spec, resumed_from)
        actions = self.machine.feed(lifecycle.Start(spec.run))
        try:
            self._write_run(plan, spec)
        except OSError as error:
            self.machine.feed(Ended(spec.run))
            raise LaunchFailed(
                f"{plan.run_dir} can't be written: {error}", field="DIFFPIPE_STATE_DIR"
            ) from error
        self._environment = plan.environment
        self._follow_run(LiveRun(self.settings, spec))
        self._act(actions)
        await self._bump()
        return await self._launched(spec, plan.run_dir)

    async def resume(
        self, run: str | None, config: Path | None, args: tuple[str, ...], env: dict[str, str]
    ) -> messages.Started:
        """A new run from the newest checkpoint of `run` (default: the last one)."""
        if not isinstance(self.machine.state, lifecycle.Idle):
            raise Refused(ALREADY_RUNNING)
        name = history.resolve(self.runs, run or history.LAST)
        found = history.detail(self.runs, name, active=False)
        if found.train_dir is None:
            raise InvalidInput(f"run {name} made no directory to resume from", field="run")
        checkpoints.require_checkpoint(Path(found.train_dir), "run")
        if found.summary.state == "completed" and config is None:
            raise InvalidInput(
                f"run {name} has completed; resuming it would train past its epochs",
                field="config",
                hint="give a config with more epochs: dpipectl resume RUN --config FILE",
            )
        checkpoints.clear_signal_files(Path(found.train_dir))
        source = config or Path(found.run_dir) / rundir.TRAINING_TOML
        wanted = Wanted(source, args=args, env=env, resume=Path(found.train_dir))
        return await self.start(wanted, resumed_from=name)

    async def stop(self, rung: lifecycle.Rung, timeout: float | None, by: str) -> messages.Stopping:
        """Enters the ladder. Raises Refused when nothing runs."""
        live = self.live
        if live is None:
            raise Refused(NOTHING_RUNNING)
        ladder = lifecycle.Ladder(self.settings.save_timeout, self.settings.stop_timeout)
        if timeout is not None:
            ladder = lifecycle.Ladder(timeout, timeout if rung == "term" else ladder.term)
        self._stop_by = by
        self._act(self.machine.feed(Stop(rung, time.monotonic(), ladder)))
        await self._bump()
        state = self.machine.state
        now = state.rung if isinstance(state, Stopping) else rung
        return messages.Stopping(live.id, now, _DOES[now])

    def request_save(self) -> str:
        """Writes the `save` file. Returns a token for `saved_since`. Raises Refused."""
        live = self.live
        if live is None or not isinstance(self.machine.state, lifecycle.Running):
            raise Refused(NOTHING_RUNNING if live is None else "The training is not in a state to save.")
        if live.train_dir is None:
            raise Refused(
                f"There is nothing to save yet: the training is in phase {live.progress.snapshot().phase} "
                "and has not made its directory.",
            )
        token = _checkpoint_token(live.train_dir)
        (live.train_dir / "save").touch()
        return token

    def saved_since(self, token: str) -> str | None:
        """The checkpoint that was written after `token` was given, once it is whole. Raises Refused."""
        if self.live is None or self.live.train_dir is None:
            raise Refused("The run ended before it saved.", hint="`dpipectl status` shows its outcome")
        if _checkpoint_token(self.live.train_dir) == token:
            return None
        return checkpoints.complete_checkpoint(self.live.train_dir)

    def status(self, tensorboard: messages.TensorBoard) -> messages.Status:
        state = self.machine.state
        stopping = self._stopping_text(state) if isinstance(state, Stopping) else None
        names: dict[type, messages.State] = {
            lifecycle.Idle: "idle",
            Starting: "starting",
            lifecycle.Running: "running",
            Stopping: "stopping",
        }
        return messages.Status(
            state=names[type(state)],
            run=self.live.view(stopping) if self.live else None,
            last_run=self.last,
            tensorboard=tensorboard,
            version=dpiped.__version__,
            revision=self.revision,
            pid=os.getpid(),
            notices=tuple(self.notices),
        )

    async def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits for a change that makes `condition` true. False after `seconds`."""
        try:
            async with asyncio.timeout(seconds), self.changed:
                await self.changed.wait_for(condition)
        except TimeoutError:
            return False
        return True

    async def announce(self) -> None:
        """Something that `status` shows has changed."""
        await self._bump()

    # --- the daemon's own life

    async def recover(self) -> None:
        """Concludes the runs that ended unseen and adopts the one that is still alive."""
        for name in rundir.names(self.runs):
            try:
                if rundir.read(self.runs / name, Concluded) is None:
                    self._recover_one(name)
            except (RunDamaged, OSError) as error:
                self._notice(f"run {name} is damaged: {error}")
        self._remember_last()
        await self._bump()

    async def let_go(self) -> None:
        """Stops following without touching the run."""
        if self._follower is not None:
            self._follower.cancel()
        if self._deadline is not None:
            self._deadline.cancel()

    async def end(self, by: str) -> None:
        """Stops the active run, if any, and waits until nothing of it is left."""
        if self.live is not None:
            await self.stop("term", None, by)
        while not isinstance(self.machine.state, lifecycle.Idle):
            await self.wait_until(lambda: isinstance(self.machine.state, lifecycle.Idle), 60.0)

    def _recover_one(self, name: str) -> None:
        folder = self.runs / name
        spec = rundir.read(folder, Spec)
        if spec is None:
            raise RunDamaged("it has no spec.json", field="spec.json")
        live = LiveRun(self.settings, spec)
        live.look_for_launch()
        if live.exit_record() is None and (live.runner_is_alive() or live.members()):
            if self.live is not None:
                self._notice(f"run {name} is alive beside run {self.live.id}; it was not adopted")
                return
            self._adopt(live)
        else:
            rundir.write(folder, history.conclude_from_records(folder, spec))
            log.info("run %s ended while no daemon ran", name)

    def _adopt(self, live: LiveRun) -> None:
        asked = rundir.read(live.folder, StopAsked)
        stopping = None
        if asked is not None:
            deadline = asked.deadline if asked.boot == procs.boot_id() else time.monotonic()
            ladder = lifecycle.Ladder(self.settings.save_timeout, self.settings.stop_timeout)
            stopping = Stopping(live.id, asked.how, deadline, ladder)
            self._stop_by = asked.by
        log.info("adopting run %s%s", live.id, " (stopping)" if stopping else "")
        self._environment = training_environment(self.settings) | {RUN_MARKER: live.id}
        actions = self.machine.feed(Adopt(live.id, live.launched is not None, stopping))
        self._follow_run(live)
        self._act(actions)

    # --- following a run

    def _follow_run(self, live: LiveRun) -> None:
        self.live = live
        self._follower = asyncio.create_task(self._follow(live))
        self._follower.add_done_callback(_report_fault)

    async def _follow(self, live: LiveRun) -> None:
        """From spawn or adoption to the conclusion. The only path."""
        while not await self._over(live):
            launched = live.launched is not None
            if await live.drain():
                await self._bump()
            if launched:
                live.look_for_files()
            await asyncio.sleep(TICK if launched else LAUNCH_TICK)
        await live.drain()
        live.find_files()
        _reap(live)
        self._act(self.machine.feed(Ended(live.id)))
        await self._bump()

    async def _over(self, live: LiveRun) -> bool:
        """Is nothing of it left? Notices the launch on the way, and replaces a runner that was killed."""
        alive = live.runner_is_alive()
        if live.launched is None and live.look_for_launch():
            self._act(self.machine.feed(Launched(live.id)))
            await self._bump()
            alive = live.runner_is_alive()
        if alive:
            return False
        if live.exit_record() is None and live.members():
            log.warning("the runner of run %s is gone; another one takes over", live.id)
            live.spawn_runner(self._environment, adopt=True)
            return False
        return True

    async def _launched(self, spec: Spec, run_dir: Path) -> messages.Started:
        def decided() -> bool:
            state = self.machine.state
            return not (isinstance(state, Starting) and state.run == spec.run)

        await self.wait_until(decided, LAUNCH_TIMEOUT)
        live = self.live
        if live is None or live.id != spec.run or live.launched is None:
            concluded = rundir.read(run_dir, Concluded)
            raise LaunchFailed(
                f"run {spec.run}: {concluded.reason if concluded else 'the runner did not launch it in time'}",
                hint=f"see {run_dir}",
            )
        return messages.Started(
            run=spec.run,
            pid=live.launched.child.pid,
            config=str(run_dir / rundir.TRAINING_TOML),
            resumed_from=spec.resumed_from,
        )

    # --- carrying out the machine's actions

    def _act(self, actions: tuple[lifecycle.Action, ...]) -> None:
        live = self.live
        assert live is not None, "every action belongs to a run"
        for action in actions:
            match action:
                case Spawn():
                    self._spawn(live)
                case Record(_, rung, deadline):
                    self._record_stop(live, rung, deadline)
                case Climb(_, rung, deadline):
                    self._climb(live, rung, deadline)
                case Conclude():
                    self._conclude(live)

    def _spawn(self, live: LiveRun) -> None:
        try:
            live.spawn_runner(self._environment)
        except OSError as error:
            live.warning = f"the runner can't be started: {error}"
        log.info("starting run %s: %s", live.id, " ".join(live.spec.argv))

    def _record_stop(self, live: LiveRun, rung: lifecycle.Rung, deadline: float) -> None:
        asked = StopAsked(rung, self._stop_by, time.time(), deadline, procs.boot_id())
        try:
            rundir.write(live.folder, asked)
        except OSError as error:
            # The stop itself must not fail because a disk is full.
            self._notice(f"run {live.id}: stop.json can't be written: {error}")

    def _climb(self, live: LiveRun, rung: lifecycle.Rung, deadline: float) -> None:
        log.info("stopping run %s: %s", live.id, _DOES[rung])
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_at(deadline, self._fall, live.id)
        if rung == "save":
            if live.train_dir is None or not _touch(live.train_dir / "save_quit"):
                log.info("run %s has no directory to save into yet", live.id)
                self._deadline.cancel()
                self._deadline = loop.call_soon(self._fall, live.id)  # type: ignore[assignment]
            return
        number = signal.SIGTERM if rung == "term" else signal.SIGKILL
        procs.send_all(live.members(), number)

    def _fall(self, run: str) -> None:
        state = self.machine.state
        if isinstance(state, Stopping) and state.run == run:
            self._act(self.machine.feed(Fall(time.monotonic())))

    def _conclude(self, live: LiveRun) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        live.progress.finish()
        said = live.progress.snapshot()
        exit_ = live.exit_record()
        concluded = conclude(exit_, rundir.read(live.folder, StopAsked), said, live.spec.completes)
        if exit_ is None and live.launched is None and concluded.outcome == "unknown":
            why = live.warning or live.runner_log() or "the runner ended before it launched the training"
            concluded = Concluded("failed", why, time.time())
        try:
            rundir.write(live.folder, concluded)
        except OSError as error:
            self._notice(f"run {live.id}: outcome.json can't be written: {error}")
        if live.train_dir is not None:
            checkpoints.clear_signal_files(live.train_dir)
        live.close()
        self.live = None
        self.last = messages.LastRun(
            id=live.id,
            outcome=concluded.outcome,
            reason=concluded.reason,
            exit_code=exit_.code if exit_ else None,
            signal=exit_.signal if exit_ else None,
            ended_at=concluded.at,
        )
        why = f" ({concluded.reason})" if concluded.reason else ""
        log.info("run %s: %s%s", live.id, concluded.outcome, why)

    # --- small things

    def _write_run(self, plan: launch.Plan, spec: Spec) -> None:
        plan.run_dir.mkdir(parents=True, mode=0o700)
        for name, data in plan.files.items():
            rundir.write_file(plan.run_dir / name, data)
        rundir.write(plan.run_dir, spec)

    def _remember_last(self) -> None:
        for name in rundir.names(self.runs):
            if self.live is not None and name == self.live.id:
                continue
            try:
                self.last = history.last_run(self.runs / name, name)
            except RunDamaged:
                continue
            if self.last is not None:
                return

    def _stopping_text(self, state: Stopping) -> str:
        left = len(self.live.members()) if self.live else 0
        seconds = max(state.deadline - time.monotonic(), 0)
        return f"{_DOES[state.rung]}; {left} processes left, {seconds:.0f} s to the next step"

    def _notice(self, text: str) -> None:
        log.warning("%s", text)
        if text not in self.notices:
            self.notices = [*self.notices[-19:], text]

    async def _bump(self) -> None:
        async with self.changed:
            self.revision += 1
            self.changed.notify_all()


_DOES: dict[lifecycle.Rung, str] = {
    "save": "asked the trainer to save a checkpoint and quit",
    "term": "sent SIGTERM to all its processes",
    "kill": "sent SIGKILL to all its processes",
}


def _resumed(spec: Spec, run: str) -> Spec:
    import msgspec

    return msgspec.structs.replace(spec, resumed_from=run)


def _checkpoint_token(train_dir: Path) -> str:
    """Differs after every checkpoint, also after one of the same name."""
    latest = train_dir / "latest"
    try:
        return f"{latest.read_text()}@{latest.stat().st_mtime_ns}"
    except FileNotFoundError:
        return "none"


def _touch(path: Path) -> bool:
    try:
        path.touch()
    except OSError as error:
        log.warning("%s can't be written: %s", path, error)
        return False
    return True


def _reap(live: LiveRun) -> None:
    """The runner may be this process's child, or init's after a restart of the daemon."""
    if live.runner is None:
        return
    try:
        os.waitpid(live.runner.pid, os.WNOHANG)
    except ChildProcessError:
        log.debug("runner %d was another process's child", live.runner.pid)


def _report_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("following the run failed", exc_info=error)

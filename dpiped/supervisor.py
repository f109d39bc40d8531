"""The async shell round the state machine: carries its actions out and feeds it what happens.

Why: one place decides (lifecycle.py), one place acts (here). Every run, started or adopted, is followed
by `_follow`; every stop, from a client, a signal or a deadline, is an event to the same machine.

Known gap: a process in uninterruptible sleep can't be killed by anybody; the run then stays in
`stopping` and `status` says how many processes are left.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from dpiped import (
    checkpoints,
    ending,
    launch,
    lifecycle,
    messages,
    procs,
    readying,
    recovery,
    resume,
    rundir,
    saving,
)
from dpiped.aside import Aside
from dpiped.changes import Changes
from dpiped.errors import LaunchFailed, Refused, RunDamaged
from dpiped.lifecycle import (
    Adopt,
    Await,
    Climb,
    Conclude,
    Ended,
    Fall,
    Launched,
    Record,
    Spawn,
    Stop,
    Stopping,
)
from dpiped.live import LiveRun
from dpiped.past_curves import PastCurves
from dpiped.rundir import Exit, Spec
from dpiped.settings import RUN_MARKER, Settings, training_environment
from dpiped.silence import HANG_TIMEOUT
from dpiped.sources import Wanted

TICK = 0.1
LAUNCH_TICK = 0.02
LAUNCH_TIMEOUT = 60.0
FAULT_TICK = 1.0
LAST_WORDS_TIMEOUT = 5.0
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
        self.ending = False
        self.changes = Changes()
        self.aside = Aside()
        self.past_curves = PastCurves(self.aside)
        self._environment: dict[str, str] = {}
        self._stop_by = "dpiped"
        self._follower: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unrecorded = ending.Unrecorded(self.notice, self.withdraw)
        self._starting = asyncio.Lock()
        self._unfollowed: list[str] = []

    # --- what clients ask for

    async def start(self, wanted: Wanted) -> messages.Started:
        """Starts a run and waits until its launcher runs. Raises Refused, InvalidInput, LaunchFailed."""
        # One after the other: two must not make the same directory ready.
        async with self._starting:
            self.require_idle()
            # In threads, since a folder to resume from may lie on a slow disk.
            traced = await asyncio.to_thread(
                lambda: resume.trace(self.runs, launch.make(self.settings, wanted))
            )
            plan, warnings = traced.plan, traced.plan.warnings
            if plan.resume is not None:
                warnings += await asyncio.to_thread(readying.clear, plan.resume.train_dir)
            self.require_idle()
            actions = self.machine.feed(lifecycle.Start(plan.spec.run))
            self._write(plan)
            for text in warnings:
                log.warning("run %s: %s", plan.spec.run, text)
            self._environment = plan.environment
            self._follow_run(LiveRun(self.settings, plan.spec))
            self._act(actions)
        await self.changes.announce()
        started = await self._launched(plan.spec, plan.run_dir)
        written = plan.spec.source if plan.publish else None
        return msgspec.structs.replace(started, written=written, warnings=warnings, changes=traced.changes)

    def _write(self, plan: launch.Plan) -> None:
        """All that a start writes, `latest` last. Raises LaunchFailed, InvalidInput."""
        try:
            # What could not be removed when a start before this one failed.
            rundir.remove_unfinished(self.runs)
            rundir.create(plan.run_dir, plan.files, plan.spec)
            launch.publish(plan)
        except BaseException as error:
            # Whatever went wrong, nothing was started.
            self.machine.feed(Ended(plan.spec.run))
            if not isinstance(error, OSError):
                raise
            raise LaunchFailed(
                f"the run directory can't be written: {error.strerror}",
                field="DIFFPIPE_STATE_DIR",
                hint=f"it was to be {plan.run_dir}",
            ) from error

    def require_idle(self) -> None:
        """Raises Refused while a run is active, or once the daemon is ending."""
        if self.ending:
            raise Refused("The daemon is ending; it starts nothing any more.")
        if not isinstance(self.machine.state, lifecycle.Idle):
            raise Refused(ALREADY_RUNNING, hint="`dpipectl status` shows it, `dpipectl stop` ends it")
        self._unfollowed = [run for run in self._unfollowed if procs.marked(run)]
        if self._unfollowed:
            run = self._unfollowed[0]
            pids = " ".join(str(who.pid) for who in procs.members(run, None, None))
            raise Refused(
                f"Run {run}, which nobody follows, has processes that are alive.",
                hint=f"its records are damaged, or could not be read; to end it: kill {pids}",
            )

    async def stop(self, rung: lifecycle.Rung, timeout: float | None, by: str) -> messages.Stopping:
        """Enters the ladder. Raises Refused when nothing runs."""
        live = self.live
        if live is None:
            raise Refused(NOTHING_RUNNING)
        ladder = self._ladder()
        if timeout is not None:
            ladder = lifecycle.Ladder(timeout, timeout if rung == "term" else ladder.term)
        self._stop_by = by
        actions = self.machine.feed(Stop(rung, time.monotonic(), ladder))
        self._act(actions)
        if not actions and by == ending.REQUESTED:
            ending.ask_as_well(live, self.notice)
        await self.changes.announce()
        state = self.machine.state
        now = state.rung if isinstance(state, Stopping) else rung
        not_saved = f"{live.unsaved}; " if rung == "save" and now != "save" and live.unsaved else ""
        return messages.Stopping(live.id, now, not_saved + DOES[now])

    # --- the daemon's own life

    async def recover(self, going_on: Callable[[], None] = lambda: None) -> None:
        """Concludes the runs that ended unseen and adopts the one that is still alive.

        `going_on` is called before each run that is looked at.
        """
        alive, problems = recovery.sort_out(self.settings, self.runs, self._unrecorded.conclude, going_on)
        for problem in problems:
            self.notice(problem)
        self._unfollowed = recovery.unfollowed(self.runs, alive[0].id if alive else None)
        # Before the adoption: an adopted run may end at once, and is the last one then.
        self.last = recovery.last_run(self.runs, alive[0].id if alive else None)
        if alive:
            self._adopt(alive[0])
            # Whoever asks first must not see a log that is only half read again.
            try:
                await alive[0].drain()
            except OSError as error:
                # It is followed all the same, and tried again.
                self.notice(f"the log of run {alive[0].id} can't be read: {error}")
        await self.changes.announce()

    async def let_go(self) -> None:
        """Stops following without touching the run."""
        if self._follower is not None:
            self._follower.cancel()
        self._unrecorded.close()
        self._cancel_deadline()

    async def end(self, by: str) -> None:
        """Stops the active run, if any, and waits until nothing of it is left."""
        self.ending = True
        if self.live is not None:
            await self.stop("term", None, by)
        while not isinstance(self.machine.state, lifecycle.Idle):
            await self.changes.wait_until(lambda: isinstance(self.machine.state, lifecycle.Idle), 60.0)

    def _adopt(self, live: LiveRun) -> None:
        stopping = recovery.pending_stop(live, self._ladder())
        log.info("adopting run %s%s", live.id, " (stopping)" if stopping else "")
        self._environment = training_environment(self.settings) | {RUN_MARKER: live.id}
        actions = self.machine.feed(Adopt(live.id, live.launched is not None, stopping))
        self._follow_run(live)
        self._act(actions)

    def _ladder(self) -> lifecycle.Ladder:
        return lifecycle.Ladder(self.settings.save_timeout, self.settings.stop_timeout)

    # --- following a run

    def _follow_run(self, live: LiveRun) -> None:
        self.live = live
        self._follower = asyncio.create_task(self._follow(live))
        self._follower.add_done_callback(_report_fault)

    async def _follow(self, live: LiveRun) -> None:
        """From spawn or adoption to the conclusion. A fault on the way is said and tried again."""
        said = ""
        while True:
            try:
                await self._follow_to_the_end(live)
                break
            except Exception as error:  # a run that nobody follows would look like silence
                if said != repr(error):
                    # Once: what lasts for hours must not fill the log.
                    log.exception("following run %s failed", live.id)
                said = repr(error)
                self.notice(f"following run {live.id} failed: {error!r}")
                await asyncio.sleep(FAULT_TICK)
        self._look_for_the_last_time(live)
        self._act(self.machine.feed(Ended(live.id)))
        await self.changes.announce()

    def _look_for_the_last_time(self, live: LiveRun) -> None:
        try:
            live.hide_key(over=True)
            live.find_files()
            live.on_disk = checkpoints.seen(live.train_dir)
        except Exception as error:  # whatever it finds, the run is over and has to be concluded
            log.exception("the files of run %s can't be looked at", live.id)
            self.notice(f"the files of run {live.id} can't be looked at: {error!r}")

    async def _follow_to_the_end(self, live: LiveRun) -> None:
        """The only path, for runs of this daemon and for adopted ones."""
        silence = None
        while not await self._over(live):
            if await live.drain() or live.silence() != silence:
                silence = live.silence()
                await self.changes.announce()
            for remark in live.remarks():
                self.notice(remark)
            if self._end_if_hung(live):
                await self.changes.announce()
            if isinstance(self.machine.state, Stopping) and self.machine.state.rung == "term":
                live.told.tell_latecomers(live.members)
            live.hide_key()
            if live.launched is not None:
                live.look_for_files()
            await asyncio.sleep(TICK if live.launched is not None else LAUNCH_TICK)
        await self._read_to_the_end(live)

    async def _read_to_the_end(self, live: LiveRun) -> None:
        """A log that can't be read, as on a disk that fails, must not keep a run from being over."""
        until = time.monotonic() + LAST_WORDS_TIMEOUT
        while True:
            try:
                await live.drain()
                return
            except OSError as error:
                if time.monotonic() > until:
                    self.notice(f"the end of the log of run {live.id} can't be read: {error}")
                    return
            await asyncio.sleep(FAULT_TICK)

    def _end_if_hung(self, live: LiveRun) -> bool:
        """Has it just been told to end?"""
        fault = live.silent_too_long() if isinstance(self.machine.state, lifecycle.Running) else None
        if fault is not None:
            log.warning("run %s is ended: %s", live.id, fault)
            live.hung, self._stop_by = fault, HANG_TIMEOUT
            self._act(self.machine.feed(Stop("term", time.monotonic(), self._ladder())))
        return fault is not None

    async def _over(self, live: LiveRun) -> bool:
        """Is nothing of it left? Notices the launch on the way, and replaces a runner that was killed."""
        alive = live.runner_is_alive()
        if live.launched is None and self._look_for_launch(live):
            self._act(self.machine.feed(Launched(live.id)))
            await self.changes.announce()
            alive = live.runner_is_alive()
        if not alive:
            procs.reap(live.runner)
        if alive or (live.launched is not None and self._has_another_runner(live)):
            return False
        if ending.record_of(live, Exit, self.notice) is None and live.members():
            log.warning("the runner of run %s is gone; another one takes over", live.id)
            try:
                live.spawn_runner(self._environment, adopt=True)
            except OSError as error:
                self.notice(f"run {live.id}: another runner can't be started: {error}")
            # Should that one fail as well, it is not tried again at once.
            await asyncio.sleep(FAULT_TICK)
            return False
        return True

    def _look_for_launch(self, live: LiveRun) -> bool:
        return self._look(live, live.look_for_launch)

    def _has_another_runner(self, live: LiveRun) -> bool:
        return self._look(live, live.look_for_another_runner)

    def _look(self, live: LiveRun, look: Callable[[], bool]) -> bool:
        try:
            return look()
        except RunDamaged as error:
            self.notice(f"run {live.id} is damaged: {error}")
            return False

    async def _launched(self, spec: Spec, run_dir: Path) -> messages.Started:
        def decided() -> bool:
            live = self.live
            return live is None or live.id != spec.run or live.launched is not None

        await self.changes.wait_until(decided, LAUNCH_TIMEOUT)
        # The record, not the live run: a training may have ended already.
        launched = rundir.read(run_dir, rundir.Launched)
        if launched is None:
            # Not the record of the outcome, which may not have been written.
            over = self.last if self.last is not None and self.last.id == spec.run else None
            why = over.reason if over else "the runner did not launch it in time"
            raise LaunchFailed(f"run {spec.run}: {why}", hint=f"see {run_dir}")
        return messages.Started(
            run=spec.run,
            pid=launched.child.pid,
            config=str(run_dir / rundir.TRAINING_TOML),
            resumed_from=spec.resumed_from,
            checkpoint=spec.checkpoint,
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
                    ending.ask_to_stop(live, rung, self._stop_by, deadline, self.notice)
                case Climb(_, rung, deadline):
                    self._climb(live, rung, deadline)
                case Await(_, deadline):
                    self._await(live, deadline)
                case Conclude():
                    self._cancel_deadline()
                    self.live = None
                    self.past_curves.keep(live.id, live.ring.end, live.curve)
                    self.last = ending.conclude_run(live, self.notice, self._unrecorded)

    def _spawn(self, live: LiveRun) -> None:
        try:
            live.spawn_runner(self._environment)
        except OSError as error:
            live.warning = f"the runner can't be started: {error}"
        log.info("starting run %s: %s", live.id, " ".join(live.spec.argv))

    def _climb(self, live: LiveRun, rung: lifecycle.Rung, deadline: float) -> None:
        # First: whatever goes wrong on this rung, the next one comes.
        self._await(live, deadline)
        if rung == "save" and (why_not := saving.request_and_quit(live)):
            live.unsaved = why_not
            log.info("stopping run %s: %s", live.id, why_not)
            self._fall(live.id)
            return
        log.info("stopping run %s: %s", live.id, DOES[rung])
        try:
            if rung == "term":
                live.told.tell(live.members())
            if rung == "kill":
                self._kill(live)
        except OSError as error:
            self.notice(f"run {live.id}: its processes can't be signalled: {error}")

    def _kill(self, live: LiveRun) -> None:
        if not live.told.kill(live.members()) and live.runner is not None:
            self.notice(f"run {live.id}: its runner does not record the end, and is killed as well")
            procs.send(live.runner, signal.SIGKILL)

    def _await(self, live: LiveRun, deadline: float) -> None:
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_at(deadline, self._fall, live.id)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _fall(self, run: str) -> None:
        state = self.machine.state
        if isinstance(state, Stopping) and state.run == run:
            self._act(self.machine.feed(Fall(time.monotonic())))

    # --- small things

    def notice(self, text: str) -> None:
        """Something that a person should know: to the log and to `status`, once."""
        if text not in self.notices:
            log.warning("%s", text)
            self.notices = [*self.notices[-19:], text]

    def withdraw(self, text: str) -> None:
        """A notice that does not hold any more."""
        self.notices = [each for each in self.notices if each != text]


DOES: dict[lifecycle.Rung, str] = {
    "save": "asked the trainer to save a checkpoint and quit",
    "term": "sent SIGTERM to all its processes",
    "kill": "sent SIGKILL to all its processes",
}


def _report_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("following the run failed", exc_info=error)

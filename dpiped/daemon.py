"""The daemon process: locks, parts, signals, the order in which things begin and end.

Why: two daemons on one state directory would adopt each other's runs, and two on one socket would
steal each other's clients; both are refused by locks that the kernel drops with the process (handover.py
has the one exception). On SIGTERM the run is stopped by the same ladder as by a client, while the socket
still answers; a crash leaves the run alone, and the next daemon adopts it.

Known gap: none.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Literal

from dpiped import autostart, events, handover, lifecycle, limits, peers, private, procs, signals
from dpiped.errors import AlreadyOwned, DpipedError, Refused, of_place
from dpiped.gpus import Gpus
from dpiped.listening import Listening, prepare_directory
from dpiped.locks import Lock
from dpiped.rundir import Identity
from dpiped.server import Server
from dpiped.service import Service
from dpiped.settings import ServiceManager, Settings, environment_after_reload, under_supervisord
from dpiped.supervisor import Supervisor
from dpiped.tensorboard import TensorBoard
from dpiped.verbs import Verbs, Wishes

TENSORBOARD_LOOK_EVERY = 0.25
END_SIGNALS = frozenset(("SIGTERM", "SIGINT"))
LAST_ANSWERS = 0.2
STATE_LOCK = "dpiped.lock"
SETTLE = 0.01
"""Seconds in which the loop takes in a signal that was caught."""
SIGNAL_TWINS_WITHIN = 1.0
"""A terminal or `timeout` may deliver one request to end as two signals, to process and group (seconds)."""

HAND_OVER = "hand over"
LOCKS_FREE_WITHIN = 20.0
LOOK_FOR_LOCKS_EVERY = 0.1
LOOK_FOR_SUPERVISORD_EVERY = 2.0
ORPHANED = "The supervisord that started this daemon is gone. The daemon of the next one takes its place."

log = logging.getLogger("dpiped")
End = Literal["exit", "reload"]


def main(settings: Settings, manager: ServiceManager) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code; does not return after a reload.

    The umask stays the user's: the training inherits it. What is ours is made with explicit modes.
    """
    procs.keep_memory_private()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # At once: it may be gone later.
    starter = handover.starter()
    doubts = prepare_state(settings)
    limits.raise_files()
    locks = _lock_or_take_over(settings)
    listening = Listening(Path(settings.socket), locks[1], manager, settings.socket_group)
    daemon = Daemon(settings, manager, listening, starter)
    for doubt in doubts:
        daemon.supervisor.notice(doubt)
    if asyncio.run(daemon.run()) == "reload":
        daemon.hand_on()
        handover.remember(daemon.starter)
        log.info("reloading")
        for lock in locks:
            lock.release()
        listening.hand_on()
        limits.set_files(limits.inherited_files())
        os.execve(sys.executable, sys.orig_argv, environment_after_reload(listening.own))
    return 0


class Daemon:
    """Wires the parts together."""

    def __init__(
        self, settings: Settings, manager: ServiceManager, listening: Listening, starter: Identity | None
    ) -> None:
        self.settings = settings
        self.supervisor = Supervisor(settings)
        self.tensorboard = TensorBoard(settings)
        self.gpus = Gpus(self.supervisor)
        self.starter = starter
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        wishes = Wishes(self._ask_to_reload, self._ask_to_hand_over)
        verbs = Verbs(self.supervisor, self.tensorboard, self.gpus, wishes)
        self.server = Server(listening, verbs.answer, self.supervisor.changes.end_polls)
        self.service = Service(manager, self.supervisor, self.server)

    async def run(self) -> End:
        loop = asyncio.get_running_loop()
        for number in signals.HANDLED:
            loop.add_signal_handler(number, self._asked.put_nowait, number.name)
        signals.release()
        for problem in events.prepare_root(self.settings):
            self.supervisor.notice(problem)
        async with self.service.starting():
            await self.supervisor.recover(self.service.going_on)
        self.server.bind()
        if kept_out := peers.kept_out(Path(self.settings.socket).parent, self.settings.socket_group):
            self.supervisor.notice(kept_out)
        self.service.ready()
        log.info("listening on %s, state in %s", self.settings.socket, self.settings.state_dir)
        kept = (
            self.server.serve(),
            self.server.stay_reachable(self._tell),
            self.service.keep_status(),
            self.service.keep_alive(),
            self._watch_tensorboard(),
            self._watch_starter(),
            self.gpus.follow(),
        )
        tasks = [self._keep(each) for each in kept]
        self._serving = tasks[0]
        self.tensorboard.start()
        training = self._keep(self._train_service_config())
        end = await self._until_asked()
        for task in (training, *tasks):
            task.cancel()
        await self.supervisor.let_go()
        await self.tensorboard.stop()
        await self.server.close(keep=end == "reload")
        # The loop puts the default handlers back when it closes; a late signal must not be the last word.
        # Its helper threads don't hold any back: what they caught has to come out of the loop.
        signals.hold()
        await loop.shutdown_default_executor()
        await asyncio.sleep(SETTLE)
        return end

    def hand_on(self) -> None:
        """Gives a wish to end that came too late to be acted on to the daemon that takes this one's place."""
        for word in END_SIGNALS.intersection(self._drain_asked()):
            signals.keep(word)

    async def _until_asked(self) -> End:
        """Waits for the end. While the ladder runs, a second signal takes it to the last rung."""
        asked = await self._asked.get()
        while asked not in END_SIGNALS:
            if asked == HAND_OVER:
                log.info("another daemon takes this one's place")
                await asyncio.sleep(LAST_ANSWERS)
                asked = next((word for word in self._drain_asked() if word in END_SIGNALS), "")
                if not asked:
                    return "exit"
                break
            # Let the reply to the one who asked leave the socket.
            await asyncio.sleep(0.1)
            signals.hold()
            # What was caught just before is still on its way through the loop.
            await asyncio.sleep(SETTLE)
            others = self._drain_asked()
            if not (END_SIGNALS | {HAND_OVER}).intersection(others):
                self.service.reloading()
                return "reload"
            # Whoever wants the end meanwhile gets it, not a daemon that has forgotten it.
            signals.release()
            asked = next((word for word in others if word in END_SIGNALS), HAND_OVER)
        log.info("%s received", asked)
        self.service.stopping()
        if self.settings.on_exit == "detach":
            log.info("leaving the run to the next daemon (DIFFPIPE_ON_EXIT=detach)")
            return "exit"
        hurrying = asyncio.create_task(self._hurry())
        await self.supervisor.end(asked)
        hurrying.cancel()
        # Those who wait for the run's end get their answer.
        await asyncio.sleep(LAST_ANSWERS)
        return "exit"

    def _drain_asked(self) -> list[str]:
        words = []
        while not self._asked.empty():
            words.append(self._asked.get_nowait())
        return words

    async def _hurry(self) -> None:
        """Whoever signals again has no time for the ladder. Twins of the first signal do not count."""
        await asyncio.sleep(SIGNAL_TWINS_WITHIN)
        self._drain_asked()
        while await self._asked.get() not in END_SIGNALS:
            log.info("no reload while the daemon is ending")
        if self.supervisor.live is not None:
            await self.supervisor.stop("kill", None, "a second signal")

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """What ends by a fault is said. A daemon that can't be asked any more gives its place to another."""

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled() or (error := task.exception()) is None:
                return
            log.error("%s failed", task.get_name(), exc_info=error)
            self.supervisor.notice(
                f"a part of the daemon failed: {error!r}; `dpipectl reload` starts it anew"
            )
            if task is self._serving:
                self._asked.put_nowait(HAND_OVER)

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        return task

    async def _tell(self, notice: str) -> None:
        self.supervisor.notice(notice)
        await self.supervisor.changes.announce()

    def _ask_to_reload(self) -> None:
        if self.supervisor.ending:
            raise Refused("The daemon is ending; it does not reload any more.")
        self._asked.put_nowait("reload")

    def _ask_to_hand_over(self) -> None:
        if self.supervisor.ending:
            raise Refused("The daemon is ending; it hands nothing over.")
        if not handover.is_orphan(self.starter):
            raise Refused("This daemon is looked after, or was started by hand; it hands nothing over.")
        self._asked.put_nowait(HAND_OVER)

    async def _watch_starter(self) -> None:
        while not handover.is_orphan(self.starter):
            await asyncio.sleep(LOOK_FOR_SUPERVISORD_EVERY)
        self.supervisor.notice(ORPHANED)
        await self.supervisor.changes.announce()

    async def _watch_tensorboard(self) -> None:
        seen = self.tensorboard.view
        while True:
            await asyncio.sleep(TENSORBOARD_LOOK_EVERY)
            if self.tensorboard.view != seen:
                seen = self.tensorboard.view
                await self.supervisor.changes.announce()

    async def _train_service_config(self) -> None:
        """Trains `DIFFPIPE_CONFIG`, unless a run of it is active or has completed."""
        config = self.settings.config
        if config is None or not isinstance(self.supervisor.machine.state, lifecycle.Idle):
            return
        try:
            decision = await asyncio.to_thread(autostart.decide, self.settings, self.supervisor.runs, config)
            if decision.notice is not None:
                self.supervisor.notice(decision.notice)
            if decision.wanted is not None:
                started = await self.supervisor.start(decision.wanted)
                for text in started.warnings:
                    self.supervisor.notice(f"run {started.run}: {text}")
        except (DpipedError, OSError) as error:
            hint = f" ({error.hint})" if isinstance(error, DpipedError) and error.hint else ""
            self.supervisor.notice(f"DIFFPIPE_CONFIG is not trained: {error}{hint}")
        await self.supervisor.changes.announce()


def _lock_or_take_over(settings: Settings) -> tuple[Lock, Lock]:
    """Raises AlreadyOwned if another daemon is in the way and stays."""
    try:
        return _lock(settings)
    except AlreadyOwned:
        if not under_supervisord() or not handover.asked_for(settings.socket):
            raise
    log.info("taking over from a daemon whose supervisord is gone")
    until = time.monotonic() + LOCKS_FREE_WITHIN
    while True:
        try:
            return _lock(settings)
        except AlreadyOwned:
            if time.monotonic() > until:
                raise
        time.sleep(LOOK_FOR_LOCKS_EVERY)


def _lock(settings: Settings) -> tuple[Lock, Lock]:
    """One daemon per state directory and per socket. Raises AlreadyOwned, with the holder's pid."""
    socket = Path(settings.socket)
    prepare_directory(socket.parent, settings.socket_group)
    state = Lock(settings.state_dir / STATE_LOCK, "DIFFPIPE_STATE_DIR")
    try:
        return state, Lock(socket.with_name(socket.name + ".lock"), "DIFFPIPE_SOCKET")
    except AlreadyOwned:
        # Or this process would stand in its own way when it tries again.
        state.release()
        raise


def prepare_state(settings: Settings) -> list[str]:
    """Makes the state directory ours alone. Returns what a person should know of it.

    Raises SettingsError, NotReady.
    """
    state, field = settings.state_dir, "DIFFPIPE_STATE_DIR"
    try:
        for directory in (state, state / "runs"):
            private.make(directory)
        doubts = [private.secure(directory, field) for directory in (state, state / "runs")]
        if above := private.open_above(state):
            log.warning("%s: anybody may write to %s above it, and so replace it", state, above)
    except OSError as error:
        raise of_place(field, f"{state} can't be made or looked at", error) from error
    # The two are on one file system.
    return [doubt for doubt in doubts if doubt][:1]

"""Daemon and runner die at every write, in any order with stops, ends and strangers: nothing may be lost.

The real supervisor and the real runner, in processes that kill themselves before or half way in a write
(`tests/mortal.py`); the training is a little shell script. What may be true is known from what was done.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import Struct

from dpiped import procs, rundir
from dpiped.lifecycle import Rung
from dpiped.rundir import Concluded, Exit, Identity, Launched, Spec, StopAsked, TrainDir
from dpiped.settings import RUN_MARKER
from tests import mortal
from tests.harness import Workspace
from tests.helpers import wait_until

EXAMPLES = int(os.environ.get("RECOVERY_EXAMPLES", "0"))
"""More of them, and other ones each time, for whoever has the time."""
KEY = "0123456789abcdef0123456789abcdef01234567"
KINDS = ("waits", "stubborn", "leaves a rank", "completes", "fails")
RECORDS: tuple[type[Struct], ...] = (Spec, Launched, TrainDir, StopAsked, Exit, Concluded)
DAEMON_POINTS, RUNNER_POINTS = 150, 40
"""More than a run has."""

LAUNCHER = """#!/bin/sh
for word; do [ "$before" = --config ] && config=$word; before=$word; done
cd "$WORKSPACE" || exit 9
echo launched >> "launched.$DPIPED_RUN_ID"
made=outputs/$DPIPED_RUN_ID
mkdir "$made" && cp "$config" "$made/"
echo "steps: 1 loss: 0.5 iter time (s): 0.1 samples/sec: 1.0"
read -r kind < "kind.$DPIPED_RUN_ID"
code=0
case $kind in
stubborn) trap '' TERM ;;
leaves*) sleep 1000 & ;;
fails) code=3 ;;
esac
case $kind in completes | fails) ;; *) read -r code < "go.$DPIPED_RUN_ID" ;; esac
[ "$code" = 0 ] && echo "TRAINING COMPLETE!"
exit "$code"
"""


class Forks:
    """The process that daemons and runners are forked off, and a stranger that nobody may touch."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dpiped-"))
        mark = {RUN_MARKER: "x" * mortal.RUN_LENGTH}
        words = [sys.executable, "-m", "tests.mortal", str(self.folder)]
        self.process = subprocess.Popen(
            words, env={**os.environ, **mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"
        self.stranger = subprocess.Popen(["sleep", "1000000"])
        self.made = 0

    def fork(self, job: mortal.Job, *handles: int) -> int:
        return mortal.fork(self.folder / "forks", job, *handles)

    def new_run(self) -> str:
        self.made += 1
        return f"20260101-000000-{os.getpid() % 10**5:05}{self.made:05}"

    def close(self) -> None:
        self.stranger.kill()
        self.stranger.wait()
        self.process.communicate(timeout=20)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


class Done(Struct):
    """What was done to a run, as far as its outcome depends on it."""

    kind: str
    announced: bool = False
    told: int | None = None
    stopped: bool = False
    harmed: bool = False
    """Its runner, its ranks, the machine or its records."""


class World:
    """A state directory, at most one daemon, and an account of what was done."""

    def __init__(self, forks: Forks) -> None:
        self.forks = forks
        self.workspace = Workspace(
            WANDB_API_KEY=KEY, DIFFPIPE_STOP_TIMEOUT="0.3", DIFFPIPE_SAVE_TIMEOUT="0.3"
        )
        self.root, self.runs = self.workspace.root, self.workspace.runs_dir
        self.runs.mkdir(parents=True)
        self.config = self.workspace.config()
        self.config.write_text(
            self.config.read_text() + '[monitoring]\nenable_wandb = true\nwandb_tracker_name = "t"\n'
            'wandb_run_name = "r"\nwandb_api_key = "hidden-by-dpiped"\n'
        )
        script = LAUNCHER.replace('"$WORKSPACE"', f'"{self.root}"')
        (self.root / "bin/deepspeed").write_text(script)
        self.done: dict[str, Done] = {}
        self.pid = 0
        self.connection: socket.socket | None = None
        self.lines: Any = None
        self.number = 0
        self.unreplied: dict[int, mortal.Job] = {}

    # --- the daemon

    def start_daemon(self, dies: int = 0) -> mortal.Job | None:
        """Its first view; None if it died over the recovery."""
        self.kill_daemon()
        ours, theirs = socket.socketpair()
        job = {"role": "daemon", "env": self.workspace.env, "notes": str(self.root), "dies": dies}
        self.pid = self.forks.fork(job, theirs.fileno())
        theirs.close()
        ours.settimeout(30)
        self.connection, self.lines = ours, ours.makefile("rb")
        return self.reply(0)

    def ask(self, do: str, **named: Any) -> int | None:
        """The number of the request; None without a daemon."""
        if self.connection is None:
            return None
        self.number += 1
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps({"do": do, "number": self.number, **named}).encode() + b"\n")
        return self.number

    def reply(self, number: int | None) -> mortal.Job | None:
        """None if the daemon is dead, or dies over it."""
        while number is not None and self.connection is not None:
            if number in self.unreplied:
                return self.unreplied.pop(number)
            line = b""
            with contextlib.suppress(ConnectionResetError):
                line = self.lines.readline()
            if not line.endswith(b"\n"):
                self.kill_daemon()
                break
            reply = json.loads(line)
            assert "fault" not in reply, reply["fault"]
            self.unreplied[reply["number"]] = reply
        return None

    def kill_daemon(self) -> None:
        if self.connection is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            wait_until(lambda: procs.look(self.pid) is None, "the daemon's death", every=0.001)
            self.lines.close()
            self.connection.close()
            self.connection = None

    # --- what is done

    def ask_to_start(self, kind: str, dies: int = 0, runner_dies: int = 0) -> tuple[str, int | None]:
        run = self.forks.new_run()
        (self.root / f"kind.{run}").write_text(f"{kind}\n")
        os.mkfifo(self.root / f"go.{run}")
        self.done[run] = Done(kind, harmed=runner_dies > 0)
        asked = {"run": run, "config": str(self.config), "dies": dies, "runner_dies": runner_dies}
        return run, self.ask("start", **asked)

    def start(self, kind: str, dies: int = 0, runner_dies: int = 0) -> mortal.Job | None:
        run, number = self.ask_to_start(kind, dies, runner_dies)
        reply = self.reply(number)
        assert reply is None or reply.get("error") in (None, "Refused", "LaunchFailed"), reply
        if reply is not None and reply.get("error") == "Refused":
            del self.done[run]
        elif reply is not None and "error" not in reply:
            self.done[run].announced = True
        return reply

    def stop(self, rung: Rung, timeout: float | None = None, dies: int = 0) -> mortal.Job | None:
        for run in self.unconcluded():
            self.done[run].stopped = True
        return self.reply(self.ask("stop", rung=rung, timeout=timeout, dies=dies))

    def tell(self, code: int) -> None:
        """The training that waits ends with that code."""
        for run in self.active():
            self._tell(run, code)

    def _tell(self, run: str, code: int) -> None:
        wait_until(lambda: self._told(run, code) or not procs.marked(run), "it reads", every=0.005)

    def _told(self, run: str, code: int) -> bool:
        if self.done[run].told is None:
            with contextlib.suppress(OSError):
                handle = os.open(self.root / f"go.{run}", os.O_WRONLY | os.O_NONBLOCK)
                self.done[run].told = code
                os.write(handle, f"{code}\n".encode())
                os.close(handle)
        return self.done[run].told is not None or self.done[run].kind in ("completes", "fails")

    def kill(self, runner: bool) -> None:
        """SIGKILL to the runner, or to all but the runner."""
        for run, members in self.members().items():
            for process in members:
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("python") == runner:
                        self.done[run].harmed = True
                        process.kill()

    def power_cut(self, boot: str = "another-boot") -> None:
        """Every process is gone, and what was written is of another boot."""
        self.kill_daemon()
        while members := self.members():
            for process in (each for found in members.values() for each in found):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        for run in self.unconcluded():
            self.done[run].harmed = True
            for kind in (Launched, StopAsked):
                path = self.runs / run / rundir._FILES[kind]
                if path.exists():
                    path.write_text(path.read_text().replace(procs.boot_id(), boot))

    def reuse_pids(self, other_boot: bool) -> None:
        """The pids in the records of what has ended while no daemon ran are a stranger's now."""
        self.kill_daemon()
        now = procs.identify(self.forks.stranger.pid)
        assert now is not None
        reused = Identity(now.pid, now.start, "another-boot") if other_boot else None
        reused = reused or Identity(now.pid, now.start - 1, now.boot)
        for run in self.unconcluded():
            launched = rundir.read(self.runs / run, Launched)
            if launched is not None and not procs.marked(run):
                self.done[run].harmed = True
                rundir.write(self.runs / run, Launched(reused, reused, launched.at))

    # --- what is

    def members(self) -> dict[str, list[psutil.Process]]:
        """The living processes of each run."""
        found: dict[str, list[psutil.Process]] = {}
        for pid in procs.all_processes():
            run = mortal.marker_of(pid)
            if run in self.done:
                with contextlib.suppress(psutil.Error):
                    found.setdefault(run, []).append(psutil.Process(pid))
        return found

    def active(self) -> list[str]:
        return list(self.members())

    def unconcluded(self) -> list[str]:
        return [run for run in rundir.names(self.runs) if rundir.read(self.runs / run, Concluded) is None]

    def launched(self) -> bool:
        return any(rundir.read(self.runs / run, Launched) for run in rundir.names(self.runs))

    def launches(self, run: str) -> int:
        path = self.root / f"launched.{run}"
        return path.read_text().count("launched") if path.exists() else 0

    def notes(self, file: str) -> list[str]:
        path = self.root / file
        return path.read_text().splitlines() if path.exists() else []

    def tree(self) -> dict[str, tuple[int, int, int]]:
        return {
            str(path): (entry.st_ino, entry.st_size, entry.st_mtime_ns)
            for path in self.runs.rglob("*")
            if stat.S_ISREG((entry := path.lstat()).st_mode)
        }

    # --- what has to be true

    def check(self) -> None:
        """At any moment."""
        assert self.notes("faults") == []
        active = self.active()
        assert len(active) <= 1, "two runs at once"
        assert self.forks.stranger.poll() is None
        for line in self.notes("signals"):
            _, marker, _ = line.split()
            assert marker in {*self.done, "gone"}, f"a stranger was signalled: {line}"
        for run in self.done:
            assert self.launches(run) <= 1, "launched twice"
        for name in rundir.names(self.runs):
            for kind in RECORDS:
                rundir.read(self.runs / name, kind)

    def check_recovered(self, view: mortal.Job) -> None:
        """Right after a recovery that came to its end."""
        names = rundir.names(self.runs)
        assert [path.name for path in self.runs.glob(".*")] == []
        assert view["notices"] == []
        for run, done in self.done.items():
            assert run in names or not done.announced, "an announced run is lost"
        assert set(self.unconcluded()) <= {view["run"]}, "a run is neither followed nor concluded"
        assert set(self.active()) <= {view["run"]} | set(names)

    def finish(self) -> None:
        """A daemon that does not die ends what is active; then all has to be in order."""
        view = self.start_daemon()
        assert view is not None
        self.check_recovered(view)
        if view["run"]:
            known = self.reply(self.ask("launched", seconds=20.0))
            assert known is not None and "error" not in known, known
            self.done[view["run"]].stopped = True
            self.reply(self.ask("stop", rung="kill", timeout=None, dies=0))
        idle = self.reply(self.ask("idle", seconds=20.0))
        assert idle is not None and "error" not in idle, idle
        assert idle["notices"] == []
        before = self.tree()
        again = self.start_daemon()
        assert again is not None and again["state"] == "Idle"
        assert self.tree() == before, "a second recovery changes something"
        self.kill_daemon()
        self.check()
        assert self.active() == [] and self.unconcluded() == []
        for name in rundir.names(self.runs):
            self.check_ended(name, self.done[name])
        for path in (*self.runs.rglob("*"), *(self.root / "outputs").rglob("*")):
            assert not path.is_file() or KEY not in path.read_text(), f"{path} holds the key"

    def check_ended(self, run: str, done: Done) -> None:
        folder = self.runs / run
        concluded, exit_ = rundir.read(folder, Concluded), rundir.read(folder, Exit)
        assert concluded is not None
        what = f"{done} {concluded} {exit_} {self.notes('deaths')}"
        assert list(folder.glob(".*")) == [], "room or litter is left"
        if not self.launches(run):
            assert concluded.outcome != "completed" and concluded.step is None, what
            assert concluded.outcome != "stopped" or done.stopped, what
            assert concluded.outcome != "unknown" or done.harmed, what
            return
        assert "launched" not in (concluded.reason or ""), what
        code = {"completes": 0, "fails": 3}.get(done.kind, done.told)
        assert concluded.outcome != "completed" or code == 0, what
        assert concluded.outcome != "stopped" or done.stopped, what
        assert exit_ is None or exit_.code is None or exit_.code == code, what
        if done.harmed:
            return
        assert exit_ is not None, what
        if not done.stopped:
            assert (concluded.outcome, exit_.code) == ("failed" if code else "completed", code), what
        assert concluded.outcome != "unknown", what

    def close(self) -> None:
        self.kill_daemon()
        while members := self.members():
            for process in (each for found in members.values() for each in found):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.workspace.close()


@contextlib.contextmanager
def world_of(forks: Forks) -> Iterator[World]:
    world = World(forks)
    try:
        yield world
    finally:
        world.close()


def daemon_dies(world: World, dies: int) -> None:
    world.start_daemon()
    world.start("leaves a rank", dies)
    world.stop("term")
    world.reply(world.ask("idle", seconds=20.0))


def runner_dies(world: World, dies: int) -> None:
    world.start_daemon()
    world.start("leaves a rank", runner_dies=dies)
    world.tell(0)
    world.reply(world.ask("idle", seconds=20.0))


def both_die(world: World, dies: int) -> None:
    """The runner at that write, the daemon right after the start."""
    world.start_daemon()
    world.ask_to_start("waits", runner_dies=dies)
    wait_until(lambda: world.notes("deaths") or world.launched(), "a death, or none", every=0.002)
    world.kill_daemon()


def recovery_dies(world: World, dies: int) -> None:
    """Of a run that has ended unseen."""
    world.start_daemon()
    world.start("waits")
    world.kill_daemon()

    def ended() -> bool:
        # A look at the processes alone may miss one that is just executing another program.
        world.tell(0)
        exits = [rundir.read(world.runs / name, Exit) for name in rundir.names(world.runs)]
        return None not in exits and not world.active()

    wait_until(ended, "the end", every=0.005)
    world.start_daemon(dies)


def adoption_dies(world: World, dies: int) -> None:
    """Of a run that is stopping and whose runner is dead."""
    world.start_daemon()
    world.start("stubborn")
    world.stop("term")
    world.kill_daemon()
    world.kill(runner=True)
    world.start_daemon(dies)
    world.reply(world.ask("idle", seconds=20.0))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scene", [daemon_dies, runner_dies, both_die, recovery_dies, adoption_dies])
def test_a_death_at_every_write(forks: Forks, scene: Callable[[World, int], None]) -> None:
    """At the first one, at the second one, and so on until the scene comes to its end without."""
    for dies in range(1, DAEMON_POINTS):
        with world_of(forks) as world:
            scene(world, dies)
            died = world.notes("deaths")
            world.finish()
        if not died:
            break
        print(*died)
    assert 10 < dies < DAEMON_POINTS - 1


class RunDirectory(RuleBasedStateMachine):
    """Whatever happens to a state directory, its daemons and its runs."""

    forks: Forks

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.forks)

    @rule(dies=st.just(0) | st.integers(1, 60))
    def a_daemon_comes(self, dies: int) -> None:
        if self.world.connection is None and (view := self.world.start_daemon(dies)):
            self.world.check_recovered(view)

    @rule(
        kind=st.sampled_from(KINDS),
        dies=st.just(0) | st.integers(1, DAEMON_POINTS),
        runner_dies=st.just(0) | st.integers(1, RUNNER_POINTS),
    )
    def start(self, kind: str, dies: int, runner_dies: int) -> None:
        if self.world.connection is None:
            self.a_daemon_comes(0)
        active = self.world.active()
        reply = self.world.start(kind, dies, runner_dies)
        if reply is not None and not active:
            event(f"started: {reply.get('error', 'yes')}")

    @rule(
        rung=st.sampled_from(("save", "term", "kill")),
        timeout=st.sampled_from((None, 0.0, 0.1)),
        dies=st.just(0) | st.integers(1, 20),
    )
    def stop(self, rung: Rung, timeout: float | None, dies: int) -> None:
        self.world.stop(rung, timeout, dies)

    @rule(code=st.sampled_from((0, 5)))
    def the_training_ends(self, code: int) -> None:
        self.world.tell(code)

    @rule(runner=st.booleans())
    def somebody_kills(self, runner: bool) -> None:
        self.world.kill(runner)

    @rule()
    def the_daemon_is_killed(self) -> None:
        self.world.kill_daemon()

    @rule()
    def idle_again(self) -> None:
        self.world.reply(self.world.ask("idle", seconds=0.2))

    @rule(other_boot=st.booleans())
    def pids_are_reused(self, other_boot: bool) -> None:
        self.world.reuse_pids(other_boot)

    @rule()
    def the_power_is_cut(self) -> None:
        self.world.power_cut()

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            for death in self.world.notes("deaths"):
                event(" ".join(death.split()[:2]))
            self.world.finish()
        finally:
            self.world.close()


@pytest.mark.timeout(120 if not EXAMPLES else 3600)
def test_any_order_of_deaths_stops_and_ends(forks: Forks) -> None:
    RunDirectory.forks = forks
    run_state_machine_as_test(
        RunDirectory,
        settings=settings(
            max_examples=EXAMPLES or 20,
            stateful_step_count=12,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

"""`make soak`: a real daemon, shim and TensorBoard for half an hour, with runs that end in every way.

200 short runs of the scripted trainer are started, stopped, killed and adopted in an order that a seed gives,
while 20 clients follow. Afterwards every record has to agree with its log and with what was done, every
follower has to have every byte once, and memory, file descriptors and processes of daemon and shim have to
be what they were after the first runs. The exit code is 1 if one of that does not hold.

The daemon is killed and reloaded in the middle part only: its first life is measured after `FIRST` runs, and
its last one, which begins after two thirds of them, at the end; by then it has seen more runs than the first.

Memory is what a process has written itself ("Anonymous"); whether pages of files count for one process or for
several depends on what else the machine runs. A process that has hardly begun has not taken what it will
need, and Python builds its table of names anew, beside the old one, now and then; so before each measurement
the same requests are made, enough of them to have both behind it.

Known gap: TensorBoard keeps what it has read of every run, so its memory is told and not judged.
"""

import argparse
import functools
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import psutil
from msgspec import Struct

from dpiped import messages
from dpiped.errors import Unreachable
from tests.harness import Workspace, processes_of_run
from tests.helpers import wait_until
from tests.web import Shim
from tools.soak_followers import Follower, OverHttp, OverSocket

FIRST = 20
MOST = 1.05
REQUESTS = 8000
"""Lists of runs that are asked for before each measurement."""
SAMPLES = 10
STEP = re.compile(r"^steps: (\d+) ", re.M)
GAP = 1.1
"""Seconds from one start to the next at least: train.py names its directory after the second."""


Whom: TypeAlias = Callable[[psutil.Process, psutil.Process], psutil.Process]


class Measured(Struct):
    """What a process holds, in bytes and numbers."""

    anonymous: int
    pss: int
    fds: int


class State(Struct):
    """All that is measured at one time."""

    when: str
    processes: int
    daemon: Measured
    shim: Measured
    tensorboard: Measured


class Soak:
    """The workspace, its clients, and an account of what was done to each run."""

    def __init__(self, clients: int, seed: int, requests: int) -> None:
        self.requests = requests
        self.random = random.Random(seed)
        self.workspace = Workspace(DIFFPIPE_STOP_TIMEOUT="3", SCRIPTED_ALARM="120")
        del self.workspace.env["DIFFPIPE_CONFIG"], self.workspace.env["DIFFPIPE_TENSORBOARD"]
        self.workspace.start_daemon()
        self.shim = Shim(self.workspace)
        wait_until(lambda: self.status()["tensorboard"]["state"] == "ready", "TensorBoard", deadline=60)
        socket = self.workspace.env["DIFFPIPE_SOCKET"]
        self.followers: list[Follower] = [
            OverSocket(number, seed, socket) if number % 2 else OverHttp(number, seed, self.shim.port)
            for number in range(clients)
        ]
        self.expected: dict[str, tuple[str, ...]] = {}
        self.started_at = 0.0
        self.go = Path()
        for follower in self.followers:
            follower.start()
        self._until_connected()

    def status(self) -> Any:
        return self.workspace.status()

    # --- what is done to a run

    def start(self, *expected: str, behaviour: str = "well_behaved", **script: Any) -> str:
        wait_until(lambda: time.monotonic() >= self.started_at + GAP, "the next second")
        self.started_at = time.monotonic()
        config = self.workspace.config(behaviour, **script)
        started = self.workspace.ask(messages.Start(str(config)))
        assert isinstance(started, messages.Started)
        self.expected[started.run] = expected
        return started.run

    def start_long(self, *expected: str) -> str:
        """One that goes on until `finish`."""
        self.go = self.workspace.root / f"go{len(self.expected)}"
        run = self.start(*expected, until=str(self.go))
        self.workspace.until_step(self.random.randrange(1, 40))
        return run

    def finish(self) -> None:
        self.go.touch()

    def completes(self) -> None:
        self.start("completed", steps=self.random.randrange(10, 80))

    def raises(self) -> None:
        self.start("failed", behaviour="raises")

    def stopped(self, how: messages.How) -> None:
        self.start_long("stopped")
        self.workspace.ask(messages.Stop(how))

    def killed(self, whom: Whom, *expected: str) -> None:
        """`whom` chooses by runner and launcher."""
        run = self.start_long(*expected)
        runner, child = self._launched(run)
        whom(psutil.Process(runner), psutil.Process(child)).kill()
        if expected == ("completed",):
            wait_until(lambda: self._launched(run)[0] != runner, "another runner")
            self.finish()

    def _launched(self, run: str) -> tuple[int, int]:
        record = json.loads((self.workspace.runs_dir / run / "started.json").read_text())
        return record["runner"]["pid"], record["child"]["pid"]

    def daemon_killed(self, stopping: bool) -> None:
        self.start_long("stopped" if stopping else "completed")
        if stopping:
            self.workspace.ask(messages.Stop("term"))
        self.workspace.kill_daemon()
        self.workspace.start_daemon()
        self.finish()

    def reloaded(self) -> None:
        self.start_long("completed")
        before = self.workspace.ask(messages.Hello())
        self.workspace.ask(messages.Reload())
        wait_until(lambda: self._hello() not in (None, before), "the daemon is another one")
        self.finish()

    def _hello(self) -> messages.AnyReply | None:
        try:
            return self.workspace.ask(messages.Hello())
        except Unreachable:
            return None

    def ways(self, restarts: bool) -> list[Callable[[], None]]:
        """Each way in which a run may go, once."""
        stops: list[messages.How] = ["save", "term", "kill"]
        found: list[Callable[[], None]] = [self.completes, self.raises]
        found += [functools.partial(self.stopped, how) for how in stops]
        found += [
            lambda: self.killed(lambda _, child: child.children()[0], "failed"),
            lambda: self.killed(lambda _, child: child, "failed"),
            lambda: self.killed(lambda runner, _: runner, "completed"),
        ]
        self.random.shuffle(found)
        if not restarts:
            return found
        again = [lambda: self.daemon_killed(False), lambda: self.daemon_killed(True), self.reloaded]
        self.random.shuffle(again)
        # One at once, since the list may not be used up; the last is taken first.
        return [again[0], *found[:3], again[1], *found[3:], again[2]]

    # --- what is measured

    def measure(self, when: str) -> State:
        """While nothing runs, nobody goes away, and after the same requests each time."""
        for follower in self.followers:
            follower.stay.set()
        self._until_connected()
        wait_until(lambda: not self.behind(), "all followers have all", deadline=60)
        client = self.workspace.client()
        newest = max(self.expected)
        others = messages.ShowRun(newest), messages.ReadLog(newest), messages.GetStatus()
        for number in range(self.requests):
            client.call(messages.ListRuns(limit=20))
            if number % 4 == 0:
                client.call(others[number // 4 % len(others)])
                self.shim.get("/status")
        client.close()
        status = self.status()
        (tensorboard,) = [
            process
            for process in psutil.Process(status["pid"]).children()
            if "tensorboard.main" in process.cmdline()
        ]
        daemon, shim = psutil.Process(status["pid"]), psutil.Process(self.shim.process.pid)
        state = State(when, len(self.processes()), *_measured(daemon, shim, tensorboard))
        for follower in self.followers:
            follower.stay.clear()
        return state

    def _until_connected(self) -> None:
        wait_until(lambda: all(each.connected.is_set() for each in self.followers), "clients", deadline=60)

    def behind(self) -> list[str]:
        return [run for run in self.expected for each in self.followers if run not in each.digests]

    def processes(self) -> list[int]:
        """All that belong to this workspace."""
        mine, root = os.getpid(), str(self.workspace.root).encode()
        found = []
        for process in psutil.process_iter():
            try:
                folder = Path(f"/proc/{process.pid}")
                text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if root in text and process.pid != mine:
                found.append(process.pid)
        return found

    # --- what has to be true

    def wrong(self) -> list[str]:
        """All that does not agree."""
        runs = self.workspace.ask(messages.ListRuns(limit=10_000))
        assert isinstance(runs, messages.Runs)
        listed = {run.id for run in runs.runs}
        found = [f"{run} is not listed, or was never started" for run in listed ^ self.expected.keys()]
        for run in runs.runs:
            found += self._wrong_run(run)
        paths = {run: self.workspace.runs_dir / run / "output.log" for run in self.expected}
        for follower in self.followers:
            found += follower.wrong(paths)
        return found + [f"status: {notice}" for notice in self.status()["notices"]]

    def _wrong_run(self, run: messages.RunSummary) -> list[str]:
        folder = self.workspace.runs_dir / run.id
        steps = [int(step) for step in STEP.findall(self.workspace.log_text(run.id))]
        exit_ = json.loads((folder / "exit.json").read_text())
        checks = {
            f"{run.state}, not {self.expected[run.id]}: {run.reason}": run.state in self.expected[run.id],
            f"step {run.step}, and {steps[-1:]} printed": [run.step] == steps[-1:],
            "the steps printed have a gap": steps == list(range(1, len(steps) + 1)),
            f"exit {run.exit_code} {run.signal}, and {exit_} recorded": (run.exit_code, run.signal)
            == (exit_["code"], exit_["signal"]),
            "processes are left": not processes_of_run(run.id),
            "files are left": not list(folder.glob(".*")),
        }
        return [f"{run.id}: {what}" for what, holds in checks.items() if not holds]

    def close(self) -> None:
        for follower in self.followers:
            follower.over.set()
        self.shim.client.close()
        self.workspace.close()


def _memory(pid: int) -> tuple[int, int]:
    """Bytes that are of no file, and with the share in what others map too."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    anonymous, pss = (re.search(rf"^{name}: +(\d+) kB", text, re.M) for name in ("Anonymous", "Pss"))
    assert anonymous is not None and pss is not None
    return int(anonymous[1]) << 10, int(pss[1]) << 10


def _measured(*processes: psutil.Process) -> list[Measured]:
    """The least of some looks: an answer that is just being made is not what is kept."""
    looks: list[list[tuple[int, int, int]]] = [[] for _ in processes]
    for _ in range(SAMPLES):
        for process, found in zip(processes, looks, strict=True):
            found.append((*_memory(process.pid), process.num_fds()))
        time.sleep(0.2)
    return [Measured(*(min(column) for column in zip(*found, strict=True))) for found in looks]


def soak(
    minutes: float, runs: int, clients: int, seed: int, requests: int = REQUESTS
) -> tuple[list[State], list[str], int]:
    """What was measured, what was wrong, and how often followers went away."""
    first, last = min(FIRST, runs // 3), runs * 2 // 3
    made = Soak(clients, seed, requests)
    states: list[State] = []
    ways: list[Callable[[], None]] = []
    try:
        begun = time.monotonic()
        for number in range(runs):
            if number in (0, first, last):
                ways = []
            ways = ways or made.ways(restarts=first <= number < last)
            ways.pop()()
            ended = made.workspace.until_ended(max(made.expected))
            how = f"{ended['outcome']} {ended['reason'] or ''}"
            print(f"soak: {number + 1}/{runs} {max(made.expected)} {how}", flush=True)
            if number + 1 == first:
                states.append(made.measure(f"after {first} runs"))
            next_at = begun + (number + 1) * minutes * 60 / runs
            while (left := next_at - time.monotonic()) > 0:
                time.sleep(min(left, 1.0))
        states.append(made.measure(f"after {runs} runs"))
        return states, made.wrong(), sum(follower.left for follower in made.followers)
    finally:
        made.close()


def table(states: list[State]) -> tuple[str, list[str]]:
    """For people, and what has grown by more than it may."""
    before, after = states
    rows = [("processes of the workspace", before.processes, after.processes, True)]
    for name in ("daemon", "shim", "tensorboard"):
        one, two = getattr(before, name), getattr(after, name)
        judged = name != "tensorboard"
        memory = one.anonymous >> 10, two.anonymous >> 10
        rows.append((f"{name}: memory of its own (anonymous, KiB)", *memory, judged))
        rows.append((f"{name}: with what is shared (PSS, KiB)", one.pss >> 10, two.pss >> 10, False))
        rows.append((f"{name}: file descriptors", one.fds, two.fds, judged))
    lines = [f"| | {before.when} | {after.when} | |", "|---|---|---|---|"]
    grown = []
    for what, one, two, judged in rows:
        change = f"{(two / one - 1) * 100:+.1f} %"
        lines.append(f"| {what} | {one} | {two} | {change}{'' if judged else ' (not judged)'} |")
        if judged and two > one * MOST:
            grown.append(f"{what}: {change}")
    return "\n".join(lines), grown


def main() -> int:
    parser = argparse.ArgumentParser("python -m tools.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    asked = parser.parse_args()
    print(
        f"soak: {asked.runs} runs in {asked.minutes:g} minutes, {asked.clients} clients, --seed {asked.seed}"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    states, wrong, left = soak(asked.minutes, asked.runs, asked.clients, asked.seed)
    text, grown = table(states)
    print(f"\n{text}\n\nsoak: followers went away and came back {left} times")
    for what in (*wrong, *grown):
        print(f"soak: WRONG: {what}")
    print(f"soak: {'DOES NOT HOLD' if wrong or grown else 'holds'}")
    return 1 if wrong or grown else 0


if __name__ == "__main__":
    sys.exit(main())

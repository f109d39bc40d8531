"""Processes that are killed, run out of memory, refuse to end, hang or are somebody else's: what is kept."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dpiped import procs
from tests.harness import Workspace, processes_of_run
from tests.helpers import TRAINERS, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with any run."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def record(workspace: Workspace, run: str, name: str) -> Any:
    return json.loads((workspace.runs_dir / run / name).read_text())


def rewrite(workspace: Workspace, run: str, name: str, content: Any) -> None:
    (workspace.runs_dir / run / name).write_text(json.dumps(content))


def test_runner_and_daemon_killed_together_cost_nothing_but_the_exit_code(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    before = dpiped.until_step(3)
    os.kill(record(dpiped, run, "started.json")["runner"]["pid"], signal.SIGKILL)
    dpiped.kill_daemon()
    dpiped.start_daemon()
    assert dpiped.until_step(before["step"] + 3)["pid"] == before["pid"]
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", None)
    assert processes_of_run(run) == []


def test_all_killed_together_is_an_unknown_outcome_that_can_be_resumed(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    assert dpiped.ctl("save")[0] == 0
    runner = record(dpiped, run, "started.json")["runner"]["pid"]
    dpiped.kill_daemon()
    for pid in (runner, *processes_of_run(run)):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_of_run(run), "nothing lives")
    dpiped.start_daemon()
    last = dpiped.status()["last_run"]
    assert (last["id"], last["outcome"]) == (run, "unknown")
    assert "no exit record" in last["reason"]
    assert dpiped.json("resume")["resumed_from"] == run


@pytest.mark.parametrize(
    ("error", "code", "phrase"),
    [
        ("MemoryError", 1, "MemoryError"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", 1, "out of GPU memory: "),
        ("", 247, "a training process was killed (SIGKILL, -9), often by the kernel for lack of memory"),
        ("", 137, "a training process was killed (SIGKILL, -9), often by the kernel for lack of memory"),
    ],
)
def test_out_of_memory_is_said_in_words(dpiped: Workspace, error: str, code: int, phrase: str) -> None:
    run = dpiped.start(dpiped.config("exits", code=code, error=error))
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("failed", code)
    assert ended["reason"].startswith(phrase)
    assert processes_of_run(run) == []


def test_what_is_forked_while_it_is_looked_for_is_ended_too(workspace: Workspace) -> None:
    launcher = workspace.root / "bin/forking"
    launcher.write_text(f"#!{sys.executable}\n{(TRAINERS / 'forking_launcher.py').read_text()}")
    launcher.chmod(0o755)
    workspace.start_daemon(DEEPSPEED_BIN=str(launcher))
    run = workspace.start(workspace.config())
    assert workspace.until_ended(run)["outcome"] == "failed"
    assert record(workspace, run, "exit.json")["leftovers"] >= 1
    assert processes_of_run(run) == []


def test_a_runner_that_hangs_does_not_keep_a_run_for_ever(workspace: Workspace) -> None:
    daemon = workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="1")
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    os.kill(record(workspace, run, "started.json")["runner"]["pid"], signal.SIGSTOP)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert record(workspace, run, "outcome.json")["outcome"] == "stopped"
    assert processes_of_run(run) == []


def hanging(workspace: Workspace, behaviour: str, timeout: str, **script: Any) -> str:
    workspace.start_daemon(DIFFPIPE_HANG_TIMEOUT=timeout, DIFFPIPE_STOP_TIMEOUT="1")
    return workspace.start(workspace.config(behaviour, **script))


def test_caching_hang_is_ended_by_the_hang_timeout(workspace: Workspace) -> None:
    run = hanging(workspace, "caching_hang", "5")
    warning = wait_until(lambda: workspace.status()["run"]["warning"], "the warning")
    assert warning.startswith("caching died: AssertionError") and "(DIFFPIPE_HANG_TIMEOUT)" in warning
    ended = workspace.until_ended(run)
    assert ended["outcome"] == "failed"
    assert re.search(r"had no images/videos!; after that nothing was printed for \d+ s", ended["reason"])
    assert record(workspace, run, "stop.json")["by"] == "DIFFPIPE_HANG_TIMEOUT"
    assert processes_of_run(run) == []


def test_silence_is_warned_about_and_ended_by_the_hang_timeout_only(workspace: Workspace) -> None:
    run = hanging(workspace, "stubborn", "6", quiet_after=3)
    warning = wait_until(lambda: workspace.status()["run"]["warning"], "the warning")
    assert warning.startswith("nothing was printed for ") and "the run is ended after 6 s" in warning
    ended = workspace.until_ended(run)
    assert ended["outcome"] == "failed"
    assert re.search(r"nothing was printed for \d+ s \(phase training\); the run hung", ended["reason"])
    assert processes_of_run(run) == []


def test_one_that_speaks_is_not_ended_by_the_hang_timeout(workspace: Workspace) -> None:
    # Also a progress bar that never ends its line is a sign of life.
    run = hanging(workspace, "bar", "4", steps=20, go=str(workspace.go), every=0.2)
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 6, "more than the timeout", every=0.1)
    workspace.go.touch()
    assert workspace.until_ended(run)["outcome"] == "completed"


def test_a_run_that_completed_and_did_not_end_has_completed(workspace: Workspace) -> None:
    run = hanging(workspace, "lingers", "4", steps=2)
    ended = workspace.until_ended(run)
    assert ended["outcome"] == "completed"
    assert "it had completed, but did not end by itself" in ended["reason"]


def test_a_run_that_completed_and_ended_badly_has_completed(dpiped: Workspace) -> None:
    """All is written by then, and to go on from there would be to train past the epochs."""
    crashed = dpiped.start(dpiped.config("ends_badly", steps=2))
    ended = dpiped.until_ended(crashed)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", 3)
    assert "it had completed; after that, exit code 3" in ended["reason"]
    lingering = dpiped.start(dpiped.config("lingers", steps=2))
    wait_until(lambda: "COMPLETE" in dpiped.log_text(lingering), "it has completed")
    assert dpiped.ctl("stop")[0] == 0
    ended = dpiped.until_ended(lingering)
    assert ended["outcome"] == "completed" and "stopped by request before its processes" in ended["reason"]
    for run in (crashed, lingering):
        assert dpiped.ctl("wait", run)[0] == 0
        code, _, error = dpiped.ctl("resume", run)
        assert code == 5 and "would train past its epochs" in error


def test_the_hang_timeout_goes_on_over_a_restart_of_the_daemon(workspace: Workspace) -> None:
    run = hanging(workspace, "caching_hang", "4")
    # No daemon lives as long as the timeout.
    for _ in range(8):
        until = time.monotonic() + 2.7

        def looked_long_enough(until: float = until) -> bool:
            return workspace.status()["state"] != "running" or time.monotonic() > until

        wait_until(looked_long_enough, "the end of the run, or of this daemon's time", every=0.1)
        ended = workspace.status()["state"] != "running"
        if ended:
            break
        workspace.kill_daemon()
        workspace.start_daemon(DIFFPIPE_HANG_TIMEOUT="4", DIFFPIPE_STOP_TIMEOUT="1")
    assert ended, "the silence was measured anew by each daemon"
    assert workspace.until_ended(run)["outcome"] == "failed"


def test_machine_rebooted_is_an_unknown_outcome_and_signals_nobody(
    dpiped: Workspace, stranger: "subprocess.Popen[bytes]"
) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    assert dpiped.ctl("save")[0] == 0
    assert dpiped.ctl("stop", "--save", "--timeout", "3000", "--no-wait")[0] == 0
    dpiped.until_ended(run)
    dpiped.kill_daemon()
    # As it would be after a power cut: pids of another boot, that others have now, and a stop under way.
    for name in ("exit.json", "outcome.json"):
        (dpiped.runs_dir / run / name).unlink()
    started, now = record(dpiped, run, "started.json"), procs.look(stranger.pid)
    assert now is not None
    for who in ("runner", "child"):
        started[who] = {"pid": stranger.pid, "start": now.start, "boot": "another-boot"}
    rewrite(dpiped, run, "started.json", started)
    rewrite(dpiped, run, "stop.json", record(dpiped, run, "stop.json") | {"boot": "another-boot"})
    (dpiped.runs_dir / run / "output.log").write_text(
        "steps: 2 loss: 1.0 iter time (s): 1.0 samples/sec: 1\n"
    )
    dpiped.start_daemon()
    status = dpiped.status()
    assert (status["state"], status["last_run"]["id"]) == ("idle", run)
    assert status["last_run"]["outcome"] == "stopped", "it was asked for before the machine went down"
    (dpiped.runs_dir / run / "stop.json").unlink()
    (dpiped.runs_dir / run / "outcome.json").unlink()
    dpiped.kill_daemon()
    dpiped.start_daemon()
    last = dpiped.status()["last_run"]
    assert (last["outcome"], last["exit_code"]) == ("unknown", None)
    assert "the runner or the machine went down" in last["reason"]
    assert dpiped.json("resume")["resumed_from"] == run
    assert stranger.poll() is None


def test_recycled_pid_is_never_signalled(dpiped: Workspace, stranger: "subprocess.Popen[bytes]") -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    dpiped.kill_daemon()
    started = record(dpiped, run, "started.json")
    # The runner's and the launcher's numbers are the stranger's now; one of its own processes goes on.
    for who in ("runner", "child"):
        os.kill(started[who]["pid"], signal.SIGKILL)
        started[who]["pid"] = stranger.pid
    rewrite(dpiped, run, "started.json", started)
    dpiped.start_daemon()
    wait_until(lambda: dpiped.status()["state"] in ("running", "idle"), "it is followed")
    dpiped.ctl("stop")
    assert dpiped.until_ended(run)["outcome"] in ("stopped", "unknown")
    assert processes_of_run(run) == []
    assert stranger.poll() is None
    # A run that is over, and whose pid is anybody's.
    (dpiped.runs_dir / run / "outcome.json").unlink()
    (dpiped.runs_dir / run / "exit.json").unlink()
    dpiped.kill_daemon()
    dpiped.start_daemon()
    assert dpiped.status()["state"] == "idle"
    assert dpiped.until_ended(dpiped.start(dpiped.config(steps=1)))["outcome"] == "completed"
    assert stranger.poll() is None


def test_a_daemon_that_stood_still_takes_nobody_for_silent(workspace: Workspace) -> None:
    # As in a container that was paused: the training stood still as well.
    run = hanging(workspace, "well_behaved", "3", until=str(workspace.go))
    workspace.until_step(2)
    assert workspace.daemon is not None
    whole = [workspace.daemon.pid, *processes_of_run(run)]
    for pid in whole:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 4
    wait_until(lambda: time.monotonic() > until, "longer than the timeout", every=0.1)
    for pid in whole:
        os.kill(pid, signal.SIGCONT)
    step = workspace.status()["run"]["step"]
    workspace.until_step(step + 50)
    workspace.go.touch()
    assert workspace.until_ended(run)["outcome"] == "completed"

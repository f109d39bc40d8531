"""The ways down: shortened, hurried, asked for while others stop, or not possible as asked."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dpiped import rundir
from dpiped.rundir import Exit, Spec
from dpiped.settings import RUN_MARKER
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import TRAINERS, wait_until

pytestmark = pytest.mark.timeout(60)
LONG = "3000"
"""Seconds that no test waits for."""


def test_a_stop_under_way_is_shortened_by_the_next(workspace: Workspace) -> None:
    workspace.start_daemon()
    run = workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    assert workspace.ctl("stop", "--timeout", LONG, "--no-wait")[0] == 0
    assert workspace.ctl("stop", "--timeout", "1")[0] == 0
    assert workspace.until_ended(run)["outcome"] == "stopped"
    assert processes_of_run(run) == []


def test_what_a_run_was_about_to_fail_of_when_it_was_stopped_is_said(dpiped: Workspace) -> None:
    told = "[ERROR] [launch.py:325:sigkill_handler] exits with return code = -9"
    run = dpiped.start(dpiped.config("says", texts=[told], until=str(dpiped.go)))
    why = wait_until(lambda: dpiped.status()["run"]["failing"], "it is about to fail")
    assert dpiped.ctl("stop")[0] == 0
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "stopped" and ended["reason"].endswith(f"; before that, {why}")


@pytest.mark.parametrize("late", ["rank", "helper"])
def test_a_rank_born_while_the_launcher_dies_is_told_to_end_and_a_helper_is_let(
    workspace: Workspace, late: str
) -> None:
    launcher, ready, done = (workspace.root / name for name in ("bin/late", "ready", "done"))
    launcher.write_text(f"#!{sys.executable}\n{(TRAINERS / 'late_launcher.py').read_text()}")
    launcher.chmod(0o755)
    workspace.start_daemon(DEEPSPEED_BIN=str(launcher), DIFFPIPE_STOP_TIMEOUT=LONG)
    words = [f"--env={name}={value}" for name, value in (("LATE", late), ("READY", ready), ("DONE", done))]
    run = workspace.start(workspace.config(), *words)
    wait_until(ready.exists, "the launcher is ready")
    assert workspace.ctl("stop")[0] == 0
    assert done.exists() and workspace.until_ended(run)["outcome"] == "stopped"
    assert processes_of_run(run) == []


def test_a_rung_that_can_not_be_taken_does_not_end_the_ladder(workspace: Workspace) -> None:
    launcher = workspace.root / "bin/deaf"
    launcher.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    launcher.chmod(0o755)
    daemon = psutil.Process(workspace.start_daemon(DEEPSPEED_BIN=str(launcher)).pid)
    run = workspace.start(workspace.config())
    assert workspace.ctl("stop", "--timeout", "2", "--no-wait")[0] == 0
    # Without files it can look at no process.
    files = daemon.rlimit(psutil.RLIMIT_NOFILE)
    daemon.rlimit(psutil.RLIMIT_NOFILE, (3, files[1]))
    kills = f"stopping run {run}: sent SIGKILL"
    wait_until(lambda: kills in workspace.daemon_log(), "the rung that can't be taken")
    daemon.rlimit(psutil.RLIMIT_NOFILE, files)
    assert workspace.until_ended(run, 10)["outcome"] == "stopped"
    assert processes_of_run(run) == []


def test_a_stop_that_waits_for_a_checkpoint_is_shortened_by_the_next(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("bar"))
    wait_until(lambda: dpiped.status()["run"]["train_dir"], "the directory")
    assert dpiped.ctl("stop", "--save", "--timeout", LONG, "--no-wait")[0] == 0
    assert dpiped.ctl("stop", "--save", "--timeout", "0.5")[0] == 0
    assert dpiped.until_ended(run)["outcome"] == "stopped"


def test_the_end_of_the_daemon_does_not_wait_for_a_long_stop(workspace: Workspace) -> None:
    daemon = workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="2")
    run = workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    assert workspace.ctl("stop", "--timeout", LONG, "--no-wait")[0] == 0
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert processes_of_run(run) == []


def test_who_asked_first_is_who_stopped_it(workspace: Workspace) -> None:
    config = workspace.config("stubborn")
    daemon = workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="1", DIFFPIPE_CONFIG=str(config))
    run = workspace.until_step(2)["id"]
    assert workspace.ctl("stop", "--timeout", LONG, "--no-wait")[0] == 0
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    asked = json.loads((workspace.runs_dir / run / "stop.json").read_text())
    assert (asked["by"], asked["how"]) == ("request", "kill")
    workspace.start_daemon(DIFFPIPE_CONFIG=str(config))
    notices = wait_until(lambda: workspace.status()["notices"], "the decision")
    assert "was stopped by request" in notices[0]
    assert len(workspace.json("runs")) == 1


def test_a_client_that_asks_second_for_no_more_is_heard_as_well(workspace: Workspace) -> None:
    config = workspace.config("stubborn")
    daemon = workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT=LONG, DIFFPIPE_CONFIG=str(config))
    run = workspace.until_step(2)["id"]
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: workspace.status()["run"]["stopping"], "the daemon's own stop")
    assert workspace.ctl("stop", "--timeout", str(int(LONG) * 2), "--no-wait")[0] == 0
    started = json.loads((workspace.runs_dir / run / "started.json").read_text())
    for pid in set(processes_of_run(run)) - {started["runner"]["pid"]}:
        os.kill(pid, signal.SIGKILL)
    assert daemon.wait(30) == 0
    workspace.start_daemon(DIFFPIPE_CONFIG=str(config))
    notices = wait_until(lambda: workspace.status()["notices"], "the decision")
    assert "was stopped by request" in notices[0]
    assert len(workspace.json("runs")) == 1


def test_a_service_run_that_hung_and_was_stopped_does_not_begin_anew(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_CONFIG=str(workspace.config("caching_hang")))
    wait_until(lambda: (run := workspace.status()["run"]) and run["warning"], "the warning")
    assert workspace.ctl("stop")[0] == 0
    assert workspace.status()["last_run"]["outcome"] == "failed"
    assert workspace.ctl("reload")[0] == 0
    notices = wait_until(lambda: workspace.status()["notices"], "the decision")
    assert "is not trained again" in notices[0]
    assert len(workspace.json("runs")) == 1


def test_a_save_that_can_not_be_asked_for_is_refused_with_its_reason(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("bar"))
    train_dir = Path(wait_until(lambda: dpiped.status()["run"]["train_dir"], "the directory"))
    shutil.rmtree(train_dir)
    error = dpiped.json("save", code=4)["error"]
    assert error["code"] == "refused" and "No such file or directory" in error["message"]
    code, out, _ = dpiped.ctl("stop", "--save", "--no-wait")
    assert code == 0
    assert "save_quit can't be written: No such file or directory; sent SIGTERM" in out
    assert dpiped.until_ended(run)["outcome"] == "stopped"


@pytest.mark.parametrize("pause", [0.0, 0.03, 0.06, 0.1, 0.2])
def test_a_hangup_while_the_daemon_comes_up_does_not_kill_it(workspace: Workspace, pause: float) -> None:
    with (workspace.root / "daemon.log").open("wb") as log:
        held = subprocess.Popen([str(BIN / "dpiped")], env=workspace.env, stdout=log, cwd=workspace.root)
    workspace.started.append(held)
    # Before the interpreter has reached the daemon's first line nobody can hold a signal back.
    wait_until(lambda: has_in(held.pid, "SigBlk", signal.SIGHUP), "its first line", every=0.001)
    until = time.monotonic() + pause
    wait_until(lambda: time.monotonic() >= until, "the pause", every=0.001)
    os.kill(held.pid, signal.SIGHUP)
    wait_until(lambda: workspace.daemon_log().count("listening on") == 2, "it is re-executed")
    assert held.poll() is None
    assert workspace.status()["pid"] == held.pid


def has_in(pid: int, mask: str, number: int) -> bool:
    """Is that signal in that mask of proc(5)? SigBlk: held back, SigCgt: handled, ShdPnd: pending."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = next(int(line.split()[1], 16) for line in lines if line.startswith(f"{mask}:"))
    return bool(found >> (number - 1) & 1)


def test_a_signal_to_the_runner_before_it_launches_reaches_the_training(workspace: Workspace) -> None:
    run = "20260101-000000-000abcd"
    folder, environment = workspace.runs_dir / run, workspace.env | {RUN_MARKER: run}
    workspace.runs_dir.mkdir(parents=True)
    out = str(workspace.root)
    argv = ("/bin/sleep", "10")
    spec = Spec(run=run, created=0.0, argv=argv, cwd=out, env={}, source="", digest="", output_dir=out)
    rundir.create(folder, {}, spec)
    # The log can't be opened for writing before somebody reads it.
    os.mkfifo(folder / rundir.LOG)
    runner = subprocess.Popen([str(BIN / "dpiped"), "runner", str(folder)], env=environment)
    wait_until(lambda: has_in(runner.pid, "SigCgt", signal.SIGTERM), "its handlers")
    runner.send_signal(signal.SIGTERM)
    wait_until(lambda: not has_in(runner.pid, "ShdPnd", signal.SIGTERM), "it has taken that in")
    with (folder / rundir.LOG).open("rb") as log:
        assert log.read() == b""
    assert runner.wait(20) == 0
    exit_ = rundir.read(folder, Exit)
    assert exit_ is not None and exit_.signal == signal.SIGTERM

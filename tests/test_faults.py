"""Faults that must cost neither the daemon nor what it says of a run: each was met once."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from dpiped import recovery, rundir
from dpiped.history import conclude_from_records
from dpiped.outcome import conclude
from dpiped.progress import Progress
from dpiped.rundir import Exit, Spec, StopAsked
from dpiped.settings import load
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)


def runner_of(workspace: Workspace, run: str) -> int:
    pid: int = json.loads((workspace.runs_dir / run / "started.json").read_text())["runner"]["pid"]
    return pid


def test_a_replaced_runner_is_known_to_the_next_daemon(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    first = runner_of(dpiped, run)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: runner_of(dpiped, run) != first, "another runner has recorded itself")
    dpiped.kill_daemon()
    dpiped.start_daemon()
    before = dpiped.until_step(20)["step"]
    dpiped.until_step(before + 50)
    assert dpiped.daemon_log().count("another one takes over") == 1
    assert dpiped.daemon is not None
    assert psutil.Process(dpiped.daemon.pid).children() == []
    assert dpiped.ctl("stop")[0] == 0
    assert processes_of_run(run) == []


def test_the_stop_timeout_is_honoured_when_the_launcher_dies_first(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="15")
    run = workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    begun = time.monotonic()
    assert workspace.ctl("stop")[0] == 0
    assert 15 <= time.monotonic() - begun < 25
    assert processes_of_run(run) == []


def test_a_latest_of_nothing_but_nulls_is_no_checkpoint(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    train_dir = Path(dpiped.until_step(2) and wait_until(lambda: dpiped.status()["run"]["train_dir"], "it"))
    (train_dir / "latest").write_bytes(b"\0" * 13)
    assert dpiped.ctl("stop")[0] == 0
    assert dpiped.until_ended(run)["outcome"] == "stopped"
    (dpiped.runs_dir / run / "outcome.json").unlink()
    dpiped.kill_daemon()
    dpiped.start_daemon()
    assert dpiped.json("show", run)["checkpoint"] is None
    assert "holds no checkpoint" in dpiped.json("resume", code=5)["error"]["message"]


def test_a_run_that_nobody_saw_end_has_its_directory_all_the_same(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=3, caching_seconds=1.0))
    dpiped.kill_daemon()
    dpiped.until_gone(run)
    dpiped.start_daemon()
    found = dpiped.json("show", run)
    assert found["state"] == "completed"
    assert Path(found["train_dir"]).parent == dpiped.root / "outputs"
    assert list((dpiped.root / "logs/diffusion-pipe" / run).glob("events.out.tfevents.*"))


def test_last_is_the_last_also_of_quick_runs(dpiped: Workspace) -> None:
    for _ in range(6):
        run = dpiped.start(dpiped.config(steps=1, seconds_per_step=0.0))
        dpiped.until_ended(run)
        assert dpiped.json("show", "last")["id"] == run


def test_a_run_directory_half_made_is_removed_and_is_never_the_last(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1))
    dpiped.until_ended(run)
    dpiped.kill_daemon()
    (dpiped.runs_dir / ".20991231-000000-000aa").mkdir()
    dpiped.start_daemon()
    assert [path.name for path in dpiped.runs_dir.iterdir()] == [run]
    assert dpiped.json("show", "last")["id"] == run


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.15, 0.3])
def test_sigterm_right_after_a_reload_still_ends_everything(dpiped: Workspace, pause: float) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    assert dpiped.daemon is not None
    dpiped.daemon.send_signal(signal.SIGHUP)
    until = time.monotonic() + pause
    wait_until(lambda: time.monotonic() >= until, "the pause", every=0.005)
    dpiped.daemon.send_signal(signal.SIGTERM)
    assert dpiped.daemon.wait(30) == 0
    assert processes_of_run(run) == []


def test_a_reload_while_the_daemon_ends_is_refused_and_hurries_nothing(workspace: Workspace) -> None:
    daemon = workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="4")
    workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    begun = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: workspace.status()["state"] == "stopping", "stopping")
    assert workspace.json("reload", code=4)["error"]["code"] == "refused"
    assert workspace.json("start", "--config", str(workspace.config()), code=4)["error"]["code"] == "refused"
    daemon.send_signal(signal.SIGHUP)
    assert daemon.wait(30) == 0
    assert time.monotonic() - begun >= 4


def test_those_who_wait_are_told_the_outcome_when_the_daemon_ends(dpiped: Workspace) -> None:
    dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    words = [str(BIN / "dpipectl"), "wait"]
    waiting = subprocess.Popen(
        words, env=dpiped.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    dpiped.until_step(40)
    assert dpiped.end_daemon() == 0
    out, err = waiting.communicate(timeout=10)
    assert (waiting.returncode, "stopped by SIGTERM" in out) == (1, True), err


def test_caching_alone_does_not_count_as_trained(workspace: Workspace) -> None:
    config = workspace.config(steps=2)
    workspace.start_daemon()
    workspace.until_ended(workspace.start(config, "--", "--cache_only"))
    workspace.end_daemon()
    workspace.start_daemon(DIFFPIPE_CONFIG=str(config))
    wait_until(lambda: len(workspace.json("runs")) == 2, "the training of the service")


def test_a_service_run_that_was_stopped_does_not_begin_anew_by_a_reload(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_CONFIG=str(workspace.config(steps=1_000_000)))
    workspace.until_step(2)
    assert workspace.ctl("stop")[0] == 0
    assert workspace.ctl("reload")[0] == 0
    wait_until(lambda: "was stopped by request" in workspace.daemon_log(), "the decision")
    assert len(workspace.json("runs")) == 1


def test_tails_have_the_lines_asked_for_and_what_does_not_go_together_is_said(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("bar"))
    wait_until(lambda: dpiped.json("logs", run)["current"], "an unfinished line")
    assert len(dpiped.json("logs", run, "-n", "2")["lines"]) == 2
    assert dpiped.json("logs", "--raw", code=2)["error"]["code"] == "usage"
    assert dpiped.json("logs", "-n", "200000", code=2)["error"]["code"] == "usage"
    assert dpiped.json("--version") == {"version": "0.1.0"}


def touching(folder: Path) -> tuple[Spec, Path]:
    """The record of a run whose whole training is to make a file, and that file."""
    made = folder / "was-launched"
    spec = Spec(
        run=folder.name,
        created=1.0,
        argv=("touch", str(made)),
        cwd="/",
        env={},
        source="",
        digest="",
        output_dir=str(folder),
    )
    rundir.write(folder, spec)
    return spec, made


def run_the_runner(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [str(BIN / "dpiped"), "runner", str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_run_that_is_stopped_before_its_launch_is_not_launched(tmp_path: Path) -> None:
    _, made = touching(tmp_path)
    asked = StopAsked("term", "request", 1.0, 2.0, "boot")
    rundir.write(tmp_path, asked)
    assert run_the_runner(tmp_path).returncode == 0
    exit_ = rundir.read(tmp_path, Exit)
    assert exit_ is not None and (exit_.code, exit_.signal, exit_.error) == (None, None, None)
    assert conclude(exit_, asked, Progress().snapshot()).outcome == "stopped"
    assert not made.exists()


def test_a_run_that_was_stopped_and_never_launched_was_stopped(tmp_path: Path) -> None:
    spec, _ = touching(tmp_path)
    assert conclude_from_records(tmp_path, spec).outcome == "failed"
    rundir.write(tmp_path, StopAsked("term", "request", 1.0, 2.0, "boot"))
    found = conclude_from_records(tmp_path, spec)
    assert (found.outcome, found.reason) == ("stopped", "stopped by request before it was launched")


def test_a_run_that_was_given_up_is_not_launched_by_a_runner_that_comes_late(tmp_path: Path) -> None:
    spec, made = touching(tmp_path)
    rundir.write(tmp_path, conclude_from_records(tmp_path, spec))
    done = run_the_runner(tmp_path)
    assert (done.returncode, "was given up" in done.stderr) == (1, True)
    assert not made.exists() and rundir.read(tmp_path, Exit) is None


def test_a_runner_waits_for_who_looks_at_its_run(tmp_path: Path) -> None:
    _, made = touching(tmp_path)
    held = rundir.claim(tmp_path)
    assert held is not None
    runner = subprocess.Popen([str(BIN / "dpiped"), "runner", str(tmp_path)])
    until = time.monotonic() + 1.0
    wait_until(lambda: time.monotonic() >= until, "a second", every=0.05)
    assert runner.poll() is None and not made.exists()
    os.close(held)
    assert runner.wait(20) == 0
    assert made.exists()


def test_a_run_that_somebody_holds_is_neither_concluded_nor_launched_twice(dpiped: Workspace) -> None:
    dpiped.kill_daemon()
    folder = dpiped.runs_dir / "20260101-000000-00000"
    folder.mkdir()
    _, made = touching(folder)
    held = rundir.claim(folder)
    assert held is not None
    done = run_the_runner(folder)
    assert (done.returncode, "another process has" in done.stderr) == (1, True)
    alive, problems = recovery.sort_out(load(dpiped.env), dpiped.runs_dir)
    assert ([live.id for live in alive], problems) == ([folder.name], [])
    os.close(held)
    alive, problems = recovery.sort_out(load(dpiped.env), dpiped.runs_dir)
    assert (alive, problems) == ([], [])
    assert not made.exists()


def test_an_over_long_name_is_the_users_error(dpiped: Workspace) -> None:
    config = dpiped.config()
    long = "x" * 300
    config.write_text(config.read_text().replace("dataset.toml", f"{long}.toml"))
    error = dpiped.json("start", "--config", str(config), code=5)["error"]
    assert (error["code"], error["field"]) == ("invalid", "dataset")
    error = dpiped.json(
        "start", "--config", str(dpiped.config()), "--", f"--resume_from_checkpoint={long}", code=5
    )
    assert error["error"]["field"] == "resume_from_checkpoint"

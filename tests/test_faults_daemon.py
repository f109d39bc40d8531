"""The daemon is killed, replaced, reloaded, doubled: the training and its log must not notice."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import TRAINERS, wait_until

pytestmark = pytest.mark.timeout(60)


def assert_every_line_once(workspace: Workspace, run: str, steps: int) -> None:
    """The log holds each step once, in order, and the client shows exactly the log."""
    text = workspace.log_text(run)
    assert [int(step) for step in re.findall(r"^steps: (\d+) ", text, re.MULTILINE)] == list(
        range(1, steps + 1)
    )
    assert workspace.ctl("logs", run, "--all")[1] == text


def test_daemon_killed_while_running_costs_nothing(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    before = dpiped.until_step(5)
    dpiped.kill_daemon()
    reached = len(dpiped.log_text(run))
    wait_until(lambda: len(dpiped.log_text(run)) > reached + 200, "the training goes on by itself")
    dpiped.start_daemon()
    after = dpiped.status()
    assert (after["state"], after["run"]["id"], after["run"]["pid"]) == ("running", run, before["pid"])
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", 0)
    assert_every_line_once(dpiped, run, ended["step"])


def test_a_follower_loses_and_repeats_nothing_when_the_daemon_is_killed(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    words = [str(BIN / "dpipectl"), "logs", "-f", "--all"]
    follower = subprocess.Popen(words, env=dpiped.env, stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    first = follower.stdout.readline()
    dpiped.until_step(10)
    dpiped.kill_daemon()
    dpiped.start_daemon()
    dpiped.go.touch()
    rest = follower.stdout.read()
    assert follower.wait(30) == 0
    assert first + rest == dpiped.log_text(run)
    assert_every_line_once(dpiped, run, dpiped.until_ended(run)["step"])


def test_a_run_that_ended_while_no_daemon_ran_is_concluded(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("raises"))
    dpiped.kill_daemon()
    dpiped.until_gone(run)
    dpiped.start_daemon()
    last = dpiped.status()["last_run"]
    assert (last["id"], last["outcome"], last["exit_code"]) == (run, "failed", 1)
    assert "illegal memory access" in last["reason"]


@pytest.mark.parametrize("moment", ["spec.json", "output.log", "started.json"])
def test_daemon_killed_while_starting(dpiped: Workspace, moment: str) -> None:
    words = [str(BIN / "dpipectl"), "start", "--config", str(dpiped.config(steps=50))]
    asking = subprocess.Popen(words, env=dpiped.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # A run directory that is still being made has a name that begins with a dot; that is the test below.
    found = wait_until(lambda: list(dpiped.runs_dir.glob(f"[!.]*/{moment}")), moment, every=0.0005)
    dpiped.kill_daemon()
    run = found[0].parent.name
    dpiped.start_daemon()
    asking.communicate(timeout=30)
    # Its daemon went away, or had answered just before.
    assert asking.returncode in (0, 3)
    ended = dpiped.until_ended(run)
    if ended["outcome"] == "failed":
        # Killed between the record and the spawn: nothing was started, and that is what it says.
        assert moment == "spec.json" and "never launched" in ended["reason"]
        assert not (dpiped.runs_dir / run / "output.log").exists()
    else:
        assert (ended["outcome"], ended["exit_code"]) == ("completed", 0)
        assert_every_line_once(dpiped, run, 50)
    assert [path.name for path in dpiped.runs_dir.iterdir()] == [run]
    assert processes_of_run(run) == []


@pytest.mark.parametrize("file", ["training_config.toml", "spec.json", "dataset_config.toml"])
def test_daemon_killed_while_it_makes_the_run_directory(workspace: Workspace, file: str) -> None:
    workspace.start_daemon(sys.executable, str(TRAINERS / "killed_daemon.py"), file)
    config = workspace.config(steps=1)
    assert workspace.json("start", "--config", str(config), code=3)["error"]["code"] == "unreachable"
    assert [path.name[:1] for path in workspace.runs_dir.iterdir()] == ["."]
    workspace.start_daemon()
    assert list(workspace.runs_dir.iterdir()) == []
    assert workspace.status()["state"] == "idle" and workspace.status()["last_run"] is None
    assert workspace.until_ended(workspace.start(config))["outcome"] == "completed"


def test_daemon_killed_while_stopping_stops_all_the_same(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="3")
    run = workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    assert workspace.ctl("stop", "--no-wait")[0] == 0
    assert workspace.status()["state"] == "stopping"
    workspace.kill_daemon()
    assert processes_of_run(run)
    workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="3")
    ended = workspace.until_ended(run)
    assert (ended["outcome"], ended["reason"].startswith("stopped by request")) == ("stopped", True)
    assert processes_of_run(run) == []


def test_daemon_killed_while_saving_keeps_the_checkpoint(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000, seconds_per_step=0.5))
    dpiped.until_step(1)
    assert dpiped.ctl("stop", "--save", "--no-wait")[0] == 0
    dpiped.kill_daemon()
    dpiped.start_daemon()
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "stopped" and "checkpoint: global_step" in ended["reason"]
    assert ended["exit_code"] == 0


def test_runner_killed_is_replaced_and_the_training_goes_on(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    dpiped.until_step(3)
    runner = json.loads((dpiped.runs_dir / run / "started.json").read_text())["runner"]["pid"]
    os.kill(runner, signal.SIGKILL)
    wait_until(lambda: "another one takes over" in dpiped.daemon_log(), "the new runner")
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", None)
    assert_every_line_once(dpiped, run, ended["step"])


def test_runner_killed_and_then_stopped_leaves_nothing(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(3)
    runner = json.loads((dpiped.runs_dir / run / "started.json").read_text())["runner"]["pid"]
    os.kill(runner, signal.SIGKILL)
    assert dpiped.ctl("stop")[0] == 0
    assert dpiped.until_ended(run)["outcome"] == "stopped"
    assert processes_of_run(run) == []


def test_sigterm_to_the_daemon_stops_the_run_and_leaves_nothing(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    assert dpiped.end_daemon() == 0
    assert processes_of_run(run) == []
    assert not Path(dpiped.env["DIFFPIPE_SOCKET"]).exists()
    dpiped.start_daemon()
    last = dpiped.status()["last_run"]
    assert (last["outcome"], last["reason"].startswith("stopped by SIGTERM")) == ("stopped", True)


def test_a_second_sigterm_takes_the_last_rung(workspace: Workspace) -> None:
    daemon = workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="3000")
    run = workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    daemon.send_signal(signal.SIGTERM)
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: workspace.status()["state"] == "stopping", "stopping")

    def ended_by_another() -> bool:
        # Twins of the first signal are ignored for a second, so this one may have to be repeated.
        daemon.send_signal(signal.SIGTERM)
        return daemon.poll() is not None

    wait_until(ended_by_another, "the last rung", every=0.5)
    assert daemon.returncode == 0
    assert processes_of_run(run) == []


def test_on_exit_detach_leaves_the_run_to_the_next_daemon(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_ON_EXIT="detach")
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    assert workspace.end_daemon() == 0
    assert processes_of_run(run)
    workspace.start_daemon()
    workspace.go.touch()
    ended = workspace.until_ended(run)
    assert ended["outcome"] == "completed"
    assert_every_line_once(workspace, run, ended["step"])


def test_reload_keeps_pid_and_run(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    before = dpiped.until_step(3)
    assert dpiped.daemon is not None
    answer = dpiped.json("reload")
    assert answer["pid"] == dpiped.daemon.pid == dpiped.json("reload")["pid"]
    assert dpiped.daemon.poll() is None
    assert dpiped.daemon_log().count("listening on") == 3, "it was executed anew each time"
    assert dpiped.status()["run"]["pid"] == before["pid"]
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "completed"
    assert_every_line_once(dpiped, run, ended["step"])
    status = Path(f"/proc/{dpiped.daemon.pid}/task/{dpiped.daemon.pid}/children").read_text()
    assert status == "", "the ended runner was reaped"


def test_a_run_that_ends_during_a_reload_leaves_no_zombie(workspace: Workspace) -> None:
    daemon = psutil.Process(workspace.start_daemon().pid)
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "INFO dpiped: reloading" in workspace.daemon_log(), "nobody follows it", every=0.001)
    daemon.suspend()
    workspace.go.touch()
    workspace.until_gone(run)
    daemon.resume()
    wait_until(workspace.answers, "the daemon after the reload")
    assert workspace.status()["last_run"]["outcome"] == "completed"
    assert [child for child in daemon.children() if child.status() == psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("shared", ["DIFFPIPE_STATE_DIR", "DIFFPIPE_SOCKET"])
def test_a_second_daemon_is_refused_and_disturbs_nothing(dpiped: Workspace, shared: str) -> None:
    other = {
        "DIFFPIPE_STATE_DIR": str(dpiped.root / "other"),
        "DIFFPIPE_SOCKET": str(dpiped.root / "other/d.sock"),
    }
    del other[shared]
    second = subprocess.run(
        [str(BIN / "dpiped")], env=dpiped.env | other, capture_output=True, text=True, timeout=20, check=False
    )
    assert second.returncode == 1
    assert dpiped.daemon is not None
    assert f"another dpiped (pid {dpiped.daemon.pid})" in second.stderr
    assert dpiped.answers()


def test_a_damaged_run_directory_disturbs_no_other(dpiped: Workspace) -> None:
    good = dpiped.start(dpiped.config(steps=2))
    dpiped.until_ended(good)
    bad = dpiped.start(dpiped.config(steps=2))
    dpiped.until_ended(bad)
    (dpiped.runs_dir / bad / "outcome.json").write_text('{"outc')
    dpiped.kill_daemon()
    dpiped.start_daemon()
    states = {run["id"]: run["state"] for run in dpiped.json("runs")}
    assert states == {good: "completed", bad: "damaged"}
    status = dpiped.status()
    assert status["last_run"]["id"] == good
    assert any(bad in notice for notice in status["notices"])
    assert dpiped.json("show", bad, code=5)["error"]["code"] == "run_damaged"


def test_service_config_is_trained_once_and_again_when_it_has_changed(workspace: Workspace) -> None:
    config = workspace.config(steps=3)
    service = {
        "DIFFPIPE_CONFIG": str(config),
        "DIFFPIPE_EXTRA_ARGS": "--cache_only",
        "DIFFPIPE_NUM_GPUS": "3",
    }
    workspace.start_daemon(**service)
    first = wait_until(lambda: workspace.status()["last_run"], "the run of the service")
    assert first["outcome"] == "completed"
    argv = workspace.json("show", first["id"])["argv"]
    assert (argv[1], argv[-1]) == ("--num_gpus=3", "--cache_only")
    workspace.end_daemon()
    workspace.start_daemon(**service)
    wait_until(lambda: "is not trained again" in workspace.daemon_log(), "the decision")
    assert [run["id"] for run in workspace.json("runs")] == [first["id"]]
    workspace.end_daemon()
    config.write_text(config.read_text() + "# changed\n")
    workspace.start_daemon(**service)
    wait_until(lambda: len(workspace.json("runs")) == 2, "a run of the changed config")


def test_a_service_config_that_can_not_be_trained_is_said_in_status(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_CONFIG=str(workspace.root / "configs/missing.toml"))
    notices = wait_until(lambda: workspace.status()["notices"], "the notice")
    assert "DIFFPIPE_CONFIG is not trained" in notices[0] and "missing.toml" in notices[0]

"""The daemon is killed, replaced, reloaded, doubled: the training and its log must not notice."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)


def assert_every_line_once(workspace: Workspace, run: str, steps: int) -> None:
    """The log holds each step once, in order, and the client shows exactly the log."""
    text = workspace.log_text(run)
    assert [int(step) for step in re.findall(r"^steps: (\d+) ", text, re.MULTILINE)] == list(
        range(1, steps + 1)
    )
    assert workspace.ctl("logs", run, "--all")[1] == text


def test_daemon_killed_while_running_costs_nothing(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=100))
    before = dpiped.until_step(5)
    dpiped.kill_daemon()
    reached = len(dpiped.log_text(run))
    wait_until(lambda: len(dpiped.log_text(run)) > reached + 200, "the training goes on by itself")
    dpiped.start_daemon()
    after = dpiped.status()
    assert (after["state"], after["run"]["id"], after["run"]["pid"]) == ("running", run, before["pid"])
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"], ended["step"]) == ("completed", 0, 100)
    assert_every_line_once(dpiped, run, 100)


def test_a_follower_loses_and_repeats_nothing_when_the_daemon_is_killed(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=100))
    words = [str(BIN / "dpipectl"), "logs", "-f", "--all"]
    follower = subprocess.Popen(words, env=dpiped.env, stdout=subprocess.PIPE, text=True)
    dpiped.until_step(10)
    dpiped.kill_daemon()
    dpiped.start_daemon()
    out, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0
    assert out == dpiped.log_text(run)
    assert_every_line_once(dpiped, run, 100)


def test_a_run_that_ended_while_no_daemon_ran_is_concluded(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("raises"))
    dpiped.kill_daemon()
    wait_until((dpiped.runs_dir / run / "exit.json").exists, "the exit record")
    dpiped.start_daemon()
    last = dpiped.status()["last_run"]
    assert (last["id"], last["outcome"], last["exit_code"]) == (run, "failed", 1)
    assert "illegal memory access" in last["reason"]


@pytest.mark.parametrize("moment", ["spec.json", "output.log", "started.json"])
def test_daemon_killed_while_starting(dpiped: Workspace, moment: str) -> None:
    # A run directory that is still being made has a name that begins with a dot; that is the test below.
    run = killed_once_there_is(dpiped, f"[!.]*/{moment}")
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


def test_daemon_killed_while_it_makes_the_run_directory(dpiped: Workspace) -> None:
    run = killed_once_there_is(dpiped, ".*/training_config.toml").removeprefix(".")
    found = dpiped.json("runs")
    assert [each["id"] for each in found] == [path.name for path in dpiped.runs_dir.iterdir()]
    if found:
        # It was whole by the time the signal came.
        assert found[0]["id"] == run
        dpiped.until_ended(run)
    else:
        assert dpiped.status()["state"] == "idle"
        dpiped.until_ended(dpiped.start(dpiped.config(steps=1)))
    assert processes_of_run(run) == []


def killed_once_there_is(workspace: Workspace, pattern: str) -> str:
    """Starts a run, kills the daemon once a path fits `pattern`, starts another. The folder's name."""
    words = [str(BIN / "dpipectl"), "start", "--config", str(workspace.config(steps=50))]
    asking = subprocess.Popen(words, env=workspace.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found = wait_until(lambda: list(workspace.runs_dir.glob(pattern)), pattern, every=0.0005)
    workspace.kill_daemon()
    workspace.start_daemon()
    asking.communicate(timeout=30)
    # Its daemon went away, or had answered just before.
    assert asking.returncode in (0, 3)
    return found[0].parent.name


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
    run = dpiped.start(dpiped.config(steps=100))
    dpiped.until_step(3)
    runner = json.loads((dpiped.runs_dir / run / "started.json").read_text())["runner"]["pid"]
    os.kill(runner, signal.SIGKILL)
    wait_until(lambda: "another one takes over" in dpiped.daemon_log(), "the new runner")
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"], ended["step"]) == ("completed", None, 100)
    assert_every_line_once(dpiped, run, 100)


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
    run = workspace.start(workspace.config(steps=60))
    workspace.until_step(2)
    assert workspace.end_daemon() == 0
    assert processes_of_run(run)
    workspace.start_daemon()
    assert workspace.until_ended(run)["outcome"] == "completed"
    assert_every_line_once(workspace, run, 60)


def test_reload_keeps_pid_and_run(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=100))
    before = dpiped.until_step(3)
    assert dpiped.daemon is not None
    answer = dpiped.json("reload")
    assert answer["pid"] == dpiped.daemon.pid == dpiped.json("reload")["pid"]
    assert dpiped.daemon.poll() is None
    assert dpiped.status()["run"]["pid"] == before["pid"]
    assert dpiped.until_ended(run)["outcome"] == "completed"
    assert_every_line_once(dpiped, run, 100)
    status = Path(f"/proc/{dpiped.daemon.pid}/task/{dpiped.daemon.pid}/children").read_text()
    assert status == "", "the ended runner was reaped"


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

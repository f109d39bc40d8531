"""A full disk: what was trained is lost, but not how it ended."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpipectl.client import Failed
from dpiped import messages, rundir
from dpiped.rundir import Exit
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import TRAINERS, require, wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def small() -> Iterator[Workspace]:
    """A daemon whose state directory lies on a file system of 3 MiB."""
    workspace = Workspace()
    mounted = workspace.root / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    try:
        require(done.returncode == 0, f"no file system can be mounted: {done.stderr.strip()}")
        workspace.env["DIFFPIPE_STATE_DIR"] = str(mounted / "diffpipe")
        workspace.runs_dir = mounted / "diffpipe/runs"
        workspace.start_daemon()
        yield workspace
    finally:
        workspace.end_all()
        if done.returncode == 0:
            # A process that was killed closes its files a moment after it can't be seen any more.
            unmount = ["umount", str(mounted)]
            wait_until(lambda: subprocess.run(unmount, check=False).returncode == 0, "nothing is held open")
        workspace.close()


def fill(folder: Path) -> None:
    """Not a byte is left afterwards."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError as error:
                assert "No space left" in str(error)
    with pytest.raises(OSError, match="No space left"):
        rundir.write_file(folder / "one-more", b"x")


def test_a_full_disk_keeps_the_outcome_of_a_run_that_is_stopped(small: Workspace) -> None:
    run = small.start(small.config(steps=1_000_000, quiet_after=3))
    small.until_step(3)
    fill(small.runs_dir)
    assert small.ctl("stop")[0] == 0
    ended = small.until_ended(run)
    assert (ended["outcome"], ended["reason"].startswith("stopped by request")) == ("stopped", True)
    assert processes_of_run(run) == []
    small.kill_daemon()
    small.start_daemon()
    assert small.status()["last_run"]["outcome"] == "stopped"
    assert [each["state"] for each in small.json("runs")] == ["stopped"]


def test_a_daemon_that_a_full_disk_keeps_from_starting_is_tried_again(small: Workspace) -> None:
    """Of a directory of another user it can't be told there whether that is harmless. No setting is wrong."""
    small.end_daemon()
    state = small.runs_dir.parent
    os.chown(state, 65534, 65534)
    mounted = str(state.parent)
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", mounted], check=True)
    with pytest.raises(OSError, match="No space left"):
        for number in range(100):
            (state.parent / str(number)).touch()
    done = subprocess.run([str(BIN / "dpiped")], env=small.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "DIFFPIPE_STATE_DIR" in done.stderr and "No space left" in done.stderr
    os.chown(state, 0, 0)
    small.start_daemon()


def test_a_full_disk_keeps_the_outcome_of_a_run_that_fails_of_it(small: Workspace) -> None:
    run = small.start(small.config("raises", until=str(small.go), error="No space left on device"))
    small.until_step(1)
    fill(small.runs_dir)
    small.go.touch()
    ended = small.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("failed", 1)
    assert rundir.read(small.runs_dir / run, Exit) is not None


def test_a_directory_found_on_a_full_disk_is_resumed_from_once_there_is_room(small: Workspace) -> None:
    run = small.start(small.config(steps=1_000_000, caching_seconds=3.0, quiet_after=3))
    wait_until(lambda: small.status()["run"]["phase"] == "caching", "the first lines")
    fill(small.runs_dir)
    small.until_step(3)
    assert small.ctl("stop", "--save", "--timeout", "3000", "--no-wait")[0] == 0
    ended = small.until_ended(run)
    assert ended["outcome"] == "stopped" and "checkpoint: global_step" in ended["reason"]
    (small.runs_dir / "ballast").unlink()
    assert small.json("resume")["resumed_from"] == run


def test_a_full_disk_keeps_a_runner_that_takes_over(small: Workspace) -> None:
    run = small.start(small.config(until=str(small.go), quiet_after=3))
    small.until_step(3)
    fill(small.runs_dir)
    first = json.loads((small.runs_dir / run / "started.json").read_text())["runner"]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "another one takes over" in small.daemon_log(), "the new runner")
    small.go.touch()
    ended = small.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", None)
    assert small.daemon_log().count("another one takes over") == 1


def test_a_start_on_a_full_disk_is_refused_and_leaves_nothing(small: Workspace) -> None:
    fill(small.runs_dir)
    error = small.json("start", "--config", str(small.config()), code=1)["error"]
    assert (error["code"], error["field"]) == ("launch_failed", "DIFFPIPE_STATE_DIR")
    assert "No space left" in error["message"]
    assert [path.name for path in small.runs_dir.iterdir()] == ["ballast"]
    (small.runs_dir / "ballast").unlink()
    assert small.until_ended(small.start(small.config(steps=1)))["outcome"] == "completed"


def test_what_was_reserved_is_given_back(small: Workspace) -> None:
    run = small.start(small.config(steps=1))
    small.until_ended(run)
    wait_until(lambda: small.status()["state"] == "idle", "the conclusion")
    assert [path.name for path in (small.runs_dir / run).iterdir() if path.name.startswith(".")] == []


def failing(workspace: Workspace) -> Path:
    """A daemon, and runners, whose writes fail as the file returned says."""
    plan = workspace.root / "plan"
    command = (sys.executable, str(TRAINERS / "failing_writes.py"), "daemon", str(plan))
    workspace.start_daemon(*command, DIFFPIPE_STOP_TIMEOUT="5")
    return plan


def try_a_run(workspace: Workspace, config: Path) -> str | None:
    """Starts a run and stops it once it has made its directory: its id, or None if it is refused in words."""
    try:
        started = workspace.ask(messages.Start(str(config)), 30.0)
    except Failed as failed:
        assert failed.error.code in ("launch_failed", "invalid"), failed.error
        assert re.search("No space left on device|Read-only file system", failed.error.message), failed.error
        wait_until(lambda: workspace.status()["state"] == "idle", "nothing is left of it")
        return None
    assert isinstance(started, messages.Started)
    wait_until(lambda: not (run := workspace.status()["run"]) or run["step"], "it trains")
    with contextlib.suppress(Failed):
        workspace.ask(messages.Stop())
    wait_until(lambda: workspace.status()["state"] == "idle", "its end")
    last = workspace.status()["last_run"]
    assert (last["id"], last["outcome"] in ("stopped", "failed", "unknown")) == (started.run, True), last
    assert processes_of_run(started.run) == []
    return started.run


@pytest.mark.parametrize(
    ("who", "often", "number", "first"),
    [
        ("daemon", "on", errno.ENOSPC, 1),
        # The writes before the launch are refused alike.
        ("daemon", "once", errno.EROFS, 20),
        ("runner", "on", errno.EROFS, 1),
        ("runner", "once", errno.ENOSPC, 1),
    ],
)
def test_every_write_of_a_runs_life_fails_in_turn(
    workspace: Workspace, who: str, often: str, number: int, first: int
) -> None:
    plan, config = failing(workspace), workspace.config(steps=1_000_000)
    ran, refused, at = [], 0, first
    while True:
        plan.write_text(f"{who} {at} {number} {often} {at}")
        run = try_a_run(workspace, config)
        ran += [run] if run else []
        refused += run is None
        counted = int((plan.with_name(f"plan.{who}").read_text() or "0").split()[0])
        plan.unlink()
        if counted < at:
            break
        at += 1
    assert at > (4 if who == "runner" else 25), "there are so many writes"
    assert ran and refused
    # Once there is room, whatever could not be written is, and all works.
    assert workspace.daemon is not None and workspace.daemon.poll() is None
    good = try_a_run(workspace, config)
    assert good is not None and workspace.status()["last_run"]["outcome"] == "stopped"

    def recorded() -> bool:
        return all((workspace.runs_dir / run / "outcome.json").exists() for run in ran)

    wait_until(recorded, "every outcome is recorded")
    states = {each["id"]: each["state"] for each in workspace.json("runs", "-n", "1000")}
    assert set(states) >= {*ran, good} and set(states.values()) <= {"stopped", "failed", "unknown"}
    assert [path.name for path in workspace.runs_dir.iterdir() if path.name.startswith(".")] == []


def test_a_training_that_can_not_print_any_more_has_an_outcome(small: Workspace) -> None:
    run = small.start(small.config(steps=1_000_000))
    small.until_step(3)
    # From here on its own output fails, and so does the traceback about that.
    fill(small.runs_dir)
    ended = small.until_ended(run)
    assert ended["outcome"] == "failed" and ended["exit_code"] not in (None, 0)
    assert processes_of_run(run) == []
    (small.runs_dir / "ballast").unlink()
    assert small.until_ended(small.start(small.config(steps=1)))["outcome"] == "completed"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What is opened by this path from now on can't be written; what is open already still can."""
    for words in (["--bind", str(folder), str(folder)], ["-o", "remount,ro,bind", str(folder)]):
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        require(done.returncode == 0, f"nothing can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        # The daemon's lock may be open in it: nobody finds it any more, and it goes with the daemon.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_read_only_state_directory(workspace: Workspace) -> None:
    workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="2")
    state, config = workspace.root / "diffpipe", workspace.config(steps=1_000_000)
    first = workspace.start(config)
    workspace.until_step(2)
    with read_only(state):
        # A run that goes on can be followed, by a new daemon too, stopped, and has an outcome.
        workspace.kill_daemon()
        workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="2")
        assert workspace.status()["run"]["id"] == first
        assert workspace.ctl("stop")[0] in (0, 1)
        wait_until(lambda: workspace.status()["state"] == "idle", "the end")
        status = workspace.status()
        assert (status["last_run"]["id"], processes_of_run(first)) == (first, [])
        assert any("Read-only file system" in notice for notice in status["notices"])
        # Another one is refused in words.
        error = workspace.json("start", "--config", str(config), code=1)["error"]
        assert (error["code"], error["field"]) == ("launch_failed", "DIFFPIPE_STATE_DIR")
        assert "Read-only file system" in error["message"]
    outcome = workspace.runs_dir / first / "outcome.json"
    wait_until(outcome.exists, "the outcome is recorded once it can be")
    wait_until(lambda: "outcome can't be recorded" not in str(workspace.status()["notices"]), "it is told")
    assert workspace.until_ended(workspace.start(workspace.config(steps=1)))["outcome"] == "completed"
    assert workspace.end_daemon() == 0

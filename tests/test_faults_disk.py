"""A full disk: what was trained is lost, but not how it ended."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpiped import rundir
from dpiped.rundir import Exit
from tests.harness import Workspace, processes_of_run
from tests.helpers import require, wait_until

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

"""The wall clock is set, by a day, while trainings run: nothing is taken for older, newer or lost."""

import sys
from pathlib import Path

import pytest

from dpiped import clocks
from dpiped.launch import new_id
from dpiped.rundir import Identity, Launched
from tests.harness import Workspace
from tests.helpers import TRAINERS, wait_until

pytestmark = pytest.mark.timeout(60)
DAY = 86400.0
SILENT = "60"


def begin(workspace: Workspace) -> Path:
    """A daemon with a clock that is set by writing into the file returned."""
    clock = workspace.root / "clock"
    clock.write_text("0")
    command = (sys.executable, str(TRAINERS / "other_clock_daemon.py"), str(clock))
    workspace.start_daemon(*command, DIFFPIPE_HANG_TIMEOUT=SILENT)
    return clock


def restart(workspace: Workspace, clock: Path) -> None:
    workspace.kill_daemon()
    command = (sys.executable, str(TRAINERS / "other_clock_daemon.py"), str(clock))
    workspace.start_daemon(*command, DIFFPIPE_HANG_TIMEOUT=SILENT)


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_clock_jumping_while_a_run_goes_on(workspace: Workspace, jump: float) -> None:
    clock = begin(workspace)
    run = workspace.start(workspace.config(until=str(workspace.go), hold=str(workspace.root / "hold")))
    wait_until(lambda: workspace.status()["run"]["pid"], "it is launched")
    clock.write_text(str(jump))
    (workspace.root / "hold").touch()
    workspace.until_step(3)
    assert workspace.ctl("save")[0] == 0
    active = workspace.status()["run"]
    assert 0 < active["elapsed_seconds"] < 60
    assert 0 <= active["checkpoint_age_seconds"] < 60
    assert active["train_dir"] and active["warning"] is None
    # A new daemon knows no more than the records and the files.
    restart(workspace, clock)
    active = workspace.status()["run"]
    assert (active["id"], active["warning"]) == (run, None)
    assert 0 < active["elapsed_seconds"] < 60
    workspace.until_step(active["step"] + 50)
    assert workspace.status()["run"]["train_dir"]
    workspace.go.touch()
    assert workspace.until_ended(run)["outcome"] == "completed"


def test_clock_set_back_and_the_last_run_is_the_last(workspace: Workspace) -> None:
    clock = begin(workspace)
    config = workspace.config(steps=1, seconds_per_step=0.0)
    runs = []
    for wrong_by in (0.0, -DAY, -400 * DAY, DAY, 0.0):
        clock.write_text(str(wrong_by))
        runs.append(workspace.start(config))
        workspace.until_ended(runs[-1])
        assert workspace.json("show", "last")["id"] == runs[-1]
    assert [each["id"] for each in workspace.json("runs")] == runs[::-1]
    restart(workspace, clock)
    assert workspace.status()["last_run"]["id"] == runs[-1]
    assert workspace.json("runs")[0]["id"] == runs[-1]


def test_a_directory_made_after_the_clock_was_set_back_is_found(workspace: Workspace) -> None:
    # To a daemon whose clock was a day ahead when it began, the trainer's is set back.
    clock = begin(workspace)
    clock.write_text(str(DAY))
    run = workspace.start(workspace.config(until=str(workspace.go), hold=str(workspace.root / "hold")))
    wait_until(lambda: workspace.status()["run"]["pid"], "it is launched")
    clock.write_text("0")
    (workspace.root / "hold").touch()
    wait_until(lambda: workspace.status()["run"]["train_dir"], "its directory")
    assert workspace.ctl("stop", "--save")[0] == 0
    assert workspace.json("resume")["resumed_from"] == run


def test_names_sort_by_their_order_of_making_whatever_stands_beside_them(tmp_path: Path) -> None:
    for name in ("20261399-250000-000aaaa", "zzz", "20260131-235959-999zzzz"):
        (tmp_path / name).mkdir()
    assert new_id(tmp_path, 0.0).startswith("19700101-000000-001")
    (tmp_path / "20261231-235959-9990000").mkdir()
    made = new_id(tmp_path, 0.0)
    assert made.startswith("20270101-000000-000")
    assert new_id(tmp_path, 1e10).startswith("22861120-174640-000")


def test_times_are_by_the_wall_clock_where_there_is_no_other() -> None:
    before = Identity(1, 1, "another-boot")
    launched = Launched(before, before, 1000.0)
    assert clocks.since_start(before) is None
    assert clocks.launched_at(launched) == pytest.approx(1000.0)
    assert clocks.unchanged_for(Path("/nonexistent"), launched) == 0.0

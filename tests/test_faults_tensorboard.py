"""A TensorBoard that crashes again and again: said, tried less and less often, and nothing else suffers."""

import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness import Workspace
from tests.helpers import require, wait_until

pytestmark = pytest.mark.timeout(60)
CRASHING = """
import os, sys, time
with open(os.environ["TENSORBOARD_TRIED"], "a") as file:
    file.write(f"{time.monotonic()}\\n")
sys.exit("OSError: the words of a crash")
"""


@pytest.fixture
def board() -> Iterator[Workspace]:
    workspace = Workspace(DIFFPIPE_CONFIG="", DIFFPIPE_TENSORBOARD="1")
    yield workspace
    workspace.close()


def said(workspace: Workspace) -> tuple[str, str]:
    found = workspace.status()["tensorboard"]
    return found["state"], found["detail"] or ""


def test_tensorboard_crash_loop_backs_off_and_says_why(board: Workspace) -> None:
    package = board.root / "python/tensorboard"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(CRASHING)
    tried = board.root / "tried"
    board.start_daemon(PYTHONPATH=str(package.parent), TENSORBOARD_TRIED=str(tried))
    assert board.daemon is not None
    run = board.start(board.config(until=str(board.go)))

    def times() -> list[float]:
        return [float(line) for line in tried.read_text().split()] if tried.exists() else []

    wait_until(lambda: len(times()) >= 5, "five attempts", 40)
    gaps = [after - before for before, after in itertools.pairwise(times())]
    assert all(gap >= least for gap, least in zip(gaps, (0.5, 1.0, 2.0, 4.0), strict=False)), gaps
    state, detail = said(board)
    assert (state, "exit code 1: OSError: the words of a crash" in detail) == ("restarting", True)
    # It is told once, not with each attempt, and costs next to nothing.
    assert board.daemon_log().count("the words of a crash") == 1
    assert (board.root / "diffpipe/tensorboard.log").stat().st_size < 1000
    times_used = psutil.Process(board.daemon.pid).cpu_times()
    assert times_used.user + times_used.system < 5
    before = board.status()["run"]["step"]
    board.until_step(before + 5)
    board.go.touch()
    assert board.until_ended(run)["outcome"] == "completed"
    assert board.end_daemon() == 0


def test_tensorboard_that_can_not_listen_says_why(board: Workspace) -> None:
    require(importlib.util.find_spec("tensorboard") is not None, "tensorboard is not installed")
    # An address of no machine (RFC 5737).
    board.start_daemon(DIFFPIPE_TENSORBOARD_HOST="203.0.113.7")
    wait_until(lambda: said(board)[0] == "restarting", "its crash", 40)
    assert "exit code 1: Cannot assign requested address" in said(board)[1]


def test_tensorboard_whose_log_can_not_be_written_runs_all_the_same(board: Workspace) -> None:
    require(importlib.util.find_spec("tensorboard") is not None, "tensorboard is not installed")
    (board.root / "diffpipe/tensorboard.log").mkdir(parents=True)
    board.start_daemon()
    wait_until(lambda: said(board)[0] == "ready", "it is ready", 40)
    assert "tensorboard.log can't be written" in board.daemon_log()
    assert os.listdir(Path(board.root, "diffpipe/tensorboard.log")) == []  # noqa: PTH208

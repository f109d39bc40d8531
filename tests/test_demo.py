"""The first thing a newcomer runs."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HERE, require


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_the_demo_trains_shows_and_ends_by_itself_within_three_minutes(tmp_path: Path) -> None:
    require(importlib.util.find_spec("deepspeed") is not None, "deepspeed is not installed")
    command = [sys.executable, "-m", "tools.demo", str(tmp_path / "demo")]
    demo = subprocess.Popen(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        out, _ = demo.communicate(timeout=180)
    finally:
        # Interrupted, it ends its daemon and the training; killed, it would leave both.
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)
            demo.wait(90)
    # It checks the loss, TensorBoard's list and the samples itself.
    assert demo.returncode == 0, out
    assert "completed at step" in out
    assert list((tmp_path / "demo/example/output").glob("*/samples/*.png"))


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_a_step_costs_little_more_than_a_plain_loop_s() -> None:
    require(importlib.util.find_spec("deepspeed") is not None, "deepspeed is not installed")
    command = [sys.executable, "-m", "tools.bench", "--only-steps"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    # It compares the two step by step, and fails by itself.
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench: holds: at most 1.15 x a plain loop" in done.stdout

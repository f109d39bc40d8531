"""The first thing a newcomer runs."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HERE, require


@pytest.mark.timeout(300)
def test_the_demo_trains_shows_and_ends_by_itself_within_three_minutes(tmp_path: Path) -> None:
    require(importlib.util.find_spec("deepspeed") is not None, "deepspeed is not installed")
    command = [sys.executable, str(HERE.parent / "tools/demo.py"), str(tmp_path / "demo")]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
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

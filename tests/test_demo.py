"""The first thing a newcomer runs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import HERE, require


@pytest.mark.timeout(240)
def test_the_demo_trains_shows_and_ends_by_itself_within_three_minutes(tmp_path: Path) -> None:
    require(importlib.util.find_spec("deepspeed") is not None, "deepspeed is not installed")
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "tools/demo.py"), str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    # It checks the loss, TensorBoard's list and the samples itself.
    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed at step" in done.stdout
    assert list((tmp_path / "demo/example/output").glob("*/samples/*.png"))

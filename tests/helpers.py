"""What all tests share: waiting with a deadline, and where real data lies.

Why: a bare sleep is either too short on a busy machine or a waste on a fast one. Every test waits with
`wait_until`, which polls up to one deadline and says what it waited for.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

HERE = Path(__file__).parent
TRAINERS = HERE / "trainers"
SHARED = HERE.parent.parent / "shared" / "data"
"""Real logs and photographs, present only beside a development checkout."""

_T = TypeVar("_T")


def wait_until(condition: Callable[[], _T], what: str, deadline: float = 20.0, every: float = 0.02) -> _T:
    """Polls until `condition` gives something true, and returns it. Fails after `deadline` seconds."""
    until = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            pytest.fail(f"not within {deadline:g} s: {what} (last: {value!r})")
        time.sleep(every)


def require(available: bool, reason: str) -> None:
    """Skips with the reason; in CI, where everything must be there, it fails instead."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}")
    pytest.skip(reason)

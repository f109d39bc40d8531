"""What all tests share: waiting with a deadline, and where real data lies.

Why: a bare sleep is either too short on a busy machine or a waste on a fast one. Every test waits with
`wait_until`, which polls up to one deadline and says what it waited for.
"""

import os
import re
import time
from collections import deque
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


def seconds_of_a_reader_by_lines(chunks: list[bytes]) -> float:
    """CPU seconds that the plain way takes: each line split off, decoded, searched and kept."""
    step = re.compile(r"steps: (\d+) loss: (\S+)")
    kept: deque[str] = deque(maxlen=2000)
    found = 0
    begun = time.process_time()
    for chunk in chunks:
        for raw in chunk.split(b"\n"):
            line = raw.decode(errors="replace").rstrip()
            found += step.search(line) is not None
            kept.append(line)
    spent = time.process_time() - begun
    assert found and kept
    return spent


def require(available: bool, reason: str) -> None:
    """Skips with the reason; in CI, where everything must be there, it fails instead."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}")
    pytest.skip(reason)

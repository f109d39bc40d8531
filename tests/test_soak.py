"""The soak, as short as it can be: runs that end in different ways while clients follow."""

import pytest

from tools.soak import soak, table


@pytest.mark.timeout(90)
def test_a_short_soak() -> None:
    states, wrong, left = soak(minutes=0.0, runs=6, clients=3, seed=3, requests=20)
    assert wrong == []
    assert left > 0, "nobody went away"
    before, after = states
    assert after.processes == before.processes, table(states)[0]
    for name in ("daemon", "shim"):
        assert getattr(after, name).fds <= getattr(before, name).fds, table(states)[0]

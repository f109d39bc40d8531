"""The list of faults names tests that exist."""

import re

from tests.helpers import HERE


def test_each_test_of_the_list_of_faults_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (HERE.parent / "docs/faults.md").read_text()))
    there = {
        name
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 40
    assert named - there == set()

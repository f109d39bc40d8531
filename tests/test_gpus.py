"""What the GPUs hold, told by a library in the place of NVIDIA's: changes, a driver that hangs or fails."""

import json
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dpiped.gpus import FAILS, HANGS, differ
from dpiped.messages import Gpu
from tests.gpu_machine import GIB, Machine, line
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.web import Events, Shim

NEVER = "1000000"
OFTEN = "0.05"
LOST, NO_PERMISSION, NOT_LOADED, MISMATCH = 15, 4, 9, 18


@pytest.fixture
def machine(workspace: Workspace, library: Path) -> Machine:
    return Machine(workspace, library)


def about_gpus(notices: Iterable[str]) -> list[str]:
    """The harness gives the daemon a config that is not there, of which there is a notice as well."""
    return [text for text in notices if "GPU" in text]


def test_what_the_gpus_hold_is_told_when_it_changes(machine: Machine) -> None:
    workspace = machine.workspace
    machine.says("ok", line(18.2, 97), line(1, 0, NO_PERMISSION), line(40, -1, name="GRID A100X-40C"))
    # All of them: a training's choice of GPUs is not the machine's.
    workspace.env["CUDA_VISIBLE_DEVICES"] = "2"
    machine.start(EVERY_IDLE=NEVER, EVERY_ACTIVE=OFTEN)
    first = Gpu(0, "NVIDIA A100", int(18.2 * GIB), 80 * GIB, 97)
    divided = Gpu(2, "GRID A100X-40C", 40 * GIB, 80 * GIB, None)
    assert machine.until(lambda status: status.gpus, "the first look").gpus == (first, divided)
    text = workspace.ctl("status")[1]
    assert [each.split(maxsplit=2)[2] for each in text.splitlines() if "GPU" in each] == [
        "NVIDIA A100  18.2 of 80.0 GiB, 97 %",
        "GRID A100X-40C  40.0 of 80.0 GiB",
    ]
    assert machine.asked("c") == 1
    run = workspace.start(workspace.config(until=str(workspace.go)))
    wait_until(lambda: machine.asked("c") > 3, "more looks while a run is active")
    machine.until(lambda status: status.run and status.run.step, "all other changes are over")
    with Shim(workspace).client.stream("GET", "/events", params={"seconds": 20}) as answer:
        states = (json.loads(data) for name, data, _ in Events(answer.iter_lines()) if name == "state")
        assert next(states)["gpus"][1]["utilization"] is None
        # 1 % of 80 GiB are 0.8.
        machine.says("ok", line(18.9, 92), line(1, 0, NO_PERMISSION), line(40, -1, name="GRID A100X-40C"))
        looks = machine.asked("c")
        wait_until(lambda: machine.asked("c") > looks + 4, "it was looked at")
        assert machine.status().gpus == (first, divided)
        machine.says("ok", line(18.2, 91), line(-1, 5))
        changed: Any = next(states)
    assert changed["run"] == run
    assert [gpu["utilization"] for gpu in changed["gpus"]] == [91]
    assert about_gpus(changed["notices"]) == ["GPU 1 does not tell what it holds: Not Supported"]
    workspace.go.touch()
    workspace.until_ended(run)
    assert machine.asked("i") == 1


def test_a_driver_that_hangs_or_fails_holds_nothing_up(machine: Machine) -> None:
    workspace = machine.workspace
    machine.says("ok", line(18, 97), line(30, 5))
    machine.start(EVERY_IDLE=OFTEN, DROPPED_AFTER="1")
    machine.until(lambda status: len(status.gpus) == 2, "both")

    machine.says("hang")
    quiet = machine.until(lambda status: not status.gpus, "what is old is dropped")
    assert about_gpus(quiet.notices) == [HANGS]
    looks = machine.asked("c")
    assert median(seconds_of(machine.status) for _ in range(30)) < 0.05
    assert machine.asked("c") == looks, "it is not asked again before it has answered"
    machine.says("ok", line(18, 97), line(30, 5))
    assert about_gpus(machine.until(lambda status: status.gpus, "it is back").notices) == []

    opened = machine.asked("i")
    machine.says(f"fail {MISMATCH}")
    failed = machine.until(lambda status: not status.gpus, "what is old is dropped")
    assert about_gpus(failed.notices) == [FAILS.format("RM has detected an NVML/RM version mismatch.")]
    # Another driver has taken its place.
    machine.says("ok", line(18, 97), line(30, 5, LOST))
    back = machine.until(lambda status: status.gpus, "it is back")
    assert [gpu.index for gpu in back.gpus] == [0]
    assert about_gpus(back.notices) == ["GPU 1 does not tell what it holds: GPU is lost"]
    assert machine.asked("i") > opened

    machine.says("hang")
    looks, opened = machine.asked("c"), machine.asked("i")
    wait_until(lambda: machine.asked("c") > looks, "it hangs")
    assert workspace.ctl("reload")[0] == 0
    wait_until(lambda: machine.asked("i") > opened, "it hangs again")
    begun = time.monotonic()
    assert workspace.end_daemon() == 0
    assert time.monotonic() - begun < 5


def test_a_machine_without_a_driver_is_looked_at_once(machine: Machine, library: Path) -> None:
    workspace = machine.workspace
    machine.says(f"fail {NOT_LOADED}", line(18, 97))
    for path, opened in ((os.devnull, 0), (str(library), 1)):
        workspace.env["LD_LIBRARY_PATH"] = path
        machine.start(EVERY_IDLE=OFTEN, EVERY_ACTIVE=OFTEN)
        wait_until(partial(machine.has_opened, opened), "the first look")
        machine.says("ok", line(18, 97))
        workspace.until_ended(workspace.start(workspace.config(steps=2)))
        assert (machine.status().gpus, about_gpus(machine.status().notices)) == ((), [])
        assert machine.asked("i") == opened
        assert workspace.end_daemon() == 0
        machine.says(f"fail {NOT_LOADED}")


@pytest.mark.parametrize(
    ("now", "matters"),
    [
        (Gpu(0, "A", 500, 1000, 50), False),
        (Gpu(0, "A", 510, 1000, 55), False),
        (Gpu(0, "A", 490, 1000, 45), False),
        (Gpu(0, "A", 511, 1000, 50), True),
        (Gpu(0, "A", 489, 1000, 50), True),
        (Gpu(0, "A", 500, 1000, 56), True),
        (Gpu(0, "A", 500, 1000, 44), True),
        (Gpu(0, "A", 500, 1000, None), True),
        (Gpu(0, "A", 500, 1001, 50), True),
        (Gpu(0, "B", 500, 1000, 50), True),
        (Gpu(1, "A", 500, 1000, 50), True),
    ],
)
def test_which_changes_are_worth_a_message(now: Gpu, matters: bool) -> None:
    before = Gpu(0, "A", 500, 1000, 50)
    assert differ((before,), (now,)) == differ((now,), (before,)) == matters
    assert differ((before,), ()) and differ((), (before,)) and differ((before,), (before, now))


def seconds_of(ask: Callable[[], object]) -> float:
    begun = time.monotonic()
    ask()
    return time.monotonic() - begun

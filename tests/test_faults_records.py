"""What stands in a run directory is damaged, of another version or not a run at all: nothing else suffers."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from dpiped import rundir
from dpiped.errors import RunDamaged
from dpiped.rundir import Concluded, Exit, Launched, Spec, StopAsked, TrainDir
from tests.harness import Workspace, processes_of_run
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)
STOP = {"how": "term", "by": "request", "at": 1.0, "deadline": 2.0, "boot": "another-boot", "fault": None}


def as_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def as_huge_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 30)


def with_text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def with_each(kind: type, value: object) -> Callable[[Path], None]:
    """Every field of that kind is replaced, the nested ones too."""

    def of(old: Any) -> Any:
        if isinstance(old, dict):
            return {name: of(each) for name, each in old.items()}
        return value if isinstance(old, kind) and not isinstance(old, bool) else old

    return lambda path: with_text(json.dumps(of(BEFORE[path.name])))(path)


BEFORE: dict[str, dict[str, Any]] = {}
CORRUPTIONS: dict[str, Callable[[Path], object]] = {
    "empty": with_text(""),
    "half": lambda path: with_text(json.dumps(BEFORE[path.name])[:-9])(path),
    "list": with_text("[]"),
    "null": with_text("null"),
    "no-fields": with_text("{}"),
    "texts-are-numbers": with_each(str, 7),
    "texts-are-nulls": with_each(str, "\0"),
    "numbers-are-texts": with_each(float, "1"),
    "numbers-are-huge": with_each(int, 10**400),
    "numbers-are-infinite": lambda path: with_text(json.dumps(BEFORE[path.name]).replace(": 1", ": 1e9991"))(
        path
    ),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "nulls": lambda path: path.write_bytes(b"\0" * 4096),
    "deep": with_text('{"unknown": ' + "[" * 100_000),
    "half-a-character": with_text('{"run": "\\ud800"}'),
    "directory": lambda path: path.mkdir(),
    "loop": as_link_to_itself,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "huge-file": as_huge_file,
}
MAY_FIT = (
    "texts-are-nulls",
    "numbers-are-texts",
    "numbers-are-huge",
    "numbers-are-infinite",
    "texts-are-numbers",
)
"""What leaves some records readable."""
KINDS: dict[str, type[Struct]] = {
    "spec.json": Spec,
    "started.json": Launched,
    "train_dir.json": TrainDir,
    "stop.json": StopAsked,
    "exit.json": Exit,
    "outcome.json": Concluded,
}
IN_A_LIST = ("spec.json", "started.json", "exit.json", "outcome.json")
"""The others are read for a list only where there is no outcome."""


def is_damaged(folder: Path, record: str) -> bool:
    try:
        rundir.read(folder, KINDS[record])
    except RunDamaged:
        return True
    return False


def make_damaged(workspace: Workspace, good: str) -> list[tuple[str, str, bool]]:
    """A copy of the good run for each way to damage it: (id, the record, its outcome is recorded)."""
    source = workspace.runs_dir / good
    made: list[tuple[str, str, bool]] = []
    for record in KINDS:
        for number, (name, damage) in enumerate(CORRUPTIONS.items()):
            for concluded in (True, False):
                run = f"20200101-0{len(made) // 100}{number:02}{len(made) % 100:02}-000abcd"
                folder = workspace.runs_dir / run
                shutil.copytree(source, folder)
                (folder / "spec.json").write_text(json.dumps(BEFORE["spec.json"] | {"run": run}))
                (folder / "stop.json").write_text(json.dumps(STOP))
                if not concluded:
                    (folder / "outcome.json").unlink()
                (folder / record).unlink(missing_ok=True)
                damage(folder / record)
                assert is_damaged(folder, record) or name in MAY_FIT, (record, name)
                made.append((run, record, concluded))
    return made


def finished(workspace: Workspace) -> str:
    run = workspace.start(workspace.config(steps=1_000_000))
    workspace.until_step(2)
    assert workspace.ctl("stop", "--save")[0] == 0
    BEFORE.clear()
    for name in KINDS:
        BEFORE[name] = json.loads((workspace.runs_dir / run / name).read_text())
    return run


def test_half_written_and_corrupted_records_disturb_no_other_run(dpiped: Workspace) -> None:
    good = finished(dpiped)
    dpiped.end_daemon()
    made = make_damaged(dpiped, good)
    (dpiped.runs_dir / "a-file").write_text("no run")
    (dpiped.runs_dir / "a-link").symlink_to(dpiped.runs_dir / good)
    (dpiped.runs_dir / "20200101-not-a-run").mkdir()
    no_text = bytes(dpiped.runs_dir) + b"/20200101-\xff\xfe"
    os.mkdir(no_text)  # noqa: PTH102
    dpiped.start_daemon()
    status = dpiped.status()
    assert (status["state"], status["last_run"]["id"]) == ("idle", good)
    assert any("is damaged" in notice for notice in status["notices"])
    listed = {run["id"]: run for run in dpiped.json("runs", "-n", "1000")}
    os.rmdir(no_text)  # noqa: PTH106
    assert len(listed) == len(made) + 2 and "20200101-not-a-run" in listed
    assert listed[good]["state"] == "stopped"
    damaged = 0
    for run, record, concluded in made:
        if is_damaged(dpiped.runs_dir / run, record) and (record in IN_A_LIST or not concluded):
            assert listed[run]["state"] == "damaged", (run, record)
            damaged += 1
    assert damaged > 150
    assert "Traceback" not in dpiped.daemon_log() and "internal" not in dpiped.daemon_log()
    for run, _, _ in made[::7]:
        code, out, _ = dpiped.ctl("--json", "show", run)
        assert code == 0 or json.loads(out)["error"]["code"] == "run_damaged"
    # All else works: start, stop, resume.
    assert dpiped.json("resume", good)["resumed_from"] == good
    assert dpiped.ctl("stop")[0] == 0
    run = dpiped.start(dpiped.config(steps=1))
    assert dpiped.until_ended(run)["outcome"] == "completed"
    assert dpiped.end_daemon() == 0


def test_records_damaged_while_the_run_goes_on_keep_nobody_from_stopping_it(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    for name in KINDS:
        (dpiped.runs_dir / run / name).unlink(missing_ok=True)
        (dpiped.runs_dir / run / name).mkdir()
    assert dpiped.json("runs")[0]["state"] == "damaged"
    assert dpiped.status()["run"]["id"] == run
    assert dpiped.ctl("stop", "--timeout", "1", "--no-wait")[0] == 0
    wait_until(lambda: dpiped.status()["state"] == "idle", "the end")
    assert processes_of_run(run) == []
    last = dpiped.status()["last_run"]
    assert (last["id"], last["outcome"]) == (run, "unknown")
    assert dpiped.until_ended(dpiped.start(dpiped.config(steps=1)))["outcome"] == "completed"


@pytest.mark.parametrize("record", ["spec.json", "started.json", "exit.json"])
def test_a_run_that_lives_and_can_not_be_read_is_said(dpiped: Workspace, record: str) -> None:
    """And no other is started beside it."""
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    dpiped.kill_daemon()
    (dpiped.runs_dir / run / record).write_text("{")
    dpiped.start_daemon()
    assert any("processes of it are alive" in notice for notice in dpiped.status()["notices"])
    pids = processes_of_run(run)
    code, _, error = dpiped.ctl("start", "--config", str(dpiped.config(steps=1)))
    assert code == 4 and f"Run {run}, which nobody follows, has processes that are alive" in error
    named = {int(pid) for pid in error.split("to end it: kill ")[1].split()}
    assert named and named <= set(pids) and len(dpiped.json("runs")) == 1


def test_run_of_an_older_or_newer_version_is_listed_and_shown(dpiped: Workspace) -> None:
    good = finished(dpiped)
    dpiped.end_daemon()
    old, new = "20200101-000000-000aaaa", "20200102-000000-000bbbb"
    who = {"pid": 4_000_000, "start": 1, "boot": "another-boot"}
    folder = dpiped.runs_dir / old
    folder.mkdir()
    # The fields of the first version, and a file that no version of ours has.
    (folder / "notes.txt").write_text("mine")
    names = ("created", "argv", "cwd", "env", "source", "digest", "output_dir")
    spec = {name: BEFORE["spec.json"][name] for name in names} | {"run": old}
    (folder / "spec.json").write_text(json.dumps(spec))
    (folder / "started.json").write_text(json.dumps({"runner": who, "child": who, "at": 1.0}))
    (folder / "exit.json").write_text('{"code": 0, "signal": null, "at": 2.0}')
    (folder / "output.log").write_text(
        "steps: 7 loss: 0.5 iter time (s): 1 samples/sec: 1\nTRAINING COMPLETE!\n"
    )
    shutil.copytree(dpiped.runs_dir / good, dpiped.runs_dir / new)
    for name, record in BEFORE.items():
        later = record | ({"run": new} if "run" in record else {}) | {"unknown": {"to": ["us"]}}
        (dpiped.runs_dir / new / name).write_text(json.dumps(later))
    (dpiped.runs_dir / new / "later.json").write_text("{}")
    dpiped.start_daemon()
    listed = {run["id"]: (run["state"], run["step"]) for run in dpiped.json("runs")}
    assert listed[old] == ("completed", 7), "concluded from what there is"
    assert listed[new][0] == listed[good][0] == "stopped"
    assert not any("damaged" in notice for notice in dpiped.status()["notices"])
    assert dpiped.json("show", old)["train_dir"] is None
    assert dpiped.json("show", new)["checkpoint"] == dpiped.json("show", good)["checkpoint"]
    assert dpiped.json("logs", old)["lines"][-1] == "TRAINING COMPLETE!"
    assert dpiped.json("resume", new)["resumed_from"] == new

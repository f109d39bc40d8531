"""A training as a service: it goes on by itself after a restart of the machine, and not where it must not."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dpiped import autostart, recovery, rundir
from dpiped.rundir import Concluded, StopAsked
from dpiped.settings import load
from tests.harness import Workspace, processes_of_run
from tests.helpers import wait_until
from tests.test_checkpoints import make_checkpoint
from tests.test_resume import WEIGHTS, first_step, step_in, truncate

pytestmark = pytest.mark.timeout(60)
KEY = "0123456789abcdef0123456789abcdef01234567"
ANOTHER_BOOT = "00000000-0000-0000-0000-000000000000"


class Service:
    """A daemon that trains one config until the workspace's `go` appears."""

    def __init__(self, workspace: Workspace, **variables: str) -> None:
        self.workspace = workspace
        self.config = workspace.config(until=str(workspace.go), name="service")
        self.variables = {"DIFFPIPE_CONFIG": str(self.config), "DIFFPIPE_NUM_GPUS": "2", **variables}

    def start(self, **variables: str) -> None:
        self.workspace.start_daemon(**self.variables | variables)

    def run(self) -> Any:
        """What is active, once it trains."""
        return self.workspace.until_step(2)

    def save(self) -> str:
        tag: str = self.workspace.json("save")["checkpoint"]
        return tag

    def notice(self, part: str) -> str:
        def found() -> list[str]:
            return [text for text in self.workspace.status()["notices"] if part in text]

        return wait_until(found, f"a notice with {part!r}")[0]


def power_cut(workspace: Workspace, run: str) -> None:
    """Everything dies at once, and the next boot knows none of the pids."""
    workspace.kill_daemon()
    while pids := processes_of_run(run):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for name in ("started.json", "stop.json"):
        record = workspace.runs_dir / run / name
        if record.exists():
            record.write_text(re.sub(r'("boot": *)"[^"]*"', rf'\1"{ANOTHER_BOOT}"', record.read_text()))


def test_after_a_restart_of_the_machine_it_goes_on_from_the_last_checkpoint(workspace: Workspace) -> None:
    unit = Service(workspace)
    text = '[monitoring]\nenable_wandb = true\nwandb_run_name = "r"\nwandb_tracker_name = "t"\n'
    # A key in the file itself: of the run's own copy it has been taken out.
    unit.config.write_text(f'{unit.config.read_text()}{text}wandb_api_key = "{KEY}"\n')
    unit.start()
    first = unit.run()["id"]
    older = unit.save()
    newer = unit.save()
    train_dir = Path(workspace.status()["run"]["train_dir"])
    power_cut(workspace, first)
    # Somebody else has the pid of the launcher now, and keeps it.
    bystander = workspace.runs_dir / first / "started.json"
    record = json.loads(bystander.read_text())
    record["child"] |= {"pid": os.getpid()}
    bystander.write_text(json.dumps(record))
    truncate(train_dir / newer / WEIGHTS)
    unit.start()
    second = unit.run()
    assert second["id"] != first and first_step(workspace, second["id"]) == step_in(older) + 1
    said = unit.notice("goes on from")
    assert f"DIFFPIPE_CONFIG goes on from {older} of run {first}, which broke off (no exit record" in said
    assert newer in unit.notice("which is not whole")
    shown = workspace.json("show", second["id"])
    assert (shown["resumed_from"], shown["argv"][1]) == (first, "--num_gpus=2")
    assert shown["config"] == str(unit.config) and shown["train_dir"] == str(train_dir)
    assert "wandb login: ok" in workspace.log_text(second["id"])
    assert workspace.json("show", first)["state"] == "unknown"
    # A daemon that is killed alone adopts, also now: never two runs.
    workspace.kill_daemon()
    unit.start()
    assert workspace.status()["run"]["pid"] == second["pid"]
    # A shutdown in good order, with SIGTERM to the daemon, is no wish of anybody to end the training.
    third_from = unit.save()
    assert workspace.end_daemon() == 0
    unit.start()
    third = unit.run()["id"]
    assert first_step(workspace, third) == step_in(third_from) + 1
    assert "which stopped (stopped by SIGTERM" in unit.notice("goes on from")
    # But a stop by request is.
    unit.save()
    assert workspace.ctl("stop")[0] == 0
    assert workspace.end_daemon() == 0
    unit.start()
    unit.notice(f"is not trained again: run {third} of it was stopped by request")
    assert [run["id"] for run in workspace.json("runs")] == [third, second["id"], first]
    # Whoever resumes it by hand takes it up again, and it completes as the service's.
    again = workspace.json("resume", "--env", f"WANDB_API_KEY={KEY}")["run"]
    fourth_from = unit.save()
    power_cut(workspace, again)
    unit.start()
    again = unit.run()["id"]
    assert first_step(workspace, again) == step_in(fourth_from) + 1
    assert "wandb login: ok" in workspace.log_text(again)
    workspace.go.touch()
    assert workspace.until_ended(again)["outcome"] == "completed"
    workspace.end_daemon()
    unit.start()
    unit.notice(f"is not trained again: run {again} of it has completed")


def test_without_a_checkpoint_or_with_another_file_it_begins_anew_and_says_so(workspace: Workspace) -> None:
    unit = Service(workspace)
    unit.start()
    first = unit.run()["id"]
    power_cut(workspace, first)
    unit.start()
    second = unit.run()["id"]
    said = unit.notice("begins anew")
    assert f"run {first} broke off" in said and "it holds no checkpoint" in said
    assert first_step(workspace, second) == 1
    unit.save()
    workspace.end_daemon()
    dataset = workspace.root / "configs/dataset.toml"
    dataset.write_text(dataset.read_text() + "# changed\n")
    unit.start()
    third = unit.run()["id"]
    assert f"has changed since run {second}, which stopped" in unit.notice("begins anew")
    assert first_step(workspace, third) == 1
    unit.save()
    workspace.end_daemon()
    # As it was before there was a choice.
    unit.start(DIFFPIPE_RESUME="never")
    fourth = unit.run()
    assert first_step(workspace, fourth["id"]) == 1 and workspace.status()["notices"] == []
    assert {run["resumed_from"] for run in workspace.json("runs")} == {None}
    assert len(workspace.json("runs")) == 4


def test_a_config_that_fails_is_not_tried_for_ever(workspace: Workspace) -> None:
    unit = Service(workspace)
    workspace.config("raises", name="service")
    ended: list[str] = []
    for _ in range(autostart.ATTEMPTS):
        unit.start()

        def another() -> Any:
            last = workspace.status()["last_run"]
            return last if last and last["id"] not in ended else None

        last = wait_until(another, "the end of another run")
        assert last["outcome"] == "failed"
        ended.append(last["id"])
        workspace.end_daemon()
    unit.start()
    said = unit.notice("is not trained again")
    assert f"its last {autostart.ATTEMPTS} runs failed or broke off without a new checkpoint" in said
    assert "illegal memory access" in said
    assert [run["id"] for run in workspace.json("runs")] == ended[::-1]


class History:
    """Records of runs, without any process."""

    def __init__(self, workspace: Workspace) -> None:
        self.settings = load(workspace.env)
        self.config = workspace.config(name="service")
        self.runs = workspace.runs_dir
        self.runs.mkdir(parents=True)
        self.train_dir = workspace.root / "outputs/20260101_00-00-00"
        anew = autostart.decide(self.settings, self.runs, self.config).wanted
        assert anew is not None and anew.resume is None
        from dpiped import launch

        self.spec = launch.make(self.settings, anew).spec

    def add(
        self,
        outcome: str,
        checkpoint: str | None = None,
        begun: str | None = None,
        by: str | None = None,
        step: int | None = None,
        concluded: bool = True,
        **more: Any,
    ) -> str:
        name = f"20260101-0000{len(rundir.names(self.runs)):02}-00000"
        folder = self.runs / name
        folder.mkdir()
        where = {"train_dir": str(self.train_dir)} if begun or checkpoint else {}
        spec = msgspec.structs.replace(self.spec, run=name, checkpoint=begun, **(where | more))
        rundir.write(folder, spec)
        if concluded:
            record = Concluded(outcome, "a reason", 1.0, step, checkpoint=checkpoint)  # type: ignore[arg-type]
            rundir.write(folder, record)
        if by is not None:
            rundir.write(folder, StopAsked("term", by, 1.0, 2.0, "boot"))
        return name

    def decide(self) -> tuple[str | None, str]:
        """(the folder to go on in, "" for a beginning, None for nothing; what is said)"""
        decision = autostart.decide(self.settings, self.runs, self.config)
        if decision.wanted is None:
            return None, decision.notice or ""
        assert decision.wanted.service and decision.wanted.config == self.config
        resume = decision.wanted.resume
        return resume.name if isinstance(resume, Path) else "", decision.notice or ""


def test_how_it_decides(workspace: Workspace) -> None:
    past = History(workspace)
    make_checkpoint(past.train_dir, "global_step10")
    folder = past.train_dir.name
    assert past.decide() == ("", "")
    past.add("failed", "global_step10")
    assert past.decide()[0] == folder, "it failed, but had got further"
    past.add("failed", "global_step10", "global_step10")
    past.add("unknown", "global_step10", "global_step10")
    assert past.decide()[0] == folder
    past.add("failed", "global_step10", "global_step10")
    assert past.decide()[0] is None and "its last 3 runs" in past.decide()[1]
    past.add("stopped", "global_step10", "global_step10", by="SIGTERM")
    assert past.decide()[0] == folder, "a shutdown counts for nothing"
    # One that only caches is no run to go on from, nor does it settle anything.
    past.add("completed", completes=False)
    assert past.decide()[0] == folder
    # One of another file in between.
    past.add("stopped", source="/elsewhere.toml", by="request")
    assert past.decide()[0] == folder
    # Somebody went on with another config, in the same directory.
    other = past.add("failed", "global_step10", "global_step10", source="/elsewhere.toml")
    assert past.decide()[0] is None and f"run {other} went on from its run" in past.decide()[1]
    # One with a variable that is not written down.
    past.add("unknown", "global_step10", env={"MY_TOKEN": "hidden-by-dpiped"})
    with pytest.raises(Exception, match="MY_TOKEN"):
        past.decide()
    past.add("unknown", "global_step10")
    (past.train_dir / "global_step10" / WEIGHTS).write_bytes(b"")
    where, said = past.decide()
    assert where == "" and "begins anew" in said and f"{WEIGHTS} is empty" in said
    past.add("unknown", train_dir=str(past.train_dir) + "-gone")
    assert past.decide()[0] == "" and "its directory is gone" in past.decide()[1]
    past.add("stopped", digest="another")
    assert past.decide()[0] == "" and "has changed since run" in past.decide()[1]
    past.add("completed", digest="another")
    assert past.decide() == ("", "")
    past.add("stopped", "global_step10", by="request")
    assert past.decide()[0] is None and "by request" in past.decide()[1]
    past.add("completed")
    past.add("failed")
    assert past.decide()[0] is None and "has completed" in past.decide()[1]
    # It had completed, and somebody had no time for its end.
    past.add("completed", by="request")
    assert past.decide()[0] is None and "has completed" in past.decide()[1]


def test_a_run_that_was_started_after_one_that_completed_goes_on(workspace: Workspace) -> None:
    """Other pictures, the same file: whoever started it again wants it."""
    past = History(workspace)
    make_checkpoint(past.train_dir, "global_step10")
    past.add("completed", "global_step10")
    past.add("unknown", train_dir=str(past.train_dir))
    assert past.decide()[0] is None, "nothing was reached that it could go on from"
    past.add("unknown", "global_step10")
    past.add("failed", "global_step10", "global_step10")
    where, said = past.decide()
    assert where == past.train_dir.name and "goes on from global_step10" in said


@pytest.mark.parametrize("begun", [None, "global_step10"])
def test_a_directory_that_is_gone_is_no_reason_to_begin_anew(workspace: Workspace, begun: str | None) -> None:
    """The disk with the checkpoints may be mounted later than the daemon starts."""
    past = History(workspace)
    run = past.add("unknown", begun=begun, train_dir=str(past.train_dir), step=None if begun else 3)
    where, said = past.decide()
    assert where is None and f"{past.train_dir}, where run {run} wrote its checkpoints, is gone" in said
    make_checkpoint(past.train_dir, "global_step10")
    assert past.decide()[0] == past.train_dir.name
    # Nor is one that was never found.
    run = past.add("unknown", step=3)
    where, said = past.decide()
    assert where is None and f"run {run} trained, and its directory below" in said


def test_a_checkpoint_that_was_announced_only_does_not_count(workspace: Workspace) -> None:
    """Else one whose first save takes the machine down would be begun anew for ever."""
    past = History(workspace)
    past.train_dir.mkdir(parents=True)
    for _ in range(autostart.ATTEMPTS):
        run = past.add("unknown", train_dir=str(past.train_dir), concluded=False)
        (past.runs / run / rundir.LOG).write_text(
            "Global batch size = 1\n"
            "steps: 10 loss: 0.5 iter time (s): 0.5 samples/sec: 2.0\n"
            "[..] [Torch] Checkpoint global_step10 is about to be saved!\n"
        )
        recovery.sort_out(past.settings, past.runs)
    where, said = past.decide()
    assert where is None and f"its last {autostart.ATTEMPTS} runs failed or broke off without" in said

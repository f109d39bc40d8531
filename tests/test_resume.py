"""A resume that can be trusted: from what is whole, with nothing in its way, every difference told."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpiped import checkpoints
from tests.harness import Workspace, processes_of_run, with_real_launcher
from tests.helpers import wait_until
from tests.web import Shim

pytestmark = pytest.mark.timeout(60)
WEIGHTS = "mp_rank_00_model_states.pt"


def saved(workspace: Workspace, times: int = 2) -> tuple[str, Path, list[str]]:
    """A run that was stopped after some checkpoints: its id, its directory, and their names, oldest first."""
    run = workspace.start(workspace.config(until=str(workspace.go)))
    tags = []
    for _ in range(times):
        workspace.until_step((workspace.status()["run"]["step"] or 0) + 2)
        tags.append(workspace.json("save")["checkpoint"])
    assert workspace.ctl("stop")[0] == 0
    return run, Path(workspace.json("show", run)["train_dir"]), tags


def first_step(workspace: Workspace, run: str) -> int:
    """The first step that the run printed."""
    found = wait_until(lambda: re.findall(r"steps: (\d+) ", workspace.log_text(run)), "a step")
    return int(found[0])


def step_in(tag: str) -> int:
    return int(tag.removeprefix("global_step"))


def truncate(path: Path, by: int = 1) -> None:
    os.truncate(path, path.stat().st_size - by)


def test_the_older_whole_checkpoint_is_used_and_said(dpiped: Workspace) -> None:
    run, train_dir, (older, newer) = saved(dpiped)
    truncate(train_dir / newer / WEIGHTS)
    assert dpiped.json("show", run)["checkpoint"] == older
    why = f"`latest` names {newer}, which is not whole ({WEIGHTS} is cut off); going on from {older}"
    checked = dpiped.json("resume", "--check")
    assert checked == {
        "ok": True,
        "findings": [],
        "resumed_from": run,
        "checkpoint": older,
        "warnings": [why],
        "changes": [],
    }
    code, out, _ = dpiped.ctl("resume", run, "--check")
    assert code == 0 and f"warning: {why}" in out and f"go on from {older} of run {run}; nothing was" in out
    # So far nothing has been touched.
    assert (train_dir / "latest").read_text() == newer and len(dpiped.json("runs")) == 1
    again = dpiped.json("resume")
    assert (again["warnings"], again["checkpoint"], again["resumed_from"]) == ([why], older, run)
    assert first_step(dpiped, again["run"]) == step_in(older) + 1
    assert why in dpiped.daemon_log() and (train_dir / newer).is_dir(), "nothing is deleted"
    assert (train_dir / "latest").stat().st_mode & 0o777 == 0o644
    dpiped.go.touch()
    assert dpiped.until_ended(again["run"])["train_dir"] == str(train_dir)


def test_what_has_completed_is_not_trained_past_its_end(dpiped: Workspace) -> None:
    """In whatever way it is asked for; train.py would do it, and save another model."""
    run, train_dir, _ = saved(dpiped, times=1)
    dpiped.go.touch()
    again = dpiped.json("resume")["run"]
    assert dpiped.until_ended(again)["outcome"] == "completed"
    config = str(dpiped.config(steps=30))
    flag = "--resume_from_checkpoint"
    for words in (
        ("resume", run),
        ("resume", again, "--config", config),
        ("start", "--config", config, "--", flag),
        ("start", "--config", config, "--", flag, train_dir.name),
    ):
        error = dpiped.json(*words, code=5)["error"]
        assert (
            error["field"] == "epochs" and f"run {again}, which wrote to {train_dir.name}" in error["message"]
        )
    longer = dpiped.config(steps=30, name="longer")
    longer.write_text(longer.read_text().replace("epochs = 1\n", "epochs = 2\n", 1))
    assert dpiped.json("resume", run, "--config", str(longer))["resumed_from"] == run


def test_every_way_to_resume_takes_the_older_one(shim: Shim) -> None:
    """By flag, by key, by form over HTTP, and by `true`."""
    workspace = shim.workspace
    run, train_dir, (older, newer) = saved(workspace)
    (train_dir / newer / WEIGHTS).write_bytes(bytes(4096))
    by_key = workspace.config(until=str(workspace.go), name="key")
    by_key.write_text(f"resume_from_checkpoint = true\n{by_key.read_text()}")
    form = shim.form(
        dataset_path="set", output_dir=str(train_dir.parent), resume_from_checkpoint=train_dir.name, epochs=7
    )
    for name in ("transformer_path", "vae_path", "llm_path", "clip_path"):
        (workspace.root / f"models/{name}").mkdir(parents=True, exist_ok=True)

    def started(*words: str) -> Any:
        (train_dir / "latest").write_text(newer)
        reply = workspace.json("start", *words)
        assert older in reply["warnings"][-1] and reply["checkpoint"] == older
        assert (train_dir / "latest").read_text() == older
        assert first_step(workspace, reply["run"]) == step_in(older) + 1
        assert workspace.ctl("stop", "--now")[0] == 0
        return reply

    flag = started(
        "--config", str(workspace.config(until=str(workspace.go))), "--", "--resume_from_checkpoint"
    )
    # The run that wrote to the folder last is found without being named.
    assert (flag["resumed_from"], flag["changes"]) == (run, [])
    key = started("--config", str(by_key))
    assert key["resumed_from"] == flag["run"]
    assert [each["key"] for each in key["changes"]] == ["resume_from_checkpoint"]
    (train_dir / "latest").write_text(newer)
    status, reply = shim.post("/train/start", form)
    assert status == 200 and reply.keys() == {"status", "pid", "config"}
    assert (train_dir / "latest").read_text() == older
    last = workspace.json("runs")[0]
    assert (last["config"], last["resumed_from"]) == (reply["config"], key["run"])
    assert workspace.ctl("stop", "--now")[0] == 0
    (train_dir / "latest").write_text(newer)
    status, reply = shim.post("/train/resume", {"run": run})
    assert status == 200 and reply["checkpoint"] == older and reply["changes"] == []
    assert older in reply["warnings"][0] and str(workspace.root) not in str(reply)


def test_without_any_whole_one_it_is_refused_and_another_run_is_named(dpiped: Workspace) -> None:
    good, _, (tag,) = saved(dpiped, times=1)
    # Its directory is named after the second.
    wait_until(lambda: not (dpiped.root / "outputs" / now()).exists(), "the next second")
    run, train_dir, tags = saved(dpiped, times=2)
    for each in tags:
        (train_dir / each / WEIGHTS).unlink()
    before = sorted(path.name for path in train_dir.iterdir())
    for words in (("resume",), ("resume", "--check")):
        reply = dpiped.json(*words, code=5)
        found = reply["error"] if "error" in reply else reply["findings"][0]
        assert f"which is not whole ({WEIGHTS} is missing)" in found["message"]
        assert "no other checkpoint in it is whole" in found["message"]
    hint = dpiped.json("resume", run, code=5)["error"]["hint"]
    (found,) = dpiped.json("resume", run, "--check", code=5)["findings"]
    assert found["hint"] == hint and hint in dpiped.ctl("resume", run, "--check")[1]
    assert f"run {good}" in hint and tag in hint and f"dpipectl resume {good}" in hint
    assert sorted(path.name for path in train_dir.iterdir()) == before
    assert [each["id"] for each in dpiped.json("runs")] == [run, good]
    # Whoever asks for the newest that there is gets the other one, and is told so.
    reply = dpiped.json("start", "--config", str(dpiped.config(steps=1)), "--", "--resume_from_checkpoint")
    assert reply["resumed_from"] == good
    assert reply["warnings"] == [f"{train_dir.name} is newer, but holds no whole checkpoint"]


def test_a_run_that_goes_on_can_not_be_resumed(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    assert dpiped.json("resume", code=4)["error"]["code"] == "refused"
    (found,) = dpiped.json("resume", run, "--check", code=5)["findings"]
    assert (found["field"], found["message"]) == ("run", f"run {run} is going on")
    assert "dpipectl stop --save" in found["hint"]


def now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).strftime("%Y%m%d_%H-%M-%S")


def test_what_would_end_the_run_is_taken_out_of_its_way_and_nothing_else(dpiped: Workspace) -> None:
    run, train_dir, (tag,) = saved(dpiped, times=1)
    elsewhere = dpiped.root / "elsewhere"
    (elsewhere / "tmp").mkdir(parents=True)
    (elsewhere / "tmp/kept").touch()
    for name in ("epoch1/tmp", "step20/tmp", "epoch2", "epochs/tmp", "tmp", "epoch1/nested/tmp"):
        (train_dir / name).mkdir(parents=True, exist_ok=True)
    (train_dir / "epoch1/tmp/state_dict_0.bin").write_bytes(b"half")
    (train_dir / "epoch1/adapter_model.safetensors").write_bytes(b"whole")
    (train_dir / "epoch2/tmp").symlink_to(elsewhere / "tmp")
    (train_dir / "epoch3").symlink_to(elsewhere)
    for name in ("save", "save_quit"):
        (train_dir / name).touch()
    gone = {"epoch1/tmp", "epoch1/tmp/state_dict_0.bin", "step20/tmp", "epoch2/tmp", "save", "save_quit"}
    before = everything_in(train_dir)
    checked = dpiped.json("resume", "--check")
    removed = "epoch1/tmp, epoch2/tmp, step20/tmp, save, save_quit"
    assert checked["warnings"] == [f"{removed} of {train_dir.name} would be removed first"]
    assert everything_in(train_dir) == before
    reply = dpiped.json("resume")
    told = f"removed epoch1/tmp, epoch2/tmp, step20/tmp of {train_dir.name}: a save that was cut off"
    assert reply["warnings"] == [told] and reply["checkpoint"] == tag
    dpiped.until_step(step_in(tag) + 2)
    assert everything_in(train_dir) >= before - gone and not everything_in(train_dir) & gone
    assert (elsewhere / "tmp/kept").exists()
    assert dpiped.json("show", reply["run"])["resumed_from"] == run


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_directory_that_can_not_be_made_ready_refuses_the_resume(dpiped: Workspace) -> None:
    _, train_dir, (older, newer) = saved(dpiped)
    (train_dir / newer / WEIGHTS).write_bytes(b"")
    # A folder is no signal, and none of ours to remove.
    (train_dir / "save").mkdir()
    (train_dir / "latest").unlink()
    (train_dir / "latest").mkdir()
    error = dpiped.json("resume", code=5)["error"]
    assert "`latest` can't be written: Is a directory" in error["message"]
    assert dpiped.status()["state"] == "idle" and len(dpiped.json("runs")) == 1
    (train_dir / "latest").rmdir()
    assert dpiped.json("resume")["checkpoint"] == older
    assert (train_dir / "save").is_dir()


def test_what_is_different_is_shown_before_the_run_is_started(dpiped: Workspace) -> None:
    run, _, _ = saved(dpiped, times=1)
    config = dpiped.config(until=str(dpiped.go), seconds_per_step=0.03, name="other")
    config.write_text(
        config.read_text().replace("epochs = 1", "epochs = 9", 1) + 'hub_token = "hf_a-secret-of-mine"\n'
    )
    dataset = dpiped.root / "configs/dataset.toml"
    dataset.write_text(dataset.read_text().replace("[32]", "[64]"))
    expected: list[dict[str, str | None]] = [
        {"file": "training", "key": "epochs", "before": "1", "after": "9"},
        {"file": "training", "key": "script.seconds_per_step", "before": None, "after": "0.03"},
        {"file": "training", "key": "script.hub_token", "before": None, "after": '"hidden-by-dpiped"'},
        {"file": "dataset", "key": "resolutions", "before": "[32]", "after": "[64]"},
    ]
    words = ("resume", run, "--config", str(config))
    assert dpiped.json(*words, "--check")["changes"] == expected
    code, out, err = dpiped.ctl(*words)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"different from run {run}:" and "a-secret" not in out
    assert "training  epochs: 1 → 9" in lines[1] and "seconds_per_step: (not set) → 0.03" in lines[2]
    assert re.match(rf"started run \S+ \(pid \d+\), resumed from {run} at global_step\d+", lines[5])
    assert dpiped.ctl("stop", "--now")[0] == 0
    # From there on as it is: no difference. And back to the first run's config, all of them.
    assert dpiped.json("resume")["changes"] == []
    assert dpiped.ctl("stop", "--now")[0] == 0
    back = dpiped.runs_dir / run / "training_config.toml"
    (dpiped.root / "configs/back.toml").write_bytes(back.read_bytes())
    first = dpiped.json("resume", "--config", str(dpiped.root / "configs/back.toml"), "--check")["changes"]
    assert {each["key"]: (each["after"], each["before"]) for each in first} == {
        str(each["key"]): (each["before"], each["after"]) for each in expected
    }
    # An old snapshot that can't be read hinders the comparison, not the resume.
    (dpiped.runs_dir / run / "dataset_config.toml").write_text("no TOML [")
    checked = dpiped.json("resume", run, "--config", str(config), "--check")
    assert checked["ok"] and "dataset_config.toml can't be read" in checked["warnings"][0]


def test_a_checkpoint_of_other_stages_is_refused_unless_the_optimizer_begins_anew(dpiped: Workspace) -> None:
    config = dpiped.config(until=str(dpiped.go))
    one = config.read_text()
    config.write_text(f"pipeline_stages = 2\n{one}")
    run = dpiped.start(config, "--num-gpus", "2")
    dpiped.until_step(2)
    assert dpiped.ctl("stop", "--save")[0] == 0
    config.write_text(one)
    words = ("resume", run, "--config", str(config), "--check")
    (found,) = dpiped.json(*words, code=5)["findings"]
    assert found["field"] == "pipeline_stages" and "was written by 2 stages" in found["message"]
    assert dpiped.json(*words, "--", "--reset_optimizer")["ok"]
    config.write_text(f"pipeline_stages = 4\n{one}")
    (found,) = dpiped.json(*words, "--num-gpus", "4", code=5)["findings"]
    assert "there are 2 pipeline stages of the 4 wanted" in found["message"]


@pytest.mark.timeout(150)
def test_with_deepspeed_everything_killed_and_the_newest_checkpoint_cut_off() -> None:
    """Killed like by a power cut in the middle of saving: the training goes on from the checkpoint before."""
    real = with_real_launcher()
    try:
        config = quick_config(real)
        run = real.start(config)
        tags = []
        for step in (4, 8):
            real.until_step(step, deadline=100)
            tags.append(real.json("save")["checkpoint"])
        older, newer = tags
        train_dir = Path(real.json("show", run)["train_dir"])
        assert checkpoints.look(train_dir).tag == newer
        real.kill_daemon()
        while pids := processes_of_run(run):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        layers = sorted(path.name for path in (train_dir / newer).glob("layer_*"))
        assert len(layers) >= 3, "what DeepSpeed writes"
        truncate(train_dir / newer / layers[1], 100)
        (train_dir / "epoch1/tmp").mkdir(parents=True, exist_ok=True)
        (train_dir / "epoch1/tmp/state_dict_0.bin").write_bytes(b"half")
        real.start_daemon()
        assert real.status()["last_run"]["outcome"] == "unknown"
        again = real.json("resume")
        assert again["checkpoint"] == older and f"{layers[1]} is cut off" in again["warnings"][0]
        assert not (train_dir / "epoch1/tmp").exists()
        real.until_step(step_in(older) + 3, deadline=100)
        log = real.log_text(again["run"])
        assert first_step(real, again["run"]) == step_in(older) + 1
        assert f"step: {step_in(older) + 1}\n" in log and "Traceback" not in log
        assert real.ctl("stop", "--save", timeout=60)[0] == 0
        # One layer's file is missing: known from the checkpoint beside it.
        newest = checkpoints.latest_tag(train_dir)
        assert newest is not None and checkpoints.look(train_dir).tag == newest
        (train_dir / newest / layers[-1]).unlink()
        found = checkpoints.look(train_dir)
        assert found.tag != newest and f"({layers[-1]} is missing)" in (found.why or "")
    finally:
        real.close()


def quick_config(workspace: Workspace) -> Path:
    """The example's smallest training, without an end, and with no checkpoint that is not asked for."""
    folder = workspace.root / "datasets/example"
    command = [sys.executable, "-m", "dpiped.trainer", "example", str(folder), "--length", "quick"]
    outputs = str(workspace.root / "outputs")
    subprocess.run([*command, "--output-dir", outputs], check=True, capture_output=True)
    config = folder / "training.toml"
    text = re.sub(r"(?m)^(\w*epochs) = \d+", r"\1 = 100000", config.read_text())
    config.write_text(text)
    return config

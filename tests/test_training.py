"""The whole thing: the daemon, the real deepspeed launcher and the embedded trainer."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import Workspace, processes_of_run, with_real_launcher
from tests.helpers import SHARED, wait_until
from tests.trainings import losses
from tests.web import MODELS, Shim

# The very first launch on a machine compiles a C++ part of DeepSpeed.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def real() -> Iterator[Workspace]:
    """A workspace with a daemon that finds the real launcher."""
    workspace = with_real_launcher()
    yield workspace
    workspace.close()


def quick_config(workspace: Workspace, data: Path | None = None, epochs: int = 1000) -> Path:
    """The example's smallest training, with another data set if one is given."""
    folder = workspace.root / "datasets/example"
    command = [sys.executable, "-m", "dpiped.trainer", "example", str(folder), "--length", "quick"]
    outputs = str(workspace.root / "outputs")
    subprocess.run([*command, "--output-dir", outputs], check=True, capture_output=True)
    config = folder / "training.toml"
    config.write_text(re.sub(r"(?m)^epochs = \d+", f"epochs = {epochs}", config.read_text()))
    if data is not None:
        dataset = folder / "dataset.toml"
        dataset.write_text(re.sub(r'(?m)^path = ".*"', f'path = "{data}"', dataset.read_text()))
    return config


def command(pid: int) -> list[str]:
    return psutil.Process(pid).cmdline()


def steps_in(text: str) -> list[int]:
    return [int(step) for step in re.findall(r"steps: (\d+) loss: ", text)]


def test_daemon_killed_then_saved_stopped_and_resumed_is_one_training(real: Workspace) -> None:
    """Step by step the losses are those of a training that nothing happened to, to the last digit."""
    config = quick_config(real)

    def save_and_stop(run: str, step: int) -> Any:
        real.until_step(step, deadline=150)
        assert real.ctl("stop", "--save", timeout=120)[0] == 0
        ended = real.until_ended(run)
        assert ended["outcome"] == "stopped" and f"global_step{ended['step']}" in ended["reason"]
        assert processes_of_run(run) == []
        return ended

    run = real.start(config)
    pid = real.until_step(3, deadline=150)["pid"]
    real.kill_daemon()
    reached = len(steps_in(real.log_text(run)))
    wait_until(lambda: len(steps_in(real.log_text(run))) > reached + 3, "the training goes on by itself")
    real.start_daemon()
    assert real.status()["run"]["pid"] == pid
    first = save_and_stop(run, 20)
    assert steps_in(real.log_text(run)) == [*range(1, first["step"] + 1)]

    again = real.json("resume")["run"]
    second = save_and_stop(again, first["step"] + 20)
    assert steps_in(real.log_text(again)) == [*range(first["step"] + 1, second["step"] + 1)]
    assert second["train_dir"] == first["train_dir"]

    third = save_and_stop(real.start(config), second["step"])
    halves, whole = (losses(Path(ended["train_dir"])) for ended in (first, third))
    assert list(halves) == list(range(1, second["step"] + 1))
    assert max(abs(whole[step] - halves[step]) for step in halves) < 1e-6


def test_the_real_launcher_sigkilled_leaves_no_rank_and_is_a_failure(real: Workspace) -> None:
    run = real.start(quick_config(real))
    real.until_step(2, deadline=150)
    launchers = [pid for pid in processes_of_run(run) if "deepspeed.launcher.launch" in command(pid)]
    os.kill(launchers[0], signal.SIGKILL)
    ended = real.until_ended(run, deadline=60)
    assert (ended["outcome"], ended["exit_code"]) == ("failed", 0)
    assert "the launcher was killed" in ended["reason"]
    assert processes_of_run(run) == []


def test_a_rank_sigkilled_is_said_within_seconds(real: Workspace) -> None:
    run = real.start(quick_config(real))
    real.until_step(2, deadline=150)
    ranks = [pid for pid in processes_of_run(run) if "--local_rank=0" in command(pid)]
    os.kill(ranks[0], signal.SIGKILL)
    ended = real.until_ended(run, deadline=20)
    assert (ended["outcome"], ended["exit_code"]) == ("failed", 247)
    assert "SIGKILL" in ended["reason"]


def pictures(folder: Path) -> None:
    """The ten real photographs where they lie beside the checkout; else as mixed a set of our own."""
    folder.mkdir()
    photos = SHARED / "photos"
    if photos.is_dir():
        for path in photos.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return
    from PIL import Image

    modes = ("RGB", "L", "RGBA", "P", "RGB", "L", "RGB", "RGBA", "RGB")
    for number, mode in enumerate(modes):
        picture = Image.radial_gradient("L").resize((80 + 40 * number, 300 - 20 * number)).convert(mode)
        suffix = "jpg" if mode in ("RGB", "L") and number % 2 else "png"
        picture.save(folder / f"{number}.{suffix}")
        (folder / f"{number}.txt").write_text(f"picture number {number}")
    Image.new("RGBA", (120, 90)).save(folder / "logo.png")
    (folder / "README.md").write_text("not a picture")


def test_photographs_of_mixed_sizes_and_modes_train_as_a_data_set(real: Workspace) -> None:
    data = real.root / "datasets/photos"
    pictures(data)
    config = quick_config(real, data, epochs=3)
    # Without prompts of its own the trainer draws captions of the data set.
    config.write_text(config.read_text().replace("sample_prompts = []\n", ""))
    run = real.start(config)
    ended = real.until_ended(run, deadline=150)
    assert ended["outcome"] == "completed", ended["reason"]
    text = real.log_text(run)
    assert "logo.png" in text, "the picture without a caption is named"
    train_dir = Path(ended["train_dir"])
    assert list((train_dir / "samples").glob("*.png"))
    assert (train_dir / "epoch3/model.safetensors").stat().st_size > 0
    assert list(train_dir.glob("events.out.tfevents.*"))


def test_a_form_over_http_trains_the_embedded_model(real: Workspace) -> None:
    quick_config(real)
    shim = Shim(real)
    form = shim.form(
        **dict.fromkeys(MODELS, ""),
        model_type="dpiped",
        dtype="float32",
        dataset_path="example/data",
        epochs=1,
        save_every=1,
        num_repeats=1,
        batch_size=4,
        gradient_accumulation_steps=1,
        resolutions_input="[32]",
        warmup_steps=2,
        learning_rate=1e-3,
        optimizer_type="adamw",
    )
    assert shim.post("/train/check", form) == (200, {"ok": True, "findings": []})
    assert shim.post("/train/start", form)[0] == 200
    run = shim.get("/status")[1]["run"]["id"]
    assert real.until_ended(run, 120)["outcome"] == "completed"
    made = next((real.root / "outputs").glob("2*"))
    assert len(losses(made)) > 10 and list(made.glob("epoch1/*.safetensors"))

"""The embedded trainer: real DeepSpeed trainings from start to end."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trainings import (
    STEP_LINE,
    Launch,
    Setup,
    Training,
    losses,
    make_setup,
    need_trainer,
    odd_images,
    scalars,
)

need_trainer()

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpiped.trainer import __main__ as cli
from dpiped.trainer import checkpoint, config
from dpiped.trainer.table import ConfigError
from tests.helpers import SHARED, wait_until

pytestmark = pytest.mark.timeout(120)

PHOTOS = SHARED / "photos"
STEPS = 120


@dataclass(frozen=True)
class Finished:
    setup: Setup
    training: Training
    code: int


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Finished:
    """A training of STEPS steps by the launcher, from its start to its end."""
    longer = [
        ("epochs = 4", f"epochs = {STEPS // 2}"),
        ("save_every_n_epochs = 2", "save_every_n_epochs = 20"),
        ("checkpoint_every_n_epochs = 2", "checkpoint_every_n_epochs = 20"),
    ]
    setup = make_setup(tmp_path_factory.mktemp("finished"), *longer)
    training = launch(setup.training, launcher=True)
    return Finished(setup, training, training.finish())


# Whole trainings


def test_output_in_order(finished: Finished) -> None:
    assert finished.code == 0, finished.training.err
    out = finished.training.out
    marks = (
        "[INFO] [runner.py:",
        "[INFO] [launch.py:",
        "init_distributed]",
        f"caching latents: {finished.setup.data}\n",
        "[CACHE] Initializing\n",
        "[CACHE] Storing new fingerprint: ",
        "[CACHE] Existing cache length: 0\n",
        f"caching text embeddings: {finished.setup.data}\n",
        "trainable params: ",
        "stage=0 layers=",
        "Global batch size = 4\n",
        "DeepSpeed Basic Optimizer = AdamW",
        "step=1, skipped=0, lr=[0.000999",
        "steps: 1 loss: ",
        "Started new epoch: 2\n",
        "steps: 40 loss: ",
        "[Torch] Checkpoint global_step40 is about to be saved!",
        f"Saving model checkpoint: {finished.setup.run_dir}/global_step40/mp_rank_00_model_states.pt",
        "Saving model to directory epoch20\n",
        "Started new epoch: 21\n",
        f"steps: {STEPS} loss: ",
        f"Checkpoint global_step{STEPS} is about to be saved!",
        "Saving model to directory epoch60\n",
        "TRAINING COMPLETE!\n",
        "exits successfully.",
    )
    at = 0
    for mark in marks:
        found = out.find(mark, at)
        assert found >= 0, f"{mark!r} is missing, or stands too early"
        at = found
    assert [int(step) for step, _ in STEP_LINE.findall(out)] == list(range(1, STEPS + 1))
    assert out.count("Global batch size") == out.count("TRAINING COMPLETE!") == 1
    assert re.search(r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: 100\.0000\n", out)
    assert re.search(r"100%\|.*\| 8/8 \[", finished.training.err)


def test_run_directory(finished: Finished) -> None:
    setup, run_dir = finished.setup, finished.setup.run_dir
    assert re.fullmatch(r"\d{8}_\d\d-\d\d-\d\d", run_dir.name)
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("events.")}
    saved = {"epoch20", "epoch40", "epoch60", "global_step40", "global_step80", "global_step120"}
    files = {"training.toml", "dataset.toml"}
    assert names == saved | files | {"latest", "model.json", "samples"}
    assert {path.name for path in (run_dir / "epoch60").iterdir()} == files | {
        "model.safetensors",
        "model.json",
    }
    for folder in (run_dir, run_dir / "epoch20"):
        assert (folder / "training.toml").read_bytes() == setup.training.read_bytes()
        assert (folder / "dataset.toml").read_bytes() == setup.dataset.read_bytes()
    assert (run_dir / "latest").read_bytes() == b"global_step120"
    assert [path.name for path in sorted((run_dir / "samples").iterdir())] == [
        "step_000040.png",
        "step_000080.png",
        "step_000120.png",
    ]


def test_events(finished: Finished) -> None:
    events = EventAccumulator(str(finished.setup.run_dir)).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/epoch_loss", "train/lr"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"samples/1", "samples/2"}
    assert len(events.Scalars("train/epoch_loss")) == STEPS // 2
    assert sorted(losses(finished.setup.run_dir)) == list(range(1, STEPS + 1))
    assert list(scalars(finished.setup.run_dir, "train/lr")) == list(range(1, STEPS + 1))


def test_loss_falls(finished: Finished) -> None:
    values = list(losses(finished.setup.run_dir).values())
    assert np.mean(values[-20:]) < 0.8 * np.mean(values[:20])


def test_a_saved_model_can_be_sampled(finished: Finished, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    arguments = ["--caption", "a red star", "--caption", "dog", "--out", str(picture), "--steps", "2"]
    assert cli.main(["sample", "--run", str(finished.setup.run_dir), *arguments]) == 0
    with Image.open(picture) as image:
        assert image.size[0] == 256
    wide = ["--size", "32x16", *arguments]
    assert cli.main(["sample", "--run", str(finished.setup.run_dir / "epoch20"), *wide]) == 0
    assert cli.main(["sample", "--run", str(tmp_path), *arguments]) == 1
    for size in ("30x16", "16", "0x16", "16x-16"):
        assert cli.main(["sample", "--run", str(finished.setup.run_dir), f"--size={size}", *arguments]) == 1
    nameless = [*arguments, "--out", str(tmp_path / "star")]
    assert cli.main(["sample", "--run", str(finished.setup.run_dir), *nameless]) == 1


def test_save_writes_a_checkpoint_and_goes_on(launch: Launch, setup: Setup) -> None:
    setup.edit("training", ("epochs = 4", "epochs = 400\nmax_steps = 150"), ("save_every_n_epochs = 2", ""))
    setup.edit("training", ("checkpoint_every_n_epochs = 2", "save_every_n_steps = 100"))
    training = launch(setup.training)
    wait_until(lambda: "steps: 3 " in training.out, "step 3", deadline=90)
    (setup.run_dir / "save").touch()
    assert training.finish() == 0
    assert not (setup.run_dir / "save").exists()
    tags = re.findall(r"Checkpoint (global_step\d+) is about to be saved!", training.out)
    assert len(tags) == 2
    assert tags[1] == "global_step150"
    assert {path.name for path in setup.run_dir.glob("step*")} == {"step100", "step150"}


def test_the_files_may_change_and_a_lost_last_model_is_made_up(launch: Launch, setup: Setup) -> None:
    """What is saved says what was trained with, whatever became of the user's own files since."""
    evaluation = setup.training.parent / "eval" / "dataset.toml"
    evaluation.parent.mkdir()
    evaluation.write_text(setup.dataset.read_text() + "# for evaluation\n")
    setup.add(f"eval_datasets = [{{name = 'held/out', config = '{evaluation}'}}]", "eval_every_n_epochs = 9")
    setup.edit(
        "training", ("epochs = 4", "epochs = 100"), ("save_every_n_epochs = 2", "save_every_n_epochs = 50")
    )
    setup.edit("training", ("checkpoint_every_n_epochs = 2\n", ""))
    content, dataset = setup.training.read_bytes(), setup.dataset.read_bytes()
    training = launch(setup.training)
    wait_until(lambda: "steps: 1 " in training.out, "step 1", deadline=90)
    setup.training.rename(setup.training.with_name("mine.toml"))
    setup.dataset.write_text("something else")
    training.completed()
    for folder in (setup.run_dir, setup.run_dir / "epoch100"):
        assert (folder / "training.toml").read_bytes() == content
        assert (folder / "dataset.toml").read_bytes() == dataset
        assert (folder / "held_out_dataset.toml").read_bytes() == evaluation.read_bytes()

    setup.training.write_bytes(content)
    setup.dataset.write_bytes(dataset)
    shutil.rmtree(setup.run_dir / "epoch100")
    again = launch(setup.training, "--resume_from_checkpoint").completed()
    assert "Resuming at epoch: 101, step: 201\n" in again.out
    assert not STEP_LINE.search(again.out)
    assert "TRAINING COMPLETE!" in again.out
    assert "Saving model to directory epoch100\n" in again.out
    assert (setup.run_dir / "epoch100/model.safetensors").is_file()


def test_photographs_and_odd_images(launch: Launch, setup: Setup, tmp_path: Path) -> None:
    odd_images(tmp_path / "odd")
    more = f"shuffle_tags = true\n[[directory]]\npath = '{tmp_path / 'odd'}'\n"
    if PHOTOS.is_dir():
        shutil.copytree(PHOTOS, tmp_path / "photos")  # caches are written beside the pictures
        more += f"[[directory]]\npath = '{tmp_path / 'photos'}'\ncaption_prefix = 'a photo of '\n"
    setup.edit("dataset", ("num_repeats = 1", "num_repeats = 1\n" + more))
    setup.edit("dataset", ("resolutions", "skip_unreadable = true\nresolutions"))
    setup.edit("training", ("sample_prompts = ['a red circle', 'a star']", ""), ("epochs = 4", "epochs = 1"))
    setup.edit("training", ("dtype = 'float32'", "dtype = 'bfloat16'"))
    training = launch(setup.training)
    assert training.finish() == 0, training.err
    out = training.out
    assert f"Cound not find caption for {tmp_path / 'odd' / 'silent.png'}. Skipping image.\n" in out
    assert f"Skipping images that can't be read: {tmp_path / 'odd' / 'broken.png'}\n" in out
    assert re.search(r"\[WARNING\] \[\w+\.py:\d+:\w+\] Skipping files that are not images: .*README\.md", out)
    assert len(STEP_LINE.findall(out)) == (8 + 6 + 9 * PHOTOS.is_dir()) // 4
    assert "TRAINING COMPLETE!" in out


def test_cache_only_makes_no_run(launch: Launch, setup: Setup) -> None:
    training = launch(setup.training, "--cache_only").completed()
    assert training.out.count("[CACHE] Storing new fingerprint: ") == 2
    assert "TRAINING COMPLETE!" not in training.out
    assert not setup.output.exists()


def test_launcher_passes_the_error_on(launch: Launch, setup: Setup) -> None:
    setup.edit("training", ("per_gpu = 4", "per_gpu = 9"))
    training = launch(setup.training, launcher=True)
    assert training.finish() == 1
    assert training.err.count("train.py: error: micro_batch_size_per_gpu: a global batch of 9 is larger") == 1
    assert "Traceback" not in training.err
    assert not setup.output.exists()


def test_resume_needs_a_whole_checkpoint(finished: Finished, tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    settings = config.load(setup.training)

    def refused(wanted: str | bool, error: str) -> None:
        with pytest.raises(ConfigError, match=error):
            checkpoint.find(settings, wanted)

    refused(True, "there is no run directory in")
    refused("20200101_00-00-00", "there is no run directory '20200101_00-00-00'")
    assert not setup.output.exists()
    (setup.output / "20200101_00-00-00").mkdir(parents=True)
    refused(True, "holds no checkpoint to resume from")
    refused("../data", "there is no run directory")
    run = setup.output / "20200101_00-00-01"
    shutil.copytree(finished.setup.run_dir, run)
    found = checkpoint.find(settings, True)
    assert found is not None
    assert (found.run_dir, found.tag) == (run, "global_step120")
    part = run / found.tag / "layer_01-model_states.pt"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    refused(True, "layer_01-model_states.pt is cut short")
    part.unlink()
    refused(run.name, "layer_01-model_states.pt is missing")
    part.write_bytes(whole)
    wider = config.load(setup.edit("training", ("width = 16", "width = 32")))
    with pytest.raises(ConfigError, match="the checkpoint's model has width 16, the config says 32"):
        checkpoint.find(wider, True)

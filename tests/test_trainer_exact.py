"""One training is one training: resumed or not, on one rank or two, with or without a detour."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
import shutil
from pathlib import Path

import pytest

from tests.trainings import Launch, Setup, farthest, losses, make_setup, need_trainer, scalars

need_trainer()

import torch
from PIL import Image
from safetensors.torch import load_file

from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(180)

FORTY = (
    ("epochs = 4", "epochs = 5\ngradient_accumulation_steps = 2\nwarmup_steps = 5"),
    ("warmup_steps = 0\n", ""),
    ("save_every_n_epochs = 2", "save_every_n_epochs = 5"),
    ("checkpoint_every_n_epochs = 2\n", ""),
)
"""Eight steps an epoch, forty in all, with 64 pictures."""


def forty(folder: Path, *changes: tuple[str, str]) -> Setup:
    return make_setup(folder, *FORTY, *changes, images=64)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Setup:
    """Forty steps on one rank."""
    setup = forty(tmp_path_factory.mktemp("uninterrupted"))
    launch(setup.training).completed()
    assert list(losses(setup.run_dir)) == list(range(1, 41))
    return setup


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Setup:
    """The same forty steps on two replicas."""
    setup = forty(tmp_path_factory.mktemp("on_two"), ("per_gpu = 4", "per_gpu = 2"))
    training = launch(setup.training, ranks=2).completed()
    assert training.out.count("Global batch size = 8\n") == 2
    assert training.out.count("TRAINING COMPLETE!") == 1
    return setup


def same_models(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    assert set(first) == set(second)
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("ranks", [1, 2])
def test_saved_stopped_and_resumed_it_is_the_same_training(
    launch: Launch, uninterrupted: Setup, on_two: Setup, tmp_path: Path, ranks: int
) -> None:
    """`save_quit` is what `dpipectl stop --save` writes; it ends the training within the next step."""
    whole = on_two if ranks == 2 else uninterrupted
    setup = forty(tmp_path, *([("per_gpu = 4", "per_gpu = 2")] * (ranks - 1)))
    first = launch(setup.training, ranks=ranks)
    wait_until(lambda: "steps: 3 " in first.out, "step 3", deadline=90, every=0.01)
    (setup.run_dir / "save_quit").touch()
    first.completed()
    assert first.out.count("Manually quitting") == ranks
    done = int((setup.run_dir / "latest").read_text().removeprefix("global_step"))
    assert 3 <= done < 40
    second = launch(setup.training, "--resume_from_checkpoint", ranks=ranks).completed()
    assert f"Resuming at epoch: {done // 8 + 1}, step: {done + 1}\n" in second.out
    assert "TRAINING COMPLETE!" in second.out
    assert len(setup.runs()) == 1
    assert farthest(losses(setup.run_dir), losses(whole.run_dir)) < 1e-6
    assert same_models(setup.run_dir / "epoch5", whole.run_dir / "epoch5")


def test_two_replicas_train_the_same(uninterrupted: Setup, on_two: Setup) -> None:
    assert farthest(losses(on_two.run_dir), losses(uninterrupted.run_dir)) < 1e-4


LAYOUTS = {
    "two stages": (2, ("epochs = 5", "epochs = 5\npipeline_stages = 2")),
    "computed twice, not accumulated": (
        1,
        (
            "gradient_accumulation_steps = 2",
            "activation_checkpointing = true\nimage_micro_batch_size_per_gpu = 8",
        ),
    ),
}


@pytest.mark.parametrize(("ranks", "change"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_does_not_matter(
    launch: Launch, uninterrupted: Setup, tmp_path: Path, ranks: int, change: tuple[str, str]
) -> None:
    setup = forty(tmp_path, change)
    training = launch(setup.training, ranks=ranks).completed()
    assert training.out.count("Global batch size = 8\n") == ranks
    assert farthest(losses(setup.run_dir), losses(uninterrupted.run_dir)) < 1e-4


def shaped(folder: Path) -> Setup:
    """Wide, tall and square pictures at two resolutions, an evaluation set, all of it at once."""
    setup = make_setup(folder, images=24)
    for path in sorted(setup.data.glob("*.png")):
        number = int(path.stem)
        with Image.open(path) as image:
            image.load()
            image.resize(((16, 16), (24, 12), (12, 24))[number % 3]).save(path)
    buckets = "enable_ar_bucket = true\nmin_ar = 0.5\nmax_ar = 2.0\nnum_ar_buckets = 3"
    setup.edit("dataset", ("[16]", "[16, 24]"), ("num_repeats = 1", f"num_repeats = 1.5\n{buckets}"))
    setup.edit("training", ("per_gpu = 4", "per_gpu = [[16, 4], [24, 2]]"), ("epochs = 4", "epochs = 1"))
    setup.add(
        "pipeline_stages = 2",
        f"eval_datasets = [{{name = 'held out', config = '{setup.dataset}'}}]",
        "eval_every_n_steps = 20",
        "checkpoint_every_n_minutes = 1e-9",
        "keep_last_n_checkpoints = 3",
        "keep_last_n_models = 1",
    )
    setup.edit("training", ("save_every_n_epochs = 2", "save_every_n_steps = 8"))
    return setup


def test_buckets_evaluation_and_pruning_on_two_stages_and_on_one(launch: Launch, tmp_path: Path) -> None:
    setup = shaped(tmp_path / "two")
    training = launch(setup.training, ranks=2).completed()
    # 12 examples of each shape: 3 batches of 4 at the small size, 6 of 2 at the large one.
    steps = 3 * (3 + 6)
    assert list(losses(setup.run_dir)) == list(range(1, steps + 1))
    assert training.out.count("Running eval\n") == 2
    for tag in ("loss", "loss_quantile_0.10", "loss_quantile_0.90", "eval_time_sec"):
        assert list(scalars(setup.run_dir, f"held out/{tag}")) == [0, 20]
    kept = sorted(int(path.name[11:]) for path in setup.run_dir.glob("global_step*"))
    assert kept == [steps - 2, steps - 1, steps]
    assert [path.name for path in setup.run_dir.glob("epoch*")] == ["epoch1"]
    assert not list(setup.run_dir.glob("step*"))
    assert "100%" in training.err

    one = shaped(tmp_path / "one")
    one.edit("training", ("pipeline_stages = 2", "pipeline_stages = 1"))
    launch(one.training).completed()
    for tag in ("train/loss", "held out/loss", "held out/loss_quantile_0.10"):
        assert farthest(scalars(one.run_dir, tag), scalars(setup.run_dir, tag)) < 1e-4


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Setup:
    """A training with a constant learning rate of 0.001 that has come to its end."""
    folder = tmp_path_factory.mktemp("two_epochs")
    setup = make_setup(folder, ("'cosine'", "'constant'"), ("epochs = 4", "epochs = 2"))
    launch(setup.training).completed()
    return setup


def copied(ended: Setup, folder: Path) -> Setup:
    """The same training with its data and what came of it, to be gone on with for an epoch more."""
    shutil.copytree(ended.training.parent, folder, dirs_exist_ok=True)
    setup = Setup(folder / "training.toml", folder / "dataset.toml", folder / "out")
    before = str(ended.training.parent)
    setup.edit("training", *[(before, str(folder))] * 2, ("epochs = 2", "epochs = 3"))
    setup.edit("dataset", (before, str(folder)))
    return setup


@pytest.mark.parametrize(
    ("flag", "rate"),
    [("", 1e-3), ("--reset_optimizer_params", 3e-3)],
    ids=["kept", "parameters reset"],
)
def test_another_learning_rate_needs_a_flag(
    launch: Launch, two_epochs: Setup, tmp_path: Path, flag: str, rate: float
) -> None:
    setup = copied(two_epochs, tmp_path)
    setup.edit("training", ("lr = 1e-3", "lr = 3e-3"))
    launch(setup.training, "--resume_from_checkpoint", *([flag] if flag else [])).completed()
    rates = scalars(setup.run_dir, "train/lr")
    assert rates[4] == pytest.approx(1e-3)
    assert rates[5] == rates[6] == pytest.approx(rate)


def test_a_changed_data_set_begins_the_epoch_again_without_the_optimizer(
    launch: Launch, two_epochs: Setup, tmp_path: Path
) -> None:
    setup = copied(two_epochs, tmp_path)
    setup.edit("training", ("lr = 1e-3", "lr = 3e-3"))
    (setup.data / "0001.txt").unlink()
    (setup.data / "0001.png").unlink()
    again = launch(setup.training, "--resume_from_checkpoint", "--reset_optimizer").completed()
    assert "[CACHE] Fingerprint changed, deleting existing cache files\n" in again.out
    assert "The data set or the global batch has changed: epoch 3 begins again\n" in again.out
    assert "Resuming at epoch: 3, step: 5\n" in again.out
    assert scalars(setup.run_dir, "train/lr")[5] == pytest.approx(3e-3)

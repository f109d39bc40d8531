"""What the embedded trainer refuses: one clear line, exit code 1, nothing begun."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainings import TRAINER, Launch, Setup, need_trainer

need_trainer()

from dpiped.trainer import main

pytestmark = pytest.mark.timeout(120)


# What is refused, without launching anything

REFUSED = {
    "unknown key": ("training", "epochs = 4", "epochs = 4\nepoch = 3", "epoch is not a key"),
    "epochs missing": ("training", "epochs = 4", "", "epochs is missing"),
    "epochs zero": ("training", "epochs = 4", "epochs = 0", "epochs takes a whole number from 1"),
    "epochs text": ("training", "epochs = 4", "epochs = '4'", "epochs takes a whole number"),
    "no save": ("training", "save_every_n_epochs = 2", "", "save_every_n_epochs, save_every_n_steps or"),
    "schedule": ("training", "'cosine'", "'step'", "lr_scheduler takes 'constant' or 'linear'"),
    "adapter without a base": (
        "training",
        "[model]",
        "[adapter]\ntype = 'lora'\nrank = 4\n[model]",
        "model.checkpoint_path is missing",
    ),
    "eval sets": (
        "training",
        "epochs = 4",
        "epochs = 4\neval_datasets = ['x']",
        r"eval_datasets\[0\] takes a table",
    ),
    "wandb": ("training", "[model]", "[monitoring]\nenable_wandb = true\n[model]", "monitoring.enable_wandb"),
    "model type": ("training", "'dpiped'", "'flux'", "model.type takes 'dpiped'"),
    "model size": ("training", "width = 16", "size = 'huge'", "model.size takes 'tiny' or 'small'"),
    "width": ("training", "width = 16", "width = 20", "model.width takes a multiple of 16"),
    "model key": ("training", "width = 16", "heads = 2", "model.heads is not a key"),
    "stages": (
        "training",
        "epochs = 4",
        "epochs = 4\npipeline_stages = 2",
        "pipeline_stages = 2 does not div",
    ),
    "many stages": (
        "training",
        "epochs = 4",
        "epochs = 4\npipeline_stages = 9",
        "pipeline_stages takes at most",
    ),
    "lr missing": ("training", "lr = 1e-3", "", "optimizer.lr is missing"),
    "optimizer": ("training", "'adamw'", "'adam8bit'", "optimizer.type takes adamw, sgd or"),
    "argument": ("training", "lr = 1e-3", "lr = 1e-3\nbeta = 1", "optimizer: AdamW does not take .*beta"),
    "relative": ("training", "output_dir = ", "output_dir = 'out' #", "output_dir takes an absolute path"),
    "no dataset": ("training", "dataset.toml", "nowhere.toml", "dataset: there is no file"),
    "examples": (
        "training",
        "epochs = 4",
        "epochs = 4\nsave_every_n_examples = 3",
        "save_every_n_examples takes",
    ),
    "not TOML": ("dataset", "resolutions", "resolutions = =", "dataset.toml is not TOML"),
    "resolutions": ("dataset", "[16]", "['16']", "resolutions takes a list of sides"),
    "small resolution": ("dataset", "[16]", "[4]", "resolutions takes a list of sides .* from 8 to 65536"),
    "resolution": ("dataset", "[16]", "[18]", "resolutions takes multiples of the patch size 4, not 18"),
    "size bucket": (
        "dataset",
        "resolutions = [16]",
        "size_buckets = [[16, 18, 1]]",
        "size_buckets .* of the patch size 4, not 16x18",
    ),
    "frames": (
        "dataset",
        "resolutions = [16]",
        "size_buckets = [[16, 16, 5]]",
        "size_buckets takes a list of",
    ),
    "many resolutions": ("dataset", "[16]", "[16, 20, 24, 28]", "resolutions takes up to 3"),
    "ratios": ("dataset", "num_repeats = 1", "enable_ar_bucket = true", "min_ar is missing"),
    "ratio": (
        "dataset",
        "num_repeats = 1",
        "enable_ar_bucket = true\nar_buckets = [1.0, -2.0]",
        "ar_buckets takes a list of ratios",
    ),
    "ratio order": (
        "dataset",
        "num_repeats = 1",
        "enable_ar_bucket = true\nmin_ar = 2\nmax_ar = 0.5\nnum_ar_buckets = 3",
        "min_ar takes at most max_ar",
    ),
    "infinite ratio": (
        "dataset",
        "num_repeats = 1",
        "enable_ar_bucket = true\nar_buckets = [inf]",
        "ar_buckets takes a list of ratios",
    ),
    "huge resolution": ("dataset", "[16]", "[1" + "0" * 400 + "]", "resolutions takes a list of sides"),
    "huge number": (
        "training",
        "epochs = 4",
        "epochs = 4\ngradient_clipping = 1" + "0" * 400,
        "gradient_clipping takes a number from 0 to",
    ),
    "not a number": ("training", "lr = 1e-3", "lr = nan", "optimizer: AdamW does not take"),
    "seed": ("training", "epochs = 4", "epochs = 4\nseed = 1700000000000", "seed takes a whole number up to"),
    "betas": ("training", "[0.9, 0.99]", "[0.9]", "optimizer: AdamW does not take these arguments"),
    "three betas": ("training", "[0.9, 0.99]", "[0.9, 0.9, 0.9]", "optimizer: AdamW does not take these arg"),
    "capturable": ("training", "lr = 1e-3", "lr = 1e-3\ncapturable = true", "optimizer: AdamW does not take"),
    "nobody's home": ("dataset", 'path = "', 'path = "~nosuchuser/" #', r"directory\[0\].path: .*home"),
    "long output": ("training", "output_dir = ", f"output_dir = '/{'x' * 300}' #", "File name too long"),
    "masks": ("dataset", "num_repeats = 1", "mask_path = '/x'", "mask_path is not a key"),
    "subsample": ("dataset", "resolutions", "subsample_ratio = 2\nresolutions", "subsample_ratio takes"),
    "micro batches": ("training", "per_gpu = 4", "per_gpu = [[16, 0]]", "micro_batch_size_per_gpu takes"),
    "eval set": (
        "training",
        "epochs = 4",
        "epochs = 4\neval_datasets = [{name = 'x', config = '/nowhere.toml'}]",
        r"eval_datasets\[0\].config: there is no file",
    ),
    "eval name": (
        "training",
        "epochs = 4",
        "epochs = 4\neval_datasets = [{name = '', config = '/nowhere.toml'}]",
        r"eval_datasets\[0\].name takes",
    ),
    "keep": (
        "training",
        "epochs = 4",
        "epochs = 4\nkeep_last_n_checkpoints = 0",
        "keep_last_n_checkpoints takes",
    ),
    "checkpointing": (
        "training",
        "epochs = 4",
        "epochs = 4\nactivation_checkpointing = 'unsloth'",
        "activation_checkpointing takes true or false",
    ),
    "base": (
        "training",
        "width = 16",
        "checkpoint_path = '/nowhere'",
        "model.checkpoint_path: there is no directory",
    ),
    "no base": ("training", "width = 16", "checkpoint_path = '/tmp'", "/tmp holds no saved model"),
    "no directory": ("dataset", "[[directory]]", "[other]", r"has no \[\[directory\]\]"),
    "path": ("dataset", "/data", "/nowhere", r"directory\[0\].path: there is no directory"),
    "repeats": ("dataset", "num_repeats = 1", "num_repeats = 0", "num_repeats takes a number above 0"),
}


@pytest.mark.parametrize(("file", "old", "new", "error"), REFUSED.values(), ids=REFUSED)
def test_refused_with_one_line(
    setup: Setup, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, error: str
) -> None:
    setup.edit(file, (old, new))
    assert main.main(["--deepspeed", "--config", str(setup.training)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"train\.py: error: .*{error}.*\n", said)
    assert not setup.output.exists()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda data: [path.unlink() for path in data.iterdir()], "there are no images"),
        (lambda data: [path.unlink() for path in data.glob("*.txt")], "no image with a caption"),
        (lambda data: (data / "captions.json").write_text("{}"), "no image with a caption"),
        (lambda data: (data / "captions.json").write_text("{"), "captions.json can't be read"),
        (lambda data: (data / "captions.json").write_text('{"a": "b"}'), "with lists of strings"),
        (lambda data: (data / "0003.txt").write_bytes(b"\xff\xfe\xff"), "0003.txt can't be read"),
    ],
    ids=["empty", "no captions", "empty json", "broken json", "odd json", "binary caption"],
)
def test_bad_folders_are_refused(
    setup: Setup, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], error: str
) -> None:
    spoil(setup.data)
    assert main.main(["--config", str(setup.training)]) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--test_sample", "--dump_dataset=x"])
def test_flags_of_others_are_refused(setup: Setup, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main.main(["--config", str(setup.training), flag]) == 1
    assert "is not supported by this trainer yet" in capsys.readouterr().err


def test_it_runs_from_where_it_lies(tmp_path: Path) -> None:
    """Not from an installed package of the same name, and without its own modules hiding others'."""
    shutil.copytree(TRAINER.parent, tmp_path / "dpiped")
    folder = tmp_path / "dpiped" / "trainer"
    changed = (folder / "main.py").read_text().replace("train.py: error:", "the copy's error:")
    (folder / "main.py").write_text(changed)
    (folder / "json.py").write_text("raise ImportError('hidden by a module of the trainer')")
    command = [sys.executable, "train.py", "--config", "missing.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "the copy's error: --config: there is no file missing.toml\n",
    )


def test_missing_config_and_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 1
    assert "--config is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main.main(["--never_heard_of"])


def test_a_broken_picture_is_named_by_one_line_of_each_rank(launch: Launch, setup: Setup) -> None:
    (setup.data / "0003.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    training = launch(setup.training, ranks=2)
    assert training.finish() == 1
    line = r"train\.py: error: directory\[0\]\.path: 1 of 8 images in \S+ can't be read: 0003\.png \(skip_un"
    assert len(re.findall(line, training.err)) == 2
    assert "Traceback" not in training.err
    assert not setup.output.exists()


def test_buckets_that_are_all_too_small_are_one_line(launch: Launch, setup: Setup) -> None:
    """Eight pictures are enough for a batch of four, but not four of each of three shapes."""
    from PIL import Image

    for number, size in enumerate(((32, 16), (16, 32), (16, 16)) * 3):
        Image.new("RGB", size).save(setup.data / f"{number:04d}.png")
        (setup.data / f"{number:04d}.txt").write_text("a picture")
    setup.edit("dataset", ("num_repeats = 1", "enable_ar_bucket = true\nar_buckets = [0.5, 1.0, 2.0]"))
    training = launch(setup.training)
    assert training.finish() == 1
    error = r"per_gpu: size bucket \(\d+, \d+, 1\) is being completely dropped: it has 3 examples"
    assert re.search(error, training.err)
    assert "Traceback" not in training.err
    assert not setup.output.exists()

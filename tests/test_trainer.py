"""The embedded trainer: real DeepSpeed trainings from start to end, and everything it has to refuse."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MISSING = [
    name
    for name in ("torch", "deepspeed", "tensorboard", "PIL", "safetensors")
    if importlib.util.find_spec(name) is None
]
if MISSING and os.environ.get("CI") != "true":
    pytest.skip(f"not installed: {', '.join(MISSING)}", allow_module_level=True)

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dpiped.trainer import __main__ as cli
from dpiped.trainer import batches, checkpoint, config, dataset, flow, main, optimizer, saving, text
from dpiped.trainer.dataset import Images
from dpiped.trainer.example import write_configs, write_example
from dpiped.trainer.model import Velocity, build_layers
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError
from tests.harness import free_port
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(120)

TRAINER = Path(main.__file__).parent
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"
STEPS = 120
STEP_LINE = re.compile(r"^steps: (\d+) loss: (\S+) iter time \(s\): \S+ samples/sec: \S+$", re.MULTILINE)


@dataclass
class Training:
    """A started training with its output so far."""

    process: subprocess.Popen[bytes]
    out_file: Path

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.out_file.with_suffix(".err").read_text(errors="replace")

    def finish(self, seconds: float = 90) -> int:
        return self.process.wait(seconds)


Launch = Callable[..., Training]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Starts trainings, by the launcher (`ranks`) or as a lone rank (`ranks=0`); ends them all."""
    folder = tmp_path_factory.mktemp("logs")
    started: list[Training] = []

    def start(training_toml: Path, *arguments: str, ranks: int = 0) -> Training:
        port = str(free_port())
        command = [
            "train.py",
            "--deepspeed",
            "--config",
            str(training_toml),
            "--master_port",
            port,
            *arguments,
        ]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        if ranks:
            launcher = shutil.which("deepspeed", path=env["PATH"])
            assert launcher, "the deepspeed launcher is not on the path"
            command = [launcher, f"--num_gpus={ranks}", f"--master_port={port}", *command]
        else:
            env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            command = [sys.executable, "-u", *command]
        out_file = folder / f"{len(started)}.out"
        with out_file.open("wb") as out, out_file.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                command, cwd=TRAINER, env=env, stdout=out, stderr=err, start_new_session=True
            )
        started.append(Training(process, out_file))
        return started[-1]

    yield start
    for training in started:
        if training.process.poll() is None:
            os.killpg(training.process.pid, signal.SIGKILL)
            training.process.wait(30)


@dataclass(frozen=True)
class Setup:
    """Config files that can be changed by replacing text in them."""

    training: Path
    dataset: Path
    output: Path

    def edit(self, file: str, *changes: tuple[str, str]) -> Path:
        path: Path = getattr(self, file)
        content = path.read_text("utf-8")
        for old, new in changes:
            assert old in content
            content = content.replace(old, new, 1)
        path.write_text(content, "utf-8")
        return self.training

    def runs(self) -> list[Path]:
        return sorted(self.output.iterdir()) if self.output.exists() else []

    @property
    def run_dir(self) -> Path:
        (run,) = self.runs()
        return run


def make_setup(folder: Path, *changes: tuple[str, str]) -> Setup:
    """Eight pictures of 16 pixels, two steps an epoch."""
    write_example(folder / "data", 8, 16)
    training = write_configs(folder, folder / "data", folder / "out", resolution=16, quick=True)
    setup = Setup(training, folder / "dataset.toml", folder / "out")
    setup.edit("training", ("sample_prompts = []", "sample_prompts = ['a red circle', 'a star']"), *changes)
    return setup


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return make_setup(tmp_path)


@dataclass(frozen=True)
class Finished:
    setup: Setup
    training: Training
    code: int


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Finished:
    """A training of STEPS steps by the launcher, from its start to its end."""
    setup = make_setup(tmp_path_factory.mktemp("finished"), *LONGER)
    training = launch(setup.training, ranks=1)
    return Finished(setup, training, training.finish())


LONGER = (
    ("epochs = 4", f"epochs = {STEPS // 2}"),
    ("save_every_n_epochs = 2", "save_every_n_epochs = 20"),
    ("checkpoint_every_n_epochs = 2", "checkpoint_every_n_epochs = 20"),
)


def losses(*run_dirs: Path) -> dict[int, float]:
    """All `train/loss` values by step; fails if a step was logged twice."""
    found: dict[int, float] = {}
    for run_dir in run_dirs:
        for events_file in sorted(run_dir.glob("events.out.tfevents.*")):
            events = EventAccumulator(str(events_file), {"scalars": 0}).Reload()
            for event in events.Scalars("train/loss"):
                assert event.step not in found, f"step {event.step} was done twice"
                found[event.step] = event.value
    return found


# Whole trainings


def test_output_in_order(finished: Finished) -> None:
    assert finished.code == 0, finished.training.err
    out = finished.training.out
    marks = (
        "[INFO] [runner.py:",
        "[INFO] [launch.py:",
        "init_distributed]",
        f"caching latents: {finished.setup.training.parent}/data\n",
        f"caching text embeddings: {finished.setup.training.parent}/data\n",
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


def test_loss_falls(finished: Finished) -> None:
    values = list(losses(finished.setup.run_dir).values())
    assert np.mean(values[-20:]) < 0.8 * np.mean(values[:20])


def test_a_saved_model_can_be_sampled(finished: Finished, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    arguments = ["--caption", "a red star", "--caption", "dog", "--out", str(picture), "--steps", "2"]
    assert cli.main(["sample", "--run", str(finished.setup.run_dir), *arguments]) == 0
    with Image.open(picture) as image:
        assert image.size[0] == 256
    assert cli.main(["sample", "--run", str(tmp_path), *arguments]) == 1


def test_stop_and_resume_is_exactly_one_training(finished: Finished, launch: Launch, tmp_path: Path) -> None:
    setup = make_setup(tmp_path, *LONGER)
    first = launch(setup.training)
    wait_until(lambda: "steps: 7 " in first.out, "step 7", deadline=90)
    (setup.run_dir / "save_quit").touch()
    assert first.finish() == 0
    assert first.out.rstrip().endswith("Manually quitting")
    assert not (setup.run_dir / "save_quit").exists()
    assert not list(setup.run_dir.glob("epoch60"))
    done = int((setup.run_dir / "latest").read_text().removeprefix("global_step"))

    second = launch(setup.training, "--resume_from_checkpoint", setup.run_dir.name)
    assert second.finish() == 0
    assert len(setup.runs()) == 1
    epoch = done // 2 + 1
    said = f"Resuming training from checkpoint. Resuming at epoch: {epoch}, step: {done + 1}\n"
    assert said in second.out
    assert "TRAINING COMPLETE!" in second.out

    wanted, found = losses(finished.setup.run_dir), losses(setup.run_dir)
    assert list(found) == list(wanted)
    assert max(abs(found[step] - wanted[step]) for step in wanted) < 1e-6
    one = load_file(finished.setup.run_dir / "epoch60" / "model.safetensors")
    two = load_file(setup.run_dir / "epoch60" / "model.safetensors")
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


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

    again = launch(setup.training, "--resume_from_checkpoint")
    assert again.finish() == 0
    assert "Resuming at epoch: 76, step: 151\n" in again.out
    assert not STEP_LINE.search(again.out)
    assert "TRAINING COMPLETE!" in again.out


@pytest.mark.parametrize(
    "layout",
    [("epochs = 4", "epochs = 4\npipeline_stages = 2"), ("per_gpu = 4", "per_gpu = 2")],
    ids=["two stages", "two replicas"],
)
def test_two_ranks_train_on_the_same_examples(
    finished: Finished, launch: Launch, setup: Setup, layout: tuple[str, str]
) -> None:
    setup.edit("training", ("warmup_steps", "checkpoint_every_n_minutes = 1e-9\nmax_steps = 6\nwarmup_steps"))
    setup.edit("training", layout)
    training = launch(setup.training, ranks=2)
    assert training.finish() == 0, training.err
    assert training.out.count("Global batch size = 4\n") == 2
    assert training.out.count("TRAINING COMPLETE!") == 1
    assert training.out.count("is about to be saved!") == 6
    wanted, found = losses(finished.setup.run_dir), losses(setup.run_dir)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert found[1] == pytest.approx(wanted[1], abs=1e-5)
    weights = load_file(setup.run_dir / "step6" / "model.safetensors")
    assert set(weights) == set(load_file(finished.setup.run_dir / "epoch60" / "model.safetensors"))


def odd_images(folder: Path) -> None:
    """Grey, transparent, palette, rotated, 16-bit, tiny and broken ones; and one without a caption."""
    folder.mkdir()
    Image.new("L", (40, 30), 90).save(folder / "grey.png")
    Image.new("RGBA", (30, 50), (255, 0, 0, 0)).save(folder / "transparent.png")
    Image.new("RGB", (33, 33), "blue").convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 20), "green").save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (2, 3), "red").save(folder / "tiny.webp")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"a {path.stem} picture, odd")
    Image.new("RGB", (9, 9)).save(folder / "silent.png")
    (folder / "README.md").write_text("not an image")


def test_photographs_and_odd_images(launch: Launch, setup: Setup, tmp_path: Path) -> None:
    odd_images(tmp_path / "odd")
    more = f"shuffle_tags = true\n[[directory]]\npath = '{tmp_path / 'odd'}'\n"
    if PHOTOS.is_dir():
        more += f"[[directory]]\npath = '{PHOTOS}'\ncaption_prefix = 'a photo of '\n"
    setup.edit("dataset", ("num_repeats = 1", "num_repeats = 1\n" + more))
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


def test_cache_only_makes_nothing(launch: Launch, setup: Setup) -> None:
    training = launch(setup.training, "--cache_only")
    assert training.finish() == 0
    assert "caching latents: " in training.out
    assert "TRAINING COMPLETE!" not in training.out
    assert not setup.output.exists()


def test_launcher_passes_the_error_on(launch: Launch, setup: Setup) -> None:
    setup.edit("training", ("per_gpu = 4", "per_gpu = 9"))
    training = launch(setup.training, ranks=1)
    assert training.finish() == 1
    assert training.err.count("train.py: error: micro_batch_size_per_gpu: a global batch of 9 is larger") == 1
    assert "Traceback" not in training.err
    assert not setup.output.exists()


# What is refused, without launching anything

REFUSED = {
    "unknown key": ("training", "epochs = 4", "epochs = 4\nepoch = 3", "epoch is not a key"),
    "epochs missing": ("training", "epochs = 4", "", "epochs is missing"),
    "epochs zero": ("training", "epochs = 4", "epochs = 0", "epochs takes a whole number from 1"),
    "epochs text": ("training", "epochs = 4", "epochs = '4'", "epochs takes a whole number"),
    "no save": ("training", "save_every_n_epochs = 2", "", "save_every_n_epochs, save_every_n_steps or"),
    "schedule": ("training", "'cosine'", "'step'", "lr_scheduler takes 'constant' or 'linear'"),
    "adapter": ("training", "[model]", "[adapter]\ntype = 'lora'\n[model]", r"\[adapter\] is not supported"),
    "eval sets": (
        "training",
        "epochs = 4",
        "epochs = 4\neval_datasets = ['x']",
        "eval_datasets = .* not sup",
    ),
    "wandb": ("training", "[model]", "[monitoring]\nenable_wandb = true\n[model]", "monitoring.enable_wandb"),
    "model type": ("training", "'dpiped'", "'flux'", "model.type takes 'dpiped'"),
    "model size": ("training", "'tiny'", "'huge'", "model.size takes 'tiny' or 'small'"),
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
    "resolutions": ("dataset", "[16]", "[16, 32]", "resolutions takes a list with one side"),
    "resolution": ("dataset", "[16]", "[18]", "resolutions takes a multiple of the patch size 4"),
    "buckets": (
        "dataset",
        "num_repeats = 1",
        "enable_ar_bucket = true",
        "enable_ar_bucket = True is not sup",
    ),
    "no directory": ("dataset", "[[directory]]", "[other]", r"has no \[\[directory\]\]"),
    "path": ("dataset", "/data", "/nowhere", r"directory\[0\].path: there is no directory"),
    "repeats": ("dataset", "num_repeats = 1", "num_repeats = 0", "num_repeats takes a whole number from 1"),
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
        (lambda data: (data / "captions.json").write_text("{}"), "captions.json is not supported"),
        (lambda data: (data / "0003.txt").write_bytes(b"\xff\xfe\xff"), "0003.txt can't be read"),
    ],
    ids=["empty", "no captions", "captions.json", "binary caption"],
)
def test_bad_folders_are_refused(
    setup: Setup, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], error: str
) -> None:
    spoil(setup.training.parent / "data")
    assert main.main(["--config", str(setup.training)]) == 1
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--test_sample", "--dump_dataset=x", "--reset_optimizer_params"])
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


# Parts

SPEC = ModelSpec(
    width=32,
    depth=2,
    stem=8,
    patch=4,
    resolution=16,
    max_tokens=5,
    vocabulary=(*text.RESERVED, "red", "star"),
)


def test_model_shapes_and_first_output() -> None:
    ids = torch.tensor([[3, 4, 0, 0, 0], [1, 0, 0, 0, 0]])
    velocity = Velocity(SPEC)(torch.randn(2, 3, 16, 16), torch.tensor([0.0, 1.0]), ids)
    assert velocity.shape == (2, 3, 16, 16)
    assert not velocity.any(), "an untrained model predicts zero"


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_layers_can_be_cut_anywhere(cut: int) -> None:
    """What crosses the border is contiguous, and the loss sends a gradient back to all of its floats."""
    layers = build_layers(SPEC, seed=1)
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    state: tuple[torch.Tensor, ...] | torch.Tensor
    state = (torch.randn(2, 3, 16, 16), torch.rand(2), torch.tensor([[3, 4, 0, 0, 0], [1, 0, 0, 0, 0]]))
    for layer in layers[:cut]:
        state = layer(state)
    received = tuple(part.detach().clone().requires_grad_(part.is_floating_point()) for part in state)
    assert all(part.is_contiguous() for part in state)
    state = received
    for layer in layers[cut:]:
        state = layer(state)
    assert isinstance(state, torch.Tensor)
    torch.autograd.backward(state.square().mean())
    for part in received:
        assert not part.is_floating_point() or (part.grad is not None and part.grad.any())


def test_captions_matter_and_padding_does_not() -> None:
    torch.manual_seed(0)
    model = Velocity(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    noisy, time_ = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    one = model(noisy, time_, torch.tensor([[3, 4, 0, 0, 0]]))
    assert not torch.allclose(one, model(noisy, time_, torch.tensor([[4, 0, 0, 0, 0]])))
    with torch.no_grad():
        model.get_parameter("0.word.weight")[text.PAD] += 5
    assert torch.allclose(one, model(noisy, time_, torch.tensor([[3, 4, 0, 0, 0]])), atol=1e-5)


def test_sampling_depends_on_the_seed_only() -> None:
    model = Velocity(SPEC)
    draw = [flow.sample(model, SPEC, ["red"], steps=2, guidance=2.0, seed=seed) for seed in (1, 1, 2)]
    assert draw[0].shape == (1, 16, 16, 3)
    assert (draw[0] == draw[1]).all()
    assert (draw[0] != draw[2]).any()


def example_images(folder: Path) -> Images:
    setup = make_setup(folder)
    found = dataset.scan(config.load(setup.training).dataset)
    return dataset.load(found, 16, iter)


def test_batches_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    images = example_images(tmp_path)
    tokens = text.Tokenizer(SPEC.vocabulary, SPEC.max_tokens)
    draw = batches.Draw(seed=3, uncond=0.5, logit_normal=True)

    def step(*layouts: batches.Layout) -> torch.Tensor:
        parts = [
            part
            for layout in layouts
            for part in batches.Batches(images, tokens, layout, draw).micro_batches(2, 4)
        ]
        return torch.cat([part[0][0] for part in parts]).flatten(1).sort(0).values

    whole = step(batches.Layout(4, 1, 1, 0))
    assert whole.shape == (4, 3 * 16 * 16)
    assert torch.equal(whole, step(batches.Layout(1, 4, 1, 0)))
    assert torch.equal(whole, step(batches.Layout(1, 2, 2, 0), batches.Layout(1, 2, 2, 1)))


def test_an_epoch_holds_every_example_once(tmp_path: Path) -> None:
    images = example_images(tmp_path)
    made = batches.Batches(
        images, text.Tokenizer((), 1), batches.Layout(1, 8, 1, 0), batches.Draw(0, 0.0, False)
    )

    def clean(epoch: int) -> list[bytes]:
        parts = made.micro_batches(epoch, 0)
        images = [(noisy - time_[:, None, None, None] * velocity) for (noisy, time_, _), velocity in parts]
        return [((image + 1) * 127.5).round().byte().numpy().tobytes() for image in images]

    wanted = sorted(image.transpose(2, 0, 1).tobytes() for image in images.pixels)
    assert sorted(clean(1)) == sorted(clean(2)) == wanted
    assert clean(1) != clean(2)


def test_odd_images_are_decoded_upright_and_opaque(tmp_path: Path) -> None:
    odd_images(tmp_path / "odd")

    def colour(name: str) -> tuple[int, ...]:
        pixels = dataset.decode(tmp_path / "odd" / name, 16)
        assert pixels.shape == (16, 16, 3)
        return tuple(int(value) for value in pixels[8, 8])

    assert colour("grey.png") == (90, 90, 90)
    assert colour("transparent.png") == (255, 255, 255)
    assert colour("palette.gif")[2] > 200
    assert colour("deep.png") == pytest.approx((155, 155, 155), abs=1)
    assert colour("tiny.webp")[0] > 200
    marked = Image.new("RGB", (64, 32), "white")
    marked.paste("black", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is up
    marked.save(tmp_path / "up.png", exif=exif)
    upright = dataset.decode(tmp_path / "up.png", 16)
    assert upright[2, 8, 0] < 50
    assert upright[13, 8, 0] > 200


def test_average_follows_and_comes_back() -> None:
    layer = torch.nn.Linear(2, 2)
    average = saving.Average(layer, 0.9)
    start = average.weights["weight"].clone()
    with torch.no_grad():
        layer.weight += 1
    average.update(1000)
    assert torch.allclose(average.weights["weight"], start + 0.1)
    other = saving.Average(layer, 0.9)
    other.load(average.weights)
    assert torch.equal(other.weights["weight"], average.weights["weight"])


def test_an_interrupted_save_leaves_no_model(tmp_path: Path) -> None:
    weights = {"x": torch.ones(2)}
    with pytest.raises(FileNotFoundError):
        saving.save_model(tmp_path / "epoch1", weights, "float32", SPEC, [tmp_path / "missing.toml"])
    assert not (tmp_path / "epoch1").exists()
    saving.save_model(tmp_path / "epoch1", weights, "float32", SPEC, [])
    saving.save_model(tmp_path / "epoch1", {"x": torch.zeros(2)}, "bfloat16", SPEC, [])
    assert [path.name for path in tmp_path.iterdir()] == ["epoch1"]
    assert not load_file(tmp_path / "epoch1" / "model.safetensors")["x"].any()


def test_schedules(setup: Setup) -> None:
    setup.edit("training", ("warmup_steps = 0", "warmup_steps = 10"))
    cosine = optimizer.schedule(config.load(setup.training), 110)
    assert [round(cosine(step), 3) for step in (0, 9, 10, 60, 110, 200)] == [0.091, 0.909, 1, 0.5, 0, 0]
    setup.edit("training", ("'cosine'", "'linear'"))
    assert optimizer.schedule(config.load(setup.training), 110)(35) == 0.75
    setup.edit("training", ("'linear'", "'constant'"))
    assert optimizer.schedule(config.load(setup.training), 110)(109) == 1


def test_tokens_have_one_length_and_know_unknown_words() -> None:
    tokens = text.Tokenizer(text.build_vocabulary(["A red star, big", "red dot"]), 4)
    assert text.build_vocabulary(["b a", "a"]) == (*text.RESERVED, "a", "b")
    assert tokens.encode("red cat") == [tokens.encode("Red")[0], text.UNKNOWN, text.PAD, text.PAD]
    assert tokens.encode("  ") == tokens.null() == [text.NULL, 0, 0, 0]
    assert len(tokens.encode("a red star, big red dot")) == 4

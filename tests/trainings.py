"""Real trainings with the embedded trainer: config files that can be changed, started ranks, their losses.

Why: a training is started as the launcher or a lone rank does it, in its own process, so that a test sees
what a user sees: lines, exit code, files. Everything that was started is ended.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import dpiped.trainer
from tests.harness import free_port

NEEDED = ("torch", "deepspeed", "tensorboard", "PIL", "safetensors", "peft")
TRAINER = Path(dpiped.trainer.__file__).parent
STEP_LINE = re.compile(r"^steps: (\d+) loss: (\S+) iter time \(s\): \S+ samples/sec: \S+$", re.MULTILINE)


def need_trainer() -> None:
    """Skips a test module where the trainer's packages are missing; in CI its import then fails."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)


@dataclass
class Training:
    """A started training with its output so far."""

    processes: list[subprocess.Popen[bytes]]
    out_file: Path

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.out_file.with_suffix(".err").read_text(errors="replace")

    def finish(self, seconds: float = 90) -> int:
        """The exit code; that of all ranks, which must be the same."""
        (code,) = {process.wait(seconds) for process in self.processes}
        return code

    def completed(self) -> "Training":
        """Waits for its end; fails unless it ended well."""
        assert self.finish() == 0, self.out + self.err
        return self


Launch = Callable[..., Training]


class Launcher:
    """Starts trainings by the deepspeed launcher, or rank by rank, which is faster; ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Training] = []

    def __call__(
        self, training_toml: Path, *arguments: str, ranks: int = 1, launcher: bool = False
    ) -> Training:
        port = str(free_port())
        config = ["--deepspeed", "--config", str(training_toml), "--master_port", port, *arguments]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        # Two trainings may run beside each other.
        env["OMP_NUM_THREADS"] = "1"
        out_file = self._folder / f"{len(self._started)}.out"
        training = Training([], out_file)
        self._started.append(training)
        with out_file.open("ab") as out, out_file.with_suffix(".err").open("ab") as err:

            def spawn(command: list[str], **more: str) -> None:
                process = subprocess.Popen(
                    command, cwd=TRAINER, env=env | more, stdout=out, stderr=err, start_new_session=True
                )
                training.processes.append(process)

            if launcher:
                program = shutil.which("deepspeed", path=env["PATH"])
                assert program, "the deepspeed launcher is not on the path"
                spawn([program, f"--num_gpus={ranks}", f"--master_port={port}", "train.py", *config])
            else:
                for rank in range(ranks):
                    where = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                    command = [sys.executable, "-u", "train.py", *config]
                    spawn(command, WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), **where)
        return training

    def close(self) -> None:
        for process in (each for training in self._started for each in training.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


@dataclass(frozen=True)
class Setup:
    """Config files that can be changed by replacing text in them."""

    training: Path
    dataset: Path
    output: Path

    @property
    def data(self) -> Path:
        return self.training.parent / "data"

    def edit(self, file: str, *changes: tuple[str, str]) -> Path:
        path: Path = getattr(self, file)
        content = path.read_text("utf-8")
        for old, new in changes:
            assert old in content, f"{old!r} is not in {path}"
            content = content.replace(old, new, 1)
        path.write_text(content, "utf-8")
        return self.training

    def add(self, *lines: str) -> Path:
        """Puts lines at the top of the training TOML."""
        self.training.write_text("\n".join((*lines, self.training.read_text("utf-8"))), "utf-8")
        return self.training

    def runs(self) -> list[Path]:
        return sorted(self.output.iterdir()) if self.output.exists() else []

    @property
    def run_dir(self) -> Path:
        (run,) = self.runs()
        return run


def make_setup(folder: Path, *changes: tuple[str, str], images: int = 8) -> Setup:
    """Eight pictures of 16 pixels, two steps an epoch."""
    from dpiped.trainer.example import write_configs, write_example  # needs Pillow

    write_example(folder / "data", images, 16)
    training = write_configs(folder, folder / "data", folder / "out", resolution=16, length="quick")
    setup = Setup(training, folder / "dataset.toml", folder / "out")
    setup.edit("training", ("sample_prompts = []", "sample_prompts = ['a red circle', 'a star']"), *changes)
    return setup


def odd_images(folder: Path) -> None:
    """Grey, transparent, palette, rotated, 16-bit, tiny and broken ones; and one without a caption."""
    import numpy as np
    from PIL import Image

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


def scalars(run_dir: Path, tag: str) -> dict[int, float]:
    """The values of a tag by step; fails if a step was logged twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, float] = {}
    for events_file in sorted(run_dir.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(events_file), {"scalars": 0}).Reload()
        for event in events.Scalars(tag) if tag in events.Tags()["scalars"] else ():
            assert event.step not in found, f"step {event.step} was done twice"
            found[event.step] = event.value
    return found


def losses(run_dir: Path) -> dict[int, float]:
    """All `train/loss` values by step."""
    return scalars(run_dir, "train/loss")


def farthest(one: dict[int, float], other: dict[int, float]) -> float:
    """The largest difference between two curves, which must have the same steps."""
    assert list(one) == list(other)
    return max(abs(one[step] - other[step]) for step in one)

"""`make bench`: what a step of the embedded trainer costs beyond a plain loop, and what a start costs.

The two loops take turns step by step in one process, on the same batches, so a machine that is busy is so for
both. A start is timed by when the lines of its log come.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dpiped.trainer import config, data, engine, example, job, main, optimizer
from dpiped.trainer.batches import Batches, Draw, MicroBatch
from dpiped.trainer.flow import velocity_loss
from dpiped.trainer.model import build_layers
from dpiped.trainer.saving import Average
from dpiped.trainer.text import Tokenizer, build_vocabulary

BIN = Path(sys.executable).parent
TRAINER = Path(example.__file__).parent
STEPS, WARM_UP = 35, 5
MOST = 1.15
MARKS = {
    "the launcher's own start": "[launch.py:",
    "checks, imports of torch and deepspeed, process group": "caching latents: ",
    "caches": "Building iteration order",
    "model, run directory, engine": "Global batch size",
    "first step, all the rest": "steps: 1 ",
}
"""What has been done when a line with this text comes, in order."""


def bench() -> int:
    parser = argparse.ArgumentParser("python -m tools.bench", description=__doc__)
    parser.add_argument("--only-steps", action="store_true", help="leave out the starts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dpiped-bench-") as folder:
        root = Path(folder)
        example.write_example(root / "data", 240)
        training = example.write_configs(root, root / "data", root / "output")
        if not arguments.only_steps:
            for title in ("first start, pictures are decoded", "second start, caches are there"):
                show_start(title, start(training))
        ratio = steps(training)
    print(f"bench: {'holds' if ratio <= MOST else 'DOES NOT HOLD'}: at most {MOST} x a plain loop")
    return 0 if ratio <= MOST else 1


def start(training: Path) -> list[tuple[str, float]]:
    """Seconds of each phase of a start; the training is ended after its first step."""
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    command = [str(BIN / "deepspeed"), "--num_gpus=1", f"--master_port={port()}", "train.py", "--deepspeed"]
    command += ["--config", str(training), "--master_port", str(port())]
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=TRAINER, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    found: list[tuple[str, float]] = []
    left = list(MARKS.items())
    for line in process.stdout:
        while left and left[0][1] in line:
            now = time.monotonic()
            found.append((left.pop(0)[0], now - begun))
            begun = now
        if not left:
            process.terminate()
    process.wait(60)
    return found


def show_start(title: str, phases: list[tuple[str, float]]) -> None:
    print(f"bench: {title}: {sum(seconds for _, seconds in phases):.2f} s")
    for name, seconds in phases:
        print(f"bench:   {seconds:5.2f} s  {name}")


def steps(training: Path) -> float:
    """Prints the medians; returns the ratio of the trainer's whole step to the plain loop's."""
    settings, batches = ready(training)
    spec = settings.model_spec(build_vocabulary(["a red star"]), 16)
    module = engine.pipeline(settings, build_layers(spec, 1))
    made = engine.build(settings, module, batches, STEPS)
    average = Average(made.module, 0.999)
    plain = torch.nn.Sequential(*build_layers(spec, 1))
    plain_optimizer = optimizer.make(settings.optimizer, plain.parameters())
    theirs, ours, whole = [], [], []
    for number in range(STEPS):
        begun = time.perf_counter()
        step = batches.step(1, number % batches.steps_per_epoch)
        parts = list(batches.micro_batches(1, step))
        drawn = time.perf_counter()
        engine.train_batch(made, parts, batches.layout.micro(step.size))
        stepped = time.perf_counter()
        average.update(number + 1)
        ended = time.perf_counter()
        plain_step(plain, plain_optimizer, parts, settings.gradient_clipping)
        theirs.append(time.perf_counter() - ended)
        ours.append(stepped - drawn)
        whole.append(ended - begun)
    medians = [statistics.median(each[WARM_UP:]) for each in (theirs, ours, whole)]
    print(
        f"bench: a plain loop's step takes {medians[0] * 1000:.1f} ms, DeepSpeed's {medians[1] * 1000:.1f} ms"
    )
    print(f"bench: with drawing the batch and averaging the weights {medians[2] * 1000:.1f} ms")
    for name, mine in (("DeepSpeed's step", ours), ("the whole step", whole)):
        pairs = zip(mine[WARM_UP:], theirs[WARM_UP:], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"bench: {name} is {ratio:.3f} x the plain one (median of {STEPS - WARM_UP} pairs)")
    return ratio


def ready(training: Path) -> tuple[config.TrainConfig, Batches]:
    """A lone rank's process group, and the example's batches."""
    lone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(lone, MASTER_PORT=str(port()))
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    engine.set_up()
    checked = job.prepare(main.parse(["--config", str(training)]), 1)
    found = data.prepare(checked, main=True)
    settings = checked.config
    module = engine.pipeline(settings, build_layers(settings.model_spec(build_vocabulary([]), 16), 1))
    how = engine.layout(module, settings.micro_batch, settings.gradient_accumulation_steps)
    return settings, Batches(found.train, Tokenizer((), 16), how, Draw(1, 0.1, True))


def plain_step(
    model: torch.nn.Module, made: torch.optim.Optimizer, parts: list[MicroBatch], clipping: float
) -> None:
    """What a step is without DeepSpeed."""
    made.zero_grad()
    for inputs, wanted in parts:
        loss: Any = velocity_loss(model(inputs), wanted) / len(parts)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clipping)
    made.step()
    loss.item()


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


if __name__ == "__main__":
    sys.exit(bench())

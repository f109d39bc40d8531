"""`make quality`: does the embedded trainer learn what it is told, and does an adapter?

Trains as a user would (the deepspeed launcher, the example's own configs), samples pictures for captions it
takes from all over the example, and judges them by `tools/judge.py`. Takes a quarter of an hour on two CPU
cores; fails unless what docs/trainer.md says holds.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpiped.trainer import example, flow, preview, saved, saving
from dpiped.trainer import spec as specs
from dpiped.trainer.model import Velocity, build_layers
from tools import judge

BIN = Path(sys.executable).parent
TRAINER = Path(example.__file__).parent
CAPTIONS = 96
LEAST_MATCH, LEAST_CONCEPT, MOST_LOST, MOST_ADAPTER = 0.9, 0.8, 0.1, 0.05
CPU_SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser("python -m tools.quality", description=__doc__)
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path(".quality"), help="removed at the start"
    )
    parser.add_argument("--concept", default="yellow", help="what the adapter's base has never seen")
    arguments = parser.parse_args()
    root: Path = arguments.directory.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    held = [whole(root), adapter(root, arguments.concept)]
    return 0 if all(held) else 1


def whole(root: Path) -> bool:
    """The full training: matches after it, and of a model that has learned nothing."""
    run, spent = train(root / "whole", "--length", "full")
    captions = some_captions(lambda *_: True)
    untrained = match(*fresh(run), captions)
    images, trained = drawn(run, captions)
    preview.contact_sheet(images[:64], captions[:64], columns=8).save(root / "whole.png")
    say(f"untrained: {shown(untrained)}; trained: {shown(trained)}; {spent:.0f} s of CPU time")
    chance = 1 / len(example.kinds())
    return (
        check("matches", trained[2] >= LEAST_MATCH)
        & check("an untrained model is at chance", untrained[2] <= chance)
        & check(f"within {CPU_SECONDS} s of CPU time", spent <= CPU_SECONDS)
    )


def adapter(root: Path, concept: str) -> bool:
    """A base without the concept, and an adapter on ten pictures of it."""
    base, _ = train(root / "base", "--length", "full", "--without", concept)
    run, spent = train(root / "adapter", "--only", concept, "--base", str(base))
    of_concept = some_captions(lambda *pair: concept in pair)
    others = some_captions(lambda *pair: concept not in pair)
    before, kept_before = drawn(base, of_concept)[1], drawn(base, others)[1]
    images, after = drawn(run, of_concept)
    kept_images, kept = drawn(run, others)
    preview.contact_sheet(images[:32], of_concept[:32], columns=8).save(root / "concept.png")
    preview.contact_sheet(kept_images[:32], others[:32], columns=8).save(root / "others.png")
    share = size_of(run) / size_of(base)
    say(f"{concept} before: {shown(before)}; with the adapter: {shown(after)}")
    say(f"others before: {shown(kept_before)}; with the adapter: {shown(kept)}")
    say(f"the adapter's file is {share:.1%} of its base's; {spent:.0f} s of CPU time")
    return (
        check("the base is at chance", before[2] <= 1 / len(example.kinds()))
        & check("the adapter has learned the concept", after[2] >= LEAST_CONCEPT)
        & check("the others are kept", kept[2] >= kept_before[2] - MOST_LOST)
        & check("the adapter is small", share < MOST_ADAPTER)
    )


def train(folder: Path, *options: str) -> tuple[Path, float]:
    """Writes the example and trains on it; the run directory, and CPU seconds from launch to end."""
    writing = [sys.executable, "-m", "dpiped.trainer", "example", str(folder), *options]
    subprocess.run(writing, check=True, stdout=subprocess.DEVNULL)
    say(f"training in {folder}")
    launcher = [str(BIN / "deepspeed"), "--num_gpus=1", "train.py", "--deepspeed"]
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    before, begun = cpu_seconds(), time.monotonic()
    with (folder / "output.log").open("wb") as log:
        command = [*launcher, "--config", str(folder / "training.toml")]
        subprocess.run(command, cwd=TRAINER, env=env, stdout=log, stderr=log, check=True)
    say(f"took {time.monotonic() - begun:.0f} s")
    (run,) = (folder / "output").iterdir()
    return run, cpu_seconds() - before


def cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def some_captions(wanted: Callable[[str, str], bool], count: int = CAPTIONS) -> list[str]:
    """All wanted kinds in turn, in sizes and places drawn by a seed of their own."""
    kinds = [kind for kind in example.kinds() if wanted(*kind)]
    generator = random.Random(1)
    return [example.caption(*kinds[index % len(kinds)], *example.choose(generator)) for index in range(count)]


def fresh(run: Path) -> tuple[torch.nn.Module, Any]:
    """The same model before its first step, but for a velocity that is not all zero."""
    spec = specs.read(run)
    model = Velocity(spec)
    for own, layer in zip(model.children(), build_layers(spec, 1234), strict=True):
        own.load_state_dict(layer.state_dict())
    torch.nn.init.normal_(model.get_parameter(f"{spec.layers - 1}.out.weight"), std=0.05)
    return model.eval(), spec


def drawn(run: Path, captions: list[str]) -> tuple[Any, tuple[float, float, float]]:
    model, spec = saving.load_model(saved.find(run))
    images = pictures(model, spec, captions)
    return images, shares(images, captions)


def match(model: torch.nn.Module, spec: Any, captions: list[str]) -> tuple[float, float, float]:
    return shares(pictures(model, spec, captions), captions)


def pictures(model: torch.nn.Module, spec: Any, captions: list[str]) -> Any:
    return flow.sample(model, spec, captions, steps=25, guidance=2.5, seed=7)


def shares(images: Any, captions: list[str]) -> tuple[float, float, float]:
    """Of the pictures, those with the right colour, the right shape, both."""
    seen = [judge.look(image) for image in images]
    pairs = [
        (one.colour in text.split(), one.shape in text.split())
        for one, text in zip(seen, captions, strict=True)
    ]
    count = len(pairs)
    return (
        sum(a for a, _ in pairs) / count,
        sum(b for _, b in pairs) / count,
        sum(a and b for a, b in pairs) / count,
    )


def size_of(run: Path) -> int:
    directory = saved.find(run).directory
    (file,) = directory.glob("*.safetensors")
    return file.stat().st_size


def shown(found: tuple[float, float, float]) -> str:
    return f"colour {found[0]:.0%}, shape {found[1]:.0%}, both {found[2]:.0%}"


def check(what: str, holds: bool) -> bool:
    say(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}")
    return holds


def say(text: str) -> None:
    print(f"quality: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Evaluation sets: the loss on pictures that are not trained on, at nine points of the times.

Why: the training loss is noisy and says nothing on pictures never seen. Each point of the times is a task
of its own, so each gets its own curve, over always the same noise, and two passes can be compared.

Known gap: whole batches only; what is left of a set after its last one is not looked at.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm  # type: ignore[import-untyped]

from dpiped.trainer.batches import Batches, Draw, Layout
from dpiped.trainer.config import ForSize
from dpiped.trainer.engine import Shapes
from dpiped.trainer.examples import Bucket
from dpiped.trainer.output import say
from dpiped.trainer.table import ConfigError
from dpiped.trainer.text import Tokenizer

QUANTILES = tuple(tenth / 10 for tenth in range(1, 10))
EPOCH = 0
"""Training begins with 1: no noise of a training step is that of an evaluation."""


class Evaluation:
    """All evaluation sets; nothing is done if there are none."""

    def __init__(
        self, sets: Mapping[str, Sequence[Bucket]], tokenizer: Tokenizer, layout: Layout, draw: Draw
    ) -> None:
        self.left_out: list[str] = []
        """What of the sets can't be evaluated, a sentence each."""
        self._sets = {name: self._batches(name, sets[name], tokenizer, layout, draw) for name in sets}

    def _batches(
        self, name: str, buckets: Sequence[Bucket], tokenizer: Tokenizer, layout: Layout, draw: Draw
    ) -> list[Batches]:
        """For each quantile the batches of one set. Raises ConfigError if no bucket has enough for one."""
        parts = layout.accumulation * layout.replicas
        enough = [bucket for bucket in buckets if len(bucket.examples) >= parts]
        for bucket in buckets:
            if bucket not in enough:
                width, height = bucket.size
                text = f"{name}: size bucket ({width}, {height}, 1) is being completely dropped: "
                text += f"it has {len(bucket.examples)} examples for {parts} micro batches at a time"
                if not enough:
                    raise ConfigError(f"eval_datasets: {text}")
                self.left_out.append(text)
        # As asked for, but no larger than what a bucket holds.
        numbers = [(each.size, min(layout.micro(each.size), len(each.examples) // parts)) for each in enough]
        how = replace(layout, micro=ForSize((), tuple(numbers)))
        return [
            Batches(enough, tokenizer, how, replace(draw, uncond=0.0, quantile=quantile))
            for quantile in QUANTILES
        ]

    def run(self, engine: Any, shapes: Shapes, writer: SummaryWriter | None, step: int) -> None:
        """One pass over all sets; losses go to `writer`, which rank 0 has. Every rank has to call it."""
        if not self._sets:
            return
        if writer is not None:
            say("Running eval")
        total = sum(each.steps_per_epoch for batches in self._sets.values() for each in batches)
        with tqdm(total=total, disable=writer is None, file=sys.stderr) as bar:
            for name, batches in self._sets.items():
                started = time.monotonic()
                losses = [_loss(engine, shapes, each, bar) for each in batches]
                if writer is not None:
                    for quantile, loss in zip(QUANTILES, losses, strict=True):
                        writer.add_scalar(f"{name}/loss_quantile_{quantile:.2f}", loss, step)
                    writer.add_scalar(f"{name}/loss", sum(losses) / len(losses), step)
                    writer.add_scalar(f"{name}/eval_time_sec", time.monotonic() - started, step)
        if writer is not None:
            writer.flush()


def _loss(engine: Any, shapes: Shapes, batches: Batches, bar: Any) -> float:
    """The mean over all examples that are looked at."""
    total, count = 0.0, 0
    for number in range(batches.steps_per_epoch):
        step = batches.step(EPOCH, number)
        parts = list(batches.micro_batches(EPOCH, step))
        shapes.expect(batches.layout.micro(step.size), step.size)
        size = batches.layout.global_batch(step.size)
        total += size * float(engine.eval_batch(iter(parts), num_micro_batches=len(parts)).item())
        count += size
        bar.update()
    return total / count

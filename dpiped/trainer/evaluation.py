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
        self._sets = {
            name: [
                Batches(
                    buckets,
                    tokenizer,
                    replace(layout, micro=_at_most(layout, buckets, name)),
                    replace(draw, uncond=0.0, quantile=quantile),
                )
                for quantile in QUANTILES
            ]
            for name, buckets in sets.items()
        }

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


def _at_most(layout: Layout, buckets: Sequence[Bucket], name: str) -> ForSize:
    """Micro batches as asked for, but no larger than what a bucket holds."""
    parts = layout.accumulation * layout.replicas
    pairs = []
    for bucket in buckets:
        number = min(layout.micro(bucket.size), len(bucket.examples) // parts)
        if number == 0:
            width, height = bucket.size
            raise ConfigError(
                f"eval_datasets: {name} has {len(bucket.examples)} examples of {width}x{height} pixels "
                f"for {parts} micro batches at a time"
            )
        pairs.append(((bucket.size[0] * bucket.size[1]) ** 0.5, number))
    return ForSize(tuple(pairs))


def _loss(engine: Any, shapes: Shapes, batches: Batches, bar: Any) -> float:
    losses = []
    for number in range(batches.steps_per_epoch):
        step = batches.step(EPOCH, number)
        parts = list(batches.micro_batches(EPOCH, step))
        shapes.expect(batches.layout.micro(step.size), step.size)
        losses.append(float(engine.eval_batch(iter(parts), num_micro_batches=len(parts)).item()))
        bar.update()
    return sum(losses) / len(losses)

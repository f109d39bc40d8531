"""What each training step sees: which examples, which noise, which times, all drawn anew from the seed.

Why: a stored random state binds a run to its layout and is easily lost. Here order is a pure function of
(seed, epoch) and everything random about an example one of (seed, epoch, its place), so a resumed run goes
on exactly, and one rank, two ranks or two pipeline stages train on the same examples.

Known gap: changing the data set or the global batch between a save and a resume restarts the epoch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpiped.trainer.buckets import Size
from dpiped.trainer.config import ForSize
from dpiped.trainer.examples import Bucket, Example
from dpiped.trainer.text import Tokenizer

Floats = npt.NDArray[np.float32]
MicroBatch = tuple[tuple[Tensor, Tensor, Tensor], Tensor]
"""((noisy images [B, 3, H, W], times [B], token ids [B, L]), velocity [B, 3, H, W])."""
ORDER, STEPS = 1 << 32, (1 << 32) + 1
"""Streams of the generator that belong to no example."""


@dataclass(frozen=True)
class Layout:
    """How a global batch is cut: `micro` examples at a time, `accumulation` times, on `replicas` ranks."""

    micro: ForSize
    accumulation: int
    replicas: int
    replica: int

    def global_batch(self, size: Size) -> int:
        return self.micro(size) * self.accumulation * self.replicas


@dataclass(frozen=True)
class Draw:
    """How examples are drawn. `uncond` is the share of captions dropped, for classifier-free guidance.

    With a `quantile` every example is drawn at this quantile of the times.
    """

    seed: int
    uncond: float
    logit_normal: bool
    quantile: float | None = None

    def time(self, normal: float, uniform: float) -> float:
        """From 0 (clean) to 1 (noise)."""
        if self.quantile is not None:
            uniform = self.quantile
            normal = float(torch.special.ndtri(torch.tensor(uniform)))
        return 1 / (1 + float(np.exp(-normal))) if self.logit_normal else uniform


@dataclass(frozen=True)
class Step:
    """The global batch of one step: `size` pixels, from `start` on in the order of `bucket`."""

    bucket: int
    start: int
    size: Size


class Batches:
    """All examples of a data set, in an order and with noise that depend on seed and epoch only."""

    def __init__(self, buckets: Sequence[Bucket], tokenizer: Tokenizer, layout: Layout, draw: Draw) -> None:
        self._buckets = buckets
        self._tokenizer = tokenizer
        self._draw = draw
        self.layout = layout
        self._epoch: tuple[int, list[npt.NDArray[np.int64]], list[Step]] | None = None

    @cached_property
    def plan(self) -> list[list[int | str]]:
        """(width, height, examples, global batch, digest) of each bucket; equal plans have equal epochs."""
        return [
            [
                *bucket.size,
                len(bucket.examples),
                self.layout.global_batch(bucket.size),
                _digest(self._draw.seed, bucket),
            ]
            for bucket in self._buckets
        ]

    @property
    def dropped(self) -> list[Bucket]:
        """Buckets with fewer examples than a global batch has."""
        return [each for each in self._buckets if len(each.examples) < self.layout.global_batch(each.size)]

    @property
    def steps_per_epoch(self) -> int:
        layout = self.layout
        return sum(len(each.examples) // layout.global_batch(each.size) for each in self._buckets)

    @property
    def largest_micro(self) -> int:
        """The largest micro batch that occurs."""
        return max(self.layout.micro(each.size) for each in self._buckets if each not in self.dropped)

    @property
    def largest(self) -> int:
        """The largest global batch that occurs."""
        return self.largest_micro * self.layout.accumulation * self.layout.replicas

    def step(self, epoch: int, number: int) -> Step:
        """The step `number` (from 0) of an epoch."""
        return self._order(epoch)[1][number]

    def micro_batches(self, epoch: int, step: Step) -> Iterator[MicroBatch]:
        """This rank's micro batches of a step."""
        layout, bucket = self.layout, self._buckets[step.bucket]
        micro, order = layout.micro(step.size), self._order(epoch)[0][step.bucket]
        for part in range(layout.accumulation):
            first = step.start + (part * layout.replicas + layout.replica) * micro
            yield _collate(
                [
                    self._example(bucket.examples[int(order[at])], epoch, step.bucket, at)
                    for at in range(first, first + micro)
                ]
            )

    def _order(self, epoch: int) -> tuple[list[npt.NDArray[np.int64]], list[Step]]:
        """The order within each bucket, and that of the steps."""
        if self._epoch is None or self._epoch[0] != epoch:
            orders, steps = [], []
            for index, bucket in enumerate(self._buckets):
                count, batch = len(bucket.examples), self.layout.global_batch(bucket.size)
                orders.append(_generator(self._draw.seed, epoch, index, ORDER).permutation(count))
                steps += [Step(index, start, bucket.size) for start in range(0, count - batch + 1, batch)]
            shuffled = _generator(self._draw.seed, epoch, 0, STEPS).permutation(len(steps))
            self._epoch = epoch, orders, [steps[at] for at in shuffled]
        return self._epoch[1], self._epoch[2]

    def _example(
        self, example: Example, epoch: int, bucket: int, place: int
    ) -> tuple[Floats, Floats, float, list[int]]:
        """(clean image, noise, time from 0 clean to 1 noise, token ids)."""
        generator = _generator(self._draw.seed, epoch, bucket, place)
        clean = example.pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
        noise = generator.standard_normal(clean.shape, np.float32)
        time = self._draw.time(generator.standard_normal(), generator.random())
        dropped = generator.random() < self._draw.uncond
        ids = self._tokenizer.null() if dropped else self._tokenizer.encode(caption(example, generator))
        return clean, noise, time, ids


def _digest(seed: int, bucket: Bucket) -> str:
    """Of all that decides what is drawn from a bucket, but for the pictures' own pixels."""
    parts = [(each.name, each.directory.caption_prefix, each.caption) for each in bucket.examples]
    return hashlib.sha256(json.dumps([seed, parts]).encode()).hexdigest()[:16]


def caption(example: Example, generator: np.random.Generator) -> str:
    """The caption with its prefix, its tags in a new order where that is asked for."""
    directory = example.directory
    if not example.caption:
        return ""
    tags = [example.caption]
    if directory.shuffle_tags or directory.shuffles:
        tags = example.caption.split(directory.shuffle_delimiter)
        tags = [tags[index] for index in generator.permutation(len(tags))]
    return directory.caption_prefix + directory.shuffle_delimiter.join(tags)


def _collate(examples: list[tuple[Floats, Floats, float, list[int]]]) -> MicroBatch:
    clean = torch.from_numpy(np.stack([example[0] for example in examples]))
    noise = torch.from_numpy(np.stack([example[1] for example in examples]))
    time = torch.tensor([example[2] for example in examples])
    ids = torch.tensor([example[3] for example in examples])
    return (torch.lerp(clean, noise, time[:, None, None, None]), time, ids), noise - clean


def _generator(seed: int, epoch: int, bucket: int, place: int) -> np.random.Generator:
    """An independent stream for each place in a bucket's order, of each epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, bucket, place]))

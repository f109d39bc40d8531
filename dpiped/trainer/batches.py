"""What each training step sees: which images, which noise, which times, all drawn anew from the seed.

Why: a stored random state binds a run to its layout and is easily lost. Here order is a pure function of
(seed, epoch) and everything random about an example one of (seed, epoch, its position), so a resumed run
goes on exactly, and one rank, two ranks or two pipeline stages train on the same examples.

Known gap: changing the data set between a save and a resume restarts the epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpiped.trainer.dataset import Images
from dpiped.trainer.text import Tokenizer

Floats = npt.NDArray[np.float32]
MicroBatch = tuple[tuple[Tensor, Tensor, Tensor], Tensor]
"""((noisy images [B, 3, side, side], times [B], token ids [B, L]), velocity [B, 3, side, side])."""


@dataclass(frozen=True)
class Layout:
    """How the global batch is cut: `micro` examples at a time, `accumulation` times, on `replicas` ranks."""

    micro: int
    accumulation: int
    replicas: int
    replica: int

    @property
    def global_batch(self) -> int:
        return self.micro * self.accumulation * self.replicas


@dataclass(frozen=True)
class Draw:
    """How examples are drawn. `uncond` is the share of captions dropped, for classifier-free guidance."""

    seed: int
    uncond: float
    logit_normal: bool


class Batches:
    """All examples of the data set, in an order and with noise that depend on seed and epoch only."""

    def __init__(self, images: Images, tokenizer: Tokenizer, layout: Layout, draw: Draw) -> None:
        self._images = images
        self._examples = images.examples()
        self._tokenizer = tokenizer
        self._draw = draw
        self.layout = layout

    def __len__(self) -> int:
        """Examples per epoch."""
        return len(self._examples)

    @property
    def steps_per_epoch(self) -> int:
        return len(self) // self.layout.global_batch

    def micro_batches(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        """This rank's micro batches of the step that begins at example `start` of the epoch."""
        order = _generator(self._draw.seed, epoch, 0).permutation(len(self))
        layout = self.layout
        for part in range(layout.accumulation):
            first = start + (part * layout.replicas + layout.replica) * layout.micro
            yield self._collate(
                [self._example(epoch, at, int(order[at])) for at in range(first, first + layout.micro)]
            )

    def _example(self, epoch: int, position: int, index: int) -> tuple[Floats, Floats, float, list[int]]:
        """(clean image, noise, time from 0 clean to 1 noise, token ids)."""
        generator = _generator(self._draw.seed, epoch, position + 1)
        which = self._examples[index]
        clean = self._images.pixels[which].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
        noise = generator.standard_normal(clean.shape, np.float32)
        normal, uniform = generator.standard_normal(), generator.random()
        time = 1 / (1 + np.exp(-normal)) if self._draw.logit_normal else uniform
        dropped = generator.random() < self._draw.uncond
        ids = self._tokenizer.null() if dropped else self._tokenizer.encode(self._caption(which, generator))
        return clean, noise, float(time), ids

    def _caption(self, which: int, generator: np.random.Generator) -> str:
        item = self._images.items[which]
        if not item.directory.shuffle_tags:
            return item.caption
        prefix = item.directory.caption_prefix
        tags = item.caption.removeprefix(prefix).split(item.directory.shuffle_delimiter)
        return prefix + item.directory.shuffle_delimiter.join(
            tags[i] for i in generator.permutation(len(tags))
        )

    @staticmethod
    def _collate(examples: list[tuple[Floats, Floats, float, list[int]]]) -> MicroBatch:
        clean = torch.from_numpy(np.stack([example[0] for example in examples]))
        noise = torch.from_numpy(np.stack([example[1] for example in examples]))
        time = torch.tensor([example[2] for example in examples])
        ids = torch.tensor([example[3] for example in examples])
        return (torch.lerp(clean, noise, time[:, None, None, None]), time, ids), noise - clean


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """An independent stream for each (seed, epoch, stream); stream 0 is the epoch's order."""
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) + stream]))

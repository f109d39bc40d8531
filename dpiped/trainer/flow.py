"""Rectified flow: the training loss, and sampling by walking the learned velocity back from noise.

Why: noise and image are joined by a straight line, x(t) = (1 - t) image + t noise, and the network learns
its velocity, noise - image. Sampling follows it from t = 1 to 0; classifier-free guidance pushes away from
what it would do without a caption.

Known gap: plain Euler steps; guidance doubles the cost even at 1.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpiped.trainer.buckets import Size
from dpiped.trainer.dataset import Pixels
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.text import Tokenizer

AT_ONCE = 8
"""Captions drawn in one batch; all of them at once would take much more memory than training does."""


def velocity_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return functional.mse_loss(predicted.float(), wanted)


@torch.no_grad()
def sample(
    model: nn.Module,
    spec: ModelSpec,
    captions: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    size: Size | None = None,
) -> Pixels:
    """One image per caption, [captions, height, width, 3]; the same for the same weights and arguments.

    Without a `size` (a multiple of the patch size) they are squares of the model's resolution.
    """
    tokenizer = Tokenizer(spec.vocabulary, spec.max_tokens)
    ids = torch.tensor([tokenizer.encode(caption) for caption in captions])
    width, height = size or (spec.resolution, spec.resolution)
    shape = (len(captions), 3, height, width)
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    noise = torch.from_numpy(generator.standard_normal(shape, np.float32))
    parts = [slice(first, first + AT_ONCE) for first in range(0, len(captions), AT_ONCE)]
    null = tokenizer.null()
    return np.concatenate([_walk(model, noise[part], ids[part], null, steps, guidance) for part in parts])


def _walk(
    model: nn.Module, noise: Tensor, ids: Tensor, null: list[int], steps: int, guidance: float
) -> Pixels:
    """From noise to pictures, for a few captions."""
    device = next(model.parameters()).device
    both = torch.cat((ids, torch.tensor([null] * len(ids)))).to(device)
    x = noise.to(device)
    times = torch.linspace(1, 0, steps + 1).tolist()
    for now, then in pairwise(times):
        time = torch.full((len(both),), now, device=device)
        with_caption, without = model(torch.cat((x, x)), time, both).chunk(2)
        x = x + (then - now) * (without + guidance * (with_caption - without))
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
    found: Pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return found

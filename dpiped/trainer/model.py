"""The network: a diffusion transformer on patches between a convolutional stem and head, as pipeline layers.

Why: a plain patch transformer learns no shapes within the minutes that a CPU has. Convolutions at full
resolution before and after it, and a 3x3 depthwise one in each block, give it the neighbourhood that
attention has to learn from much more data. Every layer takes and gives the same tuple of tensors, so
DeepSpeed may cut the list anywhere between two of them.

All floating tensors of the tuple reach the head: DeepSpeed sends a gradient back for each of them over a
stage border and fails if there is none.

Sizes are free: a position is known by where it lies between the picture's borders, not by its number.

Known gap: positions of a picture much larger than those trained on lie closer together than any before.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.text import PAD

State: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""(patches [B, h, w, D], pixels [B, H, W, C], time [B, D], words [B, L, D], word mask [B, L] 0/1)."""
TIME_FEATURES = 64
POSITION_WAVES = 12
"""Half-waves between two borders of a picture, from 1 on, that tell where a patch lies."""


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then scaled and shifted; x is [B, h, w, D], the rest [B, D]."""
    return functional.layer_norm(x, x.shape[-1:]) * (1 + scale[:, None, None]) + shift[:, None, None]


def condition(time: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Time and the mean of the caption's words, [B, D]."""
    weight = mask[..., None].to(words.dtype)
    return functional.silu(time + (words * weight).sum(1) / weight.sum(1))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention over [B, N, D]; mask is [B, N of k] with 1 for what may be seen."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    seen = None if mask is None else mask[:, None, None, :].bool()
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)


def channels_last(grid: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h, w, C]; no copy if the channels are last in memory."""
    return grid.permute(0, 2, 3, 1)


def channels_first(grid: Tensor) -> Tensor:
    """[B, h, w, C] → [B, C, h, w] as convolutions take it; the channels stay last in memory."""
    return grid.permute(0, 3, 1, 2)


def positions(height: int, width: int, device: torch.device) -> Tensor:
    """Waves over the rows and over the columns of a grid of patches, [h, w, 4 * POSITION_WAVES]."""
    waves = math.pi * torch.arange(1, POSITION_WAVES + 1, device=device)

    def along(count: int) -> Tensor:
        angle = (torch.arange(count, device=device) + 0.5)[:, None] / count * waves
        return torch.cat((angle.cos(), angle.sin()), -1)

    rows, columns = along(height)[:, None], along(width)[None]
    return torch.cat((rows.expand(-1, width, -1), columns.expand(height, -1, -1)), -1)


class Layer(nn.Module):
    """One layer of the pipeline. In bfloat16 it computes so where that is safe; parameters stay float32.

    With `checkpointed` what the layer computes is forgotten and computed once more for the gradient.
    """

    half_precision = False
    checkpointed = False

    def forward(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...] | Tensor:
        with torch.autocast(state[0].device.type, torch.bfloat16, enabled=self.half_precision):
            if self.checkpointed and torch.is_grad_enabled():
                again: tuple[Tensor, ...] | Tensor = checkpoint(self.run, *state, use_reentrant=False)
                return again
            return self.run(*state)

    def run(self, *state: Tensor) -> tuple[Tensor, ...] | Tensor:
        """What the layer does with the parts of the tuple."""
        raise NotImplementedError


class Embed(Layer):
    """(noisy images [B, 3, H, W], times [B], token ids [B, L]) → State."""

    def __init__(self, spec: ModelSpec, pipelined: bool = False) -> None:
        super().__init__()
        self.pipelined = pipelined
        width, stem = spec.width, spec.stem
        self.heads = spec.heads
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1), nn.SiLU(), nn.Conv2d(stem, stem, 3, padding=1)
        )
        self.patch = nn.Conv2d(stem, width, spec.patch, spec.patch)
        self.position = nn.Linear(4 * POSITION_WAVES, width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.word = nn.Embedding(len(spec.vocabulary), width)
        self.word_position = nn.Parameter(torch.randn(1, spec.max_tokens, width) * 0.02)
        self.word_qkv = nn.Linear(width, 3 * width)
        self.word_out = nn.Linear(width, width)

    def run(self, *batch: Tensor) -> State:
        noisy, time, ids = batch
        # Channels last is a fifth faster on CPUs; as [B, H, W, C] it is also what may cross a stage border.
        stem = self.stem(noisy.contiguous(memory_format=torch.channels_last))
        patches = channels_last(self.patch(stem))
        patches = patches + self.position(positions(patches.shape[1], patches.shape[2], patches.device))
        mask = (ids != PAD).to(torch.int64)
        words = self.word(ids) + self.word_position
        q, k, v = self.word_qkv(functional.layer_norm(words, words.shape[-1:])).chunk(3, -1)
        words = words + self.word_out(attend(q, k, v, self.heads, mask))
        pixels, timing = channels_last(stem), self.time(time_features(time))
        if self.pipelined and torch.is_grad_enabled():
            for part in (patches, pixels, timing, words):
                if not part.requires_grad:  # where an adapter leaves this layer's weights as they are
                    part.requires_grad_()
        return patches, pixels, timing, words, mask


def time_features(time: Tensor) -> Tensor:
    """Sines and cosines of times from 0 to 1, [B, TIME_FEATURES]."""
    half = TIME_FEATURES // 2
    scale = torch.exp(torch.arange(half, device=time.device) * (-math.log(10000) / half))
    angle = 1000 * time.float()[:, None] * scale
    return torch.cat((angle.cos(), angle.sin()), -1)


class Block(Layer):
    """State → State: patches attend to patches and words, then an MLP with a depthwise convolution."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.width
        self.heads = spec.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.word_kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 3 * width)
        self.depthwise = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width)
        self.down = nn.Linear(3 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def run(self, *state: Tensor) -> State:
        x, pixels, time, words, mask = state
        modulation = self.modulation(condition(time, words, mask))
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)
        q, k, v = self.qkv(modulate(x, shift1, scale1)).flatten(1, 2).chunk(3, -1)
        word_k, word_v = self.word_kv(functional.layer_norm(words, words.shape[-1:])).chunk(2, -1)
        seen = torch.cat((mask.new_ones(q.shape[:2]), mask), 1)
        mixed = attend(q, torch.cat((k, word_k), 1), torch.cat((v, word_v), 1), self.heads, seen)
        x = x + gate1[:, None, None] * self.out(mixed).reshape(x.shape)
        x = x + gate2[:, None, None] * self.mlp(modulate(x, shift2, scale2))
        return x, pixels, time, words, mask

    def mlp(self, x: Tensor) -> Tensor:
        """[B, h, w, D] → [B, h, w, D]."""
        mixed = channels_last(self.depthwise(channels_first(self.up(x))))
        down: Tensor = self.down(functional.gelu(mixed))
        return down


class Head(Layer):
    """State → velocity [B, 3, H, W], float32."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.patch = spec.patch
        self.modulation = nn.Linear(spec.width, 2 * spec.width)
        self.unpatch = nn.Linear(spec.width, spec.patch**2 * spec.stem)
        self.merge = nn.Conv2d(2 * spec.stem, spec.stem, 3, padding=1)
        self.out = nn.Conv2d(spec.stem, 3, 3, padding=1)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def run(self, *state: Tensor) -> Tensor:
        x, pixels, time, words, mask = state
        shift, scale = self.modulation(condition(time, words, mask)).chunk(2, -1)
        patches = self.unpatch(modulate(x, shift, scale)).unflatten(-1, (self.patch, self.patch, -1))
        known = torch.cat((patches.transpose(2, 3).reshape(pixels.shape), pixels), -1)
        velocity: Tensor = self.out(functional.silu(self.merge(channels_first(known))))
        return velocity.float()


def build_layers(
    spec: ModelSpec,
    seed: int,
    *,
    bfloat16: bool = False,
    checkpointed: bool = False,
    pipelined: bool = False,
) -> list[Layer]:
    """All layers with their first weights; equal on every rank, whatever part of them it keeps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embed = Embed(spec, pipelined)
        layers: list[Layer] = [embed, *(Block(spec) for _ in range(spec.depth)), Head(spec)]
    for layer in layers:
        layer.half_precision, layer.checkpointed = bfloat16, checkpointed
    return layers


class Velocity(nn.Module):
    """The whole model in one piece, for sampling. Parameter names are those of the pipeline's layers."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        for index, layer in enumerate(build_layers(spec, 0)):
            self.add_module(str(index), layer)
        self.requires_grad_(False)

    def forward(self, noisy: Tensor, time: Tensor, ids: Tensor) -> Tensor:
        """[B, 3, H, W], [B] and [B, L] → [B, 3, H, W]."""
        state: tuple[Tensor, ...] | Tensor = (noisy, time, ids)
        for layer in self.children():
            state = layer(state)
        return state if isinstance(state, Tensor) else state[0]

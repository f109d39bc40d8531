"""The averaged weights (EMA), and saved models and adapters: weights and config files, as one directory.

Why: the average of the weights makes much better images than the weights of any one step. A saved model is
built aside, below `tmp/`, and renamed into place, so a directory `epochN` or `stepN` is always whole.

Known gap: the parts of all pipeline stages are gathered in the memory of rank 0.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpiped.trainer import spec as specs
from dpiped.trainer.checkpoint import sync
from dpiped.trainer.model import Velocity
from dpiped.trainer.saved import ADAPTER_WEIGHTS, WEIGHTS, Saved
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError


class Average:
    """Exponential moving average of the trained parameters; over the last tenth of the steps at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        named = module.named_parameters()
        self._live = {name: value for name, value in named if value.requires_grad}
        self.weights = {name: value.detach().float().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """To be called after each optimizer step; `step` counts from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        live = [value.detach().float() for value in self._live.values()]
        torch._foreach_lerp_(list(self.weights.values()), live, 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Takes the average from a checkpoint. Raises KeyError if it is of another model."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    def gather(self, contributes: bool) -> dict[str, Tensor]:
        """The parts of all pipeline stages together. Every rank has to call it; one replica contributes."""
        part = {name: value.cpu() for name, value in self.weights.items()}
        size = torch.distributed.get_world_size()
        if size == 1:
            return part
        parts: list[Any] = [None] * size
        torch.distributed.all_gather_object(parts, part if contributes else {})
        return {name: value for each in parts for name, value in each.items()}


def save_model(
    directory: Path, weights: dict[str, Tensor], dtype: str, spec: ModelSpec, copies: Mapping[str, bytes]
) -> None:
    """Writes a saved model in one step; one of that name that is there already is replaced."""
    with replacing(directory) as new:
        _write_weights(new / WEIGHTS, weights, dtype)
        spec.write(new)
        write_copies(copies, new)


def save_adapter(
    directory: Path,
    weights: dict[str, Tensor],
    dtype: str,
    write_config: Callable[[Path], None],
    copies: Mapping[str, bytes],
) -> None:
    """Writes an adapter in one step; `weights` have the names of peft's files."""
    with replacing(directory) as new:
        _write_weights(new / ADAPTER_WEIGHTS, weights, dtype)
        write_config(new)
        write_copies(copies, new)


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A new directory below `tmp/` to be filled, which then takes the place of `directory` as a whole."""
    aside = directory.parent / "tmp"
    shutil.rmtree(aside, ignore_errors=True)
    new = aside / directory.name
    new.mkdir(parents=True)
    yield new
    for path in new.iterdir():
        sync(path)
    if directory.exists():
        directory.replace(aside / "replaced")
    new.replace(directory)
    sync(directory.parent)
    shutil.rmtree(aside)


def _write_weights(file: Path, weights: dict[str, Tensor], dtype: str) -> None:
    kind: torch.dtype = getattr(torch, dtype)
    save_file({name: value.to(kind).contiguous() for name, value in weights.items()}, file)


def write_copies(copies: Mapping[str, bytes], directory: Path) -> None:
    """The TOML files as they were at the start, under their names."""
    for name, content in copies.items():
        (directory / name).write_bytes(content)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The weights of a saved model, in float32. Raises ConfigError if they can't be read."""
    try:
        return {name: value.float() for name, value in load_file(directory / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{directory / WEIGHTS} can't be read: {error}") from error


def load_model(found: Saved) -> tuple[nn.Module, ModelSpec]:
    """A saved model, or a base with an adapter merged into it, ready to sample from. Raises ConfigError."""
    spec = specs.read(found.directory)
    model: nn.Module = assemble(spec, read_weights(found.base or found.directory))
    if found.base is not None:
        from dpiped.trainer import adapter  # imports peft, which takes seconds

        model = adapter.merged(model, *adapter.load(found.directory))
    return model, spec


def assemble(spec: ModelSpec, weights: dict[str, Tensor]) -> Velocity:
    """The whole model with these weights. Raises ConfigError if they are of another model."""
    model = Velocity(spec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"the weights are not those of the model: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval()

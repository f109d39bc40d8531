"""The averaged weights (EMA), and saved models: weights, model.json and the config files, as one directory.

Why: the average of the weights makes much better images than the weights of any one step. A saved model is
built aside, below `tmp/`, and renamed into place, so a directory `epochN` or `stepN` is always whole.

Known gap: the parts of all pipeline stages are gathered in the memory of rank 0.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpiped.trainer import spec as specs
from dpiped.trainer.checkpoint import sync
from dpiped.trainer.model import Velocity
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError

WEIGHTS = "model.safetensors"


class Average:
    """Exponential moving average of a module's parameters; over the last tenth of the steps at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = dict(module.named_parameters())
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
    directory: Path, weights: dict[str, Tensor], dtype: str, spec: ModelSpec, configs: Iterable[Path]
) -> None:
    """Writes a saved model in one step; one of that name that is there already is replaced."""
    aside = directory.parent / "tmp"
    shutil.rmtree(aside, ignore_errors=True)
    new = aside / directory.name
    new.mkdir(parents=True)
    kind: torch.dtype = getattr(torch, dtype)
    save_file({name: value.to(kind).contiguous() for name, value in weights.items()}, new / WEIGHTS)
    spec.write(new)
    for path in configs:
        shutil.copyfile(path, new / path.name)
    for path in new.iterdir():
        sync(path)
    if directory.exists():
        directory.replace(aside / "replaced")
    new.replace(directory)
    sync(directory.parent)
    shutil.rmtree(aside)


def load_model(directory: Path) -> tuple[Velocity, ModelSpec]:
    """A saved model, ready to sample from. Raises ConfigError if the directory holds none."""
    if not (directory / WEIGHTS).is_file():
        raise ConfigError(f"{directory} holds no saved model ({WEIGHTS}); it is an epochN or stepN directory")
    spec = specs.read(directory)
    return assemble(spec, load_file(directory / WEIGHTS)), spec


def assemble(spec: ModelSpec, weights: dict[str, Tensor]) -> Velocity:
    """The whole model with these weights, in float32."""
    model = Velocity(spec)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()

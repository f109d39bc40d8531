"""LoRA adapters on a saved model, in peft's own files.

Why: an adapter is some hundred kilobytes, trains on a handful of pictures, and leaves its base as it was.
peft knows how to put it into a model, and its files (`adapter_model.safetensors`, `adapter_config.json`) are
those that other programs read. An adapter says which base it is for, and is refused on any other.

Known gap: LoRA only; the base must still lie where it lay.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dpiped.trainer.model import Layer
from dpiped.trainer.model_config import AdapterConfig
from dpiped.trainer.saved import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config
from dpiped.trainer.table import ConfigError

ADAPTED = (nn.Linear, nn.Embedding, nn.Conv2d)
LEFT_ALONE = ("modulation", "depthwise")
"""A quarter of the parameters; without them an adapter's file is below a twentieth of its base's."""
PREFIX = "base_model.model."
_NAME = ".default"
"""What peft puts behind the names of an adapter's parameters inside a model."""


def peft_config(config: AdapterConfig, layers: Iterable[Layer]) -> LoraConfig:
    """LoRA on all that can be adapted, but for `exclude_modules`. Raises ConfigError."""
    names = [
        f"{index}.{name}"
        for index, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, ADAPTED) and name.split(".")[-1] not in LEFT_ALONE
    ]
    wanted = [name for name in names if not any(_is_in(name, part) for part in config.exclude)]
    unknown = [part for part in config.exclude if not any(_is_in(name, part) for name in names)]
    if unknown or not wanted:
        raise ConfigError(
            f"adapter.exclude_modules takes names like those of {', '.join(names[-5:])}, not {unknown}"
        )
    return LoraConfig(
        r=config.rank, lora_alpha=config.rank, lora_dropout=config.dropout, target_modules=wanted, bias="none"
    )


def _is_in(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."


def insert(module: nn.Module, config: LoraConfig, seed: int = 0) -> None:
    """Puts an untrained adapter into the layers of `module`; only its parameters are then trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module)


def merged(model: nn.Module, config: LoraConfig, weights: dict[str, Tensor]) -> nn.Module:
    """The model with the adapter's weights added to its own. Raises ConfigError if they don't fit."""
    insert(model, config)
    put(model, weights)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return model


def put(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Gives the adapter in `module` these weights. Raises ConfigError if they are of another adapter."""
    own = {name: value for name, value in module.named_parameters() if "lora_" in name}
    for name, value in own.items():
        found = weights.get(name)
        if found is None or found.shape != value.shape:
            shown = "missing" if found is None else f"of shape {list(found.shape)}, not {list(value.shape)}"
            raise ConfigError(f"the adapter does not fit: {name.replace(_NAME, '')} is {shown}")
        value.data.copy_(found)


def to_file(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in peft's files, from names in a model."""
    return {PREFIX + name.replace(_NAME, ""): value for name, value in weights.items()}


def read(file: Path) -> dict[str, Tensor]:
    """Weights by their names in a model. Raises ConfigError if the file is none of an adapter."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error
    weights = {}
    for name, value in found.items():
        parts = name.removeprefix(PREFIX).split(".")
        at = next((at for at, part in enumerate(parts) if part.startswith("lora_")), len(parts) - 1)
        weights[".".join([*parts[: at + 1], _NAME[1:], *parts[at + 1 :]])] = value
    return weights


def write_config(config: LoraConfig, directory: Path, base: Path) -> None:
    """Writes adapter_config.json, which names the base."""
    config.base_model_name_or_path = str(base)
    config.save_pretrained(str(directory))


def check_same(config: LoraConfig, directory: Path) -> None:
    """Raises ConfigError if the adapter described there is put on other modules."""
    before = adapter_config(directory).get("target_modules")
    if set(before or ()) != set(config.target_modules or ()):
        raise ConfigError("adapter.exclude_modules is not what the checkpoint's adapter was begun with")


def load(directory: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """A saved adapter. Raises ConfigError."""
    try:
        config = LoraConfig.from_pretrained(str(directory))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{directory / ADAPTER_CONFIG} can't be read: {error}") from error
    return config, read(directory / ADAPTER_WEIGHTS)

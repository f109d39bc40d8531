"""What is trained: a whole model, new or begun from a saved one, or an adapter on a saved one.

Why: the loop and what it writes need not know which; they get layers to train, a way to save their weights
and a way to make a model of them.

Known gap: an adapter keeps its base in the memory of rank 0 twice, once for drawing samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from dpiped.trainer.config import TrainConfig
from dpiped.trainer.model import Layer, build_layers
from dpiped.trainer.outputs import Product
from dpiped.trainer.saving import assemble, read_weights, save_adapter, save_model
from dpiped.trainer.spec import ModelSpec


@dataclass(frozen=True)
class Trained:
    """`describe` writes into the run directory what has to be known to resume."""

    layers: list[Layer]
    product: Product
    describe: Callable[[Path], None]


def build(config: TrainConfig, spec: ModelSpec) -> Trained:
    """Layers with their first weights. Raises ConfigError if the base or an earlier adapter does not fit."""
    layers = build_layers(
        spec,
        config.seed,
        bfloat16=config.model.dtype == "bfloat16",
        checkpointed=config.activation_checkpointing,
        pipelined=config.pipeline_stages > 1,
    )
    base = None if config.model.base is None else read_weights(config.model.base)
    if base is not None:
        assemble(spec, base)  # tells what does not fit
        nn.ModuleList(layers).load_state_dict(base)
    if config.adapter is None:
        return _full(config, spec, layers)
    assert base is not None, "an adapter without a base is refused by its config"
    return _adapter(config, spec, layers, base)


def _configs(config: TrainConfig) -> tuple[Path, ...]:
    return config.source, config.dataset.source


def _full(config: TrainConfig, spec: ModelSpec, layers: list[Layer]) -> Trained:
    def save(directory: Path, weights: dict[str, Tensor]) -> None:
        save_model(directory, weights, config.save_dtype, spec, _configs(config))

    return Trained(layers, Product(spec, save, lambda weights: assemble(spec, weights)), spec.write)


def _adapter(config: TrainConfig, spec: ModelSpec, layers: list[Layer], base: dict[str, Tensor]) -> Trained:
    from dpiped.trainer import adapter  # imports peft, which takes seconds

    wanted, path = config.adapter, config.model.base
    assert wanted is not None and path is not None
    peft = adapter.peft_config(wanted, layers)
    module = nn.ModuleList(layers)
    adapter.insert(module, peft, config.seed)
    if wanted.existing is not None:
        adapter.put(module, adapter.read(wanted.existing))

    def describe(directory: Path) -> None:
        spec.write(directory)
        adapter.write_config(peft, directory, path)

    def save(directory: Path, weights: dict[str, Tensor]) -> None:
        save_adapter(directory, adapter.to_file(weights), config.save_dtype, describe, _configs(config))

    def whole(weights: dict[str, Tensor]) -> nn.Module:
        return adapter.merged(assemble(spec, base), peft, weights)

    return Trained(layers, Product(spec, save, whole), describe)

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
    """`describe` writes into the run directory what has to be known to resume, `check` compares with it."""

    layers: list[Layer]
    product: Product
    describe: Callable[[Path], None]
    check: Callable[[Path], None]


def build(config: TrainConfig, spec: ModelSpec, base: Path | None) -> Trained:
    """Layers with their first weights, on the saved model `base` if there is one.

    Raises ConfigError if the base or an earlier adapter does not fit.
    """
    layers = build_layers(
        spec,
        config.seed,
        bfloat16=config.model.dtype == "bfloat16",
        checkpointed=config.activation_checkpointing,
        pipelined=config.pipeline_stages > 1,
    )
    weights = None if base is None else read_weights(base)
    if weights is not None:
        assemble(spec, weights)  # tells what does not fit
        nn.ModuleList(layers).load_state_dict(weights)
    if config.adapter is None:
        return _full(config, spec, layers)
    assert base is not None and weights is not None, "an adapter without a base is refused by its config"
    return _adapter(config, spec, layers, base, weights)


def _full(config: TrainConfig, spec: ModelSpec, layers: list[Layer]) -> Trained:
    def save(directory: Path, weights: dict[str, Tensor]) -> None:
        save_model(directory, weights, config.save_dtype, spec, config.copies())

    return Trained(
        layers, Product(spec, save, lambda weights: assemble(spec, weights)), spec.write, lambda _: None
    )


def _adapter(
    config: TrainConfig, spec: ModelSpec, layers: list[Layer], path: Path, base: dict[str, Tensor]
) -> Trained:
    from dpiped.trainer import adapter  # imports peft, which takes seconds

    wanted = config.adapter
    assert wanted is not None
    peft = adapter.peft_config(wanted, layers)
    module = nn.ModuleList(layers)
    adapter.insert(module, peft, config.seed)
    if wanted.existing is not None:
        adapter.put(module, adapter.read(wanted.existing))

    def describe(directory: Path) -> None:
        spec.write(directory)
        adapter.write_config(peft, directory, path)

    def save(directory: Path, weights: dict[str, Tensor]) -> None:
        save_adapter(directory, adapter.to_file(weights), config.save_dtype, describe, config.copies())

    def whole(weights: dict[str, Tensor]) -> nn.Module:
        return adapter.merged(assemble(spec, base), peft, weights)

    def check(directory: Path) -> None:
        adapter.check_same(peft, directory)

    return Trained(layers, Product(spec, save, whole), describe, check)

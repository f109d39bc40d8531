"""The optimizer and its learning-rate schedule, from the [optimizer] table.

Why: optimizer arguments are passed on as they are, so they are tried on a throw-away parameter first; a
misspelt one is then a line naming it and not a traceback after loading.

Known gap: only what torch.optim holds; no 8-bit, no offloading.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from dpiped.trainer.config import TrainConfig
from dpiped.trainer.model_config import OptimizerConfig
from dpiped.trainer.table import ConfigError

ALIASES = {"adamw": "AdamW", "adamw_optimi": "AdamW", "sgd": "SGD"}
_NEEDS_OTHER_STEPS = frozenset(("Optimizer", "LBFGS", "SparseAdam"))


def make(config: OptimizerConfig, parameters: Iterable[Parameter]) -> Optimizer:
    """Raises ConfigError for an unknown type or arguments it does not take."""
    name = ALIASES.get(config.type.lower(), config.type)
    kind = getattr(torch.optim, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Optimizer) or name in _NEEDS_OTHER_STEPS:
        raise ConfigError(f"optimizer.type takes adamw, sgd or a class of torch.optim, not {config.type!r}")
    with _refusing(name):
        return kind(list(parameters), **config.arguments)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"optimizer: {name} does not take these arguments: {text}") from error


def check(config: OptimizerConfig) -> None:
    """Raises ConfigError for what `make` would refuse, or what would fail at the first step."""
    parameter = Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    made = make(config, [parameter])
    with _refusing(type(made).__name__):
        made.step()


def schedule(config: TrainConfig, total_steps: int) -> Callable[[int], float]:
    """Factor on the learning rate by steps done: a linear warm-up, then constant, linear or cosine to 0."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        if config.lr_scheduler == "constant":
            return 1.0
        done = min((step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1), 1.0)
        return 1 - done if config.lr_scheduler == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)

    return factor

"""[model], [adapter] and [optimizer] of the training TOML: what is trained, and with what.

Why: these three decide which parameters there are. A model that starts from a saved one (`checkpoint_path`)
takes its shape from there, so a config that says otherwise is refused instead of training another model.

Known gap: optimizer arguments are checked only once torch is imported (`optimizer.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpiped.trainer import saved, spec
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError, Table, absolute

MODEL_TYPE = "dpiped"
SIZES = {"tiny": (96, 4, 32), "small": (256, 8, 64)}
"""Width, depth and channels of the full-resolution stem."""
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ModelConfig:
    """[model]. `base` is the saved model found at `checkpoint_path`, `base_spec` what it is."""

    width: int
    depth: int
    stem: int
    patch: int
    dtype: str
    timestep_sample_method: str
    checkpoint_path: Path | None
    base: Path | None
    base_spec: ModelSpec | None


@dataclass(frozen=True)
class AdapterConfig:
    """[adapter]. `existing` is the file of an earlier adapter to go on with."""

    rank: int
    dropout: float
    existing: Path | None
    exclude: tuple[str, ...]


@dataclass(frozen=True)
class OptimizerConfig:
    """`arguments` are passed to the optimizer as they are, `lr` among them."""

    type: str
    arguments: dict[str, Any]


def model(table: Table, largest: float) -> ModelConfig:
    """Reads [model] for pictures of up to `largest` pixels squared. Raises ConfigError naming the key."""
    table.choice("type", (MODEL_TYPE,))
    path, base, base_spec = _base(table)
    named = "size" in table
    width, depth, stem = SIZES[table.choice("size", tuple(SIZES), "tiny")]
    patch = 4 if largest <= 64 else 8 if largest <= 256 else 16
    if base_spec is not None and not named:
        width, depth, stem = base_spec.width, base_spec.depth, base_spec.stem
    if base_spec is not None:
        patch = base_spec.patch
    width = table.integer("width", width, least=16)
    if width % 16:
        raise table.refuse("width", width, "a multiple of 16")
    found = ModelConfig(
        width=width,
        depth=table.integer("depth", depth),
        stem=table.integer("stem", stem if width >= 64 else min(stem, 8)),
        patch=table.integer("patch", patch),
        dtype=table.choice("dtype", DTYPES, "float32"),
        timestep_sample_method=table.choice(
            "timestep_sample_method", ("logit_normal", "uniform"), "logit_normal"
        ),
        checkpoint_path=path,
        base=base,
        base_spec=base_spec,
    )
    table.finish({})
    _fits(found)
    return found


def _base(table: Table) -> tuple[Path | None, Path | None, ModelSpec | None]:
    if "checkpoint_path" not in table:
        return None, None, None
    path = absolute(table, "checkpoint_path")
    if not path.is_dir():
        raise ConfigError(f"{table.name}checkpoint_path: there is no directory {path}")
    found = saved.newest(path)
    if found is None:
        raise ConfigError(
            f"{table.name}checkpoint_path: {path} holds no saved model ({saved.WEIGHTS}); "
            "it takes a run directory or an epochN or stepN directory of a full training"
        )
    return path, found, spec.read(found)


def _fits(found: ModelConfig) -> None:
    if found.base_spec is None:
        return
    for name in spec.SHAPE:
        if getattr(found, name) != getattr(found.base_spec, name):
            raise ConfigError(
                f"model.{name}: the model at checkpoint_path has {getattr(found.base_spec, name)}, "
                f"the config says {getattr(found, name)}"
            )


def adapter(table: Table, base: Path | None) -> AdapterConfig:
    """Reads [adapter]. Raises ConfigError naming the key."""
    table.choice("type", ("lora",))
    if base is None:
        raise ConfigError(
            "model.checkpoint_path is missing; an [adapter] takes a saved model to be trained on"
        )
    if "alpha" in table:
        raise ConfigError("adapter.alpha is not to be set; it is always equal to the rank")
    existing = absolute(table, "init_from_existing") if "init_from_existing" in table else None
    exclude = table.raw("exclude_modules", [])
    if not isinstance(exclude, list) or not all(isinstance(name, str) for name in exclude):
        raise table.refuse("exclude_modules", exclude, "a list of module names")
    table.choice("dtype", ("float32",), "float32")
    found = AdapterConfig(
        rank=table.integer("rank"),
        dropout=table.fraction("dropout", 0.0),
        existing=None if existing is None else _existing(existing),
        exclude=tuple(exclude),
    )
    table.finish({})
    return found


def _existing(path: Path) -> Path:
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ConfigError(
            f"adapter.init_from_existing takes a directory with one .safetensors file, "
            f"{path} has {len(files)}"
        )
    if (path / saved.ADAPTER_CONFIG).is_file():
        described = saved.adapter_config(path)
        if described.get("lora_alpha") != described.get("r"):
            raise ConfigError(
                f"adapter.init_from_existing: {path} has alpha {described.get('lora_alpha')} and rank "
                f"{described.get('r')}; this trainer's are always equal"
            )
    return files[0]


def optimizer(table: Table) -> OptimizerConfig:
    """Reads [optimizer]. Raises ConfigError naming the key."""
    kind = table.text("type")
    arguments = table.rest()
    if "lr" not in arguments:
        raise ConfigError("optimizer.lr is missing; it takes a number above 0")
    return OptimizerConfig(kind, arguments)

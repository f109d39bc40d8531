"""The training TOML and the dataset TOML, checked whole before anything heavy is imported.

Why: a wrong value should cost a second and a line, not a start-up, a hang or a wrong training. Keys and
their meanings are diffusion-pipe's, so one habit serves both; what this trainer can't do yet is refused.

Known gap: optimizer arguments are checked only once torch is imported (`optimizer.py`).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError, Table

MODEL_TYPE = "dpiped"
SIZES = {"tiny": (96, 4, 32), "small": (256, 8, 64)}
"""Width, depth and channels of the full-resolution stem."""
SAVE_DTYPES = ("float32", "bfloat16", "float16")

# Keys of diffusion-pipe that ask for nothing here with these values, and for something else with others.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "eval_datasets": ([],),
    "eval_before_first_step": (True, False),
    "activation_checkpointing": (False,),
    "reentrant_activation_checkpointing": (False,),
    "partition_method": ("parameters",),
    "blocks_to_swap": (0,),
    "compile": (False,),
    "force_constant_lr": (False,),
    "x_axis_examples": (False,),
    "video_clip_mode": ("single_beginning", "single_middle"),
}
_NEUTRAL_DATASET: Mapping[str, tuple[Any, ...]] = {
    "enable_ar_bucket": (False,),
    "frame_buckets": ([1],),
    "cache_shuffle_num": (0,),
    "shuffle_metadata": (True, False),
    "online_captions": (False,),
}


@dataclass(frozen=True)
class Directory:
    """One [[directory]]: images with their captions. `num_repeats` counts each image so often an epoch."""

    path: Path
    num_repeats: int
    caption_prefix: str
    shuffle_tags: bool
    shuffle_delimiter: str
    skip_empty_caption: bool


@dataclass(frozen=True)
class DatasetConfig:
    """`resolution` is the side in pixels of the squares that all images are cropped to."""

    source: Path
    resolution: int
    directories: tuple[Directory, ...]


@dataclass(frozen=True)
class ModelConfig:
    width: int
    depth: int
    stem: int
    patch: int
    dtype: str
    timestep_sample_method: str


@dataclass(frozen=True)
class OptimizerConfig:
    """`arguments` are passed to the optimizer as they are, `lr` among them."""

    type: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training TOML. Intervals are None where nothing is to be done at an interval."""

    source: Path
    output_dir: Path
    dataset: DatasetConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    epochs: int
    max_steps: int | None
    micro_batch_size: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    pipeline_stages: int
    warmup_steps: int
    lr_scheduler: str
    save_every_n_epochs: int | None
    save_every_n_steps: int | None
    save_every_n_examples: int | None
    save_dtype: str
    checkpoint_every_n_epochs: int | None
    checkpoint_every_n_minutes: float | None
    steps_per_print: int
    logging_steps: int
    uncond_fraction: float
    resume: str | bool
    seed: int
    ema_decay: float
    sample_every_n_epochs: int | None
    sample_prompts: tuple[str, ...] | None
    sampling_steps: int
    guidance: float

    def model_spec(self, vocabulary: tuple[str, ...], max_tokens: int) -> ModelSpec:
        """The model that is asked for, with the vocabulary of the data set."""
        model = self.model
        return ModelSpec(
            width=model.width,
            depth=model.depth,
            stem=model.stem,
            patch=model.patch,
            resolution=self.dataset.resolution,
            max_tokens=max_tokens,
            vocabulary=vocabulary,
        )


def load(source: Path) -> TrainConfig:
    """Reads the training TOML and the dataset TOML it names. Raises ConfigError naming the key."""
    table = Table(_read(source, "--config"))
    if "adapter" in table:
        raise ConfigError("[adapter] is not supported by this trainer yet: it trains the whole model")
    dataset = _dataset(_absolute(table, "dataset"))
    config = TrainConfig(
        source=source,
        output_dir=_absolute(table, "output_dir"),
        dataset=dataset,
        model=_model(Table(table.raw("model", {}), "model."), dataset.resolution),
        optimizer=_optimizer(Table(table.raw("optimizer", {}), "optimizer.")),
        epochs=table.integer("epochs"),
        max_steps=table.optional_integer("max_steps"),
        micro_batch_size=table.integer("micro_batch_size_per_gpu", 1),
        gradient_accumulation_steps=table.integer("gradient_accumulation_steps", 1),
        gradient_clipping=table.number("gradient_clipping", 1.0),
        pipeline_stages=table.integer("pipeline_stages", 1),
        warmup_steps=table.integer("warmup_steps", 0, least=0),
        lr_scheduler=table.choice("lr_scheduler", ("constant", "linear", "cosine"), "constant"),
        save_every_n_epochs=table.optional_integer("save_every_n_epochs"),
        save_every_n_steps=table.optional_integer("save_every_n_steps"),
        save_every_n_examples=table.optional_integer("save_every_n_examples"),
        save_dtype=table.choice("save_dtype", SAVE_DTYPES, "float32"),
        checkpoint_every_n_epochs=table.optional_integer("checkpoint_every_n_epochs"),
        checkpoint_every_n_minutes=table.optional_number("checkpoint_every_n_minutes"),
        steps_per_print=table.integer("steps_per_print", 1),
        logging_steps=table.integer("logging_steps", 1),
        uncond_fraction=_fraction(table, "uncond_fraction", 0.1),
        resume=_resume(table),
        seed=table.integer("seed", 1234, least=0),
        ema_decay=_fraction(table, "ema_decay", 0.999),
        sample_every_n_epochs=table.optional_integer("sample_every_n_epochs"),
        sample_prompts=_prompts(table),
        sampling_steps=table.integer("sampling_steps", 25),
        guidance=table.number("guidance", 2.5),
    )
    _monitoring(table)
    table.finish(_NEUTRAL)
    if not (config.save_every_n_epochs or config.save_every_n_steps or config.save_every_n_examples):
        raise ConfigError("save_every_n_epochs, save_every_n_steps or save_every_n_examples is required")
    if config.pipeline_stages > config.model.depth + 2:
        raise ConfigError(f"pipeline_stages takes at most the model's layers ({config.model.depth + 2})")
    return config


def _read(path: Path, key: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8").removeprefix("\ufeff"))
    except FileNotFoundError as error:
        raise ConfigError(f"{key}: there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{key}: {path} is not TOML: {error}") from error


def _absolute(table: Table, key: str) -> Path:
    """A relative path would lead into the installed package, where the launcher runs us."""
    path = Path(table.text(key)).expanduser()
    if not path.is_absolute():
        raise ConfigError(f"{table.name}{key} takes an absolute path, not {str(path)!r}")
    return path


def _fraction(table: Table, key: str, default: float) -> float:
    value = table.number(key, default)
    if value >= 1:
        raise table.refuse(key, value, "a number from 0 to below 1")
    return value


def _resume(table: Table) -> str | bool:
    value = table.raw("resume_from_checkpoint", False)
    if not isinstance(value, str | bool):
        raise table.refuse("resume_from_checkpoint", value, "true, false or a directory's name")
    return value


def _prompts(table: Table) -> tuple[str, ...] | None:
    value = table.raw("sample_prompts")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(prompt, str) for prompt in value):
        raise table.refuse("sample_prompts", value, "a list of strings")
    return tuple(value)


def _monitoring(table: Table) -> None:
    monitoring = Table(table.raw("monitoring", {}), "monitoring.")
    if monitoring.flag("enable_wandb", False):
        raise ConfigError("monitoring.enable_wandb is not supported by this trainer yet; it takes false")
    for key in ("wandb_api_key", "wandb_tracker_name", "wandb_run_name"):
        monitoring.raw(key)
    monitoring.finish({})


def _model(table: Table, resolution: int) -> ModelConfig:
    table.choice("type", (MODEL_TYPE,))
    width, depth, stem = SIZES[table.choice("size", tuple(SIZES), "tiny")]
    width = table.integer("width", width, least=16)
    if width % 16:
        raise table.refuse("width", width, "a multiple of 16")
    patch = table.integer("patch", 4 if resolution <= 64 else 8 if resolution <= 256 else 16)
    if resolution % patch:
        raise ConfigError(f"resolutions takes a multiple of the patch size {patch}, not {resolution}")
    model = ModelConfig(
        width=width,
        depth=table.integer("depth", depth),
        stem=table.integer("stem", stem if width >= 64 else 8),
        patch=patch,
        dtype=table.choice("dtype", ("float32", "bfloat16"), "float32"),
        timestep_sample_method=table.choice(
            "timestep_sample_method", ("logit_normal", "uniform"), "logit_normal"
        ),
    )
    table.finish({})
    return model


def _optimizer(table: Table) -> OptimizerConfig:
    kind = table.text("type")
    arguments = table.rest()
    if "lr" not in arguments:
        raise ConfigError("optimizer.lr is missing; it takes a number above 0")
    return OptimizerConfig(kind, arguments)


def _dataset(source: Path) -> DatasetConfig:
    data = _read(source, "dataset")
    directories = data.pop("directory", None)
    if not isinstance(directories, list) or not directories:
        raise ConfigError(f"dataset: {source} has no [[directory]]")
    found = [
        _directory(Table(entry, f"directory[{index}]."), data) for index, entry in enumerate(directories)
    ]
    resolutions = {resolution for resolution, _ in found}
    if len(resolutions) > 1:
        raise ConfigError(f"resolutions takes one size for all directories, not {sorted(resolutions)}")
    return DatasetConfig(source, resolutions.pop(), tuple(directory for _, directory in found))


def _directory(own: Table, general: dict[str, Any]) -> tuple[int, Directory]:
    table = Table({**general, **own.rest()}, own.name)
    path = _absolute(table, "path")
    if not path.is_dir():
        raise ConfigError(f"{own.name}path: there is no directory {path}")
    directory = Directory(
        path=path,
        num_repeats=table.integer("num_repeats", 1),
        caption_prefix=table.text("caption_prefix", ""),
        shuffle_tags=table.flag("shuffle_tags", False),
        shuffle_delimiter=table.text("cache_shuffle_delimiter", ", "),
        skip_empty_caption=table.flag("skip_empty_caption", True),
    )
    resolution = _resolution(table)
    table.finish(_NEUTRAL_DATASET)
    return resolution, directory


def _resolution(table: Table) -> int:
    value = table.raw("resolutions")
    sides = value[0] if isinstance(value, list) and len(value) == 1 else None
    if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
        sides = sides[0]
    if not isinstance(sides, int) or isinstance(sides, bool) or sides < 8:
        raise table.refuse("resolutions", value, "a list with one side of a square in pixels, from 8 on")
    return sides

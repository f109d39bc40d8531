"""The training TOML, checked whole before anything heavy is imported.

Why: a wrong value should cost a second and a line, not a start-up, a hang or a wrong training. Keys and
their meanings are diffusion-pipe's, so one habit serves both; what this trainer can't do yet is refused.

Known gap: only the first error is told.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpiped.trainer import data_config, model_config
from dpiped.trainer.buckets import Size
from dpiped.trainer.data_config import DatasetConfig
from dpiped.trainer.model_config import AdapterConfig, ModelConfig, OptimizerConfig
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError, Table, absolute, read_toml

SAVE_DTYPES = ("float32", "bfloat16", "float16")

# Keys of diffusion-pipe that ask for nothing here with these values, and for something else with others.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "reentrant_activation_checkpointing": (False,),
    "partition_method": ("parameters",),
    "blocks_to_swap": (0,),
    "disable_block_swap_for_eval": (True, False),
    "compile": (False,),
    "force_constant_lr": (False,),
    "x_axis_examples": (False,),
    "video_clip_mode": ("single_beginning", "single_middle"),
}


@dataclass(frozen=True)
class ForSize:
    """A number of examples that may depend on the size of the pictures.

    `pairs` are (side of a square, number); `exact` has sizes whose number is known.
    """

    pairs: tuple[tuple[float, int], ...]
    exact: tuple[tuple[Size, int], ...] = ()

    def __call__(self, size: Size) -> int:
        """The number for pictures of this width and height: if not exact, that of the nearest side."""
        for known, number in self.exact:
            if known == size:
                return number
        side = (size[0] * size[1]) ** 0.5
        return min(self.pairs, key=lambda pair: abs(pair[0] - side))[1]


@dataclass(frozen=True)
class EvalSet:
    """One of `eval_datasets`; `name` is its tag in TensorBoard."""

    name: str
    dataset: DatasetConfig


@dataclass(frozen=True, kw_only=True)
class Every:
    """At which epochs, steps or numbers of examples something is due; None where it is not."""

    epochs: int | None
    steps: int | None
    examples: int | None

    def __bool__(self) -> bool:
        return bool(self.epochs or self.steps or self.examples)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training TOML. Intervals are None where nothing is to be done at an interval."""

    source: Path
    content: bytes
    output_dir: Path
    dataset: DatasetConfig
    eval_sets: tuple[EvalSet, ...]
    model: ModelConfig
    adapter: AdapterConfig | None
    optimizer: OptimizerConfig
    epochs: int
    max_steps: int | None
    micro_batch: ForSize
    gradient_accumulation_steps: int
    eval_micro_batch: ForSize
    eval_accumulation_steps: int
    gradient_clipping: float
    pipeline_stages: int
    activation_checkpointing: bool
    warmup_steps: int
    lr_scheduler: str
    save_every: Every
    save_dtype: str
    checkpoint_every_n_epochs: int | None
    checkpoint_every_n_minutes: float | None
    keep_last_n_checkpoints: int | None
    keep_last_n_models: int | None
    eval_every: Every
    eval_before_first_step: bool
    steps_per_print: int
    logging_steps: int
    workers: int
    uncond_fraction: float
    resume: str | bool
    seed: int
    ema_decay: float
    sample_every_n_epochs: int | None
    sample_prompts: tuple[str, ...] | None
    sampling_steps: int
    guidance: float

    def copies(self) -> dict[str, bytes]:
        """The files that this was read from, by the names that their copies get; read once, at the start."""
        files = {self.dataset.source.name: self.dataset.content, self.source.name: self.content}
        for each in self.eval_sets:
            name = each.dataset.source.name
            if files.get(name, each.dataset.content) != each.dataset.content:
                name = re.sub(r"[^\w.-]", "_", f"{each.name}_{name}")
            files[name] = each.dataset.content
        return files

    def model_spec(self, vocabulary: tuple[str, ...], max_tokens: int) -> ModelSpec:
        """The model that is asked for: with the vocabulary of the data set, or with that of its base."""
        model, base = self.model, self.model.base_spec
        return ModelSpec(
            width=model.width,
            depth=model.depth,
            stem=model.stem,
            patch=model.patch,
            resolution=max(round(self.dataset.largest / model.patch), 1) * model.patch,
            max_tokens=max_tokens if base is None else base.max_tokens,
            vocabulary=vocabulary if base is None else base.vocabulary,
        )


def load(source: Path, *, many_resolutions: bool = False) -> TrainConfig:
    """Reads the training TOML and the dataset TOMLs it names. Raises ConfigError naming the key."""
    data, content = read_toml(source, "--config")
    table = Table(data)
    dataset = data_config.load(absolute(table, "dataset"), many_resolutions=many_resolutions)
    model = model_config.model(Table(table.raw("model", {}), "model."), dataset.largest)
    adapter = table.raw("adapter")
    micro = _for_size(
        table, ("image_micro_batch_size_per_gpu", "micro_batch_size_per_gpu"), ForSize(((0, 1),))
    )
    config = TrainConfig(
        source=source,
        content=content,
        output_dir=absolute(table, "output_dir"),
        dataset=dataset,
        eval_sets=_eval_sets(table, many_resolutions),
        model=model,
        adapter=None if adapter is None else model_config.adapter(Table(adapter, "adapter."), model.base),
        optimizer=model_config.optimizer(Table(table.raw("optimizer", {}), "optimizer.")),
        epochs=table.integer("epochs"),
        max_steps=table.optional_integer("max_steps"),
        micro_batch=micro,
        gradient_accumulation_steps=table.integer("gradient_accumulation_steps", 1),
        eval_micro_batch=_for_size(
            table, ("eval_image_micro_batch_size_per_gpu", "eval_micro_batch_size_per_gpu"), micro
        ),
        eval_accumulation_steps=table.integer("eval_gradient_accumulation_steps", 1),
        gradient_clipping=table.number("gradient_clipping", 1.0),
        pipeline_stages=table.integer("pipeline_stages", 1),
        activation_checkpointing=table.flag("activation_checkpointing", False),
        warmup_steps=table.integer("warmup_steps", 0, least=0),
        lr_scheduler=table.choice("lr_scheduler", ("constant", "linear", "cosine"), "constant"),
        save_every=_every(table, "save"),
        save_dtype=table.choice("save_dtype", SAVE_DTYPES, "float32"),
        checkpoint_every_n_epochs=table.optional_integer("checkpoint_every_n_epochs"),
        checkpoint_every_n_minutes=table.optional_number("checkpoint_every_n_minutes"),
        keep_last_n_checkpoints=table.optional_integer("keep_last_n_checkpoints"),
        keep_last_n_models=table.optional_integer("keep_last_n_models"),
        eval_every=_every(table, "eval"),
        eval_before_first_step=table.flag("eval_before_first_step", True),
        steps_per_print=table.integer("steps_per_print", 1),
        logging_steps=table.integer("logging_steps", 1),
        workers=table.integer("map_num_proc", min(8, os.cpu_count() or 1)),
        uncond_fraction=table.fraction("uncond_fraction", 0.1),
        resume=_resume(table),
        seed=table.integer("seed", 1234, least=0),
        ema_decay=table.fraction("ema_decay", 0.999),
        sample_every_n_epochs=table.optional_integer("sample_every_n_epochs"),
        sample_prompts=_prompts(table),
        sampling_steps=table.integer("sampling_steps", 25),
        guidance=table.number("guidance", 2.5),
    )
    table.integer("caching_batch_size", 1)
    _monitoring(table)
    table.finish(_NEUTRAL)
    _agree(config)
    return config


def _agree(config: TrainConfig) -> None:
    """Raises ConfigError for values that don't go together."""
    if not config.save_every:
        raise ConfigError("save_every_n_epochs, save_every_n_steps or save_every_n_examples is required")
    if config.pipeline_stages > config.model.depth + 2:
        raise ConfigError(f"pipeline_stages takes at most the model's layers ({config.model.depth + 2})")
    patch = config.model.patch
    for dataset in (config.dataset, *(each.dataset for each in config.eval_sets)):
        for index, directory in enumerate(dataset.directories):
            size = directory.asked.unfit(patch)
            if size is not None:
                key = "resolutions" if isinstance(size, float) else "size_buckets or ar_buckets"
                shown = f"{size:g}" if isinstance(size, float) else f"{size[0]}x{size[1]}"
                raise ConfigError(
                    f"directory[{index}].{key} takes multiples of the patch size {patch}, not {shown} "
                    f"({dataset.source})"
                )


def _every(table: Table, what: str) -> Every:
    return Every(
        epochs=table.optional_integer(f"{what}_every_n_epochs"),
        steps=table.optional_integer(f"{what}_every_n_steps"),
        examples=table.optional_integer(f"{what}_every_n_examples"),
    )


def _for_size(table: Table, keys: tuple[str, ...], default: ForSize) -> ForSize:
    """The first of `keys` that is there wins; all of them are checked."""
    found = [_numbers(table, key) for key in keys if key in table]
    return found[0] if found else default


def _numbers(table: Table, key: str) -> ForSize:
    value = table.raw(key)
    pairs = [[0, value]] if isinstance(value, int) else value
    if isinstance(pairs, list) and pairs and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        numbers = [number for pair in pairs for number in pair]
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if whole and all(side >= 0 and number >= 1 for side, number in pairs):
            return ForSize(tuple((float(side), number) for side, number in pairs))
    raise table.refuse(key, value, "a whole number from 1 on, or a list of [resolution, number]")


def _eval_sets(table: Table, many_resolutions: bool) -> tuple[EvalSet, ...]:
    value = table.raw("eval_datasets", [])
    if not isinstance(value, list):
        raise table.refuse("eval_datasets", value, "a list of tables with name and config")
    found: list[EvalSet] = []
    for index, entry in enumerate(value):
        one = Table(entry, f"eval_datasets[{index}].")
        name, source = one.text("name"), absolute(one, "config")
        one.finish({})
        if not name or name in ("train", *(each.name for each in found)):
            raise one.refuse("name", name, "a name of its own, other than 'train'")
        dataset = data_config.load(source, f"{one.name}config", many_resolutions=many_resolutions)
        found.append(EvalSet(name, dataset))
    return tuple(found)


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

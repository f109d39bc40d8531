"""What is to be done, checked from flags to checkpoint before torch is imported.

Why: a wrong flag, key, folder or checkpoint costs one line and exit code 1 within a second, on every rank
alike, and leaves nothing behind.

Known gap: images are opened only once the training starts, so unreadable ones are found then.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpiped.trainer import cache, checkpoint, config, dataset
from dpiped.trainer.cache import Source
from dpiped.trainer.checkpoint import Resume
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.data_config import DatasetConfig
from dpiped.trainer.table import ConfigError

UNSUPPORTED = ("dump_dataset", "test_sample")


@dataclass(frozen=True)
class Job:
    """A training that was checked.

    `sources` has the data set as "", evaluation sets by name.
    """

    config: TrainConfig
    sources: Mapping[str, list[Source]]
    resume: Resume | None
    cache_only: bool
    regenerate_cache: bool
    reset_dataloader: bool
    reset_optimizer: bool
    reset_optimizer_params: bool


def prepare(arguments: argparse.Namespace, world_size: int) -> Job:
    """Checks flags, files, data sets and checkpoint. Raises ConfigError; nothing is written or imported."""
    for name in UNSUPPORTED:
        if getattr(arguments, name):
            raise ConfigError(f"--{name} is not supported by this trainer yet")
    if arguments.config is None:
        raise ConfigError("--config is missing; it takes the path of a training TOML")
    if arguments.trust_cache and arguments.regenerate_cache:
        raise ConfigError("--trust_cache and --regenerate_cache exclude each other")
    settings = config.load(arguments.config, many_resolutions=arguments.i_know_what_i_am_doing)
    sources = {"": _sources(settings, settings.dataset, "", arguments.trust_cache)}
    for each in settings.eval_sets:
        sources[each.name] = _sources(settings, each.dataset, f"{each.name}: ", arguments.trust_cache)
    check_batch(settings, sources[""], world_size)
    _check_output_dir(settings.output_dir)
    wanted = settings.resume if arguments.resume_from_checkpoint is None else arguments.resume_from_checkpoint
    return Job(
        config=settings,
        sources=sources,
        resume=None if arguments.cache_only else checkpoint.find(settings, wanted),
        cache_only=arguments.cache_only,
        regenerate_cache=arguments.regenerate_cache,
        reset_dataloader=arguments.reset_dataloader,
        reset_optimizer=arguments.reset_optimizer,
        reset_optimizer_params=arguments.reset_optimizer_params,
    )


def _sources(settings: TrainConfig, data: DatasetConfig, prefix: str, trust: bool) -> list[Source]:
    sources = []
    for index, directory in enumerate(data.directories):
        field = f"{prefix}directory[{index}].path"
        found = Source(directory, directory.asked.buckets(settings.model.patch), field, None)
        if not (trust and cache.is_there(found)):
            found = Source(directory, found.buckets, field, dataset.scan(directory, field))
        sources.append(found)
    return sources


def check_batch(settings: TrainConfig, sources: list[Source], world_size: int) -> None:
    """Raises ConfigError if the ranks can't be cut into pipelines or an epoch can't have one batch."""
    if world_size % settings.pipeline_stages:
        raise ConfigError(
            f"pipeline_stages = {settings.pipeline_stages} does not divide the number of ranks ({world_size})"
        )
    steps = settings.gradient_accumulation_steps * (world_size // settings.pipeline_stages)
    sizes = [size for source in sources for size in source.buckets.sizes]
    smallest = min(settings.micro_batch(size) for size in sizes) * steps
    if all(source.scan is not None for source in sources):
        examples = sum(_examples(source) for source in sources)
        if smallest > examples:
            raise ConfigError(
                f"micro_batch_size_per_gpu: a global batch of {smallest} is larger than the data set "
                f"({examples} examples)"
            )
    largest = max(settings.micro_batch(size) for size in sizes) * steps
    for what, every in (("save", settings.save_every), ("eval", settings.eval_every)):
        if every.examples and every.examples < largest:
            raise ConfigError(f"{what}_every_n_examples takes at least the global batch size ({largest})")


def _examples(source: Source) -> int:
    """At least so many, and one too many at most, come in an epoch."""
    assert source.scan is not None
    directory = source.directory
    captions = sum(len(item.captions) for item in source.scan.items) * max(directory.shuffles, 1)
    return round(captions * directory.num_repeats) * len(source.buckets.groups)


def _check_output_dir(path: Path) -> None:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"output_dir: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir: {existing} can't be written to")

"""What is to be done, checked from flags to checkpoint before torch is imported.

Why: a wrong flag, key, folder or checkpoint costs one line and exit code 1 within a second, on every rank
alike, and leaves nothing behind.

Known gap: images are opened only once the training starts, so unreadable ones are found then.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from dpiped.trainer import checkpoint, config, dataset
from dpiped.trainer.checkpoint import Resume
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.dataset import Scan
from dpiped.trainer.table import ConfigError

UNSUPPORTED = ("dump_dataset", "test_sample", "reset_optimizer_params")


@dataclass(frozen=True)
class Job:
    """A training that was checked and can be started."""

    config: TrainConfig
    scan: Scan
    resume: Resume | None
    cache_only: bool
    reset_dataloader: bool
    reset_optimizer: bool


def prepare(arguments: argparse.Namespace, world_size: int) -> Job:
    """Checks flags, files, data set and checkpoint. Raises ConfigError; nothing is written or imported."""
    for name in UNSUPPORTED:
        if getattr(arguments, name):
            raise ConfigError(f"--{name} is not supported by this trainer yet")
    if arguments.config is None:
        raise ConfigError("--config is missing; it takes the path of a training TOML")
    settings = config.load(arguments.config)
    found = dataset.scan(settings.dataset)
    check_batch(settings, len(dataset.repeated(found.items)), world_size)
    _check_output_dir(settings.output_dir)
    wanted = settings.resume if arguments.resume_from_checkpoint is None else arguments.resume_from_checkpoint
    return Job(
        config=settings,
        scan=found,
        resume=None if arguments.cache_only else checkpoint.find(settings, wanted),
        cache_only=arguments.cache_only,
        reset_dataloader=arguments.reset_dataloader,
        reset_optimizer=arguments.reset_optimizer,
    )


def check_batch(settings: TrainConfig, examples: int, world_size: int) -> None:
    """Raises ConfigError if the ranks can't be cut into pipelines or an epoch has not one batch."""
    if world_size % settings.pipeline_stages:
        raise ConfigError(
            f"pipeline_stages = {settings.pipeline_stages} does not divide the number of ranks ({world_size})"
        )
    replicas = world_size // settings.pipeline_stages
    batch = settings.micro_batch_size * settings.gradient_accumulation_steps * replicas
    if batch > examples:
        raise ConfigError(
            f"micro_batch_size_per_gpu: a global batch of {batch} is larger than the data set "
            f"({examples} examples)"
        )
    if settings.save_every_n_examples and settings.save_every_n_examples < batch:
        raise ConfigError(f"save_every_n_examples takes at least the global batch size ({batch})")


def _check_output_dir(path: Path) -> None:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"output_dir: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir: {existing} can't be written to")

"""The command line of train.py: everything that can be refused is refused here, before torch is imported.

Why: a wrong flag, key, folder or checkpoint costs one line and exit code 1 within a second, on every rank
alike, and leaves nothing behind. Flags are diffusion-pipe's.

Known gap: every rank prints the line.
"""

import argparse
import os
import sys
from collections.abc import Sequence
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


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after a training, a `save_quit` or `--cache_only`; 1 with one line for what can't be done."""
    arguments = parse(argv)
    try:
        job = prepare(arguments, int(os.environ.get("WORLD_SIZE", "1")))
        if arguments.master_port is not None:
            os.environ["MASTER_PORT"] = str(arguments.master_port)
        from dpiped.trainer import engine  # imports torch and deepspeed, which takes seconds

        return engine.run(job)
    except ConfigError as error:
        print(f"train.py: error: {error}", file=sys.stderr, flush=True)
        return 1


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with code 2 for unknown flags, as argparse does."""
    parser = argparse.ArgumentParser("train.py", description="Trains a small diffusion transformer.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the training TOML")
    parser.add_argument("--local_rank", type=int, default=0, help="added by the launcher")
    parser.add_argument("--deepspeed", action="store_true", help="accepted; DeepSpeed is always used")
    parser.add_argument("--master_port", type=int, help="the port that the ranks meet on")
    parser.add_argument(
        "--resume_from_checkpoint", nargs="?", const=True, metavar="NAME", help="default: the newest"
    )
    parser.add_argument("--reset_dataloader", action="store_true", help="resume: begin the epoch's data anew")
    parser.add_argument("--reset_optimizer", action="store_true", help="resume: load the weights only")
    parser.add_argument("--cache_only", action="store_true", help="decode the data set, then quit")
    for name in ("regenerate_cache", "trust_cache", "i_know_what_i_am_doing"):
        parser.add_argument(f"--{name}", action="store_true", help="accepted; nothing is cached on disk")
    parser.add_argument("--dump_dataset", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--test_sample", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--reset_optimizer_params", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


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

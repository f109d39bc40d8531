"""The caching phase: rank 0 fills the caches of all data sets, then every rank opens them.

Why: ranks that each decode the same pictures, or of which one fails alone while the others wait for it, are
how a start-up is lost. What rank 0 finds wrong is told to all, and all end with the same line.

Known gap: pictures are decoded on one machine only.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed
from deepspeed.utils import logger
from tqdm import tqdm  # type: ignore[import-untyped]

from dpiped.trainer import cache, examples
from dpiped.trainer.cache import Cached, Source
from dpiped.trainer.examples import Bucket
from dpiped.trainer.job import Job
from dpiped.trainer.output import say
from dpiped.trainer.table import ConfigError


@dataclass(frozen=True)
class Data:
    """The buckets to train on, and those of each evaluation set by its name."""

    train: list[Bucket]
    evaluation: dict[str, list[Bucket]]


def prepare(job: Job, main: bool) -> Data:
    """Fills and opens all caches; every rank has to call it. Raises ConfigError on all ranks alike."""
    everything = [source for sources in job.sources.values() for source in sources]
    with ExitStack() as stack:
        wrong = None
        if main:
            try:
                stack.enter_context(cache.locked(everything))
                _fill(job, everything)
            except ConfigError as error:
                wrong = str(error)
        wrong = told(wrong)
        if wrong is not None:
            raise ConfigError(wrong)
        opened = {name: [cache.load(each) for each in sources] for name, sources in job.sources.items()}
        torch.distributed.barrier()
    if main:
        _warn_unreadable(one for each in opened.values() for one in each)
        say("Building iteration order")
    found = {name: _buckets(job.sources[name], each) for name, each in opened.items()}
    return Data(found.pop(""), found)


def told(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def _fill(job: Job, sources: list[Source]) -> None:
    for source in sources:
        if source.scan is not None:
            for path in source.scan.without_caption:
                # The spelling is diffusion-pipe's; people and programs look for it.
                logger.warning(f"Cound not find caption for {path}. Skipping image.")
            if source.scan.not_images:
                logger.warning(f"Skipping files that are not images: {_names(source.scan.not_images)}")
    for source in sources:
        cache.cache_pictures(source, job.regenerate_cache, job.config.workers, _bar)
    for source in sources:
        cache.cache_captions(source, job.regenerate_cache)


def _bar(what: Iterable[Any], total: int) -> Iterator[Any]:
    yield from tqdm(what, total=total, file=sys.stderr)


def _warn_unreadable(opened: Iterable[Cached]) -> None:
    for each in opened:
        if each.unreadable:
            logger.warning(f"Skipping images that can't be read: {_names(each.unreadable)}")


def _names(paths: tuple[Path, ...]) -> str:
    return ", ".join(str(path) for path in paths)


def _buckets(sources: list[Source], opened: list[Cached]) -> list[Bucket]:
    return examples.gather([(source.directory, one) for source, one in zip(sources, opened, strict=True)])

"""The examples of a data set, sorted into buckets: which picture with which caption, how often in an epoch.

Why: a batch takes pictures of one size, from whatever directory. How often an example comes in an epoch is
decided here once and for all, so that every rank, and a resumed training, counts the same.

Known gap: with a broken `num_repeats` (1.5) the pictures shown once more are the same in every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dpiped.trainer.buckets import Size
from dpiped.trainer.cache import Cached
from dpiped.trainer.data_config import Directory
from dpiped.trainer.dataset import Pixels


@dataclass(frozen=True)
class Example:
    """A picture [height, width, 3], by the name of its file, with one of its captions, without prefix."""

    name: str
    pixels: Pixels
    caption: str
    directory: Directory


@dataclass
class Bucket:
    """All examples of one size, each as often as an epoch shows it."""

    size: Size
    examples: list[Example] = field(default_factory=list)


def gather(cached: Sequence[tuple[Directory, Cached]]) -> list[Bucket]:
    """The buckets of a data set, in order of size, from the caches of its directories."""
    buckets: dict[Size, Bucket] = {}
    for directory, one in cached:
        for size in one.rows:
            bucket = buckets.setdefault(size, Bucket(size))
            bucket.examples += _repeated(directory, one, size)
    return [buckets[size] for size in sorted(buckets)]


def _repeated(directory: Directory, one: Cached, size: Size) -> list[Example]:
    single = [
        Example(item.path.name, pixels, caption, directory)
        for pixels, item in zip(one.pixels[size], one.rows[size], strict=True)
        for caption in item.captions
    ] * max(directory.shuffles, 1)
    whole = int(directory.num_repeats)
    rest = round((directory.num_repeats - whole) * len(single))
    order = np.random.Generator(np.random.Philox(key=[len(single), 0])).permutation(len(single))
    return single * whole + [single[index] for index in sorted(order[:rest])]


def captions(buckets: Sequence[Bucket]) -> list[str]:
    """All captions with their prefixes, each once, in order."""
    return list(
        dict.fromkeys(
            example.directory.caption_prefix + example.caption if example.caption else ""
            for bucket in buckets
            for example in bucket.examples
        )
    )

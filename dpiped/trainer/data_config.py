"""The dataset TOML: where pictures and captions lie, and how they are used.

Why: as for the training TOML (`config.py`), a wrong value should cost a second and a line. Keys, meanings and
defaults are diffusion-pipe's; a key in a [[directory]] wins over the same key above.

Known gap: no masks, no control images, no archives (.tar).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpiped.trainer import buckets
from dpiped.trainer.buckets import Asked
from dpiped.trainer.table import ConfigError, Table, absolute, read_toml

MANY_RESOLUTIONS = 3
CACHE = Path("cache") / "dpiped"
"""Where a folder of pictures has its cache (`cache.py`)."""

# Keys of diffusion-pipe that ask for nothing here with these values, and for something else with others.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frame_buckets": ([1],),
    "shuffle_metadata": (True, False),
    "online_captions": (True, False),
}


@dataclass(frozen=True)
class Directory:
    """One [[directory]]. `num_repeats` counts how often an epoch shows each picture, in the mean."""

    path: Path
    asked: Asked
    num_repeats: float
    caption_prefix: str
    shuffle_tags: bool
    shuffles: int
    shuffle_delimiter: str
    skip_empty_caption: bool
    skip_unreadable: bool


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset TOML."""

    source: Path
    content: bytes
    directories: tuple[Directory, ...]

    @property
    def largest(self) -> float:
        """Side of a square as large as the largest bucket, in pixels."""
        return max(directory.asked.largest for directory in self.directories)


def load(source: Path, key: str = "dataset", *, many_resolutions: bool = False) -> DatasetConfig:
    """Reads a dataset TOML; `key` is what names it in errors. Raises ConfigError naming the key."""
    data, content = read_toml(source, key)
    directories = data.pop("directory", None)
    if not isinstance(directories, list) or not directories:
        raise ConfigError(f"{key}: {source} has no [[directory]]")
    ratio = Table({"subsample_ratio": data.pop("subsample_ratio", 1.0)}).number("subsample_ratio")
    if not 0 < ratio <= 1:
        raise ConfigError(f"subsample_ratio takes a number above 0 and up to 1, not {ratio:g}")
    found = [
        _directory(Table(entry, f"directory[{index}]."), data, ratio)
        for index, entry in enumerate(directories)
    ]
    for index, directory in enumerate(found):
        if len(directory.asked.sides) > MANY_RESOLUTIONS and not many_resolutions:
            raise ConfigError(
                f"directory[{index}].resolutions takes up to {MANY_RESOLUTIONS}, as every picture is "
                "trained at each of them; --i_know_what_i_am_doing allows more"
            )
    return DatasetConfig(source, content, tuple(found))


def _directory(own: Table, general: dict[str, Any], ratio: float) -> Directory:
    table = Table({**general, **own.rest()}, own.name)
    path = absolute(table, "path")
    if not path.is_dir():
        raise ConfigError(f"{own.name}path: there is no directory {path}")
    repeats = table.number("num_repeats", 1)
    if repeats == 0:
        raise table.refuse("num_repeats", repeats, "a number above 0")
    directory = Directory(
        path=path,
        asked=buckets.read(table),
        num_repeats=repeats * ratio,
        caption_prefix=table.text("caption_prefix", ""),
        shuffle_tags=table.flag("shuffle_tags", False),
        shuffles=table.integer("cache_shuffle_num", 0, least=0),
        shuffle_delimiter=table.text("cache_shuffle_delimiter", ", "),
        skip_empty_caption=table.flag("skip_empty_caption", True),
        skip_unreadable=table.flag("skip_unreadable", False),
    )
    if not directory.shuffle_delimiter:
        raise table.refuse("cache_shuffle_delimiter", "", "a string that is not empty")
    table.finish(_NEUTRAL)
    return directory

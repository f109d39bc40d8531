"""The data set: files found and paired with captions, then decoded into memory as one array.

Why: what is wrong with a folder (missing captions, stray files, odd images) is the most common reason of a
failed training. Finding is cheap and done before anything heavy; decoding names what it can't read and goes
on without it, and an image without a caption is dropped with a line instead of being trained as noise.

Known gap: all images are kept in memory, cropped to one square size; not recursive; no videos.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from dpiped.trainer.config import DatasetConfig, Directory
from dpiped.trainer.table import ConfigError

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
QUIET_SUFFIXES = frozenset((".txt", ".npz", ".json", ".parquet", ".bak", ".db"))
"""Skipped without a word: captions and what other tools leave behind."""
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """An image and its caption, prefix included. The caption is empty where the directory allows it."""

    path: Path
    caption: str
    directory: Directory


@dataclass(frozen=True)
class Scan:
    """What was found: `items` to be trained, images dropped for want of a caption, files passed over."""

    items: tuple[Item, ...]
    without_caption: tuple[Path, ...]
    not_images: tuple[Path, ...]


@dataclass(frozen=True)
class Images:
    """The decoded data set: `pixels` is [items, side, side, 3]; `items` are those that could be read."""

    items: tuple[Item, ...]
    pixels: Pixels
    unreadable: tuple[Path, ...]

    def examples(self) -> list[int]:
        """Indices of `items`, each as often as its directory repeats it: one epoch, unshuffled."""
        return repeated(self.items)


def repeated(items: tuple[Item, ...]) -> list[int]:
    """Indices of `items`, each `num_repeats` times."""
    return [index for index, item in enumerate(items) for _ in range(item.directory.num_repeats)]


def scan(config: DatasetConfig) -> Scan:
    """Lists all directories, in name order. Raises ConfigError for one without captioned images."""
    items: list[Item] = []
    bare: list[Path] = []
    other: list[Path] = []
    for index, directory in enumerate(config.directories):
        field = f"directory[{index}].path"
        found = list(_find(directory, field, bare, other))
        if not found:
            raise ConfigError(f"{field}: no image with a caption (same name, .txt) in {directory.path}")
        items += found
    return Scan(tuple(items), tuple(bare), tuple(other))


def _find(directory: Directory, field: str, bare: list[Path], other: list[Path]) -> Iterator[Item]:
    try:
        files = sorted(path for path in directory.path.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"{field}: {directory.path} can't be read: {error}") from error
    if any(path.name == "captions.json" for path in files):
        raise ConfigError(f"{field}: captions.json is not supported by this trainer yet; use .txt files")
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    other += [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES | QUIET_SUFFIXES]
    if not images:
        raise ConfigError(f"{field}: there are no images in {directory.path}")
    for path in images:
        caption = _caption(path.with_suffix(".txt"))
        if caption or not directory.skip_empty_caption:
            yield Item(path, (directory.caption_prefix + caption) if caption else "", directory)
        else:
            bare.append(path)


def _caption(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the caption {path} can't be read: {error}") from error


def decode(path: Path, side: int) -> Pixels:
    """One image as [side, side, 3], upright, transparency on white, resized and cropped to the middle.

    Raises OSError, SyntaxError, ValueError or DecompressionBombError for what is no image.
    """
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened)
        rgb = _flatten(upright)
    return np.asarray(ImageOps.fit(rgb, (side, side), Image.Resampling.LANCZOS))


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow would clip instead of scaling
        values = np.asarray(image, np.float32)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) / top * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def load(found: Scan, side: int, progress: Callable[[tuple[Item, ...]], Iterator[Item]]) -> Images:
    """Decodes all items; `progress` iterates over them and may show how far it is."""
    items: list[Item] = []
    pixels: list[Pixels] = []
    unreadable: list[Path] = []
    for item in progress(found.items):
        try:
            pixels.append(decode(item.path, side))
        except _UNREADABLE:
            unreadable.append(item.path)
        else:
            items.append(item)
    if not items:
        raise ConfigError(f"none of the {len(unreadable)} images can be read, {unreadable[0]} for one")
    return Images(tuple(items), np.stack(pixels), tuple(unreadable))

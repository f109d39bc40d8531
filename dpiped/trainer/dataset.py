"""Pictures and captions: found in a folder, paired, and decoded to the size of a bucket.

Why: what is wrong with a folder (missing captions, stray files, odd images) is the most common reason of a
failed training. Finding is cheap and done before anything heavy, and an image without a caption is dropped
with a line instead of being trained as noise.

Known gap: not recursive; no videos, no archives.
"""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from dpiped.trainer.buckets import Buckets, Size
from dpiped.trainer.data_config import Directory
from dpiped.trainer.table import ConfigError

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
QUIET_SUFFIXES = frozenset((".txt", ".npz", ".json", ".parquet", ".bak", ".db"))
"""Skipped without a word: captions and what other tools leave behind."""
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What decoders raise for broken files, as was seen with thousands of them."""
CAPTIONS_FILE = "captions.json"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """An image with its captions, without prefix; one caption is empty where the directory allows it."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """What was found in a folder: `items` to be trained, images without caption, files passed over."""

    items: tuple[Item, ...]
    without_caption: tuple[Path, ...] = ()
    not_images: tuple[Path, ...] = ()


def scan(directory: Directory, field: str) -> Scan:
    """Lists the folder in name order; `field` names it in errors.

    Raises ConfigError if there are no items."""
    try:
        files = sorted(path for path in directory.path.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"{field}: {directory.path} can't be read: {error}") from error
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise ConfigError(f"{field}: there are no images in {directory.path}")
    captions_of = _captions_of(directory.path / CAPTIONS_FILE)
    items, bare = [], []
    for path in images:
        captions = tuple(caption for caption in captions_of(path) if caption)
        if captions or not directory.skip_empty_caption:
            items.append(Item(path, captions or ("",)))
        else:
            bare.append(path)
    if not items:
        raise ConfigError(f"{field}: no image with a caption (same name, .txt) in {directory.path}")
    other = [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES | QUIET_SUFFIXES]
    return Scan(tuple(items), tuple(bare), tuple(other))


def _captions_of(file: Path) -> Callable[[Path], list[str]]:
    """Captions come from captions.json if there is one (file name → list), else from .txt files."""
    if not file.is_file():
        return lambda path: [_text(path.with_suffix(".txt"))]
    try:
        given = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the captions {file} can't be read: {error}") from error
    if not isinstance(given, dict) or not all(
        isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
        for captions in given.values()
    ):
        raise ConfigError(f"the captions {file} take a table of file names with lists of strings")
    return lambda path: [caption.strip() for caption in given.get(path.name, [])]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the caption {path} can't be read: {error}") from error


def decode(path: Path, buckets: Buckets) -> list[tuple[Size, Pixels]]:
    """One image for each of its buckets as [height, width, 3]: upright, transparency on white, cropped.

    Raises one of UNREADABLE for what is no image.
    """
    with Image.open(path) as opened:
        opened.load()
        rgb = _flatten(_upright(opened))
    return [
        (size, np.asarray(ImageOps.fit(rgb, size, Image.Resampling.LANCZOS)))
        for size in buckets.assign(*rgb.size)
    ]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except UNREADABLE:  # damaged camera data of a picture that is whole
        return image


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

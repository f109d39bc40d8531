"""Decoded pictures and captions on disk, in `cache/dpiped/` inside the data folder.

Why: decoding and resizing thousands of photographs takes minutes, which every start, resume and rank would
pay again, and memory that they may not fit into. The decoded pictures lie in plain files that are mapped
into memory. A fingerprint of what they were made from (names, sizes and times of change of the files, and
the buckets) decides whether they are still true. A cache is built aside and renamed, so it is whole or not
there, and two trainings on one folder take turns.

Known gap: one changed picture makes the whole folder's pictures be decoded anew; caches of buckets that are
no longer asked for stay until they are removed by hand.
"""

import fcntl
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dpiped.trainer import dataset
from dpiped.trainer.buckets import Buckets, Size
from dpiped.trainer.data_config import CACHE, Directory
from dpiped.trainer.dataset import Item, Pixels, Scan
from dpiped.trainer.output import say
from dpiped.trainer.table import ConfigError

_R = TypeVar("_R")
FORMAT = 1
Progress = Callable[[Iterable[Any], int], Iterator[Any]]
"""Passes on what it is given, so many in all, and may show how far it is."""


@dataclass(frozen=True)
class Source:
    """A directory with its buckets; `field` names it in errors. `scan` is None if the cache is trusted."""

    directory: Directory
    buckets: Buckets
    field: str
    scan: Scan | None

    @property
    def place(self) -> Path:
        """Where its cache is: a folder for each choice of buckets."""
        settings = [FORMAT, self.buckets.groups, self.directory.skip_empty_caption]
        return self.directory.path / CACHE / _digest(settings)[:12]


@dataclass(frozen=True)
class Cached:
    """A folder from its cache: `pixels[size]` is [rows, height, width, 3], `rows[size]` their items."""

    scan: Scan
    unreadable: tuple[Path, ...]
    pixels: Mapping[Size, Pixels]
    rows: dict[Size, list[Item]]


def is_there(source: Source) -> bool:
    """Is there a whole cache, of whatever age?"""
    return _pictures(source.place) is not None and _read(source.place / "text.json") is not None


@contextmanager
def locked(sources: Iterable[Source]) -> Iterator[None]:
    """Keeps other trainings from changing these caches. Raises ConfigError if they can't be written to."""
    with ExitStack() as stack:
        # A folder may be reached by several names; it is locked once, and all lock in the same order.
        for place, source in sorted({source.place.resolve(): source for source in sources}.items()):
            with writing(source):
                place.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((place / "lock").open("w"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say(f"Waiting for another training that caches {source.directory.path}")
                    fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def writing(source: Source) -> Iterator[None]:
    """What can't be written becomes a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{source.field}: the cache {source.place} can't be written: {error}") from error


def cache_pictures(source: Source, regenerate: bool, workers: int, progress: Progress) -> None:
    """Decodes the folder's pictures unless that was done. Raises ConfigError for unreadable pictures."""
    say(f"caching latents: {source.directory.path}")
    found = _pictures(source.place)
    scan = source.scan
    if scan is None:
        if found is not None:
            _say_existing(found, len(found["items"]))
        return
    with writing(source):
        fingerprint = _digest([_stamp(item.path) for item in scan.items])
    stale = regenerate or found is None or found["fingerprint"] != fingerprint
    if found is not None and not stale and (source.directory.skip_unreadable or not found["unreadable"]):
        _say_existing(found, len(scan.items))
        return
    _say_new(found, fingerprint)
    aside = source.place / "latents.new"
    try:
        with writing(source):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            made = _decode_all(source, scan, aside, workers, progress)
            _write(aside / "index.json", {"format": FORMAT, "fingerprint": fingerprint, **made})
            shutil.rmtree(source.place / "latents", ignore_errors=True)
            aside.replace(source.place / "latents")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def cache_captions(source: Source, regenerate: bool) -> None:
    """Writes down the folder's captions unless they are as they were. Raises ConfigError."""
    say(f"caching text embeddings: {source.directory.path}")
    found, scan = _read(source.place / "text.json"), source.scan
    if scan is None:
        if found is not None:
            _say_existing(found, len(found["captions"]))
        return
    text = {
        "captions": {item.path.name: item.captions for item in scan.items},
        "without_caption": [path.name for path in scan.without_caption],
        "not_images": [path.name for path in scan.not_images],
    }
    fingerprint = _digest(text)
    if found is not None and found["fingerprint"] == fingerprint and not regenerate:
        _say_existing(found, len(scan.items))
        return
    _say_new(found, fingerprint)
    with writing(source):
        _write(source.place / "text.json", {"format": FORMAT, "fingerprint": fingerprint, **text})


def load(source: Source) -> Cached:
    """Opens a cache that was written or found good. Raises ConfigError if it is gone or not whole."""
    pictures, text = _pictures(source.place), _read(source.place / "text.json")
    if pictures is None or text is None:
        raise ConfigError(
            f"{source.field}: the cache {source.place} is not whole; --regenerate_cache makes it anew"
        )
    folder = source.directory.path
    captions = text["captions"]
    items = {name: Item(folder / name, tuple(captions.get(name, ("",)))) for name in pictures["items"]}
    scan = Scan(
        tuple(items.values()),
        tuple(folder / name for name in text["without_caption"]),
        tuple(folder / name for name in text["not_images"]),
    )
    pixels, rows = {}, {}
    for name, members in pictures["sizes"].items():
        width, height = size = _size(name)
        file = source.place / "latents" / name
        pixels[size] = np.memmap(file, np.uint8, "r", shape=(len(members), height, width, 3))
        rows[size] = [items[member] for member in members]
    return Cached(scan, tuple(folder / name for name in pictures["unreadable"]), pixels, rows)


def _decode_all(source: Source, scan: Scan, aside: Path, workers: int, progress: Progress) -> dict[str, Any]:
    """Writes a file for each size, a picture after the other; returns what is in them."""

    def decoded(item: Item) -> list[tuple[Size, Pixels]] | None:
        try:
            return dataset.decode(item.path, source.buckets)
        except dataset.UNREADABLE:
            return None

    sizes: dict[str, list[str]] = {}
    unreadable: list[str] = []
    with ExitStack() as files, ThreadPoolExecutor(workers) as pool:
        opened: dict[str, Any] = {}
        results = _in_order(pool, decoded, scan.items, 4 * workers)
        for item, pictures in progress(results, len(scan.items)):
            if pictures is None:
                unreadable.append(item.path.name)
            for (width, height), pixels in pictures or ():
                name = f"{width}x{height}"
                if name not in opened:
                    opened[name] = files.enter_context((aside / name).open("wb"))
                opened[name].write(pixels.tobytes())
                sizes.setdefault(name, []).append(item.path.name)
    if unreadable and (not source.directory.skip_unreadable or not sizes):
        raise ConfigError(
            f"{source.field}: {len(unreadable)} of {len(scan.items)} images in "
            f"{source.directory.path} can't be read: "
            f"{', '.join(unreadable[:20])} (skip_unreadable = true would go on without them)"
        )
    dropped = set(unreadable)
    items = [item.path.name for item in scan.items if item.path.name not in dropped]
    return {"items": items, "sizes": sizes, "unreadable": unreadable}


def _in_order(
    pool: Executor, work: Callable[[Item], _R], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, _R]]:
    """Items with what became of them, at most so many being worked on: the rest of a large set can wait."""
    waiting: deque[tuple[Item, Future[_R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= ahead:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    finally:
        for _, result in waiting:
            result.cancel()


def _pictures(place: Path) -> dict[str, Any] | None:
    """What the picture cache holds, if it is whole."""
    found = _read(place / "latents" / "index.json")
    for name, members in (found or {}).get("sizes", {}).items():
        width, height = _size(name)
        file = place / "latents" / name
        if not file.is_file() or file.stat().st_size != len(members) * width * height * 3:
            return None
    return found


def _size(name: str) -> Size:
    width, height = name.split("x")
    return int(width), int(height)


def _read(path: Path) -> dict[str, Any] | None:
    """A file of the cache; None if there is none, or none of ours."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def _write(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(content), "utf-8")
    aside.replace(path)


def _stamp(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return path.name, state.st_size, state.st_mtime_ns


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _say_existing(found: dict[str, Any], length: int) -> None:
    say("[CACHE] Initializing")
    say(f"[CACHE] Existing cache has fingerprint {found['fingerprint']}")
    say(f"[CACHE] Existing cache length: {length}")


def _say_new(found: dict[str, Any] | None, fingerprint: str) -> None:
    say("[CACHE] Initializing")
    if found is not None:
        say("[CACHE] Fingerprint changed, deleting existing cache files")
    say(f"[CACHE] Storing new fingerprint: {fingerprint}")
    say("[CACHE] Existing cache length: 0")

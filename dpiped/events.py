"""TensorBoard's directory: one link per trainer, and every run's event files under the run's name.

Why: train.py writes its events to `<output_dir>/<time>`, while TensorBoard watches another directory;
so its page stays empty. Here each run gets a real folder named after it, with a link to each of its
event files. (Links to files, not to the folder: scanners that do not follow directory links find them
too, and checkpoints beside the events are not walked through.)

A real directory or file that stands where a link should be is never removed.

Known gap: links of runs whose files were deleted stay behind, dangling.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from dpiped.settings import Settings

OURS = "diffpipe"
EVENTS = "events.out.tfevents."
DEPTH = 3


def prepare_root(settings: Settings) -> list[str]:
    """Makes the root directory and its links. Returns what could not be done, as sentences."""
    problems = []
    root = settings.tensorboard_root
    for directory in (root, settings.logdir):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problems.append(f"TensorBoard: {directory} can't be made: {error.strerror}")
    for name, target in (settings.tensorboard_sources | {OURS: settings.logdir}).items():
        if problem := _link(root / name, target):
            problems.append(problem)
    return problems


def run_folder(settings: Settings, run: str) -> Path:
    """Where a run's links go: below our link, or below the real directory that stands in its place."""
    ours = settings.tensorboard_root / OURS
    base = ours if ours.is_dir() and not ours.is_symlink() else settings.logdir
    return base / run


def link_events(train_dir: Path, folder: Path) -> int:
    """Links the event files of `train_dir` not linked yet. The number of new links. Raises OSError."""
    made = 0
    for file in _event_files(train_dir):
        link = folder / file.relative_to(train_dir)
        if not link.is_symlink() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
            made += 1
    return made


def _event_files(directory: Path, depth: int = DEPTH) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and depth > 1 and not entry.name.startswith("global_step"):
            yield from _event_files(Path(entry.path), depth - 1)
        elif entry.name.startswith(EVENTS):
            yield Path(entry.path)


def _link(link: Path, target: Path) -> str | None:
    """Makes `link` lead to `target`. Returns the reason if it can't."""
    if link.exists() and not link.is_symlink():
        if link.resolve() == target.resolve():
            return None
        return (
            f"TensorBoard: {link} is a real directory or file, so it was not replaced by a link to {target}"
        )
    try:
        if link.is_symlink():
            if link.readlink() == target:
                return None
            link.unlink()
        link.symlink_to(target)
    except OSError as error:
        return f"TensorBoard: {link} can't be linked to {target}: {error.strerror}"
    return None

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

from dpiped import beneath
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
    # The folders above are the administrator's, and may be links; the run's own is none.
    own = folder.parent.resolve() / folder.name
    made = 0
    with beneath.directory(train_dir) as top:
        for file in _event_files(top):
            if not os.path.lexists(own / file) and beneath.link(own / file, train_dir / file):
                made += 1
    return made


def _event_files(directory: int, depth: int = DEPTH) -> Iterator[Path]:
    """Relative to it. A link or a pipe of such a name is none."""
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and depth > 1 and not entry.name.startswith("global_step"):
            with beneath.subdirectory(directory, entry.name) as below:
                yield from (Path(entry.name) / file for file in _event_files(below, depth - 1))
        elif entry.name.startswith(EVENTS) and entry.is_file(follow_symlinks=False):
            yield Path(entry.name)


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

"""The directory that train.py makes: found, looked into for checkpoints, cleared of signal files.

Why: train.py names it after the second it is made in and never prints that name. Taking "the newest
folder in output_dir" is how a resume starts from another run's checkpoint or from none. Here the
directory is recognised by its copy of our snapshot, and a checkpoint counts only when it is whole.

Known gap: files are checked for being there and not empty, not for their content.
"""

import re
import time
from pathlib import Path

from dpiped.configs import is_marked
from dpiped.errors import InvalidInput
from dpiped.rundir import TRAINING_TOML

_TAG = re.compile(r"[\w.-]{1,200}")
_STEP_TAG = re.compile(r"global_step(\d{1,15})", re.ASCII)
SIGNAL_FILES = ("save", "save_quit")


def find_train_dir(output_dir: Path, run: str, since: float) -> Path | None:
    """The directory below `output_dir`, changed after `since` (Unix time), that holds this run's snapshot."""
    try:
        entries = list(output_dir.iterdir())
    except OSError:
        return None
    candidates = (path for path in entries if _changed(path) >= since)
    return next((path for path in candidates if is_marked(path / TRAINING_TOML, run)), None)


def _changed(path: Path) -> float:
    """When the entry was changed last; never, for one that can't be looked at (a dangling link)."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("-inf")


def latest_tag(train_dir: Path) -> str | None:
    """What DeepSpeed's `latest` names; None if there is none, or if it is no checkpoint's name."""
    try:
        text = (train_dir / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if _TAG.fullmatch(text) else None


def step_of(tag: str | None) -> int | None:
    """The step in DeepSpeed's own kind of tag."""
    found = _STEP_TAG.fullmatch(tag or "")
    return int(found[1]) if found else None


def age(train_dir: Path) -> float | None:
    """Seconds since `latest` was written."""
    try:
        return max(time.time() - (train_dir / "latest").stat().st_mtime, 0.0)
    except OSError:
        return None


def complete_checkpoint(train_dir: Path) -> str | None:
    """The tag that `latest` names, if its folder is whole; that is the one DeepSpeed would load."""
    tag = latest_tag(train_dir)
    if tag is None:
        return None
    try:
        files = [path for path in (train_dir / tag).iterdir() if path.is_file()]
        whole = all(path.stat().st_size > 0 for path in files)
    except OSError:
        return None
    return tag if whole and any(path.name.startswith("mp_rank_") for path in files) else None


def require_checkpoint(train_dir: Path, field: str) -> str:
    """The tag to resume from. Raises InvalidInput that says what is wrong with the folder."""
    if not train_dir.is_dir():
        raise InvalidInput(
            f"{field}: there is no folder {train_dir.name!a}", field=field, hint=f"looked for {train_dir}"
        )
    tag = complete_checkpoint(train_dir)
    if tag is None:
        named = latest_tag(train_dir)
        what = f"`latest` names {named}, which is not whole" if named else "it holds no checkpoint"
        raise InvalidInput(
            f"{field}: {train_dir.name} can't be resumed: {what}",
            field=field,
            hint="set checkpoint_every_n_minutes or use `dpipectl save`; a run without one starts anew",
        )
    return tag


def newest_resumable(output_dir: Path) -> Path | None:
    """The folder in `output_dir` whose whole checkpoint was written last; other entries don't count."""
    try:
        folders = [path for path in output_dir.iterdir() if path.is_dir() and complete_checkpoint(path)]
    except OSError:
        return None
    return max(folders, key=lambda path: (path / "latest").stat().st_mtime, default=None)


def clear_signal_files(train_dir: Path) -> None:
    """A `save_quit` that was never read would end the next resume at its first step. Raises OSError."""
    for name in SIGNAL_FILES:
        (train_dir / name).unlink(missing_ok=True)

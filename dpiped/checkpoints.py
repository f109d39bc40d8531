"""The directory that train.py makes: found, looked into for checkpoints, cleared of signal files.

Why: train.py names it after the second it is made in and never prints that name. Taking "the newest
folder in output_dir" is how a resume starts from another run's checkpoint or from none. Here the
directory is recognised by its copy of our snapshot, and a checkpoint counts only when it is whole
(wholeness.py).

train.py loads what DeepSpeed's `latest` names. Where that is not whole, the newest whole one before it is
found. "Newest" goes by the step in the name, and no further than what `latest` names. Not by time: a copy
on another machine, which is where cut-off files come from, gives all folders the time of the copying, in
any order. The steps of one directory never begin anew, since a resume takes the count from the checkpoint.
Only somebody who goes back by hand leaves folders of higher steps behind, of a training that was given up;
`latest`, which is written with every checkpoint, names a lower one then.

Known gap: after such a step back, a folder of the training given up that has a lower step than `latest` may
be taken, if what `latest` names is spoilt as well.
"""

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from dpiped import beneath, wholeness
from dpiped.configs import is_marked
from dpiped.errors import InvalidInput
from dpiped.rundir import TRAINING_TOML

LATEST = "latest"
_TAG = re.compile(r"(?!\.{1,2}$)[\w.-]{1,200}")
_STEP_TAG = re.compile(r"global_step(\d{1,15})", re.ASCII)
SIGNAL_FILES = ("save", "save_quit")


class Found(Struct, frozen=True):
    """The whole checkpoint to go on from, if there is one.

    `why` says what is wrong with the one that `latest` names; None if it is that one.
    """

    tag: str | None
    why: str | None = None


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
        return _latest(train_dir)[0]
    except (OSError, RuntimeError):
        return None


def _latest(train_dir: Path) -> tuple[str | None, str]:
    """What `latest` names, or why it names nothing. Raises OSError if it is there and can't be read."""
    try:
        # A link could lead to a file whose content is nobody's business, a pipe would keep us waiting.
        text = beneath.read(train_dir.resolve() / LATEST, 1024)
    except FileNotFoundError:
        return None, "`latest` is missing"
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL):
            return None, "`latest` is no file"
        raise
    name = text.decode(errors="replace").strip()
    if not name:
        return None, "`latest` is empty"
    return (name, "") if _TAG.fullmatch(name) else (None, "`latest` does not hold a checkpoint's name")


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
    try:
        return tag if tag is not None and _flaw(train_dir, tag, 1, _tags(train_dir)) is None else None
    except OSError:
        return None


def look(train_dir: Path, stages: int = 1) -> Found:
    """The newest whole checkpoint, of at least `stages` pipeline stages. Raises OSError if it can't look."""
    named, why = _latest(train_dir)
    tags = _tags(train_dir)
    if named is not None:
        wrong = _flaw(train_dir, named, stages, tags)
        if wrong is None:
            return Found(named)
        why = f"`latest` names {named}, which is not whole ({wrong})"
    elif not tags:
        return Found(None, "it holds no checkpoint")
    limit = step_of(named)
    for step, tag in sorted(tags, reverse=True):
        if tag != named and (limit is None or step < limit) and _flaw(train_dir, tag, stages, tags) is None:
            return Found(tag, why)
    return Found(None, f"{why}, and no other checkpoint in it is whole" if len(tags) > 1 else why)


def seen(train_dir: Path | None) -> Found | None:
    """What is there; None if the directory is not known, or can't be looked at."""
    try:
        return look(train_dir) if train_dir else None
    except (OSError, RuntimeError):
        return None


def newest_whole(train_dir: Path) -> str | None:
    """The tag of the newest whole checkpoint, for showing it; None also if it can't be looked at."""
    found = seen(train_dir)
    return found.tag if found else None


def _tags(train_dir: Path) -> list[tuple[int, str]]:
    """(step, name) of every folder that is named like a checkpoint; links to one count."""
    with os.scandir(train_dir) as entries:
        found = [(step_of(entry.name), entry.name) for entry in entries if entry.is_dir()]
    return [(step, name) for step, name in found if step is not None]


def _flaw(train_dir: Path, tag: str, stages: int, tags: list[tuple[int, str]]) -> str | None:
    """What is wrong with that checkpoint, one of `tags`. Raises OSError.

    The model's layers stay the same, so the checkpoint before it, else the one after it, tells them.
    """
    step = step_of(tag)
    others = [each for each in tags if each[1] != tag]
    before = [each for each in others if step is not None and each[0] < step]
    beside = max(before) if before else min(others, default=None)
    expected = wholeness.layers(train_dir / beside[1]) if beside else frozenset()
    return wholeness.flaw(train_dir / tag, stages, expected)


def require_checkpoint(train_dir: Path, field: str, stages: int = 1) -> Found:
    """What to resume from; there is a tag. Raises InvalidInput that says what is wrong with the folder."""
    try:
        if not train_dir.is_dir():
            raise InvalidInput(
                f"{field}: there is no folder {train_dir.name!a}", field=field, hint=f"looked for {train_dir}"
            )
        found = look(train_dir, stages)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else train_dir.name
        raise InvalidInput(
            f"{field}: {train_dir.name} can't be resumed: {name} can't be read: {error.strerror}",
            field=field,
            hint="the daemon and the training run as the same user, who has to be allowed to read it",
        ) from error
    if found.tag is None:
        raise InvalidInput(
            f"{field}: {train_dir.name} can't be resumed: {found.why}",
            field=field,
            hint="set checkpoint_every_n_minutes or use `dpipectl save`; a run without one starts anew",
        )
    return found


def newest_resumable(output_dir: Path, stages: int = 1) -> tuple[Path | None, tuple[Path, ...]]:
    """The folder in `output_dir` with a whole checkpoint that was written to last; and those passed over.

    Passed over is one that was written to later, if no checkpoint in it is whole.
    """
    passed: list[Path] = []
    for folder in _by_time(output_dir):
        try:
            if look(folder, stages).tag is not None:
                return folder, tuple(passed)
            broken = bool(_tags(folder))
        except OSError:
            broken = True
        passed += [folder] if broken else []
    return None, tuple(passed)


def _by_time(output_dir: Path) -> Iterator[Path]:
    """Its folders that hold `latest` or checkpoints, the one that was written to last first."""
    try:
        folders = [path for path in output_dir.iterdir() if path.is_dir()]
    except OSError:
        return
    times = {path: _written(path) for path in folders}
    yield from sorted(
        (path for path in folders if times[path] > 0), key=lambda path: times[path], reverse=True
    )


def _written(folder: Path) -> float:
    """When the last checkpoint was written; 0 for a folder without one."""
    try:
        return (folder / LATEST).stat().st_mtime
    except OSError:
        pass
    try:
        return max(((folder / name).stat().st_mtime for _, name in _tags(folder)), default=0.0)
    except OSError:
        return 0.0


def clear_signal_files(train_dir: Path) -> None:
    """A `save_quit` that was never read would end the next resume at its first step. Raises OSError."""
    for name in SIGNAL_FILES:
        beneath.remove(train_dir / name)

"""A directory of train.py, made ready to go on in: what would end the new run is taken out of its way.

Why: three things that a run leaves behind end the next one. A saved model that was cut off leaves
`epochN/tmp` or `stepN/tmp`, and train.py dies of FileExistsError when it reaches that name again, hours
later. A `save_quit` that nobody read ends it at its first step. And train.py loads what `latest` names,
whole or not.

Removed are only these `tmp`, whose content train.py removes itself when a save ends well, and the signal
files. A link is never followed: of a linked `tmp` the link is removed, and a linked `epochN` is not looked
into.

Known gap: none.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dpiped import beneath, checkpoints
from dpiped.errors import InvalidInput

FIELD = "resume_from_checkpoint"
_SAVED = re.compile(r"(epoch|step)\d+", re.ASCII)
_ASIDE = "tmp"


def leftovers(train_dir: Path) -> list[str]:
    """What `clear` would remove, by name below `train_dir`. Raises InvalidInput if it can't be looked at."""
    try:
        signals = [name for name in checkpoints.SIGNAL_FILES if _is_file(train_dir / name)]
        return [*sorted(_cut_off(train_dir)), *signals]
    except OSError as error:
        raise _refusal(train_dir, "it can't be looked through", error) from error


def clear(train_dir: Path) -> tuple[str, ...]:
    """Removes them, and says so. Raises InvalidInput for one that can't be removed."""
    found = leftovers(train_dir)
    for name in found:
        try:
            _remove(train_dir / name)
        except OSError as error:
            raise _refusal(train_dir, f"{name} of the last run can't be removed", error) from error
    saves = [name for name in found if name not in checkpoints.SIGNAL_FILES]
    return (f"removed {', '.join(saves)} of {train_dir.name}: a save that was cut off",) if saves else ()


def name_in_latest(train_dir: Path, tag: str) -> None:
    """Makes `latest` name that checkpoint, in one step. Raises InvalidInput; then it is as it was."""
    try:
        beneath.replace(train_dir / checkpoints.LATEST, tag.encode(), 0o644)
    except OSError as error:
        raise _refusal(train_dir, "`latest` can't be written", error) from error


def _is_file(path: Path) -> bool:
    """A file or a link; train.py takes no notice of a folder."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def _cut_off(train_dir: Path) -> Iterator[str]:
    with os.scandir(train_dir) as entries:
        for entry in entries:
            saved = _SAVED.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            if saved and os.path.lexists(train_dir / entry.name / _ASIDE):
                yield f"{entry.name}/{_ASIDE}"


def _remove(path: Path) -> None:
    """A folder with all in it, a file, or a link as such. A folder `save` is none of train.py's."""
    if path.is_dir() and not path.is_symlink() and path.name == _ASIDE:
        with beneath.directory(path.parent) as folder:
            shutil.rmtree(path.name, dir_fd=folder)
    else:
        beneath.remove(path)


def _refusal(train_dir: Path, what: str, error: OSError) -> InvalidInput:
    return InvalidInput(f"{train_dir.name} can't be resumed: {what}: {error.strerror}", field=FIELD)

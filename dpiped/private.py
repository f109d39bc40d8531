"""Directories that are ours alone: made so whatever the umask is, and looked at where they exist already.

Why: a run directory says what a resume starts, with which variables. Whoever may put one there, or replace
one, has the daemon start what he likes. So the state directory is made 0700; of one that is open to others
the write access is taken away, and where that can't be done the daemon does not start.

On rented machines the workspace may be a network volume that keeps no modes and no owners: everything is 0777
there, whatever is asked for. It would be no help to refuse that; it is said in `status`.

Known gap: a directory above that all may write to, without the sticky bit, is said in the log only:
/workspace is often so, on machines with one user.
"""

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from dpiped.errors import SettingsError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

log = logging.getLogger("dpiped")


def make(directory: Path) -> bool:
    """Makes it with mode 0700, and what is missing above it so that only we may write. Raises OSError.

    True if it was not there.
    """
    if directory.is_dir():
        return False
    for parent in reversed(directory.parents):
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o755)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir():
            raise
        return False
    return True


def keeps_modes(directory: Path) -> bool:
    """Does its file system give a new directory our user and the mode asked for? Raises OSError."""
    made = tempfile.mkdtemp(prefix=".dpiped-", dir=directory)
    try:
        found = os.stat(made)  # noqa: PTH116 - what mkdtemp gives is a text
    finally:
        Path(made).rmdir()
    return found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == stat.S_IRWXU


def secure(directory: Path, field: str, keeps_modes: Callable[[Path], bool] = keeps_modes) -> str | None:
    """Sees to it that nobody else can put something there. Raises SettingsError, or OSError.

    Returns what a person should know where the file system does not allow it.
    """
    wrong = _wrong(directory)
    if wrong is None:
        return None
    taken = _take_from_others(directory)
    wrong = _wrong(directory)
    if wrong is None:
        log.info("%s could be written to by others; not any more", directory)
        return None
    # A mode that was taken and is not there tells it, also where there is no room to try another one.
    if (taken and _is_ours(directory.stat())) or not keeps_modes(directory):
        return (
            f"{field}: the file system of {directory} keeps no modes or owners, so other users of this "
            "machine could read and change the runs; that is no harm where there are none"
        )
    raise SettingsError(
        f"{field}: {directory} {wrong}, so others could replace the runs in it",
        field=field,
        hint=f"use a directory of your own with mode 0700, or: chown {os.geteuid()} {directory}; "
        f"chmod go-w {directory}",
    )


def _take_from_others(directory: Path) -> bool:
    """Did the file system say that it has taken their write access away?"""
    try:
        directory.chmod(stat.S_IMODE(directory.stat().st_mode) & ~OTHERS_WRITE)
    except OSError:
        return False
    return True


def open_above(directory: Path) -> Path | None:
    """The nearest directory above in which anybody may exchange what leads to this one."""
    for parent in directory.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return parent
    return None


def _wrong(directory: Path) -> str | None:
    """What lets others write: another owner, or the mode. The administrator may anyway."""
    found = directory.stat()
    if not _is_ours(found):
        return f"belongs to another user ({found.st_uid})"
    if found.st_mode & OTHERS_WRITE:
        return f"may be written to by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())

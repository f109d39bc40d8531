"""Locks by which one daemon is the only one: files that the kernel unlocks with the process.

Why: two daemons on one state directory would adopt each other's runs, and two on one socket would steal
each other's clients. A lock whose file was deleted keeps nobody out any more, so it can be renewed.

Known gap: they do not work across machines that share a network file system without flock.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from dpiped.errors import AlreadyOwned


class Lock:
    """Held from the moment it is made. `variable` is what a user would change to get another file.

    Raises AlreadyOwned, with the holder's pid.
    """

    def __init__(self, path: Path, variable: str) -> None:
        self._path = path
        self._variable = variable
        self._handle = _take(path, variable)

    def renew(self) -> None:
        """Takes the file anew if it was deleted or replaced. Raises AlreadyOwned."""
        mine = os.fstat(self._handle)
        with contextlib.suppress(OSError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                return
        again = _take(self._path, self._variable)
        os.close(self._handle)
        self._handle = again

    def release(self) -> None:
        os.close(self._handle)


def _take(path: Path, variable: str) -> int:
    try:
        handle = _open(path)
    except OSError as error:
        raise AlreadyOwned(f"{path} can't be opened: {error.strerror}", field=variable) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        os.close(handle)
        raise AlreadyOwned(
            f"another dpiped (pid {holder or 'unknown'}) holds {path.parent}",
            field=variable,
            hint=f"stop it, or give this one another {variable}",
        ) from error
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _open(path: Path) -> int:
    """On a disk that has become read-only, a run that goes on still has to be followed. Raises OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

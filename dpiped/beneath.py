"""Files opened where a checked path leads, and nowhere else.

Why: between the check of a path (`paths.py`) and its use somebody may put a link in the place of one of its
directories, and a daemon that runs as root would read or write what the link leads to. So what was checked is
resolved first, links and all; and then every directory on the way is opened from the one above it, and none
of them, nor the file itself, may be a link. What comes too late is refused, not followed.

What is read is a file of limited size: a pipe would keep the daemon waiting, a model would fill its memory.

Known gap: a directory that is moved meanwhile is the same directory elsewhere. What train.py opens, it opens
by name.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_DIRECTORY | _NO_LINK
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _NO_LINK


@contextlib.contextmanager
def directory(path: Path, make: bool = False, listed: bool = True) -> Iterator[int]:
    """A descriptor of the directory at a resolved path. `make`: and of what is missing on the way.

    Not `listed`: only files in it are opened, which is allowed in more directories. Raises OSError, ELOOP
    for a link.
    """
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} is not resolved")
    handle = os.open(path.anchor, _STEP)
    try:
        for number, name in enumerate(path.parts[1:], 2):
            below = _enter(handle, name, _FOLDER if listed and number == len(path.parts) else _STEP, make)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)


def subdirectory(folder: int, name: str) -> contextlib.AbstractContextManager[int]:
    """The same for one that is right below. Raises OSError."""

    @contextlib.contextmanager
    def opened() -> Iterator[int]:
        handle = _enter(folder, name, _FOLDER, make=False)
        try:
            yield handle
        finally:
            os.close(handle)

    return opened()


def read(path: Path, limit: int) -> bytes:
    """At most so many bytes of the file at a resolved path. Raises OSError, also for what is no file."""
    with directory(path.parent, listed=False) as folder:
        return read_in(folder, path.name, limit)


def read_in(folder: int, name: str, limit: int) -> bytes:
    """The same for a file that is right below."""
    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | _NO_LINK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a file", name)
    with os.fdopen(handle, "rb") as file:
        return file.read(limit)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Writes the file at a resolved path in one step, and makes its folder. Raises OSError."""
    with directory(path.parent, make=True) as folder:
        replace_in(folder, path.name, data, mode)


def replace_in(folder: int, name: str, data: bytes, mode: int) -> None:
    """The same for a file that is right below."""
    temporary = f".{name[:200]}.{os.urandom(6).hex()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(handle, mode)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems can't do that to a directory; the file is there all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def overwrite_in(folder: int, name: str, data: bytes, filler: bytes = b"\n") -> None:
    """In the room that the file has, filled up; for a disk that is full. Raises OSError."""
    handle = os.open(name, os.O_WRONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.write(filler * max(os.fstat(handle).st_size - len(data), 0))
        file.flush()
        os.fsync(handle)


def touch(path: Path) -> None:
    """An empty file at a resolved path, or the one that is there. Raises OSError."""
    with directory(path.parent, listed=False) as folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | _NO_LINK
        os.close(os.open(path.name, flags, 0o666, dir_fd=folder))


def remove(path: Path) -> None:
    """Removes the file, or the link, at a resolved path, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), directory(path.parent, listed=False) as folder:
        os.unlink(path.name, dir_fd=folder)


def link(path: Path, target: Path) -> bool:
    """Makes a link at a resolved path, and its folder. False if something stands there. Raises OSError."""
    with directory(path.parent, make=True, listed=False) as folder:
        try:
            os.symlink(target, path.name, dir_fd=folder)
        except FileExistsError:
            return False
    return True


def _enter(folder: int, name: str, flags: int, make: bool) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
        return _enter(folder, name, flags, make=False)
    except NotADirectoryError:
        # What Linux says of a link here is no help.
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, "there is a link in its way now", name) from None
        raise

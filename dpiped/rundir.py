"""The run directory: what is written about a run, by whom, and how it is read back.

Why: the daemon may be killed at any moment, and whatever it knew is gone then. So all that matters
stands in small files, each with one writer, each replaced in one step (write aside, fsync, rename): a
reader sees the whole file or none. The log is the training's own output file.

    spec.json             daemon   what is launched and why
    training_config.toml  daemon   exactly what train.py is given (with our mark in a comment); a key is taken
                                   out of it once the ranks have read it
    dataset_config.toml   daemon   the data set description it points to
    started.json          runner   the runner's and the child's identity
    output.log            the training itself
    train_dir.json        daemon   the directory that train.py made, once recognised
    stop.json             daemon   how a stop was asked for; rewritten when a stronger one is asked for
    exit.json             runner   how it ended; the last thing written
    outcome.json          daemon   the outcome concluded from all of these, so that a list needs no log
    .NAME.N.reserved      daemon   room for a record to come; becomes it, or is removed at the end
    .NAME.*               both     a file that is being written, or was when its writer was killed

A checkpoint that fills the disk must not take the record of the run's end with it: room for the
records to come is taken when the directory is made.

Known gap: nothing is pruned; a year of runs stays on disk. On a file system that copies on write (btrfs,
zfs) the room taken does not help.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from dpiped.errors import RunDamaged
from dpiped.form import Form
from dpiped.messages import How, OutcomeName

LOG = "output.log"
TRAINING_TOML = "training_config.toml"
DATASET_TOML = "dataset_config.toml"
RUNNER_LOG = "runner.log"
LARGEST_RECORD = 16 << 20
"""Bytes. A record that is larger was written by somebody else."""

Number: TypeAlias = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
"""What every reader of JSON and MessagePack can take."""


def _refuse_nul(*paths: str | None) -> None:
    """No file can have such a name, and Python raises something else than OSError for it."""
    if any("\0" in path for path in paths if path):
        raise ValueError("a path without NUL is expected")


class Identity(Struct, frozen=True):
    """A process that can't be mistaken for a later one with the same pid.

    `start` is field 22 of /proc/PID/stat (clock ticks since boot), `boot` the kernel's boot id.
    """

    pid: Number
    start: Number
    boot: str


class Spec(Struct, frozen=True, kw_only=True):
    """What the run is. `args` are those of `argv` that the user gave to train.py.

    `env` is what was added to the daemon's allow-list, secrets blanked out; `form` what the config was
    generated from, its key hidden. `holds_key`: the config is launched with a key in it. `checkpoint` is
    where a run goes on from.
    """

    run: str
    created: float
    argv: tuple[str, ...]
    num_gpus: Number | None = None
    args: tuple[str, ...] = ()
    cwd: str
    env: dict[str, str]
    source: str
    digest: str
    form: Form | None = None
    holds_key: bool = False
    output_dir: str
    epochs: Number | None = None
    max_steps: Number | None = None
    completes: bool = True
    service: bool = False
    resumed_from: str | None = None
    train_dir: str | None = None
    checkpoint: str | None = None
    master_port: Number = 0

    def __post_init__(self) -> None:
        _refuse_nul(self.cwd, self.output_dir, self.source, self.train_dir)


class Launched(Struct, frozen=True):
    """Written by the runner once the child runs."""

    runner: Identity
    child: Identity
    at: float


class TrainDir(Struct, frozen=True):
    """The directory that train.py made below `output_dir`."""

    path: str

    def __post_init__(self) -> None:
        _refuse_nul(self.path)


class StopAsked(Struct, frozen=True):
    """`deadline` is CLOCK_MONOTONIC of boot `boot`; `at` is Unix time, for people.

    `fault` is what the run hung of when the stop was asked for, `failing` what it was about to fail of.
    """

    how: How
    by: str
    at: float
    deadline: float
    boot: str
    fault: str | None = None
    failing: str | None = None


class Exit(Struct, frozen=True):
    """`code` or `signal` of the launcher; `error` if it never was; `leftovers` had to be ended after it."""

    code: Number | None
    signal: Number | None
    at: float
    error: str | None = None
    peak_memory_bytes: Number | None = None
    leftovers: Number = 0


class Concluded(Struct, frozen=True):
    """The daemon's conclusion, with the last figures that the log gave; `line` says what was wrong."""

    outcome: OutcomeName
    reason: str | None
    at: float | None
    step: Number | None = None
    epoch: Number | None = None
    loss: float | None = None
    checkpoint: str | None = None
    line: str | None = None


_FILES: dict[type[Struct], str] = {
    Spec: "spec.json",
    Launched: "started.json",
    TrainDir: "train_dir.json",
    StopAsked: "stop.json",
    Exit: "exit.json",
    Concluded: "outcome.json",
}
_WRITINGS: dict[type[Struct], int] = {Launched: 2, TrainDir: 1, StopAsked: 3, Exit: 1, Concluded: 1}
"""How often each record that is still to come may be written: a runner is replaced, a stop gets harder."""
_ROOM = 4096
"""Bytes reserved for each: one block, more than any of them needs."""
_Record = TypeVar("_Record", bound=Struct)


def read(run_dir: Path | str, kind: type[_Record]) -> _Record | None:
    """The record of that kind, or None if it was not written. Raises RunDamaged if it can't be read."""
    name = _FILES[kind]
    path = f"{run_dir}/{name}"
    try:
        return msgspec.json.decode(_content(path, name), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise RunDamaged(f"{path} can't be read: {error}", field=name) from error


def _content(path: str, name: str) -> bytes:
    """Whatever stands there, it is neither waited for nor read beyond measure. Raises OSError."""
    # Without O_NONBLOCK the opening of a pipe would wait for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} is no file")
        # A buffer for the largest would be mapped anew for each record of a list.
        data = file.read(min(status.st_size, LARGEST_RECORD) + 1)
    if len(data) > LARGEST_RECORD:
        raise OSError(f"{name} is larger than {LARGEST_RECORD} bytes")
    return data


def write(run_dir: Path, record: Struct) -> None:
    """Writes a record in one step. Raises OSError (disk full, read-only) and then leaves the old one."""
    write_file(run_dir / _FILES[type(record)], msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def conclude(run_dir: Path, concluded: Concluded) -> None:
    """Writes the last record, and gives back what was reserved for those that never came. Raises OSError."""
    write(run_dir, concluded)
    tidy(run_dir)


def tidy(run_dir: Path) -> None:
    """Removes room and half-written files from a run that is over, to which nobody writes. Raises OSError."""
    for path in run_dir.glob(".*"):
        # A folder is somebody else's: an editor's, say.
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """A file of a run directory: atomic, durable, mode 0600, in the room reserved for it. Raises OSError."""
    _replace(path, *_temporary(path), data, 0o600)


def _replace(path: Path, handle: int, temporary: str, data: bytes, mode: int) -> None:
    """Temporary file beside it, fsync, rename, fsync of the directory."""
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.truncate()
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _reserves(path: Path) -> list[Path]:
    most = max(_WRITINGS.values())
    return [path.with_name(f".{path.name}.{number}.reserved") for number in range(most)]


def _reserve_room(run_dir: Path) -> None:
    for kind, times in _WRITINGS.items():
        for reserve in _reserves(run_dir / _FILES[kind])[:times]:
            handle = os.open(reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(bytes(_ROOM))


def _temporary(path: Path) -> tuple[int, str]:
    """What becomes `path`: room reserved for it, or a new file."""
    for reserve in _reserves(path):
        with contextlib.suppress(FileNotFoundError):
            return os.open(reserve, os.O_WRONLY), str(reserve)
    return tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)


def create(run_dir: Path, files: dict[str, bytes], spec: Spec) -> None:
    """Makes a run directory with all that belongs into it at first, in one step. Raises OSError."""
    aside = run_dir.with_name(f".{run_dir.name}")
    aside.mkdir(mode=0o700)
    try:
        for name, data in files.items():
            write_file(aside / name, data)
        write(aside, spec)
        _reserve_room(aside)
        # Fails if there is a run of that name, which must not be touched.
        aside.replace(run_dir)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    try:
        sync_directory(run_dir.parent)
    except BaseException:
        discard(run_dir)
        raise


def discard(run_dir: Path) -> None:
    """Removes a run that was never told of. Out of sight first: half removed it would look damaged."""
    with contextlib.suppress(OSError):
        run_dir = run_dir.replace(run_dir.with_name(f".{run_dir.name}"))
    shutil.rmtree(run_dir, ignore_errors=True)


def was_launched(run_dir: Path) -> bool:
    """Has a runner come as far as the launch? It opens the log right before it."""
    # A record of it need not be readable.
    return (run_dir / LOG).exists() or (run_dir / _FILES[Launched]).exists()


def claim(run_dir: Path) -> int | None:
    """A lock on the run, held until the handle is closed or the process ends; None if another has it.

    A runner holds it for all its life, and who concludes the run without one while it writes the outcome:
    so a run that was given up is never launched after that.
    """
    handle = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def remove_unfinished(runs: Path) -> None:
    """Removes what a daemon that was killed in `create` left."""
    for path in runs.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Makes a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def names(runs: Path) -> list[str]:
    """All run ids, newest first (they begin with their UTC time). A name that is no text is no run's."""
    try:
        found = [entry.name for entry in os.scandir(runs) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted((name for name in found if not name.startswith(".") and name.isprintable()), reverse=True)

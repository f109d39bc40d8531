"""Is a checkpoint whole? Told by its files' names, first bytes and last bytes; never by reading them.

Why: a checkpoint is tens of gigabytes, and the disk that fills, the copy that breaks off and the power cut
leave some of it. DeepSpeed finds that out once the model is loaded, minutes later, with a traceback. torch
writes zip archives: one that was cut off lacks the record at its end, one whose blocks never reached the
disk is zeros.

Refused is only what DeepSpeed's pipeline engine certainly could not load. It loads
`layer_NN-model_states.pt` of every layer that has weights, `mp_rank_NN_model_states.pt` of every pipeline
stage, and with ZeRO the `zero_pp_rank_N_mp_rank_NN_optim_states.pt` of every rank.

Source: deepspeed 0.19 (`runtime/engine.py`, `runtime/pipe/module.py`), PKWARE's APPNOTE for the records of
a zip.

Known gap: what is spoilt inside a file is not seen, nor is a cut in torch's older form, a plain pickle. How
many layers a model has stands nowhere; a file that is missing is known from the checkpoint beside it.
"""

import errno
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

LAYER = re.compile(r"layer_\d+-.*model_states\.pt")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZERO = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
_PICKLE = b"\x80"
_ENTRY, _DIRECTORY, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_LOCATOR64, _END64 = b"PK\6\7", b"PK\6\6"
_LONGEST_COMMENT = 0xFFFF
_END_SIZE, _LOCATOR64_SIZE, _END64_SIZE = 22, 20, 56
_IN_64 = 0xFFFFFFFF
"""Stands for an offset that only the larger records hold."""


def flaw(folder: Path, stages: int = 1, expected: Iterable[str] = ()) -> str | None:
    """What is wrong with a checkpoint's folder; None if it is whole. Raises OSError if it can't be looked at.

    `stages` is how many pipeline stages it has to have at least, `expected` are names that it has to have.
    """
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError:
        return "the folder is missing"
    except NotADirectoryError:
        return "it is no folder"
    missing = next(_missing(names, stages, expected), None)
    if missing is not None:
        return f"{missing} is missing"
    for name in sorted(names):
        if any(kind.fullmatch(name) for kind in (LAYER, _RANK, _ZERO)):
            wrong = flaw_of_file(folder / name)
            if wrong is not None:
                return f"{name} {wrong}"
    return None


def layers(folder: Path) -> frozenset[str]:
    """The names of its layers' files; none if it can't be looked at."""
    try:
        return frozenset(entry.name for entry in os.scandir(folder) if LAYER.fullmatch(entry.name))
    except OSError:
        return frozenset()


def stages_of(folder: Path) -> int:
    """By how many pipeline stages it was written. Raises OSError."""
    return sum(_RANK.fullmatch(entry.name) is not None for entry in os.scandir(folder))


def flaw_of_file(path: Path) -> str | None:
    """What is wrong with one file. Raises OSError if it can't be looked at."""
    try:
        # A pipe of that name would keep us waiting.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "is missing"
    try:
        found = os.fstat(handle)
        return _flaw(handle, found.st_size) if stat.S_ISREG(found.st_mode) else "is no file"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        # The disk is at fault there, and will be again.
        return f"can't be read ({error.strerror})"
    finally:
        os.close(handle)


def _flaw(handle: int, size: int) -> str | None:
    head = os.pread(handle, 4, 0)
    if not head:
        return "is empty"
    if not any(head):
        return "is nothing but zeros"
    if head.startswith(_PICKLE):
        return None
    if head != _ENTRY:
        return "is no file of torch's"
    return None if _ends_well(handle, size) else "is cut off"


def _ends_well(handle: int, size: int) -> bool:
    """Is there the record at the end, and the directory that it tells of?"""
    before = max(size - _END_SIZE - _LONGEST_COMMENT, 0)
    # torch writes no comment, so it is nearly always the very last bytes.
    for start in (max(size - _END_SIZE, 0), before):
        tail = os.pread(handle, size - start, start)
        at = tail.rfind(_END)
        if at >= 0 and len(tail) - at >= _END_SIZE:
            break
    else:
        return False
    entries, length, offset, comment = struct.unpack("<10xHIIH", tail[at : at + _END_SIZE])
    end = start + at
    if end + _END_SIZE + comment != size:
        return False
    if _IN_64 in (length, offset):
        record = _record64(handle, end)
        if record is None:
            return False
        entries, length, offset, end = record
    first = os.pread(handle, 4, offset) if offset < size else b""
    return bool(offset + length <= end and (first == _DIRECTORY or not entries))


def _record64(handle: int, end: int) -> tuple[int, int, int, int] | None:
    """Entries, length and offset of the directory, and where this record is; None if there is none."""
    locator = os.pread(handle, _LOCATOR64_SIZE, max(end - _LOCATOR64_SIZE, 0))
    if len(locator) < _LOCATOR64_SIZE or not locator.startswith(_LOCATOR64):
        return None
    (at,) = struct.unpack("<8xQ4x", locator)
    record = os.pread(handle, _END64_SIZE, at) if at < end else b""
    if len(record) < _END64_SIZE or not record.startswith(_END64):
        return None
    entries, length, offset = struct.unpack("<32xQQQ", record)
    return entries, length, offset, at


def _missing(names: set[str], stages: int, expected: Iterable[str]) -> Iterator[str]:
    """The names of files that have to be there and are not, and perhaps why they have to."""
    ranks = {int(found[1]) for found in map(_RANK.fullmatch, names) if found}
    written = max(ranks, default=0) + 1
    for rank in range(max(written, stages)):
        if rank not in ranks:
            # Cut off, or of another pipeline: nothing in the folder tells which.
            other = (
                f" (there are {written} pipeline stages of the {stages} wanted)" if rank >= written else ""
            )
            yield f"mp_rank_{rank:02}_model_states.pt{other}"
    yield from sorted(set(expected) - names)
    zero = {(int(found[1]), int(found[2])) for found in map(_ZERO.fullmatch, names) if found}
    replicas = max((replica for replica, _ in zero), default=-1) + 1
    for replica in range(replicas):
        for rank in sorted(ranks):
            if (replica, rank) not in zero:
                yield f"zero_pp_rank_{replica}_mp_rank_{rank:02}_optim_states.pt"

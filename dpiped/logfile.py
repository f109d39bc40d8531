"""A log as a file: its size, its lines, its bytes, from any offset on.

Why: logs of past runs, and the parts of a live one that the ring no longer holds, are read here. A page costs
what is on it and not what stands before it, so a log of gigabytes is read as quickly as a short one; and a
line of any length, or a log that is truncated meanwhile, ends no reader in a loop.

Known gap: none.
"""

import os
from pathlib import Path

from dpiped.logs import CHUNK, LINE_LIMIT, UNFINISHED_LIMIT, Page, shown, shown_all


def size(path: Path) -> int:
    """Bytes of a log; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def extent(path: Path) -> tuple[int, int]:
    """(offset after the last line end, size in bytes) of a log; zeros if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            return line_start_before(file.fileno(), size, 0), size
    except FileNotFoundError:
        return 0, 0


def read_lines(path: Path, after: int, limit: int, upto: int, max_bytes: int) -> Page:
    """Up to `limit` whole lines between the offsets `after` and `upto`, at most about `max_bytes` of them.

    The first is the one that begins at `after` or next after it.
    """
    after = line_start_from(path, after, upto)
    block = _whole_lines(path, after, limit, min(upto, after + max_bytes))
    if block:
        return Page(tuple(shown_all(block[:-1])), after, after + len(block))
    return _read_long_lines(path, after, limit, upto, max_bytes)


def line_start_from(path: Path, after: int, upto: int) -> int:
    """The first offset from `after` on where a line begins, as far as `upto`, which is one."""
    if not 0 < after < upto:
        return after
    with path.open("rb") as file:
        block, begin = os.pread(file.fileno(), 1, after - 1), after - 1
        while block and b"\n" not in block and begin + len(block) < upto:
            begin += len(block)
            block = os.pread(file.fileno(), min(CHUNK, upto - begin), begin)
    # Without a block the log was truncated meanwhile.
    return begin + block.index(b"\n") + 1 if b"\n" in block else upto if block else after


def _whole_lines(path: Path, after: int, limit: int, upto: int) -> bytes:
    """The bytes of up to `limit` lines with their line ends; b"" if not even one fits."""
    with path.open("rb") as file:
        block = os.pread(file.fileno(), max(upto - after, 0), after)
    whole = block[: block.rfind(b"\n") + 1]
    if whole.count(b"\n") <= limit:
        return whole
    rest = whole.split(b"\n", limit)[limit]
    return whole[: len(whole) - len(rest)]


def _read_long_lines(path: Path, after: int, limit: int, upto: int, max_bytes: int) -> Page:
    """The same line by line, for a line that is longer than what may be read at once."""
    lines: list[str] = []
    position = after
    with path.open("rb") as file:
        file.seek(after)
        while len(lines) < limit and position < upto and max_bytes > 0:
            raw = file.readline(UNFINISHED_LIMIT)
            if not raw:
                # The log was truncated meanwhile.
                break
            length = len(raw)
            # The rest of a line too long to hold is passed over, so that the cursor moves on.
            while raw and not raw.endswith(b"\n") and position + length < upto:
                more = file.readline(UNFINISHED_LIMIT)
                if not more:
                    break
                length += len(more)
                raw = raw[:UNFINISHED_LIMIT] + more[-UNFINISHED_LIMIT:]
            position += length
            max_bytes -= min(length, LINE_LIMIT)
            lines.append(shown(raw.removesuffix(b"\n")))
    return Page(tuple(lines), after, position)


def read_unfinished(path: Path, start: int, end: int) -> str:
    """The text between the last line end and the end of the log."""
    if start >= end:
        return ""
    with path.open("rb") as file:
        file.seek(max(start, end - UNFINISHED_LIMIT))
        return shown(file.read(end - file.tell()))


def tail_start(path: Path, limit: int, upto: int) -> int:
    """Offset where the last `limit` whole lines before `upto` begin. `limit` 0 gives `upto`."""
    if limit == 0 or upto == 0:
        return upto
    try:
        with path.open("rb") as file:
            return line_start_before(file.fileno(), upto - 1, limit - 1)
    except FileNotFoundError:
        return 0


def read_bytes(path: Path, after: int, upto: int, max_bytes: int) -> bytes:
    """The log's bytes as they were printed."""
    try:
        with path.open("rb") as file:
            file.seek(after)
            return file.read(min(max(upto - after, 0), max_bytes))
    except FileNotFoundError:
        return b""


def line_start_before(fd: int, end: int, skip: int) -> int:
    """Offset after the `skip` + 1st line end counted backwards from `end`; 0 if there are fewer."""
    while end > 0:
        begin = max(end - CHUNK, 0)
        block = os.pread(fd, end - begin, begin)
        count = block.count(b"\n")
        if count > skip:
            return begin + len(block.rsplit(b"\n", skip + 1)[0]) + 1
        skip -= count
        end = begin
    return 0

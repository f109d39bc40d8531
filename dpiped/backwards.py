"""A log read from its end: the page before a cursor, and where a text stands last.

Why: a person looks at the end of a log first and then scrolls up. A page that is bounded in bytes has to end
exactly at the cursor that it was asked for, so what is too much is left out at its front; otherwise the lines
between the page and the cursor would never be seen.

A text is looked for as `outcome.failure_line` gives it: as shown, without spaces and a rank's name around it.
The line that is just that comes before one that was printed later and repeats it.

Known gap: a text is looked for in the last 16 MiB only, among colours in the last 1 MiB only. Of a line
longer than 128 KiB its middle is not looked at for that. The beginning of a single line of many megabytes is
searched for in one go.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from dpiped.logfile import line_start_before, read_lines
from dpiped.logs import CHUNK, Page, shown, shown_all
from dpiped.outcome import LINE_LIMIT, RANK_PREFIX

LOOK_BACK = 16 << 20
LOOKED_AT = 10_000
"""So many lines that have the text in them, the last ones, are looked at."""
EDGE = 64 << 10


def lines_before(path: Path, before: int, limit: int, max_bytes: int) -> Page:
    """The last `limit` whole lines that end at offset `before` or earlier, about `max_bytes` at most."""
    try:
        with path.open("rb") as file:
            fd = file.fileno()
            end = line_start_before(fd, min(before, os.fstat(fd).st_size), 0)
            if end == 0:
                return Page((), 0, 0)
            block = _block_before(fd, end, limit, max_bytes)
            start = end - len(block) if block else line_start_before(fd, end - 1, 0)
    except FileNotFoundError:
        return Page((), 0, 0)
    if block:
        return Page(tuple(shown_all(block[:-1])), start, end)
    # One line that is longer than what may be read at once: shown as it is when it is read forwards.
    return read_lines(path, start, 1, end, max_bytes)


def line_of(path: Path, text: str) -> int | None:
    """Offset of the last line that is the text, else of the last one with it, near the end of the log.

    Raises OSError.
    """
    # What was not UTF-8 is not in the text.
    needle = max(text.split("\ufffd"), key=len).encode()
    if not needle:
        return None
    last = None
    try:
        with path.open("rb") as file:
            for looked_at, (start, raw) in enumerate(_lines_with(file.fileno(), needle)):
                said = [each.strip() for each in _pieces(raw)]
                if any(_is(each, text) or _is(RANK_PREFIX.sub("", each), text) for each in said):
                    return start
                if last is None and (needle in raw or any(text in each for each in said)):
                    last = start
                if looked_at >= LOOKED_AT:
                    break
    except FileNotFoundError:
        return None
    return last


def _is(said: str, text: str) -> bool:
    return said == text or (len(text) == LINE_LIMIT and said.startswith(text))


def _pieces(raw: bytes) -> list[str]:
    """What the line has shown in turn: a progress bar is overwritten."""
    parts = [raw] if len(raw) <= 2 * EDGE else [raw[:EDGE], raw[-EDGE:]]
    return [shown(piece) for part in parts for piece in part.split(b"\r")]


def _lines_with(fd: int, needle: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of the lines that may have the text, the last one first."""
    size = end = os.fstat(fd).st_size
    furthest = max(size - LOOK_BACK, 0)
    while end > furthest:
        begin, block = _whole_lines_before(fd, end, furthest)
        colours = end > size - CHUNK and b"\x1b" in block
        stop = len(block)
        while stop > 0 and (at := stop - 1 if colours else block.rfind(needle, 0, stop)) >= 0:
            start = block.rfind(b"\n", 0, at) + 1
            rest = block.find(b"\n", at)
            yield begin + start, block[start : rest if rest >= 0 else len(block)]
            stop = start
        end = begin


def _whole_lines_before(fd: int, end: int, furthest: int) -> tuple[int, bytes]:
    """The lines of about a CHUNK, the last of which ends at `end`, and their offset; at least one.

    Of a line that is longer only what stands after `furthest`.
    """
    begin = max(end - CHUNK, furthest)
    block = os.pread(fd, end - begin, begin)
    if begin == 0:
        return 0, block
    first = block.find(b"\n", 0, len(block) - 1) + 1
    if first > 0:
        return begin + first, block[first:]
    start = line_start_before(fd, end - 1, 0)
    known = max(start, furthest)
    return start, os.pread(fd, end - known, known)


def _block_before(fd: int, end: int, limit: int, max_bytes: int) -> bytes:
    """The bytes of up to `limit` lines, the last of which ends at `end`; b"" if not even one fits."""
    begin = max(end - max_bytes, 0)
    # One byte more, for the end of the line before.
    block = os.pread(fd, end - max(begin - 1, 0), max(begin - 1, 0))
    if begin > 0:
        block = block[block.find(b"\n") + 1 :]
    lines = block[:-1].rsplit(b"\n", limit)
    return block[len(lines[0]) + 1 :] if len(lines) > limit else block

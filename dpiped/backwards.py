"""A log read from its end: the page before a cursor, and where a text stands last.

Why: a person looks at the end of a log first and then scrolls up. A page that is bounded in bytes has to end
exactly at the cursor that it was asked for, so what is too much is left out at its front; otherwise the lines
between the page and the cursor would never be seen.

Known gap: a text is looked for in the last 16 MiB only. The beginning of a single line of many megabytes is
searched for in one go.
"""

import os
from pathlib import Path

from dpiped.logs import CHUNK, Page, line_start_before, read_lines, shown_all

LOOK_BACK = 16 << 20


def lines_before(path: Path, before: int, limit: int, max_bytes: int) -> Page:
    """The last `limit` whole lines that end at offset `before` or earlier, about `max_bytes` at most."""
    try:
        with path.open("rb") as file:
            fd = file.fileno()
            end = line_start_before(fd, before, 0)
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
    """Offset of the last line in which the text stands, if it does so near the end of the log."""
    # What was not UTF-8 is not in the text.
    needle = max(text.split("\ufffd"), key=len).encode()
    if not needle or not path.exists():
        return None
    with path.open("rb") as file:
        fd = file.fileno()
        end = file.seek(0, os.SEEK_END)
        furthest = max(end - LOOK_BACK, 0)
        while end > furthest:
            begin = max(end - CHUNK, furthest)
            at = os.pread(fd, end - begin + len(needle) - 1, begin).rfind(needle)
            if at >= 0:
                return line_start_before(fd, begin + at, 0)
            end = begin
    return None


def _block_before(fd: int, end: int, limit: int, max_bytes: int) -> bytes:
    """The bytes of up to `limit` lines, the last of which ends at `end`; b"" if not even one fits."""
    begin = max(end - max_bytes, 0)
    # One byte more, for the end of the line before.
    block = os.pread(fd, end - max(begin - 1, 0), max(begin - 1, 0))
    if begin > 0:
        block = block[block.find(b"\n") + 1 :]
    lines = block[:-1].rsplit(b"\n", limit)
    return block[len(lines[0]) + 1 :] if len(lines) > limit else block

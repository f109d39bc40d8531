"""Where a text stands in a log: the cursors of its lines.

Why: a log of gigabytes is in nobody's browser, so the search has to be done here, and nobody else may have to
wait for it. So it goes by blocks, each beside the event loop, and one request reads a bounded piece of the
log and says where to go on.

What is searched is what is shown of a line (`logs.shown`), without regard to case by the rules of Unicode
(`str.casefold`: `ß` is found by `SS`). Lower-casing bytes folds ASCII only. So the quick way, which lets the
bytes methods look for candidates, is taken only where it misses nothing: for a text that folds to ASCII, in a
block without control characters (a progress bar, a colour) and without the few letters that fold to ASCII.
Any other block is searched line by line, which takes ten to a hundred times as long: all of its lines have to
be carried out as a terminal would.

Known gap: only whole lines are searched. Of a line that is cut where it is shown, what was cut is not found.
A line of many megabytes is read in one go.
"""

import os
import time
from pathlib import Path

from msgspec import Struct

from dpiped.aside import Aside
from dpiped.logfile import line_start_from, read_lines
from dpiped.logs import shown, shown_all

BLOCK = 256 << 10
"""Bytes that are searched at a time. Full of escape sequences they may take a fifth of a second."""
WORK = 16 << 20
"""Bytes of the log that one request reads, about."""
SECONDS = 2.0
"""That one request takes, about."""
ODD = bytes((*range(9), *range(11, 32), 127, 0xC2, 0xC3, 0xC4, 0xC5, 0xC7, 0xE1, 0xE2, 0xEF))
"""Control characters, and the first bytes of the letters whose folded form has ASCII in it."""


class Hits(Struct, frozen=True):
    """Offsets of lines, and where to go on; `end`: there is nothing more to search."""

    matches: tuple[int, ...]
    next: int
    end: bool


async def search(path: Path, text: str, after: int, limit: int, upto: int, aside: Aside) -> Hits:
    """The first `limit` lines that begin at `after` or later, and end at `upto` or earlier, with `text`.

    Raises OSError.
    """
    found: list[int] = []
    folded = text.casefold()
    late = time.monotonic() + SECONDS
    try:
        position = await aside.do(line_start_from, path, after, upto)
        stop = min(position + WORK, upto)
        while position < stop and len(found) < limit and (position == after or time.monotonic() < late):
            here, reached = await aside.do(_search, path, folded, position, limit - len(found), upto)
            found += here
            if reached == position:
                # The log was truncated meanwhile.
                return Hits(tuple(found), position, True)
            position = reached
    except FileNotFoundError:
        return Hits((), min(after, upto), True)
    return Hits(tuple(found), min(position, upto), position >= upto)


def _search(path: Path, folded: str, position: int, limit: int, upto: int) -> tuple[list[int], int]:
    """The same in one block, or in one line longer than that; and the offset after what was searched."""
    with path.open("rb") as file:
        block = os.pread(file.fileno(), min(BLOCK, upto - position), position)
    block = block[: block.rfind(b"\n") + 1]
    if not block:
        page = read_lines(path, position, 1, upto, BLOCK)
        found = page.next > position and folded in page.lines[0].casefold()
        return [position] * found, page.next
    here = in_block(block, folded)[:limit]
    # Full: on after the last line found, the rest of the block is searched the next time.
    length = block.index(b"\n", here[-1]) + 1 if len(here) == limit else len(block)
    return [position + at for at in here], position + length


def in_block(block: bytes, folded: str) -> list[int]:
    """Where the lines begin, of a block of whole lines, whose shown text has the folded text in it."""
    if folded.isascii() and len(block.translate(None, ODD)) == len(block):
        return _quickly(block, folded)
    found = []
    at = 0
    for raw, text in zip(block[:-1].split(b"\n"), shown_all(block[:-1]), strict=True):
        if folded in text.casefold():
            found.append(at)
        at += len(raw) + 1
    return found


def _quickly(block: bytes, folded: str) -> list[int]:
    lower, needle = block.lower(), folded.encode()
    found = []
    at = lower.find(needle)
    while at >= 0:
        begin, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at)
        # A long line is cut where it is shown.
        if folded in shown(block[begin:end]).casefold():
            found.append(begin)
        at = lower.find(needle, end + 1)
    return found

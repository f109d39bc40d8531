"""Where a text stands in a log: the cursors of its lines.

Why: a log of gigabytes is in nobody's browser, so the search has to be done here, and nobody else may have to
wait for it. So it goes by blocks and yields between them, and one request reads a bounded piece of the log
and says where to go on.

What is searched is what is shown of a line (`logs.shown`), without regard to case by the rules of Unicode
(`str.casefold`: `ß` is found by `SS`). Lower-casing bytes folds ASCII only. So the quick way, which lets the
bytes methods look for candidates, is taken only where it misses nothing: for a text that folds to ASCII, in a
block without control characters (a progress bar, a colour) and without the few letters that fold to ASCII.
Any other block is searched line by line, some ten times slower.

Known gap: only whole lines are searched. Of a line that is cut where it is shown, what was cut is not found.
A line of many megabytes is read in one go.
"""

import asyncio
import os
from pathlib import Path

from msgspec import Struct

from dpiped.logs import read_lines, shown, shown_all

BLOCK = 256 << 10
"""Bytes between two yields; the slow way takes some milliseconds for so many."""
WORK = 16 << 20
"""Bytes of the log that one request reads, about."""
ODD = bytes((*range(9), *range(11, 32), 127, 0xC2, 0xC3, 0xC4, 0xC5, 0xC7, 0xE1, 0xE2, 0xEF))
"""Control characters, and the first bytes of the letters whose folded form has ASCII in it."""


class Hits(Struct, frozen=True):
    """Offsets of lines, and where to go on; `end`: there is nothing more to search."""

    matches: tuple[int, ...]
    next: int
    end: bool


async def search(path: Path, text: str, after: int, limit: int, upto: int) -> Hits:
    """The first `limit` lines that begin at `after` or later, and end at `upto` or earlier, with `text`."""
    try:
        with path.open("rb") as file:
            return await _search(file.fileno(), path, text.casefold(), after, limit, upto)
    except FileNotFoundError:
        return Hits((), after, True)


async def _search(fd: int, path: Path, folded: str, after: int, limit: int, upto: int) -> Hits:
    found: list[int] = []
    position = after
    if 0 < after < upto and os.pread(fd, 1, after - 1) != b"\n":
        position = read_lines(path, after, 1, upto, BLOCK).next
    stop = position + WORK
    while position < min(upto, stop) and len(found) < limit:
        block = os.pread(fd, min(BLOCK, upto - position), position)
        block = block[: block.rfind(b"\n") + 1]
        if block:
            here = in_block(block, folded)[: limit - len(found)]
            found += [position + at for at in here]
            # Full: on after the last line found, the rest of the block is searched the next time.
            full = len(found) == limit
            position += block.index(b"\n", here[-1]) + 1 if full else len(block)
        else:
            page = read_lines(path, position, 1, upto, BLOCK)
            if page.next == position:
                # The log was truncated meanwhile.
                return Hits(tuple(found), position, True)
            found += [position] if folded in page.lines[0].casefold() else []
            position = page.next
        await asyncio.sleep(0)
    return Hits(tuple(found), position, position >= upto)


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

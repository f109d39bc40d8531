"""A run's log: followed as it grows, kept as a bounded tail, read anywhere by byte offset.

Why: the log is a file that the training writes itself, so no reader can block it or lose it. A cursor
is a byte offset in that file: it means the same after a restart of the daemon, and no line is skipped
or repeated. The ring keeps the last lines in memory for the many who ask for them; it takes whole
chunks and lets the bytes methods find the line ends, because a line-by-line loop can't keep up.

A progress bar redraws itself with `\\r`; shown is what a terminal would show at the end of the line.

A log that is truncated while it is followed (logrotate's copytruncate) is read from its start again: its
offsets are those of the file as it is. A cursor behind the end is of what stood there before.

Known gap: a log that was truncated and has grown beyond the old place before anybody looked is not told from
one that has just grown.
"""

import os
import re
import stat
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from msgspec import Struct

CHUNK = 1 << 20
LINE_LIMIT = 16 << 10
"""A longer line is cut in the middle, and says so, wherever it is shown. The file keeps it."""
UNFINISHED_LIMIT = 1 << 20
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-9;:?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links
    r"|\x1b[()*+][0-9A-Za-z]"  # character sets
    r"|\x1b[ -~]"
)
_MOVES = re.compile(r"(\r|(?:\x1b\[|\x9b)[0-2]?K)")
_CONTROL_BYTES = bytes((*range(9), *range(11, 32), 127))
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Page(Struct, frozen=True):
    """`lines` as shown, from offset `first` up to `next`; both are the same where there are none."""

    lines: tuple[str, ...]
    first: int
    next: int


def shown(raw: bytes) -> str:
    """One line (without its line end) as a terminal would show it, without colours, cut if very long."""
    text = raw.decode(errors="replace")
    if not text.isprintable():
        text = _CONTROLS.sub("", _on_screen(text))
    if len(text) > LINE_LIMIT:
        half = LINE_LIMIT // 2
        text = f"{text[:half]} … [{len(text) - LINE_LIMIT} characters cut] … {text[-half:]}"
    return text


def shown_all(block: bytes) -> list[str]:
    """The lines of `block`, which has a line end between each two, as `shown` gives each.

    Most blocks have nothing to be carried out or cut: those are decoded and split as a whole, in C.
    """
    if len(block.translate(None, _CONTROL_BYTES)) == len(block):
        text = block.decode(errors="replace")
        lines = text.split("\n")
        # Control characters of two bytes begin with this one.
        if (b"\xc2" not in block or not _CONTROLS.search(text)) and len(max(lines, key=len)) <= LINE_LIMIT:
            return lines
    return [shown(raw) for raw in block.split(b"\n")]


def _on_screen(text: str) -> str:
    """Carries out carriage returns and erasures, drops all other escape sequences.

    Nothing is blanked twice, so that the time grows with the text only.
    """
    parts = _MOVES.split(text)
    screen = list(_ESCAPES.sub("", parts[0]))
    # `length` cells are shown; those behind them, if there are any, are blank, and so are the first `blank`.
    cursor = length = len(screen)
    blank = 0
    for move, part in zip(parts[1::2], parts[2::2], strict=True):
        if move == "\r":
            cursor = 0
        else:
            if not move.endswith("1K"):
                del screen[cursor:]
                length = 0 if move.endswith("2K") else min(length, cursor)
            if move[-2] in "12":
                screen[blank:cursor] = " " * (cursor - blank)
                blank = max(blank, cursor)
        if part and (plain := _ESCAPES.sub("", part)):
            blank = min(blank, cursor)
            screen[cursor : cursor + len(plain)] = plain
            cursor += len(plain)
            length = max(length, cursor)
    shown = "".join(screen[:length])
    return shown.rstrip() if "\r" in text else shown


class Follower:
    """Reads what a growing file gained. The file need not exist yet.

    `printer` gives the pid of a process that writes to it: by that one a file is found that was deleted.
    """

    def __init__(self, path: Path, printer: Callable[[], int | None] = lambda: None) -> None:
        self.path = path
        self.position = 0
        self._printer = printer
        self._fd: int | None = None
        self._truncated = False
        self._moved = False

    @property
    def opened(self) -> bool:
        return self._fd is not None

    def read(self) -> bytes:
        """The next bytes, at most CHUNK; b"" if there are none now. A file that shrank is read anew."""
        if self._fd is None:
            self._fd = self._open()
            if self._fd is None:
                return b""
        data = os.pread(self._fd, CHUNK, self.position)
        if not data and os.fstat(self._fd).st_size < self.position:
            self._truncated, self.position = True, 0
            data = os.pread(self._fd, CHUNK, 0)
        self.position += len(data)
        return data

    def begins_anew(self) -> bool:
        """Was the file truncated before what was read last? Says it once."""
        found, self._truncated = self._truncated, False
        return found

    def moved(self) -> bool:
        """Does the open file stand no more at its path? Says it once."""
        if self._fd is None or self._moved:
            return False
        try:
            now, ours = self.path.stat(), os.fstat(self._fd)
            self._moved = (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)
        except OSError:
            self._moved = True
        return self._moved

    def where(self) -> Path:
        """A path by which the file can be opened, also one that was deleted."""
        return Path(f"/proc/self/fd/{self._fd}") if self._moved and self._fd is not None else self.path

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int | None:
        elsewhere = self._open_elsewhere()
        if elsewhere is not None:
            return elsewhere
        try:
            return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def _open_elsewhere(self) -> int | None:
        """What is printed to, if that is not the file at the path: one deleted, or moved beside it."""
        pid = self._printer()
        if pid is None:
            return None
        printed = Path(f"/proc/{pid}/fd/1")
        try:
            target, found = printed.readlink(), printed.stat()
            beside = str(target).endswith(" (deleted)") or target.parent.samefile(self.path.parent)
            if not stat.S_ISREG(found.st_mode) or not beside or self._is_at_path(found):
                return None
            return os.open(printed, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def _is_at_path(self, found: os.stat_result) -> bool:
        try:
            ours = self.path.stat()
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino)


class Ring:
    """The last lines of a log, bounded by lines and by bytes, and the unfinished line after them."""

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._lines: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._unfinished = b""
        self.next = 0
        """Offset of the unfinished line: everything before it is whole lines."""
        self.end = 0
        """Offset after the last byte fed."""

    def __len__(self) -> int:
        return len(self._lines)

    def begin_anew(self) -> None:
        """The log was truncated: its offsets count from 0 again."""
        self._lines.clear()
        self._bytes = 0
        self._unfinished = b""
        self.next = self.end = 0

    @property
    def first(self) -> int:
        """Offset of the oldest line kept."""
        return self._lines[0][0] if self._lines else self.next

    @property
    def current(self) -> str:
        """The unfinished last line as shown now."""
        return shown(self._unfinished)

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the log, cut anywhere."""
        self.end += len(chunk)
        whole, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._unfinished = (self._unfinished + chunk)[-UNFINISHED_LIMIT:]
            return
        kept = whole.rsplit(b"\n", self._max_lines)
        after = self.end - len(rest)
        if len(kept) > self._max_lines:
            del kept[0]
            start = after - sum(map(len, kept)) - len(kept)
        else:
            self._append(self.next, self._unfinished + kept[0])
            start = after - len(whole) - 1 + len(kept.pop(0)) + 1
        for raw in kept:
            self._append(start, raw)
            start += len(raw) + 1
        self.next = after
        self._unfinished = rest[-UNFINISHED_LIMIT:]

    def page(self, after: int, limit: int, max_bytes: int) -> Page | None:
        """Up to `limit` lines from offset `after` on; None if that offset is older than the ring."""
        if after < self.first:
            return None
        first = bisect_left(self._starts(), after)
        raws: list[bytes] = []
        for _, raw in islice(self._lines, first, first + limit):
            if max_bytes <= 0:
                break
            raws.append(raw)
            max_bytes -= len(raw) + 1
        last = first + len(raws)
        lines = tuple(shown_all(b"\n".join(raws))) if raws else ()
        return Page(lines, self._start(first), self._start(last))

    def page_before(self, before: int, limit: int, max_bytes: int) -> Page | None:
        """The last `limit` lines that end at `before` or earlier; None if some are older than the ring.

        `before` is at most `next`. Too many bytes are left out at the front.
        """
        starts = self._starts()
        # A line ends where the next one begins.
        last = bisect_right([*starts, self.next], before) - 1
        if last < 0 or (last < limit and self.first > 0):
            return None
        first = last
        while first > max(last - limit, 0) and max_bytes > 0:
            first -= 1
            max_bytes -= len(self._lines[first][1]) + 1
        raws = [raw for _, raw in islice(self._lines, first, last)]
        lines = tuple(shown_all(b"\n".join(raws))) if raws else ()
        return Page(lines, self._start(first), self._start(last))

    def tail_start(self, limit: int) -> int | None:
        """Offset of the last `limit` lines; None if the ring holds fewer and older ones exist."""
        if limit <= len(self._lines):
            return self._lines[-limit][0]
        return self.first if self.first == 0 else None

    def _start(self, index: int) -> int:
        return self._lines[index][0] if index < len(self._lines) else self.next

    def _starts(self) -> list[int]:
        return [start for start, _ in self._lines]

    def _append(self, start: int, raw: bytes) -> None:
        self._lines.append((start, raw))
        self._bytes += len(raw)
        while len(self._lines) > self._max_lines or (self._bytes > self._max_bytes and len(self._lines) > 1):
            self._bytes -= len(self._lines.popleft()[1])

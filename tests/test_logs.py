"""The log's ring and its file readers against one naive model; the follower of a growing file."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from dpiped import logfile, logs
from dpiped.logs import Follower, Page, Ring, shown
from tests.helpers import seconds_of_a_reader_by_lines

CALM = settings(deadline=None)
"""A busy machine is no reason to fail."""

PLENTY = 1 << 30

TEXTS = st.lists(
    st.sampled_from(
        [b"", b"a", b"bc", b"\n", b"\n\n", b"word\n", b"\xff", b"0123456789" * 3, b"\r", b"x\r\n"]
    ),
    max_size=40,
).map(b"".join)
PIECES = st.lists(st.integers(1, 20), max_size=60)


class Model(Struct, frozen=True):
    """All whole lines with their offsets, and what stands after them."""

    lines: list[tuple[int, bytes]]
    next: int
    unfinished: bytes

    @property
    def starts(self) -> list[int]:
        return [start for start, _ in self.lines]

    def from_offset(self, after: int, limit: int) -> Page:
        """The lines that begin at `after` or later."""
        found = [(start, raw) for start, raw in self.lines if start >= after][:limit]
        position = found[-1][0] + len(found[-1][1]) + 1 if found else after
        return Page(tuple(shown(raw) for _, raw in found), found[0][0] if found else position, position)

    def tail_start(self, limit: int) -> int:
        return ([*self.starts, self.next])[-limit - 1] if limit < len(self.lines) else 0


def model_of(data: bytes) -> Model:
    *whole, unfinished = data.split(b"\n")
    lines = []
    start = 0
    for raw in whole:
        lines.append((start, raw))
        start += len(raw) + 1
    return Model(lines, start, unfinished)


def ring_of(data: bytes, pieces: list[int], max_lines: int = 10_000, max_bytes: int = PLENTY) -> Ring:
    ring = Ring(max_lines, max_bytes)
    at = 0
    for size in pieces:
        ring.feed(data[at : at + size])
        at += size
    if at < len(data):
        ring.feed(data[at:])
    return ring


@contextmanager
def file_of(data: bytes) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "output.log"
        path.write_bytes(data)
        yield path


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupts what would go on for ever."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@CALM
@given(TEXTS, PIECES)
def test_a_ring_without_limits_holds_every_line_at_its_offset(data: bytes, pieces: list[int]) -> None:
    ring, model = ring_of(data, pieces), model_of(data)
    assert (len(ring), ring.first, ring.next, ring.end) == (len(model.lines), 0, model.next, len(data))
    assert ring.current == shown(model.unfinished)
    for after in [*model.starts, model.next]:
        assert ring.page(after, 7, PLENTY) == model.from_offset(after, 7)


@CALM
@given(TEXTS, PIECES, st.integers(1, 6))
def test_a_ring_keeps_exactly_the_last_lines(data: bytes, pieces: list[int], max_lines: int) -> None:
    ring, model = ring_of(data, pieces, max_lines), model_of(data)
    kept = model.lines[-max_lines:]
    assert len(ring) == len(kept)
    assert ring.first == (kept[0][0] if kept else model.next)
    assert (ring.next, ring.end, ring.current) == (model.next, len(data), shown(model.unfinished))
    assert ring.page(ring.first, 100, PLENTY) == model.from_offset(ring.first, 100)
    if ring.first > 0:
        assert ring.page(ring.first - 1, 100, PLENTY) is None
    for limit in range(1, 9):
        known = limit <= len(kept) or ring.first == 0
        assert ring.tail_start(limit) == (model.tail_start(limit) if known else None)


@CALM
@given(TEXTS, PIECES, st.integers(1, 40))
def test_a_ring_is_bounded_in_bytes_but_keeps_the_last_line(
    data: bytes, pieces: list[int], most: int
) -> None:
    ring, model = ring_of(data, pieces, max_bytes=most), model_of(data)
    kept = model.lines[len(model.lines) - len(ring) :]
    assert len(kept) <= 1 or sum(len(raw) for _, raw in kept) <= most
    assert len(kept) >= min(1, len(model.lines))
    assert ring.page(ring.first, 100, PLENTY) == model.from_offset(ring.first, 100)


@CALM
@given(TEXTS, PIECES, st.integers(1, 4), st.integers(1, 30))
def test_pages_follow_each_other_without_gap_or_repetition(
    data: bytes, pieces: list[int], limit: int, most: int
) -> None:
    ring, model = ring_of(data, pieces), model_of(data)
    read: list[str] = []
    after = 0
    while after < ring.next:
        page = ring.page(after, limit, most)
        assert page is not None
        assert 0 < len(page.lines) <= limit
        read += page.lines
        after = page.next
    assert read == [shown(raw) for _, raw in model.lines]


@CALM
@given(TEXTS)
def test_the_extent_of_a_file_is_its_last_line_end_and_its_size(data: bytes) -> None:
    with file_of(data) as path:
        assert logfile.extent(path) == (model_of(data).next, len(data))


@CALM
@given(TEXTS, st.integers(0, 9))
def test_the_file_agrees_on_where_its_last_lines_begin(data: bytes, limit: int) -> None:
    model = model_of(data)
    with file_of(data) as path:
        assert logfile.tail_start(path, limit, model.next) == model.tail_start(limit)


@CALM
@given(TEXTS, st.integers(1, 9), st.data())
def test_the_file_gives_the_same_lines_as_the_ring(data: bytes, limit: int, choose: st.DataObject) -> None:
    model = model_of(data)
    # Anywhere, also in the middle of a line.
    after = choose.draw(st.integers(0, model.next))
    begin = min(start for start in (*model.starts, model.next) if start >= after)
    with file_of(data) as path:
        page = logfile.read_lines(path, after, limit, model.next, PLENTY)
        assert page == model.from_offset(begin, limit)
        assert page == ring_of(data, []).page(after, limit, PLENTY)


@CALM
@given(TEXTS, st.integers(1, 30))
def test_pages_of_a_file_bounded_in_bytes_follow_each_other(data: bytes, most: int) -> None:
    model = model_of(data)
    read: list[str] = []
    after = 0
    with file_of(data) as path:
        while after < model.next:
            page = logfile.read_lines(path, after, 100, model.next, most)
            assert page.next > after
            read += page.lines
            after = page.next
    assert read == [shown(raw) for _, raw in model.lines]


@CALM
@given(TEXTS)
def test_the_unfinished_line_of_a_file(data: bytes) -> None:
    model = model_of(data)
    with file_of(data) as path:
        assert logfile.read_unfinished(path, model.next, len(data)) == shown(model.unfinished)


@CALM
@given(TEXTS, st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_raw_bytes_are_a_slice_of_the_file(data: bytes, after: int, upto: int, most: int) -> None:
    with file_of(data) as path:
        assert logfile.read_bytes(path, after, upto, most) == data[after : max(after, upto)][:most]


def test_a_log_that_was_not_written_is_empty(tmp_path: Path) -> None:
    missing = tmp_path / "output.log"
    assert logfile.extent(missing) == (0, 0)
    assert logfile.tail_start(missing, 5, 100) == 0
    assert logfile.read_bytes(missing, 0, 10, 10) == b""


def test_a_tail_far_behind_in_a_large_file_is_found_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    data = b"".join(b"line %06d\n" % number for number in range(250_000)) + b"unfinished"
    path.write_bytes(data)
    upto, size = logfile.extent(path)
    assert (upto, size) == (len(data) - len(b"unfinished"), len(data))
    assert size > 2 * logs.CHUNK
    for limit in (1, 2, 95_325, 95_326, 200_000, 250_000, 300_000):
        assert logfile.tail_start(path, limit, upto) == max(upto - 12 * limit, 0)


def test_the_rest_of_a_line_too_long_to_hold_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    long = b"<" + b"x" * (3 * logs.UNFINISHED_LIMIT) + b">"
    path.write_bytes(b"before\n" + long + b"\nafter\n")
    upto, _ = logfile.extent(path)
    page = logfile.read_lines(path, 0, 10, upto, PLENTY)
    assert (page.lines[0], page.lines[2], page.next) == ("before", "after", upto)
    assert page.lines[1].startswith("<x") and page.lines[1].endswith("x>")
    assert len(page.lines[1]) < logs.LINE_LIMIT + 100
    assert logfile.read_lines(path, 9, 10, upto, PLENTY) == Page(("after",), upto - 6, upto)


@pytest.mark.parametrize(
    "size", [logs.UNFINISHED_LIMIT - 1, logs.UNFINISHED_LIMIT, logs.UNFINISHED_LIMIT + 10]
)
def test_a_very_long_line_keeps_the_offsets_of_the_ring_true(size: int) -> None:
    ring = Ring(10, PLENTY)
    for part in (b"before\n", b"x" * size, b"y", b"\n"):
        ring.feed(part)
    page = ring.page(0, 10, PLENTY)
    assert page is not None
    assert (len(page.lines), page.next) == (2, ring.next)
    assert ring.next == ring.end == 7 + size + 2


def test_an_unfinished_line_is_held_up_to_its_limit_only() -> None:
    ring = Ring(10, PLENTY)
    for _ in range(30):
        ring.feed(b"x" * 100_000)
    assert (ring.next, ring.end) == (0, 3_000_000)
    assert len(ring.current) < logs.LINE_LIMIT + 100
    assert ring.current.startswith("x" * 100) and "characters cut" in ring.current


@pytest.mark.parametrize("left", [b"", b"abc", b"abc\n", b"one\ntw"])
def test_a_file_that_shrank_ends_the_page(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(left)
    with at_most(2.0):
        page = logfile.read_lines(path, 0, 50, 1000, PLENTY)
    assert len(page.lines) <= left.count(b"\n") + 1


def test_an_empty_ring() -> None:
    ring = Ring(5, 100)
    assert (len(ring), ring.first, ring.next, ring.end, ring.current) == (0, 0, 0, 0, "")
    assert ring.page(0, 5, 100) == ring.page_before(0, 5, 100) == Page((), 0, 0)
    assert ring.tail_start(5) == 0


def test_a_follower_reads_what_a_growing_file_gains(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    follower = Follower(path)
    assert follower.read() == b""
    with path.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        assert follower.read() == b"one\ntw"
        assert follower.read() == b""
        file.write(b"o\n")
        assert follower.read() == b"o\n"
    assert follower.position == 8
    follower.close()


def test_a_follower_takes_large_gains_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    data = bytes(range(256)) * 10_000
    path.write_bytes(data)
    follower = Follower(path)
    read = list(iter(follower.read, b""))
    follower.close()
    assert b"".join(read) == data
    assert max(map(len, read)) <= logs.CHUNK


def test_a_follower_reads_a_truncated_file_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(b"a long line\n")
    follower = Follower(path)
    follower.read()
    assert not follower.begins_anew()
    with path.open("r+b") as file:
        file.truncate(0)
    assert follower.read() == b"" and follower.begins_anew() and not follower.begins_anew()
    with path.open("ab") as file:
        file.write(b"anew\n")
    assert (follower.read(), follower.position, follower.begins_anew()) == (b"anew\n", 5, False)
    follower.close()


def test_a_follower_keeps_a_file_that_was_deleted_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(b"one\n")
    follower = Follower(path)
    follower.read()
    assert not follower.moved() and follower.where() == path
    with path.open("ab") as file:
        path.unlink()
        path.write_bytes(b"another\n")
        file.write(b"two\n")
    assert follower.moved() and not follower.moved()
    assert (follower.read(), follower.where().read_bytes()) == (b"two\n", b"one\ntwo\n")
    follower.close()
    assert follower.where() == path


def test_a_ring_takes_a_million_lines_in_little_time() -> None:
    line = b"steps: 123 loss: 1.2345 iter time (s): 0.055 samples/sec: 18.027 and some more text\n"
    data = line * 1_000_000
    chunks = [data[at : at + logs.CHUNK] for at in range(0, len(data), logs.CHUNK)]
    ring = Ring(2000, 4 << 20)
    begun = time.process_time()
    for chunk in chunks:
        ring.feed(chunk)
    spent = time.process_time() - begun
    assert (len(ring), ring.end) == (2000, len(data))
    by_lines = seconds_of_a_reader_by_lines(chunks)
    assert spent <= 0.3 * by_lines, f"{spent:.3f} s against {by_lines:.3f} s"


SPECIAL = [b"a", b"\r", b"\x1b[2K", b"\xc2", b"\xc2\x85", b"\x9b1m", b"\xff", b"\t", b"\x00", "é日".encode()]


@CALM
@given(st.lists(st.lists(st.sampled_from(SPECIAL), max_size=5).map(b"".join), min_size=1, max_size=8))
def test_many_lines_are_shown_as_each_of_them(raws: list[bytes]) -> None:
    assert logs.shown_all(b"\n".join(raws)) == [logs.shown(raw) for raw in raws]


def test_a_very_long_line_among_others_is_cut() -> None:
    raws = [b"a", b"x" * (2 * logs.LINE_LIMIT), "é".encode() * 10, b""]
    assert logs.shown_all(b"\n".join(raws)) == [logs.shown(raw) for raw in raws]
    assert len(logs.shown_all(b"\n".join(raws))[1]) < 2 * logs.LINE_LIMIT


def plainly_on_screen(parts: list[str]) -> str:
    """Cell by cell."""
    cells: list[str] = []
    cursor = 0
    for part in parts:
        if part == "\r":
            cursor = 0
        elif part.endswith("K"):
            if part.endswith("2K"):
                cells = []
            elif part.endswith("1K"):
                cells = [" "] * min(cursor, len(cells)) + cells[cursor:]
            else:
                cells = cells[:cursor]
        elif not part.startswith("\x1b"):
            for character in part:
                cells += [" "] * (cursor + 1 - len(cells))
                cells[cursor] = character
                cursor += 1
    said = "".join(cells)
    return said.rstrip() if "\r" in parts else said


@CALM
@given(
    st.lists(
        st.sampled_from(["a", "bc", "def ", "\r", "\x1b[K", "\x1b[0K", "\x1b[1K", "\x1b[2K", "\x1b[31m"]),
        max_size=30,
    )
)
def test_a_line_is_shown_as_a_screen_would_show_it(parts: list[str]) -> None:
    assert shown("".join(parts).encode()) == plainly_on_screen(parts)


@pytest.mark.parametrize(
    "moves", ["\x1b[1K", "\x1b[2Ky", "\ry\x1b[1K", "y\x1b[1K", "\ry\x1b[2K", "\ry", "\x1b[K"]
)
def test_many_erasures_in_a_long_line_take_little_time(moves: str) -> None:
    begun = time.process_time()
    shown(("x" * 60_000 + moves * 10_000).encode())
    assert time.process_time() - begun < 0.2

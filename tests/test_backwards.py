"""Pages of a log backwards: from the ring and from the file, against the lines that paging forwards gives."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipectl.client import Failed
from dpiped import backwards, logfile, logs, messages, outcome
from dpiped.logs import Page
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.test_logs import CALM, PIECES, PLENTY, TEXTS, at_most, file_of, model_of, ring_of
from tests.web import Shim


def forwards(path: Path, upto: int, most: int) -> list[str]:
    read: list[str] = []
    after = 0
    while after < upto:
        page = logfile.read_lines(path, after, 100, upto, most)
        read += page.lines
        after = page.next
    return read


@CALM
@given(TEXTS, PIECES, st.integers(1, 6), st.integers(1, 40), st.integers(1, 6))
def test_pages_backwards_are_those_forwards_and_tile_the_file(
    data: bytes, pieces: list[int], limit: int, most: int, kept: int
) -> None:
    ring, model = ring_of(data, pieces, kept), model_of(data)
    with file_of(data) as path:
        expected = forwards(path, model.next, PLENTY)
        for from_ring in (True, False):
            read: list[str] = []
            before = model.next
            while before > 0:
                page = ring.page_before(before, limit, most) if from_ring else None
                page = page or backwards.lines_before(path, before, limit, most)
                assert page.next == before and 0 < len(page.lines) <= limit
                starts = [*model.starts, model.next]
                assert starts.index(before) - starts.index(page.first) == len(page.lines)
                read[:0] = page.lines
                before = page.first
            assert read == expected


@CALM
@given(TEXTS, st.integers(1, 6), st.data())
def test_before_any_place_end_the_last_lines_that_are_whole_there(
    data: bytes, limit: int, choose: st.DataObject
) -> None:
    ring, model = ring_of(data, []), model_of(data)
    before = choose.draw(st.integers(0, model.next))
    ends = [start + len(raw) + 1 for start, raw in model.lines]
    whole = sum(end <= before for end in ends)
    first = max(whole - limit, 0)
    starts = [*model.starts, model.next]
    lines = tuple(logs.shown(raw) for _, raw in model.lines[first:whole])
    expected = Page(lines, starts[first], starts[whole])
    with file_of(data) as path:
        assert backwards.lines_before(path, before, limit, PLENTY) == expected
        assert ring.page_before(before, limit, PLENTY) == expected


def test_very_long_lines_are_the_same_backwards(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    long = [b"<" + b"x" * size + b">" for size in (logs.CHUNK - 3, logs.CHUNK - 2, 3 * logs.CHUNK)]
    path.write_bytes(b"before\n" + b"\n".join(long) + b"\nafter\n")
    upto = path.stat().st_size
    read: list[str] = []
    before = upto
    while before > 0:
        page = backwards.lines_before(path, before, 2, logs.CHUNK)
        assert page.next == before > page.first
        read[:0] = page.lines
        before = page.first
    assert read == forwards(path, upto, logs.CHUNK) and len(read) == 5
    assert backwards.lines_before(tmp_path / "none", 9, 1, 9) == Page((), 0, 0)


SAID = st.lists(
    st.sampled_from(
        [b"a", b"word", b"[rank1]: ", b" ", b"\n", b"\n", b"\r", b"\x1b[31m", b"\xff", b"\xc2\x85"]
    ),
    max_size=40,
).map(b"".join)


def pieces_of(raw: bytes) -> list[str]:
    return [logs.shown(piece).strip() for piece in raw.split(b"\r")]


@CALM
@given(SAID, st.sampled_from(["a", "word", "a a", "\ufffd", "a\ufffdword", "[rank1]: a", "none"]))
def test_the_last_line_that_is_a_text_else_the_last_with_it(data: bytes, text: str) -> None:
    needle = max(text.split("\ufffd"), key=len).encode()
    model = model_of(data)
    lines = [*model.lines, (model.next, model.unfinished)]
    same = [
        start
        for start, raw in lines
        if any(text in (said, said.removeprefix("[rank1]:").lstrip()) for said in pieces_of(raw))
    ]
    having = [start for start, raw in lines if needle in raw or any(text in said for said in pieces_of(raw))]
    found = (same or having) if needle else []
    with file_of(data) as path:
        assert backwards.line_of(path, text) == (found[-1] if found else None)


def test_a_text_is_found_across_blocks_and_not_looked_for_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    for place in (logs.CHUNK - 3, logs.CHUNK, logs.CHUNK + 3):
        path.write_bytes(b"begin\n" * 10 + b"NEEDLE" + b"x" * (place - 7) + b"\n")
        assert backwards.line_of(path, "NEEDLE") == 60
        # A bar that went on for long, and what was printed behind it.
        bar = b"begin\n" * 10 + b"bar\r" * (place // 4) + b"NEEDLE\n"
        path.write_bytes(bar + b"not NEEDLE\n" * 5000)
        assert backwards.line_of(path, "NEEDLE") == 60
        path.write_bytes(bar + b"not NEEDLE\n" * 2 * backwards.LOOKED_AT)
        assert backwards.line_of(path, "NEEDLE") == path.stat().st_size - 11
    path.write_bytes(b"NEEDLE" + b"x\n" * (backwards.LOOK_BACK // 2))
    assert backwards.line_of(path, "NEEDLE") is None
    assert backwards.line_of(tmp_path / "none", "NEEDLE") is None
    cut = "E: " + "x" * (outcome.LINE_LIMIT - 3)
    path.write_bytes(f"{cut}yyy\nsaid: {cut}\n".encode())
    assert backwards.line_of(path, cut) == 0


def test_before_a_place_behind_the_end_of_a_log_that_shrank(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(b"one\ntwo\nun")
    for before in (11, 12, 1 << 50):
        with at_most(2.0):
            assert backwards.lines_before(path, before, 1, PLENTY) == Page(("two",), 4, 8)


def test_where_a_run_says_why_it_failed(shim: Shim) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config("raises"))
    workspace.until_ended(run)
    found = shim.get(f"/runs/{run}")[1]
    line, cursor = found["failure"]["line"], found["failure"]["cursor"]
    assert line and found["summary"]["line"] == line == shim.get("/status")[1]["last_run"]["line"]
    assert line in shim.get(f"/runs/{run}/lines", after=cursor, limit=1)[1]["lines"][0]
    (workspace.runs_dir / run / "output.log").write_text("something else\n")
    assert shim.get(f"/runs/{run}")[1]["failure"] is None


def test_what_a_stop_without_saving_would_lose(shim: Shim) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config(until=str(workspace.go)))
    active = workspace.until_step(2)
    assert (active["first_step"], active["checkpoint_step"], active["checkpoint_age_seconds"]) == (
        1,
        None,
        None,
    )
    saved = shim.post("/train/save")[1]["checkpoint"]
    active = shim.get("/status")[1]["run"]
    assert saved == f"global_step{active['checkpoint_step']}" and 0 <= active["checkpoint_age_seconds"] < 30
    latest = Path(active["train_dir"]) / "latest"
    os.utime(latest, (latest.stat().st_mtime - 600,) * 2)
    # Only a new daemon has to believe the file's own time.
    assert workspace.ctl("reload")[0] == 0
    assert 600 <= shim.get("/status")[1]["run"]["checkpoint_age_seconds"] < 630
    assert shim.post("/train/stop", mode="save")[1]["status"] == "stopped"
    resumed = shim.post("/train/resume", {"run": run})[1]["run"]

    def stepped() -> Any:
        run = shim.get("/status")[1]["run"]
        return run if run["first_step"] is not None else None

    again = wait_until(stepped, "its first step")
    assert again["id"] == resumed and again["first_step"] > active["checkpoint_step"]
    assert shim.get(f"/runs/{resumed}")[1]["summary"]["line"] is None


def pages_backwards(shim: Shim, run: str, limit: int) -> tuple[list[str], int]:
    """All lines from the end on, and where the end was."""
    page = shim.get(f"/runs/{run}/lines", limit=limit)[1]
    lines, end, before = page["lines"], page["next"], page["first"]
    while before > 0:
        page = shim.get(f"/runs/{run}/lines", before=before, limit=limit)[1]
        assert page["next"] == before and page["current"] == ""
        lines = page["lines"] + lines
        before = page["first"]
    return lines, end


def test_a_live_and_a_past_run_are_read_backwards(workspace: Workspace) -> None:
    """The ring holds the last lines only."""
    workspace.start_daemon(DIFFPIPE_LOG_LINES="100")
    shim = Shim(workspace)
    run = workspace.start(workspace.config("chatty", lines=3000, steps=1_000_000, until=str(workspace.go)))
    workspace.until_step(3)
    lines, end = pages_backwards(shim, run, 700)
    assert lines == workspace.log_text(run).encode()[:end].decode().splitlines() and len(lines) > 3000
    workspace.go.touch()
    workspace.until_ended(run)
    lines, end = pages_backwards(shim, run, 700)
    text = workspace.log_text(run)
    assert lines == text.splitlines() and end == len(text.encode())
    assert shim.get(f"/runs/{run}/lines", before=0)[1]["lines"] == []
    assert shim.get(f"/runs/{run}/lines", before=1 << 59, limit=1)[1]["lines"] == lines[-1:]
    with pytest.raises(Failed) as refused:
        workspace.ask(messages.ReadLog(run, before=10, after=10))
    assert refused.value.error.field == "before"
    status, found = shim.get(f"/runs/{run}/lines", before=10, after=10)
    assert status == 422 and found["detail"][0]["loc"] == ["query", "before"]

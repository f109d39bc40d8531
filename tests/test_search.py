"""The search in a log, against one plain loop over all shown lines."""

import asyncio
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dpiped import logfile, logs, searching
from dpiped.aside import Aside
from dpiped.searching import Hits
from tests.harness import Workspace
from tests.test_logs import CALM, file_of, model_of
from tests.web import Shim

WORDS = st.sampled_from(
    [*"aAkKsSβ\n\n\r\t", "Loss", "ß", "ſ", "K", "é", "É", "日本", "\x1b[31m", "\x1b[2K", "\x85", " ", "ﬀ"]
)
LOGS = st.lists(st.one_of(WORDS.map(str.encode), st.sampled_from([b"\xff", b"\xc3", b"\x9b"])), max_size=60)
NEEDLES = st.one_of(
    st.sampled_from(
        ["a", "LOSS", "ss", "SS", "ß", "k", "K", "é", "É", "本", "aa", "\ufffd", "a\na", "ff", "\t"]
    ),
    st.lists(WORDS, min_size=1, max_size=3).map("".join),
)


def plainly(data: bytes, text: str, after: int) -> list[int]:
    lines = model_of(data).lines
    return [at for at, raw in lines if at >= after and text.casefold() in logs.shown(raw).casefold()]


def search(path: Path, text: str, after: int, limit: int, upto: int) -> Hits:
    async def asked() -> Hits:
        return await searching.search(path, text, after, limit, upto, Aside())

    return asyncio.run(asked())


def search_all(path: Path, text: str, after: int, limit: int, upto: int) -> list[int]:
    """As a client does it: on from `next` until the end."""
    found: list[int] = []
    while True:
        hits = search(path, text, after, limit, upto)
        assert len(hits.matches) <= limit and (hits.next > after or hits.end)
        found += hits.matches
        if hits.end:
            return found
        after = hits.next


@CALM
@given(LOGS.map(b"".join), NEEDLES, st.integers(1, 3), st.data())
def test_it_finds_what_a_plain_loop_finds(data: bytes, text: str, limit: int, choose: st.DataObject) -> None:
    upto = model_of(data).next
    after = choose.draw(st.integers(0, len(data) + 2))
    with file_of(data) as path:
        assert search_all(path, text, after, limit, upto) == plainly(data, text, after)


def test_no_letter_that_folds_to_ascii_is_taken_for_plain() -> None:
    letters = [chr(code) for code in range(0x80, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    folding = [each for each in letters if any(part.isascii() for part in each.casefold())]
    assert len(folding) >= 19 and all(each.encode()[0] in searching.ODD for each in folding)
    assert all(chr(code).encode()[0] in searching.ODD for code in range(0x80, 0xA0))


def test_long_lines_and_many_blocks(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    long = b"head" + b"x" * (2 * searching.BLOCK) + b"middle" + b"x" * (2 * searching.BLOCK) + b"tail\n"
    data = (b"plain line of text\n" * 30_000 + b"NEEDLE\n" + long) * 2 + b"unfinished needle"
    path.write_bytes(data)
    upto, _ = logfile.extent(path)
    for text in ("needle", "HEADx", "xtail", "middle", "nothing"):
        assert search_all(path, text, 0, 500, upto) == plainly(data, text, 0), text
    assert len(plainly(data, "needle", 0)) == 2 and not plainly(data, "middle", 0)
    assert search(tmp_path / "none", "x", 5, 1, 9) == Hits((), 5, True)
    assert search(path, "nothing", 0, 9, len(data) * 2).end


def test_one_request_reads_a_bounded_piece(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(b"some line of a log\n" * 2_000_000)
    hits = search(path, "absent", 0, 10, path.stat().st_size)
    assert not hits.end and searching.WORK <= hits.next < 2 * searching.WORK


def test_a_live_and_a_past_run_are_searched(workspace: Workspace) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    run = workspace.start(workspace.config("chatty", lines=300, steps=1_000_000, until=str(workspace.go)))
    workspace.until_step(3)
    data = workspace.log_text(run).encode()
    lines = plainly(data, "line 29", 0)
    assert len(lines) == 11
    status, found = shim.get(f"/runs/{run}/search", text="LINE 29", limit=5)
    assert status == 200 and found["matches"] == lines[:5] and not found["end"]
    rest = shim.get("/runs/last/search", text="LINE 29", after=found["next"])[1]
    assert rest["matches"] == lines[5:] and rest["end"] and rest["run"] == run
    page = shim.get(f"/runs/{run}/lines", after=lines[3], limit=1)[1]
    assert page["lines"] == ["line 292 of a chatty trainer"]
    workspace.go.touch()
    workspace.until_ended(run)
    past = shim.get(f"/runs/{run}/search", text="training complete")[1]
    assert past["end"] and len(past["matches"]) == 1
    for asked in ({}, {"text": ""}, {"text": "x" * 201}, {"text": "x", "limit": 1001}):
        status, wrong = shim.get(f"/runs/{run}/search", **asked)
        assert status == 422 and wrong["detail"][0]["loc"][1] == [*asked, "text"][-1 if len(asked) < 2 else 1]
    log = workspace.runs_dir / run / "output.log"
    log.unlink()
    log.mkdir()
    for name in ("lines", "series", "search", "log"):
        status, wrong = shim.get(f"/runs/{run}/{name}", **({"text": "x"} if name == "search" else {}))
        assert status == 409 and wrong["detail"] == "output.log can't be read: Is a directory"
    assert shim.get("/train/logs")[0] == 409 and shim.get(f"/runs/{run}")[0] == 200

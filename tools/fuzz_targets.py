"""What is fuzzed: the daemon's parsers, each as one function of bytes that checks what must hold.

Why: a parser that merely does not crash may still lie. So each target says what is true of every input: a log
cut into other chunks says the same, an error can be sent, a page has no gap, a secret is gone.

Known gap: time is bounded by the fuzzer (`-timeout`) and by tests/test_fuzz.py, not per target.
"""

import re
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec

from dpiped import (
    arguments,
    backwards,
    form_paths,
    forms,
    logfile,
    logs,
    masking,
    messages,
    outcome,
    redaction,
    searching,
)
from dpiped.curve import Curve
from dpiped.errors import DpipedError, InvalidInput
from dpiped.progress import Progress
from dpiped.rundir import Concluded, Exit, StopAsked
from dpiped.server import Server

LINES, BYTES = 7, 200
"""Bounds of the ring: small, so that they are met."""
FOLDERS = {
    name: Path("/w") / name for name in ("dataset_path", "config_dir", "output_dir", *form_paths.MODELS)
}
_SERVER: Server = object.__new__(Server)
"""Only decodes here; a socket would need a context and threads."""
_SERVER._decoder = messages.request_decoder()
_SERVER._answer = None  # type: ignore[assignment]
_REPLIES = messages.reply_decoder()


class Taken(Exception):
    """The request that would have been answered."""


async def _take(request: messages.AnyRequest) -> messages.AnyReply:
    raise Taken(request)


_SERVER._answer = _take


def request(data: bytes) -> None:
    """A message from a stranger: one reply or one request, nothing else; and either can be sent."""
    try:
        reply = _run(_SERVER._reply_to([b"peer", data[:8], data[8:]]))
    except Taken as taken:
        asked = taken.args[0]
    else:
        assert isinstance(reply, messages.Error) and reply.code in ("invalid", "bad_request"), reply
        _sendable(reply, len(data))
        return
    again = messages.request_decoder().decode(messages.encode(asked))
    assert msgspec.structs.astuple(again) == msgspec.structs.astuple(asked) or "nan" in repr(
        msgspec.structs.astuple(asked)
    )
    _use(asked, len(data))


def _use(asked: messages.AnyRequest, length: int) -> None:
    """What can be said of it without a look at the machine."""
    works: list[Callable[[], object]] = []
    form = getattr(asked, "form", None)
    if form is not None:
        works.append(lambda: forms.generate(form, forms.check(form, 1, None), FOLDERS, 1))
    if words := getattr(asked, "args", ()):
        works += [lambda: arguments.read(words), lambda: arguments.lasting(words)]
    for work in works:
        try:
            work()
        except DpipedError as error:
            fields = tuple(messages.FieldError(*each) for each in getattr(error, "fields", ()))
            assert error.field
            _sendable(messages.Error(error.code, error.message, error.field, error.hint, fields), length)


def _sendable(error: messages.Error, length: int) -> None:
    """It comes back as it was, and is hardly longer than what it speaks of."""
    sent = messages.encode(error)
    assert _REPLIES.decode(sent) == error
    assert len(sent) < 20_000 + 4 * length, len(sent)


def _run(work: Coroutine[Any, Any, messages.AnyReply]) -> messages.AnyReply:
    """Without an event loop, as it waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        reply: messages.AnyReply = ended.value
        return reply
    raise AssertionError("it waits")


def log(data: bytes) -> None:
    """The output of a training. The first two bytes say how it is cut."""
    chunks, text = list(_cut(data)), data[2:]
    whole, cut = Progress(), Progress()
    ring, unbounded = logs.Ring(LINES, BYTES), logs.Ring(1 << 30, 1 << 60)
    curve, same = Curve(32), Curve(32)
    whole.feed(text)
    unbounded.feed(text)
    same.feed(text)
    for chunk in chunks:
        cut.feed(chunk)
        ring.feed(chunk)
        curve.feed(chunk)
        assert len(ring) <= LINES and len(curve) <= 32
        kept = sum(len(raw) for _, raw in ring._lines)
        assert kept <= BYTES or len(ring) == 1
    assert_same(whole, cut)
    _check_ring(ring, unbounded, text)
    for points in (10, 100):
        assert repr(curve.series(points, None, None)) == repr(same.series(points, None, None))
    assert curve.epochs == same.epochs and (curve.first, curve.last) == (same.first, same.last)
    for progress in (whole, cut):
        progress.finish()
    assert_same(whole, cut)
    _conclude(cut)


def assert_same(one: Progress, other: Progress) -> None:
    """As text, where nan equals nan."""
    first, second = (msgspec.structs.asdict(each.snapshot()) for each in (one, other))
    for name, value in first.items():
        assert repr(value) == repr(second[name]), (name, value, second[name])


def _check_ring(ring: logs.Ring, unbounded: logs.Ring, text: bytes) -> None:
    raws = text.split(b"\n")
    assert [raw for _, raw in unbounded._lines] == raws[:-1]
    assert ring.end == len(text) and ring.next == len(text) - len(raws[-1])
    assert [raw for _, raw in ring._lines] == raws[:-1][len(raws) - 1 - len(ring) :]
    assert all(text[at : at + len(raw)] == raw for at, raw in ring._lines)
    page = ring.page(ring.first, LINES, 1 << 20)
    assert page is not None and page.next == ring.next and len(page.lines) == len(ring)


def _conclude(progress: Progress) -> None:
    """Whatever was printed, there is an outcome, short enough for the room that is kept for it."""
    said = progress.snapshot()
    ends = (None, Exit(0, None, 1.0), Exit(1, None, 1.0), Exit(None, 9, 1.0), Exit(None, 15, 1.0))
    for exit_ in ends:
        for stop in (None, StopAsked("term", "request", 1.0, 2.0, "b")):
            concluded = outcome.conclude(exit_, stop, said)
            record = msgspec.json.encode(concluded)
            msgspec.json.decode(record, type=Concluded)
            assert concluded.line is None or len(concluded.line) <= outcome.LINE_LIMIT
            assert concluded.reason is None or len(concluded.reason) < 2000
    outcome.failing(said)
    outcome.hang(said)


def _cut(data: bytes) -> Iterator[bytes]:
    """Pieces whose lengths follow from the first two bytes."""
    state, text = int.from_bytes(data[:2], "big") + 1, data[2:]
    at = 0
    while at < len(text):
        state = (state * 75 + 74) % 65537
        length = 1 + state % (7 if state % 3 else 700)
        yield text[at : at + length]
        at += length


def pages(data: bytes) -> None:
    """A log's file, read from both ends, and searched for its own words. The first byte says how."""
    how, text = (data[0] if data else 0), data[1:]
    limit, most = how % 5 + 1, (1 << 20, 30)[how & 1]
    with tempfile.NamedTemporaryFile(prefix="dpiped-fuzz-") as file:
        file.write(text)
        file.flush()
        path = Path(file.name)
        upto, size = logfile.extent(path)
        assert (upto, size) == (text.rfind(b"\n") + 1, len(text))
        forwards, at = [], 0
        while at < upto:
            page = logfile.read_lines(path, at, limit, upto, most)
            assert page.first == at and page.next > at and 0 < len(page.lines) <= limit
            forwards += list(page.lines)
            at = page.next
        assert at == upto
        behind: list[str] = []
        while at > 0:
            page = backwards.lines_before(path, at, limit, most)
            assert page.next == at and page.first < at and 0 < len(page.lines) <= limit
            behind[:0] = page.lines
            at = page.first
        assert behind == forwards
        _search(text[:upto], forwards)
        for line in forwards[-1:]:
            backwards.line_of(path, line.strip()[: outcome.LINE_LIMIT])


def _search(block: bytes, shown: list[str]) -> None:
    """What is found is what a plain look at each line finds."""
    words = [word for line in shown[:3] for word in re.findall(r"\S+", line[:200])[:2]] + ["a", "SS", "%|"]
    starts = [0, *(found.end() for found in re.finditer(rb"\n", block))]
    for word in words if block else ():
        folded = word.casefold()
        plain = [at for at, line in zip(starts, shown, strict=False) if folded in line.casefold()]
        assert searching.in_block(block, folded) == plain, word


KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"


def toml(data: bytes) -> None:
    """A config: what is shown of it says the same, without the key."""
    text = data.decode(errors="replace").replace("\r\n", "\n")
    try:
        hidden = redaction.hide(text)
    except (ValueError, RecursionError):
        return
    except InvalidInput as error:
        assert error.field == redaction.FIELD and KEY not in error.message
        return
    if text.count(KEY) == 1 and redaction.key_in(_loads(text)) == KEY:
        assert KEY not in hidden
        assert redaction.key_in(_loads(redaction.insert(hidden, KEY))) == KEY
    assert redaction.hide(hidden) == hidden
    masked = masking.mask(hidden)
    assert _plain(_loads(masked)) == _plain(masking.masked(_loads(hidden)))
    assert masking.mask(masked) == masked


def _plain(value: Any) -> str:
    """As text, where nan equals nan; keys in one order, since tables are written after values."""
    if isinstance(value, dict):
        return repr(sorted((key, _plain(inner)) for key, inner in value.items()))
    return repr([_plain(each) for each in value]) if isinstance(value, list) else repr(value)


def _loads(text: str) -> dict[str, Any]:
    from dpiped import tomltext

    return tomltext.loads(text)


TARGETS: dict[str, Callable[[bytes], None]] = {"request": request, "log": log, "pages": pages, "toml": toml}

"""The loss curve: against a plain model, cut anywhere, put together, kept by a client; and over HTTP."""

import math
import signal
import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from dpipectl.client import Failed
from dpipectl.http.app import create_app
from dpipectl.http.guard import Policy
from dpiped import curve, messages
from dpiped.curve import Bucket, Curve
from tests.harness import Workspace
from tests.test_logs import CALM
from tests.test_progress import step_line
from tests.web import Shim

# Sixteenths: their sums are exact in any order.
LOSSES = st.one_of(
    st.integers(-64, 64).map(lambda n: f"{n / 16}"), st.sampled_from(["nan", "inf", "-inf", "tensor(1.)"])
)
GAPS = st.one_of(st.integers(1, 3), st.integers(-1, 40))
PARTS = st.lists(
    st.one_of(
        st.tuples(GAPS, LOSSES),
        st.sampled_from(
            [
                b"Started new epoch: 2\n",
                b"Started new epoch: 3\n",
                b"Resuming at epoch: 4, step: 32\n",
                b"word\r",
                b"\n",
            ]
        ),
    ),
    max_size=60,
)


def log_of(parts: list[tuple[int, str] | bytes], start: int = 0) -> tuple[bytes, list[tuple[int, float]]]:
    """The log, and its (step, loss) with nan for what is not finite."""
    data, found, step, last = b"", [], start, 0
    for part in parts:
        if isinstance(part, bytes):
            data += part
            continue
        number = max(step + part[0], 0)
        data += step_line(number, part[1])
        if number > last:
            loss = math.nan if part[1][0] == "t" else float(part[1])
            found.append((number, loss if math.isfinite(loss) else math.nan))
            last = number
        step = max(step, last)
    return data, found


def buckets_of(found: list[tuple[int, float]], width: int) -> tuple[Bucket, ...]:
    made = []
    for index in sorted({(step - 1) // width for step, _ in found}):
        inside = [(step, loss) for step, loss in found if (step - 1) // width == index]
        finite = [loss for _, loss in inside if math.isfinite(loss)]
        figures = (sum(finite) / len(finite), min(finite), max(finite)) if finite else (None, None, None)
        made.append((inside[0][0], inside[-1][0], *figures))
    return tuple(made)


def fed(data: bytes, places: list[int], limit: int = curve.LIMIT) -> Curve:
    made = Curve(limit)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    for begin, end in pairwise(edges):
        made.feed(data[begin:end])
    return made


@CALM
@given(PARTS, st.lists(st.integers(0, 10_000), max_size=12), st.integers(1, 30))
def test_cut_anywhere_it_is_the_same_curve_and_what_a_plain_model_says(
    parts: list[tuple[int, str] | bytes], places: list[int], points: int
) -> None:
    data, found = log_of(parts)
    made, whole = fed(data, places), fed(data, [])
    part = made.series(points, None, None)
    assert part.buckets == buckets_of(found, part.width) and part.whole
    assert (part, made.epochs) == (whole.series(points, None, None), whole.epochs)
    if found:
        assert (made.first, made.last) == (found[0][0], found[-1][0])
        spans = [
            (found[-1][0] - 1) // w - (found[0][0] - 1) // w + 1 for w in (part.width, part.width // 2 or 1)
        ]
        assert spans[0] <= points and (part.width == 1 or spans[1] > points)


@CALM
@given(st.lists(st.tuples(GAPS, LOSSES), min_size=1, max_size=400), st.data())
def test_put_together_the_buckets_stay_right_and_the_memory_bounded(
    parts: list[tuple[int, str] | bytes], choose: st.DataObject
) -> None:
    data, found = log_of(parts * 3, choose.draw(st.integers(0, 5)))
    made = Curve(64)
    lines = data.splitlines(keepends=True)
    size = choose.draw(st.integers(2, 12))
    for at in range(0, len(lines), size):
        made.feed(b"".join(lines[at : at + size]))
        assert len(made) <= 2 * 64
    for points in (1, 7, 12):
        part = made.series(points, None, None)
        assert part.buckets == buckets_of(found, part.width)


def test_full_chunks_of_short_lines_keep_the_memory_bounded() -> None:
    made = Curve(64)
    for begin in range(1, 40 * 64, 64):
        made.feed(
            b"".join(
                b"steps: %d loss: 1 iter time (s): 1 samples/sec: 1\n" % n for n in range(begin, begin + 64)
            )
        )
        assert len(made) <= 64
    assert made.series(5, None, None).buckets[-1][1] == made.last == 40 * 64


@CALM
@given(PARTS.map(lambda parts: parts * 4), st.lists(st.integers(0, 40_000), max_size=12), st.integers(1, 12))
def test_a_client_that_replaces_from_the_first_bucket_on_has_the_whole(
    parts: list[tuple[int, str] | bytes], places: list[int], points: int
) -> None:
    data, _ = log_of(parts)
    made = Curve(64)
    width: int | None = None
    after: int | None = None
    kept: tuple[Bucket, ...] = ()
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    for begin, end in pairwise(edges):
        made.feed(data[begin:end])
        part = made.series(points, width, after)
        if part.whole:
            kept = part.buckets
        elif part.buckets:
            kept = (*(each for each in kept if each[0] < part.buckets[0][0]), *part.buckets)
        width, after = part.width, made.last
        assert kept == made.series(points, None, None).buckets


def test_epochs_begin_with_the_first_step_after_their_line() -> None:
    steps = [step_line(number) for number in range(1, 9)]
    said = b"Started new epoch: %d\n"
    made = fed(b"".join([*steps[:3], said % 2, *steps[3:5], said % 3, said % 4, *steps[5:]]), [])
    assert made.epochs == ((1, 1), (2, 4), (4, 6))
    resumed = fed(b"Resuming at epoch: 4, step: 32\n" + step_line(32) + said % 5 + step_line(33), [])
    assert resumed.epochs == ((4, 32), (5, 33))
    # With `every` 2 only each second epoch is printed.
    for every in (1, 2):
        many = Curve()
        for number in range(every, 20_000 * every + 1, every):
            many.feed(said % number + step_line(number))
        assert curve.EPOCHS_LIMIT // 3 < len(many.epochs) <= curve.EPOCHS_LIMIT
        assert many.epochs == tuple((n, n) for n in range(every, 20_000 * every + 1, 16 * every))


def test_a_misprinted_step_does_not_hide_those_that_follow() -> None:
    steps = [step_line(number) for number in (1, 2, 10**12, 3, curve.LEAP + 3, 4)]
    for places in ([], [70, 140, 210, 280]):
        made = fed(b"".join(steps), places)
        assert (made.first, made.last, len(made)) == (1, curve.LEAP + 3, 4)
    assert fed(step_line(curve.LEAP + 1) + step_line(5), []).first == 5


def test_losses_whose_sum_is_too_large_have_no_mean() -> None:
    made = fed(step_line(1, "1e308") + step_line(2, "1.5e308") + step_line(3, "0.1") * 3, [])
    assert made.series(1, None, None).buckets == ((1, 3, None, 0.1, 1.5e308),)
    tenths = fed(b"".join(step_line(number, "0.1") for number in (1, 2, 3)), [])
    assert tenths.series(1, None, None).buckets == ((1, 3, 0.1, 0.1, 0.1),)


@pytest.mark.alone
def test_a_hundred_thousand_steps_are_answered_in_30_ms() -> None:
    made = fed(
        b"".join(step_line(number) for number in range(1, 100_001)), list(range(0, 20_000_000, 1 << 20))
    )
    for points in (1000, 5000):
        begun = time.process_time()
        part = made.series(points, None, None)
        spent = time.process_time() - begun
        assert points / 2 < len(part.buckets) <= points and spent < 0.03, f"{spent:.3f} s"


def test_a_live_curve_and_that_of_a_past_run(workspace: Workspace) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    assert shim.get("/runs/last/series")[0] == 404
    run = workspace.start(workspace.config(until=str(workspace.go), seconds_per_step=0.01))
    workspace.until_step(30)
    status, found = shim.get(f"/runs/{run}/series", points=10)
    assert status == 200 and found["whole"] and not found["eof"] and found["epochs"] == [[1, 1]]
    assert found["width"] >= 4 and found["first"] == 1 and found["last"] >= 30
    assert found["points"][0][0] == 1 and found["points"][0][3:] == [round(1 / found["width"], 4), 1.0]
    more = shim.get(f"/runs/{run}/series", points=5000, width=1, after=found["last"])[1]
    assert not more["whole"] and more["points"][0][0] == found["last"]
    workspace.go.touch()
    workspace.until_ended(run)
    # The curve is known: the log is not read again.
    log = workspace.runs_dir / run / "output.log"
    log.write_bytes(b"x" * log.stat().st_size)
    for _ in range(2):
        past = shim.get(f"/runs/{run}/series", points=5000)[1]
        assert past["eof"] and past["whole"] and past["last"] == len(past["points"])
    assert past["points"][24] == [25, 25, 0.04, 0.04, 0.04]
    assert shim.get("/runs/last/series", points=9)[0] == 422
    log.unlink()
    with pytest.raises(Failed, match=r"output\.log is gone"):
        workspace.ask(messages.ReadSeries())


def test_a_curve_is_waited_for_longer_than_other_answers(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a long log again takes seconds. Here the daemon is stopped for a moment."""
    monkeypatch.setattr("dpipectl.http.daemon.TIMEOUT", 0.1)
    daemon = workspace.start_daemon()
    app = create_app(Policy(check_host=False), workspace.env["DIFFPIPE_SOCKET"])
    with TestClient(app) as client:
        assert client.get("/runs/last/series").status_code == 404
        daemon.send_signal(signal.SIGSTOP)
        goes_on = threading.Timer(0.5, daemon.send_signal, [signal.SIGCONT])
        goes_on.start()
        try:
            assert client.get("/runs").status_code == 503
            assert client.get("/runs/last/series").status_code == 404
        finally:
            goes_on.join()

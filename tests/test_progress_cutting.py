"""Progress says the same however the bytes of a log are cut, raises for none, and is fast."""

import time
from itertools import pairwise

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpiped.progress import Progress, Snapshot
from tests.helpers import seconds_of_a_reader_by_lines
from tests.test_progress import (
    BAR,
    BEYOND,
    CHILD_DIED,
    FULL,
    after,
    checkpoint_lines,
    step_line,
    traceback_of,
)

CALM = settings(deadline=None)
"""A busy machine is no reason to fail."""


def facts(said: Snapshot, *but: str) -> dict[str, str]:
    """The fields as text, so that nan equals nan."""
    return {name: repr(value) for name, value in msgspec.structs.asdict(said).items() if name not in but}


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


LINES = st.sampled_from(
    [
        b"[..] [INFO] [comm.py:821:init_distributed] cdb=None\n",
        b"\rLoading pipeline components...:  57%|##   | 4/7 [00:00<00:00, 17.6it/s]",
        b"using video_clip_mode=single_beginning\n",
        b"caching latents: (1.0, 1)\n",
        b"caching text embeddings: /data/in\n",
        b"\rMap: 100%|#####| 10/10 [00:00<00:00, 1200.00 examples/s]\n",
        b"trainable params: 1,024 || all params: 9,000\n",
        b"Global batch size = 4\n",
        b"Running eval\n",
        BAR,
        FULL,
        BEYOND,
        b"\n",
        b"\r\n",
        b"Saving model to directory epoch3\n",
        b"TRAINING COMPLETE!\n",
        b"Manually quitting\n",
        b"[..] [INFO] [config.py:962:print]   steps_per_print .............. 10\n",
        b"words of no meaning \xff\xfe\xc3",
        b"[..] [ERROR] [launch.py:341:sigkill_handler] ['x'] exits with return code = -9\n",
    ]
)
LOGS = st.lists(
    st.one_of(
        LINES,
        st.integers(1, 300).map(step_line),
        st.integers(1, 300).map(lambda number: step_line(number, "nan", "inf", "0.000")),
        st.integers(1, 9).map(lambda number: b"Started new epoch: %d\n" % number),
        st.integers(1, 300).map(lambda number: b"Resuming at epoch: 3, step: %d\n" % number),
        st.integers(1, 300).map(checkpoint_lines),
    ),
    max_size=25,
).map(b"".join)
TRACEBACKS = st.lists(
    st.one_of(
        st.integers(1, 300).map(step_line),
        st.sampled_from(
            [CHILD_DIED, traceback_of("ValueError: 1"), traceback_of("KeyError: 'k'", "[rank1]: ")]
        ),
        st.just(b"some line\n"),
        st.just(BAR),
    ),
    max_size=12,
).map(b"".join)
PLACES = st.lists(st.integers(0, 1 << 16), max_size=30)


@CALM
@given(LOGS, PLACES)
def test_any_cutting_gives_the_same_facts(data: bytes, places: list[int]) -> None:
    assert facts(after(*cut(data, places))) == facts(after(data))


@CALM
@given(LOGS)
def test_one_byte_at_a_time_gives_the_same_facts(data: bytes) -> None:
    data = data[:1500]
    single = [data[at : at + 1] for at in range(len(data))]
    assert facts(after(*single)) == facts(after(data))


@CALM
@given(TRACEBACKS, PLACES)
@example(CHILD_DIED, [len(b"Process Process-2:\n")])
def test_any_cutting_gives_the_same_verdict_on_the_caching_process(data: bytes, places: list[int]) -> None:
    assert after(*cut(data, places)).child_died == after(data).child_died


@CALM
@given(TRACEBACKS, PLACES)
@example(
    traceback_of("ValueError: 1") + step_line(1) + step_line(2) + CHILD_DIED + step_line(3), list(range(900))
)
def test_any_cutting_keeps_the_same_evidence(data: bytes, places: list[int]) -> None:
    assert after(*cut(data, places)).evidence == after(data).evidence


@CALM
@given(st.binary(max_size=2000), PLACES)
def test_random_bytes_never_raise_and_leave_a_true_tail(data: bytes, places: list[int]) -> None:
    said = after(*cut(data, places))
    assert said.tail == data
    assert facts(said) == facts(after(data))


@CALM
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [
                    b"steps: ",
                    b" loss: ",
                    b" iter time (s): ",
                    b" samples/sec: ",
                    b"Started new epoch: ",
                    b"Resuming at epoch: ",
                    b", step: ",
                    b"Global batch size = ",
                    b"Checkpoint global_step",
                    b"steps_per_print .",
                    b" is about to be saved!",
                    b"Saving model checkpoint: /",
                    b"Traceback (most recent call last):",
                    b"exits with return code = ",
                    b"Process Process-",
                    b"\n",
                    b"\r",
                    b"0",
                    b"-",
                    b"7",
                ]
            ),
        ),
        max_size=60,
    )
)
def test_fragments_of_marks_never_raise(parts: list[bytes]) -> None:
    progress = Progress()
    for part in parts:
        progress.feed(part)
        progress.snapshot()
    assert progress.snapshot().tail == b"".join(parts)
    progress.finish()
    assert progress.snapshot().tail.startswith(b"".join(parts))


def test_a_million_lines_cost_little() -> None:
    noise = b"[2026-03-04 05:06:07,089] [INFO] [config.py:962:print]   some_key ............ True\n"
    plain = b"steps: %d loss: 1.2345 iter time (s): 0.055 samples/sec: 18.027\n"
    block = b"".join(noise * 19 + plain % number for number in range(1, 50_001))
    assert block.count(b"\n") == 1_000_000
    chunks = [block[at : at + (1 << 20)] for at in range(0, len(block), 1 << 20)]
    progress = Progress()
    begun = time.process_time()
    for chunk in chunks:
        progress.feed(chunk)
    spent = time.process_time() - begun
    assert progress.snapshot().step == 50_000
    by_lines = seconds_of_a_reader_by_lines(chunks)
    assert spent <= 1.2 * by_lines, f"{spent:.3f} s against {by_lines:.3f} s"

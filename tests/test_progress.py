"""What is read out of a training's output: marks, numbers, tracebacks, however the bytes are cut."""

import math
import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpiped.progress import CARRY_LIMIT, EVIDENCE_LIMIT, TAIL_LIMIT, Progress, Snapshot

CPU_LIMIT = 0.4
TRAIN_DIR = "/data/out/20260304_05-06-07"


def step_line(number: int, loss: str = "1.2500", seconds: str = "0.500", rate: str = "8.000") -> bytes:
    head = f"[2026-03-04 05:06:07,089] [INFO] [logging.py:123:log_dist] [Rank 0] step={number}, skipped=0\n"
    return (head + f"steps: {number} loss: {loss} iter time (s): {seconds} samples/sec: {rate}\n").encode()


def checkpoint_lines(number: int) -> bytes:
    head = "[2026-03-04 05:06:07,089] [INFO] [logging.py:123:log_dist] [Rank 0] "
    return (
        f"{head}[Torch] Checkpoint global_step{number} is about to be saved!\n"
        f"{head}Saving model checkpoint: {TRAIN_DIR}/global_step{number}/mp_rank_00_model_states.pt\n"
    ).encode()


def traceback_of(exception: str, prefix: str = "") -> bytes:
    lines = ("Traceback (most recent call last):", '  File "t.py", line 7, in f', "    g()", exception)
    return "".join(f"{prefix}{line}\n" for line in lines).encode()


CHILD_DIED = b"Process Process-2:\n" + traceback_of("AssertionError: Directory /d/none had no images/videos!")
BAR = "\r  0%|          | 0/40 [00:00<?, ?it/s]\r 55%|█████▌    | 22/40 [00:02<00:01, 9.1it/s]".encode()


def after(*chunks: bytes) -> Snapshot:
    progress = Progress()
    for chunk in chunks:
        progress.feed(chunk)
    return progress.snapshot()


def finished(data: bytes) -> Snapshot:
    progress = Progress()
    progress.feed(data)
    progress.finish()
    return progress.snapshot()


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
        b"\n",
        b"\r\n",
        b"Saving model to directory epoch3\n",
        b"TRAINING COMPLETE!\n",
        b"Manually quitting\n",
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


@given(LOGS, PLACES)
def test_any_cutting_gives_the_same_facts(data: bytes, places: list[int]) -> None:
    assert facts(after(*cut(data, places)), "train_dir") == facts(after(data), "train_dir")


@given(LOGS)
def test_one_byte_at_a_time_gives_the_same_facts(data: bytes) -> None:
    data = data[:1500]
    single = [data[at : at + 1] for at in range(len(data))]
    assert facts(after(*single), "train_dir") == facts(after(data), "train_dir")


@given(st.lists(st.integers(1, 300).map(checkpoint_lines), max_size=4).map(b"".join), PLACES)
def test_any_cutting_gives_the_same_directory(data: bytes, places: list[int]) -> None:
    assert after(*cut(data, places)).train_dir == after(data).train_dir


@given(TRACEBACKS, PLACES)
@example(CHILD_DIED, [len(b"Process Process-2:\n")])
def test_any_cutting_gives_the_same_verdict_on_the_caching_process(data: bytes, places: list[int]) -> None:
    assert after(*cut(data, places)).child_died == after(data).child_died


@given(TRACEBACKS, PLACES)
@example(
    traceback_of("ValueError: 1") + step_line(1) + step_line(2) + CHILD_DIED + step_line(3), list(range(900))
)
def test_any_cutting_keeps_the_same_evidence(data: bytes, places: list[int]) -> None:
    assert after(*cut(data, places)).evidence == after(data).evidence


@given(st.binary(max_size=2000), PLACES)
def test_random_bytes_never_raise_and_leave_a_true_tail(data: bytes, places: list[int]) -> None:
    said = after(*cut(data, places))
    assert said.tail == data
    assert facts(said) == facts(after(data))


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


def test_a_number_too_long_for_an_int_is_no_reason_to_fail() -> None:
    said = after(b"steps: " + b"9" * 5000 + b" loss: 1 iter time (s): 1 samples/sec: 1\n" + step_line(4))
    assert said.step == 4


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        (b"[..] [INFO] [comm.py:821:init_distributed] cdb=None\n", "loading"),
        (b"\rLoading pipeline components...:  57%|##  | 4/7 [00:00]\n", "loading"),
        (b"using video_clip_mode=single_middle\n", "caching"),
        (b"Grouped metadata is not cached. Computing ungrouped metadata and then grouping.\n", "caching"),
        (b"Found grouped metadata cache\n", "caching"),
        (b"caching latents: (1.0, 512, 512, 1)\n", "caching"),
        (b"caching text embeddings: (1.0, 1)\n", "caching"),
        (b"trainable params: 12 || all params: 13\n", "building"),
        (
            b"[..] [module.py:398:_partition_layers] Partitioning pipeline stages with method uniform\n",
            "building",
        ),
        (b"Global batch size = 4\n", "training"),
        (step_line(3), "training"),
        (b"Running eval\n", "evaluating"),
        (checkpoint_lines(3), "checkpointing"),
        (b"Saving model to directory step30\n", "saving"),
        (b"Started new epoch: 2\n", "training"),
        (b"TRAINING COMPLETE!\n", "finishing"),
        (b"Manually quitting\n", "finishing"),
    ],
)
def test_each_mark_names_its_phase(line: bytes, phase: str) -> None:
    assert after(line).phase == phase
    assert after(b"Running eval\n" if phase != "evaluating" else b"Manually quitting\n", line).phase == phase
    assert after(BAR + line).phase == phase, "behind an unfinished bar"


def test_nothing_printed_is_launching() -> None:
    said = after(b"[..] [INFO] [runner.py:630:main] cmd = python\n")
    assert (said.phase, said.step, said.epoch, said.loss, said.completed) == (
        "launching",
        None,
        None,
        None,
        False,
    )


def test_a_step_ends_evaluation_and_saving() -> None:
    assert after(b"Running eval\n", step_line(9)).phase == "training"
    assert after(step_line(9), b"Running eval\n").phase == "evaluating"
    assert (
        after(checkpoint_lines(9) + b"Saving model to directory epoch1\n" + step_line(10)).phase == "training"
    )


def test_a_step_behind_a_bar_is_read_with_all_its_numbers() -> None:
    said = after(b"Global batch size = 4\n" + BAR + step_line(17, "0.8125", "0.250", "16.000"))
    assert (said.step, said.first_step, said.loss) == (17, 17, 0.8125)
    assert (said.samples_per_second, said.seconds_per_step, said.global_batch) == (16.0, 0.25, 4)


def test_carriage_return_ends_a_piece_of_text_as_well() -> None:
    said = after(b"steps: 5 loss: 0.5 iter time (s): 1.000 samples/sec: 4.000\r")
    assert said.step == 5


def test_an_unfinished_line_is_not_read_yet_but_is_at_the_end() -> None:
    line = step_line(12).rstrip(b"\n")
    assert after(line).step is None
    assert finished(line).step == 12
    assert finished(b"TRAINING COMPLETE!").completed


def test_seconds_per_step_is_the_mean_of_the_recent_steps() -> None:
    old = b"".join(step_line(number, seconds="100.0") for number in range(1, 51))
    new = b"".join(step_line(number, seconds="0.5" if number % 2 else "1.5") for number in range(51, 101))
    assert after(old).seconds_per_step == 100.0
    assert after(old, new).seconds_per_step == 1.0
    assert after(old + new).seconds_per_step == 1.0


def test_epoch_one_begins_with_the_training_and_later_ones_are_printed() -> None:
    assert after(b"Global batch size = 2\n").epoch == 1
    steps = b"".join(map(step_line, range(1, 8)))
    said = after(b"Global batch size = 2\n" + steps + b"Started new epoch: 2\n" + step_line(8))
    assert (said.epoch, said.steps_per_epoch, said.step) == (2, 7, 8)


def test_steps_per_epoch_is_unknown_in_the_first_epoch() -> None:
    assert after(b"Global batch size = 2\n" + step_line(3)).steps_per_epoch is None


def test_steps_per_epoch_is_never_guessed_too_small() -> None:
    """Seven steps an epoch, of which every tenth is printed."""
    said = after(b"Started new epoch: 2\n", step_line(10), b"Started new epoch: 3\n", step_line(20))
    assert said.steps_per_epoch is None or said.steps_per_epoch >= 7


def test_a_resumed_run_counts_on() -> None:
    head = b"Global batch size = 1\nResuming training from checkpoint. Resuming at epoch: 4, step: 32\n"
    assert (after(head).epoch, after(head).step, after(head).first_step) == (4, 31, None)
    said = after(head, b"".join(map(step_line, range(32, 41))), b"Started new epoch: 5\n")
    assert (said.epoch, said.step, said.first_step, said.steps_per_epoch) == (5, 40, 32, 10)


def test_resuming_at_step_zero_stays_at_zero() -> None:
    assert after(b"Resuming at epoch: 1, step: 0\n").step == 0


def test_a_loss_of_nan_is_told_as_nan() -> None:
    said = after(step_line(3, "0.5"), step_line(4, "nan"))
    assert said.step == 4
    assert said.loss is not None and math.isnan(said.loss)


def test_a_loss_that_is_no_number_is_none() -> None:
    assert after(step_line(4, "tensor(1.)")).loss is None


def test_the_checkpoint_and_its_directory() -> None:
    said = after(checkpoint_lines(30) + step_line(31) + checkpoint_lines(60))
    assert (said.checkpoint, said.train_dir) == ("global_step60", TRAIN_DIR)


def test_the_return_code_of_a_rank() -> None:
    assert after(b"['python', 'train.py'] exits with return code = -9\n").rank_exit_code == -9
    assert after(b"['python', 'train.py'] exits with return code = 1\n").rank_exit_code == 1


def test_a_caching_process_that_died_is_told_while_it_hangs() -> None:
    assert after(b"caching latents: /d\n", CHILD_DIED).child_died
    assert not after(b"caching latents: /d\n", traceback_of("ValueError: x")).child_died


def test_the_child_is_told_even_if_its_headline_came_in_an_earlier_chunk() -> None:
    head, rest = CHILD_DIED[:19], CHILD_DIED[19:]
    assert head == b"Process Process-2:\n"
    assert after(head, rest).child_died


def test_evidence_holds_the_tracebacks_of_all_ranks() -> None:
    said = after(
        step_line(5) + traceback_of("ValueError: first", "[rank0]: "),
        traceback_of("KeyError: 2", "[rank1]: "),
    )
    assert b"[rank0]: ValueError: first\n" in said.evidence
    assert b"[rank1]: KeyError: 2\n" in said.evidence


@pytest.mark.parametrize("one_feed", [True, False])
def test_a_traceback_that_the_training_survived_is_dropped(one_feed: bool) -> None:
    parts = [traceback_of("OSError: no wandb"), *map(step_line, (1, 2, 3))]
    assert after(*parts[:3]).evidence
    assert not after(*([b"".join(parts)] if one_feed else parts)).evidence


def test_a_traceback_after_a_survived_one_is_kept() -> None:
    parts = [traceback_of("OSError: one"), *map(step_line, (1, 2, 3)), traceback_of("KeyError: two")]
    for said in (after(*parts), after(b"".join(parts))):
        assert b"KeyError: two" in said.evidence
        assert b"OSError: one" not in said.evidence


def test_evidence_and_tail_are_bounded() -> None:
    said = after(traceback_of("ValueError: x"), *[b"y" * 99 + b"\n"] * 3000)
    assert len(said.evidence) == EVIDENCE_LIMIT
    assert b"ValueError: x" in said.evidence
    assert said.tail == ((b"y" * 99 + b"\n") * 3000)[-TAIL_LIMIT:]


def test_a_very_long_unfinished_line_keeps_only_its_end() -> None:
    progress = Progress()
    for _ in range(40):
        progress.feed(b"x" * 10_000)
    assert len(progress.snapshot().tail) <= CARRY_LIMIT + TAIL_LIMIT
    progress.feed(b" TRAINING COMPLETE!\n" + step_line(3))
    assert progress.snapshot().completed
    assert progress.snapshot().step == 3


def test_the_detail_is_the_caching_line_with_the_bar_below_it() -> None:
    said = after(b"caching latents: (1.0, 64, 64, 1)\n" + BAR)
    assert said.detail == "caching latents: (1.0, 64, 64, 1) 55% (22/40)"


def test_the_detail_of_an_eval_is_its_bar_alone() -> None:
    assert after(b"Running eval\n" + BAR).detail == "55% (22/40)"
    assert after(b"Running eval\n" + BAR + b"\n" + step_line(3)).detail is None


def test_text_that_is_not_utf8_does_not_disturb() -> None:
    said = after(b"caching latents: /d/\xff\xfe\n", b"\xc3" + step_line(3))
    assert said.step == 3
    assert "�" in (after(b"caching latents: /d/\xff\xfe\n").detail or "")


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
    assert spent <= CPU_LIMIT, f"{spent:.3f} s"

"""What is read out of a training's output: marks, numbers, tracebacks."""

import math

import pytest

from dpiped.progress import CARRY_LIMIT, EVIDENCE_LIMIT, TAIL_LIMIT, Progress, Snapshot

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


FULL = "\r  0%|          | 0/36 [00:00<?, ?it/s]\r100%|██████████| 36/36 [00:00<00:00, 44.26it/s]".encode()
BEYOND = "\r 97%|█████▋| 35/36 [00:01<00:00, 9it/s]\r37it [00:02, 8.5it/s]".encode()


@pytest.mark.parametrize("bar", [FULL + b"\n", FULL + b"    \n", FULL + b"wandb: ", BEYOND + b"\n"])
def test_a_bar_at_its_end_ends_the_evaluation(bar: bytes) -> None:
    """The next step that is printed may be minutes away."""
    assert after(b"Running eval\n" + bar + b"\n").phase == "training"
    assert after(b"Started new epoch: 2\nRunning eval\n", bar + b"\n").phase == "training"
    assert after(b"Running eval\n" + bar + b"\n", b"Running eval\n").phase == "evaluating"
    assert after(bar + b"\nRunning eval\n").phase == "evaluating", "the bar of something before"
    assert after(checkpoint_lines(3) + bar + b"\n").phase == "checkpointing"


@pytest.mark.parametrize(
    "bar",
    [
        BAR + b"\n",
        FULL + b"\r",
        FULL + BEYOND,
        FULL.replace(b"100%", b"Map: 100%") + b"\n",
        FULL.replace(b"36/36", b"1999/2000") + b"\n",
        BEYOND + b"\r",
    ],
)
def test_any_other_bar_does_not(bar: bytes) -> None:
    assert after(b"Running eval\n" + bar).phase == "evaluating"


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


def test_the_last_checkpoint_announced() -> None:
    said = after(checkpoint_lines(30) + step_line(31) + checkpoint_lines(60))
    assert said.checkpoint == "global_step60"


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


def test_a_phase_that_is_a_bar_itself_shows_the_bar_once() -> None:
    done = b"Loading pipeline components...:  43%|####      | 3/7 [00:01<00:02]\r"
    said = after(done + b"Loading pipeline components...:  57%|#####     | 4/7 [00:02<00:01]")
    assert said.detail == "Loading pipeline components... 57% (4/7)"

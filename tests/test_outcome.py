"""How a run is said to have ended: from logs of all eight kinds, and from tables of records."""

from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from dpiped.checkpoints import Found
from dpiped.messages import OutcomeName
from dpiped.outcome import conclude, exception_line, failing, hang, last_line
from dpiped.progress import Progress, Snapshot
from dpiped.rundir import Concluded, Exit, StopAsked
from tests.helpers import HERE, SHARED

OWN = HERE / "data/logs"
REAL = SHARED / "diffusion-pipe-logs"
FOLDERS = [OWN, REAL] if REAL.is_dir() else [OWN]
"""The real logs lie only beside a development checkout."""
ASKED = StopAsked(how="term", by="a request", at=50.0, deadline=70.0, boot="b")
KILLED_HANG = Exit(code=None, signal=15, at=99.0)


class Case(Struct, frozen=True):
    """What a log must be told as. `real` and `own` are (step, epoch) in the log of that origin."""

    exit: Exit
    outcome: OutcomeName
    phrases: tuple[str, ...]
    own: tuple[int | None, int | None]
    real: tuple[int | None, int | None]
    own_phrase: str = ""
    real_phrase: str = ""


CASES = {
    "completed": Case(Exit(0, None, 99.0), "completed", (), (6, 2), (10, 2)),
    "save_quit": Case(
        Exit(0, None, 99.0),
        "stopped",
        ("with a checkpoint",),
        (5, 3),
        (31, 4),
        "global_step5",
        "global_step31",
    ),
    "resumed": Case(Exit(0, None, 99.0), "completed", (), (8, 4), (50, 5)),
    "sigterm_group": Case(Exit(None, 15, 99.0), "stopped", ("SIGTERM",), (4, 2), (20, 3)),
    "rank_sigkill": Case(
        Exit(247, None, 99.0),
        "failed",
        ("a training process was killed", "-9", "often by the kernel for lack of memory"),
        (3, 2),
        (20, 3),
    ),
    "python_exception": Case(
        Exit(1, None, 99.0),
        "failed",
        ("TypeError: ",),
        (None, None),
        (None, None),
        "got an unexpected keyword argument 'learning_rate'",
        "string indices must be integers, not 'str'",
    ),
    "port_in_use": Case(
        Exit(1, None, 99.0),
        "failed",
        ("the master port", "is taken"),
        (None, None),
        (None, None),
        "29511",
        "29500",
    ),
    "cache_child_crash_hang": Case(
        KILLED_HANG,
        "failed",
        ("caching died", "had no images/videos!", "hung", "had to be ended"),
        (None, None),
        (None, None),
        "/srv/photos/nothing",
        "/workspace/datasets/empty",
    ),
}


def parsed(data: bytes, piece: int = 1 << 20) -> Snapshot:
    progress = Progress()
    for at in range(0, len(data), piece):
        progress.feed(data[at : at + piece])
    progress.finish()
    return progress.snapshot()


def log_of(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.log").read_bytes()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", CASES)
def test_each_log_is_told_as_what_happened(name: str, folder: Path) -> None:
    case = CASES[name]
    told = conclude(case.exit, None, parsed(log_of(folder, name)))
    reason = told.reason or ""
    assert told.outcome == case.outcome, reason
    assert (told.reason is None) == (case.outcome == "completed")
    for phrase in (*case.phrases, case.own_phrase if folder == OWN else case.real_phrase):
        assert phrase in reason
    assert (told.step, told.epoch) == (case.own if folder == OWN else case.real)
    assert told.at == 99.0


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", CASES)
def test_the_verdict_does_not_depend_on_the_size_of_the_reads(name: str, folder: Path) -> None:
    data = log_of(folder, name)
    whole = conclude(CASES[name].exit, None, parsed(data))
    lines = Progress()
    for line in data.splitlines(keepends=True):
        lines.feed(line)
    lines.finish()
    assert conclude(CASES[name].exit, None, lines.snapshot()) == whole
    assert conclude(CASES[name].exit, None, parsed(data, 97)) == whole


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", CASES)
def test_why_it_is_about_to_fail_is_what_it_is_told_to_have_failed_of(name: str, folder: Path) -> None:
    """As soon as deepspeed has told of the rank's end; where it has not, nothing is guessed."""
    said = parsed(log_of(folder, name))
    told = failing(said)
    assert (told is not None) == (name in ("rank_sigkill", "python_exception", "port_in_use"))
    if told is not None:
        assert told == conclude(CASES[name].exit, None, said).reason


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_resumed_log_counts_on_from_its_checkpoint(folder: Path) -> None:
    said = parsed(log_of(folder, "resumed"))
    assert said.first_step == (6 if folder == OWN else 32)
    assert said.checkpoint == ("global_step8" if folder == OWN else "global_step50")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_stop_that_was_asked_for_names_who_asked(folder: Path) -> None:
    told = conclude(Exit(None, 15, 99.0), ASKED, parsed(log_of(folder, "sigterm_group")))
    assert told.outcome == "stopped"
    assert told.reason == "stopped by a request; no checkpoint was written"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_caching_crash_is_a_failure_even_when_a_stop_ended_it(folder: Path) -> None:
    told = conclude(KILLED_HANG, ASKED, parsed(log_of(folder, "cache_child_crash_hang")))
    assert told.outcome == "failed"
    assert "caching died: AssertionError: Directory" in (told.reason or "")


CHECKPOINT = (
    b"[..] [Rank 0] [Torch] Checkpoint global_step40 is about to be saved!\n"
    b"[..] [Rank 0] Saving model checkpoint: /o/r/global_step40/mp_rank_00_model_states.pt\n"
)
STEP = (
    b"[..] [Rank 0] step=41, skipped=0, lr=[2e-05]\n"
    b"steps: 41 loss: 0.5000 iter time (s): 0.5 samples/sec: 2.0\n"
)
EPOCH = b"Global batch size = 1\n"
OOM = (
    b"[rank0]: Traceback (most recent call last):\n"
    b'[rank0]:   File "train.py", line 9, in <module>\n'
    b"[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
)
ARGPARSE = (
    b"usage: train.py [-h] [--config CONFIG] [--local_rank LOCAL_RANK]\n"
    b"train.py: error: unrecognized arguments: --regenerate-cache\n"
    b"[..] [ERROR] [launch.py:341:sigkill_handler] ['x'] exits with return code = 2\n"
)
COLOURED = b"\x1b[1mTraceback (most recent call last):\x1b[0m\n  a\n\x1b[31mValueError\x1b[0m: red\n"
COMPLETE = EPOCH + STEP + b"TRAINING COMPLETE!\n"
SEGFAULT = b"exits with return code = -11\n"
LATE = (
    b"Process Process-7:\nTraceback (most recent call last):\n  a\nBrokenPipeError: [Errno 32] Broken pipe\n"
)
CHAINED = (
    b"Traceback (most recent call last):\n  a\nKeyError: 'first'\n\n"
    b"During handling of the above exception, another exception occurred:\n\n"
    b"Traceback (most recent call last):\n  b\nRuntimeError: second\n"
)


@pytest.mark.parametrize(
    ("exit_", "stop", "log", "completes", "outcome", "phrase"),
    [
        (Exit(0, None, 9.0), None, b"TRAINING COMPLETE!\n", True, "completed", ""),
        (Exit(0, None, 9.0), ASKED, b"TRAINING COMPLETE!\n", True, "completed", ""),
        (None, None, COMPLETE, True, "completed", "no exit record"),
        (
            Exit(None, 15, 9.0),
            ASKED,
            COMPLETE,
            True,
            "completed",
            "stopped by a request before its processes",
        ),
        (
            Exit(245, None, 9.0),
            None,
            COMPLETE + SEGFAULT,
            True,
            "completed",
            "after that, a training process",
        ),
        (Exit(None, 9, 9.0), None, COMPLETE, True, "completed", "the launcher was killed by SIGKILL"),
        (Exit(0, None, 9.0), None, COMPLETE + LATE, True, "completed", ""),
        (Exit(None, 15, 9.0), ASKED, EPOCH + STEP + LATE, True, "stopped", "by a request"),
        (Exit(0, None, 9.0), None, b"cached\n", False, "completed", ""),
        (Exit(1, None, 9.0), None, OOM, False, "failed", "CUDA out of memory"),
        (Exit(0, None, 9.0), ASKED, CHECKPOINT + b"Manually quitting\n", True, "stopped", "global_step40"),
        (None, None, CHECKPOINT + b"Manually quitting\n", True, "stopped", "global_step40"),
        (Exit(0, None, 9.0), None, b"Manually quitting\n", True, "stopped", "none was found"),
        (Exit(None, 15, 9.0), ASKED, STEP, True, "stopped", "by a request; no checkpoint"),
        (Exit(None, 9, 9.0), ASKED, CHECKPOINT + STEP, True, "stopped", "last checkpoint: global_step40"),
        (None, ASKED, STEP, True, "stopped", "by a request"),
        (None, None, STEP, True, "unknown", "no exit record"),
        (Exit(None, None, 9.0), None, STEP, True, "unknown", "runner was killed"),
        (
            Exit(None, None, 9.0, error="can't be launched: x"),
            None,
            b"",
            True,
            "failed",
            "can't be launched: x",
        ),
        (Exit(None, None, 9.0, error="no disk"), ASKED, STEP, True, "failed", "no disk"),
        (Exit(0, None, 9.0, leftovers=3), None, STEP, True, "failed", "ranks were left behind"),
        (Exit(0, None, 9.0), None, STEP, True, "failed", "it ended early"),
        (
            Exit(0, None, 9.0),
            None,
            b"WARNING: You have set a lot of resolutions (5).\n",
            True,
            "failed",
            "more than 3 resolutions",
        ),
        (Exit(2, None, 9.0), None, ARGPARSE, True, "failed", "unrecognized arguments: --regenerate-cache"),
        (Exit(1, None, 9.0), None, OOM, True, "failed", "out of GPU memory: torch.OutOfMemoryError"),
        (Exit(1, None, 9.0), None, COLOURED, True, "failed", "ValueError: red"),
        (
            Exit(3, None, 9.0),
            None,
            b"\x1b[31mthe end\x1b[0m\n",
            True,
            "failed",
            "exit code 3; the last line was: the end",
        ),
        (Exit(1, None, 9.0), None, CHAINED, True, "failed", "RuntimeError: second"),
        (Exit(247, None, 9.0), None, STEP, True, "failed", "killed (SIGKILL, -9), often by the kernel"),
        (Exit(137, None, 9.0), None, STEP, True, "failed", "killed (SIGKILL, -9), often by the kernel"),
        (
            Exit(245, None, 9.0),
            None,
            b"exits with return code = -11\n",
            True,
            "failed",
            "killed (SIGSEGV, -11)",
        ),
        (Exit(None, 9, 9.0), None, STEP, True, "failed", "the launcher was killed by SIGKILL"),
        (Exit(None, 15, 9.0), None, STEP, True, "stopped", "SIGTERM that did not come from dpiped"),
        (Exit(1, None, 9.0), None, b"Main process received SIGTERM, exiting\n", True, "stopped", "SIGTERM"),
        (Exit(None, 2, 9.0), None, STEP, True, "stopped", "SIGINT"),
        (Exit(3, None, 9.0), None, b"the end\n\n", True, "failed", "exit code 3; the last line was: the end"),
        (Exit(3, None, 9.0), None, b"", True, "failed", "(nothing printed)"),
    ],
)
def test_records_and_log_together_give_the_outcome(
    exit_: Exit | None, stop: StopAsked | None, log: bytes, completes: bool, outcome: OutcomeName, phrase: str
) -> None:
    told = conclude(exit_, stop, parsed(log), completes)
    assert told.outcome == outcome
    assert phrase in (told.reason or "")
    assert (told.reason is None) == (phrase == "" and outcome == "completed")


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (STEP + b"Traceback (most recent call last):\n  a\nValueError: x\n" + b"more\n", "ValueError: x"),
        (
            STEP + b"[rank0]: Traceback (most recent call last):\n[rank0]:   a\n[rank0]: KeyError: 1\n",
            "KeyError: 1",
        ),
        (STEP + b"[..] exits with return code = -9\nlast\n", "[..] exits with return code = -9"),
        (ARGPARSE, "train.py: error: unrecognized arguments: --regenerate-cache"),
        (
            b"WARNING: You have set a lot of resolutions (5).\n[..] exits with return code = 1\n",
            "WARNING: You have set a lot of resolutions (5).",
        ),
        (b"libx: error: y\n[..] exits with return code = -9\n", "[..] exits with return code = -9"),
        (COLOURED, "ValueError: red"),
        (b"\x1b[1;31mlast\x1b[0m\x1b[K\n", "last"),
        (STEP + b"almost\r last \n\n", "last"),
        (b"y" * 5000, "y" * 500),
        (b"", None),
    ],
)
def test_the_line_that_says_why(log: bytes, line: str | None) -> None:
    for exit_ in (Exit(1, None, 9.0), None):
        told = conclude(exit_, None, parsed(log))
        assert told.outcome in ("failed", "unknown") and told.line == line
        assert "\x1b" not in (told.reason or "")
    assert conclude(Exit(0, None, 9.0), None, parsed(log + b"\nTRAINING COMPLETE!\n")).line is None
    assert conclude(Exit(None, 15, 9.0), ASKED, parsed(log)).line is None


def test_the_last_figures_go_into_the_conclusion() -> None:
    assert conclude(
        Exit(0, None, 9.5), None, parsed(EPOCH + CHECKPOINT + STEP + b"TRAINING COMPLETE!\n")
    ) == (Concluded("completed", None, 9.5, step=41, epoch=1, loss=0.5, checkpoint="global_step40"))


def test_a_checkpoint_that_was_announced_and_not_written_is_none() -> None:
    said, broke = parsed(EPOCH + CHECKPOINT + STEP), Exit(None, 9, 9.0)
    found = {None: "global_step40", Found(None, "it is empty"): None, Found("global_step20"): "global_step20"}
    for on_disk, checkpoint in found.items():
        assert conclude(broke, None, said, on_disk=on_disk).checkpoint == checkpoint
    told = conclude(broke, ASKED, said, on_disk=Found(None, "it is empty"))
    assert told.reason == "stopped by a request; no checkpoint was written"


def test_a_ctrl_c_while_caching_is_no_crash_of_caching() -> None:
    log = b"Process Process-2:\nTraceback (most recent call last):\n  a\nKeyboardInterrupt\n"
    assert conclude(Exit(None, 2, 9.0), None, parsed(log)).outcome == "stopped"


def test_a_run_that_said_it_completed_is_completed_though_nobody_saw_its_exit() -> None:
    assert (
        conclude(Exit(None, None, 9.0), None, parsed(STEP + b"TRAINING COMPLETE!\n")).outcome == "completed"
    )


def test_what_had_completed_before_it_fell_silent_has_completed_whoever_stopped_it() -> None:
    said = parsed(STEP + b"TRAINING COMPLETE!\n")
    silent = msgspec.structs.replace(ASKED, fault="silent for 10 min")
    told = conclude(KILLED_HANG, silent, said)
    assert told.outcome == "completed" and (told.reason or "").endswith("by itself: silent for 10 min")


def test_a_main_process_that_died_in_caching_is_a_failure_even_when_a_stop_ended_it() -> None:
    """It joins the caching process for ever: the other hang."""
    said = parsed(b"caching latents: /srv/photos\n" + OOM)
    told = conclude(KILLED_HANG, msgspec.structs.replace(ASKED, fault=hang(said)), said)
    assert told.outcome == "failed"
    assert "out of memory" in (told.reason or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", ""),
        (b"no traceback: here\n", ""),
        (b"Traceback (most recent call last):\n  File\n", ""),
        (b"Traceback (most recent call last):\n  a\nValueError: x\n", "ValueError: x"),
        (b"Traceback (most recent call last):\n  a\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        (b"Traceback (most recent call last):\n  a\npkg.mod.CustomError: y\n", "pkg.mod.CustomError: y"),
        (
            b"[rank1]: Traceback (most recent call last):\n"
            b"[rank0]: Traceback (most recent call last):\n"
            b"[rank1]:   a\n[rank0]:   b\n"
            b"[rank0]: KeyError: 'other'\n[rank1]: ValueError: mine\n",
            "ValueError: mine",
        ),
        (
            b"Traceback (most recent call last):\n  a\nKeyError: 'k'\n[2026] [INFO] Killing: x\nnote: y\n",
            "KeyError: 'k'",
        ),
        (b"Traceback (most recent call last):\r\n  a\r\nOSError: dos\r\n", "OSError: dos"),
        (b"Traceback (most recent call last):\n  a\nOSError: \xff\xfe\n", "OSError: ��"),
        (b"Traceback (most recent call last):\n  a\nE: " + b"x" * 5000, "E: " + "x" * 997),
        (
            b"Traceback (most recent call last):\n  a\nRuntimeError: CUDA error: an illegal access\n"
            b"CUDA kernel errors might be asynchronously reported at some other API call.\n"
            b"For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n",
            "RuntimeError: CUDA error: an illegal access",
        ),
    ],
)
def test_the_exception_of_the_first_traceback(text: bytes, expected: str) -> None:
    assert exception_line(text) == expected


@pytest.mark.parametrize("noise", [b"wandb: Find logs at: ./wandb/run\n", b"\rMap: 100%|###| 4/4 [00:00]\n"])
def test_what_is_printed_after_the_exception_is_not_taken_for_it(noise: bytes) -> None:
    assert (
        exception_line(b"Traceback (most recent call last):\n  a\nKeyError: 'k'\n" + noise) == "KeyError: 'k'"
    )


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b"", ""),
        (b"\n\n", ""),
        (b"a\nb\n\n", "b"),
        (b"a\r 55% \r\n", "55%"),
        (b"y" * 400, "y" * 300),
    ],
)
def test_the_last_line_that_is_not_empty(tail: bytes, expected: str) -> None:
    assert last_line(tail) == expected

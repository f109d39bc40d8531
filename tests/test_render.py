"""What a person reads in the terminal, from handmade messages."""

import time

import msgspec
import pytest

from dpipectl import render
from dpiped.messages import ActiveRun, LastRun, RunReply, Runs, RunSummary, State, Status, TensorBoard

RUN = "20260304-050607-ab12"
BARE = ActiveRun(RUN)
FULL = ActiveRun(
    RUN,
    pid=4711,
    phase="training",
    step=20,
    total_steps=80,
    epoch=2,
    epochs=8,
    loss=0.98765,
    samples_per_second=12.3456,
    eta_seconds=3725.0,
    started_at=1000.0,
    elapsed_seconds=62.0,
    detail="not shown while steps are",
    warning="caching died",
    checkpoint="global_step10",
    train_dir="/w/out/x",
    stopping="SIGTERM was sent; 3 processes left, 7 s to the next step",
)
LAST = LastRun("20260303-000000-0001", "failed", "out of GPU memory", exit_code=1)
BOARD = TensorBoard("ready", "http://127.0.0.1:4444", None)


def status_of(run: ActiveRun | None, last: LastRun | None = None, board: TensorBoard = BOARD) -> str:
    return render.status(Status("running" if run else "idle", run, last, board, "1.0", notices=("a notice",)))


@pytest.mark.parametrize("state", ["idle", "starting", "running", "stopping"])
def test_the_first_line_names_the_state(state: State) -> None:
    assert render.status(Status(state, None, None, BOARD, "1.0")).splitlines()[0] == state


def test_the_status_of_a_run_holds_every_fact() -> None:
    text = status_of(FULL, LAST)
    for fact in (
        f"run {RUN}",
        "pid 4711",
        "training",
        "step 20/80",
        "epoch 2/8",
        "loss 0.9877",
        "12.35 samples/s",
        "1:02:05 left",
        "1:02",
        "/w/out/x",
        "global_step10",
        "SIGTERM was sent; 3 processes left",
        "caching died",
        "20260303-000000-0001 failed (exit code 1): out of GPU memory",
        "http://127.0.0.1:4444",
        "a notice",
    ):
        assert fact in text
    assert "None" not in text


def test_the_status_with_nothing_known_says_nothing_false() -> None:
    text = status_of(BARE)
    assert RUN in text and "launching" in text
    assert "None" not in text and "pid" not in text
    assert "idle" in status_of(None)
    assert "not_installed" in status_of(None, board=TensorBoard("not_installed"))
    assert "port_taken by 17" in status_of(None, board=TensorBoard("port_taken", None, "by 17"))


@pytest.mark.parametrize("name", [name for name in FULL.__struct_fields__ if name not in ("id", "phase")])
def test_any_single_fact_may_be_missing(name: str) -> None:
    without = msgspec.structs.replace(FULL, **{name: None})
    for text in (status_of(without), render.progress(without), render.bar(without, 120)):
        assert "None" not in text
        assert "training" in text


def test_a_loss_of_nan_is_shown() -> None:
    assert "loss nan" in render.progress(msgspec.structs.replace(FULL, loss=float("nan")))


def test_the_detail_stands_for_the_steps_before_there_are_any() -> None:
    caching = ActiveRun(RUN, phase="caching", detail="caching latents: /d 55% (22/40)")
    assert render.progress(caching) == "caching  caching latents: /d 55% (22/40)"
    assert "not shown" not in render.progress(FULL)


@pytest.mark.parametrize("width", [0, 1, 10, 40, 79, 120, 200])
@pytest.mark.parametrize("run", [BARE, FULL, msgspec.structs.replace(FULL, step=500)])
def test_a_bar_fits_the_terminal(run: ActiveRun, width: int) -> None:
    text = render.bar(run, width)
    assert len(text) <= width
    assert "\n" not in text


def test_a_bar_is_filled_as_far_as_the_run_is() -> None:
    text = render.bar(FULL, 200)
    assert (text.count("█"), text.count("░")) == (8, 22)
    assert " 25% training" in text
    done = render.bar(msgspec.structs.replace(FULL, step=80), 200)
    assert "░" not in done and "100% training" in done
    assert "100%" in render.bar(msgspec.structs.replace(FULL, step=81), 200)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (LastRun("a", "completed", exit_code=0), "a completed"),
        (LastRun("a", "failed", "why", exit_code=247), "a failed (exit code 247): why"),
        (LastRun("a", "stopped", "by x", signal=15), "a stopped (signal 15): by x"),
        (LastRun("a", "unknown"), "a unknown"),
    ],
)
def test_an_outcome_in_one_line(last: LastRun, text: str) -> None:
    assert render.outcome(last) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_durations(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_a_duration_is_never_negative() -> None:
    assert "-" not in render.duration(-5.0)


def test_moments_are_local_time_or_a_dash() -> None:
    assert render.moment(None) == "-"
    assert render.moment(1_772_600_000.0) == time.strftime(
        "%Y-%m-%d %H:%M:%S", time.localtime(1_772_600_000.0)
    )


ENDED = RunSummary(
    RUN, "completed", 900.0, "/w/train.toml", 1000.0, 1065.0, None, 0, None, 80, 8, 0.12345, None
)
DAMAGED = RunSummary("20260101-000000-dead", "damaged", 0.0, "", reason="spec.json can't be read")


def test_the_table_of_runs() -> None:
    lines = render.runs((ENDED, DAMAGED)).splitlines()
    assert lines[0].split() == ["RUN", "OUTCOME", "STARTED", "TOOK", "STEP", "LOSS", "CONFIG"]
    first = lines[1].split()
    assert (first[0], first[1]) == (RUN, "completed")
    assert first[4:] == ["1:05", "80", "0.1235", "/w/train.toml"]
    assert lines[2].split() == ["20260101-000000-dead", "damaged", "-", "-", "-", "-"]
    assert lines[0].index("CONFIG") == lines[1].index("/w/train.toml")


def test_no_runs_yet() -> None:
    assert render.runs(()) == "no runs yet"
    assert render.runs(Runs(()).runs) == "no runs yet"


def test_a_run_that_goes_on_takes_until_now() -> None:
    going_on = RunSummary(RUN, "running", 0.0, "/c", started_at=time.time() - 3600)
    assert "1:00:0" in render.runs((going_on,))


def test_a_run_whose_end_nobody_saw_does_not_grow_longer() -> None:
    unseen = RunSummary(RUN, "unknown", 0.0, "/c", started_at=1000.0, reason="no exit record")
    took = render.runs((unseen,)).splitlines()[1].split()[4]
    assert took == "-"


def test_all_that_is_known_of_a_run() -> None:
    reply = RunReply(
        summary=msgspec.structs.replace(
            ENDED, state="failed", reason="why", exit_code=1, resumed_from="20260101-000000-0001"
        ),
        ended=True,
        argv=("/bin/deepspeed", "train.py"),
        cwd="/app",
        run_dir="/s/runs/x",
        output_dir="/w/out",
        train_dir="/w/out/x",
        checkpoint="global_step80",
        peak_memory_bytes=3 << 30,
        env={"HF_TOKEN": "hidden-by-dpiped"},
    )
    text = render.run(reply)
    for fact in (
        RUN,
        "failed: why",
        "code 1",
        "80 (epoch 8, loss 0.12345)",
        "/w/train.toml",
        "20260101-000000-0001",
        "/s/runs/x",
        "/w/out/x",
        "global_step80",
        "3072 MiB",
        "/app",
        "/bin/deepspeed train.py",
        "hidden-by-dpiped",
    ):
        assert fact in text
    assert "None" not in text


@pytest.mark.parametrize("step", [None, 31])
def test_a_run_of_which_little_is_known(step: int | None) -> None:
    summary = RunSummary(RUN, "unknown", 0.0, "/c", step=step)
    text = render.run(RunReply(summary, ended=True))
    assert "unknown" in text and "/c" in text
    assert "None" not in text
    assert "signal 9" in render.run(RunReply(msgspec.structs.replace(summary, signal=9), ended=True))

"""How many steps a training will have, from logs of trainings whose length is known."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpiped.live import LiveRun, total_steps
from dpiped.progress import Progress, Snapshot
from dpiped.rundir import Spec
from dpiped.settings import load
from tests.test_progress import checkpoint_lines, step_line

SPEC = Spec(
    run="r",
    created=0.0,
    argv=("train.py",),
    cwd="/",
    env={},
    source="s",
    digest="d",
    output_dir="/o",
    epochs=50,
)


def resuming(epoch: int, step: int) -> bytes:
    return b"Resuming training from checkpoint. Resuming at epoch: %d, step: %d\n" % (epoch, step)


def printing(every: int) -> bytes:
    return b"[..] [INFO] [config.py:962:print]   steps_per_print .............. %d\n" % every


def epoch_line(number: int) -> bytes:
    return b"Started new epoch: %d\n" % number


def steps(first: int, last: int, every: int = 1) -> bytes:
    return b"".join(step_line(number) for number in range(first, last + 1) if number % every == 0)


def totals(parts: list[bytes], epochs: int = 50, anew: bool = False) -> list[int | None]:
    """The total after each part."""
    progress, found = Progress(anew), []
    for part in parts:
        progress.feed(part)
        found.append(progress.snapshot().steps_of(epochs))
    return found


DATA_BEGUN_ANEW = [resuming(1, 81) + steps(81, 180), epoch_line(2), steps(181, 280) + epoch_line(3)]


def test_an_epoch_is_measured_between_two_beginnings() -> None:
    """Resumed after step 80 with its data begun anew: the first epoch here ends 100 steps later."""
    assert totals(DATA_BEGUN_ANEW)[-1] == 180 + 49 * 100


def test_data_begun_anew_tells_the_length_with_the_next_epoch() -> None:
    assert totals(DATA_BEGUN_ANEW, anew=True) == [None, 180 + 49 * 100, 180 + 49 * 100]


def test_until_the_second_beginning_earlier_epochs_count() -> None:
    parts = [resuming(4, 32) + steps(32, 40), epoch_line(5), steps(41, 50) + epoch_line(6)]
    assert totals(parts) == [None, 500, 500]


def test_a_resume_at_a_beginning_may_do_a_step_too_many() -> None:
    parts = [resuming(4, 31) + steps(31, 41), epoch_line(5), steps(42, 51) + epoch_line(6)]
    assert totals(parts) == [None, 501, 501]


def test_an_epoch_longer_than_all_before_is_of_other_data() -> None:
    """Thirty steps in three epochs, then sixty in one: no mean of both is the length of either."""
    parts = [resuming(4, 31) + steps(31, 90), epoch_line(5), steps(91, 150) + epoch_line(6)]
    assert totals(parts) == [None, None, 90 + 46 * 60]


def test_the_length_only_falls_where_every_hundredth_step_is_printed() -> None:
    """110 steps an epoch: what is printed before its end is up to 99 steps older."""
    parts = [printing(100)]
    parts += [
        steps(110 * number + 1, 110 * (number + 1), 100) + epoch_line(number + 2) for number in range(20)
    ]
    found = totals(parts)[1:]
    known = [total for total in found if total is not None]
    assert known == sorted(known, reverse=True) and len(known) == len(found)
    assert 5500 <= known[-1] <= 111 * 50


def test_a_checkpoint_tells_a_step_that_is_not_printed() -> None:
    """Resumed and printed every hundredth step: without checkpoints an epoch could have 199 steps."""
    parts = [printing(100), resuming(2, 105) + steps(105, 220, 100)]
    ends = [
        checkpoint_lines(220) + epoch_line(3),
        steps(221, 330, 100) + checkpoint_lines(330) + epoch_line(4),
    ]
    progress = Progress()
    for part in (*parts, *ends):
        progress.feed(part)
    assert progress.snapshot().steps_per_epoch == 399 - 220


def test_where_nobody_says_how_often_steps_are_printed_one_step_tells_nothing() -> None:
    assert totals([resuming(2, 185) + step_line(200) + epoch_line(3)]) == [None]


def test_a_length_too_short_for_what_is_printed_is_dropped() -> None:
    """A log that was truncated has lost the steps before a beginning."""
    parts = [steps(1, 100) + epoch_line(2), epoch_line(3), steps(201, 300) + epoch_line(4), steps(301, 400)]
    assert totals([*parts, epoch_line(5)])[-1] == 5000


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(2, 12), st.booleans(), st.integers(0, 3))
def test_a_total_is_never_too_small_and_only_falls(
    length: int, every: int, epochs: int, said: bool, minutes: int
) -> None:
    progress, found = Progress(), [10**9]
    progress.feed(printing(every) if said else b"\n")
    for epoch in range(2, epochs + 1):
        end = (epoch - 1) * length
        progress.feed(steps(end - length + 1, end, every))
        progress.feed(checkpoint_lines(end - minutes) if end > minutes else b"")
        progress.feed(epoch_line(epoch))
        total = progress.snapshot().steps_of(epochs)
        found += [] if total is None else [total]
    assert all(total >= epochs * length for total in found)
    assert found == sorted(found, reverse=True)
    assert every > 1 or found[-1] == epochs * length


def after(*parts: bytes) -> Snapshot:
    progress = Progress()
    progress.feed(b"".join(parts))
    return progress.snapshot()


def test_a_total_is_never_below_the_step_that_is_reached() -> None:
    to_a_step = msgspec.structs.replace(SPEC, max_steps=40)
    assert total_steps(to_a_step, after(resuming(5, 41), step_line(41))) == 41
    two = msgspec.structs.replace(SPEC, epochs=2)
    assert total_steps(two, after(steps(1, 10), epoch_line(2), steps(11, 15))) == 20
    assert total_steps(two, after(steps(1, 10), epoch_line(2), steps(11, 21))) == 21


@pytest.mark.parametrize("args", [(), ("--reset_dataloader",)])
def test_what_a_run_was_started_with_tells_whether_its_data_began_anew(args: tuple[str, ...]) -> None:
    place = load({"HOME": "/root", "DIFFPIPE_SOCKET": "/s"})
    live = LiveRun(place, msgspec.structs.replace(SPEC, args=args, max_steps=81))
    live.progress.feed(DATA_BEGUN_ANEW[0] + DATA_BEGUN_ANEW[1])
    assert live.progress.snapshot().steps_of(50) == (5080 if args else 9000)
    seen = live.view(None)
    assert (seen.total_steps, seen.eta_seconds) == (180, 0.0)

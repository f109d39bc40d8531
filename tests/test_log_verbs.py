"""What is asked about a run's log, in one process: nobody waits meanwhile, and nothing is read twice."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from dpiped import history, logfile, messages, rundir
from dpiped.aside import Aside
from dpiped.curve import Curve
from dpiped.errors import RunDamaged
from dpiped.gpus import Gpus
from dpiped.log_verbs import LogVerbs
from dpiped.past_curves import KEPT, PastCurves
from dpiped.rundir import Concluded, Spec
from dpiped.settings import Settings, load
from dpiped.supervisor import Supervisor
from dpiped.tensorboard import TensorBoard
from dpiped.verbs import Verbs, Wishes
from tests.test_progress import step_line

RUN = "20260131-120000-000abc"
_R = TypeVar("_R")


async def turns_during(work: Awaitable[_R]) -> tuple[_R, int]:
    """What it gives, and how often others had their turn in the event loop meanwhile."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    found = await work
    counting.cancel()
    return found, turns


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / RUN / rundir.LOG
    path.parent.mkdir(parents=True)
    return path


def settings_of(state: Path) -> Settings:
    variables = {"HOME": str(state), "DIFFPIPE_SOCKET": "/run/t.sock", "DIFFPIPE_STATE_DIR": str(state)}
    return load(variables)


@pytest.fixture
def verbs(tmp_path: Path) -> LogVerbs:
    return LogVerbs(Supervisor(settings_of(tmp_path)))


def test_a_line_of_two_hundred_megabytes_keeps_nobody_waiting(verbs: LogVerbs, log: Path) -> None:
    with log.open("wb") as file:
        file.write(b"first\n")
        file.truncate(200 << 20)
    # The last one is answered from the end of the log, after the whole of the line.
    for asked, lines in (
        (messages.ReadLog(RUN, limit=5), ("first",)),
        (messages.ReadLog(RUN, after=0), ("first",)),
        (messages.ReadLog(RUN, before=200 << 20), ("first",)),
        (messages.ReadLog(RUN, after=6), ()),
    ):
        page, turns = asyncio.run(turns_during(verbs.lines(asked)))
        assert page.lines == lines and turns > 20, asked
    raw, turns = asyncio.run(turns_during(verbs.raw(messages.ReadRaw(RUN, tail=1))))
    assert raw.data[:7] == b"first\n\0" and turns > 20


def test_reading_a_curve_and_searching_odd_lines_keep_nobody_waiting(verbs: LogVerbs, log: Path) -> None:
    log.write_bytes(b"".join(step_line(number) for number in range(1, 10_000)))
    series, turns = asyncio.run(turns_during(verbs.series(messages.ReadSeries(RUN))))
    assert series.last == 9999 and turns > 10
    log.write_bytes(b"a\rb\x1b[K\r\n" * 40_000)
    found, turns = asyncio.run(turns_during(verbs.search(messages.SearchLog(RUN, "c"))))
    assert found.end and turns > 20


def test_a_log_that_is_no_file_is_said_to_be_damaged(verbs: LogVerbs, log: Path) -> None:
    log.mkdir()
    for asked in (
        verbs.lines(messages.ReadLog(RUN)),
        verbs.lines(messages.ReadLog(RUN, before=9)),
        verbs.raw(messages.ReadRaw(RUN)),
        verbs.series(messages.ReadSeries(RUN)),
        verbs.search(messages.SearchLog(RUN, "x")),
    ):
        with pytest.raises(RunDamaged, match=r"^output.log can't be read: Is a directory$"):
            asyncio.run(asked)
    folder = log.parent
    rundir.write(
        folder, Spec(run=RUN, created=1.0, source="x", digest="d", argv=(), env={}, cwd="/", output_dir="/o")
    )
    rundir.write(folder, Concluded("failed", "why", 2.0, line="why"))
    reply = history.detail(folder.parent, RUN, active=False)
    assert reply.failure is None and reply.summary.line == "why"


def test_a_large_config_keeps_nobody_waiting(tmp_path: Path, log: Path) -> None:
    folder = log.parent
    (folder / rundir.TRAINING_TOML).write_text('output_dir = "/o"\n')
    directories = "".join(f'[[directory]]\npath = "/data/{number}"\n' for number in range(1500))
    (folder / rundir.DATASET_TOML).write_text(directories)
    supervisor = Supervisor(settings_of(tmp_path))
    verbs = Verbs(
        supervisor, TensorBoard(supervisor.settings), Gpus(supervisor), Wishes(lambda: None, lambda: None)
    )
    texts, turns = asyncio.run(turns_during(verbs.answer(messages.ReadConfig(RUN))))
    assert isinstance(texts, messages.ConfigTexts) and texts.dataset_toml == directories and turns > 10


def test_a_search_beyond_the_end_goes_on_from_the_end(verbs: LogVerbs, log: Path) -> None:
    log.write_bytes(b"text\nun")
    found = asyncio.run(verbs.search(messages.SearchLog(RUN, "text", after=1000)))
    assert (found.matches, found.next, found.end) == ((), 5, True)


def test_a_kept_curve_does_not_wait_for_one_that_is_read(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("large", "small", "empty", "followed")]
    for path, count in zip(paths, (30_000, 3, 0, 5), strict=True):
        path.write_bytes(b"".join(step_line(number) for number in range(1, count + 1)))

    async def asked() -> None:
        curves = PastCurves(Aside())
        small, empty = [await curves.of(path.name, path) for path in paths[1:3]]
        followed = Curve()
        followed.feed(paths[3].read_bytes().rstrip(b"\n"))
        curves.keep("followed", logfile.size(paths[3]), followed)
        reading = asyncio.create_task(curves.of("large", paths[0]))
        await asyncio.sleep(0)
        kept = [await curves.of(path.name, path) for path in paths[1:]]
        assert not reading.done() and kept[0] is small and kept[1] is empty and kept[2] is followed
        assert (small.last, empty.last, followed.last, (await reading).last) == (3, None, 5, 30_000)
        # It has grown since, and the oldest are forgotten.
        paths[1].write_bytes(paths[3].read_bytes())
        assert (await curves.of("small", paths[1])).last == 5
        assert await curves.of("empty", paths[2]) is empty
        assert KEPT == 4 and await curves.of("small", paths[1]) is not small

    asyncio.run(asked())

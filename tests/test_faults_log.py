"""The log of a run is truncated, deleted or moved away while it is written: whoever follows goes on."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from dpiped import messages
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import wait_until
from tests.web import Shim

pytestmark = pytest.mark.timeout(60)


def steps_in(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.match(r"steps: (\d+) ", line))]


def follow(workspace: Workspace) -> "subprocess.Popen[str]":
    words = [str(BIN / "dpipectl"), "logs", "-f", "-n", "1"]
    return subprocess.Popen(words, env=workspace.env, stdout=subprocess.PIPE, text=True)


def read(workspace: Workspace, run: str, after: int | None, wait: float = 0.0) -> messages.LogLines:
    reply = workspace.ask(messages.ReadLog(run, after=after, limit=100, wait=wait), wait)
    assert isinstance(reply, messages.LogLines)
    return reply


def notice_of(workspace: Workspace, phrase: str) -> str:
    def found() -> str | None:
        return next((text for text in workspace.status()["notices"] if phrase in text), None)

    return wait_until(found, phrase) or ""


def test_log_truncated_under_the_daemon(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("says", texts=["x" * 10_000] * 20, until=str(dpiped.go)))
    dpiped.until_step(5)
    before = read(dpiped, run, None)
    log = dpiped.runs_dir / run / "output.log"
    following = follow(dpiped)
    assert following.stdout is not None
    first = following.stdout.readline()
    # As logrotate's copytruncate does: the training appends to what is left.
    log.open("r+b").truncate(0)
    assert "truncated" in notice_of(dpiped, "output.log was truncated")
    reached = dpiped.status()["run"]["step"]
    dpiped.until_step(reached + 5)
    # Whoever comes with a cursor of the old log gets the new one, at once and once.
    page = read(dpiped, run, before.end, wait=30.0)
    assert 0 < page.next <= page.end < before.end and page.first == 0
    assert steps_in(list(page.lines)) == steps_in(log.read_text().splitlines())[: len(page.lines)]
    assert (
        steps_in(list(read(dpiped, run, page.next, wait=30.0).lines))[0] == steps_in(list(page.lines))[-1] + 1
    )
    raw = dpiped.ask(messages.ReadRaw(run, after=before.end, wait=30.0), 30.0)
    assert isinstance(raw, messages.RawLog)
    assert raw.data and log.read_bytes().startswith(raw.data) and raw.next == len(raw.data)
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", 0)
    # The follower has seen every step since it began, but those that were truncated before anybody read them.
    seen = steps_in([first, *following.stdout.read().splitlines()])
    assert following.wait(30) == 0
    assert seen == sorted(set(seen)) and seen[-1] == ended["step"]
    assert set(steps_in(log.read_text().splitlines())) <= set(seen)
    # Also of a run that is over, such a cursor is of what is not there any more.
    last = read(dpiped, run, before.end)
    assert (last.first, last.eof) == (0, True)
    dpiped.kill_daemon()
    dpiped.start_daemon()
    assert dpiped.json("show", run)["state"] == "completed"


def test_log_deleted_under_the_daemon(dpiped: Workspace) -> None:
    shim = Shim(dpiped)
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    dpiped.until_step(5)
    following = follow(dpiped)
    assert following.stdout is not None
    first = following.stdout.readline()
    (dpiped.runs_dir / run / "output.log").unlink()
    notice_of(dpiped, "was deleted or moved away")
    step = dpiped.status()["run"]["step"]
    dpiped.until_step(step + 5)
    # All of it can be read as before, older pages too, and by a new daemon.
    assert steps_in(list(read(dpiped, run, 0).lines))[:5] == [1, 2, 3, 4, 5]
    dpiped.kill_daemon()
    dpiped.start_daemon()
    assert dpiped.status()["run"]["step"] > step
    notice_of(dpiped, "was deleted or moved away")
    assert steps_in(list(read(dpiped, run, 0).lines))[:5] == [1, 2, 3, 4, 5]
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"]) == ("completed", 0)
    seen = steps_in([first, *following.stdout.read().splitlines()])
    following.wait(30)
    assert seen[:10] == list(range(seen[0], seen[0] + 10))
    # Afterwards it is said that the log is gone; everything else is there.
    error = dpiped.json("logs", run, code=5)["error"]
    assert (error["code"], error["field"]) == ("run_damaged", "output.log")
    assert "somebody deleted it" in error["message"]
    assert dpiped.json("show", run)["state"] == "completed"
    assert dpiped.json("runs")[0]["state"] == "completed"
    with shim.client.stream("GET", f"/events?run={run}&after=0&seconds=20") as answer:
        events = (line for line in answer.iter_lines() if line.startswith("event: "))
        assert "event: end" in events, "a page that comes later is told the end all the same"


def test_log_moved_away_under_the_daemon(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    dpiped.until_step(5)
    log = dpiped.runs_dir / run / "output.log"
    log.rename(log.with_name("output.log.1"))
    log.touch()
    notice_of(dpiped, "was deleted or moved away")
    step = dpiped.status()["run"]["step"]
    dpiped.until_step(step + 5)
    assert steps_in(list(read(dpiped, run, 0).lines))[:5] == [1, 2, 3, 4, 5]
    # A new daemon is not taken in by the file in its place.
    dpiped.kill_daemon()
    dpiped.start_daemon()
    notice_of(dpiped, "was deleted or moved away")
    dpiped.until_step(step + 10)
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "completed"
    whole = steps_in(Path(f"{log}.1").read_text().splitlines())
    assert whole == list(range(1, ended["step"] + 1)), "the training has lost nothing"


def test_a_log_that_can_not_be_read_keeps_no_run_from_being_over(workspace: Workspace) -> None:
    workspace.start_daemon()
    run = workspace.start(workspace.config("stubborn"))
    workspace.until_step(2)
    workspace.kill_daemon()
    log = workspace.runs_dir / run / "output.log"
    log.rename(workspace.root / "away")
    log.mkdir()
    # With the launcher nothing leads to the file that was moved.
    launcher = json.loads((log.parent / "started.json").read_text())["child"]["pid"]
    os.kill(launcher, signal.SIGKILL)
    workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="1")
    assert workspace.ctl("stop", "--no-wait")[0] == 0
    assert workspace.until_ended(run)["outcome"] == "stopped"
    assert any("the end of the log" in notice for notice in workspace.status()["notices"])
    assert processes_of_run(run) == []

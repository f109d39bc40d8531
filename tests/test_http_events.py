"""Live events: nothing lost or repeated, whoever goes away."""

import asyncio
import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import zmq

from dpipectl.http.daemon import Daemon
from dpipectl.http.feed import Feed
from dpipectl.http.live import Follower, Place, Wanted
from dpiped import messages
from tests.harness import Workspace
from tests.helpers import HERE, wait_until
from tests.test_http import metrics
from tests.web import Events, Shim

FOLLOWERS = 200
FEW = 30
RATE = 20_000


def stream(shim: Shim, until: str = "end", **asked: Any) -> list[tuple[str, str, str]]:
    """The events of one connection up to the first of that name."""
    headers = {"last-event-id": asked.pop("last")} if "last" in asked else {}
    found = []
    with shim.client.stream("GET", "/events", params=asked, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        for each in Events(answer.iter_lines()):
            found.append(each)
            if each[0] == until:
                break
    return found


def lines_of(events: list[tuple[str, str, str]]) -> list[str]:
    return [line for name, data, _ in events if name == "log" for line in data.split("\n")]


def log_lines(workspace: Workspace, run: str) -> list[str]:
    return workspace.log_text(run).splitlines()


def test_a_run_from_its_first_line_to_its_end_and_the_next_one(shim: Shim) -> None:
    workspace = shim.workspace
    first = workspace.start(workspace.config(steps=30, seconds_per_step=0.01))
    events = stream(shim, tail=0)
    names = [name for name, _, _ in events]
    assert names[0] in ("state", "run") and names.count("run") == 1 and names[-1] == "end"
    assert next(json.loads(data)["id"] for name, data, _ in events if name == "run") == first
    assert lines_of(events) == log_lines(workspace, first)
    end = json.loads(events[-1][1])
    assert (end["id"], end["state"], end["step"]) == (first, "completed", 30)
    assert "progress" in names and "state" in names
    last = events[-1][2]
    assert last.startswith(f"{first}:") and last.endswith(":end")
    # Whoever was away for a whole run and the beginning of another is told of both, in order.
    second = workspace.start(workspace.config(steps=3))
    workspace.until_ended(second)
    third = workspace.start(workspace.config(steps=3))
    workspace.until_ended(third)
    events = stream(shim, last=last)
    assert lines_of(events) == log_lines(workspace, second)
    assert json.loads(events[-1][1])["id"] == second
    events = stream(shim, last=events[-1][2])
    assert lines_of(events) == log_lines(workspace, third)


@pytest.mark.parametrize("by", ["header", "parameter", "run and after"])
def test_a_reconnect_loses_and_repeats_nothing(shim: Shim, by: str) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config(until=str(workspace.go)))
    events = stream(shim, until="progress", tail=0)
    while not lines_of(events):
        events += stream(shim, until="log", tail=0)
    got = lines_of(events)
    last = [id_ for name, _, id_ in events if name == "log"][-1]
    workspace.until_step(20)
    workspace.go.touch()
    workspace.until_ended(run)
    after = last.partition(":")[2]
    asked = {
        "header": {"last": last},
        "parameter": {"last_event_id": last},
        "run and after": {"run": run, "after": after},
    }[by]
    assert got + lines_of(stream(shim, **asked)) == log_lines(workspace, run)


def test_the_tail_and_the_current_line(workspace: Workspace) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    run = workspace.start(workspace.config("bar", go=str(workspace.go), steps=3))
    wait_until(lambda: shim.get(f"/runs/{run}/lines")[1]["current"].endswith("5/5 [00:01<00:00]"), "the bar")
    events = stream(shim, until="current", tail=1)
    assert len(lines_of(events)) == 1
    assert json.loads(events[-1][1]) == " 100%|█████| 5/5 [00:01<00:00]"
    workspace.go.touch()
    workspace.until_ended(run)
    assert lines_of(stream(shim, tail=3))[-1] == "TRAINING COMPLETE!"


def test_state_says_that_the_daemon_is_away_and_that_it_is_back(shim: Shim) -> None:
    workspace = shim.workspace
    states: list[str] = []

    def follow() -> None:
        with shim.client.stream("GET", "/events", params={"seconds": 30}) as answer:
            for name, data, _ in Events(answer.iter_lines()):
                if name == "state":
                    states.append(json.loads(data)["state"])

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    wait_until(lambda: states[-1:] == ["idle"], "idle")
    workspace.kill_daemon()
    wait_until(lambda: states[-1:] == ["unreachable"], "unreachable")
    workspace.start_daemon()
    wait_until(lambda: states[-1:] == ["idle"], "idle again")
    # The shim ends its streams when it is told to end.
    assert shim.end() == 0
    follower.join(10)
    assert not follower.is_alive()


def test_a_killed_daemon_costs_a_follower_nothing(shim: Shim) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config(until=str(workspace.go)))
    got: list[tuple[str, str, str]] = []
    follower = threading.Thread(target=lambda: got.extend(stream(shim, tail=0)), daemon=True)
    follower.start()
    workspace.until_step(5)
    workspace.kill_daemon()
    workspace.start_daemon()
    workspace.until_step(10)
    workspace.go.touch()
    follower.join(30)
    assert lines_of(got) == log_lines(workspace, run)
    assert json.loads(got[-1][1])["state"] == "completed"


def test_a_stream_ends_after_its_seconds_and_refuses_a_wrong_id(shim: Shim) -> None:
    begun = time.monotonic()
    with shim.client.stream("GET", "/events", params={"seconds": 0.3}) as answer:
        assert answer.read().startswith(b"retry: 1000\n\n")
    assert 0.25 < time.monotonic() - begun < 5
    for wrong in ("x", "run:", ":5", "a/b:5", "run:5:more", "run:-5"):
        answer = shim.client.get("/events", headers={"last-event-id": wrong})
        assert answer.status_code == 422, wrong
        assert answer.json()["detail"][0]["loc"] == ["header", "last-event-id"]
    # A run that is not there (any more): on with the newest.
    workspace = shim.workspace
    run = workspace.start(workspace.config(steps=2))
    workspace.until_ended(run)
    assert lines_of(stream(shim, last="20200101-000000-000aaaa:5")) == log_lines(workspace, run)


def test_last_means_the_run_that_is_the_last_one_now(shim: Shim) -> None:
    workspace = shim.workspace
    runs = []
    for steps in (2, 3):
        runs.append(workspace.start(workspace.config(steps=steps)))
        workspace.until_ended(runs[-1])
        events = stream(shim, run="last")
        assert lines_of(events) == log_lines(workspace, runs[-1])
        assert events[-1][2].startswith(f"{runs[-1]}:")
    assert shim.get("/events", run="202")[0] == 400
    # The unfinished last line is told to whoever asks, also from what was read before.
    run = workspace.start(workspace.config("unfinished"))
    workspace.until_ended(run)
    for _ in range(2):
        events = stream(shim, run=run)
        assert [json.loads(data) for name, data, _ in events if name == "current"] == ["last words"]


def test_a_run_that_was_deleted_is_not_told_for_ever(shim: Shim) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config(steps=2))
    workspace.until_ended(run)
    shutil.rmtree(workspace.runs_dir / run)
    with shim.client.stream("GET", "/events", params={"seconds": 1, "tail": 0}) as answer:
        names = [name for name, _, _ in Events(answer.iter_lines())]
    assert names.count("run") <= 1 and names.count("state") == 1


def test_followers_that_are_gone_leave_nothing_behind(shim: Shim) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    with contextlib.ExitStack() as streams:
        for _ in range(FEW):
            streams.enter_context(shim.client.stream("GET", "/events", params={"run": run}))
        wait_until(lambda: metrics(shim)["dpipe_http_followers"] >= FEW, "all of them follow")

    def nobody_waits() -> bool:
        figures = metrics(shim)
        # One request may be the shim's own, for the next change of the status.
        return figures["dpipe_http_followers"] == 0 and figures["dpipe_http_daemon_requests"] <= 1

    # Well before the daemon would have answered by itself.
    wait_until(nobody_waits, "nobody waits any more", 6)


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_two_hundred_followers_of_a_chatty_trainer_and_a_killed_shim(workspace: Workspace) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    config = workspace.config("paced", rate=RATE, lines=5 * RATE, steps=1)
    command = [sys.executable, "-m", "tests.followers", str(shim.port), str(FOLLOWERS)]
    run = workspace.start(config)
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as followers:
        assert followers.stdout is not None
        workspace.started.append(followers)  # type: ignore[arg-type]
        waited = latencies_until(workspace, lambda: log_size(workspace, run) > RATE * 30)
        shim.kill()
        shim.start()
        waited += latencies_until(workspace, lambda: workspace.status()["run"] is None)
        found = [json.loads(line) for line in followers.stdout]
    record = workspace.json("show", run)
    spent = record["ended_at"] - record["started_at"]
    assert 5 * RATE / spent > 0.8 * RATE, f"the trainer printed only {5 * RATE / spent:.0f} lines/s"
    print(f"status: {median(waited) * 1000:.2f} ms in the median of {len(waited)}; {spent:.1f} s")
    text = workspace.log_text(run).encode()
    expected = {"lines": text.count(b"\n"), "digest": hashlib.blake2b(text, digest_size=16).hexdigest()}
    assert text.count(b"\n") > 5 * RATE
    assert len(found) == FOLLOWERS
    for each in found:
        # Each was connected before the shim was killed, and again after it.
        assert each.pop("connected") >= 2 and each == expected
    assert len(waited) > 20 and median(waited) < 0.020, f"{median(waited) * 1000:.1f} ms"


def log_size(workspace: Workspace, run: str) -> int:
    return (workspace.runs_dir / run / "output.log").stat().st_size


def latencies_until(workspace: Workspace, over: Any) -> list[float]:
    """Seconds that `status` took through the daemon's socket, asked for over and over until then."""
    client, found = workspace.client(), []

    def ask() -> Any:
        begun = time.monotonic()
        client.call(messages.GetStatus())
        found.append(time.monotonic() - begun)
        return over()

    wait_until(ask, "the end of the measurement", 60)
    client.close()
    return found


RUN = "20260131-120000-000abcd"


@contextlib.contextmanager
def busy_daemon(path: Path, listener: socket.socket | None = None) -> Iterator[list[str]]:
    """A daemon that has no time to say how a run ended; gives what it was asked for, in order.

    It takes over the `listener` at that path, if there is one.
    """
    asked: list[str] = []
    over = threading.Event()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    if listener is not None:
        router.setsockopt(zmq.USE_FD, listener.detach())
    router.bind(f"ipc://{path}")
    decode = messages.request_decoder().decode

    def answer(request: messages.AnyRequest) -> messages.AnyReply:
        if isinstance(request, messages.ReadLog):
            return messages.LogLines(RUN, () if request.after else ("a", "b"), "", 4, 4, eof=True)
        return messages.Error("busy", "too many requests are waiting; try again")

    def serve() -> None:
        while not over.is_set():
            if router.poll(20):
                peer, number, body = router.recv_multipart()
                request = decode(body)
                asked.append(type(request).__name__)
                router.send_multipart([peer, number, messages.encode(answer(request))])

    thread = threading.Thread(target=serve)
    thread.start()
    yield asked
    over.set()
    thread.join()
    router.close(linger=0)
    context.term()


def test_while_the_end_can_not_be_told_the_lines_are_and_nothing_spins(tmp_path: Path) -> None:
    async def follow() -> bytes:
        daemon = Daemon(str(tmp_path / "d.sock"))
        feed = Feed(daemon)
        follower = Follower(daemon, feed, Place(RUN, 0), Wanted(0, 1.0, False))
        found = b"".join([each async for each in follower.stream()])
        feed.close()
        daemon.close()
        return found

    with busy_daemon(tmp_path / "d.sock") as asked:
        found = asyncio.run(follow())
    assert found.count(b"data: a\ndata: b\n\n") == 1 and b"event: end" not in found
    assert 1 < asked.count("ShowRun") < 20 and asked.count("ReadLog") < 20

"""Clients that vanish, come by the hundred, or don't take what they asked for: nobody else notices."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from dpiped import messages
from tests.harness import Workspace
from tests.helpers import HERE, TRAINERS, wait_until
from tests.web import Shim

pytestmark = pytest.mark.timeout(60)
PROMPT = 3.0
"""Seconds in which an answer has to be there, on a busy machine too."""


class Crude:
    """A client that sends what it likes and reads when it likes."""

    def __init__(self, workspace: Workspace, takes: int = 1000) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, takes)
        self.socket.setsockopt(zmq.SNDHWM, 100_000)
        self.socket.connect(f"ipc://{workspace.env['DIFFPIPE_SOCKET']}")
        self._decoder = messages.reply_decoder()

    def send(self, request: messages.AnyRequest, count: int = 1) -> None:
        for number in range(count):
            self.socket.send_multipart([number.to_bytes(4, "big"), messages.encode(request)])

    def replies(self, seconds: float) -> Iterator[messages.AnyReply]:
        """As they come, until none has come for so long."""
        while self.socket.poll(int(seconds * 1000)):
            yield self._decoder.decode(self.socket.recv_multipart()[1])

    def arrived(self) -> None:
        """All that was sent before has been taken in."""
        self.send(messages.Hello())
        assert next(self.replies(PROMPT), None) is not None

    def vanish(self) -> None:
        self._context.destroy(linger=0)


@contextlib.contextmanager
def crude(workspace: Workspace, takes: int = 1000) -> Iterator[Crude]:
    made = Crude(workspace, takes)
    try:
        yield made
    finally:
        made.vanish()


def descriptors(workspace: Workspace) -> int:
    assert workspace.daemon is not None
    return len(os.listdir(f"/proc/{workspace.daemon.pid}/fd"))  # noqa: PTH208


def memory(workspace: Workspace) -> int:
    assert workspace.daemon is not None
    return int(psutil.Process(workspace.daemon.pid).memory_info().rss)


def prompt(workspace: Workspace) -> bool:
    """Is another client answered in time, also one that waits for a change?"""
    begun = time.monotonic()
    workspace.status()
    workspace.ask(messages.Watch(after=1 << 40))
    return time.monotonic() - begun < PROMPT


def settled(workspace: Workspace) -> None:
    """What is told at the start has been told, so nothing changes any more."""
    wait_until(lambda: workspace.status()["notices"], "the first notice")


def test_hundred_clients_vanish_in_the_middle_of_a_long_poll(dpiped: Workspace) -> None:
    settled(dpiped)
    before, size = descriptors(dpiped), memory(dpiped)
    status = dpiped.status()
    clients = [Crude(dpiped) for _ in range(100)]
    for each in clients:
        each.send(messages.Watch(after=status["revision"], wait=3.0), 20)
        each.arrived()
    # A connection of the client before may have been counted.
    assert descriptors(dpiped) >= before + 95
    for each in clients:
        each.vanish()
    wait_until(lambda: descriptors(dpiped) <= before + 2, "their connections are gone")
    assert prompt(dpiped)
    # Their polls end by themselves; the replies have nowhere to go.
    run = dpiped.start(dpiped.config(steps=1))
    assert dpiped.until_ended(run)["outcome"] == "completed"
    assert memory(dpiped) - size < 40 << 20
    assert "Traceback" not in dpiped.daemon_log()


def test_long_polls_without_number_end_early_and_refuse_nobody(dpiped: Workspace) -> None:
    settled(dpiped)
    revision = dpiped.status()["revision"]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(crude(dpiped, 5000)) for _ in range(6)]
        for each in clients:
            # Vanished or not, the daemon can't tell.
            each.send(messages.Watch(after=revision, wait=60.0), 1000)
            each.arrived()
        assert prompt(dpiped), "neither refused nor kept waiting"
        early = list(itertools.islice(clients[0].replies(20.0), 1000))
        assert len(early) == 1000 and all(isinstance(each, messages.Status) for each in early)
        assert list(clients[5].replies(0.5)) == [], "those that came last wait on"
        # One client alone does not get more than its share.
        clients[5].send(messages.Watch(after=revision, wait=60.0), 100)
        refused = list(clients[5].replies(2.0))
        assert 50 < len(refused) <= 100
        assert all(isinstance(each, messages.Error) and each.code == "busy" for each in refused)
        assert prompt(dpiped)


def test_five_hundred_clients_at_once(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    dpiped.until_step(2)
    before = descriptors(dpiped)
    command = [sys.executable, "-m", "tests.crowd", dpiped.env["DIFFPIPE_SOCKET"], "500", run]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=50, check=True)
    seen = json.loads(done.stdout)
    assert seen["left"] == 0
    assert seen["kinds"] == {"status": 1000, "lines": 500, "run": 500}
    assert seen["status"] < 10 and seen["seconds"] < 20, seen
    wait_until(lambda: descriptors(dpiped) <= before + 2, "their connections are gone")
    dpiped.go.touch()
    assert dpiped.until_ended(run)["outcome"] == "completed"


def chatty(workspace: Workspace) -> str:
    """A run with megabytes of log that goes on."""
    run = workspace.start(workspace.config("chatty", lines=150_000, until=str(workspace.go)))
    workspace.until_step(1)
    return run


def test_slow_client_that_never_reads_costs_little_memory(dpiped: Workspace) -> None:
    run = chatty(dpiped)
    size = memory(dpiped)
    with crude(dpiped, takes=1) as slow:
        for _ in range(4):
            slow.send(messages.ReadRaw(run, after=0), 500)
            assert prompt(dpiped)
            # 2000 replies of a MiB each.
            assert memory(dpiped) - size < 150 << 20
    assert dpiped.ctl("stop")[0] == 0


def test_slow_client_that_reads_gets_an_answer_to_everything(dpiped: Workspace) -> None:
    run = chatty(dpiped)
    with crude(dpiped, takes=1) as slow:
        slow.send(messages.ReadRaw(run, after=0), 200)
        assert prompt(dpiped)
        answers = list(slow.replies(PROMPT))
    kinds = [each.code if isinstance(each, messages.Error) else "raw" for each in answers]
    assert len(kinds) == 200 and set(kinds) <= {"raw", "busy"}
    assert kinds.count("raw") >= 20
    assert dpiped.ctl("stop")[0] == 0


def test_slow_http_clients_keep_nobody_else_waiting(dpiped: Workspace) -> None:
    program = (sys.executable, str(TRAINERS / "impatient_shim.py"), "REQUEST_WITHIN=2", "READ_WITHIN=2")
    shim = Shim(dpiped, program=program)
    run = chatty(dpiped)
    pid = shim.process.pid
    before, size = len(list(Path(f"/proc/{pid}/fd").iterdir())), psutil.Process(pid).memory_info().rss
    with contextlib.ExitStack() as stack:
        for number in range(150):
            each = stack.enter_context(socket.create_connection(("127.0.0.1", shim.port), timeout=20))
            if number < 100:
                # The head of a request that never ends, one of them not even begun.
                each.sendall(b"GET /dpipe/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: "[:number])
            elif number < 110:
                # A body that never ends.
                head = "POST /dpipe/train/start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
                each.sendall(head.encode())
            else:
                where = f"/dpipe/events?run={run}&after=0" if number < 130 else f"/dpipe/runs/{run}/log"
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                each.sendall(f"GET {where} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        begun = time.monotonic()
        assert shim.client.get("/status").status_code == 200
        assert shim.client.get("/runs").status_code == 200
        assert time.monotonic() - begun < PROMPT
        assert psutil.Process(pid).memory_info().rss - size < 200 << 20
        # They are cut off while they still hold on.
        wait_until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= before + 5, "they are cut off")
    assert dpiped.status()["state"] == "running", "what they asked for was not done"
    assert dpiped.ctl("stop")[0] == 0

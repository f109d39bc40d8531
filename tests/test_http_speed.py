"""What an idle answer takes, beside a bare Starlette endpoint measured in the same run."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

import pytest

from tests.harness import free_port
from tests.helpers import HERE, wait_until
from tests.web import Shim

REQUESTS = 1500
LOGS_MS = 1.0
STATUS_MS = 0.8


class Connection:
    """A kept-alive connection, asked one thing after the other, without a client library's own time."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        self.size = 0

    def milliseconds(self) -> float:
        begun = time.perf_counter()
        self._socket.sendall(self._request)
        answer = self._socket.recv(1 << 18)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.size = len(body)
        while self.size < length:
            self.size += len(self._socket.recv(1 << 18))
        return (time.perf_counter() - begun) * 1000


@pytest.fixture
def bare() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "tests.bare", str(port)], cwd=HERE.parent) as process:
        wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), "the bare endpoint")
        yield port
        process.terminate()


@pytest.mark.alone
def test_logs_and_status_are_quick(shim: Shim, bare: int) -> None:
    workspace = shim.workspace
    run = workspace.start(workspace.config(steps=600, seconds_per_step=0.001))
    workspace.until_ended(run)
    asked = {
        "bare": Connection(bare, "/bare"),
        "logs": Connection(shim.port, "/dpipe/train/logs?limit=500"),
        "status": Connection(shim.port, "/dpipe/status"),
    }
    # In turn, so that a change in the machine's speed meets all of them.
    spent = [{name: each.milliseconds() for name, each in asked.items()} for _ in range(REQUESTS)]
    p50 = {name: median(each[name] for each in spent[REQUESTS // 10 :]) for name in asked}
    print({name: f"{value:.2f} ms" for name, value in p50.items()})
    assert asked["logs"].size > 30_000
    assert p50["logs"] - p50["bare"] <= LOGS_MS and p50["status"] - p50["bare"] <= STATUS_MS, p50

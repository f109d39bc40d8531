"""The socket: its document, its mode, and what strangers may send to it."""

import os
import random
import socket
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from dpiped import messages
from tests.harness import Workspace
from tests.helpers import HERE, wait_until

DOCS = HERE.parent / "docs"
pytestmark = pytest.mark.timeout(120)


def test_the_document_is_what_the_types_say() -> None:
    code = "import generate_protocol as g; import sys; sys.stdout.write(g.render())"
    made = subprocess.run([sys.executable, "-c", code], cwd=DOCS, capture_output=True, text=True, check=True)
    assert made.stdout == (DOCS / "protocol.md").read_text(), "run: python docs/generate_protocol.py"


def test_socket_and_directory_belong_to_the_owner_alone(dpiped: Workspace) -> None:
    path = Path(dpiped.env["DIFFPIPE_SOCKET"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_hello_tells_version_and_refuses_another_protocol(dpiped: Workspace) -> None:
    welcome = dpiped.ask(messages.Hello())
    assert isinstance(welcome, messages.Welcome)
    assert dpiped.daemon is not None
    assert (welcome.protocol, welcome.pid) == (messages.PROTOCOL, dpiped.daemon.pid)
    assert raw(dpiped, msgspec.msgpack.encode({"type": "hello", "protocol": 99})).code == "invalid"


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"type": "start"}, "invalid", "config"),
        ({"type": "start", "config": 7}, "invalid", "config"),
        ({"type": "start", "config": "/x", "typo": 1}, "invalid", "typo"),
        ({"type": "start", "config": "/x", "num_gpus": 0}, "invalid", "num_gpus"),
        ({"type": "stop", "how": "gently"}, "invalid", "how"),
        ({"type": "log", "limit": -1}, "invalid", "limit"),
        ({"type": "nonsense"}, "invalid", "type"),
        (["not", "a", "map"], "invalid", None),
        (b"\xc1", "bad_request", None),
        (b"", "bad_request", None),
        (b"\x91" * 100_000, "invalid", None),
    ],
)
def test_errors_are_replies_that_name_the_field(
    dpiped: Workspace, body: object, code: str, field: str | None
) -> None:
    error = raw(dpiped, body if isinstance(body, bytes) else msgspec.msgpack.encode(body))
    assert (error.code, error.field) == (code, field)
    assert error.message


def raw(workspace: Workspace, body: bytes) -> messages.Error:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{workspace.env['DIFFPIPE_SOCKET']}")
        dealer.send_multipart([b"n", body])
        assert dealer.poll(10_000), "no reply"
        number, reply = dealer.recv_multipart()
    assert number == b"n"
    error = messages.reply_decoder().decode(reply)
    assert isinstance(error, messages.Error), error
    return error


def hostile_messages(count: int) -> list[list[bytes]]:
    """Random frames, and valid requests with some bytes changed, cut or doubled. The same for each run."""
    random.seed(20260101)
    valid = [
        messages.encode(request)
        for request in (
            messages.GetStatus(),
            messages.Start("/nowhere/x.toml", args=("--a",), env={"A": "b"}),
            messages.ReadLog("run", after=3, limit=5, wait=0.01),
            messages.Stop("save", timeout=3.0),
            messages.ShowRun("x"),
            messages.Watch(after=0),
        )
    ]
    made = []
    for number in range(count):
        body = (
            bytearray(random.choice(valid))
            if number % 2
            else bytearray(random.randbytes(random.randrange(200)))
        )
        for _ in range(random.randrange(1, 4)):
            if body:
                body[random.randrange(len(body))] = random.randrange(256)
        cut = random.randrange(len(body) + 1) if number % 5 == 0 else len(body)
        frames = [random.randbytes(random.randrange(20)), bytes(body[:cut])]
        made.append(frames if number % 7 else [random.randbytes(9)] * random.randrange(1, 6))
    return made


def test_ten_thousand_hostile_messages_cost_neither_an_answer_nor_memory(dpiped: Workspace) -> None:
    assert dpiped.daemon is not None
    daemon = psutil.Process(dpiped.daemon.pid)
    sent = hostile_messages(10_000)

    def flood() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.RCVHWM, 0)
            dealer.connect(f"ipc://{dpiped.env['DIFFPIPE_SOCKET']}")
            for at in range(0, len(sent), 500):
                for frames in sent[at : at + 500]:
                    dealer.send_multipart(frames)
                wait_until(lambda: dpiped.answers(), "an answer in the flood", every=0.01)

    files = daemon.num_fds()
    flood()
    after_first = daemon.memory_info().rss
    flood()
    assert daemon.memory_info().rss - after_first < 8 << 20
    wait_until(lambda: daemon.num_fds() <= files, "the connections are closed")
    assert dpiped.status()["state"] == "idle"
    assert "Traceback" not in dpiped.daemon_log()


def test_bytes_that_are_no_zeromq_at_all(dpiped: Workspace) -> None:
    random.seed(7)
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(dpiped.env["DIFFPIPE_SOCKET"])
            try:
                stranger.sendall(random.randbytes(random.randrange(1, 400)))
            except OSError as error:
                assert error.errno in (32, 104), "the daemon may hang up, nothing else"
    assert dpiped.answers()


def test_an_oversized_message_is_dropped_and_the_next_is_answered(dpiped: Workspace) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{dpiped.env['DIFFPIPE_SOCKET']}")
        dealer.send_multipart([b"n", b"x" * (messages.REQUEST_BYTES + 1)])
        assert not dealer.poll(500)
    assert dpiped.answers()


def test_a_socket_directory_open_to_others_is_refused(workspace: Workspace) -> None:
    folder = workspace.root / "open"
    folder.mkdir()
    folder.chmod(0o777)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dpiped"))],
        env=workspace.env | {"DIFFPIPE_SOCKET": str(folder / "d.sock")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 78
    assert "DIFFPIPE_SOCKET" in done.stderr and os.listdir(folder) == []  # noqa: PTH208

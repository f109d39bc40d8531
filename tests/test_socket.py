"""The listening socket: handed over, kept over a reload, put back where it was deleted; and many clients."""

import asyncio
import contextlib
import functools
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from dpiped import limits, messages
from tests.harness import BIN, Workspace
from tests.helpers import require, wait_until
from tests.web import Shim

pytestmark = pytest.mark.timeout(60)

HAND_OVER = """
import os, socket, sys
path, kind, words = sys.argv[1], sys.argv[2], sys.argv[3:]
made = socket.socket(socket.AF_UNIX if kind != "tcp" else socket.AF_INET, socket.SOCK_STREAM)
made.bind(path if kind != "tcp" else ("127.0.0.1", 0))
if kind != "deaf":
    made.listen()
made.set_inheritable(True)
if made.fileno() != 3:
    os.dup2(made.fileno(), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2" if kind == "two" else "1"}
os.execv(words[0], words)
"""
"""Does what systemd does: makes the socket and becomes the daemon."""


def handing_over(path: str, kind: str = "unix") -> list[str]:
    return [sys.executable, "-c", HAND_OVER, path, kind, str(BIN / "dpiped")]


def socket_of(workspace: Workspace) -> Path:
    return Path(workspace.env["DIFFPIPE_SOCKET"])


def test_socket_file_deleted_comes_back_and_nobody_is_disconnected(dpiped: Workspace) -> None:
    path = socket_of(dpiped)
    followed = dpiped.client()
    assert isinstance(followed.call(messages.GetStatus()), messages.Status)
    for disturb in (Path.unlink, remove_folder, replace):
        disturb(path)
        wait_until(dpiped.answers, "the daemon answers a new client")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert isinstance(followed.call(messages.GetStatus()), messages.Status)
    assert any("deleted or replaced" in notice for notice in dpiped.status()["notices"])
    followed.close()
    # The lock is there again too.
    second = subprocess.run(
        [str(BIN / "dpiped")],
        env=dpiped.env | {"DIFFPIPE_STATE_DIR": str(dpiped.root / "other")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1 and "another dpiped" in second.stderr
    assert dpiped.ctl("reload")[0] == 0
    assert dpiped.end_daemon() == 0
    assert not path.exists()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(path.with_name("x")))
    path.with_name("x").replace(path)


def test_what_is_no_socket_at_its_path_is_left_alone_and_said(dpiped: Workspace) -> None:
    path, client = socket_of(dpiped), dpiped.client()
    assert isinstance(client.call(messages.Hello()), messages.Welcome)
    path.unlink()
    path.write_text("precious")

    def notices() -> str:
        status = client.call(messages.GetStatus())
        assert isinstance(status, messages.Status)
        return " ".join(status.notices)

    wait_until(lambda: "can't be made again" in notices(), "the notice")
    assert path.read_text() == "precious"
    path.unlink()
    wait_until(dpiped.answers, "it is put back")
    client.close()


def test_a_socket_that_was_handed_over_is_used_and_stays(workspace: Workspace) -> None:
    path = socket_of(workspace)
    path.parent.mkdir(mode=0o700)
    daemon = workspace.start_daemon(*handing_over(str(path)))
    before = path.stat().st_ino
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    environment = Path(f"/proc/{workspace.status()['run']['pid']}/environ").read_bytes()
    assert b"LISTEN_" not in environment and b"NOTIFY_" not in environment
    assert workspace.ctl("reload")[0] == 0
    assert workspace.status()["pid"] == daemon.pid and workspace.status()["run"]["id"] == run
    assert path.stat().st_ino == before
    assert workspace.end_daemon() == 0
    assert path.is_socket() and path.stat().st_ino == before


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("two", "2 sockets were handed over"),
        ("tcp", "no listening Unix stream socket"),
        ("deaf", "no listening Unix stream socket"),
        ("elsewhere", "the socket handed over listens on"),
    ],
)
def test_a_socket_that_can_not_be_meant_is_refused(workspace: Workspace, kind: str, says: str) -> None:
    path = socket_of(workspace)
    path.parent.mkdir(mode=0o700)
    at = str(path) if kind != "elsewhere" else str(path.with_name("e.sock"))
    words = handing_over(at, kind)
    done = subprocess.run(words, env=workspace.env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 78 and says in done.stderr, done.stderr


def test_nobody_is_turned_away_while_the_daemon_reloads(dpiped: Workspace) -> None:
    refused: list[BaseException] = []
    asked = 0
    over = threading.Event()

    def ask() -> None:
        nonlocal asked
        while not over.is_set():
            try:
                assert isinstance(dpiped.ask(messages.GetStatus()), messages.Status)
                asked += 1
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test has failed
                refused.append(error)

    def more_than(number: int) -> bool:
        return asked > number

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = asked
        assert dpiped.ctl("reload")[0] == 0
        wait_until(functools.partial(more_than, before + 20), "questions are answered")
    over.set()
    for thread in threads:
        thread.join()
    assert refused == []


def test_five_hundred_come_at_once_and_a_training_keeps_its_limit(workspace: Workspace) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require(hard == resource.RLIM_INFINITY or hard > 2000, f"no more than {hard} open files are allowed")
    limited = f"ulimit -Sn 200; exec {BIN / 'dpiped'}"
    daemon = workspace.start_daemon("sh", "-c", limited)
    assert soft_files(daemon.pid) > 2000
    shim = Shim(workspace, program=("sh", "-c", f'ulimit -Sn 200; exec {BIN / "dpipectl"} "$@"', "sh"))
    assert soft_files(shim.process.pid) > 2000
    workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    assert soft_files(workspace.status()["run"]["pid"]) == 200
    # This process has the clients' ends.
    limits.set_files(4096 if hard == resource.RLIM_INFINITY else min(hard, 4096))
    try:
        assert asyncio.run(ask_at_once(str(socket_of(workspace)), 500)) == 500
    finally:
        limits.set_files(soft)
    assert workspace.ctl("reload")[0] == 0
    workspace.ctl("stop")
    workspace.start(workspace.config(until=str(workspace.go), name="again"))
    assert soft_files(workspace.status()["run"]["pid"]) == 200
    assert soft_files(daemon.pid) > 2000


def soft_files(pid: int) -> int:
    (line,) = (each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in each)
    return int(line.split()[3])


async def ask_at_once(path: str, clients: int) -> int:
    """The number that were answered, each over a connection of its own, all held until the last is."""
    context = zmq.asyncio.Context()
    context.setsockopt(zmq.MAX_SOCKETS, 2 * clients)
    body = messages.encode(messages.GetStatus())
    sockets = [context.socket(zmq.DEALER) for _ in range(clients)]

    async def ask(dealer: zmq.asyncio.Socket) -> bool:
        dealer.connect(f"ipc://{path}")
        await dealer.send_multipart([b"n", body])
        return (await dealer.recv_multipart())[0] == b"n"

    try:
        async with asyncio.timeout(30):
            return sum(await asyncio.gather(*(ask(each) for each in sockets)))
    finally:
        context.destroy(linger=0)


class Listener:
    """In the place of systemd's end of NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.said: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(name.replace("@", "\0"))

    def heard(self, text: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said.append(self.socket.recv(4096).decode())
        return any(text in each for each in self.said)


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told_what_is_and_what_will_be(workspace: Workspace, abstract: bool) -> None:
    name = f"@dpiped-{os.getpid()}" if abstract else str(workspace.root / "n.sock")
    listener = Listener(name)
    # One second, of which half; and the pid is that of this daemon, or none.
    workspace.start_daemon(NOTIFY_SOCKET=name, WATCHDOG_USEC="1000000")
    assert listener.heard("READY=1") and listener.heard("STATUS=idle")
    wait_until(lambda: listener.heard("WATCHDOG=1"), "a sign of life")
    run = workspace.start(workspace.config("stubborn", loss=0.04214))
    wait_until(lambda: listener.heard(f"STATUS=training {run}: step "), "the status")
    wait_until(lambda: listener.heard(", loss 0.0421"), "the loss")
    listener.said.clear()
    assert workspace.ctl("reload")[0] == 0
    assert listener.heard("RELOADING=1\nMONOTONIC_USEC=") and listener.heard("READY=1")
    assert workspace.daemon is not None
    workspace.daemon.terminate()
    wait_until(lambda: listener.heard("STOPPING=1"), "STOPPING=1")
    wait_until(lambda: listener.heard("EXTEND_TIMEOUT_USEC=7"), "20 s of the ladder, and 60 s")
    wait_until(lambda: listener.heard(f"STATUS=stopping {run}"), "the status")
    listener.socket.close()

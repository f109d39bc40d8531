"""The real TensorBoard as the daemon's child: ready, listing runs, killed, crowded out, gone with it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpiped import procs
from dpiped.tensorboard import listeners
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import require, wait_until

pytestmark = pytest.mark.timeout(90)
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy of the machine has nothing to do with its loopback."""


@pytest.fixture
def board() -> Iterator[Workspace]:
    """A workspace whose daemon runs TensorBoard only."""
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('tensorboard') is None)"
    require(
        subprocess.run([sys.executable, "-c", code], check=False).returncode == 0,
        "tensorboard is not installed",
    )
    workspace = Workspace(DIFFPIPE_CONFIG="", DIFFPIPE_TENSORBOARD="1")
    yield workspace
    workspace.close()


def until_ready(workspace: Workspace) -> Any:
    return wait_until(
        lambda: (found := workspace.status()["tensorboard"])["state"] == "ready" and found,
        "TensorBoard is ready",
        deadline=40,
    )


def listed_runs(url: str) -> list[str]:
    with DIRECT.open(url + "data/runs", timeout=10) as answer:
        found: list[str] = json.load(answer)
    return found


def child_pid(workspace: Workspace) -> int:
    assert workspace.daemon is not None
    pid = workspace.daemon.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def write_events(folder: Path, tag: str = "train/loss") -> None:
    """A real event file, written by TensorBoard's own writer."""
    code = (
        "import sys, time\n"
        "from tensorboard.summary.writer.event_file_writer import EventFileWriter\n"
        "from tensorboard.compat.proto.event_pb2 import Event\n"
        "from tensorboard.compat.proto.summary_pb2 import Summary\n"
        "writer = EventFileWriter(sys.argv[1])\n"
        "for step in range(3):\n"
        "    value = Summary.Value(tag=sys.argv[2], simple_value=1.0 / (step + 1))\n"
        "    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))\n"
        "writer.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), tag], check=True)


def test_tensorboard_only_mode_is_ready_and_trains_nothing(board: Workspace) -> None:
    public = "https://pod.example.org/tensorboard/"
    keys = {"WANDB_API_KEY": "key-of-the-test", "HF_TOKEN": "token-of-the-test"}
    limited = ("sh", "-c", f"ulimit -Sn 200; exec {BIN / 'dpiped'}")
    daemon = board.start_daemon(*limited, DIFFPIPE_TENSORBOARD_URL=public, **keys)
    ready = until_ready(board)
    # It keeps every event file open that it shows.
    files = [psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) for pid in (daemon.pid, child_pid(board))]
    assert files[0] == files[1] and files[0][0] > 200
    environment = Path(f"/proc/{child_pid(board)}/environ").read_bytes()
    assert b"PATH=" in environment and b"-of-the-test" not in environment
    assert (ready["port"], ready["public_url"]) == (int(board.env["DIFFPIPE_PORT"]), public)
    assert public in board.ctl("status")[1]
    assert ready["url"] == f"http://localhost:{board.env['DIFFPIPE_PORT']}/"
    with DIRECT.open(ready["url"], timeout=10) as answer:
        assert answer.status == 200
    assert board.json("runs") == []
    port = int(board.env["DIFFPIPE_PORT"])
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]


def test_a_killed_tensorboard_is_back_within_ten_seconds(board: Workspace) -> None:
    board.start_daemon()
    until_ready(board)
    # Not even its own log being gone may keep it away.
    (board.root / "diffpipe/tensorboard.log").unlink()
    os.kill(child_pid(board), signal.SIGKILL)
    wait_until(lambda: board.status()["tensorboard"]["state"] == "restarting", "the death is noticed")
    wait_until(lambda: board.status()["tensorboard"]["state"] == "ready", "it is back", deadline=10)


def test_a_taken_port_is_said_with_its_holder_and_training_works(board: Workspace) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(board.env["DIFFPIPE_PORT"])))
        holder.listen()
        board.start_daemon(DIFFPIPE_TENSORBOARD_URL="https://pod.example.org/")
        taken = wait_until(
            lambda: (found := board.status()["tensorboard"])["state"] == "port_taken" and found, "the refusal"
        )
        assert f"port {board.env['DIFFPIPE_PORT']} is held by pid {os.getpid()}" in taken["detail"]
        assert taken["detail"] in board.daemon_log()
        assert taken["url"] is taken["port"] is taken["public_url"] is None
        assert board.until_ended(board.start(board.config(steps=3)))["outcome"] == "completed"
    until_ready(board)


def test_tensorboard_dies_with_a_killed_daemon_and_comes_back_with_the_next(board: Workspace) -> None:
    board.start_daemon()
    until_ready(board)
    child = child_pid(board)
    board.kill_daemon()
    wait_until(lambda: (look := procs.look(child)) is None or look.zombie, "it is gone", deadline=5)
    board.start_daemon()
    until_ready(board)
    assert board.end_daemon() == 0
    assert listeners(int(board.env["DIFFPIPE_PORT"])) == set()


@pytest.mark.parametrize("pause", [0.1, 0.12, 0.14, 0.2])
def test_sigterm_in_the_middle_of_a_reload_ends_everything(board: Workspace, pause: float) -> None:
    # With TensorBoard the daemon has helper threads, which hold no signal back.
    daemon = board.start_daemon()
    until_ready(board)
    run = board.start(board.config(steps=1_000_000))
    board.until_step(2)
    daemon.send_signal(signal.SIGHUP)
    until = time.monotonic() + pause
    wait_until(lambda: time.monotonic() >= until, "the pause", every=0.002)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(40) == 0
    assert processes_of_run(run) == []


def test_every_runs_events_appear_under_its_name_and_other_trainers_too(board: Workspace) -> None:
    others = board.root / "logs/TrainPilot/someone"
    others.mkdir(parents=True)
    write_events(others)
    board.start_daemon()
    run = board.start(board.config(steps=1_000_000))
    train_dir = Path(
        board.until_step(1) and wait_until(lambda: board.status()["run"]["train_dir"], "its directory")
    )
    write_events(train_dir)
    url = until_ready(board)["url"]
    wanted = {f"diffpipe/{run}", "trainpilot/someone"}
    wait_until(lambda: wanted <= set(listed_runs(url)), f"{wanted} among the runs", deadline=30)
    board.ctl("stop")
    links = board.root / "logs/tensorboard"
    assert {path.name for path in links.iterdir()} == {"trainpilot", "kohya", "ai-toolkit", "diffpipe"}
    assert (links / "diffpipe").readlink() == board.root / "logs/diffusion-pipe"


def test_a_real_directory_at_a_link_name_is_kept_and_said(board: Workspace) -> None:
    precious = board.root / "logs/tensorboard/kohya/precious"
    precious.mkdir(parents=True)
    board.start_daemon()
    notice = board.status()["notices"][0]
    assert "logs/tensorboard/kohya is a real directory" in notice
    assert precious.is_dir()


def test_without_tensorboard_wanted_it_is_disabled(workspace: Workspace) -> None:
    workspace.start_daemon()
    assert workspace.status()["tensorboard"]["state"] == "disabled"

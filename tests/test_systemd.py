"""The shipped units under a real systemd: what an administrator does, and what goes wrong behind his back."""

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dpiped import messages
from tests.harness import BIN, Workspace, free_port, processes_of_run
from tests.helpers import HERE, require, wait_until
from tests.systemd import PROGRAMS, SHIPPED, Systemd

DOCUMENT = HERE.parent / "docs/services.md"
SCORED_WITH = 252
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def manager() -> Iterator[Systemd]:
    """One systemd for all tests of the file."""
    workspace = Workspace()
    try:
        made = Systemd(workspace)
        try:
            yield made
        finally:
            made.close()
    finally:
        workspace.close()


@pytest.fixture
def systemd(manager: Systemd) -> Iterator[Systemd]:
    """Nothing runs, and the units are as they are shipped."""
    yield manager
    manager.run("systemctl", "--user", "stop", "dpipe-http", "dpiped", "dpiped-finish", "dpiped.socket")
    manager.run("systemctl", "--user", "reset-failed")
    manager.write_environment()
    for changed in manager.units.glob("*.d/test.conf"):
        changed.unlink()
    manager.ctl("daemon-reload")
    manager.workspace.go.unlink(missing_ok=True)


def change(systemd: Systemd, text: str) -> None:
    systemd.drop_in("dpiped.service", "test", f"[Service]\n{text}\n")
    systemd.ctl("daemon-reload")


def start_run(systemd: Systemd, behaviour: str = "well_behaved") -> str:
    """A run of a started daemon that goes on until it is told."""
    workspace = systemd.workspace
    run = workspace.start(workspace.config(behaviour, until=str(workspace.go)))
    workspace.until_step(2)
    return run


def steps_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^steps: (\d+) loss", text, re.MULTILINE)]


def test_the_first_client_starts_the_daemon_and_what_is_stopped_stays_so(systemd: Systemd) -> None:
    workspace = systemd.workspace
    systemd.ctl("start", "dpiped.socket")
    assert systemd.state("dpiped.service") == "inactive/dead"
    assert workspace.status()["state"] == "idle"
    assert systemd.state("dpiped.service") == "active/running"
    assert systemd.show("dpiped.service", "StatusText") == ["idle"]
    # Nor does it matter that a clean-up deletes the socket file, then and for the daemon that follows.
    (systemd.runtime / "dpiped/dpiped.sock").unlink()
    wait_until(workspace.answers, "the daemon listens anew")
    first = systemd.main_pid()
    systemd.kill(signal.SIGKILL)
    wait_until(lambda: systemd.main_pid() not in (0, first) and workspace.answers(), "so does the next one")
    systemd.ctl("stop", "dpiped")
    wait_until(lambda: systemd.state("dpiped.socket") == "inactive/dead", "the socket is stopped as well")
    assert workspace.ctl("status")[0] == 3
    assert systemd.state("dpiped.service") == "inactive/dead"


def test_the_daemon_is_killed_and_reloaded_and_the_run_loses_no_line(systemd: Systemd) -> None:
    workspace = systemd.workspace
    systemd.ctl("start", "dpiped")
    run = start_run(systemd)
    pid = workspace.status()["run"]["pid"]
    line = rf"training {run}: step \d+, loss 0\.\d{{4}}"

    wait_until(lambda: re.fullmatch(line, systemd.show("dpiped.service", "StatusText")[0]), "the status line")
    with (workspace.root / "followed").open("wb") as followed:
        words = [str(BIN / "dpipectl"), "logs", "--follow", "--all", run]
        follower = subprocess.Popen(words, env=workspace.env, stdout=followed, stderr=subprocess.DEVNULL)
    inode = (systemd.runtime / "dpiped/dpiped.sock").stat().st_ino
    first = systemd.main_pid()
    systemd.kill(signal.SIGKILL)
    wait_until(lambda: systemd.main_pid() not in (0, first), "systemd restarts it")
    assert workspace.status()["run"]["pid"] == pid
    wait_until(lambda: systemd.state("dpiped.service") == "active/running", "it is ready")
    second = systemd.main_pid()
    with asking(workspace) as refused:
        systemd.ctl("reload", "dpiped")
        systemd.ctl("reload", "dpiped")
    assert refused == []
    assert (systemd.main_pid(), systemd.state("dpiped.service")) == (second, "active/running")
    assert workspace.status()["run"]["pid"] == pid
    assert (systemd.runtime / "dpiped/dpiped.sock").stat().st_ino == inode
    workspace.go.touch()
    ended = workspace.until_ended(run)
    assert ended["outcome"] == "completed"
    follower.wait(20)
    expected = list(range(1, ended["step"] + 1))
    assert steps_in(workspace.log_text(run)) == expected
    assert steps_in((workspace.root / "followed").read_text()) == expected


@contextlib.contextmanager
def asking(workspace: Workspace) -> Iterator[list[BaseException]]:
    """Clients that come one after the other; what they were refused with."""
    refused: list[BaseException] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                assert isinstance(workspace.ask(messages.GetStatus()), messages.Status)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test has failed
                refused.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield refused
    finally:
        over.set()
        thread.join()


def test_a_stop_leaves_neither_run_nor_tensorboard_nor_daemon(systemd: Systemd) -> None:
    workspace = systemd.workspace
    systemd.write_environment(DIFFPIPE_CONFIG="", DIFFPIPE_TENSORBOARD="1")
    systemd.ctl("start", "dpiped")
    run = start_run(systemd, "nameless")

    def commands() -> str:
        return systemd.run("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout

    wait_until(lambda: "tensorboard.main" in commands(), "TensorBoard is started")
    assert len(systemd.processes()) > 4
    systemd.ctl("stop", "dpiped")
    assert systemd.processes() == [] and processes_of_run(run) == []
    assert "tensorboard" not in commands() and "sleep 600" not in commands()
    systemd.ctl("start", "dpiped")
    assert workspace.status()["last_run"]["outcome"] == "stopped"
    # A restart is a stop and a start; the socket stays.
    again, first = start_run(systemd), systemd.main_pid()
    inode = (systemd.runtime / "dpiped/dpiped.sock").stat().st_ino
    systemd.ctl("restart", "dpiped")
    assert processes_of_run(again) == [] and systemd.main_pid() not in (0, first)
    assert workspace.status()["last_run"]["id"] == again
    assert (systemd.runtime / "dpiped/dpiped.sock").stat().st_ino == inode
    assert systemd.state("dpiped-finish.service") == "active/exited"


def test_a_daemon_that_hangs_is_replaced_and_the_training_goes_on(systemd: Systemd) -> None:
    workspace = systemd.workspace
    change(systemd, "WatchdogSec=2")
    systemd.ctl("start", "dpiped")
    run = start_run(systemd)
    pid = workspace.status()["run"]["pid"]
    first = systemd.main_pid()
    systemd.kill(signal.SIGSTOP)
    wait_until(lambda: systemd.main_pid() not in (0, first), "another daemon")
    run_now = workspace.status()["run"]
    assert (run_now["id"], run_now["pid"]) == (run, pid)
    workspace.until_step(run_now["step"] + 2)
    # Signs of life are taken for what they are.
    second, until = systemd.main_pid(), time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > until, "longer than the watchdog waits", every=0.2)
    assert systemd.main_pid() == second


def test_a_stop_of_a_daemon_that_hangs_leaves_nothing(systemd: Systemd) -> None:
    workspace = systemd.workspace
    # After SIGTERM systemd would send a SIGCONT to one that is only stopped.
    change(systemd, "TimeoutStopSec=2\nKillSignal=SIGURG")
    systemd.write_environment(DIFFPIPE_STOP_TIMEOUT="1")
    systemd.ctl("start", "dpiped")
    run = start_run(systemd, "stubborn")
    systemd.ctl("stop", "dpiped")
    assert systemd.processes() == [] and processes_of_run(run) == []
    systemd.ctl("start", "dpiped")
    last = workspace.status()["last_run"]
    assert (last["id"], last["outcome"]) == (run, "stopped") and "dpiped finish" in last["reason"]


def test_a_stop_right_after_a_crash_leaves_nothing(systemd: Systemd) -> None:
    change(systemd, "RestartSec=100")
    systemd.ctl("start", "dpiped")
    run = start_run(systemd)
    systemd.kill(signal.SIGKILL)
    wait_until(lambda: systemd.state("dpiped.service") == "activating/auto-restart", "it waits")
    assert processes_of_run(run) != []
    systemd.ctl("stop", "dpiped")
    wait_until(lambda: systemd.state("dpiped-finish.service") == "inactive/dead", "what is left is ended")
    assert systemd.processes() == [] and processes_of_run(run) == []


def test_a_wrong_setting_is_said_once(systemd: Systemd) -> None:
    workspace = systemd.workspace
    systemd.write_environment(DIFFPIPE_SAVE_TIMEOUT="soon")
    said = "DIFFPIPE_SAVE_TIMEOUT takes seconds"
    before = systemd.log_text().count(said)

    def times() -> int:
        return systemd.log_text().count(said) - before

    assert systemd.run("systemctl", "--user", "start", "dpiped").returncode == 1
    assert systemd.state("dpiped.service") == "failed/failed"
    assert systemd.show("dpiped.service", "ExecMainStatus", "NRestarts") == ["78", "0"]
    wait_until(lambda: systemd.state("dpiped-finish.service").endswith(("dead", "failed")), "it is over")
    assert times() == 1
    # Nor does a client start it again and again.
    systemd.ctl("start", "dpiped.socket")
    assert workspace.ctl("status")[0] == 3
    wait_until(lambda: systemd.state("dpiped.socket") == "inactive/dead", "the socket")
    assert times() <= 6
    systemd.write_environment()
    systemd.ctl("start", "dpiped")
    assert workspace.status()["state"] == "idle"


def test_a_wrong_setting_costs_no_training(systemd: Systemd) -> None:
    """It was changed while the daemon ran, and shows when that one has crashed."""
    workspace = systemd.workspace
    said = "and the socket handed over listens on"
    systemd.ctl("start", "dpiped.socket", "dpiped")
    run = start_run(systemd)
    pid, processes = workspace.status()["run"]["pid"], processes_of_run(run)
    # `dpiped finish`, which has no socket, would find nothing wrong with it.
    systemd.write_environment(DIFFPIPE_SOCKET="/run/user/elsewhere/d.sock")
    before = systemd.log_text().count(said)
    systemd.kill(signal.SIGKILL)
    wait_until(lambda: systemd.state("dpiped.service") == "failed/failed", "it is not tried again")
    assert systemd.show("dpiped.service", "ExecMainStatus") == ["78"]
    assert systemd.log_text().count(said) == before + 1
    wait_until(lambda: systemd.state("dpiped-finish.service") == "inactive/dead", "nothing is finished")
    assert processes_of_run(run) == processes != []
    systemd.write_environment()
    systemd.ctl("start", "dpiped")
    assert workspace.status()["run"]["pid"] == pid
    # Once it is right, a crash and a stop leave nothing.
    systemd.ctl("stop", "dpiped")
    assert processes_of_run(run) == []


def test_the_shim_is_a_service_that_may_be_restarted(systemd: Systemd) -> None:
    port = free_port()
    systemd.write_environment(DIFFPIPE_HTTP_PORT=str(port))
    # The programs and the socket of this test lie in /tmp.
    systemd.drop_in("dpipe-http.service", "test", "[Service]\nPrivateTmp=no\n")
    systemd.ctl("daemon-reload")
    systemd.ctl("start", "dpiped", "dpipe-http")
    run = start_run(systemd)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/dpipe", trust_env=False) as client:

        def health() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return client.get("/health").status_code == 200
            return False

        wait_until(health, "the shim answers")
        assert client.get("/status").json()["run"]["id"] == run
        systemd.ctl("restart", "dpipe-http")
        wait_until(health, "it answers again")
        assert client.get("/status").json()["run"]["id"] == run


def test_the_units_are_clean(systemd: Systemd) -> None:
    units = [str(systemd.units / unit.name) for unit in shipped()]
    for whose in ("--user", "--system"):
        done = systemd.run("systemd-analyze", whose, "--man=no", "verify", *units)
        ours = [line for line in done.stderr.splitlines() if "dpipe" in line]
        assert (done.returncode, ours) == (0, []), done.stderr
    assert all(PROGRAMS in unit.read_text() for unit in shipped() if unit.suffix == ".service")


def shipped() -> list[Path]:
    return [*SHIPPED.glob("*.service"), *SHIPPED.glob("*.socket")]


def test_the_scores_are_those_of_the_document(systemd: Systemd) -> None:
    version = int(systemd.run("systemctl", "--version").stdout.split()[1])
    require(version == SCORED_WITH, f"the scores are those of systemd {SCORED_WITH}, not {version}")
    for unit in SHIPPED.glob("*.service"):
        done = systemd.run("systemd-analyze", "security", "--offline=true", "--no-pager", str(unit))
        found = re.search(rf"level for {unit.name}: (\d+\.\d) ", done.stdout)
        assert found is not None, done.stderr
        assert f"| `{unit.name}` | {found[1]} |" in DOCUMENT.read_text(), (unit.name, found[1])

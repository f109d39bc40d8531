"""A real supervisord with the shipped program section."""

import configparser
import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import httpx
import pytest

from dpiped import messages, procs
from dpiped.errors import Unreachable
from tests.harness import BIN, Workspace, free_port, processes_of_run
from tests.helpers import HERE, require, wait_until

SHIPPED = HERE.parent / "etc/supervisor"
pytestmark = pytest.mark.timeout(120)


class Supervisord:
    """The shipped programs, with this test's paths and environment put in their places."""

    def __init__(self, workspace: Workspace, *programs: str, **changes: str) -> None:
        self.workspace = workspace
        self.changes = changes
        root = workspace.root
        (root / "logs").mkdir(exist_ok=True)
        own = configparser.RawConfigParser()
        own["unix_http_server"] = {"file": str(root / "s.sock")}
        own["supervisord"] = {
            "logfile": str(root / "s.log"),
            "pidfile": str(root / "s.pid"),
            "nodaemon": "true",
        }
        factory = "supervisor.rpcinterface:make_main_rpcinterface"
        own["rpcinterface:supervisor"] = {"supervisor.rpcinterface_factory": factory}
        own["supervisorctl"] = {"serverurl": f"unix://{root}/s.sock"}
        for name in ("diffpipe", *programs):
            own[f"program:{name}"] = self._program(name)
        self.conf = root / "supervisord.conf"
        with self.conf.open("w") as file:
            own.write(file)
        self.start()

    def start(self) -> None:
        self.process = begin(self.conf, self.workspace.env)
        state = partial(states, self.workspace.root / "s.sock")
        wait_until(lambda: state().get("diffpipe") == "RUNNING", "diffpipe is RUNNING", every=0.1)

    def _program(self, name: str) -> dict[str, str]:
        root = self.workspace.root
        shipped = configparser.RawConfigParser()
        shipped.read(SHIPPED / f"{name}.conf")
        program = dict(shipped[f"program:{name}"]) | self.changes
        program["command"] = with_our_bin(program["command"])
        program["directory"] = str(root)
        for stream in ("stdout_logfile", "stderr_logfile"):
            program[stream] = str(root / "logs" / Path(program[stream]).name)
        keep = ("WORKSPACE_ROOT", "DEEPSPEED_BIN")
        variables = {k: v for k, v in self.workspace.env.items() if k.startswith("DIFFPIPE_") or k in keep}
        program["environment"] = ",".join(f'{name}="{value}"' for name, value in variables.items())
        return program

    def ctl(self, *words: str) -> str:
        return ctl(self.conf, *words)

    def kill(self) -> None:
        """Supervisord alone; what it started goes on."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def with_our_bin(command: str) -> str:
    program, *words = command.split()
    return " ".join((str(BIN / Path(program).name), *words))


def begin(conf: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [str(BIN / "supervisord"), "-n", "-c", str(conf)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ctl(conf: Path, *words: str) -> str:
    command = [str(BIN / "supervisorctl"), "-c", str(conf), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def states(server: Path) -> dict[str, str]:
    """What `supervisorctl status` shows of each program; asked without a process for every look."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(serverurl=f"unix://{server}")
    with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
        try:
            found: Any = proxy.supervisor.getAllProcessInfo()
        except OSError:
            return {}
    return {each["name"]: each["statename"] for each in found}


def hello(workspace: Workspace) -> messages.Welcome | None:
    """Which daemon answers, if any does."""
    try:
        reply = workspace.ask(messages.Hello(messages.PROTOCOL))
    except Unreachable:
        return None
    assert isinstance(reply, messages.Welcome)
    return reply


def no_step_is_missing(workspace: Workspace, run: str) -> None:
    """The log as a client gets it is the file, and has each step once."""
    text = workspace.ctl("logs", run, "--all")[1]
    steps = [int(number) for number in re.findall(r"^steps: (\d+) ", text, re.MULTILINE)]
    assert steps == list(range(1, len(steps) + 1)) and steps
    assert text.splitlines() == workspace.log_text(run).splitlines()


@pytest.fixture
def supervised(workspace: Workspace) -> Iterator[Supervisord]:
    require((BIN / "supervisord").exists(), "supervisor is not installed")
    made = Supervisord(workspace)
    yield made
    made.close()


def test_start_status_restart_and_stop(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    first = workspace.status()["pid"]
    run = workspace.start(workspace.config(steps=1_000_000))
    workspace.until_step(2)
    assert "diffpipe: started" in supervised.ctl("restart", "diffpipe")
    assert processes_of_run(run) == []
    wait_until(workspace.answers, "the daemon answers")
    assert workspace.status()["pid"] != first
    assert workspace.status()["last_run"]["outcome"] == "stopped"
    again = workspace.start(workspace.config(steps=1_000_000))
    workspace.until_step(2)
    assert "diffpipe: stopped" in supervised.ctl("stop", "diffpipe")
    assert processes_of_run(again) == []
    assert "STOPPED" in supervised.ctl("status", "diffpipe")
    assert workspace.ctl("status")[0] == 3
    assert "listening on" in (workspace.root / "logs/diffpipe.out.log").read_text()
    assert "diffpipe: started" in supervised.ctl("start", "diffpipe")


def test_running_is_said_once_the_daemon_has_answered_for_startsecs(supervised: Supervisord) -> None:
    assert supervised.workspace.answers()
    said = (supervised.workspace.root / "s.log").read_text()
    assert "diffpipe entered RUNNING state, process has stayed up for > than 2 seconds (startsecs)" in said
    assert said.count("spawned: 'diffpipe'") == 1 and "exited: diffpipe" not in said


def test_a_crashed_daemon_is_restarted_and_adopts_the_run(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    run = workspace.start(workspace.config(until=str(workspace.go)))
    pid = workspace.until_step(2)["pid"]
    subprocess.run(["kill", "-9", str(workspace.status()["pid"])], check=True)
    wait_until(workspace.answers, "supervisord has restarted it")
    assert (workspace.status()["run"]["id"], workspace.status()["run"]["pid"]) == (run, pid)
    workspace.go.touch()
    assert workspace.until_ended(run)["outcome"] == "completed"
    no_step_is_missing(workspace, run)


def test_a_hangup_reloads_and_a_reload_of_supervisord_ends_the_run(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    run = workspace.start(workspace.config(steps=1_000_000))
    before = hello(workspace)
    assert before is not None
    assert "diffpipe: signalled" in supervised.ctl("signal", "HUP", "diffpipe")
    wait_until(lambda: (now := hello(workspace)) and now.started_at != before.started_at, "the reload")
    assert (workspace.status()["pid"], workspace.status()["run"]["id"]) == (before.pid, run)
    assert "Restarted" in supervised.ctl("reload")
    wait_until(lambda: (now := hello(workspace)) and now.pid != before.pid, "another daemon")
    assert (workspace.status()["last_run"]["outcome"], processes_of_run(run)) == ("stopped", [])


def test_a_daemon_killed_after_stopwaitsecs_leaves_the_run_to_the_next(workspace: Workspace) -> None:
    require((BIN / "supervisord").exists(), "supervisor is not installed")
    supervised = Supervisord(workspace, stopwaitsecs="1")
    try:
        run = workspace.start(workspace.config(steps=1_000_000))
        pid = workspace.until_step(2)["pid"]
        os.kill(workspace.status()["pid"], signal.SIGSTOP)
        assert "diffpipe: stopped" in supervised.ctl("stop", "diffpipe")
        assert pid in processes_of_run(run)
        assert "diffpipe: started" in supervised.ctl("start", "diffpipe")
        wait_until(workspace.answers, "the next daemon answers")
        assert (workspace.status()["run"]["id"], workspace.status()["run"]["pid"]) == (run, pid)
        assert workspace.ctl("stop")[0] == 0
        assert processes_of_run(run) == []
        no_step_is_missing(workspace, run)
    finally:
        supervised.close()


def test_supervisord_is_killed_and_the_next_one_takes_the_run_over(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    run = workspace.start(workspace.config(until=str(workspace.go)))
    first, training = workspace.status()["pid"], workspace.until_step(2)["pid"]
    supervised.kill()
    wait_until(lambda: any("is gone" in each for each in workspace.status()["notices"]), "that it is noticed")
    # A re-executed daemon knows it still.
    assert workspace.ctl("reload")[0] == 0
    supervised.start()
    wait_until(workspace.answers, "the daemon of the next one answers")
    status = workspace.status()
    assert status["pid"] == int(supervised.ctl("pid", "diffpipe")) != first
    assert (status["run"]["id"], status["run"]["pid"]) == (run, training)
    wait_until(lambda: first not in procs.all_processes(), "the end of the first daemon")
    workspace.go.touch()
    assert workspace.until_ended(run)["outcome"] == "completed"
    no_step_is_missing(workspace, run)


def test_a_daemon_that_is_looked_after_hands_nothing_over(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    run = workspace.start(workspace.config(steps=1_000_000))
    second = subprocess.run(
        [str(BIN / "dpiped")],
        env=workspace.env | {"SUPERVISOR_ENABLED": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (second.returncode, "another dpiped" in second.stderr) == (1, True)
    assert workspace.status()["run"]["id"] == run
    supervised.close()
    assert processes_of_run(run) == []
    assert workspace.ctl("status")[0] == 3


def test_the_whole_configuration_of_a_plain_machine(workspace: Workspace) -> None:
    require((BIN / "supervisord").exists(), "supervisor is not installed")
    root = workspace.root
    (root / "logs").mkdir()
    conf = root / "supervisord.conf"
    shipped = configparser.RawConfigParser()
    shipped.read(SHIPPED / "plain.conf")
    for section in ("program:diffpipe", "program:dpipe-http"):
        shipped[section]["command"] = with_our_bin(shipped[section]["command"])
    # The tests' own port; ControlPilot's may be taken.
    port = free_port()
    environment = shipped["program:dpipe-http"]["environment"]
    shipped["program:dpipe-http"]["environment"] = environment.replace("7878", str(port))
    with conf.open("w") as file:
        shipped.write(file)
    # Neither these nor a login's directory: a container has none, and root's default is one of the machine.
    unset = ("WORKSPACE_ROOT", "DIFFPIPE_SOCKET", "XDG_RUNTIME_DIR")
    variables = {name: value for name, value in workspace.env.items() if name not in unset}
    workspace.env["DIFFPIPE_SOCKET"] = str(root / "run/dpiped.sock")
    process = begin(conf, variables)
    try:
        state = partial(states, root / "supervisor.sock")
        wait_until(lambda: list(state().values()) == ["RUNNING"] * 2, "both are RUNNING", every=0.1)
        run = workspace.start(workspace.config(steps=1_000_000))
        assert (workspace.runs_dir / run).is_dir()
        health = httpx.get(f"http://127.0.0.1:{port}/dpipe/health", trust_env=False)
        assert health.status_code == 200
        assert "diffpipe: stopped" in ctl(conf, "stop", "all")
        assert processes_of_run(run) == []
        assert "listening on" in (root / "logs/diffpipe.out.log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_a_completed_service_config_is_not_trained_again_by_a_restart(workspace: Workspace) -> None:
    require((BIN / "supervisord").exists(), "supervisor is not installed")
    workspace.env["DIFFPIPE_CONFIG"] = str(workspace.config(steps=3))
    supervised = Supervisord(workspace)
    try:
        wait_until(lambda: workspace.answers() and workspace.status()["last_run"], "the run has ended")
        assert "diffpipe: started" in supervised.ctl("restart", "diffpipe")
        log = workspace.root / "logs/diffpipe.out.log"
        wait_until(lambda: "is not trained again" in log.read_text(), "the decision")
        assert [run["state"] for run in workspace.json("runs")] == ["completed"]
    finally:
        supervised.close()


@pytest.mark.alone
def test_status_takes_at_most_seven_tenths_of_supervisorctl_status(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    workspace.start(workspace.config(steps=1_000_000))
    ours = [str(BIN / "dpipectl"), "status"]
    theirs = [str(BIN / "supervisorctl"), "-c", str(supervised.conf), "status"]
    assert shutil.which(ours[0])

    def seconds(command: list[str]) -> float:
        begun = time.perf_counter()
        subprocess.run(command, env=workspace.env, capture_output=True, check=True)
        return time.perf_counter() - begun

    # In turn, so that a change in the machine's speed meets both.
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(21)][1:]
    median = [sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True)]
    assert median[0] <= 0.7 * median[1], f"{median[0] * 1000:.1f} ms against {median[1] * 1000:.1f} ms"


def test_the_shim_is_restarted_and_the_training_does_not_notice(workspace: Workspace) -> None:
    require((BIN / "supervisord").exists(), "supervisor is not installed")
    port = free_port()
    workspace.env["DIFFPIPE_HTTP_PORT"] = str(port)
    supervised = Supervisord(workspace, "dpipe-http")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/dpipe", trust_env=False) as client:

            def healthy() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/health").status_code == 200
                return False

            wait_until(healthy, "the shim answers")
            run = workspace.start(workspace.config(until=str(workspace.go)))
            pid = int(supervised.ctl("pid", "dpipe-http"))
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: supervised.ctl("pid", "dpipe-http").strip() not in (str(pid), "0"), "another")
            wait_until(healthy, "it answers again")
            assert client.get("/status").json()["run"]["id"] == run
            assert "stopped" in supervised.ctl("stop", "dpipe-http")
            assert workspace.status()["run"]["id"] == run
    finally:
        supervised.close()

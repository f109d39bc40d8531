"""A real supervisord with the shipped program section."""

import configparser
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness import BIN, Workspace, free_port, processes_of_run
from tests.helpers import HERE, require, wait_until

SHIPPED = HERE.parent / "etc/supervisor"
pytestmark = pytest.mark.timeout(120)


class Supervisord:
    """The shipped programs, with this test's paths and environment put in their places."""

    def __init__(self, workspace: Workspace, *programs: str) -> None:
        self.workspace = workspace
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
        self.process = subprocess.Popen(
            [str(BIN / "supervisord"), "-c", str(self.conf)],
            env=workspace.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: "RUNNING" in self.ctl("status", "diffpipe"), "diffpipe is RUNNING")

    def _program(self, name: str) -> dict[str, str]:
        root = self.workspace.root
        shipped = configparser.RawConfigParser()
        shipped.read(SHIPPED / f"{name}.conf")
        program = dict(shipped[f"program:{name}"])
        command, *words = program["command"].split()
        program["command"] = " ".join((str(BIN / Path(command).name), *words))
        program["directory"] = str(root)
        for stream in ("stdout_logfile", "stderr_logfile"):
            program[stream] = str(root / "logs" / Path(program[stream]).name)
        keep = ("WORKSPACE_ROOT", "DEEPSPEED_BIN")
        variables = {k: v for k, v in self.workspace.env.items() if k.startswith("DIFFPIPE_") or k in keep}
        program["environment"] = ",".join(f'{name}="{value}"' for name, value in variables.items())
        return program

    def ctl(self, *words: str) -> str:
        command = [str(BIN / "supervisorctl"), "-c", str(self.conf), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


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


def test_a_crashed_daemon_is_restarted_and_adopts_the_run(supervised: Supervisord) -> None:
    workspace = supervised.workspace
    wait_until(workspace.answers, "the daemon answers")
    run = workspace.start(workspace.config(until=str(workspace.go)))
    workspace.until_step(2)
    subprocess.run(["kill", "-9", str(workspace.status()["pid"])], check=True)
    wait_until(workspace.answers, "supervisord has restarted it")
    assert workspace.status()["run"]["id"] == run
    workspace.go.touch()
    assert workspace.until_ended(run)["outcome"] == "completed"


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

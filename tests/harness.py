"""A real daemon in a workspace of its own, driven through the real client, as a user has it."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import psutil

from dpipectl.client import Client, Failed
from dpiped import messages
from dpiped.errors import Unreachable
from dpiped.settings import RUN_MARKER
from tests.helpers import TRAINERS, require, wait_until

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes_of_run(run: str) -> list[int]:
    """Pids of all processes, zombies left out, whose environment carries the run's marker."""
    marker = f"{RUN_MARKER}={run}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if marker in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


SETTINGS = ("DIFFPIPE_", "NCCL_", "NUM_GPUS", "TENSORBOARD_", "TRAINPILOT_", "KOHYA_", "AI_TOOLKIT_")
"""What the variables begin with that would change a daemon's settings and are not set here."""


class Workspace:
    """Directories, environment and daemons of one test. The path is short: AF_UNIX has 107 bytes."""

    def __init__(self, **variables: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dpiped-"))
        for name in ("configs", "datasets/set", "outputs"):
            (self.root / name).mkdir(parents=True)
        # The scripted trainer does not look at it, but dpiped does.
        (self.root / "datasets/set/picture.png").touch()
        launcher = self.root / "bin/deepspeed"
        launcher.parent.mkdir()
        launcher.write_text(f"#!{sys.executable}\n{(TRAINERS / 'launcher.py').read_text()}")
        launcher.chmod(0o755)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)},
            "WORKSPACE_ROOT": str(self.root),
            "DIFFPIPE_SOCKET": str(self.root / "run/d.sock"),
            "DIFFPIPE_PORT": str(free_port()),
            "DIFFPIPE_APP_DIR": str(TRAINERS / "app"),
            "DEEPSPEED_BIN": str(launcher),
            "DIFFPIPE_ALLOWED_ROOTS": str(self.root),
            # Most tests need no TensorBoard; those that do remove these two.
            "DIFFPIPE_CONFIG": str(self.root / "configs/none.toml"),
            "DIFFPIPE_TENSORBOARD": "0",
            # What the scripted trainer does where its config is made from a form.
            "DIFFPIPE_PASS_ENV": "SCRIPT",
            **variables,
        }
        self.daemon: subprocess.Popen[bytes] | None = None
        self.started: list[subprocess.Popen[bytes]] = []
        self.runs_dir = self.root / "diffpipe/runs"
        self.go = self.root / "go"
        """A trainer with `until` or `go` set to this path goes on once it is touched."""

    # --- files

    def config(self, behaviour: str = "well_behaved", name: str = "train", **script: object) -> Path:
        """Writes a training TOML for the scripted trainer, and its data set TOML."""
        data = self.root / "configs/dataset.toml"
        data.write_text(f'resolutions = [32]\n[[directory]]\npath = "{self.root}/datasets/set"\n')
        lines = [f"{key} = {json.dumps(value)}" for key, value in {"behaviour": behaviour, **script}.items()]
        path = self.root / f"configs/{name}.toml"
        path.write_text(
            f'output_dir = "{self.root}/outputs"\ndataset = "{data}"\nepochs = 1\nsave_every_n_epochs = 1\n'
            '[model]\ntype = "scripted"\ndtype = "bfloat16"\n[optimizer]\ntype = "adamw"\n[script]\n'
            + "\n".join(lines)
            + "\n"
        )
        return path

    def log_text(self, run: str) -> str:
        return (self.runs_dir / run / "output.log").read_text(errors="replace")

    # --- the daemon

    def start_daemon(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        with (self.root / "daemon.log").open("ab") as output:
            self.daemon = subprocess.Popen(
                command or [str(BIN / "dpiped")],
                env=self.env | variables,
                stdout=output,
                stderr=output,
                cwd=self.root,
            )
        self.started.append(self.daemon)
        daemon = self.daemon
        wait_until(lambda: self.answers() or daemon.poll() is not None, "the daemon answers")
        return daemon

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def end_daemon(self) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGTERM)
        return self.daemon.wait(60)

    def answers(self) -> bool:
        """Asked by a client in this process: polling with one process a look would take a core."""
        try:
            return isinstance(self.ask(messages.GetStatus()), messages.Status)
        except (Unreachable, Failed):
            return False

    def daemon_log(self) -> str:
        return (self.root / "daemon.log").read_text()

    # --- the client

    def ctl(self, *words: str, timeout: float = 60) -> tuple[int, str, str]:
        """Runs dpipectl. (exit code, stdout, stderr)"""
        done = subprocess.run(
            [str(BIN / "dpipectl"), *words],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: str, code: int = 0, timeout: float = 60) -> Any:
        """Runs dpipectl --json and reads its one document; the exit code must be `code`."""
        got, out, err = self.ctl("--json", *words, timeout=timeout)
        assert got == code, f"exit code {got} (not {code}) of {words}: {out}{err}"
        return json.loads(out)

    def client(self) -> Client:
        return Client(self.env["DIFFPIPE_SOCKET"])

    def start(self, config: Path, *words: str) -> str:
        run: str = self.json("start", "--config", str(config), *words)["run"]
        return run

    def status(self) -> Any:
        """The document of `dpipectl --json status`, asked as `answers` does."""
        reply = self.ask(messages.GetStatus())
        assert isinstance(reply, messages.Status)
        return json.loads(msgspec.json.encode(reply))

    def until_step(self, step: int, deadline: float = 20) -> Any:
        def reached() -> Any:
            run = self.status()["run"]
            return run if run and (run["step"] or 0) >= step else None

        return wait_until(reached, f"step {step}", deadline)

    def until_gone(self, run: str) -> None:
        """Without a daemon: the exit record is written and the runner gone as well."""
        record = self.runs_dir / run / "exit.json"
        wait_until(lambda: record.exists() and not processes_of_run(run), "the end of the run")

    def until_ended(self, run: str, deadline: float = 30) -> Any:
        """The run's document once it has ended."""
        words = ("--json", "wait", run, "--timeout", str(deadline))
        code, out, err = self.ctl(*words, timeout=deadline + 30)
        assert code in (0, 1), err
        document = json.loads(out)
        assert "error" not in document, document
        return document

    def ask(self, request: messages.AnyRequest, wait: float = 0.0) -> messages.AnyReply:
        client = self.client()
        try:
            return client.call(request, wait)
        finally:
            client.close()

    # --- the end

    def close(self) -> None:
        """Ends every process of this workspace and removes it."""
        self.end_all()
        shutil.rmtree(self.root, ignore_errors=True)

    def end_all(self) -> None:
        """Ends every process of this workspace."""
        for daemon in self.started:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        runs = [path.name for path in self.runs_dir.iterdir()] if self.runs_dir.exists() else []
        for run in runs:
            # Again, for what was forked or had ended meanwhile.
            while pids := processes_of_run(run):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def with_real_launcher(**variables: str) -> Workspace:
    """A workspace with a daemon that finds the real launcher. The caller closes it."""
    require(importlib.util.find_spec("deepspeed") is not None, "deepspeed is not installed")
    # One thread a rank: tests run beside it.
    one = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    workspace = Workspace(DEEPSPEED_BIN=str(BIN / "deepspeed"), **one, **variables)
    workspace.start_daemon()
    return workspace

"""A real `dpipectl serve` beside a real daemon, asked over a real socket."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from tests.harness import BIN, Workspace, free_port
from tests.helpers import wait_until

JSON = "application/json"


PROGRAM = (str(BIN / "dpipectl"),)
LONG = '{"steps": 1000000}'
"""What the scripted trainer is told where a form says nothing: a run that does not end by itself."""


class Shim:
    """One shim. `get` and `post` check that every answer is JSON, as ControlPilot's page expects."""

    def __init__(
        self, workspace: Workspace, *words: str, program: Sequence[str] = PROGRAM, **variables: str
    ) -> None:
        self.workspace = workspace
        self.program = program
        self.words = words
        self.port = free_port()
        self.variables = {"DIFFPIPE_HTTP_PORT": str(self.port)} | variables
        self.base = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=f"{self.base}/dpipe", timeout=60, trust_env=False)
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        with (self.workspace.root / "serve.log").open("ab") as output:
            self.process = subprocess.Popen(
                [*self.program, "serve", *self.words],
                env=self.workspace.env | self.variables,
                stdout=output,
                stderr=output,
            )
        self.workspace.started.append(self.process)
        wait_until(self.answers, "the shim answers")
        return self.process

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health").status_code in (200, 403, 503)
        return False

    def log(self) -> str:
        return (self.workspace.root / "serve.log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def get(self, path: str, **parameters: Any) -> tuple[int, Any]:
        return read(self.client.get(path, params=parameters))

    def post(self, path: str, body: Any = None, **parameters: Any) -> tuple[int, Any]:
        given = {} if body is None else {"json": body}
        return read(self.client.post(path, params=parameters, **given))

    def form(self, **fields: Any) -> dict[str, Any]:
        """A form whose paths lie in the workspace. The model files are not there."""
        root = self.workspace.root
        models = {name: f"{root}/models/{name}" for name in MODELS}
        folders = {
            "dataset_path": f"{root}/datasets/set",
            "config_dir": f"{root}/configs",
            "output_dir": f"{root}/outputs",
        }
        return models | folders | fields


MODELS = ("transformer_path", "vae_path", "llm_path", "clip_path")


def read(answer: httpx.Response) -> tuple[int, Any]:
    """(status, document)"""
    assert answer.headers["content-type"] == JSON, answer.text
    return answer.status_code, answer.json()


class Events:
    """What a browser's EventSource does with a stream."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """(event, data, last id) of each event."""
        name, last = "message", ""
        data: list[str] = []
        for line in self._lines:
            if not line:
                if data:
                    yield name, "\n".join(data), last
                name, data = "message", []
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id":
                last = value

"""A machine with GPUs, as far as a daemon can see: a library in the place of NVIDIA's and its answers."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpiped import messages
from tests.harness import Workspace
from tests.helpers import HERE, TRAINERS, require, wait_until

GIB = 1 << 30


def build_library(folder: Path) -> Path:
    """Compiles the library into the folder, which it gives."""
    compiler = shutil.which("cc")
    require(compiler is not None, "there is no C compiler")
    command = [str(compiler), "-shared", "-fPIC", "-Wall", "-Werror", str(HERE / "nvml.c")]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


def line(used: float, utilization: int, code: int = 0, name: str = "NVIDIA A100") -> str:
    return f"{code} {int(used * GIB)} {80 * GIB} {utilization} {name}"


class Machine:
    """A workspace on a machine with a driver; `says` is what that answers from now on."""

    def __init__(self, workspace: Workspace, library: Path) -> None:
        self.workspace = workspace
        self.file = workspace.root / "nvml"
        workspace.env |= {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(self.file)}

    def says(self, *lines: str) -> None:
        new = self.file.with_name("nvml.new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.file)

    def asked(self, letter: str) -> int:
        """How often the library was opened (i), or the GPUs counted (c)."""
        path = self.file.with_name("nvml.asked")
        return path.read_text().count(letter) if path.exists() else 0

    def has_opened(self, times: int) -> bool:
        return self.asked("i") >= times

    def start(self, **seconds: str) -> None:
        words = [f"{name}={value}" for name, value in seconds.items()]
        self.workspace.start_daemon(sys.executable, str(TRAINERS / "impatient_daemon.py"), *words)

    def status(self) -> messages.Status:
        reply = self.workspace.ask(messages.GetStatus())
        assert isinstance(reply, messages.Status)
        return reply

    def until(self, condition: Callable[[messages.Status], object], what: str) -> messages.Status:
        found: Any = wait_until(lambda: status if condition(status := self.status()) else None, what)
        assert isinstance(found, messages.Status)
        return found

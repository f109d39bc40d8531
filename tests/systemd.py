"""A real systemd with the shipped units, in namespaces of its own: nothing of it can be seen from outside.

It is a user's manager (`systemd --user`), run by root, since a second system manager would want a machine to
itself. The units are the shipped ones; only the folder of the programs is replaced.

Its files lie in the workspace, so the daemon's socket is reached from outside as well.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.harness import BIN, Workspace
from tests.helpers import HERE, require, wait_until

SHIPPED = HERE.parent / "etc/systemd"
PROGRAMS = "/opt/venvs/dpiped/bin/"
MANAGER = shutil.which("systemd", path="/lib/systemd:/usr/lib/systemd")
CGROUPS = """
mount --make-rprivate /
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
"""
OUTSIDE = f"""
set -e
{CGROUPS}
mkdir /sys/fs/cgroup/$1
echo 0 > /sys/fs/cgroup/$1/cgroup.procs
exec unshare --cgroup --pid --fork --mount-proc --kill-child=KILL sh -c "$2" "$3"
"""
"""In a control group of its own, so that the groups that systemd makes are in there."""
INSIDE = f"""
set -e
{CGROUPS}
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/systemd/inaccessible/dir
cd /run/systemd/inaccessible
touch reg
mknod chr c 0 0
mknod blk b 0 0
cd /
"$0" --user &
wait
"""
AFTERWARDS = f"""
set -e
{CGROUPS}
find /sys/fs/cgroup/$1 -depth -type d -exec rmdir {{}} +
"""


def missing() -> str | None:
    """What keeps a systemd from being run here, in words."""
    if os.geteuid() != 0:
        return "a systemd of its own takes root"
    if MANAGER is None or shutil.which("systemctl") is None:
        return "systemd is not installed"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "unshare and nsenter (util-linux) are not installed"
    return None


class Systemd:
    """Runs until `close`. `config` is the user's folder for units and dpiped.env."""

    def __init__(self, workspace: Workspace) -> None:
        require(not missing(), missing() or "")
        self.workspace = workspace
        self.runtime = workspace.root / "run"
        self.config = workspace.root / "config"
        self.log = workspace.root / "service.log"
        self.units = self.config / "systemd/user"
        self.units.mkdir(parents=True)
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        workspace.env["DIFFPIPE_SOCKET"] = str(self.runtime / "dpiped/dpiped.sock")
        for unit in (*SHIPPED.glob("*.service"), *SHIPPED.glob("*.socket")):
            (self.units / unit.name).write_text(unit.read_text().replace(PROGRAMS, f"{BIN}/"))
        for service in SHIPPED.glob("*.service"):
            # There is no journal.
            to = f"append:{self.log}"
            self.drop_in(service.name, "log", f"[Service]\nStandardOutput={to}\nStandardError={to}\n")
        self.write_environment()
        self._group = workspace.root.name
        self._errors = workspace.root / "systemd.log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(workspace.root),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.config),
            "SYSTEMD_LOG_TARGET": "console",
        }
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", OUTSIDE, "sh", self._group, INSIDE, str(MANAGER)],
                env=self._environment,
                stdout=errors,
                stderr=errors,
            )
        ready = self.runtime / "systemd/private"
        wait_until(lambda: ready.exists() or self._process.poll() is not None, "systemd listens")
        require(self._process.poll() is None, f"systemd can't be run here: {self._errors.read_text()}")
        (self._inside,) = self._children(self._process.pid)

    def write_environment(self, **variables: str) -> None:
        """What the administrator has in dpiped.env. DIFFPIPE_SOCKET is left to the units."""
        names = ("DIFFPIPE_", "WORKSPACE_ROOT", "DEEPSPEED_BIN")
        env = {k: v for k, v in self.workspace.env.items() if k.startswith(names) and k != "DIFFPIPE_SOCKET"}
        lines = [f'{name}="{value}"\n' for name, value in (env | variables).items()]
        (self.config / "dpiped.env").write_text("".join(lines))

    def drop_in(self, unit: str, name: str, text: str) -> None:
        folder = self.units / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.conf").write_text(text)

    def run(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command beside it."""
        enter = ("nsenter", "-t", str(self._inside), "--mount", "--pid", "--cgroup")
        return subprocess.run(
            [*enter, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ctl(self, *words: str) -> None:
        """systemctl, which has to succeed."""
        done = self.run("systemctl", "--user", *words)
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.log_text()[-3000:])

    def show(self, unit: str, *properties: str) -> list[str]:
        """Their values, in the order asked for."""
        out = self.run("systemctl", "--user", "show", "-p", ",".join(properties), unit).stdout
        found = dict(line.split("=", 1) for line in out.splitlines())
        return [found[name] for name in properties]

    def state(self, unit: str) -> str:
        return "/".join(self.show(unit, "ActiveState", "SubState"))

    def main_pid(self, unit: str = "dpiped.service") -> int:
        return int(self.show(unit, "MainPID")[0])

    def kill(self, number: signal.Signals, unit: str = "dpiped.service") -> None:
        """The main process, as anybody could."""
        done = self.run("kill", f"-{int(number)}", str(self.main_pid(unit)))
        assert done.returncode == 0, done.stderr

    def processes(self, unit: str = "dpiped.service") -> list[str]:
        """Pids in the unit's control group."""
        (group,) = self.show(unit, "ControlGroup")
        if not group:
            return []
        done = self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs")
        return done.stdout.split()

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def close(self) -> None:
        """Everything in there dies with the shell that is its first process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

        def removed() -> bool:
            words = ["unshare", "--mount", "sh", "-c", AFTERWARDS, "sh", self._group]
            return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0

        wait_until(removed, "the control groups are removed", every=0.1)

    @staticmethod
    def _children(pid: int) -> list[int]:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

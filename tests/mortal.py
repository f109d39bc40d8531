"""Daemons and runners that die at a chosen write, as by SIGKILL: the real code, in processes of their own.

Why: an exception raised at that place would run the code that tidies up, which a killed process never does.
So each is a process, forked off one that has all imported (a millisecond), and it kills itself before the
write, or half way in it. What it opens for writing, renames, removes, syncs, spawns and signals are the
points at which it can be told to die. They are counted from when it was told.

Beside that it is watched for what a power cut would tell: a file that is renamed before it is synced, a
rename that is announced before its directory is. And each signal is written down with whom it hits.

`python -m tests.mortal FOLDER` listens on FOLDER/forks until its stdin ends, for `tests/test_recovery.py`.
"""

import asyncio
import ctypes
import functools
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from dpiped import launch, live, procs, runner, supervisor
from dpiped.errors import DpipedError, Refused
from dpiped.settings import RUN_MARKER, Settings, load
from dpiped.sources import Wanted
from dpiped.supervisor import Supervisor

RUN_LENGTH = 26
"""Characters of every run's id: the marker of a forked process is written over another one."""
ANY_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Job: TypeAlias = dict[str, Any]


class Fate:
    """Counts the points of one process and ends it at the one that was chosen."""

    def __init__(self, folder: Path, who: str) -> None:
        self.folder = folder
        self.who = who
        self.left = 0
        self.unsynced: set[str] = set()
        self._really = {name: getattr(os, name) for name in ("open", "write", "close", "kill", "replace")}

    def note(self, file: str, text: str) -> None:
        handle = self._really["open"](self.folder / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._really["write"](handle, f"{text}\n".encode())
        self._really["close"](handle)

    def point(self, what: str, half: Callable[[], object] = lambda: None) -> None:
        if self.left:
            self.left -= 1
            if self.left == 0:
                half()
                self.note("deaths", f"{self.who} {what}")
                self._really["kill"](os.getpid(), signal.SIGKILL)
                signal.pause()

    def take_over(self) -> None:
        """From here on every write of this process is a point."""
        for name in ("mkdir", "rename", "unlink", "rmdir", "symlink", "fchmod", "utime"):
            setattr(os, name, self._before(name, getattr(os, name)))
        for module, name, made in (
            (os, "open", self._open(os.open)),
            (os, "fdopen", self._fdopen(os.fdopen)),
            (os, "fsync", self._fsync(os.fsync)),
            (os, "replace", self._replace),
            (os, "kill", self._never_by_pid),
            (os, "killpg", self._never_by_pid),
            (subprocess, "Popen", self._around("launch", subprocess.Popen)),
            (signal, "pidfd_send_signal", self._signal(signal.pidfd_send_signal)),
        ):
            setattr(module, name, made)

    def _before(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(really)
        def wrapped(*given: Any, **named: Any) -> Any:
            self.point(f"{name} {given[0]}")
            return really(*given, **named)

        return wrapped

    def _around(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            self.point(f"before {name}")
            result = really(*given, **named)
            self.point(f"after {name}")
            return result

        return wrapped

    def _open(self, really: Callable[..., int]) -> Callable[..., int]:
        def wrapped(path: Any, flags: int, *given: Any, **named: Any) -> int:
            whole = _whole(path, named.get("dir_fd"))
            there = flags & os.O_CREAT or os.path.exists(whole)  # noqa: PTH110
            if flags & ANY_WRITE and there and path != "/dev/null":
                self.point(f"open {whole}")
            return really(path, flags, *given, **named)

        return wrapped

    def _fdopen(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(handle: int, mode: str = "r", *given: Any, **named: Any) -> Any:
            if mode != "wb":
                return really(handle, mode, *given, **named)
            self.unsynced.add(_path_of(handle))
            return _Written(handle, self)

        return wrapped

    def _fsync(self, really: Callable[[int], None]) -> Callable[[int], None]:
        def wrapped(handle: int) -> None:
            self.point(f"fsync {_path_of(handle)}")
            really(handle)
            self.unsynced.discard(_path_of(handle))

        return wrapped

    def _replace(self, source: Any, target: Any, **folders: Any) -> None:
        whole = _whole(source, folders.get("src_dir_fd"))
        becomes = _whole(target, folders.get("dst_dir_fd"))
        self.point(f"rename to {becomes}")
        if os.path.realpath(whole) in self.unsynced:
            self.note("faults", f"{source} is renamed to {target} before it is synced")
        self._really["replace"](source, target, **folders)
        self.unsynced.add(os.path.realpath(os.path.dirname(becomes)))  # noqa: PTH120

    def _signal(self, really: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def wrapped(handle: int, number: int) -> None:
            found = re.search(r"^Pid:\s*(-?\d+)", Path(f"/proc/self/fdinfo/{handle}").read_text(), re.M)
            pid = int(found[1]) if found else -1
            self.note("signals", f"{pid} {marker_of(pid)} {number}")
            self.point(f"before signal {number}")
            really(handle, number)
            self.point(f"after signal {number}")

        return wrapped

    def _never_by_pid(self, pid: int, number: int) -> None:
        self.note("faults", f"signal {number} to a mere pid, {pid}")


class _Written(io.FileIO):
    """A file each write to which is a point; dying there leaves half of it."""

    def __init__(self, handle: int, fate: Fate) -> None:
        super().__init__(handle, "wb")
        self._fate = fate

    def write(self, data: Any) -> int:
        path = _path_of(self.fileno())
        self._fate.point(f"write {path}", lambda: super(_Written, self).write(data[: len(data) // 2]))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self._fate.point(f"truncate {_path_of(self.fileno())}")
        return super().truncate(size)


def _whole(path: Any, folder: int | None) -> str:
    """The path, where it is given from an open directory."""
    return os.fspath(path) if folder is None else os.path.join(_path_of(folder), os.fspath(path))  # noqa: PTH118


def _path_of(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115


def marker_of(pid: int) -> str:
    """Which run a process is of: "none" for a stranger, "gone" for one that has ended."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return "gone"
    start = f"{RUN_MARKER}=".encode()
    found = next((word for word in environment.split(b"\0") if word.startswith(start)), None)
    return found[len(start) :].decode() if found else "none" if environment else "gone"


# --- the two roles


def be_runner(job: Job) -> int:
    """`dpiped runner`, with shorter times."""
    os.setsid()
    errors = os.open(Path(job["folder"]) / "runner.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for handle in (1, 2):
        os.dup2(errors, handle)
    runner.GRACE_BY_ITSELF = runner.GRACE_AFTER_TERM = 0.1
    runner.LOOK_EVERY = 0.005
    fate = Fate(Path(job["notes"]), "runner")
    fate.take_over()
    fate.left = job["dies"]
    return runner.main(Path(job["folder"]), job["adopt"])


def be_daemon(job: Job, forks: Path, connection: socket.socket) -> int:
    """The supervisor with all that it does, asked over a socket pair instead of by ZeroMQ."""
    supervisor.TICK = supervisor.LAUNCH_TICK = 0.005
    supervisor.FAULT_TICK = live.LOOK_FOR_FILES_EVERY = 0.05
    fate = Fate(Path(job["notes"]), "daemon")
    fate.take_over()
    fate.left = job["dies"]
    os.environ.update(job["env"])
    asyncio.run(_Daemon(fate, load(), forks).serve(connection))
    return 0


class _Daemon:
    def __init__(self, fate: Fate, settings: Settings, forks: Path) -> None:
        self.fate = fate
        self.forks = forks
        self.supervisor = Supervisor(settings)
        self.runner_dies = 0
        setattr(os, "posix_spawn", fate._around("spawn", self._spawn))  # noqa: B010

    def _spawn(self, _: str, command: list[str], *given: Any, **named: Any) -> int:
        """Forks the runner that would be executed. The training's environment is the marker here."""
        del given, named
        folder = command[command.index("runner") + 1]
        job = {"role": "runner", "folder": folder, "adopt": command[-1] == "--adopt"}
        job |= {"notes": str(self.fate.folder)}
        dies, self.runner_dies = self.runner_dies, 0
        return fork(self.forks, job | {"mark": Path(folder).name, "dies": dies})

    async def serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        await self.supervisor.recover()
        tasks = set()

        async def answer(job: Job) -> None:
            try:
                reply = await self._answer(job)
            except DpipedError as error:
                reply = {"error": type(error).__name__, "message": error.message}
            except Exception:  # noqa: BLE001
                reply = {"fault": traceback.format_exc()}
            writer.write(json.dumps({"number": job["number"]} | reply).encode() + b"\n")

        await answer({"do": "view", "number": 0})
        while line := await reader.readline():
            tasks.add(asyncio.create_task(answer(json.loads(line))))

    async def _answer(self, job: Job) -> Job:
        owner = self.supervisor
        match job["do"]:
            case "start":
                self.runner_dies, self.fate.left = job["runner_dies"], job["dies"]
                assert callable(launch.new_id)
                launch.new_id = lambda *_: job["run"]
                await owner.start(Wanted(config=Path(job["config"])))
                for path in self.fate.unsynced & {str(owner.runs), str(owner.runs / job["run"])}:
                    self.fate.note("faults", f"announced before {path} is synced")
            case "stop":
                self.fate.left = job["dies"] or self.fate.left
                await owner.stop(job["rung"], job["timeout"], "request")
            case "idle":
                if not await owner.changes.wait_until(lambda: owner.live is None, job["seconds"]):
                    raise Refused(f"still active: {self._view()}")
            case "launched":
                if not await owner.changes.wait_until(self._launched_or_over, job["seconds"]):
                    raise Refused(f"still not launched: {self._view()}")
        return self._view()

    def _launched_or_over(self) -> bool:
        return self.supervisor.live is None or self.supervisor.live.launched is not None

    def _view(self) -> Job:
        live_run, last = self.supervisor.live, self.supervisor.last
        return {
            "state": type(self.supervisor.machine.state).__name__,
            "run": live_run.id if live_run else None,
            "launched": live_run is not None and live_run.launched is not None,
            "last": last.id if last else None,
            "notices": self.supervisor.notices,
        }


# --- forking


def fork(forks: Path, job: Job, *handles: int) -> int:
    """The pid of a new process that does the job."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(str(forks))
        socket.send_fds(asking, [json.dumps(job).encode()], handles)
        return int(asking.recv(32))


def _become(job: Job, asking: socket.socket, handles: list[int], folder: Path) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if "mark" in job:
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        # What /proc shows of the environment is the memory in which the process was given it.
        ctypes.memmove(libc.getenv(RUN_MARKER.encode()), job["mark"].encode(), RUN_LENGTH)
    asking.sendall(str(os.getpid()).encode())
    asking.close()
    if job["role"] == "runner":
        return be_runner(job)
    return be_daemon(job, folder / "forks", socket.socket(fileno=handles[0]))


def main() -> None:
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    marks = set()
    procs.boot_id()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "forks"))
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            asking, _ = listener.accept()
            data, handles, _, _ = socket.recv_fds(asking, 1 << 20, 1)
            if not data:
                # Who asked was killed over it, and no process has come to be.
                asking.close()
                continue
            job = json.loads(data)
            marks.add(job.get("mark"))
            if os.fork() == 0:
                try:
                    code = _become(job, asking, handles, folder)
                except BaseException:  # noqa: BLE001
                    traceback.print_exc()
                    code = 70
                os._exit(code)
            for handle in (asking.fileno(), *handles):
                os.close(handle)
            asking.detach()
    # Whoever used this is gone, perhaps without having tidied up.
    for pid in procs.all_processes():
        if marker_of(pid) in marks:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

"""The TensorBoard child: started, watched, restarted with back-off, and ended with the daemon.

Why: users look at the loss there. An orphan that keeps the port, a crash that nobody notices, or a
"ready" before it answers all look like an empty TensorBoard. So it counts as ready only when its own
process holds the port and answers HTTP; a port held by somebody else is said, with the holder, and
tried again; and it can't outlive the daemon, since the kernel kills it with its parent. A training
never waits for it.

TensorBoard is a program to be run, not a library here: the daemon does not import it. It gets no key of the
daemon's environment.

Known gap: the holder of the port is named only if the daemon's user may see that process.
"""

import asyncio
import importlib.util
import logging
import os
import sys
from pathlib import Path

import psutil

from dpiped import limits, messages
from dpiped.settings import Settings, tensorboard_environment

BACK_OFF = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
HEALTHY_AFTER = 60.0
"""Seconds of readiness after which the back-off begins anew."""
PROBE_EVERY = 0.25
PROBE_TIMEOUT = 2.0
STOP_GRACE = 5.0
LOG = "tensorboard.log"

log = logging.getLogger("dpiped.tensorboard")


class TensorBoard:
    """Owns the child. `changed` is called whenever `view` has changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._task: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._log = settings.state_dir / LOG
        here = ("127.0.0.1", "0.0.0.0", "::", "::1")
        shown = "localhost" if settings.tensorboard_host in here else settings.tensorboard_host
        host = f"[{shown}]" if ":" in shown else shown
        self._url = f"http://{host}:{settings.tensorboard_port}/"
        self.view = messages.TensorBoard(
            "disabled", None, "DIFFPIPE_TENSORBOARD=0 and DIFFPIPE_CONFIG is set"
        )

    def start(self) -> None:
        """Begins to keep it alive, if the settings want it."""
        if self._settings.tensorboard_wanted:
            self._set("starting", None)
            self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ends the child: SIGTERM, then SIGKILL."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self._end_child()
        self._set("disabled", "stopped with the daemon")

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            begun = loop.time()
            try:
                await self._once()
            except Exception as error:  # whatever it is, TensorBoard is to be tried again
                log.exception("keeping TensorBoard failed")
                await self._end_child()
                self._set("restarting", f"it can't be run: {error}")
            attempt = 0 if loop.time() - begun > HEALTHY_AFTER else attempt + 1
            await asyncio.sleep(BACK_OFF[min(attempt, len(BACK_OFF)) - 1] if attempt else BACK_OFF[0])

    async def _once(self) -> None:
        """One life of the child, from the check of the port to its end."""
        if importlib.util.find_spec("tensorboard") is None:
            self._set("not_installed", "install it with: pip install 'dpiped[train]'")
            return
        if holder := await self._port_holder():
            self._set("port_taken", f"port {self._settings.tensorboard_port} is held by {holder}")
            return
        if self.view.state not in ("restarting", "starting"):
            self._set("starting", None)
        self._child = await self._spawn()
        ready = asyncio.create_task(self._await_ready())
        ended = asyncio.create_task(self._child.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                # Ready, or the probe itself failed, which is raised here.
                await ready
            code = await ended
        finally:
            ready.cancel()
            ended.cancel()
        self._set("restarting", f"ended with {_how(code)}: {_last_line(self._log)}")

    async def _spawn(self) -> asyncio.subprocess.Process:
        settings = self._settings
        # As many as the daemon: it keeps each event file open that it shows.
        files = str(limits.raised_files())
        command = [sys.executable, "-m", "dpiped", "bound", str(os.getpid()), files, sys.executable]
        command += ["-m", "tensorboard.main", "--logdir", str(settings.tensorboard_root)]
        command += ["--host", settings.tensorboard_host, "--port", str(settings.tensorboard_port)]
        command += ["--reload_interval", "5"]
        output = self._open_log()
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=tensorboard_environment(),
                # Ctrl-C in a terminal is the daemon's to handle, also for this child.
                start_new_session=True,
            )
        finally:
            os.close(output)

    def _open_log(self) -> int:
        try:
            return os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            # It is for the curves of a training, not for its own words.
            log.warning("%s can't be written: %s", self._log, error.strerror)
            return os.open(os.devnull, os.O_WRONLY)

    async def _await_ready(self) -> None:
        while not (self._child and await self._holds_port(self._child.pid) and await self._answers()):
            await asyncio.sleep(PROBE_EVERY)
        self._set("ready", None)

    async def _answers(self) -> bool:
        """Does it answer an HTTP request with 200?"""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(
            self._settings.tensorboard_host, self._settings.tensorboard_host
        )
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, self._settings.tensorboard_port)
                writer.write(b"GET /data/environment HTTP/1.0\r\nHost: localhost\r\n\r\n")
                await writer.drain()
                status = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return status.split()[1:2] == [b"200"]

    async def _port_holder(self) -> str | None:
        """Who listens on the port, in words; None if nobody."""
        pids = await asyncio.to_thread(listeners, self._settings.tensorboard_port)
        if not pids:
            return None
        pid = next(iter(pids))
        if pid is None:
            return "another user's process"
        try:
            command = await asyncio.to_thread(lambda: psutil.Process(pid).cmdline())
        except psutil.Error:
            return f"pid {pid}"
        return f"pid {pid} ({' '.join(command)[:200]})"

    async def _holds_port(self, pid: int) -> bool:
        return pid in await asyncio.to_thread(listeners, self._settings.tensorboard_port)

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        child.terminate()
        try:
            async with asyncio.timeout(STOP_GRACE):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()

    def _set(self, state: str, detail: str | None) -> None:
        view = messages.TensorBoard(state, None, detail)
        if state == "ready":
            port, public = self._settings.tensorboard_port, self._settings.tensorboard_url
            view = messages.TensorBoard(state, self._url, detail, port, public)
        if view != self.view:
            level = logging.INFO if state in ("starting", "ready", "disabled") else logging.WARNING
            log.log(level, "%s%s", f"{state} {view.url or ''}".strip(), f": {detail}" if detail else "")
            self.view = view


def listeners(port: int) -> set[int | None]:
    """Pids that listen on a TCP port; None stands for a process that this user may not see."""
    return {
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(path: Path) -> str:
    try:
        text = path.read_bytes()[-4096:].decode(errors="replace")
    except OSError as error:
        return f"({path.name} can't be read: {error.strerror})"
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "(it printed nothing)")[:300]

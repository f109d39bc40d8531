"""The shim's connection to the daemon, where that goes away, or does not come."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpipectl.client import TIMEOUT, Failed
from dpipectl.http.daemon import Daemon
from dpiped import messages
from dpiped.errors import Unreachable
from tests.harness import Workspace
from tests.test_http_events import busy_daemon


def test_a_second_event_loop_is_served_as_well(dpiped: Workspace) -> None:
    daemon = Daemon(dpiped.env["DIFFPIPE_SOCKET"])

    async def ask() -> str:
        return (await daemon.ask(messages.GetStatus(), messages.Status)).state

    assert [asyncio.run(ask()) for _ in range(3)] == ["idle"] * 3


def test_a_daemon_that_goes_away_at_any_moment_of_connecting_is_unreachable(tmp_path: Path) -> None:
    """Who listens hangs up at once: the connection is gone before, while or after it is asked over."""
    path = str(tmp_path / "d.sock")

    async def ask() -> None:
        daemon = Daemon(path)
        for _ in range(300):
            with pytest.raises(Unreachable):
                await daemon.ask(messages.GetStatus(), messages.Status)
        daemon.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            asyncio.run(ask())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[socket.socket]:
    """A listener whose queue is full once somebody has looked whether it is there."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "d.sock"))
        listener.listen(0)
        yield listener


def test_a_daemon_that_ends_before_it_is_connected_to_is_unreachable_at_once(full: socket.socket) -> None:
    async def ask() -> float:
        daemon = Daemon(full.getsockname())
        asking = asyncio.create_task(daemon.ask(messages.GetStatus(), messages.Status))
        done, _ = await asyncio.wait((asking,), timeout=0.5)
        assert not done, "somebody listens, so it waits"
        full.close()
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="can't be reached"):
            await asking
        daemon.close()
        return time.monotonic() - begun

    assert asyncio.run(ask()) < TIMEOUT / 3


def test_a_daemon_that_accepts_late_is_asked_once(full: socket.socket) -> None:
    """Also where something is to be changed: what could not be sent can be sent again."""
    path = full.getsockname()

    async def ask() -> list[str]:
        daemon = Daemon(path)
        asking = asyncio.create_task(daemon.ask(messages.Save(), messages.Saved))
        done, _ = await asyncio.wait((asking,), timeout=0.5)
        assert not done, "somebody listens, so it waits"
        with busy_daemon(Path(path), full) as asked, pytest.raises(Failed, match="too many requests"):
            await asking
        daemon.close()
        return asked

    assert asyncio.run(ask()) == ["Save"]


def test_what_an_ended_application_leaves_open_stays_quiet(tmp_path: Path) -> None:
    """Nobody reads what ZeroMQ tells its monitor; once that is a lot, it serves nobody in the process."""
    left = Daemon(str(tmp_path / "d.sock"))

    async def leave() -> None:
        asking = asyncio.create_task(left.ask(messages.GetStatus(), messages.Status))
        await asyncio.wait((asking,), timeout=0.2)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "d.sock"))
        listener.listen()
        asyncio.run(leave())
    monitor, told = left._monitor, 0
    assert monitor is not None
    while told < 5 and monitor.poll(1000):
        monitor.recv_multipart()
        told += 1
    assert 1 <= told < 5, "that the connection broke, and nothing more"

"""The shim's connection to the daemon, where that goes away, or does not come."""

import asyncio
import contextlib
import gc
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from dpipectl.client import PROMPT, TIMEOUT, Client, Failed
from dpipectl.http.daemon import LONG_LIMIT, PENDING_LIMIT, Daemon
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


def told_of_the_end(daemon: Daemon) -> None:
    """Waits until ZeroMQ knows that the connection has broken, and lets no event loop turn."""
    assert daemon._monitor is not None
    descriptor = daemon._monitor.getsockopt(zmq.FD)
    assert isinstance(descriptor, int) and select.select([descriptor], [], [], 5)[0]


def test_a_reply_that_came_before_the_daemon_ended_is_a_reply(tmp_path: Path) -> None:
    """Also where the event loop stood still meanwhile, and finds both at once."""
    path = str(tmp_path / "d.sock")

    async def ask() -> messages.Saved:
        daemon = Daemon(path)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.bind(f"ipc://{path}")
        asking = asyncio.create_task(daemon.ask(messages.Save(), messages.Saved))
        while not (daemon._connected and router.poll(0)):
            await asyncio.sleep(0)
        peer, number, _ = router.recv_multipart()
        router.send_multipart(
            [peer, number, messages.encode(messages.Saved("a run", "global_step1", "token"))]
        )
        # From here on the loop stands still until the connection has broken.
        router.close(linger=5000)
        context.term()
        told_of_the_end(daemon)
        try:
            return await asking
        finally:
            daemon.close()

    assert asyncio.run(ask()).checkpoint == "global_step1"


def test_a_change_is_asked_of_the_next_daemon_where_the_last_one_has_just_gone(tmp_path: Path) -> None:
    """What broke, and has not been told yet, is not asked: what is sent over it would be lost."""
    path = tmp_path / "d.sock"

    async def ask() -> None:
        daemon = Daemon(str(path))
        for _ in range(3):
            with busy_daemon(path) as asked, pytest.raises(Failed, match="too many requests"):
                await daemon.ask(messages.Save(), messages.Saved)
            assert asked == ["Save"]
            told_of_the_end(daemon)
        daemon.close()

    asyncio.run(ask())


def test_long_polls_leave_room_for_a_stop(tmp_path: Path) -> None:
    path = str(tmp_path / "d.sock")

    async def ask() -> None:
        daemon = Daemon(path)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.bind(f"ipc://{path}")
        polls = [
            asyncio.create_task(daemon.ask(messages.Watch(0, 30.0), messages.Status, 30.0))
            for _ in range(PENDING_LIMIT)
        ]
        await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        refused = [poll for poll in polls if poll.done()]
        assert len(refused) == PENDING_LIMIT - LONG_LIMIT
        for poll in refused:
            with pytest.raises(Failed, match="too many requests"):
                await poll
        stopping = asyncio.create_task(daemon.ask(messages.Stop(), messages.Stopping, 30.0))
        reply = messages.encode(messages.Stopping("a run", "term", "detail"))
        while not stopping.done():
            while router.poll(0):
                peer, number, body = router.recv_multipart()
                if isinstance(messages.request_decoder().decode(body), messages.Stop):
                    router.send_multipart([peer, number, reply])
            await asyncio.sleep(0)
        assert (await stopping).run == "a run"
        daemon.close()
        assert await asyncio.gather(*polls, return_exceptions=True)
        router.close(linger=0)
        context.term()

    asyncio.run(ask())


def test_a_client_waits_for_a_daemon_that_accepts_late(full: socket.socket) -> None:
    """Who listens and has not accepted all who came before is not "nobody"."""
    path = full.getsockname()
    client, told = Client(path), []

    def ask() -> None:
        with pytest.raises(Failed, match="too many requests"):
            client.call(messages.Save())
        told.append(True)

    with socket.socket(socket.AF_UNIX) as first:
        # Takes the place in the queue, so that the client's own connection and its look wait.
        first.connect(path)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(PROMPT * 3)
        assert thread.is_alive(), "somebody listens, so it waits"
    with busy_daemon(Path(path), full) as asked:
        thread.join(TIMEOUT)
    client.close()
    assert told and asked == ["Save"]


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


def test_what_is_forgotten_is_closed_and_says_nothing_more(tmp_path: Path) -> None:
    """ZeroMQ's thread would wait for ever to tell a monitor that is gone, and with it all of the process."""
    path = tmp_path / "d.sock"
    left = [Daemon(str(path))]

    async def ask() -> None:
        with pytest.raises(Failed, match="too many requests"):
            await left[0].ask(messages.GetStatus(), messages.Status)

    with busy_daemon(path):
        asyncio.run(ask())
        connection, monitor = left[0]._socket, left[0]._monitor
        assert connection is not None and monitor is not None
        left.clear()
        gc.collect()
        assert connection.closed
    # The daemon has ended, too, and that is told to nobody.
    assert not monitor.poll(300)
    monitor.close()

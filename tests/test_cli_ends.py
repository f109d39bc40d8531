"""How the client ends: nobody reads any more, Ctrl-C, and what is left on a terminal."""

import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from dpipectl import __main__ as entry
from dpipectl import cli
from tests.harness import BIN, Workspace
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)


def unread(workspace: Workspace, *words: str) -> tuple[int, str]:
    """Runs dpipectl with an output that nobody reads any more. (exit code, stderr)"""
    # Without a buffer the first word fails, with one the last flush.
    ends = {_unread(workspace.env | {"PYTHONUNBUFFERED": without}, words) for without in ("", "1")}
    assert len(ends) == 1, ends
    return ends.pop()


def _unread(env: dict[str, str], words: tuple[str, ...]) -> tuple[int, str]:
    ours, output = os.pipe()
    os.close(ours)
    with os.fdopen(output, "wb") as unheard:
        command = [str(BIN / "dpipectl"), *words]
        done = subprocess.run(
            command, env=env, stdout=unheard, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    return done.returncode, done.stderr


@contextlib.contextmanager
def started(
    workspace: Workspace, *words: str, output: int = subprocess.PIPE
) -> Iterator["subprocess.Popen[bytes]"]:
    """A dpipectl that has asked the daemon something."""
    command = [str(BIN / "dpipectl"), *words]
    client = subprocess.Popen(command, env=workspace.env, stdout=output, stderr=subprocess.PIPE)
    try:
        # ZeroMQ's threads begin with the connection.
        wait_until(lambda: psutil.Process(client.pid).num_threads() > 1, "it is connected")
        yield client
    finally:
        client.kill()
        client.wait()


@pytest.mark.parametrize(
    ("words", "code"),
    [("--help", 0), ("logs --help", 0), ("--version", 0), ("", 2), ("--json bogus", 2), ("--json status", 3)],
)
def test_an_output_that_nobody_reads_shows_no_traceback(workspace: Workspace, words: str, code: int) -> None:
    assert unread(workspace, *words.split()) == (code, "")


def test_a_stderr_that_nobody_reads_changes_no_exit_code(workspace: Workspace) -> None:
    ours, output = os.pipe()
    os.close(ours)
    with os.fdopen(output, "wb") as both:
        done = subprocess.run(
            [str(BIN / "dpipectl"), "status"], env=workspace.env, stdout=both, stderr=both, check=False
        )
    assert done.returncode == cli.EXIT_UNREACHABLE


def test_who_waits_unread_still_learns_how_the_run_ended(dpiped: Workspace) -> None:
    good = dpiped.start(dpiped.config(steps=1))
    dpiped.until_ended(good)
    bad = dpiped.start(dpiped.config("raises"))
    dpiped.until_ended(bad)
    for form in ([], ["--json"]):
        assert unread(dpiped, *form, "wait", good) == (0, "")
        assert unread(dpiped, *form, "wait", bad) == (cli.EXIT_NOT_COMPLETED, "")
        assert unread(dpiped, *form, "runs") == (0, "")


def test_who_follows_unread_does_not_tell_of_success(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(3)
    assert unread(dpiped, "logs", "-f", run) == (cli.EXIT_CLOSED, "")
    assert cli.EXIT_CLOSED == 128 + signal.SIGPIPE


@pytest.mark.parametrize("verb", ["wait", "stop"])
def test_ctrl_c_with_json_is_one_document(dpiped: Workspace, verb: str) -> None:
    dpiped.start(dpiped.config("stubborn", steps=1_000_000))
    dpiped.until_step(1)
    with started(dpiped, "--json", verb) as client:
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=20)
    assert (client.returncode, err) == (cli.EXIT_INTERRUPTED, b"")
    assert json.loads(out)["error"]["code"] == "interrupted"


def test_ctrl_c_without_json_says_nothing(dpiped: Workspace) -> None:
    dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(1)
    with started(dpiped, "wait") as client:
        client.send_signal(signal.SIGINT)
        assert client.communicate(timeout=20) == (b"", b"")
    assert client.returncode == cli.EXIT_INTERRUPTED


def test_ctrl_c_after_the_document_writes_no_second_one(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["--json", "--version"])
    assert entry._interrupted() == cli.EXIT_INTERRUPTED
    assert b"version" in capfdbinary.readouterr().out
    assert cli.parse(["--json", "status"]).json
    assert entry._interrupted() == cli.EXIT_INTERRUPTED
    assert json.loads(capfdbinary.readouterr().out)["error"]["code"] == "interrupted"


class Screen:
    """A terminal's other side."""

    def __init__(self) -> None:
        self._ours, self.terminal = pty.openpty()
        os.set_blocking(self._ours, False)
        self.shown = b""

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._ours, 4096):
                self.shown += more
        return self.shown

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.terminal)


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


def test_ctrl_c_leaves_no_half_line_on_a_terminal(dpiped: Workspace, screen: Screen) -> None:
    run = dpiped.start(dpiped.config("bar", steps=1, go=str(dpiped.go)))
    with started(dpiped, "logs", "-f", run, output=screen.terminal) as client:
        wait_until(lambda: "100%|█████| 5/5".encode() in screen.read(), "the bar")
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == cli.EXIT_INTERRUPTED
    assert screen.read().endswith(b"[00:01<00:00]\r\x1b[K")


def test_ctrl_c_while_a_start_is_followed_says_that_the_training_goes_on(
    dpiped: Workspace, screen: Screen
) -> None:
    config = dpiped.config(steps=1_000_000)
    with started(dpiped, "start", "--config", str(config), "--follow", output=screen.terminal) as client:
        wait_until(lambda: b" step " in screen.read(), "the progress")
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == cli.EXIT_INTERRUPTED
    assert b"\x1b[Kthe training goes on; " in screen.read()
    assert screen.read().endswith(b"shows it\r\n")

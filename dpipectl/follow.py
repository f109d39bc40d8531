"""Following a run in the terminal: its log lines, or its progress, until it ends.

Why: a run takes hours and the daemon may be restarted meanwhile; a follower must neither stop nor
repeat a line then. All requests here are patient and carry their own cursor.

On a terminal the last line is live (the trainer's own progress bar, or ours); elsewhere only whole
lines are written, so that a pipe or a log file stays readable.

Known gap: a line longer than the terminal is wide is cut while it is live.
"""

import shutil
import sys
import time
from typing import Self

from dpipectl import render
from dpipectl.client import Client, Failed
from dpiped import messages
from dpiped.errors import Unreachable

WAIT = 2.0
"""Seconds of one long poll: short, so that a daemon's death is noticed soon."""
PLAIN_EVERY = 10.0
"""Off a terminal a progress line is written this often (seconds)."""
CLEAR = "\r\x1b[K"


class LiveLine:
    """The redrawn last line of a terminal, gone when it is left. Does nothing where there is no terminal."""

    def __init__(self) -> None:
        self._on = sys.stdout.isatty()
        self._drawn = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        text = text[:width]
        if self._on and text != self._drawn:
            # Before it is: Ctrl-C may come in the middle.
            self._drawn = text
            sys.stdout.write(CLEAR + text)
            sys.stdout.flush()

    def clear(self) -> None:
        if self._on and self._drawn:
            sys.stdout.write(CLEAR)
            sys.stdout.flush()
            self._drawn = ""


def log_lines(client: Client, first: messages.LogLines) -> None:
    """Prints `first` and then everything after it until the run ends."""
    with LiveLine() as live:
        _log_lines(client, first, live)


def _log_lines(client: Client, first: messages.LogLines, live: LiveLine) -> None:
    reply = first
    while True:
        live.clear()
        for line in reply.lines:
            print(line)
        sys.stdout.flush()
        if reply.eof:
            if reply.current:
                print(reply.current)
            return
        live.draw(reply.current or _progress_of(client, reply.run))
        request = messages.ReadLog(reply.run, after=reply.next, limit=2000, seen=reply.end, wait=WAIT)
        got = client.patient(request, WAIT)
        assert isinstance(got, messages.LogLines)
        reply = got


def raw_log(client: Client, first: messages.RawLog, follow: bool) -> None:
    """Writes the log's bytes as they were printed."""
    reply = first
    while True:
        sys.stdout.buffer.write(reply.data)
        sys.stdout.buffer.flush()
        if reply.eof or (not reply.data and not follow):
            return
        wait = WAIT if follow else 0.0
        got = client.patient(messages.ReadRaw(reply.run, after=reply.next, wait=wait), wait)
        assert isinstance(got, messages.RawLog)
        reply = got


def progress(client: Client, run: str) -> messages.RunReply:
    """Shows phase and progress until the run ends; then how it ended."""
    with LiveLine() as live:
        _progress(client, run, live)
    return ended(client, run)


def _progress(client: Client, run: str, live: LiveLine) -> None:
    phase, said_at, revision = "", 0.0, -1
    while True:
        reply = client.patient(messages.Watch(after=revision, wait=WAIT), WAIT)
        assert isinstance(reply, messages.Status)
        revision = reply.revision
        if reply.run is None or reply.run.id != run:
            return
        if reply.run.phase != phase:
            phase = reply.run.phase
            live.clear()
            print(f"{time.strftime('%H:%M:%S')}  {render.progress(reply.run)}", flush=True)
            said_at = time.monotonic()
        elif not sys.stdout.isatty() and time.monotonic() - said_at >= PLAIN_EVERY:
            print(f"{time.strftime('%H:%M:%S')}  {render.progress(reply.run)}", flush=True)
            said_at = time.monotonic()
        live.draw(reply.run.warning or render.bar(reply.run, shutil.get_terminal_size().columns - 1))


def ended(client: Client, run: str) -> messages.RunReply:
    """Waits until that run has ended."""
    while True:
        reply = client.patient(messages.WaitRun(run, wait=WAIT), WAIT)
        assert isinstance(reply, messages.RunReply)
        if reply.ended:
            return reply


def _progress_of(client: Client, run: str) -> str:
    if not sys.stdout.isatty():
        return ""
    try:
        reply = client.call(messages.GetStatus())
    except (Failed, Unreachable):
        return ""
    if isinstance(reply, messages.Status) and reply.run is not None and reply.run.id == run:
        return render.bar(reply.run, shutil.get_terminal_size().columns - 1)
    return ""

"""A supervisord that died, and the next one: whose is the daemon that goes on?

Why: a supervisord that is killed takes nobody with it. Its daemon goes on, which is right: the training is
looked after. But the next supervisord starts a daemon of its own, which finds the state directory taken, and
gives up after ten tries; `supervisorctl` would say FATAL for hours. So a daemon that supervisord started asks
the one that is in its place to let go. That one does if its own supervisord is gone, and leaves the run to be
adopted, as it does for a crash: no step and no line is lost.

A daemon that was started by hand, or whose supervisord lives, never lets go.

Known gap: a supervisord that is stopped but not dead (SIGSTOP) counts as alive.
"""

import os
from pathlib import Path

import msgspec
import zmq

from dpiped import messages, procs
from dpiped.rundir import Identity
from dpiped.settings import STARTED_BY, under_supervisord

ANSWER_WITHIN = 5.0
"""Seconds."""


def starter() -> Identity | None:
    """The supervisord that started this daemon, also after a re-execution; None if none did."""
    if told := os.environ.get(STARTED_BY):
        return msgspec.json.decode(told, type=Identity)
    parent = os.getppid()
    # Shells below a program of supervisord inherit its variables.
    return procs.identify(parent) if under_supervisord() and _is_supervisord(parent) else None


def _is_supervisord(pid: int) -> bool:
    try:
        return b"supervisord" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def remember(who: Identity | None) -> None:
    """For the daemon that this process becomes by a re-execution."""
    if who is not None:
        os.environ[STARTED_BY] = msgspec.json.encode(who).decode()


def is_orphan(who: Identity | None) -> bool:
    """Was it started by a supervisord that is gone?"""
    return who is not None and not procs.is_alive(who)


def asked_for(path: str) -> bool:
    """Asks the daemon at `path` to let go. True if it does; False if it does not answer, or refuses."""
    if not Path(path).is_socket():
        return False
    with zmq.Context() as context, context.socket(zmq.DEALER) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        connection.connect(f"ipc://{path}")
        connection.send_multipart([b"1", messages.encode(messages.TakeOver())])
        if not connection.poll(int(ANSWER_WITHIN * 1000)):
            return False
        _, body = connection.recv_multipart()
    try:
        return isinstance(messages.reply_decoder().decode(body), messages.HandingOver)
    except msgspec.MsgspecError:
        # An older daemon, whose errors may be others.
        return False

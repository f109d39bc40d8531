"""The client's side of the socket: one request, one reply, a clear error if nobody answers.

Why: ZeroMQ connects to a socket that does not exist without a word and waits. A user who forgot to
start the daemon must be told so at once, so a path without a file, or a silence, is probed with a plain
connect. A reply has a deadline, always.

`patient` is for those who follow a run: the daemon may be killed and come back meanwhile; since all
cursors are byte offsets, asking again loses and repeats nothing.

Known gap: requests are answered in the order of need only; one client object asks one at a time.
"""

import math
import os
import sys
import time

import zmq

from dpipectl import trust
from dpiped import messages
from dpiped.errors import InvalidInput, Unreachable
from dpiped.messages import AnyReply, AnyRequest

PROMPT = 0.2
"""A daemon that has not answered by then is probed, to tell a dead one from a busy one (seconds)."""
TIMEOUT = 10.0
MARGIN = 5.0
"""Added to a request's own `wait` before its reply counts as missing."""
PATIENCE = 120.0
RETRY_EVERY = 0.2
HINT = (
    "start it with `dpiped`, `supervisorctl start diffpipe` or `systemctl start dpiped`; "
    "DIFFPIPE_SOCKET says where it listens"
)


CHANGES = (messages.Start, messages.StartForm, messages.Resume, messages.Stop, messages.Save, messages.Reload)
"""What must not be asked twice by itself; everything else is a question."""


class WentAway(Unreachable):
    """The connection broke before the reply: by a reload, or because the daemon ended."""


class Failed(Exception):
    """The daemon answered with an error. `error` is it."""

    def __init__(self, error: messages.Error) -> None:
        super().__init__(error.message)
        self.error = error


class Client:
    """One connection. `call` raises Failed for an error reply and Unreachable for none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._hangups: zmq.Socket[bytes] | None = None
        self._decoder = messages.reply_decoder()
        self._number = 0
        self._answered = False

    def call(self, request: AnyRequest, wait: float = 0.0) -> AnyReply:
        """Sends and waits for the reply. `wait` is how long the daemon itself may take (seconds).

        A question that went down with a daemon which reloads is asked once more; the next one is there
        already, or its socket waits for it.
        """
        try:
            return self._exchange(request, wait)
        except WentAway:
            if isinstance(request, CHANGES):
                raise
        return self._exchange(request, wait)

    def _exchange(self, request: AnyRequest, wait: float) -> AnyReply:
        body = _encoded(request)
        if self._socket is None:
            self._socket = self._connect()
        self._number += 1
        number = self._number.to_bytes(8, "big")
        self._socket.send_multipart([number, body])
        now = time.monotonic()
        reply = self._receive(number, now + PROMPT)
        if reply is None:
            self._probe()
            reply = self._receive(number, now + (wait + MARGIN if wait else TIMEOUT))
        if reply is None:
            self.close()
            raise Unreachable(f"dpiped at {self._path} does not answer", hint=_while_silent(request))
        self._answered = True
        return self._decoded(reply)

    def _receive(self, number: bytes, deadline: float) -> bytes | None:
        """The body of the reply to that request, or None at the deadline."""
        assert self._socket is not None and self._hangups is not None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._hangups, zmq.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poller.poll(int(left * 1000) + 1))
            if self._socket in ready:
                answered, body = self._socket.recv_multipart()
                # A late reply to a request that was given up is not the answer to this one.
                if answered == number:
                    return body
            elif self._hangups in ready:
                # ZeroMQ would connect again, but the request is gone with the daemon that had it.
                self.close()
                raise WentAway(
                    "dpiped went away before it answered",
                    hint="`dpipectl status` shows what is"
                    if self._answered
                    else "it also hangs up on users that are neither its own nor in DIFFPIPE_SOCKET_GROUP",
                )
        return None

    def patient(self, request: AnyRequest, wait: float = 0.0, until: float = math.inf) -> AnyReply:
        """Like `call`, but a daemon that went away is waited for: two minutes, at most `until` (monotonic).

        One that was never there is not.
        """
        until = min(until, time.monotonic() + PATIENCE)
        told = False
        while True:
            try:
                return self.call(request, wait)
            except Unreachable:
                if not self._answered or time.monotonic() > until:
                    raise
                if not told:
                    print("dpipectl: the daemon is away; waiting for it ...", file=sys.stderr)
                    told = True
                self.close()
                time.sleep(RETRY_EVERY)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            # First: ZeroMQ's thread would wait for ever to tell a monitor that is gone.
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._socket = self._hangups = None

    def _connect(self) -> "zmq.Socket[bytes]":
        if not os.access(self._path, os.F_OK):
            self._probe()
        trust.check(self._path)
        connection = self._context.socket(zmq.DEALER)
        connection.setsockopt(zmq.LINGER, 0)
        self._hangups = connection.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        connection.connect(f"ipc://{self._path}")
        return connection

    def _probe(self) -> None:
        """Raises Unreachable, with the reason, if nobody accepts a connection."""
        import errno
        import socket

        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(TIMEOUT)
            probe.connect(self._path)
        except BlockingIOError:
            return  # Somebody listens, and has not accepted all who came before.
        except OSError as error:
            why = {
                errno.ENOENT: "there is no socket",
                errno.ECONNREFUSED: "nobody listens there",
                errno.EACCES: "this user may not use the socket",
            }.get(error.errno or 0, os.strerror(error.errno or 0))
            self.close()
            raise Unreachable(f"dpiped can't be reached at {self._path}: {why}", hint=HINT) from error
        finally:
            probe.close()

    def _decoded(self, body: bytes) -> AnyReply:
        reply = self._decoder.decode(body)
        if isinstance(reply, messages.Error):
            raise Failed(reply)
        return reply


def _while_silent(request: AnyRequest) -> str:
    later = "; it may still do what it was asked" if isinstance(request, CHANGES) else ""
    return f"is it stopped or overloaded?{later}"


def _encoded(request: AnyRequest) -> bytes:
    """Raises InvalidInput for what the daemon would not even read."""
    try:
        body = messages.encode(request)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"an argument is not UTF-8: {error.object!a:.100}") from error
    if len(body) > messages.REQUEST_BYTES:
        raise InvalidInput(
            f"the request is {len(body)} bytes long; dpiped takes at most {messages.REQUEST_BYTES}",
            hint="shorten the arguments and variables for the training",
        )
    return body

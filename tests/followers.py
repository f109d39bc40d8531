"""Many browsers in one process: follows the event stream over plain sockets, as EventSource does.

Run as `python -m tests.followers PORT COUNT`; prints one JSON line per follower once all have seen a run end:
how many lines it got, a digest of them, how often it connected. Only whole events count, and a broken
connection goes on after the last of them.
"""

import hashlib
import json
import selectors
import socket
import sys
import time
from typing import Any

RETRY = 0.2


class Follower:
    def __init__(self, port: int) -> None:
        self.port = port
        self.last = ""
        self.lines = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.connected = 0
        self.ended = False
        self.socket: socket.socket | None = None
        self.again_at = 0.0
        self._buffer = b""
        self._in_body = False

    def connect(self) -> bool:
        try:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        except OSError:
            return False
        where = "/dpipe/events?tail=0"
        head = f"GET {where} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Last-Event-ID: {self.last}\r\n" if self.last else ""
        self.socket.sendall(f"{head}\r\n".encode())
        self.socket.setblocking(False)
        self.connected += 1
        self._buffer, self._in_body = b"", False
        return True

    def read(self) -> bool:
        """Takes in what is there. False for a connection that is over."""
        assert self.socket is not None
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._buffer += data
        if not self._in_body:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return True
            assert head.startswith(b"HTTP/1.1 200"), head
            self._buffer, self._in_body = rest, True
        return self._chunks()

    def _chunks(self) -> bool:
        """Each chunk of the body holds whole events."""
        while True:
            size, found, rest = self._buffer.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                return True
            for event in rest[:length].split(b"\n\n"):
                self._event(event)
            self._buffer = rest[length + 2 :]
            if length == 0:
                return False

    def _event(self, event: bytes) -> None:
        if event.startswith(b"id: "):
            head, _, event = event.partition(b"\n")
            self.last = head[4:].decode()
        if event.startswith(b"event: log\ndata: "):
            text = event[len(b"event: log\ndata: ") :].replace(b"\ndata: ", b"\n") + b"\n"
            self.lines += text.count(b"\n")
            self.digest.update(text)
        elif event.startswith(b"event: end\n"):
            self.ended = True

    def result(self) -> dict[str, Any]:
        return {"lines": self.lines, "digest": self.digest.hexdigest(), "connected": self.connected}


def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    followers = [Follower(port) for _ in range(count)]
    selector = selectors.DefaultSelector()
    while not all(follower.ended for follower in followers):
        for follower in followers:
            due = not follower.ended and follower.socket is None and time.monotonic() >= follower.again_at
            if due and follower.connect():
                assert follower.socket is not None
                selector.register(follower.socket, selectors.EVENT_READ, follower)
            elif due:
                follower.again_at = time.monotonic() + RETRY
        for key, _ in selector.select(timeout=0.1):
            follower = key.data
            if not follower.read() or follower.ended:
                selector.unregister(follower.socket)
                follower.socket.close()
                follower.socket = None
    for follower in followers:
        print(json.dumps(follower.result()))


if __name__ == "__main__":
    main()

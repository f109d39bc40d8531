"""Clients of the soak: each follows all runs, goes away at times, comes back, and keeps digests of the logs.

A follower loses nothing if its digest of a run is that of the run's output.log.
"""

import hashlib
import http.client
import random
import threading
from pathlib import Path

from dpipectl.client import Client
from dpiped import messages
from dpiped.errors import Unreachable

AWAY = 1.5
"""Seconds that a follower is away at most."""
RETRY = 0.2
LEAVE = 0.02
"""How likely it goes after an answer."""


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Follower(threading.Thread):
    """`logs` has all that was got of each run, `whole` the runs followed to their end."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__(daemon=True, name=f"{type(self).__name__} {number}")
        self.random = random.Random(f"{seed} {self.name}")
        self.logs: dict[str, bytearray] = {}
        self.digests: dict[str, str] = {}
        self.left = 0
        self.stay = threading.Event()
        self.over = threading.Event()
        self.connected = threading.Event()
        self.fault: str | None = None

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.follow()
            except (OSError, Unreachable, http.client.HTTPException):
                self.over.wait(RETRY)
            except Exception as error:  # noqa: BLE001
                self.fault = f"{self.name}: {error!r}"
                return
            finally:
                self.connected.clear()

    def follow(self) -> None:
        """One connection, until it breaks or the follower goes away."""
        raise NotImplementedError

    def leaves(self) -> bool:
        if self.stay.is_set() or self.random.random() > LEAVE:
            return False
        self.left += 1
        self.connected.clear()
        return True

    def pause(self) -> None:
        self.over.wait(self.random.uniform(0, AWAY))

    def take(self, run: str, data: bytes) -> None:
        self.logs.setdefault(run, bytearray()).extend(data)

    def end(self, run: str) -> None:
        """Only its digest is kept."""
        if run not in self.digests:
            self.digests[run] = digest(bytes(self.logs.pop(run, b"")))

    def as_told(self, log: bytes) -> bytes:
        """What it has to have got of that log."""
        return log

    def wrong(self, runs: dict[str, Path]) -> list[str]:
        """What it has got that is not the log."""
        found = [self.fault] if self.fault else []
        for run, path in runs.items():
            if run not in self.digests:
                found.append(f"{self.name} was not told of {run}")
            elif self.digests[run] != digest(self.as_told(path.read_bytes())):
                found.append(f"{self.name} has another log of {run}")
        return found


class OverSocket(Follower):
    """Long polls: the status, and the log by its cursor."""

    def __init__(self, number: int, seed: int, socket: str) -> None:
        super().__init__(number, seed)
        self.socket = socket

    def follow(self) -> None:
        client = Client(self.socket)
        try:
            revision, seen = -1, ("", "")
            while not self.over.is_set():
                status = client.call(messages.Watch(revision, 1.0), 1.0)
                self.connected.set()
                assert isinstance(status, messages.Status)
                revision = status.revision
                there = status.run.id if status.run else "", status.last_run.id if status.last_run else ""
                if there != seen and not all(self._read(client, run) for run in self._new(client)):
                    return
                seen = there
        finally:
            client.close()
            self.pause()

    def _new(self, client: Client) -> list[str]:
        """Runs that it does not have yet, the oldest first; some may have been started while it was away."""
        reply = client.call(messages.ListRuns(limit=10))
        assert isinstance(reply, messages.Runs)
        return [run.id for run in reversed(reply.runs) if run.id not in self.digests]

    def _read(self, client: Client, run: str) -> bool:
        """False if it went away before the run's end."""
        while True:
            page = client.call(messages.ReadRaw(run, len(self.logs.get(run, b"")), wait=1.0), 1.0)
            assert isinstance(page, messages.RawLog)
            self.take(run, page.data)
            if page.eof:
                self.end(run)
                return True
            if self.leaves():
                return False


class OverHttp(Follower):
    """The event stream, as a browser's EventSource follows it."""

    def __init__(self, number: int, seed: int, port: int) -> None:
        super().__init__(number, seed)
        self.port = port
        self.last = ""

    def as_told(self, log: bytes) -> bytes:
        """Events are of lines: one that SIGKILL cut off before its end is a line as well."""
        return log if log.endswith(b"\n") or not log else log + b"\n"

    def follow(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Last-Event-ID": self.last} if self.last else {}
            connection.request("GET", "/dpipe/events?tail=0", headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise http.client.HTTPException(f"status {answer.status}")
            self.connected.set()
            event: list[bytes] = []
            while line := answer.readline():
                if line != b"\n":
                    event.append(line[:-1])
                    continue
                self._take(event)
                event = []
                if self.over.is_set() or self.leaves():
                    return
        finally:
            connection.close()
            self.pause()

    def _take(self, event: list[bytes]) -> None:
        """Only a whole event counts."""
        fields: dict[bytes, list[bytes]] = {}
        for line in event:
            name, _, value = line.partition(b": ")
            fields.setdefault(name, []).append(value)
        if b"id" in fields:
            self.last = fields[b"id"][0].decode()
        run = self.last.partition(":")[0]
        match fields.get(b"event"):
            case [b"log"]:
                self.take(run, b"\n".join(fields[b"data"]) + b"\n")
            case [b"end"]:
                self.end(run)

"""One reader of the daemon for all who follow: pages of logs, and the status, each asked for once.

Why: two hundred followers that each ask the daemon would make it answer two hundred times the same, and
whoever asks for the status would wait behind them. Here equal questions share one answer: a page of a log is
named by the run and the cursor it begins at, and pages lately read are kept, encoded, for those who are
slower.

A follower that is too slow for what is kept has its pages read from the file again, a few at a time.

Known gap: the pages kept are the shim's memory, up to `KEPT_BYTES`, of the `KEPT_RUNS` last read.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from dpipectl.client import Failed
from dpipectl.http.daemon import Daemon
from dpiped import messages
from dpiped.errors import DpipedError, Unreachable

KEPT_BYTES = 48 << 20
KEPT_RUNS = 8
PAGE_LINES = 5000
WAIT = 10.0
RETRY_EVERY = 0.3
GRACE = 1.0
"""Seconds that a page is waited for without anybody who wants it."""
LOOK_BACK = 1000
"""Runs among which the next one is looked for."""
READERS = 2
"""Pages that are read at once for those who lag behind; the daemon has others to answer."""


class Page(Struct, frozen=True):
    """Lines after a cursor, encoded as one event (empty for none), and what stood behind them then.

    `current` is None in a page that was read for somebody else before.
    """

    event: bytes
    next: int
    end: int
    current: str | None
    eof: bool


_Key: TypeAlias = tuple[str, int, int]


class Feed:
    """Shared by all followers of one shim; belongs to the event loop's thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept: OrderedDict[tuple[str, int], Page] = OrderedDict()
        self._kept_bytes = 0
        self._edge: dict[str, int] = {}
        self.status: messages.Status | None = None
        self.reachable = True
        self.closing = False
        self.followers = 0
        self._begin()

    def _begin(self) -> None:
        """What belongs to one event loop; mounted, there may be one after the other."""
        self._asked: dict[_Key, _Asked] = {}
        self._readers = asyncio.Semaphore(READERS)
        self._watcher: asyncio.Task[None] | None = None
        self._changed: asyncio.Future[None] | None = None
        self._runs: tuple[str, asyncio.Task[messages.Runs]] | None = None

    def kept(self, run: str, after: int) -> Page | None:
        """A page lately read."""
        return self._kept.get((run, after))

    @contextlib.contextmanager
    def page(self, run: str, after: int, seen: int) -> "Iterator[asyncio.Future[Page]]":
        """The page at the cursor `after`: done once there is one, or the log is longer than `seen` bytes.

        Shared by all who ask the same, and given up with the last of them. Fails with Failed.
        """
        key = (run, after, seen)
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.create_task(self._read(run, after, seen)))
        asked.waiters += 1
        try:
            yield asked.task
        finally:
            asked.waiters -= 1
            if not asked.waiters:
                # Most are back at once, after another event.
                asyncio.get_running_loop().call_later(GRACE, self._give_up, key)

    def _give_up(self, key: _Key) -> None:
        asked = self._asked.get(key)
        if asked is not None and not asked.waiters:
            del self._asked[key]
            asked.task.cancel()

    def changed(self) -> "asyncio.Future[None]":
        """Done at the next change of the status, or when the shim ends. Shared: don't cancel it."""
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self._begin()
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    async def runs(self) -> tuple[messages.RunSummary, ...]:
        """The newest runs, newest first; asked for once per newest run. Raises Failed, Unreachable."""
        active = self.status is not None and self.status.run is not None
        newest = f"{self.newest_run()} {active}"
        if self._runs is None or self._runs[0] != newest or _failed(self._runs[1]):
            ask = self._daemon.ask(messages.ListRuns(LOOK_BACK), messages.Runs)
            self._runs = (newest, asyncio.create_task(ask))
        reply = await asyncio.shield(self._runs[1])
        return reply.runs

    def newest_run(self) -> str:
        """Its id as far as the status tells; "" for none."""
        if self.status is None:
            return ""
        active, last = self.status.run, self.status.last_run
        return max(active.id if active else "", last.id if last else "")

    def close(self) -> None:
        """Ends all streams."""
        self.closing = True
        if self._watcher is not None:
            self._watcher.cancel()
        self._announce()

    async def _read(self, run: str, after: int, seen: int) -> Page:
        while True:
            try:
                if after < self._edge.get(run, after + 1):
                    async with self._readers:
                        reply = await self._ask(run, after, after, 0.0)
                    if reply.lines or reply.eof or reply.end > seen:
                        break
                reply = await self._ask(run, after, seen, WAIT)
                if reply.lines or reply.eof or reply.end > seen:
                    break
            except Unreachable:
                await asyncio.sleep(RETRY_EVERY)
        page = Page(log_event(run, reply), reply.next, reply.end, reply.current, reply.eof)
        if reply.next < after:
            # The log was truncated: pages kept are of another one.
            self._forget(run)
        elif reply.lines:
            self._keep(run, after, page if reply.eof else msgspec.structs.replace(page, current=None))
        return page

    async def _ask(self, run: str, after: int, seen: int, wait: float) -> messages.LogLines:
        request = messages.ReadLog(run, after=after, limit=PAGE_LINES, seen=seen, wait=wait)
        return await self._daemon.ask(request, messages.LogLines, wait)

    def _keep(self, run: str, after: int, page: Page) -> None:
        self._edge[run] = max(self._edge.pop(run, 0), page.next)
        if len(self._edge) > KEPT_RUNS:
            self._forget(next(iter(self._edge)))
        before = self._kept.pop((run, after), None)
        self._kept[run, after] = page
        self._kept_bytes += _weight(page) - (_weight(before) if before else 0)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= _weight(self._kept.popitem(last=False)[1])

    def _forget(self, run: str) -> None:
        """Short runs would fill the memory with what nobody asks for any more."""
        self._edge.pop(run, None)
        for key in [key for key in self._kept if key[0] == run]:
            self._kept_bytes -= _weight(self._kept.pop(key))

    async def _watch(self) -> None:
        """Keeps `status` as it is, for as long as the shim lives."""
        revision = -1
        while True:
            wait = WAIT if self.status is not None and self.reachable else 0.0
            try:
                request = messages.Watch(revision, wait)
                status = await self._daemon.ask(request, messages.Status, wait)
            except (DpipedError, Failed):
                revision = -1
                self._publish(None)
                await asyncio.sleep(RETRY_EVERY)
                continue
            revision = status.revision
            self._publish(status)
            # Whoever looks at a page can't read faster; each change goes to every follower.
            await asyncio.sleep(RETRY_EVERY)

    def _publish(self, status: messages.Status | None) -> None:
        if status is None and not self.reachable:
            return
        self.reachable = status is not None
        self.status = status or self.status
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)


class _Asked:
    """A page that is being read, and how many wait for it."""

    def __init__(self, task: "asyncio.Task[Page]") -> None:
        self.task = task
        self.waiters = 0


def _weight(page: Page) -> int:
    """Bytes in memory, about."""
    return len(page.event) + 400


def _failed(task: asyncio.Task[messages.Runs]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def log_event(run: str, reply: messages.LogLines) -> bytes:
    """One event with a `data:` line per line of the log; b"" for none."""
    if not reply.lines:
        return b""
    text = "\ndata: ".join(reply.lines)
    return f"id: {run}:{reply.next}\nevent: log\ndata: {text}\n\n".encode()


def event(name: str, data: Any, id_: str | None = None) -> bytes:
    """An event with one JSON document, which has no line ends."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"

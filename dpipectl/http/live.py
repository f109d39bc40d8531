"""Live events (Server-Sent Events): the log line by line, the current line, state and progress.

Why: a page that polls shows a rewritten text every two seconds, and loses what was printed while it was away.
Here the id of the last event is the run and the cursor in its log, which the browser sends back by itself
when it connects again: nothing is lost or repeated, whichever of browser, shim and daemon was away.

A stream follows one run to its end, says how it ended, and goes on with the next run. Each follower goes at
its own pace; a slow one reads older pages.

    run       the run that the next lines are of: its record          id RUN:CURSOR
    log       lines of the log, one `data:` line each                 id RUN:CURSOR
    grown     instead of `log`, with log=grown: how many lines came   id RUN:CURSOR
    current   the unfinished last line, as JSON text
    state     idle, starting, running, stopping or unreachable; last run; TensorBoard; GPUs
    progress  phase, step, loss and the rest of the active run
    end       the run is over: its record, with outcome and reason    id RUN:CURSOR:end
    alive     nothing else happened for so many seconds

Known gap: a browser opens six connections to one server over HTTP/1.1, so more than five tabs wait.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dpipectl.client import Failed
from dpipectl.http import answers, reading
from dpipectl.http.answers import Problem
from dpipectl.http.api import LARGEST_CURSOR, RUN
from dpipectl.http.daemon import Daemon
from dpipectl.http.feed import RETRY_EVERY, Feed, Page, event, log_event
from dpipectl.http.metrics import Metrics
from dpiped import messages
from dpiped.errors import Unreachable

MEDIA = "text/event-stream; charset=utf-8"
HEADER = "last-event-id"
PARAMETER = "last_event_id"
LOG = "log"
LOGS = ("lines", "grown")
TAIL = 500
LARGEST_TAIL = 10_000
LONGEST = 86400.0
KEEP_ALIVE = 15.0
FOLLOWERS = 1000
TOO_MANY = f"{FOLLOWERS} followers are served already"
_ID = re.compile(rf"(?P<run>{RUN}):(?P<after>[0-9]{{1,18}})(?P<end>:end)?")
_WHOLE_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{7}")
BAD_ID = "takes the id of an event of this stream, RUN:CURSOR"


class State(Struct, frozen=True):
    """What the daemon does, how the last run ended, TensorBoard, and what the GPUs hold."""

    state: str
    run: str | None
    last_run: messages.LastRun | None
    tensorboard: messages.TensorBoard | None
    notices: tuple[str, ...] = ()
    gpus: tuple[messages.Gpu, ...] = ()


class Grown(Struct, frozen=True):
    """So many lines more."""

    lines: int


EVENTS: dict[str, Any] = {
    "run": messages.RunSummary,
    "log": None,
    "grown": Grown,
    "current": str,
    "state": State,
    "progress": messages.ActiveRun,
    "end": messages.RunSummary,
    "alive": float,
}
"""What the data of each event is, as JSON; that of `log` is text."""


class Wanted(Struct, frozen=True):
    """Last lines to begin with, seconds until the end, and whether the follower reads the lines itself."""

    tail: int
    seconds: float | None
    grown: bool


class Place(Struct, frozen=True):
    """Where a stream goes on: after the cursor `after` of `run`; `over`: its end was said already."""

    run: str
    after: int
    over: bool = False


async def events(request: Request) -> Response:
    """The stream. It ends after `seconds`, or never."""
    feed: Feed = request.app.state.feed
    metrics: Metrics = request.app.state.metrics
    place = await _resolved(request, _place(request))
    tail = reading.whole(request, "tail", 0, LARGEST_TAIL, TAIL)
    seconds = reading.seconds(request, "seconds", LONGEST, None)
    if feed.followers >= FOLLOWERS:
        raise Problem(503, TOO_MANY)
    wanted = Wanted(tail or 0, seconds, reading.choice(request, LOG, LOGS, LOGS[0]) == "grown")
    follower = Follower(request.app.state.daemon, feed, place, wanted)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=MEDIA)
    body = _counted(follower.stream(), feed, metrics)
    return StreamingResponse(body, headers=headers, media_type=MEDIA)


def _place(request: Request) -> Place | None:
    """Where to go on: after the event named by the header or the parameter, or from `run` and `after`."""
    header = _named(request.headers.get(HEADER), "header", HEADER)
    parameter = _named(request.query_params.get(PARAMETER), "query", PARAMETER)
    run = reading.text(request, "run", RUN, "the id of a run")
    after = reading.whole(request, "after", 0, LARGEST_CURSOR, 0)
    # What a browser sends by itself when it connects again is newer than what it was first told.
    return header or parameter or (Place(run, after or 0) if run is not None else None)


async def _resolved(request: Request, place: Place | None) -> Place | None:
    """The place in the run that is meant now: `last`, or a part of an id, would mean another some day.

    None for a run that is not there (any more). Raises Problem for a part that fits several, and for what is
    no whole id while the daemon can't say which one it is.
    """
    daemon: Daemon = request.app.state.daemon
    if place is None:
        return None
    try:
        record = await daemon.ask(messages.ShowRun(place.run), messages.RunReply)
    except (Failed, Unreachable) as error:
        if isinstance(error, Failed) and error.error.code == "unknown_run":
            return None
        # A browser that comes back while the daemon is away brings a whole id.
        if _WHOLE_ID.fullmatch(place.run):
            return place
        raise answers.of_error(error) from error
    return Place(record.summary.id, place.after, place.over)


def _named(text: str | None, where: str, name: str) -> Place | None:
    """The place after that event. Raises Problem (422)."""
    if text is None:
        return None
    found = _ID.fullmatch(text)
    if found is None:
        raise answers.unfit([((where, name), f"{name} {BAD_ID}", "value_error")])
    return Place(found["run"], int(found["after"]), over=found["end"] is not None)


class Follower:
    """One stream."""

    def __init__(self, daemon: Daemon, feed: Feed, place: Place | None, wanted: Wanted) -> None:
        self._daemon = daemon
        self._feed = feed
        self._place = place
        self._gone: set[str] = set()
        """Runs that the status names and that are not there."""
        self._tail = wanted.tail
        self._grown = wanted.grown
        self._until = time.monotonic() + wanted.seconds if wanted.seconds is not None else float("inf")
        self._said_state: State | None = None
        self._said_progress: messages.ActiveRun | None = None
        self._current = ""
        self._seen = 0

    async def stream(self) -> AsyncIterator[bytes]:
        """All events until the time is over or the shim ends."""
        yield b"retry: 1000\n\n"
        while not self._is_over():
            changed = self._feed.changed()
            for each in self._status_events():
                yield each
            try:
                found = await self._round(changed)
            except (Unreachable, Failed) as error:
                if isinstance(error, Failed) and error.error.code == "unknown_run":
                    self._forget()
                    continue
                if isinstance(error, Failed) and error.error.code == "run_damaged":
                    # Its log can't be read; its end is told all the same.
                    for each in await self._end_at_last():
                        yield each
                # The daemon is away, or has no time: the same again, a little later.
                await asyncio.wait([changed], timeout=RETRY_EVERY)
                continue
            for each in found:
                yield each

    async def _end_at_last(self) -> list[bytes]:
        """The end of a run whose log can't be read; nothing as long as it is not over."""
        try:
            return await self._end(self._place) if self._place is not None else []
        except (Unreachable, Failed):
            return []

    def _forget(self) -> None:
        """There is no such run (any more): on with the newest that is there."""
        self._gone.add(self._place.run if self._place else self._feed.newest_run())
        self._place = None

    def _is_over(self) -> bool:
        return self._feed.closing or time.monotonic() >= self._until

    async def _round(self, changed: "asyncio.Future[None]") -> list[bytes]:
        """What comes next of the log; nothing if the status changed first. Raises Unreachable, Failed."""
        if self._place is None or self._place.over:
            if found := await self._next_run():
                return found
            return await self._wait({changed})
        place = self._place
        kept = self._feed.kept(place.run, place.after)
        if kept is not None:
            return await self._events_of(kept)
        with self._feed.page(place.run, place.after, max(self._seen, place.after)) as page:
            idle = await self._wait({changed, page})
            return await self._events_of(page.result()) if page.done() else idle

    async def _wait(self, futures: set[asyncio.Future[Any]]) -> list[bytes]:
        """Until one of them is done. If none was for a while, a sign of life."""
        left = max(min(self._until - time.monotonic(), KEEP_ALIVE), 0.0)
        done, _ = await asyncio.wait(futures, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return [] if done or self._is_over() else [event("alive", KEEP_ALIVE)]

    async def _events_of(self, page: Page) -> list[bytes]:
        assert self._place is not None
        found = self._log_event(self._place.run, page.event, page.next)
        self._place = Place(self._place.run, page.next)
        self._seen = page.end
        if page.current is not None:
            found += self._current_event(page.current)
        if page.eof:
            try:
                found += await self._end(self._place)
            except (Unreachable, Failed):
                # What was read is said now, the end once the daemon is there to tell it.
                if not found:
                    raise
        return found

    def _log_event(self, run: str, event_of_lines: bytes, cursor: int) -> list[bytes]:
        if not event_of_lines:
            return []
        if self._grown:
            grown = Grown(event_of_lines.count(b"\ndata: "))
            return [event("grown", grown, f"{run}:{cursor}")]
        return [event_of_lines]

    def _current_event(self, text: str) -> list[bytes]:
        if text == self._current:
            return []
        self._current = text
        return [event("current", text)]

    async def _end(self, place: Place) -> list[bytes]:
        """Raises Unreachable or Failed while the daemon can't tell how the run ended."""
        try:
            record = await self._daemon.ask(messages.ShowRun(place.run), messages.RunReply)
            if not record.ended:
                return []
            summary = record.summary
        except Failed as error:
            if error.error.code != "run_damaged":
                raise
            summary = messages.RunSummary(place.run, "damaged", 0.0, "", reason=error.error.message)
        self._place = Place(place.run, place.after, over=True)
        self._current, self._seen = "", 0
        return [event("end", summary, f"{place.run}:{place.after}:end")]

    async def _next_run(self) -> list[bytes]:
        """On to the oldest run after the one that is over; at first to the newest, with its tail."""
        after = self._place.run if self._place else ""
        if self._feed.newest_run() <= after or self._feed.newest_run() in self._gone:
            return []
        newer = [each for each in await self._feed.runs() if each.id > after and each.id not in self._gone]
        if not newer:
            return []
        chosen = newer[-1] if self._place is not None else newer[0]
        if self._place is not None or not self._tail:
            self._place = Place(chosen.id, 0)
            return [event("run", chosen, f"{chosen.id}:0")]
        request = messages.ReadLog(chosen.id, limit=self._tail)
        reply = await self._daemon.ask(request, messages.LogLines)
        self._place = Place(chosen.id, reply.next)
        return [event("run", chosen), *self._log_event(chosen.id, log_event(chosen.id, reply), reply.next)]

    def _status_events(self) -> list[bytes]:
        status = self._feed.status
        found = []
        state = _state(status, self._feed.reachable)
        if state is not None and state != self._said_state:
            self._said_state = state
            found.append(event("state", state))
        progress = status.run if status and self._feed.reachable else None
        if progress is not None and progress != self._said_progress:
            self._said_progress = progress
            found.append(event("progress", progress))
        return found


def _state(status: messages.Status | None, reachable: bool) -> State | None:
    if not reachable:
        return State("unreachable", None, None, None)
    if status is None:
        return None
    run = status.run.id if status.run else None
    return State(status.state, run, status.last_run, status.tensorboard, status.notices, status.gpus)


async def _counted(stream: AsyncIterator[bytes], feed: Feed, metrics: Metrics) -> AsyncIterator[bytes]:
    feed.followers += 1
    metrics.followers.set(feed.followers)
    try:
        async for each in stream:
            yield each
    finally:
        feed.followers -= 1
        metrics.followers.set(feed.followers)

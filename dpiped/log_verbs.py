"""The requests about a run's log: its lines, its bytes, its loss curve, a search in it.

Why: a run that goes on and one that is over are asked for in the same way, and must give the same lines at
the same cursors, whether they come from memory or from the file.

Known gap: none of the long waits is cancelled when its client vanishes; each ends by its own `wait`.
"""

from pathlib import Path

from dpiped import backwards, history, logs, messages, named, rundir, searching
from dpiped.errors import InvalidInput
from dpiped.live import LiveRun
from dpiped.past_curves import PastCurves
from dpiped.supervisor import Supervisor


class LogVerbs:
    """Answers them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._past_curves = PastCurves()

    async def lines(self, request: messages.ReadLog) -> messages.LogLines:
        """A page of lines. Raises UnknownRun, InvalidInput."""
        if request.before is not None and request.after is not None:
            raise InvalidInput("before is not taken together with after", field="before")
        run = self._run_of(request)
        path = self._path(run)
        seen = request.seen if request.seen is not None else request.after
        if seen is not None:
            await self._supervisor.wait_until(
                lambda: self._grown(run, seen) or self._has_lines(run, request.after), request.wait
            )
        live = named.active(self._supervisor, run)
        if live is None:
            return history.read_log(run, path, request)
        page = _live_page(live, request, path)
        current = live.ring.current if page.next >= live.ring.next else ""
        pid = live.launched.child.pid if live.launched else None
        return messages.LogLines(run, page.lines, current, page.next, live.ring.end, False, pid, page.first)

    async def raw(self, request: messages.ReadRaw) -> messages.RawLog:
        """The log's bytes. Raises UnknownRun."""
        run = named.run_id(self._supervisor, request.run)
        path = self._path(run)
        if request.after is not None:
            await self._supervisor.wait_until(lambda: self._grown(run, request.after or 0), request.wait)
        live = named.active(self._supervisor, run)
        upto, size = (live.ring.next, live.ring.end) if live else logs.extent(path)
        after = request.after
        if after is None:
            after = 0 if request.tail is None else logs.tail_start(path, request.tail, upto)
        data = logs.read_bytes(path, after, size, messages.REPLY_BYTES)
        after = min(after, size) + len(data)
        return messages.RawLog(run, data, after, eof=live is None and after >= size)

    async def series(self, request: messages.ReadSeries) -> messages.Series:
        """The loss curve. Raises UnknownRun."""
        run = named.run_id(self._supervisor, request.run)
        live = named.active(self._supervisor, run)
        curve = live.curve if live else await self._past_curves.of(run, self._path(run))
        part = curve.series(request.points, request.width, request.after)
        return messages.Series(
            run=run,
            width=part.width,
            whole=part.whole,
            points=part.buckets,
            epochs=curve.epochs,
            first=curve.first,
            last=curve.last,
            eof=live is None,
        )

    async def search(self, request: messages.SearchLog) -> messages.Found:
        """The lines with a text. Raises UnknownRun."""
        run = named.run_id(self._supervisor, request.run)
        path = self._path(run)
        live = named.active(self._supervisor, run)
        upto = live.ring.next if live else logs.extent(path)[0]
        hits = await searching.search(path, request.text, request.after, request.limit, upto)
        return messages.Found(run, hits.matches, hits.next, hits.end)

    def _path(self, run: str) -> Path:
        return self._supervisor.runs / run / rundir.LOG

    def _grown(self, run: str, seen: int) -> bool:
        live = named.active(self._supervisor, run)
        return live is None or live.ring.end > seen

    def _has_lines(self, run: str, after: int | None) -> bool:
        """A follower that is behind must not wait for the log to grow."""
        live = named.active(self._supervisor, run)
        return live is not None and after is not None and live.ring.next > after

    def _run_of(self, request: messages.ReadLog) -> str:
        if request.pid is None:
            return named.run_id(self._supervisor, request.run)
        live = self._supervisor.live
        if live is not None and live.launched is not None and live.launched.child.pid == request.pid:
            return live.id
        return history.by_pid(self._supervisor.runs, request.pid)


def _live_page(live: LiveRun, request: messages.ReadLog, path: Path) -> logs.Page:
    """From the ring if it reaches back so far, else from the file, never past what the ring knows."""
    ring, limit, most = live.ring, request.limit, messages.REPLY_BYTES
    if request.before is not None:
        before = min(request.before, ring.next)
        return ring.page_before(before, limit, most) or backwards.lines_before(path, before, limit, most)
    after = request.after
    if after is None:
        after = ring.tail_start(limit)
        if after is None:
            after = logs.tail_start(path, limit, ring.next)
    if after >= ring.next:
        return logs.Page((), after, after)
    return ring.page(after, limit, most) or logs.read_lines(path, after, limit, ring.next, most)

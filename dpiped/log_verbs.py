"""The requests about a run's log: its lines, its bytes, its loss curve, a search in it.

Why: a run that goes on and one that is over are asked for in the same way, and must give the same lines at
the same cursors, whether they come from memory or from the file.

A cursor behind the end is of a log that was truncated since: what follows it is all that is there now.

Only what is small is read in the event loop: the page of a log in memory, or of a short file.

Known gap: none of the long waits is cancelled when its client vanishes; each ends by its own `wait`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from dpiped import history, logfile, logs, messages, named, rundir, searching
from dpiped.errors import InvalidInput, RunDamaged
from dpiped.supervisor import Supervisor

_P = ParamSpec("_P")
_R = TypeVar("_R")
SMALL = 128 << 10
"""Bytes of a log that is read at once: a thread would take longer than that."""


class LogVerbs:
    """Answers them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def lines(self, request: messages.ReadLog) -> messages.LogLines:
        """A page of lines. Raises UnknownRun, InvalidInput, RunDamaged."""
        if request.before is not None and request.after is not None:
            raise InvalidInput("before is not taken together with after", field="before")
        run = self._run_of(request)
        self._path(run)
        seen = request.seen if request.seen is not None else request.after
        if seen is not None:
            await self._supervisor.changes.poll_until(
                lambda: self._grown(run, seen) or self._has_lines(run, request.after), request.wait
            )
        live, path = named.active(self._supervisor, run), self._path(run)
        if live is None:
            return await self._read(path, history.read_log, run, path, request)
        if request.after is not None and request.after > live.ring.end:
            request = msgspec.structs.replace(request, after=0)
        upto = live.ring.next
        page = _in_memory(live.ring, request)
        if page is None:
            page = await self._read(path, history.read_page, path, request, upto)
        current = live.ring.current if page.next >= live.ring.next else ""
        pid = live.launched.child.pid if live.launched else None
        return messages.LogLines(run, page.lines, current, page.next, live.ring.end, False, pid, page.first)

    async def raw(self, request: messages.ReadRaw) -> messages.RawLog:
        """The log's bytes. Raises UnknownRun, RunDamaged."""
        run = named.run_id(self._supervisor, request.run)
        self._path(run)
        if request.after is not None:
            after = request.after
            await self._supervisor.changes.poll_until(
                lambda: self._grown(run, after) or self._has_lines(run, after), request.wait
            )
        live, path = named.active(self._supervisor, run), self._path(run)
        known = (live.ring.next, live.ring.end) if live else None
        return await self._read(path, _raw, run, path, request, known)

    async def series(self, request: messages.ReadSeries) -> messages.Series:
        """The loss curve. Raises UnknownRun, RunDamaged."""
        run = named.run_id(self._supervisor, request.run)
        live = named.active(self._supervisor, run)
        with _readable():
            curve = live.curve if live else await self._supervisor.past_curves.of(run, self._path(run))
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
        """The lines with a text. Raises UnknownRun, RunDamaged."""
        run = named.run_id(self._supervisor, request.run)
        path = self._path(run)
        live = named.active(self._supervisor, run)
        upto = live.ring.next if live else (await self._read(path, logfile.extent, path))[0]
        aside = self._supervisor.aside
        with _readable():
            hits = await searching.search(path, request.text, request.after, request.limit, upto, aside)
        return messages.Found(run, hits.matches, hits.next, hits.end)

    async def _read(self, path: Path, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """What `work` makes of the log. Raises RunDamaged if that can't be read."""
        with _readable():
            if logfile.size(path) <= SMALL:
                return work(*args, **kwargs)
            return await self._supervisor.aside.do(work, *args, **kwargs)

    def _path(self, run: str) -> Path:
        """Where its log can be read now. Raises RunDamaged for one that was deleted."""
        live = named.active(self._supervisor, run)
        if live is not None:
            return live.log
        path = self._supervisor.runs / run / rundir.LOG
        if not os.path.lexists(path) and rundir.was_launched(path.parent):
            raise RunDamaged(f"{rundir.LOG} is gone: somebody deleted it", field=rundir.LOG)
        return path

    def _grown(self, run: str, seen: int) -> bool:
        live = named.active(self._supervisor, run)
        return live is None or live.ring.end > seen

    def _has_lines(self, run: str, after: int | None) -> bool:
        """A follower that is behind must not wait for the log to grow, nor one whose log was truncated."""
        live = named.active(self._supervisor, run)
        if live is None or after is None:
            return False
        return live.ring.next > after or (live.ring.next > 0 and live.ring.end < after)

    def _run_of(self, request: messages.ReadLog) -> str:
        if request.pid is None:
            return named.run_id(self._supervisor, request.run)
        live = self._supervisor.live
        if live is not None and live.launched is not None and live.launched.child.pid == request.pid:
            return live.id
        return history.by_pid(self._supervisor.runs, request.pid)


def _in_memory(ring: logs.Ring, request: messages.ReadLog) -> logs.Page | None:
    """None if the ring does not reach back so far."""
    limit, most = request.limit, messages.REPLY_BYTES
    if request.before is not None:
        return ring.page_before(min(request.before, ring.next), limit, most)
    after = request.after if request.after is not None else ring.tail_start(limit)
    if after is not None and after >= ring.next:
        return logs.Page((), after, after)
    return ring.page(after, limit, most) if after is not None else None


def _raw(run: str, path: Path, request: messages.ReadRaw, known: tuple[int, int] | None) -> messages.RawLog:
    """`known` is the extent of a log that grows."""
    upto, size = known or logfile.extent(path)
    after = 0 if request.after is not None and request.after > size else request.after
    if after is None:
        after = 0 if request.tail is None else logfile.tail_start(path, request.tail, upto)
    data = logfile.read_bytes(path, after, size, messages.REPLY_BYTES)
    after += len(data)
    return messages.RawLog(run, data, after, eof=known is None and after >= size)


@contextmanager
def _readable() -> Iterator[None]:
    """Raises RunDamaged for a log that is no file, or that vanishes while it is read."""
    try:
        yield
    except OSError as error:
        raise RunDamaged(f"{rundir.LOG} can't be read: {error.strerror}", field=rundir.LOG) from error

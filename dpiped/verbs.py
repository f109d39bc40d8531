"""One handler per request: from the typed message to the typed reply.

Why: the socket (server.py) knows nothing of trainings, and the supervisor nothing of messages' wire
form. Here the two meet, one short method per verb of the protocol.

Known gap: none of the long waits is cancelled when its client vanishes; each ends by its own `wait`.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import dpiped
from dpiped import (
    form_paths,
    history,
    lifecycle,
    logs,
    messages,
    resume,
    rundir,
    saving,
    sources,
    validation,
    view,
)
from dpiped.ending import REQUESTED
from dpiped.errors import DpipedError, InvalidForm, InvalidInput, Refused
from dpiped.live import LiveRun
from dpiped.messages import AnyReply, AnyRequest
from dpiped.sources import Wanted
from dpiped.supervisor import NOTHING_RUNNING, Supervisor
from dpiped.tensorboard import TensorBoard

SAVE_TICK = 0.1


class Verbs:
    """Answers requests. `on_reload` is called when a client asks for a reload."""

    def __init__(
        self, supervisor: Supervisor, tensorboard: TensorBoard, on_reload: Callable[[], None]
    ) -> None:
        self._supervisor = supervisor
        self._settings = supervisor.settings
        self._tensorboard = tensorboard
        self._on_reload = on_reload
        self._started_at = time.time()

    async def answer(self, request: AnyRequest) -> AnyReply:
        """The reply. Failures that a user can meet become `Error`; others are raised."""
        try:
            return await self._answer(request)
        except DpipedError as error:
            wrong = error.fields if isinstance(error, InvalidForm) else ()
            fields = tuple(messages.FieldError(field, text) for field, text in wrong)
            return messages.Error(error.code, error.message, error.field, error.hint, fields)
        except lifecycle.NotAllowed as error:
            return messages.Error("refused", f"not possible while {type(error.state).__name__.lower()}")

    async def _answer(self, request: AnyRequest) -> AnyReply:
        match request:
            case messages.Hello():
                return self._hello(request)
            case messages.GetStatus():
                return self._status()
            case messages.Watch():
                return await self._watch(request)
            case messages.Start():
                return await self._supervisor.start(_wanted(request))
            case messages.StartForm():
                return await self._start_form(request)
            case messages.Validate():
                return self._validate(request)
            case messages.FindMissing():
                return messages.Missing(form_paths.missing(self._settings, request.paths))
            case messages.Preview():
                return self._preview(request)
            case messages.GetDefaults():
                return form_paths.defaults(self._settings)
            case messages.Resume():
                return await self._resume(request)
            case messages.Stop():
                if request.run is not None and self._live(request.run) is None:
                    raise Refused(NOTHING_RUNNING)
                return await self._supervisor.stop(request.how, request.timeout, REQUESTED)
            case messages.Save():
                return await self._save(request)
            case messages.WaitRun():
                return await self._wait(request)
            case messages.ListRuns():
                return self._runs(request)
            case messages.ShowRun():
                return self._detail(history.resolve(self._supervisor.runs, request.run))
            case messages.ReadLog():
                return await self._log(request)
            case messages.ReadRaw():
                return await self._raw(request)
            case messages.Reload():
                self._on_reload()
                return messages.Reloading(os.getpid(), self._started_at)

    def _hello(self, request: messages.Hello) -> AnyReply:
        if request.protocol != messages.PROTOCOL:
            raise InvalidInput(
                f"this daemon speaks protocol {messages.PROTOCOL}, not {request.protocol}",
                field="protocol",
                hint="`dpipectl reload` after an upgrade, or use the client of the same version",
            )
        return messages.Welcome(dpiped.__version__, messages.PROTOCOL, os.getpid(), self._started_at)

    def _status(self) -> messages.Status:
        return view.status(self._supervisor, self._tensorboard.view)

    async def _watch(self, request: messages.Watch) -> AnyReply:
        await self._supervisor.wait_until(lambda: self._supervisor.revision != request.after, request.wait)
        return self._status()

    async def _start_form(self, request: messages.StartForm) -> AnyReply:
        wanted = _wanted(request)
        # What is wrong with the form comes before what is wrong with the moment.
        sources.check_form(self._settings, wanted)
        self._supervisor.require_idle()
        return await self._supervisor.start(wanted)

    def _validate(self, request: messages.Validate) -> AnyReply:
        if (request.form is None) == (request.config is None):
            raise InvalidInput("validate takes a form or a config, one of them", field="form")
        return messages.Validated(validation.findings(self._settings, _wanted(request)))

    def _preview(self, request: messages.Preview) -> AnyReply:
        files = sources.make_files(self._settings, Wanted(form=request.form))
        paths = str(files.training_path), str(files.dataset_path)
        return messages.Previewed(paths[0], files.training_toml, paths[1], files.dataset_toml)

    async def _resume(self, request: messages.Resume) -> AnyReply:
        self._supervisor.require_idle()
        return await self._supervisor.start(resume.plan(self._supervisor.runs, request))

    async def _save(self, request: messages.Save) -> AnyReply:
        live = self._supervisor.live
        if live is None:
            raise Refused(NOTHING_RUNNING)
        token = request.after or saving.request(live)
        until = time.monotonic() + request.wait
        while (checkpoint := saving.done_since(self._supervisor.live, token)) is None:
            if time.monotonic() >= until:
                break
            await asyncio.sleep(SAVE_TICK)
        return messages.Saved(live.id, checkpoint, token)

    async def _wait(self, request: messages.WaitRun) -> AnyReply:
        run = self._run_id(request.run)
        await self._supervisor.wait_until(lambda: self._live(run) is None, request.wait)
        return self._detail(run)

    def _runs(self, request: messages.ListRuns) -> AnyReply:
        runs = self._supervisor.runs
        names = rundir.names(runs)[: request.limit]
        found = (history.summary(runs, name, active=self._live(name) is not None) for name in names)
        return messages.Runs(tuple(found))

    def _detail(self, run: str) -> messages.RunReply:
        return history.detail(self._supervisor.runs, run, active=self._live(run) is not None)

    async def _log(self, request: messages.ReadLog) -> AnyReply:
        run = self._log_run(request)
        path = self._supervisor.runs / run / rundir.LOG
        seen = request.seen if request.seen is not None else request.after
        if seen is not None:
            await self._supervisor.wait_until(
                lambda: self._grown(run, seen) or self._has_lines(run, request.after), request.wait
            )
        live = self._live(run)
        if live is None:
            return history.read_log(run, path, request)
        page = self._live_page(live, request, path)
        current = live.ring.current if page.next >= live.ring.next else ""
        pid = live.launched.child.pid if live.launched else None
        return messages.LogLines(run, page.lines, current, page.next, live.ring.end, False, pid)

    async def _raw(self, request: messages.ReadRaw) -> AnyReply:
        run = self._run_id(request.run)
        path = self._supervisor.runs / run / rundir.LOG
        if request.after is not None:
            await self._supervisor.wait_until(lambda: self._grown(run, request.after or 0), request.wait)
        live = self._live(run)
        upto, size = (live.ring.next, live.ring.end) if live else logs.extent(path)
        after = request.after
        if after is None:
            after = 0 if request.tail is None else logs.tail_start(path, request.tail, upto)
        data = logs.read_bytes(path, after, size, messages.REPLY_BYTES)
        after = min(after, size) + len(data)
        return messages.RawLog(run, data, after, eof=live is None and after >= size)

    def _live_page(self, live: LiveRun, request: messages.ReadLog, path: Path) -> logs.Page:
        """From the ring if it reaches back so far, else from the file, never past what the ring knows."""
        ring = live.ring
        after = request.after
        if after is None:
            after = ring.tail_start(request.limit)
            if after is None:
                after = logs.tail_start(path, request.limit, ring.next)
        if after >= ring.next:
            return logs.Page((), after)
        page = ring.page(after, request.limit, messages.REPLY_BYTES)
        return page or logs.read_lines(path, after, request.limit, ring.next, messages.REPLY_BYTES)

    def _grown(self, run: str, seen: int) -> bool:
        live = self._live(run)
        return live is None or live.ring.end > seen

    def _has_lines(self, run: str, after: int | None) -> bool:
        """A follower that is behind must not wait for the log to grow."""
        live = self._live(run)
        return live is not None and after is not None and live.ring.next > after

    def _live(self, run: str) -> LiveRun | None:
        live = self._supervisor.live
        return live if live is not None and live.id == run else None

    def _log_run(self, request: messages.ReadLog) -> str:
        if request.pid is None:
            return self._run_id(request.run)
        live = self._supervisor.live
        if live is not None and live.launched is not None and live.launched.child.pid == request.pid:
            return live.id
        return history.by_pid(self._supervisor.runs, request.pid)

    def _run_id(self, name: str | None) -> str:
        """The run meant: by name, or the active one, or the last one. Raises UnknownRun."""
        if name is None and self._supervisor.live is not None:
            return self._supervisor.live.id
        return history.resolve(self._supervisor.runs, name or history.LAST)


def _wanted(request: messages.Start | messages.StartForm | messages.Validate) -> Wanted:
    config = None if isinstance(request, messages.StartForm) or request.config is None else request.config
    return Wanted(
        config=Path(config) if config else None,
        form=None if isinstance(request, messages.Start) else request.form,
        num_gpus=None if isinstance(request, messages.StartForm) else request.num_gpus,
        args=request.args,
        env=dict(request.env),
    )

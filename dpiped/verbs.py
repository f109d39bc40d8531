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
from typing import NamedTuple

import msgspec

import dpiped
from dpiped import (
    form_paths,
    history,
    lifecycle,
    messages,
    named,
    resume,
    rundir,
    saving,
    snapshots,
    sources,
    validation,
    view,
)
from dpiped.ending import REQUESTED
from dpiped.errors import DpipedError, InvalidForm, InvalidInput, Refused
from dpiped.gpus import Gpus
from dpiped.log_verbs import LogVerbs
from dpiped.messages import AnyReply, AnyRequest
from dpiped.sources import Wanted
from dpiped.supervisor import NOTHING_RUNNING, Supervisor
from dpiped.tensorboard import TensorBoard

SAVE_TICK = 0.1


class Wishes(NamedTuple):
    """What is called when a client wants something of the daemon itself. Each may raise Refused."""

    reload: Callable[[], None]
    hand_over: Callable[[], None]


class Verbs:
    """Answers requests."""

    def __init__(self, supervisor: Supervisor, tensorboard: TensorBoard, gpus: Gpus, wishes: Wishes) -> None:
        self._supervisor = supervisor
        self._settings = supervisor.settings
        self._tensorboard = tensorboard
        self._gpus = gpus
        self._wishes = wishes
        self._logs = LogVerbs(supervisor)
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
                return await self._validate(request)
            case messages.FindMissing():
                return messages.Missing(form_paths.missing(self._settings, request.paths))
            case messages.Preview():
                return self._preview(request)
            case messages.GetDefaults():
                return form_paths.defaults(self._settings)
            case messages.Resume():
                return await self._resume(request)
            case messages.Stop():
                if request.run is not None and named.active(self._supervisor, request.run) is None:
                    raise Refused(NOTHING_RUNNING)
                return await self._supervisor.stop(request.how, request.timeout, REQUESTED)
            case messages.Save():
                return await self._save(request)
            case messages.WaitRun():
                return await self._wait(request)
            case messages.ListRuns():
                return self._runs(request)
            case messages.ShowRun():
                return await self._detail(history.resolve(self._supervisor.runs, request.run))
            case messages.ReadLog():
                return await self._logs.lines(request)
            case messages.ReadRaw():
                return await self._logs.raw(request)
            case messages.ReadSeries():
                return await self._logs.series(request)
            case messages.SearchLog():
                return await self._logs.search(request)
            case messages.ReadConfig():
                return await self._config(request)
            case messages.Compare():
                return await self._compare(request)
            case messages.Reload():
                self._wishes.reload()
                return messages.Reloading(os.getpid(), self._started_at)
            case messages.TakeOver():
                self._wishes.hand_over()
                return messages.HandingOver(os.getpid())

    def _hello(self, request: messages.Hello) -> AnyReply:
        if request.protocol != messages.PROTOCOL:
            raise InvalidInput(
                f"this daemon speaks protocol {messages.PROTOCOL}, not {request.protocol}",
                field="protocol",
                hint="`dpipectl reload` after an upgrade, or use the client of the same version",
            )
        return messages.Welcome(dpiped.__version__, messages.PROTOCOL, os.getpid(), self._started_at)

    def _status(self) -> messages.Status:
        return view.status(self._supervisor, self._tensorboard.view, self._gpus.view)

    async def _watch(self, request: messages.Watch) -> AnyReply:
        await self._supervisor.changes.poll_until(
            lambda: self._supervisor.changes.revision != request.after, request.wait
        )
        return self._status()

    async def _start_form(self, request: messages.StartForm) -> AnyReply:
        wanted = _wanted(request)
        # What is wrong with the form comes before what is wrong with the moment.
        sources.check_form(self._settings, wanted)
        self._supervisor.require_idle()
        return await self._supervisor.start(wanted)

    async def _validate(self, request: messages.Validate) -> AnyReply:
        if request.resume is not None:
            return await self._validate_resume(request, request.resume)
        if (request.form is None) == (request.config is None):
            raise InvalidInput("validate takes a form or a config, one of them", field="form")
        # A folder to resume from may lie on a slow disk.
        found = await asyncio.to_thread(validation.findings, self._settings, _wanted(request))
        return messages.Validated(found)

    async def _validate_resume(self, request: messages.Validate, run: str) -> AnyReply:
        if request.form is not None:
            raise InvalidInput("a resume is checked with a config, not with a form", field="form")
        if self._on(name := history.resolve(self._supervisor.runs, run)):
            hint = "it can be resumed once it has ended: dpipectl stop --save"
            return messages.Validated((messages.Finding("run", f"run {name} is going on", hint),))
        wanted = messages.Resume(run, request.config, request.num_gpus, request.args, request.env)
        return await asyncio.to_thread(validation.of_resume, self._settings, self._supervisor.runs, wanted)

    def _preview(self, request: messages.Preview) -> AnyReply:
        files = sources.make_files(self._settings, Wanted(form=request.form))
        paths = str(files.training_path), str(files.dataset_path)
        return messages.Previewed(paths[0], files.training_toml, paths[1], files.dataset_toml)

    async def _resume(self, request: messages.Resume) -> AnyReply:
        self._supervisor.require_idle()
        # The files of a checkpoint may lie on a slow disk.
        wanted = await asyncio.to_thread(resume.plan, self._supervisor.runs, request)
        return await self._supervisor.start(wanted)

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
        run = named.run_id(self._supervisor, request.run)
        await self._supervisor.changes.poll_until(
            lambda: named.active(self._supervisor, run) is None, request.wait
        )
        return await self._detail(run)

    async def _config(self, request: messages.ReadConfig) -> AnyReply:
        run = named.run_id(self._supervisor, request.run)
        # With a folder for each of thousands of pictures, parsing takes a tenth of a second.
        return await asyncio.to_thread(snapshots.texts, self._supervisor.runs, run)

    async def _compare(self, request: messages.Compare) -> AnyReply:
        run = named.run_id(self._supervisor, request.run)
        runs, form = self._supervisor.runs, request.form
        return await asyncio.to_thread(snapshots.compare, self._settings, runs, run, form)

    def _runs(self, request: messages.ListRuns) -> AnyReply:
        runs = self._supervisor.runs
        names = rundir.names(runs)[: request.limit]
        return messages.Runs(
            tuple(self._figures(history.summary(runs, name, self._on(name))) for name in names)
        )

    async def _detail(self, run: str) -> messages.RunReply:
        # The line that says what was wrong is looked for in megabytes of a log.
        found = await asyncio.to_thread(history.detail, self._supervisor.runs, run, self._on(run))
        return msgspec.structs.replace(found, summary=self._figures(found.summary))

    def _on(self, run: str) -> bool:
        return named.active(self._supervisor, run) is not None

    def _figures(self, summary: messages.RunSummary) -> messages.RunSummary:
        """With those of now, for a run that goes on: they are recorded when it ends."""
        live = named.active(self._supervisor, summary.id)
        if live is None or summary.ended_at is not None:
            return summary
        said = live.progress.snapshot()
        return msgspec.structs.replace(summary, step=said.step, epoch=said.epoch, loss=said.loss)


def _wanted(request: messages.Start | messages.StartForm | messages.Validate) -> Wanted:
    config = None if isinstance(request, messages.StartForm) or request.config is None else request.config
    return Wanted(
        config=Path(config) if config else None,
        form=None if isinstance(request, messages.Start) else request.form,
        num_gpus=None if isinstance(request, messages.StartForm) else request.num_gpus,
        args=request.args,
        env=dict(request.env),
    )

"""What a better web page needs beyond ControlPilot's four calls.

Why: a page that is to be right after a crash, a reload or a restart must be able to ask for everything anew:
what is going on, what was, and every line of every log. Each of these is one request to the daemon.

Known gap: one request at a time for a log page; following is `live.py`'s.
"""

import re
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dpipectl import forms
from dpipectl.client import Failed
from dpipectl.http import answers, asking, reading
from dpipectl.http.answers import Problem, document
from dpipectl.http.daemon import Daemon
from dpiped import messages
from dpiped.errors import DpipedError, InvalidForm

RUN = r"[A-Za-z0-9._-]{1,128}"
LARGEST_CURSOR = 1 << 60
LARGEST_PAGE = 10_000
SERIES_WAIT = 120.0
"""Seconds that the daemon may take to read the whole log of a past run."""


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which run to go on from (default: the last one), on how many GPUs (default: as many as it had).

    `wandb_api_key` is needed again by a run that had one, unless the daemon has WANDB_API_KEY.
    """

    run: messages.RunName | None = None
    num_gpus: messages.Gpus | None = None
    wandb_api_key: messages.Key | None = None

    def __repr__(self) -> str:
        return "Resume(...)"


class Resumed(msgspec.Struct, frozen=True):
    """The new run, and the run and the checkpoint that it goes on from.

    `warnings` say what was found wrong and done about it; `changes` what is different in the config.
    """

    status: str
    run: str
    pid: int
    resumed_from: str | None
    checkpoint: str | None = None
    warnings: tuple[str, ...] = ()
    changes: tuple[messages.Difference, ...] = ()


class Checked(msgspec.Struct, frozen=True):
    """`findings` are all that is wrong with the form, each at its field."""

    ok: bool
    findings: tuple[messages.FieldError, ...]


class Health(msgspec.Struct, frozen=True):
    """`version` is the daemon's."""

    status: str
    version: str


async def status(request: Request) -> Response:
    """What is going on; with `after` and `wait`, as soon as the revision is another one."""
    after = reading.whole(request, "after", -1, LARGEST_CURSOR, None)
    wait = reading.seconds(request, "wait", messages.LONGEST_WAIT, 0.0) or 0.0
    if after is None:
        return document(await asking.ask(request, messages.GetStatus(), messages.Status))
    return document(await asking.ask(request, messages.Watch(after, wait), messages.Status, wait))


async def health(request: Request) -> Response:
    """200 while the daemon answers, else 503."""
    try:
        hello = await asking.daemon(request).ask(messages.Hello(), messages.Welcome)
    except (DpipedError, Failed) as error:
        raise Problem(503, "dpiped does not answer") from error
    return document(Health("ok", hello.version))


async def defaults(request: Request) -> Response:
    """A form with every default filled in, and where its paths may lie."""
    return document(await asking.ask(request, messages.GetDefaults(), messages.Defaults))


async def preview(request: Request) -> Response:
    """The two TOML texts that a form gives. Nothing is written."""
    form, sent = await asking.form(request)
    return document(await asking.ask(request, messages.Preview(form), messages.Previewed, sent=sent))


async def check(request: Request) -> Response:
    """Everything that is wrong with a form, also what a start would find too late."""
    data, sent = await reading.body(request)
    try:
        form = forms.convert(data, ignore_unknown=True)
    except InvalidForm as error:
        # What has no value of its type can't be looked at any further.
        return document(Checked(False, tuple(messages.FieldError(*each) for each in error.fields)))
    reply = await asking.ask(
        request, messages.Validate(form=form), messages.Validated, asking.LAUNCH_WAIT, sent
    )
    findings = tuple(
        messages.FieldError(each.field, answers.without_paths(each.message, sent)) for each in reply.findings
    )
    return document(Checked(not findings, findings))


async def save(request: Request) -> Response:
    """A checkpoint now; 202 if it is not written within `wait` seconds."""
    wait = reading.seconds(request, "wait", messages.LONGEST_WAIT, 30.0) or 0.0
    saved = await asking.ask(request, messages.Save(wait=wait), messages.Saved, wait)
    return document(saved, 200 if saved.checkpoint else 202)


async def resume(request: Request) -> Response:
    """A new run that goes on from another one's newest whole checkpoint."""
    data, sent = await reading.body(request)
    try:
        wanted = msgspec.convert(data | {name: forms.whole(data[name]) for name in data}, Resume)
    except msgspec.ValidationError as error:
        said = str(error).rstrip("`")
        field = said.rpartition("`$.")[2] if "`$." in said else said.partition("field `")[2]
        takes = {
            "run": "takes the name of a run",
            "num_gpus": "takes a whole number from 1 to 64",
            "wandb_api_key": "takes your key",
        }
        raise answers.of_fields([(field, takes.get(field, "is no field of a resume"))]) from error
    env = {"WANDB_API_KEY": wanted.wandb_api_key} if wanted.wandb_api_key else {}
    asked = messages.Resume(wanted.run, num_gpus=wanted.num_gpus, env=env)
    reply = await asking.ask(request, asked, messages.Started, asking.LAUNCH_WAIT, sent)
    began = reply.resumed_from, reply.checkpoint
    return document(Resumed("started", reply.run, reply.pid, *began, reply.warnings, reply.changes))


async def runs(request: Request) -> Response:
    """The newest runs, newest first."""
    limit = reading.whole(request, "limit", 1, 10_000, 100)
    assert limit is not None
    return document(await asking.ask(request, messages.ListRuns(limit), messages.Runs))


async def run(request: Request) -> Response:
    """All that is known of one run."""
    return document(await asking.ask(request, messages.ShowRun(_run(request)), messages.RunReply))


async def lines(request: Request) -> Response:
    """Lines of a run's log after a cursor, or before one; without one, the last `limit` lines."""
    after = reading.whole(request, "after", 0, LARGEST_CURSOR, None)
    before = reading.whole(request, "before", 0, LARGEST_CURSOR, None)
    if after is not None and before is not None:
        raise answers.unfit([(("query", "before"), "before is not taken together with after", "value_error")])
    limit = reading.whole(request, "limit", 1, LARGEST_PAGE, 500)
    assert limit is not None
    asked = messages.ReadLog(_run(request), after=after, before=before, limit=limit)
    return document(await asking.ask(request, asked, messages.LogLines))


async def series(request: Request) -> Response:
    """The loss curve, or what is new of it."""
    points = reading.whole(request, "points", 10, 5000, 1000)
    width = reading.whole(request, "width", 0, LARGEST_CURSOR, None)
    after = reading.whole(request, "after", 0, LARGEST_CURSOR, None)
    assert points is not None
    asked = messages.ReadSeries(_run(request), points, width, after)
    return document(await asking.ask(request, asked, messages.Series, SERIES_WAIT))


async def search(request: Request) -> Response:
    """Which lines of a run's log have a text in them."""
    text = reading.text(request, "text", r"(?s).{1,200}", "a text of 1 to 200 characters")
    if text is None:
        raise answers.unfit([(("query", "text"), "text is required", "missing")])
    after = reading.whole(request, "after", 0, LARGEST_CURSOR, 0)
    limit = reading.whole(request, "limit", 1, 1000, 500)
    assert after is not None and limit is not None
    asked = messages.SearchLog(_run(request), text, after, limit)
    return document(await asking.ask(request, asked, messages.Found))


async def config(request: Request) -> Response:
    """The two files that a run was launched with."""
    return document(await asking.ask(request, messages.ReadConfig(_run(request)), messages.ConfigTexts))


async def compare(request: Request) -> Response:
    """What would be different if a form were started now."""
    form, sent = await asking.form(request)
    asked = messages.Compare(_run(request), form)
    return document(await asking.ask(request, asked, messages.Compared, sent=sent))


async def log(request: Request) -> Response:
    """The whole log as it was printed, as a file."""
    first = await asking.ask(request, messages.ReadRaw(_run(request), after=0), messages.RawLog)
    headers = {
        "content-disposition": f'attachment; filename="{first.run}.log"',
        "x-content-type-options": "nosniff",
    }
    body = _bytes(asking.daemon(request), first)
    return StreamingResponse(body, headers=headers, media_type="text/plain; charset=utf-8")


async def _bytes(daemon: Daemon, page: messages.RawLog) -> AsyncIterator[bytes]:
    """To the end of what there is now. A daemon that goes away breaks the download off, which shows."""
    while page.data:
        yield page.data
        page = await daemon.ask(messages.ReadRaw(page.run, after=page.next), messages.RawLog)


def _run(request: Request) -> str:
    """The name in the path. Raises Problem (404) for what can't be one."""
    name: str = request.path_params["run"]
    if not re.fullmatch(RUN, name):
        raise Problem(404, "there is no run of that name")
    return name

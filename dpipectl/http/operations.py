"""Every operation, once: where it is, what it takes, what it answers. Routes and document are made of it.

Why: a document that is written beside the code describes last month's server. Here nothing is served that is
not described, and nothing is described that is not served; the schemas are those of the message types.

Known gap: OpenAPI 3.1 has no place for the schema of one event of a stream; it stands as that of the content.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from dpipectl.http import api, controlpilot, form_file, form_schema, live, login, metrics
from dpipectl.http.controlpilot import LARGEST_LIMIT, LARGEST_PID, LIMIT, STOP_LONGEST, STOP_WAIT
from dpiped import messages

JSON = "application/json"


class Parameter(Struct, frozen=True):
    """`schema` is JSON Schema."""

    name: str
    text: str
    schema: dict[str, Any]
    where: Literal["query", "path", "header"] = "query"
    required: bool = False


class Answer(Struct, frozen=True):
    """`type` is a message type, None for an answer without a body, or for one that is no JSON.

    `events` are the types of a stream's events by name; None for one that is no JSON.
    """

    text: str
    type: Any = None
    media: str = JSON
    events: dict[str, Any] = {}


class Operation(Struct, frozen=True):
    """`errors` are the statuses that it answers with beside those that all have. `body` is a type."""

    method: Literal["GET", "POST"]
    path: str
    name: str
    handler: Callable[[Request], Awaitable[Response]]
    text: str
    answers: dict[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    errors: tuple[int, ...] = ()
    open: bool = False
    """Needs no token."""


class Models(Struct, frozen=True):
    """The four model paths. Other fields are ignored."""

    transformer_path: str
    vae_path: str
    llm_path: str
    clip_path: str


class Validation(Struct, frozen=True):
    """`ok`: nothing is missing."""

    ok: bool
    missing: tuple[messages.MissingPath, ...]


class StartAnswer(Struct, frozen=True):
    """`pid` is the launcher's, `config` the training TOML that was written."""

    status: Literal["started"]
    pid: int
    config: str


class StopAnswer(Struct, frozen=True):
    """stopped: no process is left; noop: nothing was to be stopped."""

    status: Literal["stopped", "stopping", "noop"]
    pid: int | None = None
    detail: str | None = None


class Logs(Struct, frozen=True):
    """`lines` oldest first, the unfinished last line included."""

    pid: int | None
    lines: tuple[str, ...]


class Token(Struct, frozen=True):
    """What was set as DIFFPIPE_HTTP_TOKEN."""

    token: str


def _whole(low: int, high: int, default: int | None = None) -> dict[str, Any]:
    given = {} if default is None else {"default": default}
    return {"type": "integer", "minimum": low, "maximum": high} | given


def _seconds(high: float, default: float | None = None) -> dict[str, Any]:
    given = {} if default is None else {"default": default}
    return {"type": "number", "minimum": 0, "maximum": high} | given


EVENT_ID = {
    "type": "string",
    "pattern": rf"^{api.RUN}:[0-9]{{1,18}}(:end)?$",
    "examples": ["20260131-120000-000abcd:4096"],
}
PID = Parameter("pid", "The launcher's pid, as `start` told it.", _whole(-LARGEST_PID, LARGEST_PID))
RUN_PATH = Parameter(
    "run",
    "A run's id, a part of it that fits one run only, or `last`.",
    {"type": "string", "pattern": f"^{api.RUN}$", "examples": ["last"]},
    "path",
)
CURSOR = Parameter(
    "after",
    "A cursor: a byte offset in the log. One behind its end is of a log that was truncated since, which is "
    "read from its start.",
    _whole(0, api.LARGEST_CURSOR),
)

CONTROLPILOT = (
    Operation(
        "GET",
        "/train/logs",
        "logs",
        controlpilot.logs,
        "The last lines of the active run, or of the most recent one, or of the run with that pid.",
        {200: Answer("The lines.", Logs)},
        (Parameter("limit", "How many lines at most.", _whole(1, LARGEST_LIMIT, LIMIT)), PID),
        errors=(409, 422),
    ),
    Operation(
        "POST",
        "/train/validate",
        "validate",
        controlpilot.validate,
        "Which of the four model paths lead to nothing. A folder counts as present.",
        {200: Answer("What is missing.", Validation)},
        body=Models,
        errors=(400, 413, 422),
    ),
    Operation(
        "POST",
        "/train/start",
        "start",
        controlpilot.start,
        "Writes dataset_config.toml and training_config.toml to config_dir and starts the training. "
        "Unknown fields are ignored.",
        {200: Answer("It runs.", StartAnswer)},
        body=messages.Form,
        errors=(400, 413, 422, 500),
    ),
    Operation(
        "POST",
        "/train/stop",
        "stop",
        controlpilot.stop,
        "Stops the training: SIGTERM to all its processes, then SIGKILL to what is left.",
        {
            200: Answer("No process of it is left, or there was none.", StopAnswer),
            202: Answer("It is still stopping after `wait` seconds.", StopAnswer),
        },
        (
            PID,
            Parameter(
                "mode",
                "save: a checkpoint first; term: SIGTERM; kill: SIGKILL at once.",
                {"type": "string", "enum": ["save", "term", "kill"], "default": "term"},
            ),
            Parameter("timeout", "Seconds until the next, harder step.", _seconds(86400)),
            Parameter("wait", "Seconds to wait for the end.", _seconds(STOP_LONGEST, STOP_WAIT)),
        ),
        errors=(422,),
    ),
)

MORE = (
    Operation(
        "GET",
        "/status",
        "status",
        api.status,
        "What is going on. With `after`: once the revision is another one, or after `wait` seconds.",
        {200: Answer("The whole picture.", messages.Status)},
        (
            Parameter("after", "The revision known.", _whole(-1, api.LARGEST_CURSOR)),
            Parameter("wait", "Seconds to wait for a change.", _seconds(messages.LONGEST_WAIT, 0.0)),
        ),
        errors=(422,),
    ),
    Operation(
        "GET",
        "/events",
        "events",
        live.events,
        "Server-Sent Events: run, log (or grown), current, state, progress, end. The id of an event is the "
        "run and the cursor in its log; sent back as Last-Event-ID, nothing is lost or repeated.",
        {200: Answer("The stream.", media="text/event-stream", events=live.EVENTS)},
        (
            Parameter(
                live.HEADER,
                "The id of the last event that was received.",
                EVENT_ID,
                "header",
            ),
            Parameter(
                live.PARAMETER,
                "The same, where no header can be set.",
                EVENT_ID,
            ),
            Parameter("run", "Begin with this run.", {"type": "string", "pattern": f"^{api.RUN}$"}),
            Parameter("after", "Begin after this cursor of `run`.", _whole(0, api.LARGEST_CURSOR, 0)),
            Parameter(
                "tail",
                "Without any of them: begin with so many last lines of the newest run; 0 for all.",
                _whole(0, live.LARGEST_TAIL, live.TAIL),
            ),
            Parameter(
                live.LOG,
                "lines: the log line by line; grown: only that it has grown, for who reads it by cursor.",
                {"type": "string", "enum": list(live.LOGS), "default": live.LOGS[0]},
            ),
            Parameter("seconds", "End the stream after so long.", _seconds(live.LONGEST)),
        ),
        errors=(400, 409, 422),
    ),
    Operation(
        "GET",
        "/runs",
        "runs",
        api.runs,
        "The newest runs, newest first.",
        {200: Answer("The history.", messages.Runs)},
        (Parameter("limit", "How many at most.", _whole(1, 10_000, 100)),),
        errors=(422,),
    ),
    Operation(
        "GET",
        "/runs/{run}",
        "run",
        api.run,
        "All that is known of one run.",
        {200: Answer("The run.", messages.RunReply)},
        (RUN_PATH,),
        errors=(400, 404, 409),
    ),
    Operation(
        "GET",
        "/runs/{run}/lines",
        "lines",
        api.lines,
        "Lines of a run's log after a cursor, or before one; without one, the last `limit` lines.",
        {200: Answer("The lines, and the cursors before and after them.", messages.LogLines)},
        (
            RUN_PATH,
            CURSOR,
            Parameter(
                "before",
                "A cursor: the last whole lines that end there or earlier. Not together with `after`.",
                _whole(0, api.LARGEST_CURSOR),
            ),
            Parameter("limit", "How many lines at most.", _whole(1, api.LARGEST_PAGE, 500)),
        ),
        errors=(400, 404, 409, 422),
    ),
    Operation(
        "GET",
        "/runs/{run}/series",
        "series",
        api.series,
        "The loss curve of a run, as buckets of steps; or what is new of it.",
        {200: Answer("The buckets.", messages.Series)},
        (
            RUN_PATH,
            Parameter("points", "How many buckets at most.", _whole(10, 5000, 1000)),
            Parameter(
                "width", "The width of the buckets that the caller has.", _whole(0, api.LARGEST_CURSOR)
            ),
            Parameter("after", "The last step that the caller has.", _whole(0, api.LARGEST_CURSOR)),
        ),
        errors=(400, 404, 409, 422),
    ),
    Operation(
        "GET",
        "/runs/{run}/search",
        "search",
        api.search,
        "Which lines of a run's log have a text in them, in whatever case.",
        {200: Answer("The cursors of the lines, and where to go on.", messages.Found)},
        (
            RUN_PATH,
            Parameter(
                "text",
                "What to look for in the lines as they are shown.",
                {"type": "string", "minLength": 1, "maxLength": 200},
                required=True,
            ),
            Parameter("after", "A cursor: where to begin.", _whole(0, api.LARGEST_CURSOR, 0)),
            Parameter("limit", "How many lines at most.", _whole(1, 1000, 500)),
        ),
        errors=(400, 404, 409, 422),
    ),
    Operation(
        "GET",
        "/runs/{run}/config",
        "config",
        api.config,
        "The two TOML files that a run was launched with; keys, tokens and passwords are hidden.",
        {200: Answer("The texts.", messages.ConfigTexts)},
        (RUN_PATH,),
        errors=(400, 404, 409),
    ),
    Operation(
        "POST",
        "/runs/{run}/compare",
        "compare",
        api.compare,
        "What is different between what a run was launched with and what a form gives now.",
        {200: Answer("The differences.", messages.Compared)},
        (RUN_PATH,),
        body=messages.Form,
        errors=(400, 404, 409, 413, 422),
    ),
    Operation(
        "GET",
        "/runs/{run}/log",
        "log",
        api.log,
        "The whole log as it was printed, as a download.",
        {200: Answer("The log.", media="text/plain")},
        (RUN_PATH,),
        errors=(400, 404, 409),
    ),
    Operation(
        "GET",
        "/train/defaults",
        "defaults",
        api.defaults,
        "A form with every default filled in, and the folders that its paths have to lie in.",
        {200: Answer("The form.", messages.Defaults)},
    ),
    Operation(
        "GET",
        "/train/schema",
        "schema",
        form_schema.schema,
        "JSON Schema of the form, with group (x-group), unit (x-unit) and help (description) of each field.",
        {200: Answer("The schema.", dict[str, Any])},
    ),
    Operation(
        "POST",
        "/train/preview",
        "preview",
        api.preview,
        "The two TOML texts that a form gives. Nothing is written; a key is hidden.",
        {200: Answer("The texts.", messages.Previewed)},
        body=messages.Form,
        errors=(400, 413, 422),
    ),
    Operation(
        "POST",
        "/train/check",
        "check",
        api.check,
        "Everything that is wrong with a form, model files that are not there included.",
        {200: Answer("What was found.", api.Checked)},
        # Any object: what does not fit the form is an answer here, not an error.
        body=dict[str, Any],
        errors=(413, 422),
    ),
    Operation(
        "POST",
        "/train/form",
        "form",
        form_file.form,
        "Reads a form that was saved as JSON or TOML. Its values are not checked; a key is left out.",
        {200: Answer("What it says.", form_file.FormRead)},
        body=form_file.FormText,
        errors=(413, 422),
    ),
    Operation(
        "POST",
        "/train/save",
        "save",
        api.save,
        "Asks the trainer for a checkpoint; the training goes on.",
        {
            200: Answer("The checkpoint.", messages.Saved),
            202: Answer("It is not written yet after `wait` seconds.", messages.Saved),
        },
        (Parameter("wait", "Seconds to wait for it.", _seconds(messages.LONGEST_WAIT, 30.0)),),
        errors=(409, 422),
    ),
    Operation(
        "POST",
        "/train/resume",
        "resume",
        api.resume,
        "Goes on from a run's newest whole checkpoint, as a new run.",
        {200: Answer("It runs.", api.Resumed)},
        body=api.Resume,
        errors=(400, 404, 409, 413, 422, 500),
    ),
    Operation(
        "GET",
        "/health",
        "health",
        api.health,
        "Does the daemon answer?",
        {200: Answer("It does.", api.Health)},
        open=True,
    ),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        metrics.metrics,
        "For Prometheus.",
        {200: Answer("Prometheus' text format.", media="text/plain")},
    ),
    Operation(
        "POST",
        "/login",
        "login",
        login.login,
        "Sets a cookie for a browser.",
        {204: Answer("The cookie is set.")},
        body=Token,
        errors=(401, 413, 422),
        open=True,
    ),
    Operation(
        "POST",
        "/logout",
        "logout",
        login.logout,
        "Makes the browser forget the cookie.",
        {204: Answer("It is forgotten.")},
        open=True,
    ),
)
ALL = CONTROLPILOT + MORE

"""Every request, every reply, every error code: the whole protocol.

Why: dict messages drift apart on the two sides of a socket and fail late. Here one frozen Struct per
message, one tagged union and one typed decoder per direction make a malformed message fail in the
decoder, with the field's name, before any code of ours sees it. `docs/protocol.md` is generated from
this module.

Requests refuse unknown fields (a typo must not be ignored); replies accept them (an older client
reads a newer daemon). New fields get defaults.

Known gap: no compression; a `ReadLog` reply is bounded by `limit` and by `REPLY_BYTES` instead.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from dpiped.form import Form as Form
from dpiped.form import Gpus as Gpus

PROTOCOL = 1
REQUEST_BYTES = 1 << 20
"""A larger request is dropped by ZeroMQ together with its connection."""
REPLY_BYTES = 1 << 20
"""About how much log text one reply carries at most; `next` says where to go on."""
LONGEST_WAIT = 60.0

Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=86400)]
Wait: TypeAlias = Annotated[float, Meta(ge=0, le=LONGEST_WAIT)]
Path: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]
RunName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Offset: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 60)]
Step: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 60)]
Text: TypeAlias = Annotated[str, Meta(max_length=32768)]

Variables: TypeAlias = dict[Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)], Text]
Key: TypeAlias = Annotated[str, Meta(pattern="^[A-Za-z0-9_.:+/=-]{8,256}$")]
"""A Weights & Biases key."""
Pid: TypeAlias = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]

How: TypeAlias = Literal["save", "term", "kill"]
State: TypeAlias = Literal["idle", "starting", "running", "stopping"]
ConfigFile: TypeAlias = Literal["training", "dataset"]
OutcomeName: TypeAlias = Literal["completed", "stopped", "failed", "unknown"]


class Request(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all requests."""

    def __repr__(self) -> str:
        """A variable or a form may hold a key, and this may end up in a log."""
        return f"{type(self).__name__}(...)"


class Hello(Request, frozen=True, tag="hello"):
    """Asks who answers. `protocol` is the client's; the daemon refuses another major number."""

    protocol: int = PROTOCOL


class GetStatus(Request, frozen=True, tag="status"):
    """State, progress, last outcome, TensorBoard."""


class Watch(Request, frozen=True, tag="watch"):
    """Like `GetStatus`, answered once the revision differs from `after`, or after `wait` seconds."""

    after: int = -1
    wait: Wait = 20.0


class Start(Request, frozen=True, tag="start"):
    """Starts a run of the training TOML at `config` (absolute). `args` and `env` go to train.py."""

    config: Path
    num_gpus: Gpus | None = None
    args: tuple[Text, ...] = ()
    env: Variables = {}


class StartForm(Request, frozen=True, tag="start_form"):
    """Generates the two TOML files that `form` describes, and starts a run of them.

    `args` and `env` go to train.py as with `start`.
    """

    form: Form
    args: tuple[Text, ...] = ()
    env: Variables = {}


class Validate(Request, frozen=True, tag="validate"):
    """Checks what a start would check, and whether the model files are there. Starts and writes nothing.

    Takes one of `form` and `config`. With `resume`, a run, it checks what a `resume` of it would: with that
    `config`, or none.
    """

    form: Form | None = None
    config: Path | None = None
    num_gpus: Gpus | None = None
    args: tuple[Text, ...] = ()
    env: Variables = {}
    resume: RunName | None = None


class FindMissing(Request, frozen=True, tag="missing"):
    """Which of these paths, by field, lead to nothing. Relative ones are taken from the workspace."""

    paths: dict[str, str]


class Preview(Request, frozen=True, tag="preview"):
    """The two TOML texts that a form gives, without writing them."""

    form: Form


class GetDefaults(Request, frozen=True, tag="defaults"):
    """A form with every default filled in, and where its paths may lie."""


class Resume(Request, frozen=True, tag="resume"):
    """A new run that goes on from `run`'s newest complete checkpoint (default: the last run).

    GPUs, environment and lasting arguments are that run's; what is given here replaces or is added to them.
    """

    run: RunName | None = None
    config: Path | None = None
    num_gpus: Gpus | None = None
    args: tuple[Text, ...] = ()
    env: Variables = {}


class Stop(Request, frozen=True, tag="stop"):
    """Enters the escalation ladder at `how`. Answered at once; `wait` tells the end.

    `timeout` replaces the first rung's deadline (seconds). `run`: refused if another one is active.
    """

    how: How = "term"
    timeout: Seconds | None = None
    run: RunName | None = None


class Save(Request, frozen=True, tag="save"):
    """Asks the trainer for a checkpoint and waits up to `wait` seconds for it to be on disk."""

    wait: Wait = 30.0
    after: str | None = None


class WaitRun(Request, frozen=True, tag="wait"):
    """Answers when `run` (default: the active or last one) has ended, or after `wait` seconds."""

    run: RunName | None = None
    wait: Wait = 20.0


class ListRuns(Request, frozen=True, tag="runs"):
    """The newest `limit` runs, newest first."""

    limit: Annotated[int, Meta(ge=1, le=10000)] = 100


class ShowRun(Request, frozen=True, tag="show"):
    """Everything known of one run."""

    run: RunName


class ReadLog(Request, frozen=True, tag="log"):
    """Lines of a run's log after the cursor, or before one.

    `after` is a byte offset in `output.log`; without it, the last `limit` lines. Answered as soon as
    there is a line after it or the log is longer than `seen` bytes (default: `after`), or after `wait`
    seconds. An `after` behind the end is of a log that was truncated since: it is read from its start.
    `before` instead of `after`: the last `limit` whole lines that end there or earlier, for
    reading backwards. `pid` instead of `run`: the newest run with that launcher.
    """

    run: RunName | None = None
    pid: Pid | None = None
    after: Offset | None = None
    limit: Annotated[int, Meta(ge=1, le=100_000)] = 500
    seen: Offset | None = None
    wait: Wait = 0.0
    before: Offset | None = None


class ReadRaw(Request, frozen=True, tag="raw"):
    """The log's bytes from the cursor on, as they were printed. `tail` lines instead of a cursor at first."""

    run: RunName | None = None
    after: Offset | None = None
    tail: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    wait: Wait = 0.0


class ReadSeries(Request, frozen=True, tag="series"):
    """The loss curve of a run (default: the active or last one) as at most `points` buckets of steps.

    `width` and `after` are what the caller has: the width of its buckets and its last step. If the width is
    still the right one, only the buckets from that one on which holds the step `after` are given.
    """

    run: RunName | None = None
    points: Annotated[int, Meta(ge=10, le=5000)] = 1000
    width: Step | None = None
    after: Step | None = None


class SearchLog(Request, frozen=True, tag="search"):
    """Which lines of a run's log, from the cursor `after` on, have `text` in what is shown of them.

    Upper and lower case are the same. Each request searches some megabytes at most; `next` says where to go
    on. Only whole lines are searched.
    """

    run: RunName
    text: Annotated[str, Meta(min_length=1, max_length=200)]
    after: Offset = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500


class ReadConfig(Request, frozen=True, tag="config"):
    """The two TOML files that a run was launched with."""

    run: RunName


class Compare(Request, frozen=True, tag="compare"):
    """What is different between the config that a run was launched with and what `form` gives now."""

    run: RunName
    form: Form


class Reload(Request, frozen=True, tag="reload"):
    """Re-executes the daemon in place (same pid). The run goes on."""


class TakeOver(Request, frozen=True, tag="take_over"):
    """From another dpiped under a new supervisord: let go of the run and end, so that it can adopt it.

    Refused while the supervisord that started this daemon lives, or if none did.
    """


class Reply(Struct, frozen=True, tag_field="type"):
    """Base of all replies."""


class FieldError(Struct, frozen=True):
    """What is wrong with one field of a form, and what it takes."""

    field: str
    message: str


class Error(Reply, frozen=True, tag="error"):
    """A refusal or failure, as a value. Codes: see `dpiped.errors`, and `bad_request`, `busy`.

    `fields` has every wrong field of a form; `hint` may name paths of this machine, `message` names only
    those that the request named.
    """

    code: str
    message: str
    field: str | None = None
    hint: str | None = None
    fields: tuple[FieldError, ...] = ()


class Welcome(Reply, frozen=True, tag="welcome"):
    """The answer to `Hello`. `started_at` (Unix time) differs after a reload, the pid does not."""

    version: str
    protocol: int
    pid: int
    started_at: float = 0.0


class ActiveRun(Struct, frozen=True):
    """Progress of the run that is going on. Times are seconds; `started_at` is Unix time.

    `failing` says why it is about to fail, before its end is known. `first_step` is the first step that
    this run printed. `checkpoint_step` is the step of `checkpoint`, and
    `checkpoint_age_seconds` the time since one was completed: what a stop without saving would lose.
    """

    id: str
    pid: int | None = None
    phase: str = "launching"
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    samples_per_second: float | None = None
    eta_seconds: float | None = None
    started_at: float | None = None
    elapsed_seconds: float | None = None
    detail: str | None = None
    warning: str | None = None
    checkpoint: str | None = None
    train_dir: str | None = None
    stopping: str | None = None
    failing: str | None = None
    first_step: int | None = None
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None


class LastRun(Struct, frozen=True):
    """How the most recent run ended. `exit_code` and `signal` are null when nobody saw the exit.

    `line` is the line of the log that says what was wrong, of a run that failed or whose end is unknown.
    """

    id: str
    outcome: OutcomeName
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    ended_at: float | None = None
    line: str | None = None


class TensorBoard(Struct, frozen=True):
    """`state`: disabled, starting, ready, port_taken, restarting, not_installed.

    When it is ready: `url` is its address on this machine, `port` where it listens, and `public_url` the
    address for a browser elsewhere, if `DIFFPIPE_TENSORBOARD_URL` gives one.
    """

    state: str
    url: str | None = None
    detail: str | None = None
    port: int | None = None
    public_url: str | None = None


class Gpu(Struct, frozen=True):
    """One GPU of the machine, as the driver counts them. Memory is bytes, whoever uses it.

    `utilization` is per cent, or null where the driver does not tell it (MIG, vGPU). The values are renewed
    once the memory has changed by more than 1 % of all or the utilization by more than 5.
    """

    index: int
    name: str
    memory_used: int
    memory_total: int
    utilization: int | None = None


class Status(Reply, frozen=True, tag="status"):
    """The whole picture. `revision` changes whenever anything in it does.

    `gpus` is empty without an NVIDIA driver; `CUDA_VISIBLE_DEVICES` does not matter for it.
    """

    state: State
    run: ActiveRun | None
    last_run: LastRun | None
    tensorboard: TensorBoard
    version: str
    revision: int = 0
    pid: int = 0
    notices: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()


class Started(Reply, frozen=True, tag="started"):
    """`pid` is the launcher's, `config` the snapshot that it was launched with.

    `written` is the training TOML that a form was written to; `warnings` are what will probably fail, and
    what was done so that it does not. A run that is resumed goes on from `checkpoint`; `changes` are what is
    different in its config.
    """

    run: str
    pid: int
    config: str
    resumed_from: str | None = None
    written: str | None = None
    warnings: tuple[str, ...] = ()
    checkpoint: str | None = None
    changes: "tuple[Difference, ...]" = ()


class Finding(Struct, frozen=True):
    """What would hinder a start, at its field; `hint` is a way out."""

    field: str
    message: str
    hint: str | None = None


class Validated(Reply, frozen=True, tag="validated"):
    """`findings` are all that is wrong; none: a start would be accepted and the files it names are there.

    The others are those of `Started`, for a resume.
    """

    findings: tuple[Finding, ...]
    resumed_from: str | None = None
    checkpoint: str | None = None
    warnings: tuple[str, ...] = ()
    changes: "tuple[Difference, ...]" = ()


class MissingPath(Struct, frozen=True):
    """`path` as it was given."""

    field: str
    path: str


class Missing(Reply, frozen=True, tag="missing"):
    """In the order of the request."""

    missing: tuple[MissingPath, ...]


class Previewed(Reply, frozen=True, tag="previewed"):
    """The files' texts and where a start would write them. A key is hidden."""

    training_path: str
    training_toml: str
    dataset_path: str
    dataset_toml: str


class Defaults(Reply, frozen=True, tag="defaults"):
    """`form` has a suggestion for every path; `roots` are the folders that each path has to lie below."""

    form: Form
    roots: dict[str, tuple[str, ...]]


class Stopping(Reply, frozen=True, tag="stopping"):
    """The ladder is entered. `detail` says what happens first."""

    run: str
    how: How
    detail: str


class Saved(Reply, frozen=True, tag="saved"):
    """`checkpoint` is the folder's name, or null while the trainer has not written it yet."""

    run: str
    checkpoint: str | None
    token: str


class RunSummary(Struct, frozen=True):
    """One line of the history. `state` is running or an outcome; `pid` the launcher's; times Unix times.

    `line` is the line of the log that says what was wrong, of a run that failed or whose end is unknown.
    """

    id: str
    state: str
    created: float
    config: str
    started_at: float | None = None
    ended_at: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    step: int | None = None
    epoch: int | None = None
    loss: float | None = None
    resumed_from: str | None = None
    pid: int | None = None
    line: str | None = None


class Runs(Reply, frozen=True, tag="runs"):
    """Newest first. A run whose records can't be read is listed with state `damaged`."""

    runs: tuple[RunSummary, ...]


class Failure(Struct, frozen=True):
    """The line that says what was wrong, and the cursor of its beginning in the log."""

    line: str
    cursor: int


class RunReply(Reply, frozen=True, tag="run"):
    """One run. `ended` is false while it goes on; `form` is what it was made from, its key hidden.

    `failure` is where `line` of the summary stands in the log; null if there is none, or it is not found.
    `num_gpus` is how many it was launched on; null where that was not recorded.
    """

    summary: RunSummary
    ended: bool
    argv: tuple[str, ...] = ()
    cwd: str = ""
    run_dir: str = ""
    output_dir: str | None = None
    train_dir: str | None = None
    checkpoint: str | None = None
    peak_memory_bytes: int | None = None
    env: dict[str, str] = {}
    form: Form | None = None
    failure: Failure | None = None
    num_gpus: int | None = None


class LogLines(Reply, frozen=True, tag="lines"):
    """`lines` without line ends, as a terminal would show them; `current` is the unfinished last line.

    `first` is the cursor of the first line given and `next` the one after the last (the same if there are
    none), `end` the log's length seen so far, `eof` true when the run is over and nothing follows. `pid` is
    the launcher's.
    """

    run: str
    lines: tuple[str, ...]
    current: str
    next: int
    end: int
    eof: bool
    pid: int | None = None
    first: int = 0


class RawLog(Reply, frozen=True, tag="bytes"):
    """`data` are the bytes before the cursor `next`."""

    run: str
    data: bytes
    next: int
    eof: bool


class Series(Reply, frozen=True, tag="series"):
    """`points` are (first step, last step, mean, low, high) of each bucket that holds a step.

    Bucket number N holds the steps from N * `width` + 1 to (N + 1) * `width`; `width` is a power of two that
    grows with the run. The three figures are of the finite losses, null where there is none. `whole`: these
    are all buckets; else they replace the caller's from the first one given on. `epochs` are (epoch, first
    step printed in it), `first` and `last` the steps printed, `eof` is true when the run is over.
    """

    run: str
    width: int
    whole: bool
    points: tuple[tuple[int, int, float | None, float | None, float | None], ...]
    epochs: tuple[tuple[int, int], ...]
    first: int | None
    last: int | None
    eof: bool


class Found(Reply, frozen=True, tag="found"):
    """`matches` are the cursors of the lines, in their order; `next` is where to go on.

    `end`: there is nothing further to search now.
    """

    run: str
    matches: tuple[int, ...]
    next: int
    end: bool


class ConfigTexts(Reply, frozen=True, tag="config"):
    """The files' texts. What is named like a key, a token or a password is hidden, also in a comment."""

    run: str
    training_toml: str
    dataset_toml: str


class Difference(Struct, frozen=True):
    """`key` is dotted (`directory[0].path`); `before` and `after` the values as JSON text, null if absent."""

    file: ConfigFile
    key: str
    before: str | None
    after: str | None


class Compared(Reply, frozen=True, tag="compared"):
    """None: the same. Comments, what is secret and where the files themselves lie are not compared."""

    run: str
    differences: tuple[Difference, ...]


class Reloading(Reply, frozen=True, tag="reloading"):
    """The daemon goes away for a moment and comes back under the same pid, with another `started_at`."""

    pid: int
    started_at: float = 0.0


class HandingOver(Reply, frozen=True, tag="handing_over"):
    """The daemon ends now and leaves its run to the next one."""

    pid: int


AnyRequest: TypeAlias = (
    Hello
    | GetStatus
    | Watch
    | Start
    | StartForm
    | Validate
    | FindMissing
    | Preview
    | GetDefaults
    | Resume
    | Stop
    | Save
    | WaitRun
    | ListRuns
    | ShowRun
    | ReadLog
    | ReadRaw
    | ReadSeries
    | SearchLog
    | ReadConfig
    | Compare
    | Reload
    | TakeOver
)
AnyReply: TypeAlias = (
    Error
    | Welcome
    | Status
    | Started
    | Validated
    | Missing
    | Previewed
    | Defaults
    | Stopping
    | Saved
    | Runs
    | RunReply
    | LogLines
    | RawLog
    | Series
    | Found
    | ConfigTexts
    | Compared
    | Reloading
    | HandingOver
)

encode = msgspec.msgpack.Encoder().encode


def request_decoder() -> "msgspec.msgpack.Decoder[AnyRequest]":
    """The daemon's side. `decode` raises msgspec.DecodeError or ValidationError, which names the field."""
    return msgspec.msgpack.Decoder(AnyRequest)


def reply_decoder() -> "msgspec.msgpack.Decoder[AnyReply]":
    """The client's side."""
    return msgspec.msgpack.Decoder(AnyReply)

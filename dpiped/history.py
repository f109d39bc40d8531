"""Past runs, read from their directories: found by name, summed up, their logs paged.

Why: the run directory is the truth, so a list of runs must come out right with a daemon that never saw
them. A run whose records can't be read is listed as damaged and disturbs no other.

Known gap: a list reads a few small files per run each time; with many thousands of runs that is slow.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from dpiped import backwards, checkpoints, logfile, logs, messages, rundir
from dpiped.errors import InvalidInput, RunDamaged, UnknownRun
from dpiped.outcome import conclude
from dpiped.progress import Progress
from dpiped.rundir import Concluded, Exit, Launched, Spec, StopAsked, TrainDir

LAST = "last"
PIDS_LOOKED_AT = 200
"""Runs, newest first, among which a pid is looked for."""


def resolve(runs: Path, name: str) -> str:
    """The run's id from the id, a part of it that fits one run only, or `last`. Raises UnknownRun."""
    names = rundir.names(runs)
    if not names:
        hint = "start one with `dpipectl start --config FILE`"
        raise UnknownRun("there is no run yet", field="run", hint=hint)
    if name in names:
        return name
    if name == LAST:
        return names[0]
    fitting = [known for known in names if name in known] if len(name) >= 3 else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InvalidInput(f"{name!r} fits {len(fitting)} runs: {', '.join(fitting[:5])}", field="run")
    raise UnknownRun(f"there is no run {name!r}", field="run", hint="`dpipectl runs` lists them")


def by_pid(runs: Path, pid: int) -> str:
    """The newest run whose launcher had that pid. Raises UnknownRun."""
    for name in rundir.names(runs)[:PIDS_LOOKED_AT]:
        if launcher_pid(runs / name) == pid:
            return name
    raise UnknownRun(f"no run has the pid {pid}", field="pid")


def launcher_pid(folder: Path) -> int | None:
    """None for a run that was not launched, or whose record of it can't be read."""
    try:
        launched = rundir.read(folder, Launched)
    except RunDamaged:
        return None
    return launched.child.pid if launched else None


def summary(runs: Path, run: str, active: bool = False) -> messages.RunSummary:
    """One run in one line. Never raises for what stands in the directory."""
    try:
        # Each new name in a Path is put into a table of Python's, and out of it: for every run of every list
        # that table grew by a megabyte now and then.
        return _summary(f"{runs}/{run}", run, active)
    except RunDamaged as error:
        return messages.RunSummary(run, "damaged", 0.0, "", reason=error.message)


def detail(runs: Path, run: str, active: bool) -> messages.RunReply:
    """Everything known of one run. Raises RunDamaged."""
    folder = runs / run
    spec = rundir.read(folder, Spec)
    if spec is None:
        raise RunDamaged(f"{folder} has no spec.json", field="spec.json")
    exit_ = rundir.read(folder, Exit)
    train_dir = train_directory(folder, spec)
    summary = _summary(folder, run, active)
    return messages.RunReply(
        summary=summary,
        ended=not active,
        argv=spec.argv,
        cwd=spec.cwd,
        run_dir=str(folder),
        output_dir=spec.output_dir,
        train_dir=str(train_dir) if train_dir else None,
        checkpoint=checkpoints.newest_whole(train_dir) if train_dir else None,
        peak_memory_bytes=exit_.peak_memory_bytes if exit_ else None,
        env=spec.env,
        form=spec.form,
        failure=_failure(folder / rundir.LOG, summary.line),
        num_gpus=spec.num_gpus,
    )


def _failure(path: Path, line: str | None) -> messages.Failure | None:
    """None as well if the log can't be read: what else is known of the run is told all the same."""
    if line is None:
        return None
    try:
        cursor = backwards.line_of(path, line)
    except OSError:
        return None
    return messages.Failure(line, cursor) if cursor is not None else None


def train_directory(folder: Path, spec: Spec) -> Path | None:
    """The directory that train.py made (or resumed into), if it was recognised."""
    if spec.train_dir:
        return Path(spec.train_dir)
    found = rundir.read(folder, TrainDir)
    return Path(found.path) if found else None


def last_run(folder: Path, run: str) -> messages.LastRun | None:
    """How that run ended, or None if no outcome is recorded. Raises RunDamaged."""
    concluded = rundir.read(folder, Concluded)
    if concluded is None:
        return None
    return as_last_run(run, concluded, rundir.read(folder, Exit))


def as_last_run(run: str, concluded: Concluded, exit_: Exit | None) -> messages.LastRun:
    """What `status` says of a run that has ended."""
    return messages.LastRun(
        id=run,
        outcome=concluded.outcome,
        reason=concluded.reason,
        exit_code=exit_.code if exit_ else None,
        signal=exit_.signal if exit_ else None,
        ended_at=concluded.at,
        line=concluded.line,
    )


def conclude_from_records(folder: Path, spec: Spec, going_on: Callable[[], None] = lambda: None) -> Concluded:
    """The outcome of a run that nobody follows, from its records and its whole log. Raises RunDamaged.

    `going_on` is called while the log is read, which may be long.
    """
    if rundir.read(folder, Exit) is None and not rundir.was_launched(folder):
        if asked := rundir.read(folder, StopAsked):
            return Concluded("stopped", f"stopped by {asked.by} before it was launched", None)
        return Concluded("failed", "it was never launched: the daemon ended first", None)
    progress = Progress()
    follower = logs.Follower(folder / rundir.LOG)
    while chunk := follower.read():
        progress.feed(chunk)
        going_on()
    follower.close()
    progress.finish()
    records = rundir.read(folder, Exit), rundir.read(folder, StopAsked)
    on_disk = checkpoints.seen(train_directory(folder, spec))
    return conclude(*records, progress.snapshot(), spec.completes, on_disk)


def read_log(run: str, path: Path, request: messages.ReadLog) -> messages.LogLines:
    """A page of a log that no longer grows. Raises OSError."""
    upto, size = logfile.extent(path)
    if request.after is not None and request.after > size:
        # It was truncated since that cursor was given.
        request = msgspec.structs.replace(request, after=0)
    page = read_page(path, request, upto)
    eof = page.next >= upto
    current = logfile.read_unfinished(path, upto, size) if eof else ""
    pid = launcher_pid(path.parent)
    return messages.LogLines(run, page.lines, current, page.next, size, eof, pid, page.first)


def read_page(path: Path, request: messages.ReadLog, upto: int) -> logs.Page:
    """The lines of a log asked for, as far as the offset `upto`. Raises OSError."""
    limit, most = request.limit, messages.REPLY_BYTES
    if request.before is not None:
        return backwards.lines_before(path, min(request.before, upto), limit, most)
    after = request.after if request.after is not None else logfile.tail_start(path, limit, upto)
    if after >= upto:
        return logs.Page((), after, after)
    return logfile.read_lines(path, after, limit, upto, most)


def _summary(folder: Path | str, run: str, active: bool) -> messages.RunSummary:
    spec = rundir.read(folder, Spec)
    if spec is None:
        raise RunDamaged(f"{folder} has no spec.json", field="spec.json")
    launched = rundir.read(folder, Launched)
    concluded = rundir.read(folder, Concluded)
    exit_ = rundir.read(folder, Exit)
    if concluded is None and not active:
        # Those are why there is none, if they can't be read.
        rundir.read(folder, TrainDir), rundir.read(folder, StopAsked)
    state = "running" if active else concluded.outcome if concluded else "unknown"
    return messages.RunSummary(
        id=run,
        state=state,
        created=spec.created,
        config=spec.source,
        started_at=launched.at if launched else None,
        ended_at=concluded.at if concluded else None,
        reason=concluded.reason if concluded else None,
        exit_code=exit_.code if exit_ else None,
        signal=exit_.signal if exit_ else None,
        step=concluded.step if concluded else None,
        epoch=concluded.epoch if concluded else None,
        loss=concluded.loss if concluded else None,
        resumed_from=spec.resumed_from,
        pid=launched.child.pid if launched else None,
        line=concluded.line if concluded else None,
    )

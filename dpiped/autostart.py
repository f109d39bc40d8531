"""What the service trains when the daemon starts: `DIFFPIPE_CONFIG` anew, where it broke off, or not at all.

Why: a rented machine is restarted, and whoever has a training as a service expects it to go on by itself,
from its last checkpoint. But not one that he has stopped, nor one that has completed; and a training that
fails, or takes the machine down with it, must not do so for ever.

It goes on from the newest run of exactly this config (same path, same content) if that run was not ended by
request: the machine or the daemon went down, or the run failed. After `ATTEMPTS` such runs in a row that
failed or broke off without a new checkpoint, it is left to a person. An end by the daemon's own SIGTERM is
no failure.

Known gap: a run of the same file that a client started with a secret variable that the daemon has not, has
to be resumed by hand, since its value is written down nowhere.
"""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dpiped import checkpoints, history, launch, messages, resume, rundir
from dpiped.ending import REQUESTED
from dpiped.errors import InvalidInput, RunDamaged
from dpiped.redaction import HIDDEN
from dpiped.rundir import Concluded, Spec, StopAsked
from dpiped.settings import Settings, training_environment
from dpiped.sources import WANDB_KEY, Wanted

ATTEMPTS = 3


class Decision(Struct, frozen=True):
    """What to start, if anything, and what a person should know of it."""

    wanted: Wanted | None
    notice: str | None = None


class Past(Struct, frozen=True):
    """A run of the file at `DIFFPIPE_CONFIG` that has ended."""

    spec: Spec
    concluded: Concluded
    asked: StopAsked | None

    @property
    def run(self) -> str:
        return self.spec.run

    @property
    def requested(self) -> bool:
        return self.asked is not None and self.asked.by == REQUESTED

    @property
    def got_further(self) -> bool:
        """Did it leave a checkpoint of its own?"""
        return self.concluded.checkpoint not in (None, self.spec.checkpoint)

    @property
    def had_begun(self) -> bool:
        """Is there something to lose: a step of its own, or the checkpoint that it went on from?"""
        return self.concluded.step is not None or self.spec.checkpoint is not None or self.got_further

    @property
    def fruitless(self) -> bool:
        """Did it fail or break off without a checkpoint of its own?"""
        return self.concluded.outcome in ("failed", "unknown") and not self.got_further

    @property
    def how(self) -> str:
        outcome = "broke off" if self.concluded.outcome == "unknown" else self.concluded.outcome
        return f"{outcome} ({self.concluded.reason})" if self.concluded.reason else outcome


def decide(settings: Settings, runs: Path, config: Path) -> Decision:
    """Raises DpipedError if the config can't be trained, or the run can't be looked at."""
    anew = Wanted(config=config, args=settings.extra_args, service=True)
    spec = launch.make(settings, anew).spec
    if damaged := _newest_is_damaged(runs, spec.source):
        return Decision(
            None,
            f"DIFFPIPE_CONFIG is not trained again: the records of its newest run {damaged} are damaged; "
            "`dpipectl start` begins anew",
        )
    past = list(_past(runs, spec.source))
    same = [each for each in past if each.spec.digest == spec.digest]
    if why := _settled(same, spec):
        return Decision(None, f"DIFFPIPE_CONFIG is not trained again: {why}")
    if why := _hopeless([each for each in same if each.spec.completes == spec.completes]):
        return Decision(None, f"DIFFPIPE_CONFIG is not trained again: {why}")
    if settings.resume == "never":
        return Decision(anew)
    # One that only cached, say, is no run to go on from.
    last = next((each for each in past if each.spec.completes == spec.completes), None)
    if last is None or last.concluded.outcome == "completed":
        return Decision(anew)
    if last.spec.digest != spec.digest:
        return Decision(
            anew,
            f"DIFFPIPE_CONFIG begins anew: the file or its data set file has changed since run {last.run}, "
            f"which {last.how}",
        )
    return _go_on(settings, runs, config, last, anew)


def _newest_is_damaged(runs: Path, source: str) -> str | None:
    """The newest run of that file, if how it ended can't be read: it may have been stopped by request."""
    for name in rundir.names(runs):
        try:
            spec = rundir.read(runs / name, Spec)
        except RunDamaged:
            continue
        if spec is None or spec.source != source:
            continue
        try:
            concluded, _ = rundir.read(runs / name, Concluded), rundir.read(runs / name, StopAsked)
        except RunDamaged:
            return name
        return None if concluded is not None else name
    return None


def _past(runs: Path, source: str) -> Iterator[Past]:
    """The newest first. A run that can't be read counts for nothing."""
    for name in rundir.names(runs):
        try:
            spec, concluded = rundir.read(runs / name, Spec), rundir.read(runs / name, Concluded)
            if spec is not None and concluded is not None and spec.source == source:
                yield Past(spec, concluded, rundir.read(runs / name, StopAsked))
        except RunDamaged:
            continue


def _settled(same: list[Past], spec: Spec) -> str | None:
    """Why this config is not to be trained again; None if it is.

    A run of it has completed, and none that was started after that has got as far as a checkpoint; or its
    newest one was stopped by a client, who would be surprised to see it go on when the daemon is reloaded.
    """
    if same and same[0].requested and same[0].concluded.outcome != "completed":
        return (
            f"run {same[0].run} of it was stopped by request; `dpipectl resume` goes on with it, "
            "`dpipectl start` begins anew"
        )
    for each in same:
        if each.spec.completes != spec.completes:
            continue
        if each.concluded.outcome == "completed":
            return f"run {each.run} of it has completed"
        if each.got_further:
            return None
    return None


def _hopeless(same: list[Past]) -> str | None:
    """Why to leave it to a person."""
    last = same[:ATTEMPTS]
    if len(last) < ATTEMPTS or not all(each.fruitless for each in last):
        return None
    return (
        f"its last {ATTEMPTS} runs failed or broke off without a new checkpoint, the last one {last[0].how}; "
        "`dpipectl resume` goes on with it, `dpipectl start` begins anew"
    )


def _go_on(settings: Settings, runs: Path, config: Path, last: Past, anew: Wanted) -> Decision:
    """From the newest whole checkpoint of that run; anew if there is none. Raises DpipedError."""
    why: str | None = "it ended before train.py made a directory"
    folder = history.train_directory(runs / last.run, last.spec)
    if folder is None and last.had_begun:
        return Decision(
            None,
            f"DIFFPIPE_CONFIG is not trained again: run {last.run} trained, and its directory below "
            f"{last.spec.output_dir} was not found; `dpipectl start` begins anew, or goes on from a folder "
            "with `-- --resume_from_checkpoint FOLDER`",
        )
    if folder is not None:
        try:
            found = checkpoints.look(folder)
        except FileNotFoundError:
            if last.had_begun:
                # A disk that is not mounted yet must not cost what is on it.
                return Decision(
                    None,
                    f"DIFFPIPE_CONFIG is not trained again: {folder}, where run {last.run} wrote its "
                    "checkpoints, is gone; once it is there, `dpipectl resume` goes on, "
                    "`dpipectl start` begins anew",
                )
            found = checkpoints.Found(None, "its directory is gone")
        except OSError as error:
            text = f"run {last.run} can't be looked at to go on from it: {error.strerror}"
            raise InvalidInput(text, field="DIFFPIPE_CONFIG") from error
        writer = resume.last_writer(runs, folder)
        if writer is not None and writer != last.run:
            return Decision(
                None,
                f"DIFFPIPE_CONFIG is not trained again: run {writer} went on from its run {last.run} with "
                "another config; `dpipectl resume` goes on with that",
            )
        if found.tag is not None:
            # From the file, not from the run's snapshot: the same, but a key is still in it.
            request = messages.Resume(last.run, config=str(config), env=_secrets(settings, last.spec))
            wanted = resume.plan(runs, request)
            return Decision(
                replace(wanted, service=True),
                f"DIFFPIPE_CONFIG goes on from {found.tag} of run {last.run}, which {last.how}",
            )
        why = found.why
    return Decision(anew, f"DIFFPIPE_CONFIG begins anew: run {last.run} {last.how}, and {why}")


def _secrets(settings: Settings, spec: Spec) -> dict[str, str]:
    """What the daemon has of the run's variables that are written down nowhere; a key may be in the file."""
    known = {WANDB_KEY: ""} | training_environment(settings)
    return {name: known[name] for name, value in spec.env.items() if value == HIDDEN and name in known}

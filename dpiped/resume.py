"""From "go on from that run" to a start with an explicit folder.

Why: train.py's own resume takes the last name in `output_dir`, which may be a stray file, another tool's
folder or another run. Here the run is named, its directory is the one that was recognised as its own, and
the checkpoint in it is known to be whole before anything is started. And it goes on as it began: on as many
GPUs (or the global batch would be another one), in the same environment. What is different in the config
this time is told, since a resume with another one is easily another training.

Known gap: of the files for evaluation, and of arguments and variables, no difference is told. Which run
wrote to a folder that was named by itself is looked for among the newest runs only.
"""

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dpiped import arguments, checkpoints, history, messages, rundir, snapshots
from dpiped.errors import InvalidInput, RunDamaged
from dpiped.launch import Plan
from dpiped.redaction import HIDDEN
from dpiped.rundir import Concluded, Spec
from dpiped.sources import Wanted

RUNS_LOOKED_AT = 200
"""Runs, newest first, among which one that wrote to a folder is looked for."""


class Traced(Struct, frozen=True):
    """A plan that knows which run it goes on from, and what is different in its config."""

    plan: Plan
    changes: tuple[messages.Difference, ...] = ()


def plan(runs: Path, request: messages.Resume) -> Wanted:
    """What to start to go on from a run (default: the newest). Raises InvalidInput, RunDamaged."""
    name = history.resolve(runs, request.run or history.LAST)
    folder = runs / name
    spec = rundir.read(folder, Spec)
    if spec is None:
        raise RunDamaged(f"{folder} has no spec.json", field="spec.json")
    train_dir = history.train_directory(folder, spec)
    if train_dir is None:
        raise InvalidInput(
            f"run {name} can't be resumed: it ended before train.py made a directory", field="run"
        )
    try:
        checkpoints.require_checkpoint(train_dir, "run")
    except InvalidInput as error:
        other = _another(runs, spec, train_dir)
        if other is not None:
            error.hint = other
        raise
    concluded = rundir.read(folder, Concluded)
    if request.config is None and concluded is not None and concluded.outcome == "completed":
        raise InvalidInput(
            f"run {name} has completed; resuming it would train past its epochs",
            field="config",
            hint="give a config with more epochs: dpipectl resume RUN --config FILE",
        )
    return Wanted(
        config=Path(request.config) if request.config else folder / rundir.TRAINING_TOML,
        num_gpus=request.num_gpus or spec.num_gpus,
        args=(*arguments.lasting(spec.args), *request.args),
        env=_environment(spec, request),
        resume=train_dir,
        origin=spec,
    )


def trace(runs: Path, plan: Plan) -> Traced:
    """Finds the run, if it is not named, and compares. What hinders the comparison becomes a warning.

    Raises InvalidInput where the last run in that folder has completed and nothing more is asked for.
    """
    if plan.resume is None:
        return Traced(plan)
    last = last_writer(runs, plan.resume.train_dir)
    if last is not None:
        _refuse_to_train_past_the_end(runs, last, plan.spec)
    origin = plan.spec.resumed_from or last
    if origin is None:
        return Traced(plan)
    plan = replace(plan, spec=replace(plan.spec, resumed_from=origin))
    try:
        return Traced(plan, snapshots.changes(runs, origin, plan.files))
    except (RunDamaged, InvalidInput) as error:
        text = f"what is different from run {origin} is not known: {error.field} can't be read"
        return Traced(replace(plan, warnings=(*plan.warnings, text)))


def _refuse_to_train_past_the_end(runs: Path, last: str, spec: Spec) -> None:
    """train.py looks at its limit at an epoch's end only: one more would be trained, over the saved model."""
    try:
        before, concluded = rundir.read(runs / last, Spec), rundir.read(runs / last, Concluded)
    except RunDamaged:
        return
    if before is None or concluded is None or concluded.outcome != "completed" or not before.completes:
        return
    if (spec.epochs or 0) <= (before.epochs or 0) and spec.max_steps == before.max_steps:
        raise InvalidInput(
            f"run {last}, which wrote to {Path(spec.train_dir or '').name} last, has completed; with no more "
            "epochs it would be trained past its end",
            field="epochs",
            hint=f"it had epochs = {before.epochs}; give more, or start anew",
        )


def last_writer(runs: Path, train_dir: Path) -> str | None:
    """The newest run that trained in that folder. One that only cached, say, has written nothing to it."""
    for name in rundir.names(runs)[:RUNS_LOOKED_AT]:
        try:
            spec = rundir.read(runs / name, Spec)
            if (
                spec is not None
                and spec.completes
                and history.train_directory(runs / name, spec) == train_dir
            ):
                return name
        except RunDamaged:
            continue
    return None


def _another(runs: Path, spent: Spec, train_dir: Path) -> str | None:
    """Says which other run of the same output_dir can be resumed, the newest of them."""
    for name in rundir.names(runs)[:RUNS_LOOKED_AT]:
        try:
            spec = rundir.read(runs / name, Spec)
            if spec is None or spec.output_dir != spent.output_dir:
                continue
            folder = history.train_directory(runs / name, spec)
        except RunDamaged:
            continue
        tag = checkpoints.newest_whole(folder) if folder not in (None, train_dir) else None
        if tag is not None:
            return f"run {name}, which wrote to the same output_dir, has {tag}: dpipectl resume {name}"
    return None


def _environment(spec: Spec, request: messages.Resume) -> dict[str, str]:
    """The run's own additions, and those of the request. Raises InvalidInput for a secret not given again."""
    env = spec.env | request.env
    for name, value in env.items():
        if value == HIDDEN:
            raise InvalidInput(
                f"run {spec.run} had a variable {name} of its own, whose value was not written down",
                field="env",
                hint=f"give it again: --env {name}=VALUE (or --env {name}= to go on without)",
            )
    return env

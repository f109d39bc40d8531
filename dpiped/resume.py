"""From "go on from that run" to a start with an explicit folder.

Why: train.py's own resume takes the last name in `output_dir`, which may be a stray file, another
tool's folder or another run. Here the run is named, its directory is the one that was recognised as
its own, and the checkpoint in it is known to be whole before anything is started. And it goes on as it
began: on as many GPUs (or the global batch would be another one), in the same environment.

Known gap: the differences between the old config and a new one are not shown.
"""

from pathlib import Path

from dpiped import arguments, checkpoints, history, messages, rundir
from dpiped.errors import InvalidInput, RunDamaged
from dpiped.redaction import HIDDEN
from dpiped.rundir import Concluded, Spec
from dpiped.sources import Wanted


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
    checkpoints.require_checkpoint(train_dir, "run")
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

"""From "go on from that run" to a start with an explicit folder.

Why: train.py's own resume takes the last name in `output_dir`, which may be a stray file, another
tool's folder or another run. Here the run is named, its directory is the one that was recognised as
its own, and the checkpoint in it is known to be whole before anything is started.

Known gap: the differences between the old config and a new one are not shown.
"""

from pathlib import Path

from dpiped import checkpoints, history, rundir
from dpiped.errors import InvalidInput, RunDamaged
from dpiped.launch import Wanted
from dpiped.rundir import Concluded, Spec


def plan(
    runs: Path, run: str | None, config: Path | None, args: tuple[str, ...], env: dict[str, str]
) -> Wanted:
    """What to start to go on from `run` (default: the newest). Raises InvalidInput, RunDamaged."""
    name = history.resolve(runs, run or history.LAST)
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
    if config is None and concluded is not None and concluded.outcome == "completed":
        raise InvalidInput(
            f"run {name} has completed; resuming it would train past its epochs",
            field="config",
            hint="give a config with more epochs: dpipectl resume RUN --config FILE",
        )
    return Wanted(config or folder / rundir.TRAINING_TOML, args=args, env=env, resume=train_dir, origin=spec)

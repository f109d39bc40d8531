"""Training checkpoints: found and judged before start-up, written so that `latest` never names half of one.

Why: a resume that starts from nothing, from another model or from a file cut short would look like a
training and be none. What is to be resumed is checked before torch is imported. DeepSpeed writes `latest`
in place and syncs nothing; here the files are synced and `latest` is replaced by a rename, last.

Known gap: files are checked for being whole zip archives, not for their content.
"""

import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dpiped.trainer import spec
from dpiped.trainer.config import TrainConfig
from dpiped.trainer.saved import ADAPTER_CONFIG, adapter_config, base_of
from dpiped.trainer.spec import ModelSpec
from dpiped.trainer.table import ConfigError

RUN_NAME = re.compile(r"\d{8}_\d{2}-\d{2}-\d{2}")
FIELD = "resume_from_checkpoint"


@dataclass(frozen=True)
class Resume:
    """A run directory with a whole checkpoint `tag`, and the model it is of."""

    run_dir: Path
    tag: str
    spec: ModelSpec
    base: Path | None
    """What an adapter is trained on; it stays the same, whatever was saved beside it since."""


def find(config: TrainConfig, wanted: str | bool) -> Resume | None:
    """The checkpoint to go on from, None for a fresh start. Raises ConfigError if there is none or half."""
    if wanted is False:
        return None
    run_dir = _newest(config.output_dir) if wanted is True else config.output_dir / str(wanted)
    if run_dir.parent != config.output_dir or not run_dir.is_dir():
        raise ConfigError(f"{FIELD}: there is no run directory {wanted!r} in {config.output_dir}")
    tag = _latest(run_dir)
    if tag is None:
        raise ConfigError(f"{FIELD}: {run_dir} holds no checkpoint to resume from")
    wrong = _incomplete(run_dir / tag, config)
    if wrong:
        raise ConfigError(f"{FIELD}: the checkpoint {run_dir / tag} is not complete: {wrong}")
    saved = spec.read(run_dir)
    different = spec.difference(config.model_spec(saved.vocabulary, saved.max_tokens), saved)
    if different:
        raise ConfigError(f"{FIELD}: the checkpoint's model {different}")
    return Resume(run_dir, tag, saved, _same_adapter(config, run_dir))


def _newest(output_dir: Path) -> Path:
    try:
        runs = [path for path in output_dir.iterdir() if RUN_NAME.fullmatch(path.name) and path.is_dir()]
    except OSError:
        runs = []
    if not runs:
        raise ConfigError(f"{FIELD}: there is no run directory in {output_dir}")
    return max(runs, key=lambda path: path.name)


def _latest(run_dir: Path) -> str | None:
    try:
        tag = (run_dir / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return tag if re.fullmatch(r"global_step\d+", tag) else None


def _incomplete(folder: Path, config: TrainConfig) -> str:
    """What is missing or broken; empty if the checkpoint is whole."""
    names = [f"layer_{layer:02d}-model_states.pt" for layer in range(config.model.depth + 2)]
    names += [f"mp_rank_{stage:02d}_model_states.pt" for stage in range(config.pipeline_stages)]
    names.append(f"mp_rank_{config.pipeline_stages:02d}_model_states.pt")
    for name in names[:-1]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if not zipfile.is_zipfile(folder / name):
            return f"{name} is cut short"
    return (
        f"it was written with more than {config.pipeline_stages} pipeline_stages"
        * (folder / names[-1]).exists()
    )


def _same_adapter(config: TrainConfig, run_dir: Path) -> Path | None:
    """An adapter goes on as it is and on its own base, and a full training as one. Returns the base."""
    described = adapter_config(run_dir) if (run_dir / ADAPTER_CONFIG).is_file() else None
    rank = None if described is None else described.get("r")
    wanted = None if config.adapter is None else config.adapter.rank
    if rank != wanted:
        names = [f"an adapter of rank {value}" if value else "a full training" for value in (rank, wanted)]
        raise ConfigError(f"{FIELD}: the checkpoint is that of {names[0]}, the config asks for {names[1]}")
    if described is None:
        return None
    base, asked = base_of(run_dir), config.model.checkpoint_path
    if asked is not None and asked.resolve() not in (base.resolve(), base.resolve().parent):
        raise ConfigError(
            f"model.checkpoint_path: the checkpoint's adapter is trained on {base}, not on {asked}"
        )
    return base


def publish(run_dir: Path, tag: str) -> None:
    """Makes the files of `tag` durable, then names it in `latest` in one step."""
    for path in (run_dir / tag).iterdir():
        sync(path)
    aside = run_dir / "latest.tmp"
    aside.write_text(tag)
    sync(aside)
    aside.replace(run_dir / "latest")
    sync(run_dir)


def prune(run_dir: Path, keep: int) -> None:
    """Removes all checkpoints but the `keep` newest, of which `latest` names one."""
    tags = [path for path in run_dir.glob("global_step*") if path.name[len("global_step") :].isdigit()]
    tags.sort(key=lambda path: int(path.name[len("global_step") :]))
    for old in tags[:-keep]:
        if old.name != _latest(run_dir):
            shutil.rmtree(old)


def sync(path: Path) -> None:
    """Waits until a file or directory is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Saved models and adapters on disk: which directory holds one, and what kind.

Why: a run directory, an `epochN` and an adapter's directory all look alike to a person; what they hold is
found out before anything heavy is imported, so a wrong one costs a line.

Known gap: the newest of a run directory is told by its time of change.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dpiped.trainer.table import ConfigError

WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Saved:
    """A directory with a saved model, or with an adapter, whose `base` is the model's directory."""

    directory: Path
    base: Path | None


def find(path: Path) -> Saved:
    """What is saved at `path`, or the newest in it if it is a run directory. Raises ConfigError."""
    found = newest(path, (WEIGHTS, ADAPTER_WEIGHTS))
    if found is None:
        raise ConfigError(
            f"{path} holds no saved model ({WEIGHTS} or {ADAPTER_WEIGHTS}); "
            "it takes a run directory, or an epochN or stepN directory in it"
        )
    return Saved(found, None if (found / WEIGHTS).is_file() else _base(found))


def newest(path: Path, files: tuple[str, ...] = (WEIGHTS,)) -> Path | None:
    """The directory with one of `files`: `path` itself, or the newest in it; None if there is none."""
    if any((path / file).is_file() for file in files):
        return path
    found = [entry for file in files for entry in path.glob(f"*/{file}")]
    return max(found, key=lambda entry: entry.stat().st_mtime).parent if found else None


def _base(directory: Path) -> Path:
    file = directory / ADAPTER_CONFIG
    try:
        base = Path(json.loads(file.read_text("utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} can't be read: {error!r}") from error
    if not (base / WEIGHTS).is_file():
        raise ConfigError(f"{file} names the base {base}, which holds no {WEIGHTS}")
    return base

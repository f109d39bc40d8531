"""Saved models and adapters on disk: which directory holds one, and what kind.

Why: a run directory, an `epochN` and an adapter's directory all look alike to a person; what they hold is
found out before anything heavy is imported, so a wrong one costs a line.

Known gap: the newest of a run directory is told by its time of change.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    return Saved(found, None if (found / WEIGHTS).is_file() else base_of(found))


def newest(path: Path, files: tuple[str, ...] = (WEIGHTS,)) -> Path | None:
    """The directory with one of `files`: `path` itself, or the newest in it; None if there is none."""
    if any((path / file).is_file() for file in files):
        return path
    found = [entry for file in files for entry in path.glob(f"*/{file}")]
    return max(found, key=lambda entry: entry.stat().st_mtime).parent if found else None


def adapter_config(directory: Path) -> dict[str, Any]:
    """What an adapter's own file says of it. Raises ConfigError if it can't be read."""
    file = directory / ADAPTER_CONFIG
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("base_model_name_or_path"), str):
        raise ConfigError(f"{file} is not that of an adapter of this trainer")
    return found


def base_of(directory: Path) -> Path:
    """The model that an adapter was trained on. Raises ConfigError if it is not there any more."""
    base = Path(adapter_config(directory)["base_model_name_or_path"])
    if not (base / WEIGHTS).is_file():
        raise ConfigError(f"{directory / ADAPTER_CONFIG} names the base {base}, which holds no {WEIGHTS}")
    return base

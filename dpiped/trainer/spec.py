"""What a model is, besides its weights: sizes, resolution and vocabulary, as a small JSON file.

Why: weights alone can be neither sampled from nor trained on. The file lies in the run directory and in
every saved model, and a resume with another model is refused before anything is loaded.

Known gap: no migration between formats; another `format` is refused.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dpiped.trainer.table import ConfigError

FILE = "model.json"
FORMAT = 2
SHAPE = ("width", "depth", "stem", "patch")
"""Two models that agree in these have the same layers, whatever pictures and captions they know."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides on parameter shapes, and the side in pixels of the pictures to sample."""

    width: int
    depth: int
    stem: int
    patch: int
    resolution: int
    max_tokens: int
    vocabulary: tuple[str, ...]

    @property
    def heads(self) -> int:
        return self.width // (32 if self.width % 32 == 0 else 16)

    @property
    def layers(self) -> int:
        """Layers of the pipeline: embedding, blocks, head."""
        return self.depth + 2

    def write(self, directory: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        (directory / FILE).write_text(text + "\n", "utf-8")


def read(directory: Path) -> ModelSpec:
    """Raises ConfigError if there is no such file or it is of another kind."""
    path = directory / FILE
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ConfigError(f"{path} was not written by this version of the trainer")
    names = {field.name for field in fields(ModelSpec)}
    if set(data) != names:
        raise ConfigError(f"{path} lacks {', '.join(sorted(names - set(data))) or 'nothing'} or has too much")
    return ModelSpec(**{**data, "vocabulary": tuple(data["vocabulary"])})


def difference(wanted: ModelSpec, found: ModelSpec) -> str:
    """What of the shape is not equal, for an error message; empty if nothing."""
    for name in SHAPE:
        if getattr(wanted, name) != getattr(found, name):
            return f"has {name} {getattr(found, name)}, the config says {getattr(wanted, name)}"
    return ""

"""Example data: pictures of coloured shapes with captions, and the two configuration files to train on them.

Why: a first training should need neither a download nor a data set of one's own, and its samples should
show at a glance whether the model understood its captions. Everything depends on the seed only, so two
people see the same pictures.

Known gap: sixteen kinds of things in three sizes and nine places; nothing to learn beyond that.
"""

import colorsys
import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from dpiped.trainer.data_config import CACHE
from dpiped.trainer.table import ConfigError

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {"red": (214, 40, 40), "green": (44, 160, 60), "blue": (40, 80, 220), "yellow": (245, 205, 30)}
SIZES = {"small": 0.17, "large": 0.29}
"""Radius as a share of the picture's side."""
ROWS = {"upper": 0.32, "middle": 0.5, "lower": 0.68}
COLUMNS = {"left": 0.32, "middle": 0.5, "right": 0.68}
OVERSAMPLING = 8
MARKER = "example.json"

TRAINING_TOML = """\
# {comment}
output_dir = {output_dir}
dataset = {dataset}
epochs = {epochs}
micro_batch_size_per_gpu = {batch}
warmup_steps = {warmup}
lr_scheduler = 'cosine'
save_every_n_epochs = {save}
checkpoint_every_n_epochs = {save}
sample_prompts = {prompts}
{uncond}
[model]
type = 'dpiped'
{model}
{adapter}[optimizer]
type = 'adamw'
lr = {lr}
betas = [0.9, 0.99]
weight_decay = 0.01
"""
ADAPTER_TOML = """\
[adapter]
type = 'lora'
rank = 4

"""
DATASET_TOML = """\
resolutions = [{resolution}]

[[directory]]
path = {path}
num_repeats = {repeats}
"""
KEEP_TOML = """
# Pictures of other things, so that the model does not draw everything like the few above.
[[directory]]
path = {path}
"""
KEPT = 60


@dataclass(frozen=True)
class Length:
    """How long a training of the example is. `images` times `repeats` times `epochs` pictures are seen."""

    comment: str
    images: int
    repeats: int
    epochs: int
    batch: int
    warmup: int
    save: int
    lr: str
    model: str = "size = 'tiny'"


LENGTHS = {
    "quick": Length(
        "A training of seconds, that only tests the machinery.",
        240,
        1,
        4,
        4,
        0,
        2,
        "1e-3",
        "width = 16\ndepth = 1",
    ),
    "demo": Length("A demonstration: less than a minute on two CPU cores.", 240, 4, 6, 16, 30, 3, "3e-3"),
    "full": Length(
        "The whole training: about five minutes on two CPU cores.", 960, 1, 60, 32, 60, 20, "2e-3"
    ),
}
LORA = Length(
    "An adapter on a few pictures: one to two minutes on two CPU cores.", 10, 6, 60, 16, 20, 20, "1e-3"
)


def kinds(only: str | None = None, without: str | None = None) -> list[tuple[str, str]]:
    """(shape, colour) pairs: all, those with one shape or colour, or those without. Raises ConfigError."""
    for name in (only, without):
        if name is not None and name not in (*SHAPES, *COLOURS):
            raise ConfigError(f"a concept is one of {', '.join((*SHAPES, *COLOURS))}, not {name!r}")
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    wanted = [pair for pair in pairs if (only is None or only in pair) and without not in pair]
    if not wanted:
        raise ConfigError(f"there is nothing that is {only} and not {without}")
    return wanted


def write_example(
    directory: Path,
    images: int = 240,
    size: int = 32,
    seed: int = 0,
    things: Sequence[tuple[str, str]] | None = None,
) -> int:
    """Writes `images` PNGs of `size` pixels with captions; returns how many there are.

    They show `things`, which is all `kinds` if not given, in turn.

    An earlier example in the directory is replaced. Raises ConfigError for any other directory that is not
    empty, so that nobody's files are mixed with ours.
    """
    if directory.exists():
        _clear(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"{index:04d}" for index in range(images)]
    (directory / MARKER).write_text(json.dumps({"files": names, "size": size, "seed": seed}) + "\n", "utf-8")
    shown = kinds() if things is None else things
    generator = random.Random(seed)
    for index, name in enumerate(names):
        picture, caption = _draw(*shown[index % len(shown)], size, generator)
        picture.save(directory / f"{name}.png")
        (directory / f"{name}.txt").write_text(caption + "\n", "utf-8")
    return images


def _clear(directory: Path) -> None:
    """Removes an earlier example; refuses what may be somebody's."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory")
    present = {path.name for path in directory.iterdir()}
    if not present:
        return
    cache = directory / CACHE
    if cache.is_dir() and [path.name for path in cache.parent.iterdir()] == [cache.name]:
        present.remove(cache.parent.name)  # a training's; it goes with the pictures
    try:
        names = json.loads((directory / MARKER).read_text("utf-8"))["files"]
        ours = {MARKER, *(f"{name}{suffix}" for name in names for suffix in (".png", ".txt"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{directory} is not empty, and holds no example data of ours") from error
    if not present <= ours:
        raise ConfigError(f"{directory} holds other files too, {min(present - ours)} for one")
    for name in present:
        (directory / name).unlink()
    shutil.rmtree(cache.parent, ignore_errors=True)


def choose(generator: random.Random) -> tuple[str, str, str]:
    """A size, a row and a column."""
    scale, row, column = (generator.choice(tuple(names)) for names in (SIZES, ROWS, COLUMNS))
    return scale, row, column


def caption(shape: str, colour: str, scale: str, row: str, column: str) -> str:
    """What the picture of such a thing is called."""
    where = "in the middle" if row == column == "middle" else f"in the {row} {column}"
    return f"a {scale} {colour} {shape} {where}"


def _draw(shape: str, colour: str, size: int, generator: random.Random) -> tuple[Image.Image, str]:
    """One anti-aliased picture and its caption."""
    scale, row, column = choose(generator)
    side = size * OVERSAMPLING
    radius = side * SIZES[scale] * generator.uniform(0.93, 1.07)
    x, y = (side * (place + generator.uniform(-0.02, 0.02)) for place in (COLUMNS[column], ROWS[row]))
    picture = Image.new("RGB", (side, side), _background(generator))
    paint(ImageDraw.Draw(picture), shape, _shade(COLOURS[colour], generator), x, y, radius)
    return picture.resize((size, size), Image.Resampling.BOX), caption(shape, colour, scale, row, column)


def _background(generator: random.Random) -> tuple[int, int, int]:
    """Pale, so that every colour stands out."""
    red, green, blue = colorsys.hsv_to_rgb(generator.random(), 0.06, generator.uniform(0.88, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(colour: tuple[int, int, int], generator: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(max(value + generator.randint(-12, 12), 0), 255) for value in colour)
    return red, green, blue


def paint(
    draw: ImageDraw.ImageDraw,
    shape: str,
    colour: tuple[int, int, int] | int,
    x: float,
    y: float,
    radius: float,
) -> None:
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        return
    corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    turn = math.pi / 4 if shape == "square" else math.pi / 2
    points = []
    for corner in range(corners):
        angle = turn + 2 * math.pi * corner / corners
        reach = radius * 1.15 * (inner if corner % 2 and shape == "star" else 1.0)
        points.append((x + reach * math.cos(angle), y - reach * math.sin(angle)))
    draw.polygon(points, colour)


def write_configs(
    directory: Path,
    data: Path,
    output_dir: Path,
    *,
    resolution: int = 32,
    length: str = "demo",
    base: Path | None = None,
    keep: Path | None = None,
) -> Path:
    """Writes `training.toml` and `dataset.toml` for a training on `data`; returns the former.

    `length` is one of LENGTHS. With a `base`, a saved model, an adapter is trained on it instead; `keep` is
    then a directory with pictures of what it should go on drawing as before. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    training, dataset = directory / "training.toml", directory / "dataset.toml"
    how = LENGTHS[length] if base is None else LORA
    values = {
        "comment": how.comment,
        "output_dir": _quoted(str(output_dir.absolute())),
        "dataset": _quoted(str(dataset.absolute())),
        "epochs": how.epochs,
        "batch": how.batch,
        "warmup": how.warmup,
        "save": how.save,
        "prompts": json.dumps([] if length == "quick" else prompts()),
        "lr": how.lr,
        "model": f"{how.model}\ndtype = 'float32'\n",
        "adapter": "",
        "uncond": "",
    }
    if base is not None:
        values["model"] = f"checkpoint_path = {_quoted(str(base.absolute()))}\n"
        values["adapter"] = ADAPTER_TOML
        # The base knows already what to draw without a caption.
        values["uncond"] = "uncond_fraction = 0.0\n"
    training.write_text(TRAINING_TOML.format(**values), "utf-8")
    path = _quoted(str(data.absolute()))
    content = DATASET_TOML.format(resolution=resolution, path=path, repeats=how.repeats)
    if keep is not None:
        content += KEEP_TOML.format(path=_quoted(str(keep.absolute())))
    dataset.write_text(content, "utf-8")
    return training


def _quoted(text: str) -> str:
    """As TOML writes a string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def prompts() -> list[str]:
    """Eight captions with all shapes and colours, for the sample pictures."""
    large = [f"a large {c} {s} in the middle" for s, c in zip(SHAPES, COLOURS, strict=True)]
    corners = ("upper left", "upper right", "lower left", "lower right")
    small = [
        f"a small {c} {s} in the {w}" for s, c, w in zip(SHAPES, reversed(COLOURS), corners, strict=True)
    ]
    return large + small

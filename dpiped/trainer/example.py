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
from pathlib import Path

from PIL import Image, ImageDraw

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
# A demonstration: one to two minutes on two CPU cores.
output_dir = {output_dir}
dataset = {dataset}
epochs = {epochs}
micro_batch_size_per_gpu = {batch}
warmup_steps = {warmup}
lr_scheduler = 'cosine'
save_every_n_epochs = {save}
checkpoint_every_n_epochs = {save}
sample_prompts = {prompts}

[model]
type = 'dpiped'
size = 'tiny'
dtype = 'float32'
{model}
[optimizer]
type = 'adamw'
lr = {lr}
betas = [0.9, 0.99]
weight_decay = 0.01
"""
DATASET_TOML = """\
resolutions = [{resolution}]

[[directory]]
path = {path}
num_repeats = {repeats}
"""


def write_example(directory: Path, images: int = 240, size: int = 32, seed: int = 0) -> int:
    """Writes `images` PNGs of `size` pixels with captions; returns how many there are.

    An earlier example in the directory is replaced. Raises ConfigError for any other directory that is not
    empty, so that nobody's files are mixed with ours.
    """
    if directory.exists():
        _clear(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"{index:04d}" for index in range(images)]
    (directory / MARKER).write_text(json.dumps({"files": names, "size": size, "seed": seed}) + "\n", "utf-8")
    kinds = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    generator = random.Random(seed)
    for index, name in enumerate(names):
        picture, caption = _draw(*kinds[index % len(kinds)], size, generator)
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
    try:
        names = json.loads((directory / MARKER).read_text("utf-8"))["files"]
        ours = {MARKER, *(f"{name}{suffix}" for name in names for suffix in (".png", ".txt"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{directory} is not empty, and holds no example data of ours") from error
    if not present <= ours:
        raise ConfigError(f"{directory} holds other files too, {min(present - ours)} for one")
    for name in present:
        (directory / name).unlink()


def _draw(shape: str, colour: str, size: int, generator: random.Random) -> tuple[Image.Image, str]:
    """One anti-aliased picture and its caption."""
    scale, row, column = (generator.choice(tuple(names)) for names in (SIZES, ROWS, COLUMNS))
    side = size * OVERSAMPLING
    radius = side * SIZES[scale] * generator.uniform(0.93, 1.07)
    x, y = (side * (place + generator.uniform(-0.02, 0.02)) for place in (COLUMNS[column], ROWS[row]))
    picture = Image.new("RGB", (side, side), _background(generator))
    _paint(ImageDraw.Draw(picture), shape, _shade(COLOURS[colour], generator), x, y, radius)
    where = "in the middle" if row == column == "middle" else f"in the {row} {column}"
    return picture.resize((size, size), Image.Resampling.BOX), f"a {scale} {colour} {shape} {where}"


def _background(generator: random.Random) -> tuple[int, int, int]:
    """Pale, so that every colour stands out."""
    red, green, blue = colorsys.hsv_to_rgb(generator.random(), 0.06, generator.uniform(0.88, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(colour: tuple[int, int, int], generator: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(max(value + generator.randint(-12, 12), 0), 255) for value in colour)
    return red, green, blue


def _paint(
    draw: ImageDraw.ImageDraw, shape: str, colour: tuple[int, int, int], x: float, y: float, radius: float
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
    directory: Path, data: Path, output_dir: Path, *, resolution: int = 32, quick: bool = False
) -> Path:
    """Writes `training.toml` and `dataset.toml` for a training on `data`; returns the former.

    `quick` is for tests: steps of some ten milliseconds, which learn nothing to speak of. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    training, dataset = directory / "training.toml", directory / "dataset.toml"
    prompts = [
        f"a large {colour} {shape} in the middle" for shape, colour in zip(SHAPES, COLOURS, strict=True)
    ]
    prompts += [
        f"a small {c} {s} in the {w}" for s, c, w in zip(SHAPES, reversed(COLOURS), PLACES, strict=True)
    ]
    values = {
        "output_dir": json.dumps(str(output_dir.absolute())),
        "dataset": json.dumps(str(dataset.absolute())),
        "epochs": 4 if quick else 12,
        "batch": 4 if quick else 16,
        "warmup": 0 if quick else 30,
        "save": 2 if quick else 4,
        "prompts": json.dumps([] if quick else prompts),
        "lr": "1e-3" if quick else "2e-3",
        "model": "width = 16\ndepth = 1\n" if quick else "",
    }
    training.write_text(TRAINING_TOML.format(**values), "utf-8")
    path = json.dumps(str(data.absolute()))
    repeats = 1 if quick else 4
    dataset.write_text(DATASET_TOML.format(resolution=resolution, path=path, repeats=repeats), "utf-8")
    return training


PLACES = ("upper left", "upper right", "lower left", "lower right")

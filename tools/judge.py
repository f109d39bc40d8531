"""What a picture of the example's kind shows: colour and shape, measured on its pixels.

Why: whether a trained model draws what its captions say must not be judged by a model. Here the background
is what lies at the border, the thing is what differs from it, its colour is the nearest by hue, and its
shape the one whose drawn outline, moved and scaled, covers it best.

Known gap: knows one thing on a pale ground, upright, and nothing else.
"""

import colorsys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dpiped.trainer.example import COLOURS, SHAPES, paint

Floats = npt.NDArray[np.float64]
LEAST_COVER = 0.7
"""Of what picture and outline cover together, the share that both cover. Less is none of the shapes."""
LEAST_CONTRAST = 60.0
LEAST_AREA, MOST_AREA = 0.02, 0.5
HUE_TOLERANCE = 0.09
OVERSAMPLING = 4


@dataclass(frozen=True)
class Seen:
    """None where nothing was recognised. `cover` is how well the best outline fits, from 0 to 1."""

    colour: str | None
    shape: str | None
    cover: float = 0.0


def look(picture: npt.NDArray[np.uint8]) -> Seen:
    """Judges one picture [side, side, 3]."""
    pixels = picture.astype(float)
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    ground = np.median(border, 0)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    top = float(np.quantile(distance, 0.99))
    if top < LEAST_CONTRAST:
        return Seen(None, None)
    thing = _largest_part(distance > top / 2)
    area = thing.mean()
    if not LEAST_AREA < area < MOST_AREA:
        return Seen(None, None)
    colour = _colour(np.median(pixels[thing & (distance > 0.7 * top)], 0))
    # The ground's own unevenness must not count as a part of the thing, nor what lies apart from it.
    alpha = np.where(_grown(thing), np.clip((distance / top - 0.2) / 0.6, 0, 1), 0)
    shape, cover = _shape(alpha)
    return Seen(colour, shape if cover >= LEAST_COVER else None, cover)


def matches(seen: Seen, caption: str) -> bool:
    """Are colour and shape those of a caption of the example (`a small red star in the …`)?"""
    words = caption.split()
    return seen.colour in words and seen.shape in words


def _around(grid: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The grid moved by a pixel to each of the four sides."""
    height, width = grid.shape
    padded = np.pad(grid, 1)
    steps = ((0, 1), (2, 1), (1, 0), (1, 2))
    return [padded[y : y + height, x : x + width] for y, x in steps]


def _grown(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    grown: npt.NDArray[np.bool_] = np.logical_or.reduce([mask, *_around(mask)])
    return grown


def _largest_part(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest connected part, found by spreading labels."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, np.maximum.reduce([labels, *_around(labels)]), 0)
        if (spread == labels).all():
            break
        labels = spread
    names, counts = np.unique(labels[mask], return_counts=True)
    found: npt.NDArray[np.bool_] = labels == names[counts.argmax()]
    return found


def _colour(rgb: Floats) -> str | None:
    hue, saturation, _ = colorsys.rgb_to_hsv(*(rgb / 255))
    if saturation < 0.35:
        return None

    def away(name: str) -> float:
        other = colorsys.rgb_to_hsv(*(value / 255 for value in COLOURS[name]))[0]
        return min(abs(hue - other), 1 - abs(hue - other))

    best = min(COLOURS, key=away)
    return best if away(best) < HUE_TOLERANCE else None


def _shape(alpha: Floats) -> tuple[str, float]:
    """The shape whose outline covers `alpha` (0 ground to 1 thing) best, and how well."""
    side = len(alpha)
    found = {shape: _best_cover(alpha, _outlines(shape, side)) for shape in SHAPES}
    best = max(found, key=lambda shape: found[shape])
    return best, found[best]


def _best_cover(alpha: Floats, outlines: list[Floats]) -> float:
    """Over all sizes, with the outline's centre of mass on the picture's and a pixel around it."""
    rows, columns = (np.arange(len(alpha)) @ alpha.sum(1 - axis) / alpha.sum() for axis in (0, 1))
    centre = (len(alpha) - 1) / 2
    best = 0.0
    for outline in outlines:
        y, x = (np.arange(len(alpha)) @ outline.sum(1 - axis) / outline.sum() - centre for axis in (0, 1))
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                moved = _moved(outline, round(rows - centre - y) + down, round(columns - centre - x) + right)
                best = max(best, float(np.minimum(moved, alpha).sum() / np.maximum(moved, alpha).sum()))
    return best


def _moved(outline: Floats, down: int, right: int) -> Floats:
    return np.roll(outline, (down, right), (0, 1))


@cache
def _outlines(shape: str, side: int) -> list[Floats]:
    """The shape in the middle of a picture, in all sizes that the example draws, and half-pixel places."""
    found = []
    for radius in np.linspace(0.13, 0.34, 15):
        for shift in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):
            canvas = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING))
            middle = [(side / 2 + part) * OVERSAMPLING for part in shift]
            paint(ImageDraw.Draw(canvas), shape, 255, middle[0], middle[1], radius * side * OVERSAMPLING)
            small = canvas.resize((side, side), Image.Resampling.BOX)
            found.append(np.asarray(small, float) / 255)
    return found

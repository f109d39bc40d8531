"""The measure of what a picture shows: right on the example's own pictures, at chance on anything else."""

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("PIL") is None and os.environ.get("CI") != "true":
    pytest.skip("Pillow is not installed", allow_module_level=True)

import numpy as np
import numpy.typing as npt
from PIL import Image

from dpiped.trainer.example import write_example
from tools import judge

pytestmark = pytest.mark.timeout(120)


def read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_it_sees_what_the_captions_of_the_example_say(tmp_path: Path) -> None:
    write_example(tmp_path, 64, 32, seed=3)
    for path in sorted(tmp_path.glob("*.png")):
        caption = path.with_suffix(".txt").read_text().strip()
        seen = judge.look(read(path))
        assert judge.matches(seen, caption), f"{path}: {caption}, seen {seen}"


def test_a_little_noise_does_not_matter_and_much_does(tmp_path: Path) -> None:
    write_example(tmp_path, 16, 32, seed=4)
    generator = np.random.default_rng(0)
    right = {8: 0, 300: 0}
    for path in tmp_path.glob("*.png"):
        caption = path.with_suffix(".txt").read_text()
        for noise in right:
            noisy = read(path) + generator.normal(0, noise, (32, 32, 3))
            right[noise] += judge.matches(judge.look(noisy.clip(0, 255).astype(np.uint8)), caption)
    assert right[8] == 16
    assert right[300] < 2


def test_it_is_at_chance_for_pictures_of_something_else(tmp_path: Path) -> None:
    """Captions and pictures that don't belong together agree once in sixteen times."""
    write_example(tmp_path, 64, 32, seed=5)
    seen = [judge.look(read(path)) for path in sorted(tmp_path.glob("*.png"))]
    captions = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    pairs = [judge.matches(one, caption) for one in seen for caption in captions]
    assert sum(pairs) / len(pairs) == pytest.approx(1 / 16)


@pytest.mark.parametrize("kind", ["noise", "flat", "black", "gradient"])
def test_it_sees_nothing_where_nothing_is(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    gradient = np.repeat(np.linspace(0, 255, 32).astype(np.uint8), 96).reshape(32, 32, 3)
    pictures = {"noise": noise, "flat": noise * 0 + 230, "black": noise * 0, "gradient": gradient}
    assert judge.look(pictures[kind]).shape is None


def test_it_tells_shapes_of_equal_area_apart() -> None:
    """An ellipse is no circle, a ring nothing at all."""
    from PIL import ImageDraw

    def drawn(box: tuple[int, int, int, int], hole: int = 0) -> judge.Seen:
        image = Image.new("RGB", (256, 256), (240, 240, 240))
        draw = ImageDraw.Draw(image)
        draw.ellipse(box, (214, 40, 40))
        left, top, right, bottom = box
        if hole:
            draw.ellipse((left + hole, top + hole, right - hole, bottom - hole), (240, 240, 240))
        return judge.look(np.asarray(image.resize((32, 32), Image.Resampling.BOX)))

    circle = drawn((70, 70, 190, 190))
    assert (circle.colour, circle.shape) == ("red", "circle")
    assert drawn((20, 100, 236, 150)).shape is None
    assert drawn((70, 70, 190, 190), hole=25).shape is None

"""The embedded trainer's data: size buckets, folders, decoding, the cache on disk, order and noise."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
import fcntl
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainings import Setup, make_setup, need_trainer, odd_images

need_trainer()

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dpiped.trainer import batches, buckets, cache, config, data_config, dataset, examples, text
from dpiped.trainer.buckets import Asked, Buckets
from dpiped.trainer.cache import Source
from dpiped.trainer.config import ForSize
from dpiped.trainer.examples import Bucket
from dpiped.trainer.table import ConfigError, Table
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)

# Buckets

SIDES = st.integers(8, 2048)


@given(st.floats(8, 2048), st.floats(0.2, 5), st.sampled_from([4, 8, 16]))
def test_a_bucket_has_about_the_area_and_the_ratio(side: float, ratio: float, multiple: int) -> None:
    width, height = buckets.of_ratio(side * side, ratio, multiple)
    assert width % multiple == height % multiple == 0 < min(width, height)
    for found, wanted in ((width, side * math.sqrt(ratio)), (height, side / math.sqrt(ratio))):
        assert abs(found - wanted) <= max(multiple / 2 + 1e-6, multiple - wanted)


@given(SIDES, SIDES, st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=8, unique=True))
def test_no_other_bucket_is_nearer_in_shape(width: int, height: int, sizes: list[tuple[int, int]]) -> None:
    (chosen,) = Buckets((tuple(sizes),)).assign(width, height)

    def away(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert away(chosen) <= min(away(size) for size in sizes) + 1e-6


def read(text: str) -> Asked:
    import tomllib

    return buckets.read(Table(tomllib.loads(text)))


def test_what_the_keys_ask_for() -> None:
    assert read("resolutions = [32]").buckets(4).groups == (((32, 32),),)
    assert read("resolutions = [32, [64, 16]]").sides == (32.0,), "a pair is another way to say an area"
    assert read("size_buckets = [[32, 16, 1], [16, 32, 1]]").buckets(4).sizes == ((32, 16), (16, 32))
    ratios = "enable_ar_bucket = true\nmin_ar = 0.5\nmax_ar = 2\nnum_ar_buckets = 3\n"
    assert read(f"resolutions = [32]\n{ratios}").buckets(4).sizes == ((24, 44), (32, 32), (44, 24))
    assert read(f"resolutions = [32]\n{ratios}".replace("true", "false")).buckets(4).sizes == ((32, 32),)
    assert read("resolutions = [[40, 24]]").unfit(16) is None, "an area may be any; the bucket is rounded"
    assert read("resolutions = [[40, 24]]").buckets(16).sizes == ((32, 32),)
    assert read("resolutions = [40]").unfit(16) == 40
    pairs = "enable_ar_bucket = true\nar_buckets = [[48, 24], [24, 48]]"
    assert read(f"resolutions = [32]\n{pairs}").buckets(4).sizes == ((48, 24), (24, 48))
    asked = read("resolutions = [32, 64]\nenable_ar_bucket = true\nar_buckets = [1.0, 2]")
    assert asked.largest == 64
    assert asked.buckets(16).groups == (((32, 32), (48, 16)), ((64, 64), (96, 48)))
    assert asked.buckets(16).assign(200, 100) == [(48, 16), (96, 48)], (
        "a picture is trained at each resolution"
    )


def test_numbers_for_sizes_are_those_of_the_nearest_side() -> None:
    number = ForSize(((512, 4), (1024, 1)))
    assert [number(size) for size in ((512, 512), (640, 384), (1024, 1024), (2000, 2000))] == [4, 4, 1, 1]
    assert ForSize((), (((24, 44), 3), ((44, 24), 5)))((44, 24)) == 5


# Folders and pictures


def directory(setup: Setup, *lines: str) -> data_config.Directory:
    for line in lines:
        setup.edit("dataset", ("num_repeats = 1", f"num_repeats = 1\n{line}"))
    return data_config.load(setup.dataset).directories[0]


def source(setup: Setup, *lines: str) -> Source:
    found = directory(setup, *lines)
    return Source(
        found, found.asked.buckets(4), "directory[0].path", dataset.scan(found, "directory[0].path")
    )


def test_captions_come_from_json_where_there_is_one(setup: Setup) -> None:
    captions = {"0000.png": ["one", " two "], "0001.png": [], "0002.png": ["three"]}
    (setup.data / "captions.json").write_text(json.dumps(captions))
    found = dataset.scan(directory(setup), "here")
    assert [(item.path.name, item.captions) for item in found.items] == [
        ("0000.png", ("one", "two")),
        ("0002.png", ("three",)),
    ]
    assert len(found.without_caption) == 6
    assert len(dataset.scan(directory(setup, "skip_empty_caption = false"), "here").items) == 8


def test_odd_images_are_decoded_upright_and_opaque(tmp_path: Path) -> None:
    odd_images(tmp_path / "odd")
    square = Buckets((((16, 16),),))

    def colour(name: str) -> tuple[int, ...]:
        ((size, pixels),) = dataset.decode(tmp_path / "odd" / name, square)
        assert (size, pixels.shape) == ((16, 16), (16, 16, 3))
        return tuple(int(value) for value in pixels[8, 8])

    assert colour("grey.png") == (90, 90, 90)
    assert colour("transparent.png") == (255, 255, 255)
    assert colour("palette.gif")[2] > 200
    assert colour("deep.png") == pytest.approx((155, 155, 155), abs=1)
    assert colour("tiny.webp")[0] > 200
    marked = Image.new("RGB", (64, 32), "white")
    marked.paste("black", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is up
    marked.save(tmp_path / "up.png", exif=exif)
    ((size, upright),) = dataset.decode(tmp_path / "up.png", Buckets((((16, 32), (32, 16)),)))
    assert size == (16, 32), "the bucket is that of the picture as it is to be looked at"
    assert upright[4, 8, 0] < 50
    assert upright[27, 8, 0] > 200


# The cache


def fill(found: Source, regenerate: bool = False) -> cache.Cached:
    with cache.locked([found]):
        cache.cache_pictures(found, regenerate, 2, lambda what, _: iter(what))
        cache.cache_captions(found, regenerate)
    return cache.load(found)


def said(capsys: pytest.CaptureFixture[str], line: str) -> int:
    return capsys.readouterr().out.count(line)


def test_the_cache_holds_the_pictures_and_is_used_again(
    setup: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    found = source(setup)
    opened = fill(found)
    assert said(capsys, "[CACHE] Storing new fingerprint: ") == 2
    for pixels, item in zip(opened.pixels[16, 16], opened.rows[16, 16], strict=True):
        assert (pixels == dataset.decode(item.path, found.buckets)[0][1]).all()
        assert item.captions == (item.path.with_suffix(".txt").read_text().strip(),)
    again = fill(source(setup))
    assert said(capsys, "[CACHE] Existing cache has fingerprint ") == 2
    assert again.scan == opened.scan
    fill(source(setup), regenerate=True)
    assert said(capsys, "[CACHE] Storing new fingerprint: ") == 2


CHANGES: dict[str, tuple[Callable[[Setup], object], int]] = {
    "a picture more": (lambda s: Image.new("RGB", (16, 16)).save(s.data / "9.png"), 2),
    "a picture changed": (lambda s: Image.new("RGB", (16, 17)).save(s.data / "0000.png"), 1),
    "a caption changed": (lambda s: (s.data / "0000.txt").write_text("another"), 1),
    "a stray file": (lambda s: (s.data / "notes.md").write_text("x"), 1),
}


@pytest.mark.parametrize(("change", "renewed"), CHANGES.values(), ids=CHANGES)
def test_what_changes_makes_only_that_part_anew(
    setup: Setup, capsys: pytest.CaptureFixture[str], change: Callable[[Setup], object], renewed: int
) -> None:
    (setup.data / "9.txt").write_text("nine")
    fill(source(setup))
    capsys.readouterr()
    change(setup)
    fill(source(setup))
    assert said(capsys, "[CACHE] Fingerprint changed, deleting existing cache files") == renewed


def test_other_buckets_have_a_cache_of_their_own(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    fill(source(setup))
    setup.edit("dataset", ("[16]", "[32]"))
    assert fill(source(setup)).pixels[32, 32].shape == (8, 32, 32, 3)
    setup.edit("dataset", ("[32]", "[16]"))
    capsys.readouterr()
    fill(source(setup))
    assert said(capsys, "[CACHE] Existing cache has fingerprint ") == 2


def cut_short(place: Path) -> None:
    pixels = place / "latents" / "16x16"
    os.truncate(pixels, pixels.stat().st_size - 1)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "pictures cut short": cut_short,
    "index broken": lambda place: (place / "latents/index.json").write_text('{"format"'),
    "index of another kind": lambda place: (place / "latents/index.json").write_text("[]"),
    "captions broken": lambda place: (place / "text.json").write_text(""),
    "left over": lambda place: (place / "latents").rename(place / "latents.new"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_never_used(setup: Setup, damage: Callable[[Path], Any]) -> None:
    found = source(setup)
    fill(found)
    damage(found.place)
    assert not cache.is_there(found)
    with pytest.raises(ConfigError, match="is not whole; --regenerate_cache"):
        cache.load(found)
    assert fill(found).pixels[16, 16].shape == (8, 16, 16, 3)
    assert not (found.place / "latents.new").exists()


def test_a_trusted_cache_is_used_without_a_look_at_the_files(setup: Setup) -> None:
    from dpiped.trainer import job, main

    fill(source(setup))
    for path in setup.data.glob("*.*"):
        path.unlink()
    arguments = main.parse(["--config", str(setup.training), "--trust_cache"])
    (found,) = job.prepare(arguments, 1).sources[""]
    assert found.scan is None
    assert fill(found).pixels[16, 16].shape == (8, 16, 16, 3)
    with pytest.raises(ConfigError, match="there are no images"):
        job.prepare(main.parse(["--config", str(setup.training)]), 1)
    setup.edit("dataset", ("[16]", "[32]"))
    with pytest.raises(ConfigError, match="there are no images"):
        job.prepare(arguments, 1)


def test_unreadable_pictures_are_refused_or_skipped(setup: Setup) -> None:
    (setup.data / "0002.png").write_bytes(b"nothing")
    (setup.data / "0005.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"2 of 8 images in .* can't be read: 0002\.png, 0005\.png"):
        fill(source(setup))
    found = source(setup, "skip_unreadable = true")
    opened = fill(found)
    assert [path.name for path in opened.unreadable] == ["0002.png", "0005.png"]
    assert len(opened.rows[16, 16]) == 6
    setup.edit("dataset", ("skip_unreadable = true", "skip_unreadable = false"))
    with pytest.raises(ConfigError, match="2 of 8 images"):
        fill(source(setup))
    for path in setup.data.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"8 of 8 images in .* can't be read"):
        fill(Source(found.directory, found.buckets, "here", dataset.scan(found.directory, "here")))


def test_a_cache_that_cannot_be_written_is_refused(setup: Setup) -> None:
    (setup.data / "cache").write_text("in the way")
    with pytest.raises(ConfigError, match=r"directory\[0\]\.path: the cache .* can't be written"):
        fill(source(setup))


def test_one_folder_by_two_names_is_locked_once(setup: Setup, tmp_path: Path) -> None:
    """Else it would wait for itself for ever."""
    (tmp_path / "link").symlink_to(setup.data)
    first = source(setup)
    setup.edit("dataset", (str(setup.data), str(tmp_path / "link")))
    second = source(setup)
    assert first.place != second.place
    with cache.locked([first, second]):
        for each in (first, second):
            cache.cache_pictures(each, False, 2, lambda what, _: iter(what))
            cache.cache_captions(each, False)
    assert (cache.load(first).pixels[16, 16] == cache.load(second).pixels[16, 16]).all()


def test_no_more_pictures_are_decoded_than_are_written_soon(tmp_path: Path) -> None:
    """Else a slow disk and a large folder would fill the memory."""
    setup = make_setup(tmp_path, images=60)
    most = 0
    decoded: list[Path] = []
    decode = dataset.decode

    def watch(path: Path, sizes: Buckets) -> Any:
        decoded.append(path)
        return decode(path, sizes)

    def slowly(what: Any, _: int) -> Any:
        nonlocal most
        for number, each in enumerate(what):
            most = max(most, len(decoded) - number)
            yield each

    found = source(setup)
    with pytest.MonkeyPatch.context() as patch, cache.locked([found]):
        patch.setattr(dataset, "decode", watch)
        cache.cache_pictures(found, False, 2, slowly)
    assert len(decoded) == 60
    assert most <= 8


def test_names_and_captions_may_hold_anything(setup: Setup) -> None:
    names = ["a\udce9.png", "two words.png", "\U0001f600.png"]
    for name in names:
        Image.new("RGB", (16, 16)).save(setup.data / "new.png")
        (setup.data / "new.png").rename(setup.data / name)
    (setup.data / "captions.json").write_text(json.dumps({name: ["a \ud83d star"] for name in names}))
    opened = fill(source(setup))
    assert sorted(item.path.name for item in opened.scan.items) == sorted(names)
    assert {item.captions for item in opened.scan.items} == {("a \ud83d star",)}
    words = text.build_vocabulary(["a \ud83d star"])
    assert (
        text.Tokenizer(words, 4).encode("a \ud83d comet")[:2]
        == text.Tokenizer(words, 4).encode("a \ud83d")[:2]
    )


def test_a_byte_order_mark_is_no_caption(setup: Setup) -> None:
    (setup.data / "0000.txt").write_bytes(b"\xef\xbb\xbfa red star")
    (setup.data / "0001.txt").write_bytes(b"\xef\xbb\xbf")
    found = dataset.scan(directory(setup), "here")
    assert found.items[0].captions == ("a red star",)
    assert [path.name for path in found.without_caption] == ["0001.png"]


def test_broken_camera_data_does_not_cost_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    at = whole.index(b"Exif") + 6
    for cut in range(40):
        broken = whole[:at] + bytes((cut * 37 + place) % 256 for place in range(20)) + whole[at + 20 :]
        (tmp_path / "a.jpg").write_bytes(broken)
        ((_, pixels),) = dataset.decode(tmp_path / "a.jpg", Buckets((((16, 16),),)))
        assert pixels[8, 8, 0] > 200


def test_two_trainings_take_turns(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    found = source(setup)
    fill(found)
    capsys.readouterr()
    with (found.place / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entered = threading.Event()

        def enter() -> None:
            with cache.locked([found]):
                entered.set()

        waiting = threading.Thread(target=enter)
        waiting.start()
        wait_until(lambda: "Waiting for another training" in capsys.readouterr().out, "it says that it waits")
        assert not entered.is_set()
    waiting.join(20)
    assert entered.is_set()


# Examples and batches


def example_buckets(setup: Setup, *lines: str) -> list[Bucket]:
    found = source(setup, *lines)
    return examples.gather([(found.directory, fill(found))])


def layout(micro: int, accumulation: int, replicas: int, replica: int) -> batches.Layout:
    return batches.Layout(ForSize(((0, micro),)), accumulation, replicas, replica)


@pytest.mark.parametrize(
    ("line", "count"),
    [("", 8), ("cache_shuffle_num = 3", 24)],
)
def test_how_often_an_epoch_shows_a_picture(setup: Setup, line: str, count: int) -> None:
    (bucket,) = example_buckets(setup, *([line] if line else []))
    assert len(bucket.examples) == count


@pytest.mark.parametrize(("repeats", "count"), [("2", 16), ("2.5", 20), ("0.5", 4)])
def test_repeats_may_be_broken(setup: Setup, repeats: str, count: int) -> None:
    setup.edit("dataset", ("num_repeats = 1", f"num_repeats = {repeats}"))
    found = source(setup)
    (bucket,) = examples.gather([(found.directory, fill(found))])
    assert len(bucket.examples) == count
    shown = [sum(one.caption == example.caption for one in bucket.examples) for example in bucket.examples]
    assert max(shown) - min(shown) <= 1


def test_batches_do_not_depend_on_the_layout(setup: Setup) -> None:
    found = example_buckets(setup)
    tokens = text.Tokenizer(text.RESERVED, 5)
    draw = batches.Draw(seed=3, uncond=0.5, logit_normal=True)

    def step(*layouts: batches.Layout) -> torch.Tensor:
        parts: list[batches.MicroBatch] = []
        for how in layouts:
            made = batches.Batches(found, tokens, how, draw)
            parts += made.micro_batches(2, made.step(2, 1))
        return torch.cat([part[0][0] for part in parts]).flatten(1).sort(0).values

    whole = step(layout(4, 1, 1, 0))
    assert whole.shape == (4, 3 * 16 * 16)
    assert torch.equal(whole, step(layout(1, 4, 1, 0)))
    assert torch.equal(whole, step(layout(1, 2, 2, 0), layout(1, 2, 2, 1)))


def test_an_epoch_holds_every_example_once(setup: Setup) -> None:
    found = example_buckets(setup)
    draw = batches.Draw(0, 0.0, False)
    made = batches.Batches(found, text.Tokenizer((), 1), layout(1, 1, 1, 0), draw)
    assert made.steps_per_epoch == 8

    def clean(epoch: int) -> list[bytes]:
        parts = [part for number in range(8) for part in made.micro_batches(epoch, made.step(epoch, number))]
        images = [(noisy - time_[:, None, None, None] * velocity) for (noisy, time_, _), velocity in parts]
        return [((image + 1) * 127.5).round().byte().numpy().tobytes() for image in images]

    wanted = sorted(one.pixels.transpose(2, 0, 1).tobytes() for one in found[0].examples)
    assert sorted(clean(1)) == sorted(clean(2)) == wanted
    assert clean(1) != clean(2)


def test_small_buckets_are_dropped_and_steps_of_all_others_mixed(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, images=20)
    for number, path in enumerate(sorted(setup.data.glob("*.png"))):
        Image.new("RGB", (32, 16) if number < 9 else (16, 16) if number < 19 else (16, 32)).save(path)
    found = example_buckets(setup, "enable_ar_bucket = true", "ar_buckets = [0.5, 1.0, 2.0]")
    made = batches.Batches(found, text.Tokenizer((), 1), layout(2, 1, 1, 0), batches.Draw(0, 0.0, True))
    assert [bucket[2] for bucket in made.plan] == [1, 10, 9]
    assert made.dropped == [found[0]]
    assert made.steps_per_epoch == 5 + 4
    orders = [[made.step(epoch, number).bucket for number in range(9)] for epoch in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == [1] * 5 + [2] * 4
    assert orders[0] != orders[1]


def test_tags_are_shuffled_behind_the_prefix(setup: Setup) -> None:
    for path in setup.data.glob("*.txt"):
        path.write_text("one; two; three; four")
    lines = ("shuffle_tags = true", "caption_prefix = 'look, '", "cache_shuffle_delimiter = '; '")
    (bucket,) = example_buckets(setup, *lines)
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    drawn = {batches.caption(bucket.examples[0], generator) for _ in range(20)}
    assert len(drawn) > 3
    for caption in drawn:
        assert caption.startswith("look, ")
        assert sorted(caption.removeprefix("look, ").split("; ")) == ["four", "one", "three", "two"]


def test_quantiles_are_points_of_the_times_that_training_draws() -> None:
    normal = batches.Draw(0, 0.0, True)
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    drawn = np.sort([normal.time(generator.standard_normal(), 0.0) for _ in range(4000)])
    for quantile in (0.1, 0.5, 0.9):
        time = batches.Draw(0, 0.0, True, quantile).time(9.9, 9.9)
        assert time == pytest.approx(drawn[int(quantile * 4000)], abs=0.02)
        assert batches.Draw(0, 0.0, False, quantile).time(9.9, 9.9) == quantile


def test_a_plan_tells_captions_order_and_batches(setup: Setup) -> None:
    def plan(micro: int = 1, seed: int = 0) -> list[list[int | str]]:
        return batches.Batches(
            example_buckets(setup),
            text.Tokenizer((), 1),
            layout(micro, 1, 1, 0),
            batches.Draw(seed, 0.0, True),
        ).plan

    first = plan()
    assert first == plan() != plan(2) and first != plan(seed=1)
    (setup.data / "0000.txt").write_text("another")
    assert first != plan()


def test_only_numbers_that_occur_count(setup: Setup) -> None:
    how = batches.Layout(ForSize(((16, 2), (512, 64))), 2, 1, 0)
    made = batches.Batches(example_buckets(setup), text.Tokenizer((), 1), how, batches.Draw(0, 0.0, True))
    assert (made.largest_micro, made.largest) == (2, 4)


def test_an_evaluation_looks_at_all_buckets_that_it_can(tmp_path: Path) -> None:
    """Mirrored buckets have equal sides, and each its own number of pictures."""
    from dpiped.trainer.evaluation import Evaluation

    setup = make_setup(tmp_path, images=14)
    for number, path in enumerate(sorted(setup.data.glob("*.png"))):
        Image.new("RGB", (32, 16) if number < 8 else (16, 32) if number < 13 else (16, 16)).save(path)
    found = example_buckets(setup, "enable_ar_bucket = true", "ar_buckets = [0.5, 1.0, 2.0]")
    tokens, draw = text.Tokenizer((), 1), batches.Draw(0, 0.5, True)
    evaluation = Evaluation({"x": found}, tokens, layout(8, 1, 2, 0), draw)
    (left_out,) = evaluation.left_out
    assert "x: size bucket (16, 16, 1) is being completely dropped: it has 1 examples for 2" in left_out
    (made,) = {len(each) for each in evaluation._sets.values()}
    assert made == 9
    plan = evaluation._sets["x"][0].plan
    assert sorted((bucket[2], bucket[3]) for bucket in plan) == [(5, 4), (8, 8)]
    with pytest.raises(ConfigError, match="eval_datasets: x: size bucket"):
        Evaluation({"x": [found[1]]}, tokens, layout(8, 1, 2, 0), draw)


def test_the_patch_size_follows_the_largest_picture(setup: Setup) -> None:
    for resolution, patch in (("[16]", 4), ("[64]", 4), ("[256, 64]", 8), ("[512]", 16)):
        content = setup.dataset.read_text()
        setup.dataset.write_text(content.replace("[16]", resolution))
        assert config.load(setup.training).model.patch == patch
        setup.dataset.write_text(content)

"""The example data: equal for equal seeds, true to its captions, and nobody's files are touched."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

if importlib.util.find_spec("PIL") is None and os.environ.get("CI") != "true":
    pytest.skip("Pillow is not installed", allow_module_level=True)

from PIL import Image

from dpiped.trainer import __main__ as cli
from dpiped.trainer.example import COLOURS, write_configs, write_example
from dpiped.trainer.table import ConfigError

pytestmark = pytest.mark.timeout(60)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    assert write_example(tmp_path / "a", 24, 32, seed=5) == 24
    write_example(tmp_path / "b", 24, 32, seed=5)
    write_example(tmp_path / "c", 24, 32, seed=6)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_every_picture_shows_the_colour_of_its_caption(tmp_path: Path) -> None:
    write_example(tmp_path, 48, 32)
    for path in sorted(tmp_path.glob("*.png")):
        colour = COLOURS[path.with_suffix(".txt").read_text().split()[2]]
        with Image.open(path) as image:
            assert image.size == (32, 32)
            raw = image.convert("RGB").tobytes()
        pixels = [raw[at : at + 3] for at in range(0, len(raw), 3)]
        distances = [max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) for pixel in pixels]
        assert sum(distance < 20 for distance in distances) > 10, path


def test_an_earlier_example_is_replaced_with_a_training_s_cache(tmp_path: Path) -> None:
    write_example(tmp_path, 20, 16)
    (tmp_path / "cache/dpiped/0123").mkdir(parents=True)
    (tmp_path / "cache/dpiped/0123/text.json").write_text("{}")
    write_example(tmp_path, 8, 16)
    assert len(list(tmp_path.glob("*.png"))) == 8
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache/mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds other files too, cache for one"):
        write_example(tmp_path, 8, 16)


@pytest.mark.parametrize("earlier", [False, True])
def test_other_files_are_never_mixed_with_it(tmp_path: Path, earlier: bool) -> None:
    if earlier:
        write_example(tmp_path, 4, 16)
    (tmp_path / "holiday.png").write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"not empty|holds other files"):
        write_example(tmp_path, 4, 16)
    assert contents(tmp_path) == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="is not a directory"):
        write_example(tmp_path / "data", 4, 16)


@pytest.mark.parametrize(("length", "repeats"), [("quick", 1), ("demo", 4), ("full", 1)])
def test_configs_are_toml_with_absolute_paths(tmp_path: Path, length: str, repeats: int) -> None:
    data = tmp_path / 'it\'s a "data" folder \U0001f600'
    training = tomllib.loads(
        write_configs(tmp_path / "configs", data, tmp_path / "out", length=length).read_text("utf-8")
    )
    assert training["model"]["type"] == "dpiped"
    assert training["output_dir"] == str(tmp_path / "out")
    dataset = tomllib.loads(Path(training["dataset"]).read_text("utf-8"))
    assert dataset["directory"] == [{"path": str(data), "num_repeats": repeats}]


def captions_of(folder: Path) -> list[str]:
    return [path.read_text().strip() for path in sorted((folder / "data").glob("*.txt"))]


def test_command_shows_only_what_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["example", str(tmp_path / "a"), "--images", "24", "--without", "star"]) == 0
    assert all("star" not in caption for caption in captions_of(tmp_path / "a"))
    assert cli.main(["example", str(tmp_path / "b"), "--images", "9", "--only", "yellow"]) == 0
    assert len(captions_of(tmp_path / "b")) == 9
    assert all("yellow" in caption for caption in captions_of(tmp_path / "b"))
    assert cli.main(["example", str(tmp_path / "c"), "--only", "purple"]) == 1
    assert "a concept is one of circle, square, " in capsys.readouterr().err
    assert cli.main(["example", str(tmp_path / "c"), "--only", "star", "--without", "star"]) == 1
    assert "there is nothing that is star and not star" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_command_writes_an_adapter_s_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "run" / "epoch7"
    saved.mkdir(parents=True)
    (saved / "model.safetensors").touch()
    words = ["example", str(tmp_path / "a"), "--only", "star", "--base", str(tmp_path / "run")]
    assert cli.main(words) == 0
    training = tomllib.loads((tmp_path / "a" / "training.toml").read_text())
    assert training["model"] == {"type": "dpiped", "checkpoint_path": str(saved)}
    assert training["adapter"]["type"] == "lora"
    assert len(captions_of(tmp_path / "a")) == 10
    dataset = tomllib.loads((tmp_path / "a" / "dataset.toml").read_text())
    assert [entry["path"] for entry in dataset["directory"]] == [
        str(tmp_path / "a/data"),
        str(tmp_path / "a/keep"),
    ]
    assert all("star" not in path.read_text() for path in (tmp_path / "a/keep").glob("*.txt"))
    assert cli.main(["example", str(tmp_path / "b"), "--base", str(tmp_path / "a")]) == 1
    assert f"--base: {tmp_path / 'a'} holds no saved model" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("words", [["--images", "0"], ["--images", "many"], ["--size", "-1"]])
def test_command_takes_whole_numbers(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["example", str(tmp_path), *words])


def test_command_writes_everything_and_says_how_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["example", str(tmp_path), "--images", "8", "--size", "16"]) == 0
    assert f"train.py --deepspeed --config {tmp_path / 'training.toml'}" in capsys.readouterr().out
    assert len(list((tmp_path / "data").glob("*.txt"))) == 8


def test_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("precious")
    assert cli.main(["example", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_example_needs_no_torch() -> None:
    program = "import sys, dpiped.trainer.example, dpiped.trainer.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

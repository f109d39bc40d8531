"""`python -m dpiped.trainer example DIR` and `… sample --run DIR --caption TEXT --out FILE`.

Why: a first training needs data and two files, and a trained model is for making pictures.

Known gap: training itself is started by deepspeed, as the line printed by `example` shows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpiped.trainer.table import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 with one line for what can't be done."""
    arguments = _parse(argv)
    try:
        return int(arguments.action(arguments))
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; install dpiped[train]", file=sys.stderr)
        return 1
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m dpiped.trainer")
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("example", help="write example data and the configs to train on it")
    make.add_argument("directory", type=Path, help="gets data/, training.toml and dataset.toml")
    make.add_argument("--output-dir", type=Path, help="where trainings go (default: DIRECTORY/output)")
    make.add_argument("--images", type=int, default=240)
    make.add_argument("--size", type=int, default=32, help="side of the pictures in pixels")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument(
        "--quick", action="store_true", help="a training of seconds that only tests the machinery"
    )
    make.set_defaults(action=_example)
    draw = commands.add_parser("sample", help="draw pictures with a saved model")
    draw.add_argument("--run", type=Path, required=True, help="a saved model: an epochN or stepN directory")
    draw.add_argument("--caption", action="append", required=True, help="may be given several times")
    draw.add_argument("--out", type=Path, required=True, help="the picture to write")
    draw.add_argument("--steps", type=int, default=25)
    draw.add_argument("--guidance", type=float, default=2.5)
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(action=_sample)
    return parser.parse_args(argv)


def _example(arguments: argparse.Namespace) -> int:
    from dpiped.trainer import example  # imports Pillow

    root: Path = arguments.directory
    count = example.write_example(root / "data", arguments.images, arguments.size, arguments.seed)
    output = arguments.output_dir or root / "output"
    training = example.write_configs(
        root, root / "data", output, resolution=arguments.size, quick=arguments.quick
    )
    print(f"{count} images in {root / 'data'}; train on them with:")
    command = f"deepspeed --num_gpus=1 train.py --deepspeed --config {training.absolute()}"
    print(f"cd {Path(__file__).parent} && {command}")
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from dpiped.trainer import flow, preview, saving  # imports torch

    model, spec = saving.load_model(_model_directory(arguments.run))
    captions: list[str] = arguments.caption
    images = flow.sample(
        model, spec, captions, steps=arguments.steps, guidance=arguments.guidance, seed=arguments.seed
    )
    preview.contact_sheet(images, captions).save(arguments.out)
    print(f"wrote {arguments.out}")
    return 0


def _model_directory(path: Path) -> Path:
    """The saved model itself, or the last one saved in a run directory."""
    saved = [entry.parent for entry in path.glob("*/model.safetensors")]
    return max(saved, key=lambda entry: entry.stat().st_mtime) if saved else path


if __name__ == "__main__":
    sys.exit(main())

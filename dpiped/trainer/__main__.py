"""`python -m dpiped.trainer example DIR` and `… sample --run DIR --caption TEXT --out FILE`.

Why: a first training needs data and two files, and a trained model is for making pictures.

Known gap: training itself is started by deepspeed, as the line printed by `example` shows.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dpiped.trainer import saved
from dpiped.trainer.table import ConfigError

LENGTH_HELP = (
    "quick: seconds, tests the machinery; demo: a minute or two (default); full: five to ten minutes"
)


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
    make.add_argument("--length", choices=("quick", "demo", "full"), default="demo", help=LENGTH_HELP)
    make.add_argument("--images", type=_count, help="how many (default: 240; full: 960; with --base: 10)")
    make.add_argument("--size", type=_count, default=32, help="side of the pictures in pixels (default: 32)")
    make.add_argument("--seed", type=int, default=0, help="equal seeds give equal pictures (default: 0)")
    make.add_argument("--only", metavar="CONCEPT", help="show only this shape or colour")
    make.add_argument("--without", metavar="CONCEPT", help="show all but this shape or colour")
    make.add_argument(
        "--base", type=Path, metavar="DIR", help="train an adapter on this saved model or run directory"
    )
    make.set_defaults(action=_example)
    draw = commands.add_parser("sample", help="draw pictures with a saved model")
    draw.add_argument(
        "--run", type=Path, required=True, help="a run directory, or an epochN or stepN directory in it"
    )
    draw.add_argument("--caption", action="append", required=True, help="may be given several times")
    draw.add_argument("--out", type=Path, required=True, help="the picture to write")
    draw.add_argument("--steps", type=_count, default=25)
    draw.add_argument("--guidance", type=float, default=2.5)
    draw.add_argument(
        "--size", metavar="WxH", help="pixels of each picture (default: the model's resolution)"
    )
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(action=_sample)
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"takes a whole number from 1 to 100000, not {text}")
    return int(text)


def _example(arguments: argparse.Namespace) -> int:
    from dpiped.trainer import example  # imports Pillow

    root: Path = arguments.directory
    things = example.kinds(arguments.only, arguments.without)
    base = None if arguments.base is None else saved.newest(arguments.base)
    if arguments.base is not None and base is None:
        raise ConfigError(f"--base: {arguments.base} holds no saved model ({saved.WEIGHTS})")
    images = arguments.images or (example.LORA if base else example.LENGTHS[arguments.length]).images
    count = example.write_example(root / "data", images, arguments.size, arguments.seed, things)
    keep = root / "keep" if base and arguments.only else None
    if keep is not None:
        others = example.kinds(without=arguments.only)
        example.write_example(keep, example.KEPT, arguments.size, arguments.seed + 1, others)
    training = example.write_configs(
        root,
        root / "data",
        arguments.output_dir or root / "output",
        resolution=arguments.size,
        length=arguments.length,
        base=base,
        keep=keep,
    )
    print(f"{count} images in {root / 'data'}; train on them with:")
    command = f"deepspeed --num_gpus=1 train.py --deepspeed --config {training.absolute()}"
    print(f"cd {Path(__file__).parent} && {command}")
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from PIL import Image

    Image.init()
    if arguments.out.suffix.lower() not in Image.EXTENSION:
        raise ConfigError(f"--out takes the name of a picture (.png), not {arguments.out.name}")
    from dpiped.trainer import flow, preview, saving  # imports torch

    model, spec = saving.load_model(saved.find(arguments.run))
    captions: list[str] = arguments.caption
    images = flow.sample(
        model,
        spec,
        captions,
        steps=arguments.steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
        size=_size(arguments.size, spec.patch),
    )
    preview.contact_sheet(images, captions).save(arguments.out)
    print(f"wrote {arguments.out}")
    return 0


def _size(text: str | None, patch: int) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) == 0 or size[0] % patch or size[1] % patch:
        raise ConfigError(
            f"--size takes WIDTHxHEIGHT, multiples of the model's patch size {patch}, not {text}"
        )
    return size


if __name__ == "__main__":
    sys.exit(main())

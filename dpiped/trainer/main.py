"""The command line of train.py; its flags are diffusion-pipe's.

Why: torch and DeepSpeed take seconds to import, so they are imported only for a job that was found good.

Known gap: every rank prints the line that says what is wrong.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dpiped.trainer import job
from dpiped.trainer.output import say
from dpiped.trainer.table import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 after a training, `save_quit` or `--cache_only`; 1 and one line for what can't be done."""
    for stream in (sys.stdout, sys.stderr):
        # A file's name that is no text must not end a training.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = parse(argv)
    try:
        checked = _checked(arguments)
        if arguments.master_port is not None:
            os.environ["MASTER_PORT"] = str(arguments.master_port)
        # Threads that spin at barriers bring two trainings on one machine almost to a halt.
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
        from dpiped.trainer.run import run  # imports torch and deepspeed, which takes seconds

        return run(checked)
    except ConfigError as error:
        say(f"train.py: error: {error}", sys.stderr)
        return 1


def _checked(arguments: argparse.Namespace) -> job.Job:
    """Raises ConfigError also for what the file system refuses to show: nothing was written yet."""
    try:
        return job.prepare(arguments, int(os.environ.get("WORLD_SIZE", "1")))
    except OSError as error:
        raise ConfigError(str(error)) from error


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with code 2 for unknown flags, as argparse does."""
    parser = argparse.ArgumentParser("train.py", description="Trains a small diffusion transformer.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the training TOML")
    parser.add_argument("--local_rank", type=int, default=0, help="added by the launcher")
    parser.add_argument("--deepspeed", action="store_true", help="accepted; DeepSpeed is always used")
    parser.add_argument("--master_port", type=int, help="the port that the ranks meet on")
    parser.add_argument(
        "--resume_from_checkpoint", nargs="?", const=True, metavar="NAME", help="default: the newest"
    )
    parser.add_argument("--reset_dataloader", action="store_true", help="resume: begin the epoch's data anew")
    parser.add_argument("--reset_optimizer", action="store_true", help="resume: load the weights only")
    parser.add_argument(
        "--reset_optimizer_params",
        action="store_true",
        help="resume: take lr, weight decay and so on from the config, and begin the schedule anew",
    )
    parser.add_argument("--cache_only", action="store_true", help="cache the data sets, then quit")
    parser.add_argument(
        "--regenerate_cache", action="store_true", help="throw the caches away, make them anew"
    )
    parser.add_argument(
        "--trust_cache", action="store_true", help="take caches as they are, without a look at the files"
    )
    parser.add_argument("--i_know_what_i_am_doing", action="store_true", help="allow more than 3 resolutions")
    parser.add_argument("--dump_dataset", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--test_sample", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)

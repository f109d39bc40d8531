"""`dpipectl example`: the embedded trainer's own command, in a process of its own.

Why: a newcomer's first two commands should both be `dpipectl`. The trainer draws the pictures; nothing of it
is imported here, since it needs packages that a client may well lack.

Known gap: none.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from dpiped.errors import InvalidInput, NotInstalled

OPTIONS = ("output_dir", "length", "images", "size", "seed", "only", "without", "base")


def write(options: argparse.Namespace) -> Path:
    """Writes the example; returns its training TOML. Raises NotInstalled or InvalidInput."""
    words = []
    for name in OPTIONS:
        value = getattr(options, name)
        if value is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    directory = Path(options.directory).expanduser().absolute()
    command = [sys.executable, "-P", "-m", "dpiped.trainer", "example", *words, "--", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        text = said[0].removeprefix("error: ").removeprefix("python -m dpiped.trainer example: error: ")
        if "is not installed" in text:
            raise NotInstalled(text)
        raise InvalidInput(text)
    return directory / "training.toml"

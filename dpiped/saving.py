"""Signal files: asking the trainer for a checkpoint, and knowing when it is there.

Why: train.py looks for the files `save` and `save_quit` in its own directory once per step and says
nothing about when a checkpoint is whole. A save counts as done only when DeepSpeed's `latest` was
written anew and names a whole checkpoint.

Known gap: during caching, loading and an eval pass train.py does not look.
"""

from pathlib import Path

from dpiped import beneath, checkpoints
from dpiped.errors import Refused
from dpiped.live import LiveRun

NOTHING_YET = "none"
"""The token of a directory without a checkpoint."""


def request(live: LiveRun) -> str:
    """Writes the `save` file. Returns a token for `done_since`. Raises Refused if that is not possible."""
    live.find_files()
    token = _token(live.train_dir) if live.train_dir else NOTHING_YET
    if why_not := _signal(live, "save"):
        raise Refused(f"The trainer can't be asked to save: {why_not}.")
    return token


def request_and_quit(live: LiveRun) -> str | None:
    """Writes the `save_quit` file. Returns why it could not."""
    return _signal(live, "save_quit")


def _signal(live: LiveRun, name: str) -> str | None:
    live.find_files()
    if live.train_dir is None:
        phase = live.progress.snapshot().phase
        return f"there is nothing to save yet (phase {phase}, no directory made)"
    try:
        beneath.touch(live.train_dir / name)
    except OSError as error:
        return f"{live.train_dir / name} can't be written: {error.strerror}"
    return None


def done_since(live: LiveRun | None, token: str) -> str | None:
    """The checkpoint that was written after `token` was given, once it is whole. Raises Refused."""
    if live is None or live.train_dir is None:
        raise Refused("The run ended before it saved.", hint="`dpipectl status` shows its outcome")
    if _token(live.train_dir) == token:
        return None
    return checkpoints.complete_checkpoint(live.train_dir)


def _token(train_dir: Path) -> str:
    """Differs after every checkpoint, also after one of the same name."""
    latest = train_dir / "latest"
    try:
        return f"{latest.read_text()}@{latest.stat().st_mtime_ns}"
    except FileNotFoundError:
        return NOTHING_YET

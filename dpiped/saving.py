"""Signal files: asking the trainer for a checkpoint, and knowing when it is there.

Why: train.py looks for the files `save` and `save_quit` in its own directory once per step and says
nothing about when a checkpoint is whole. A save counts as done only when DeepSpeed's `latest` was
written anew and names a whole checkpoint.

Known gap: during caching, loading and an eval pass train.py does not look.
"""

from pathlib import Path

from dpiped import checkpoints
from dpiped.errors import Refused
from dpiped.live import LiveRun


def request(live: LiveRun) -> str:
    """Writes the `save` file. Returns a token for `done_since`. Raises Refused if there is nowhere to."""
    live.find_files()
    if live.train_dir is None:
        phase = live.progress.snapshot().phase
        raise Refused(
            f"There is nothing to save yet: the training is in phase {phase} and has not made its directory."
        )
    token = _token(live.train_dir)
    (live.train_dir / "save").touch()
    return token


def possible(live: LiveRun) -> bool:
    """Is there a directory that the trainer looks for signal files in?"""
    live.find_files()
    return live.train_dir is not None


def request_and_quit(live: LiveRun) -> bool:
    """Writes the `save_quit` file. False if there is nowhere to. Raises OSError."""
    if not possible(live):
        return False
    assert live.train_dir is not None
    (live.train_dir / "save_quit").touch()
    return True


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
        return "none"

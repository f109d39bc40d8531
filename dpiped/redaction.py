"""Keeping secrets out of what is written down.

Why: a Weights & Biases key stands in the training TOML because train.py takes it from nowhere else, and
train.py copies that file into every folder that people share. So the key is taken out of a config as soon as
it is read, put in only into the one file that is launched, and taken out of that again once it has been read
there.

Known gap: what wandb itself writes (its own run files) holds the whole config, the key included.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from dpiped import oldtoml, rundir
from dpiped.errors import InvalidInput
from dpiped.settings import is_secret

HIDDEN = "hidden-by-dpiped"
"""Stands for a secret's value in what is written down."""
FIELD = "monitoring.wandb_api_key"
KEY = re.compile(r"[A-Za-z0-9_.:+/=-]{8,256}")
KEY_TAKES = "takes 8 to 256 letters, digits and _.:+/=-"
_BEFORE = r"""(?P<before>wandb_api_key["']?[ \t]*=[ \t]*)(?P<quote>\"{3}|'{3}|\"(?!\"\")|'(?!''))"""
_PLACE = re.compile(rf"{_BEFORE}(?:{HIDDEN})?(?P=quote)")
_WRITTEN = re.compile(rf"{_BEFORE}{KEY.pattern}(?P=quote)")
_COPIES = ("*.toml", "epoch*/*.toml", "step*/*.toml")
"""Where train.py copies its config to, below the directory it makes."""


def shown(name: str, value: str) -> str:
    """What is written down of a variable."""
    return HIDDEN if value and is_secret(name) else value


def key_in(data: dict[str, Any]) -> str | None:
    """The key in a training TOML's table, if one stands there in the clear. Raises InvalidInput."""
    monitoring = data.get("monitoring")
    key = monitoring.get("wandb_api_key") if isinstance(monitoring, dict) else None
    if key is None or key in ("", HIDDEN):
        return None
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise InvalidInput(f"{FIELD} {KEY_TAKES}", field=FIELD)
    return key


def hide(text: str) -> str:
    """The same training TOML without its key, also where one is commented out.

    Raises InvalidInput where only the key can't be taken out, and ValueError for what is no TOML.
    """
    data = tomllib.loads(text)
    key = key_in(data)
    hidden = _WRITTEN.sub(rf"\g<before>\g<quote>{HIDDEN}\g<quote>", text)
    wanted = data
    if key is not None:
        hidden = hidden.replace(key, HIDDEN)
        wanted = data | {"monitoring": data["monitoring"] | {"wandb_api_key": HIDDEN}}
    if not oldtoml.says(hidden, wanted):
        raise InvalidInput(
            f"{FIELD}: the key can't be hidden in this file",
            field=FIELD,
            hint="write it as a plain string, and let the same text stand nowhere else in the file",
        )
    return hidden


def insert(text: str, key: str) -> str:
    """The same training TOML with the key where `hide` took it out. Raises InvalidInput if it can't be."""
    filled = _PLACE.sub(rf"\g<before>\g<quote>{key}\g<quote>", text)
    try:
        fits = key_in(tomllib.loads(filled)) == key and key not in hide(filled)
    except ValueError:
        fits = False
    if not fits:
        raise InvalidInput(
            f"{FIELD}: the key can't be put in",
            field=FIELD,
            hint=f'write wandb_api_key = "{HIDDEN}", and let the key stand nowhere else in the file',
        )
    return filled


def clean(file: Path) -> None:
    """Replaces a config that holds a key by one that does not; mode 0600. Raises OSError, InvalidInput."""
    try:
        text = file.read_text(encoding="utf-8")
        hidden = hide(text)
    except (ValueError, RecursionError):
        # Half written, or no TOML of ours: looked at again with the next copy.
        return
    if hidden == text:
        return
    try:
        rundir.replace_file(file, hidden.encode(), 0o600)
    except OSError:
        _overwrite(file, hidden.encode())


def _overwrite(file: Path, data: bytes) -> None:
    """In the room that the file has, for a disk that is full. Raises OSError."""
    with file.open("r+b") as opened:
        opened.write(data)
        opened.write(b"\n" * max(os.fstat(opened.fileno()).st_size - len(data), 0))
        opened.flush()
        os.fsync(opened.fileno())


def clean_copies(train_dir: Path) -> None:
    """Takes the key out of what train.py copied before it was taken out of the original.

    Raises OSError, InvalidInput.
    """
    failed: OSError | InvalidInput | None = None
    for pattern in _COPIES:
        for file in train_dir.glob(pattern):
            try:
                if file.is_file() and not file.is_symlink():
                    clean(file)
            except (OSError, InvalidInput) as error:
                # The others may be cleaned all the same.
                failed = failed or error
    if failed is not None:
        raise failed

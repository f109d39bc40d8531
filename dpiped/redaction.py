"""Keeping secrets out of what is written down.

Why: a Weights & Biases key stands in the training TOML because train.py takes it from nowhere else, and
train.py copies that file into every folder that people share. So the key is taken out of a config as soon as
it is read, put in only into the one file that is launched, and taken out of that again once it has been read
there.

Known gap: what wandb itself writes (its own run files) holds the whole config, the key included.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpiped import beneath, oldtoml, tomltext
from dpiped.errors import InvalidInput
from dpiped.settings import holds_password, is_secret

HIDDEN = "hidden-by-dpiped"
"""Stands for a secret's value in what is written down."""
FIELD = "monitoring.wandb_api_key"
KEY = re.compile(r"[A-Za-z0-9_.:+/=-]{8,256}")
KEY_TAKES = "takes 8 to 256 letters, digits and _.:+/=-"
_BEFORE = r"""(?P<before>wandb_api_key["']?[ \t]*=[ \t]*)(?P<quote>\"{3}|'{3}|\"(?!\"\")|'(?!''))"""
_PLACE = re.compile(rf"{_BEFORE}(?:{HIDDEN})?(?P=quote)")
_WRITTEN = re.compile(rf"{_BEFORE}{KEY.pattern}(?P=quote)")
_SAVED = ("epoch", "step")
"""Folders below the directory that train.py makes, into which it copies its config as well."""
LARGEST = 1 << 21
"""Bytes of a config that is looked at; those that are launched have half of it at most."""


def shown(name: str, value: str) -> str:
    """What is written down of a variable."""
    # Hidden as a whole: a resume has to ask for it again, not go on with half of it.
    return HIDDEN if value and (is_secret(name) or holds_password(value)) else value


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
    data = tomltext.loads(text)
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
    # The second is for a string of several lines: what stands before it there need not be part of it.
    for filled in (_PLACE.sub(rf"\g<before>\g<quote>{key}\g<quote>", text), text.replace(HIDDEN, key)):
        if _holds(filled, key):
            return filled
    raise InvalidInput(
        f"{FIELD}: the key can't be put in",
        field=FIELD,
        hint=f'write wandb_api_key = "{HIDDEN}", and let the key stand nowhere else in the file',
    )


def _holds(filled: str, key: str) -> bool:
    """Is that its key, and can it be taken out again?"""
    try:
        return key_in(tomltext.loads(filled)) == key and key not in hide(filled)
    except (ValueError, InvalidInput):
        return False


def clean(file: Path) -> None:
    """Replaces a config that holds a key by one that does not; mode 0600. Raises OSError, InvalidInput."""
    # Its folder is ours; where it leads to is the administrator's.
    with beneath.directory(file.parent.resolve()) as folder:
        _clean(folder, file.name)


def _clean(folder: int, name: str) -> None:
    try:
        text = beneath.read_in(folder, name, LARGEST).decode()
        hidden = hide(text)
    except (ValueError, RecursionError):
        # Half written, or no TOML of ours: looked at again with the next copy.
        return
    if hidden == text:
        return
    try:
        beneath.replace_in(folder, name, hidden.encode(), 0o600)
    except OSError:
        # A disk that is full has no room for another file.
        beneath.overwrite_in(folder, name, hidden.encode())


def clean_copies(train_dir: Path) -> None:
    """Takes the key out of what train.py copied before it was taken out of the original.

    Raises OSError, InvalidInput.
    """
    with contextlib.suppress(FileNotFoundError), beneath.directory(train_dir) as top:
        failed = _clean_all(top)
        for name in os.listdir(top):  # noqa: PTH208 - of a handle
            if name.startswith(_SAVED) and _is(stat.S_ISDIR, top, name):
                with beneath.subdirectory(top, name) as folder:
                    failed += _clean_all(folder)
        if failed:
            raise failed[0]


def _clean_all(folder: int) -> list[OSError | InvalidInput]:
    """What went wrong. The others are cleaned all the same."""
    failed: list[OSError | InvalidInput] = []
    for name in os.listdir(folder):
        if name.endswith(".toml") and _is(stat.S_ISREG, folder, name):
            try:
                _clean(folder, name)
            except (OSError, InvalidInput) as error:
                failed.append(error)
    return failed


def _is(kind: Callable[[int], bool], folder: int, name: str) -> bool:
    """A link is none."""
    try:
        return kind(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False

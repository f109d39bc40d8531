"""The form's paths: what they lead to, and whether they may.

Why: a web page names them, and the daemon may run as root. Each field has its own root, so that a data set
can't be read from the configs and an output can't be written over the models; and an error says the path as
it was given, never where it leads to on this machine.

Source of roots and rules: ControlPilot's contract.

Known gap: as in `paths.py`, a path may be exchanged after the check, before train.py opens it; and whether
there is something at a path may be told of another one then.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from dpiped import paths
from dpiped.errors import InvalidInput
from dpiped.form import Form
from dpiped.messages import Defaults, MissingPath
from dpiped.settings import Settings, expand

FOLDERS = {"dataset_path": "datasets", "config_dir": "configs", "output_dir": "outputs"}
"""The field → the folder of the workspace that it has to lie in."""
MODELS = ("transformer_path", "vae_path", "llm_path", "clip_path")


def roots(settings: Settings, field: str) -> tuple[Path, ...]:
    """What the field's path has to lie below."""
    if field in FOLDERS:
        return (settings.workspace / FOLDERS[field],)
    return settings.allowed_roots


def resolve(settings: Settings, field: str, text: str) -> Path:
    """The absolute path: as it was given, unless it goes up somewhere. Raises InvalidInput."""
    base = settings.workspace / FOLDERS.get(field, "")
    # Looking up whose home is meant chokes on what `confine` refuses.
    expanded = text if "\0" in text else expand(text)
    where = paths.confine(expanded, field, roots(settings, field), base, shown=text)
    asked = base / expanded
    # What it leads to may be shorter than itself.
    if len(os.fsencode(asked)) >= paths.LONGEST:
        raise InvalidInput(f"{field} takes a path of at most {paths.LONGEST} bytes without NUL", field=field)
    return where if ".." in asked.parts else asked


def of_form(settings: Settings, form: Form, fields: tuple[str, ...]) -> dict[str, Path]:
    """The form's paths by field, in that order. Raises InvalidInput for the first that can't be."""
    return {
        field: folder(settings, form, field)
        if field in FOLDERS
        else resolve(settings, field, getattr(form, field))
        for field in fields
    }


def folder(settings: Settings, form: Form, field: str) -> Path:
    """A folder of the form; only that of the data set has to be there. Raises InvalidInput."""
    text = getattr(form, field)
    found = resolve(settings, field, text)
    if field == "dataset_path" and not found.is_dir():
        said = f"{field}: there is no folder {text!a:.300}; it takes one that exists"
        raise InvalidInput(said, field=field)
    if found.exists() and not found.is_dir():
        raise InvalidInput(f"{field}: {text!a:.300} is not a folder", field=field)
    return found


def missing(settings: Settings, texts: Mapping[str, str]) -> tuple[MissingPath, ...]:
    """Those that lead to nothing; a folder counts as present. Raises InvalidInput for one that may not be."""
    found = {field: resolve(settings, field, text) for field, text in texts.items()}
    return tuple(MissingPath(field, texts[field]) for field, path in found.items() if not path.exists())


def defaults(settings: Settings) -> Defaults:
    """A form with all that is not the user's to know, and the roots of every path."""
    texts = {field: str(settings.workspace / name) for field, name in FOLDERS.items()}
    form = msgspec.convert(texts | dict.fromkeys(MODELS, ""), Form)
    fields = (*FOLDERS, *MODELS)
    return Defaults(form, {field: tuple(map(str, roots(settings, field))) for field in fields})

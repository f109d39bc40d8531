"""The config that a run was launched with: shown, and compared with what a form gives now.

Why: somebody who starts the next training wants to know what is different this time, and not from memory. The
snapshot is what train.py was given, so it is what counts; not the file that it came from, which may have been
changed since.

Known gap: the descriptions of data sets for evaluation are not shown. What differs in two secrets only is not
told. What is hidden, and what not, stands in masking.py.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpiped import masking, messages, redaction, rundir, sources, tomltext
from dpiped.errors import RunDamaged
from dpiped.form import Form
from dpiped.settings import Settings
from dpiped.sources import Wanted

NOT_COMPARED = re.compile(rf"dataset|eval_datasets\[\d+\]\.config|{re.escape(redaction.FIELD)}")
"""Paths of the snapshot's own files, and the key."""
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


def texts(runs: Path, run: str) -> messages.ConfigTexts:
    """The two files, what is secret hidden. Raises RunDamaged, InvalidInput."""
    folder = runs / run
    return messages.ConfigTexts(
        run, _text(folder / rundir.TRAINING_TOML), _text(folder / rundir.DATASET_TOML)
    )


def compare(settings: Settings, runs: Path, run: str, form: Form) -> messages.Compared:
    """What is different. Raises RunDamaged, InvalidForm, InvalidInput."""
    before = texts(runs, run)
    # A key is not compared, so it need not be there.
    key = {sources.WANDB_KEY: redaction.HIDDEN}
    after = sources.make_files(settings, Wanted(form=form, env=key))
    return messages.Compared(run, _compared(before, after.training_toml, after.dataset_toml))


def changes(runs: Path, run: str, files: dict[str, bytes]) -> tuple[messages.Difference, ...]:
    """What is different in the snapshot of a new run. Raises RunDamaged, InvalidInput."""
    training, dataset = (files[name].decode() for name in (rundir.TRAINING_TOML, rundir.DATASET_TOML))
    return _compared(texts(runs, run), redaction.hide(training), dataset)


def _compared(before: messages.ConfigTexts, training: str, dataset: str) -> tuple[messages.Difference, ...]:
    """Both sides without their secrets; `training` has no key any more."""
    old, new = tomltext.loads(before.training_toml), masking.masked(tomltext.loads(training))
    found = [each for each in differences("training", old, new) if not NOT_COMPARED.fullmatch(each.key)]
    old, new = tomltext.loads(before.dataset_toml), masking.masked(tomltext.loads(dataset))
    return (*found, *differences("dataset", old, new))


def differences(
    file: messages.ConfigFile, before: dict[str, Any], after: dict[str, Any]
) -> list[messages.Difference]:
    """Every key whose value differs, in the order of the first, then of the second."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    keys = dict.fromkeys((*old, *new))
    return [
        messages.Difference(file, key, old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of all that is no table: there 1 is neither 1.0 nor true."""
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            part = name if _PLAIN_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)
            yield from _leaves(inner, f"{key}.{part}" if key else part)
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{index}]")
    else:
        # Dates and times are none of JSON's.
        yield key, json.dumps(value, ensure_ascii=False, default=str)


def _text(path: Path) -> str:
    try:
        return masking.mask(redaction.hide(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise RunDamaged(f"{path} can't be read: {error}", field=path.name) from error

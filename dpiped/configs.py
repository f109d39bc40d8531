"""The training TOML: read, checked for what would fail late, and frozen into the run directory.

Why: train.py reads its config files when it starts and copies them minutes later, so a file that the
user (or the next start) edits meanwhile would describe another training. Each run is launched from its
own copies. The user's text is kept as it is, because the old `toml` package that train.py reads with
understands less than a re-written file might say; only the paths of the data set files are exchanged,
and the result is read back and compared.

A Weights & Biases key is taken out as soon as the text is read (`redaction.py`), and put in again only into
the snapshot that is launched.

A first line with the run's id is added: train.py copies the file into the directory that it makes and
never prints the name of, and by that line the directory is recognised.

Known gap: values are checked only where a wrong one would cost a whole start-up; the rest is train.py's.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from dpiped import beneath, oldtoml, paths, redaction, tomltext
from dpiped.errors import InvalidInput
from dpiped.rundir import DATASET_TOML, TRAINING_TOML

EMBEDDED_TYPE = "dpiped"
"""`model.type` of the trainer that this project carries."""
MARK = "# dpiped run "
PATH_KEYS = frozenset(
    "path paths diffusion_model vae audio_vae text_encoder init_from_existing default_mask_file".split()
)
LARGEST = 1 << 20
"""Bytes of a TOML file; something larger is a model that was named by mistake."""
SAVE_INTERVALS = ("save_every_n_epochs", "save_every_n_steps", "save_every_n_examples")


class Source(Struct, frozen=True):
    """A training TOML without its key, and the key.

    `generated` are data set files that are not written yet: path → text.
    """

    path: Path
    text: str
    data: dict[str, Any]
    key: str | None = None
    generated: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Source({self.path})"

    @property
    def model_type(self) -> str:
        """Raises InvalidInput for a config that has none."""
        model = self.data.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("type"), str):
            raise InvalidInput(f"{self.path} has no [model] with a type", field="model.type")
        return str(model["type"])


class Config(Struct, frozen=True):
    """A training TOML that can be launched. `output_dir` is resolved; `data` is the whole table as read.

    There is no key in `text` and `data`; `wandb` tells whether the launched file needs one.
    """

    source: Path
    text: str
    data: dict[str, Any]
    model_type: str
    output_dir: Path
    datasets: dict[str, bytes]
    """As written in the TOML → what stands in that file."""
    digest: str
    wandb: bool = False

    @property
    def epochs(self) -> int | None:
        return _count(self.data, "epochs")

    @property
    def max_steps(self) -> int | None:
        return _count(self.data, "max_steps")

    @property
    def resume(self) -> bool | str:
        """The top-level `resume_from_checkpoint`: a folder's name, True for the newest, or False."""
        value = self.data.get("resume_from_checkpoint", False)
        if not isinstance(value, bool | str):
            raise InvalidInput(
                "resume_from_checkpoint takes true, false or a folder's name", field="resume_from_checkpoint"
            )
        return value


def read(path: Path) -> Source:
    """The file at a resolved path.

    Raises InvalidInput when it can't be read, is no TOML or hides its key too well.
    """
    text, _ = _read(path, "config")
    if text.startswith(MARK):
        # A run's snapshot that is resumed: it gets the mark of the new run instead.
        text = text.partition("\n")[2]
    key = redaction.key_in(tomltext.loads(text))
    text = redaction.hide(text)
    return Source(path, text, tomltext.loads(text), key)


def check(source: Source, roots: Sequence[Path], base: Path) -> Config:
    """Checks it. Relative paths in it are taken from `base`, train.py's working directory."""
    data = source.data
    # The embedded trainer's folder is inside the installation: no relative path may lead there.
    start = None if source.model_type == EMBEDDED_TYPE else base
    _check_numbers(data)
    output_dir = paths.confine(_string(data, "output_dir"), "output_dir", roots, start)
    for table in ("model", "adapter"):
        for field, value in path_values(data.get(table), table):
            paths.confine(value, field, roots, start)
    datasets = {
        name: _check_dataset(source, name, _dataset(source, name, field, roots, start), roots, start)
        for field, name in (("dataset", _string(data, "dataset")), *_eval_datasets(data))
    }
    digest = hashlib.sha256(b"\0".join((source.text.encode(), *datasets.values()))).hexdigest()
    return Config(
        source.path,
        source.text,
        data,
        source.model_type,
        output_dir,
        datasets,
        digest,
        _wants_wandb(data),
    )


def snapshot(config: Config, run: str, run_dir: Path, key: str | None = None) -> dict[str, bytes]:
    """The files a run is launched with, by name. Raises InvalidInput if the text can't be re-pointed.

    `key` is put in where `config` wants one.
    """
    names = {
        name: DATASET_TOML if index == 0 else f"eval_{index}_{DATASET_TOML}"
        for index, name in enumerate(config.datasets)
    }
    text = config.text
    for name, file in names.items():
        for quoted in (_basic_string(name), json.dumps(name), f"'{name}'", oldtoml.quoted(name)):
            text = text.replace(quoted, _basic_string(str(run_dir / file)))
    moved = {name: str(run_dir / file) for name, file in names.items()}
    if not oldtoml.says(text, _repointed(config.data, moved)):
        raise InvalidInput(
            f"{config.source}: the paths of `dataset` and `eval_datasets` can't be exchanged in this text",
            field="dataset",
            hint='write them as plain strings, for instance dataset = "/workspace/configs/dataset.toml"',
        )
    _refuse_misread(text, config.model_type, config.source, "config")
    if config.wandb and key:
        text = redaction.insert(text, key)
    files = {file: config.datasets[name] for name, file in names.items()}
    return {TRAINING_TOML: f"{MARK}{run}\n{text}".encode()} | files


def is_marked(copy: Path, run: str) -> bool:
    """Is the file at this resolved path train.py's copy of that run's snapshot?"""
    try:
        mark = f"{MARK}{run}\n".encode()
        return beneath.read(copy, len(mark)) == mark
    except OSError:
        return False


def _wants_wandb(data: dict[str, Any]) -> bool:
    """Raises InvalidInput for what train.py would miss only once it has loaded the model."""
    monitoring = data.get("monitoring", {})
    wanted = monitoring.get("enable_wandb", False) if isinstance(monitoring, dict) else None
    if not isinstance(wanted, bool):
        field = "monitoring.enable_wandb"
        raise InvalidInput(f"{field} takes true or false, not {wanted!r:.60}", field=field)
    if not wanted:
        return False
    for name in ("wandb_tracker_name", "wandb_run_name", "wandb_api_key"):
        if not isinstance(monitoring.get(name), str):
            raise InvalidInput(
                f"monitoring.{name} is missing; train.py takes a string while enable_wandb is true",
                field=f"monitoring.{name}",
            )
    return True


def _read(path: Path, field: str) -> tuple[str, dict[str, Any]]:
    try:
        text = _content(path, field).decode().removeprefix("\ufeff").replace("\r\n", "\n")
        return text, tomltext.loads(text)
    except FileNotFoundError as error:
        raise InvalidInput(f"{field}: there is no file {path}", field=field) from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{field}: {path} can't be read: {why}", field=field) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{field}: {path} is not TOML: {error}", field=field) from error


def _content(path: Path, field: str) -> bytes:
    """The bytes of the file at a resolved path. Raises OSError, InvalidInput."""
    content = beneath.read(path, LARGEST + 1)
    if len(content) > LARGEST:
        raise InvalidInput(f"{field}: {path} is larger than 1 MiB, so it is no TOML file", field=field)
    return content


def _string(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"takes a string, not {value!r}"
        raise InvalidInput(f"{key} {what}", field=key, hint=f'{key} = "/absolute/path"')
    return value


def _count(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) else None


def _check_numbers(data: dict[str, Any]) -> None:
    """What train.py would stumble over only after caching, or at the end of the first epoch."""
    for key in ("epochs", "max_steps", "steps_per_print", "pipeline_stages", *SAVE_INTERVALS):
        value = data.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidInput(f"{key} takes a whole number from 1 on, not {value!r}", field=key)
    if "epochs" not in data:
        raise InvalidInput("epochs is missing; it takes a whole number from 1 on", field="epochs")
    if not any(key in data for key in SAVE_INTERVALS):
        raise InvalidInput(f"one of {', '.join(SAVE_INTERVALS)} is required", field=SAVE_INTERVALS[0])


def _eval_datasets(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found = data.get("eval_datasets", [])
    if not isinstance(found, list):
        raise InvalidInput(f"eval_datasets takes a list of tables, not {found!r}", field="eval_datasets")
    for index, entry in enumerate(found):
        field = f"eval_datasets[{index}].config"
        if not isinstance(entry, dict) or not isinstance(entry.get("config"), str) or "name" not in entry:
            raise InvalidInput(f"eval_datasets takes tables with name and config, not {entry!r}", field=field)
        yield field, entry["config"]


def _dataset(
    source: Source, name: str, field: str, roots: Sequence[Path], base: Path | None
) -> tuple[str, dict[str, Any]]:
    path = paths.confine(name, field, roots, base)
    if name in source.generated:
        return source.generated[name], tomltext.loads(source.generated[name])
    return _read(path, "dataset")


def _refuse_misread(text: str, model_type: str, path: Path | str, field: str) -> None:
    """The embedded trainer reads TOML as it is meant."""
    wrong = oldtoml.misreading(text) if model_type != EMBEDDED_TYPE else None
    if wrong is not None:
        raise InvalidInput(
            f"{field}: in {path}, {wrong} by the `toml` package, with which train.py reads it",
            field=field,
            hint="write lists of tables as [[blocks]], lists with numbers of one kind ([1.0, 0.99]), and "
            "quotes and apostrophes in no inline table",
        )


def _check_dataset(
    source: Source, name: str, read_from: tuple[str, dict[str, Any]], roots: Sequence[Path], base: Path | None
) -> bytes:
    text, data = read_from
    _refuse_misread(text, source.model_type, name, "dataset")
    directories = data.get("directory")
    if not isinstance(directories, list) or not directories:
        raise InvalidInput(f"{name} has no [[directory]]", field="dataset.directory")
    for index, directory in enumerate(directories):
        for field, value in path_values(directory, f"dataset.directory[{index}]"):
            if not paths.confine(value, field, roots, base).exists():
                raise InvalidInput(f"{field}: there is no {value}", field=field)
    return text.encode()


def path_values(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Every string that stands below a key that names a path, with its dotted field."""
    if isinstance(value, dict):
        for key, inner in value.items():
            named = key in PATH_KEYS or key.endswith("_path")
            yield from (_strings if named else path_values)(inner, f"{field}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from path_values(inner, f"{field}[{index}]")


def _strings(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{field}[{index}]")
    elif isinstance(value, dict):
        yield from path_values(value, field)


def _repointed(data: dict[str, Any], moved: dict[str, str]) -> dict[str, Any]:
    changed = dict(data)
    changed["dataset"] = moved[data["dataset"]]
    if data.get("eval_datasets"):
        changed["eval_datasets"] = [
            entry | {"config": moved[entry["config"]]} for entry in data["eval_datasets"]
        ]
    return changed


def _basic_string(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's for what a path may hold."""
    return json.dumps(text, ensure_ascii=False)

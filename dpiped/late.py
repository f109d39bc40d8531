"""What train.py finds wrong only after minutes or hours: while it caches, with the model loaded, at a save.

Why: a rented GPU is paid for meanwhile. A folder without a picture leaves train.py waiting for ever, a zero
where it divides ends it after the first epoch, and a training whose kind of model can't be saved says so when
it is to be saved.

What can't be right is refused. What a later train.py may have learnt is only warned about; where it would
cost the whole training it is refused too, unless the user says that he knows (`--i_know_what_i_am_doing`).

Source: diffusion-pipe at commit 8f83dbf. The embedded trainer looks at its config itself, within seconds.

Known gap: what is wrong with a file's content, and what depends on the installed optimizers.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpiped import tomltext
from dpiped.arguments import KNOWING, TRUST_CACHE, WITHOUT_COMPLETION
from dpiped.configs import EMBEDDED_TYPE, Config, path_values
from dpiped.errors import InvalidInput

FROM_ONE = (
    "gradient_accumulation_steps",
    "eval_gradient_accumulation_steps",
    "checkpoint_every_n_epochs",
    "caching_batch_size",
    "map_num_proc",
    "logging_steps",
)
NOT_MEDIA = frozenset((".txt", ".npz", ".json", ".parquet", ".bak", ".db"))
"""Suffixes that are passed over in a data set's folder; any other file is taken for a picture or a video."""
WORDS: dict[str, tuple[Any, ...]] = {
    "lr_scheduler": ("constant", "linear", "cosine"),
    "activation_checkpointing": (False, True, "unsloth"),
    "video_clip_mode": ("single_beginning", "single_middle"),
}
PARTITIONS = ("parameters", "uniform", "manual")
BETAS_BELOW_ONE = ("adamw", "adamw8bit")
ADAPTER_ONLY = ("ltx-video", "hunyuan-video", "cosmos", "hidream", "sd3", "omnigen2", "auraflow")
"""Types of models of which only an adapter can be saved."""
_HINT = f"`-- {KNOWING}` trains it all the same"


def check(config: Config, words: tuple[str, ...], base: Path, of_a_form: bool) -> tuple[str, ...]:
    """What may be wrong with it, given those arguments. Raises InvalidInput for what is.

    Relative paths are taken from `base`. The models of a form are warned about where it is read.
    """
    if config.model_type == EMBEDDED_TYPE:
        return ()
    if not of_a_form:
        _check_models(config.data)
    _check_numbers(config.data)
    _check_optimizer(config.data)
    # With the last ones nothing is trained, so nothing is saved.
    if not {KNOWING, *WITHOUT_COMPLETION}.intersection(words):
        _check_savable(config)
    if TRUST_CACHE not in words:
        for name, content in config.datasets.items():
            _check_media(name, tomltext.loads(content.decode()), base)
    return tuple(_doubts(config.data))


def _check_models(data: dict[str, Any]) -> None:
    for table in ("model", "adapter"):
        for field, value in path_values(data.get(table), table):
            # A relative one may be a name on a model hub.
            if Path(value).is_absolute() and not Path(value).exists():
                raise InvalidInput(f"{field}: there is nothing at {value!a:.300}", field=field)


def _check_numbers(data: dict[str, Any]) -> None:
    for key in FROM_ONE:
        value = data.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidInput(f"{key} takes a whole number from 1 on, not {value!r:.100}", field=key)


def _check_optimizer(data: dict[str, Any]) -> None:
    optimizer = data.get("optimizer")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("type"), str):
        raise InvalidInput("there is no [optimizer] with a type", field="optimizer.type")
    betas = optimizer.get("betas")
    if not isinstance(betas, list) or optimizer["type"].lower() not in BETAS_BELOW_ONE:
        return
    if not all(_is_number(each) and 0 <= each < 1 for each in betas):
        raise InvalidInput(
            f"optimizer.betas takes numbers from 0 to less than 1, not {betas!r:.100}",
            field="optimizer.betas",
        )


def _check_savable(config: Config) -> None:
    adapter = config.data.get("adapter")
    if adapter is None and config.model_type in ADAPTER_ONLY:
        raise InvalidInput(
            f"model.type {config.model_type}: train.py can only save an adapter of it; there is no [adapter]",
            field="adapter",
            hint=_HINT,
        )
    if isinstance(adapter, dict) and (config.model_type, adapter.get("type")) == ("flux", "lokr"):
        raise InvalidInput(
            "adapter.type lokr: train.py can't save it for flux; it takes lora",
            field="adapter.type",
            hint=_HINT,
        )


def _check_media(name: str, data: dict[str, Any], base: Path) -> None:
    for index, directory in enumerate(data.get("directory", [])):
        field = f"dataset.directory[{index}].path"
        path = directory.get("path") if isinstance(directory, dict) else None
        if not isinstance(path, str):
            raise InvalidInput(f"{field} is missing in {name}; it takes a folder", field=field)
        try:
            found = _has_media(base / path)
        except OSError as error:
            raise InvalidInput(
                f"{field}: {path!a:.300} can't be read: {error.strerror}", field=field
            ) from error
        if not found:
            raise InvalidInput(
                f"{field}: there is no picture or video in {path!a:.300}",
                field=field,
                hint="train.py looks into no folders below it, and would wait for ever",
            )


def _has_media(folder: Path) -> bool:
    """Raises OSError."""
    with os.scandir(folder) as entries:
        return any(entry.is_file() and Path(entry.name).suffix not in NOT_MEDIA for entry in entries)


def _doubts(data: dict[str, Any]) -> Iterator[str]:
    for key, known in WORDS.items():
        value = data.get(key, known[0])
        if not any(value is each or value == each for each in known):
            yield f"{key} = {value!r:.100} is none of {', '.join(map(str, known))}"
    partition = data.get("partition_method", PARTITIONS[0])
    if partition not in PARTITIONS and not str(partition).startswith("type:"):
        yield f"partition_method = {partition!r:.100} is none of {', '.join(PARTITIONS)}, type:..."
    if data.get("blocks_to_swap"):
        if "adapter" not in data:
            yield "blocks_to_swap works with an [adapter] only"
        if data.get("pipeline_stages", 1) != 1:
            yield "blocks_to_swap works with pipeline_stages = 1 only"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

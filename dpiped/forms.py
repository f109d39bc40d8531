"""From the training form to the two TOML files that train.py is given.

Why: whatever a form can say wrongly should be said back at once, for every field, in the field's own words;
train.py would say it after minutes of caching, or at the end of the first epoch. What passes is written so
that train.py's TOML reader reads exactly what was asked (`oldtoml.py`).

What the files say is what ControlPilot writes, but for what was wrong there: options that nobody reads are
left out, an optimizer is given only arguments that it takes, the number of pipeline stages is a field.

Known gap: whether a model file is what its field says is found out by train.py.
"""

import math
import re
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from dpiped import arguments, form_lists, oldtoml, redaction
from dpiped.form import Form
from dpiped.form_paths import MODELS
from dpiped.rundir import DATASET_TOML, TRAINING_TOML

EMBEDDED = "dpiped"
DTYPES = ("bfloat16", "float16", "float32", "float8", "float8_e4m3fn", "float8_e5m2")
"""diffusion-pipe's `DTYPE_MAP`."""
OPTIMIZERS = (
    "adamw adamw8bit adamw_optimi stableadamw sgd adamw8bitkahan offload automagic genericoptim".split()
)
"""Known to diffusion-pipe in any case of letters; another name is a class of pytorch_optimizer."""
ONLY_DECAY = frozenset(("sgd", "automagic"))
"""Those that take neither betas nor eps (as one number each)."""
MOST_RESOLUTIONS = 3
"""With more, train.py prints a warning and ends, exit code 0."""
MISREAD = (
    "takes a text that train.py's TOML reader reads back unchanged; "
    "not a lone quotation mark, nor one that begins with two"
)
TOKENS = ("optimizer_type", "dtype", "save_dtype", "video_clip_mode", "partition_method")
FIELD_OF = {
    "output_dir": "output_dir",
    "dataset": "config_dir",
    "directory[0].path": "dataset_path",
    **{f"model.{name}": name for name in MODELS},
}
"""Keys of the two files whose value is a path of the form; other texts are checked before."""


class Lists(Struct, frozen=True):
    """The form's lists as TOML can say them: each of one type."""

    betas: tuple[float, ...]
    resolutions: tuple[Any, ...]
    frames: tuple[int, ...]
    ratios: tuple[Any, ...] | None


class Files(Struct, frozen=True):
    """The two files of a form, no key in them, and the key."""

    training_path: Path
    training_toml: str
    dataset_path: Path
    dataset_toml: str
    key: str | None

    def __repr__(self) -> str:
        return f"Files({self.training_path})"


def check(form: Form, num_gpus: int, key: str | None, many: bool = False) -> Lists:
    """Everything about the form that can be told without looking at the machine. Raises InvalidForm.

    `num_gpus` is what the form's own number falls back to, `key` a W&B key from elsewhere; `many`: more
    resolutions than train.py likes are meant.
    """
    found = form_lists.Findings()
    lists = Lists(
        betas=form_lists.betas(found, form.betas, two=form.optimizer_type.lower() in OPTIMIZERS),
        resolutions=form_lists.sizes(found, form.resolutions_input),
        frames=form_lists.frames(found, form.frame_buckets),
        ratios=form_lists.ratios(found, form.ar_buckets),
    )
    if len(lists.resolutions) > MOST_RESOLUTIONS and not many:
        found.add(
            "resolutions_input", f"takes at most {MOST_RESOLUTIONS} (or train.py with {arguments.KNOWING})"
        )
    _check_tokens(found, form)
    if form.min_ar > form.max_ar:
        found.add("max_ar", f"takes a number from min_ar ({form.min_ar:g}) on, not {form.max_ar:g}")
    gpus = form.num_gpus or num_gpus
    if gpus % (form.pipeline_stages or gpus):
        found.add("pipeline_stages", f"takes a number that divides the number of GPUs ({gpus})")
    if isinstance(form.resume_from_checkpoint, str) and not form.resume_from_checkpoint.strip():
        found.add("resume_from_checkpoint", "takes true, false or the name of a folder in output_dir")
    if form.enable_wandb:
        _check_wandb(found, form, key)
    if form.model_type == EMBEDDED:
        _check_embedded(found, form, lists)
    found.finish()
    return lists


def generate(form: Form, lists: Lists, paths: dict[str, Path], num_gpus: int) -> Files:
    """The files' texts. Raises InvalidForm for a text that train.py's TOML reader does not read back."""
    training_path = paths["config_dir"] / TRAINING_TOML
    dataset_path = paths["config_dir"] / DATASET_TOML
    dataset = _dataset(form, lists, paths)
    training = _training(form, lists, paths, dataset_path, form.num_gpus or num_gpus)
    found = form_lists.Findings()
    for key in (*oldtoml.misread(dataset), *oldtoml.misread(training)):
        found.add(FIELD_OF.get(key, key), MISREAD)
    found.finish()
    return Files(
        training_path,
        oldtoml.write(training),
        dataset_path,
        oldtoml.write(dataset),
        _own_key(form),
    )


def hidden(form: Form) -> Form:
    """The form as it may be kept and shown."""
    return structs.replace(form, wandb_api_key=redaction.HIDDEN) if form.wandb_api_key else form


def _own_key(form: Form) -> str | None:
    """The key that the form brings, where one is needed."""
    brought = form.enable_wandb and form.wandb_api_key not in (None, "", redaction.HIDDEN)
    return form.wandb_api_key if brought else None


def _check_tokens(found: form_lists.Findings, form: Form) -> None:
    for field in TOKENS:
        if re.search(r"\s", getattr(form, field)):
            found.add(field, "takes one word, without spaces")
    for field in (*TOKENS, "wandb_run_name", "wandb_tracker_name"):
        value = getattr(form, field)
        if value is not None and oldtoml.misread({"value": value}):
            found.add(field, MISREAD)
    for field in ("dtype", "save_dtype"):
        value = getattr(form, field)
        if value not in DTYPES:
            found.add(field, f"takes one of {', '.join(DTYPES)}, not {value!r:.100}")
    name = form.optimizer_type
    if name.lower() not in OPTIMIZERS and not (name.isidentifier() and name.isascii()):
        found.add(
            "optimizer_type",
            f"takes one of {', '.join(OPTIMIZERS)}, or a class of pytorch_optimizer, not {name!r:.100}",
        )


def _check_wandb(found: form_lists.Findings, form: Form, key: str | None) -> None:
    """train.py asks for all three once it has loaded the model."""
    for field in ("wandb_run_name", "wandb_tracker_name"):
        if getattr(form, field) is None:
            found.add(field, "takes a text while enable_wandb is true")
    own = _own_key(form)
    if own is None and key is None:
        found.add("wandb_api_key", "takes your key while enable_wandb is true (or set WANDB_API_KEY)")
    elif own is not None and not redaction.KEY.fullmatch(own):
        found.add("wandb_api_key", redaction.KEY_TAKES)
    elif own is not None:
        texts = {name: value for name, value in structs.asdict(form).items() if name != "wandb_api_key"}
        for name in (name for name, value in texts.items() if isinstance(value, str) and own in value):
            found.add(name, "takes a text that does not hold the key")


def _check_embedded(found: form_lists.Findings, form: Form, lists: Lists) -> None:
    """What the embedded trainer refuses, a few seconds later."""
    whose = f"for model_type {EMBEDDED}"
    if form.enable_wandb:
        found.add("enable_wandb", f"takes false {whose}")
    if form.dtype not in ("float32", "bfloat16"):
        found.add("dtype", f"takes float32 or bfloat16 {whose}")
    if form.save_dtype.startswith("float8"):
        found.add("save_dtype", f"takes float32, float16 or bfloat16 {whose}")
    if form.partition_method != "parameters":
        found.add("partition_method", f"takes parameters {whose}")
    if lists.ratios == ():
        found.add("ar_buckets", f"takes at least one ratio, or nothing, {whose}")


def _dataset(form: Form, lists: Lists, paths: dict[str, Path]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "resolutions": lists.resolutions,
        "enable_ar_bucket": form.enable_ar_bucket,
        "min_ar": form.min_ar,
        "max_ar": form.max_ar,
        "num_ar_buckets": form.num_ar_buckets,
    }
    if form.model_type != EMBEDDED:
        # The embedded trainer has pictures only.
        data["frame_buckets"] = lists.frames
    if lists.ratios is not None:
        data["ar_buckets"] = lists.ratios
    data["directory"] = [{"path": str(paths["dataset_path"]), "num_repeats": form.num_repeats}]
    return data


def _training(
    form: Form, lists: Lists, paths: dict[str, Path], dataset: Path, num_gpus: int
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "output_dir": str(paths["output_dir"]),
        "dataset": str(dataset),
        "epochs": form.epochs,
        "micro_batch_size_per_gpu": form.batch_size,
        "pipeline_stages": form.pipeline_stages or num_gpus,
        "gradient_accumulation_steps": form.gradient_accumulation_steps,
        "gradient_clipping": _number(form.gradient_clipping),
        "warmup_steps": form.warmup_steps,
        "eval_every_n_epochs": form.eval_every,
        "eval_before_first_step": form.eval_before_first_step,
        "eval_micro_batch_size_per_gpu": form.eval_micro_batch_size_per_gpu,
        "eval_gradient_accumulation_steps": form.eval_gradient_accumulation_steps,
        "save_every_n_epochs": form.save_every,
        "checkpoint_every_n_minutes": form.checkpoint_every_n_minutes,
        "activation_checkpointing": form.activation_checkpointing,
        "partition_method": form.partition_method,
        "save_dtype": form.save_dtype,
        "caching_batch_size": form.caching_batch_size,
        "steps_per_print": form.steps_per_print,
        "video_clip_mode": form.video_clip_mode,
        "model": _model(form, paths),
    }
    if form.model_type != EMBEDDED:
        # The embedded trainer's adapters need a model of its own to be trained on.
        data["adapter"] = {"type": "lora", "rank": form.rank, "dtype": form.dtype}
    return data | {"optimizer": _optimizer(form, lists), "monitoring": _monitoring(form)}


def _model(form: Form, paths: dict[str, Path]) -> dict[str, Any]:
    table = {"type": form.model_type, "dtype": form.dtype, "timestep_sample_method": "logit_normal"}
    if form.model_type == EMBEDDED:
        return table
    return table | {name: str(paths[name]) for name in MODELS} | {"transformer_dtype": "float8"}


def _optimizer(form: Form, lists: Lists) -> dict[str, Any]:
    table: dict[str, Any] = {
        "type": form.optimizer_type,
        "lr": form.learning_rate,
        "weight_decay": _number(form.weight_decay),
    }
    if form.optimizer_type.lower() not in ONLY_DECAY:
        table |= {"betas": lists.betas, "eps": _number(form.eps)}
    return table


def _monitoring(form: Form) -> dict[str, Any]:
    table: dict[str, Any] = {"enable_wandb": form.enable_wandb}
    for name in ("wandb_run_name", "wandb_tracker_name"):
        if getattr(form, name) is not None:
            table[name] = getattr(form, name)
    if form.enable_wandb:
        table["wandb_api_key"] = redaction.HIDDEN
    return table


def _number(value: float) -> float:
    """Without the sign of -0.0, which the old reader loses."""
    return math.fabs(value)

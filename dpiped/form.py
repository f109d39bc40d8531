"""The training form: every field that ControlPilot's Dpipe tab sends, with its name, default and limits.

Why: the same form arrives from a web page, from `dpipectl start --form` and from tests. Written down once, as
a typed message, it gives all of them the same defaults and the same refusals, and the served schema can't
disagree with what is checked.

Limits that need only one value stand here; what needs parsing or two values is in `forms.py`.

Source of names and defaults: ControlPilot's contract. Ours beyond it: `model_type`, `num_gpus`,
`pipeline_stages`.

Known gap: two model types of diffusion-pipe's two dozen; the others are started from a TOML of their own.
"""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

ModelType: TypeAlias = Literal["hunyuan-video", "dpiped"]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]
NotNegative: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]
MOST_GPUS = 64
Gpus: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_GPUS)]
Ratio: TypeAlias = Annotated[float, Meta(gt=0, le=1000)]
Rate: TypeAlias = Annotated[float, Meta(gt=0, le=100)]
Amount: TypeAlias = Annotated[float, Meta(ge=0, le=1_000_000)]
Token: TypeAlias = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^\S+$")]
Number: TypeAlias = Annotated[float, Meta(ge=-1e9, le=1e9)]
Numbers: TypeAlias = str | tuple[Number, ...]
"""JSON text, as a text field of a page gives it, or the list itself."""
# Pairs are not typed as such: msgspec 0.22 crashes on a union of a limited int and a tuple of fixed length.
Sizes: TypeAlias = str | tuple[Positive | tuple[Positive, ...], ...]
Frames: TypeAlias = str | tuple[Positive, ...]
Ratios: TypeAlias = str | tuple[Number | tuple[Number, ...], ...]


class Form(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training to be set up. Unknown fields are refused; `form_help.HELP` explains each.

    Lengths of paths and lists are limited by the request's size only, and checked where they are used.
    """

    dataset_path: str
    config_dir: str
    output_dir: str
    transformer_path: str
    vae_path: str
    llm_path: str
    clip_path: str
    model_type: ModelType = "hunyuan-video"
    resume_from_checkpoint: bool | str = False
    num_gpus: Gpus | None = None
    pipeline_stages: Gpus | None = None
    epochs: Positive = 1000
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 4
    gradient_clipping: Amount = 1.0
    warmup_steps: NotNegative = 100
    learning_rate: Rate = 2e-5
    optimizer_type: Token = "adamw_optimi"
    betas: Numbers = "[0.9, 0.99]"
    weight_decay: Amount = 0.01
    eps: Amount = 1e-8
    rank: Positive = 32
    dtype: Token = "bfloat16"
    only_double_blocks: bool = False
    activation_checkpointing: bool = True
    partition_method: Token = "parameters"
    caching_batch_size: Positive = 1
    num_repeats: Positive = 10
    resolutions_input: Sizes = "[512]"
    enable_ar_bucket: bool = True
    min_ar: Ratio = 0.5
    max_ar: Ratio = 2.0
    num_ar_buckets: Positive = 7
    ar_buckets: Ratios | None = ""
    frame_buckets: Frames = "[1, 33]"
    video_clip_mode: Token = "single_middle"
    save_every: Positive = 2
    checkpoint_every_n_minutes: Positive = 120
    save_dtype: Token = "bfloat16"
    eval_every: Positive = 1
    eval_before_first_step: bool = True
    eval_micro_batch_size_per_gpu: Positive = 1
    eval_gradient_accumulation_steps: Positive = 1
    steps_per_print: Positive = 1
    enable_wandb: bool = False
    wandb_run_name: str | None = None
    wandb_tracker_name: str | None = None
    wandb_api_key: str | None = None

    def __repr__(self) -> str:
        """Without values: one of them may be a key, and a traceback goes to a log."""
        return "Form(...)"

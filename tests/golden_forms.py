"""Twenty forms whose two files are pinned in `tests/golden/`.

`python -m tests.golden_forms` writes the files anew, after a change that is meant; read the difference.
"""

from pathlib import Path
from typing import Any

import msgspec

from dpiped import forms
from dpiped.form import Form
from dpiped.form_paths import FOLDERS, MODELS

GOLDEN = Path(__file__).parent / "golden"
PATHS = {
    "dataset_path": "/workspace/datasets/cats",
    "config_dir": "/workspace/configs",
    "output_dir": "/workspace/outputs/cats",
    "transformer_path": "/workspace/models/hunyuan/transformer.safetensors",
    "vae_path": "/workspace/models/hunyuan/vae.safetensors",
    "llm_path": "/workspace/models/llava",
    "clip_path": "/workspace/models/clip",
}
KEY = "0123456789abcdef0123456789abcdef01234567"
FORMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "short_and_quick": {"epochs": 1, "save_every": 1, "warmup_steps": 0, "rank": 4, "num_repeats": 1},
    "betas_of_two_types": {"betas": "[1, 0.99]"},
    "betas_as_a_list": {"betas": [0.95, 0.98], "eps": 1e-6, "weight_decay": 0},
    "sgd": {"optimizer_type": "sgd", "learning_rate": 0.1},
    "automagic": {"optimizer_type": "Automagic", "learning_rate": 1e-6},
    "an_optimizer_of_pytorch_optimizer": {"optimizer_type": "Prodigy", "learning_rate": 1},
    "three_resolutions": {"resolutions_input": "[256, 512, 768]"},
    "sizes_as_pairs": {"resolutions_input": [[512, 768], [768, 512]], "enable_ar_bucket": False},
    "ratios": {"ar_buckets": "[0.5, 1, 1.5]"},
    "ratios_as_pairs": {"ar_buckets": "[[448, 576], [512, 512]]"},
    "no_ratios_at_all": {"ar_buckets": "[]"},
    "ratios_null": {"ar_buckets": None, "frame_buckets": "[1]"},
    "two_copies_of_the_model": {"num_gpus": 4, "pipeline_stages": 2, "partition_method": "type:block"},
    "as_many_stages_as_gpus": {"num_gpus": 2},
    "wandb": {
        "enable_wandb": True,
        "wandb_run_name": "cats #3",
        "wandb_tracker_name": "",
        "wandb_api_key": KEY,
    },
    "wandb_names_without_wandb": {"wandb_run_name": "", "wandb_tracker_name": "x", "wandb_api_key": KEY},
    "embedded": {"model_type": "dpiped", "dtype": "float32", "save_dtype": "float32"},
    "awkward_paths": {
        "dataset_path": '/workspace/datasets/it\'s a [set], #1 "best"',
        "output_dir": "/workspace/outputs/Käse 日本 😀",
        "llm_path": "/workspace/models/back\\slash\\u0041/~x",
        "clip_path": "/workspace/models/a = 'b', c = { d }",
    },
    "everything_else": {
        "dtype": "float16",
        "save_dtype": "float8_e5m2",
        "video_clip_mode": "single_beginning",
        "activation_checkpointing": False,
        "eval_before_first_step": False,
        "gradient_clipping": 0,
        "checkpoint_every_n_minutes": 5,
        "eval_micro_batch_size_per_gpu": 2,
        "eval_gradient_accumulation_steps": 3,
        "eval_every": 4,
        "caching_batch_size": 8,
        "steps_per_print": 10,
        "min_ar": 0.25,
        "max_ar": 4,
        "num_ar_buckets": 9,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "only_double_blocks": True,
    },
}


def form(**fields: Any) -> Form:
    return msgspec.convert(PATHS | fields, Form)


def generate(asked: Form, num_gpus: int = 1) -> forms.Files:
    """The files of a form whose paths are taken as they are."""
    lists = forms.check(asked, num_gpus, None)
    paths = {field: Path(getattr(asked, field)) for field in (*FOLDERS, *MODELS)}
    return forms.generate(asked, lists, paths, num_gpus)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, fields in FORMS.items():
        files = generate(form(**fields))
        (GOLDEN / f"{name}.training.toml").write_text(files.training_toml)
        (GOLDEN / f"{name}.dataset.toml").write_text(files.dataset_toml)


if __name__ == "__main__":
    main()

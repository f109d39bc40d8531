"""From a form to the two TOML files: what they say, what train.py's reader reads, what is refused."""

import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import toml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpiped import forms, oldtoml
from dpiped.errors import InvalidForm
from dpiped.form import Form
from dpiped.form_help import HELP
from tests.golden_forms import FORMS, GOLDEN, KEY, PATHS, form, generate

CONTRACT = {
    # "epochs 1000, batch_size 1, learning_rate 2e-5 (this is the name on the wire), save_every 2,
    # eval_every 1,"
    "epochs": 1000,
    "batch_size": 1,
    "learning_rate": 2e-5,
    "save_every": 2,
    "eval_every": 1,
    # 'rank 32, dtype bfloat16, optimizer_type adamw_optimi, betas "[0.9, 0.99]" (JSON text or list),'
    "rank": 32,
    "dtype": "bfloat16",
    "optimizer_type": "adamw_optimi",
    "betas": "[0.9, 0.99]",
    # "weight_decay 0.01, eps 1e-8,"
    "weight_decay": 0.01,
    "eps": 1e-8,
    # 'gradient_accumulation_steps 4, num_repeats 10, resolutions_input "[512]" (JSON text),
    # enable_ar_bucket true,'
    "gradient_accumulation_steps": 4,
    "num_repeats": 10,
    "resolutions_input": "[512]",
    "enable_ar_bucket": True,
    # 'min_ar 0.5, max_ar 2.0, num_ar_buckets 7, ar_buckets "" (JSON text or empty),'
    "min_ar": 0.5,
    "max_ar": 2.0,
    "num_ar_buckets": 7,
    "ar_buckets": "",
    # 'frame_buckets "[1, 33]" (JSON text), gradient_clipping 1.0, warmup_steps 100,
    # eval_before_first_step true,'
    "frame_buckets": "[1, 33]",
    "gradient_clipping": 1.0,
    "warmup_steps": 100,
    "eval_before_first_step": True,
    # "eval_micro_batch_size_per_gpu 1, eval_gradient_accumulation_steps 1, checkpoint_every_n_minutes 120,"
    "eval_micro_batch_size_per_gpu": 1,
    "eval_gradient_accumulation_steps": 1,
    "checkpoint_every_n_minutes": 120,
    # "activation_checkpointing true, partition_method parameters, save_dtype bfloat16,"
    "activation_checkpointing": True,
    "partition_method": "parameters",
    "save_dtype": "bfloat16",
    # "caching_batch_size 1, steps_per_print 1, video_clip_mode single_middle, resume_from_checkpoint false,"
    "caching_batch_size": 1,
    "steps_per_print": 1,
    "video_clip_mode": "single_middle",
    "resume_from_checkpoint": False,
    # "only_double_blocks false, enable_wandb false, wandb_run_name / wandb_tracker_name / wandb_api_key
    # null."
    "only_double_blocks": False,
    "enable_wandb": False,
    "wandb_run_name": None,
    "wandb_tracker_name": None,
    "wandb_api_key": None,
}


def refusal(num_gpus: int = 1, **fields: Any) -> dict[str, str]:
    """Field → what it takes."""
    with pytest.raises(InvalidForm) as refused:
        generate(form(**fields), num_gpus)
    return dict(refused.value.fields)


def test_names_and_defaults_are_the_contracts() -> None:
    made = msgspec.to_builtins(form())
    assert {name: made[name] for name in CONTRACT} == CONTRACT
    # What goes beyond it changes nothing where it is not used.
    assert made.keys() - CONTRACT.keys() - PATHS.keys() == {"model_type", "num_gpus", "pipeline_stages"}


def test_the_paths_are_required() -> None:
    required = {field.name for field in msgspec.structs.fields(Form) if field.required}
    assert required == set(PATHS)


def test_every_field_is_explained() -> None:
    assert HELP.keys() == set(Form.__struct_fields__)
    assert all(each.text.endswith(".") and each.group for each in HELP.values())


def test_what_the_files_of_the_defaults_say() -> None:
    files = generate(form(), num_gpus=2)
    assert tomllib.loads(files.dataset_toml) == {
        "resolutions": [512],
        "enable_ar_bucket": True,
        "min_ar": 0.5,
        "max_ar": 2.0,
        "num_ar_buckets": 7,
        "frame_buckets": [1, 33],
        "directory": [{"path": "/workspace/datasets/cats", "num_repeats": 10}],
    }
    assert tomllib.loads(files.training_toml) == {
        "output_dir": "/workspace/outputs/cats",
        "dataset": "/workspace/configs/dataset_config.toml",
        "epochs": 1000,
        "micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "warmup_steps": 100,
        "eval_every_n_epochs": 1,
        "eval_before_first_step": True,
        "eval_micro_batch_size_per_gpu": 1,
        "eval_gradient_accumulation_steps": 1,
        "save_every_n_epochs": 2,
        "checkpoint_every_n_minutes": 120,
        "activation_checkpointing": True,
        "partition_method": "parameters",
        "save_dtype": "bfloat16",
        "caching_batch_size": 1,
        "steps_per_print": 1,
        "video_clip_mode": "single_middle",
        # "pipeline_stages (= number of GPUs)"
        "pipeline_stages": 2,
        "model": {
            "type": "hunyuan-video",
            "transformer_path": PATHS["transformer_path"],
            "vae_path": PATHS["vae_path"],
            "llm_path": PATHS["llm_path"],
            "clip_path": PATHS["clip_path"],
            "dtype": "bfloat16",
            "transformer_dtype": "float8",
            "timestep_sample_method": "logit_normal",
        },
        # only_double_blocks and monitoring.log_dir are left out: nobody reads them.
        "adapter": {"type": "lora", "rank": 32, "dtype": "bfloat16"},
        "optimizer": {
            "type": "adamw_optimi",
            "lr": 2e-5,
            "betas": [0.9, 0.99],
            "weight_decay": 0.01,
            "eps": 1e-8,
        },
        "monitoring": {"enable_wandb": False},
    }


@pytest.mark.parametrize("name", FORMS)
def test_golden_files(name: str) -> None:
    files = generate(form(**FORMS[name]))
    assert files.training_toml == (GOLDEN / f"{name}.training.toml").read_text()
    assert files.dataset_toml == (GOLDEN / f"{name}.dataset.toml").read_text()
    for text in (files.training_toml, files.dataset_toml):
        assert toml.loads(text) == tomllib.loads(text)


def test_there_are_twenty_golden_forms() -> None:
    assert len(FORMS) == 20
    assert len(list(GOLDEN.iterdir())) == 40


# --- what the old reader reads

AWKWARD = st.text(
    alphabet=st.one_of(
        st.sampled_from(" '\"[]{}()#=,.\\/~$:;-_aZ09\t"), st.characters(exclude_categories=["Cs"])
    ),
    min_size=1,
    max_size=40,
)
RELATIVE = AWKWARD.filter(lambda text: "\0" not in text)
WHOLE = st.integers(1, 1_000_000)
ALL_FORMS = st.fixed_dictionaries(
    {
        "dataset_path": RELATIVE.map("/workspace/datasets/{}".format),
        "output_dir": RELATIVE.map("/workspace/outputs/{}".format),
        "config_dir": RELATIVE.map("/workspace/configs/{}".format),
        "transformer_path": RELATIVE.map("/workspace/models/{}".format),
        "llm_path": RELATIVE.map("/workspace/models/{}".format),
        "epochs": WHOLE,
        "batch_size": WHOLE,
        "warmup_steps": st.integers(0, 1_000_000),
        "learning_rate": st.floats(5e-324, 100),
        "weight_decay": st.floats(0, 1_000_000),
        "eps": st.floats(0, 1_000_000),
        "gradient_clipping": st.floats(0, 1_000_000),
        "betas": st.tuples(
            st.one_of(st.integers(0, 1), st.floats(0, 1)), st.one_of(st.integers(0, 1), st.floats(0, 1))
        ),
        "resolutions_input": st.one_of(
            st.lists(WHOLE, min_size=1, max_size=3),
            st.lists(st.lists(WHOLE, min_size=2, max_size=2), min_size=1, max_size=3),
        ).map(lambda value: msgspec.json.encode(value).decode()),
        "ar_buckets": st.one_of(
            st.none(),
            st.just(""),
            st.lists(st.one_of(st.integers(1, 1000), st.floats(1e-9, 1000)), max_size=5).map(
                lambda value: msgspec.json.encode(value).decode()
            ),
        ),
        "frame_buckets": st.lists(WHOLE, min_size=1, max_size=5),
        "min_ar": st.floats(1e-9, 1),
        "max_ar": st.floats(1, 1000),
        "optimizer_type": st.sampled_from(["adamw_optimi", "sgd", "automagic", "Prodigy", "AdamW"]),
        "dtype": st.sampled_from(forms.DTYPES),
        "wandb_run_name": st.none() | AWKWARD | st.just(""),
        "wandb_tracker_name": st.none() | AWKWARD | st.just(""),
    }
)


@settings(max_examples=500, deadline=None)
@given(ALL_FORMS)
@example({"betas": (1, 0.99), "dataset_path": '/data/it\'s "one" [of] ö', "frame_buckets": (1,)})
def test_the_old_reader_reads_exactly_what_was_asked(fields: dict[str, Any]) -> None:
    asked = form(**fields)
    try:
        files = generate(asked)
    except InvalidForm as refused:
        # Only a text that the reader can't be told is refused, and only for being one.
        for field, text in refused.fields:
            value = getattr(asked, field)
            assert "reads back unchanged" in text and value.startswith('"')
            assert toml_misreads(value)
        return
    dataset, training = toml.loads(files.dataset_toml), toml.loads(files.training_toml)
    # A path is an absolute one here; pathlib takes a//b and a/./b for a/b, as everybody does.
    assert dataset["directory"] == [{"path": str(Path(asked.dataset_path)), "num_repeats": asked.num_repeats}]
    assert training["output_dir"] == str(Path(asked.output_dir))
    assert training["dataset"] == str(Path(asked.config_dir) / "dataset_config.toml")
    assert training["model"]["transformer_path"] == str(Path(asked.transformer_path))
    assert training["model"]["llm_path"] == str(Path(asked.llm_path))
    assert training["epochs"] == asked.epochs and training["warmup_steps"] == asked.warmup_steps
    assert training["optimizer"]["lr"] == asked.learning_rate
    assert training["optimizer"]["weight_decay"] == asked.weight_decay
    if asked.optimizer_type not in ("sgd", "automagic"):
        assert training["optimizer"]["betas"] == list(asked.betas)
        assert training["optimizer"]["eps"] == asked.eps
    else:
        assert training["optimizer"].keys() == {"type", "lr", "weight_decay"}
    assert dataset["resolutions"] == msgspec.json.decode(str(asked.resolutions_input))
    assert dataset["frame_buckets"] == list(asked.frame_buckets)
    if asked.ar_buckets:
        assert dataset["ar_buckets"] == msgspec.json.decode(str(asked.ar_buckets))
    else:
        assert "ar_buckets" not in dataset
    for name in ("wandb_run_name", "wandb_tracker_name"):
        assert training["monitoring"].get(name) == getattr(asked, name)


def toml_misreads(value: str) -> bool:
    text = f"value = {oldtoml.quoted(value)}"
    try:
        return bool(toml.loads(text)["value"] != value)
    except (toml.TomlDecodeError, IndexError):
        return True


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30, alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_valid_toml_and_what_is_called_misread_is(value: str) -> None:
    data = {"a": value, "t": {"b": [1, 2]}, "directory": [{"path": value}]}
    assert tomllib.loads(oldtoml.write(data)) == data
    assert oldtoml.misread(data) == (["a", "directory[0].path"] if toml_misreads(value) else [])


def test_a_mixed_list_is_misread() -> None:
    assert oldtoml.misread({"o": {"betas": [1, 0.99]}, "x": 1}) == ["o.betas"]
    assert oldtoml.misread({"o": {"betas": [1.0, 0.99]}, "x": -0.0}) == ["x"]


# --- what is refused, field by field

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"betas": "0.9, 0.99"}, "betas", "a JSON list of two numbers from 0 to 1"),
    ({"betas": "[0.9]"}, "betas", "two numbers"),
    ({"betas": "[0.9, 1.5]"}, "betas", "from 0 to 1"),
    ({"betas": "[true, 0.9]"}, "betas", "two numbers"),
    ({"betas": "[0.9, NaN]"}, "betas", "two numbers"),
    ({"betas": '{"a": 1}'}, "betas", "a JSON list"),
    ({"betas": ""}, "betas", "a JSON list"),
    ({"betas": "[" * 100_000}, "betas", "a JSON list"),
    ({"resolutions_input": "512"}, "resolutions_input", "a JSON list"),
    ({"resolutions_input": "[]"}, "resolutions_input", "a JSON list"),
    ({"resolutions_input": "[512, [1280, 720]]"}, "resolutions_input", "or of [width, height] pairs"),
    ({"resolutions_input": "[0]"}, "resolutions_input", "from 1 on"),
    ({"resolutions_input": "[512.5]"}, "resolutions_input", "whole numbers"),
    ({"resolutions_input": "[256, 512, 768, 1024]"}, "resolutions_input", "at most 3"),
    ({"resolutions_input": [[1]]}, "resolutions_input", "pairs"),
    ({"frame_buckets": "[1, 33.5]"}, "frame_buckets", "whole numbers"),
    ({"frame_buckets": "1"}, "frame_buckets", "a JSON list"),
    ({"ar_buckets": "[0.5, [1, 2]]"}, "ar_buckets", "numbers above 0, or"),
    ({"ar_buckets": "[-1]"}, "ar_buckets", "above 0"),
    ({"ar_buckets": "[[1.5, 2]]"}, "ar_buckets", "[width, height] pairs"),
    ({"ar_buckets": "1.0"}, "ar_buckets", "a JSON list"),
    ({"min_ar": 2.5}, "max_ar", "from min_ar (2.5) on"),
    ({"dtype": "fp16"}, "dtype", "one of bfloat16"),
    ({"save_dtype": "int8"}, "save_dtype", "one of bfloat16"),
    ({"video_clip_mode": "single\n"}, "video_clip_mode", "one word"),
    ({"optimizer_type": "adam-w"}, "optimizer_type", "a class of pytorch_optimizer"),
    ({"num_gpus": 4, "pipeline_stages": 3}, "pipeline_stages", "divides the number of GPUs (4)"),
    ({"pipeline_stages": 2}, "pipeline_stages", "divides the number of GPUs (1)"),
    ({"resume_from_checkpoint": " "}, "resume_from_checkpoint", "the name of a folder"),
    ({"enable_wandb": True, "wandb_tracker_name": "t", "wandb_api_key": KEY}, "wandb_run_name", "a text"),
    ({"enable_wandb": True, "wandb_run_name": "r", "wandb_api_key": KEY}, "wandb_tracker_name", "a text"),
    (
        {"enable_wandb": True, "wandb_run_name": "r", "wandb_tracker_name": "t"},
        "wandb_api_key",
        "WANDB_API_KEY",
    ),
    ({"output_dir": '""x'}, "output_dir", "reads back unchanged"),
    ({"betas": "[1" + "0" * 400 + ", 1]"}, "betas", "from 0 to 1"),
    (
        {"enable_wandb": True, "wandb_run_name": f"x{KEY}", "wandb_tracker_name": "t", "wandb_api_key": KEY},
        "wandb_run_name",
        "does not hold the key",
    ),
    ({"model_type": "dpiped", "dtype": "float16"}, "dtype", "for model_type dpiped"),
    ({"model_type": "dpiped", "save_dtype": "float8"}, "save_dtype", "for model_type dpiped"),
    ({"model_type": "dpiped", "partition_method": "uniform"}, "partition_method", "takes parameters"),
    ({"model_type": "dpiped", "ar_buckets": "[]"}, "ar_buckets", "at least one ratio"),
    ({"wandb_run_name": '"'}, "wandb_run_name", "reads back unchanged"),
]


@pytest.mark.parametrize(("fields", "field", "says"), REFUSED)
def test_refused(fields: dict[str, Any], field: str, says: str) -> None:
    found = refusal(**fields)
    assert list(found) == [field]
    assert found[field].startswith("takes ") and says in found[field]


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = refusal(betas="x", dtype="x", frame_buckets="x", max_ar=0.1, ar_buckets="x")
    assert set(found) == {"betas", "dtype", "frame_buckets", "max_ar", "ar_buckets"}


def test_a_wandb_key_is_told_without_itself() -> None:
    bad = "not a key, with spaces"
    found = refusal(enable_wandb=True, wandb_run_name="r", wandb_tracker_name="t", wandb_api_key=bad)
    assert found == {"wandb_api_key": "takes 8 to 256 letters, digits and _.:+/=-"}
    assert bad not in repr(form(wandb_api_key=bad)) and KEY not in repr(generate(form(**FORMS["wandb"])))


def test_a_hidden_key_is_no_key() -> None:
    """A form as it is shown again: the key has to come from elsewhere."""
    shown = form(**(FORMS["wandb"] | {"wandb_api_key": "hidden-by-dpiped"}))
    with pytest.raises(InvalidForm):
        forms.check(shown, 1, None)
    lists = forms.check(shown, 1, KEY)
    paths = {field: Path("/x") for field in PATHS}
    assert forms.generate(shown, lists, paths, 1).key is None


def test_a_key_is_in_no_text_and_only_beside_it_when_it_is_wanted() -> None:
    with_wandb, without = generate(form(**FORMS["wandb"])), generate(form(wandb_api_key=KEY))
    assert with_wandb.key == KEY and without.key is None
    assert KEY not in with_wandb.training_toml and KEY not in without.training_toml
    assert "wandb_api_key" not in without.training_toml
    assert forms.hidden(form(wandb_api_key=KEY)).wandb_api_key == "hidden-by-dpiped"


def test_more_resolutions_where_they_are_meant() -> None:
    asked = form(resolutions_input="[256, 512, 768, 1024]")
    assert len(forms.check(asked, 1, None, many=True).resolutions) == 4


def test_numbers_keep_their_kind() -> None:
    training = tomllib.loads(generate(form(weight_decay=0, gradient_clipping=-0.0)).training_toml)
    assert isinstance(training["optimizer"]["weight_decay"], float)
    assert math.copysign(1, training["gradient_clipping"]) == 1

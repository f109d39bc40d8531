"""`start --form`, `validate` and single fields on the command line."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dpipectl import forms
from dpiped.errors import InvalidForm
from tests.golden_forms import PATHS
from tests.harness import Workspace
from tests.web import MODELS


def fields(workspace: Workspace) -> dict[str, Any]:
    root = workspace.root
    return {
        "dataset_path": f"{root}/datasets/set",
        "config_dir": f"{root}/configs",
        "output_dir": f"{root}/outputs",
        **{name: f"{root}/models/{name}" for name in MODELS},
    }


def write_json(workspace: Workspace, **more: Any) -> str:
    path = workspace.root / "form.json"
    path.write_text(json.dumps(fields(workspace) | more))
    return str(path)


def test_a_form_is_started_from_a_json_file_with_fields_over_it(dpiped: Workspace) -> None:
    form = write_json(dpiped, epochs=3, betas=[0.9, 0.95])
    words = ("--epochs", "5", "--set", "learning_rate=1e-4", "--set", "ar_buckets=[1]", "--num-gpus", "1")
    started = dpiped.json("start", "--form", form, *words)
    assert started["written"] == f"{dpiped.root}/configs/training_config.toml"
    assert [text.partition(":")[0] for text in started["warnings"]] == list(MODELS)
    written = tomllib.loads(Path(started["written"]).read_text())
    assert written["epochs"] == 5 and written["optimizer"]["lr"] == 1e-4
    assert written["optimizer"]["betas"] == [0.9, 0.95]
    assert dpiped.json("show", started["run"])["form"]["epochs"] == 5
    code, _, err = dpiped.ctl("start", "--form", form)
    assert code == 4 and "already running" in err


def test_a_form_is_started_from_a_toml_file(dpiped: Workspace) -> None:
    path = dpiped.root / "form.toml"
    lines = [f'{name} = "{value}"' for name, value in fields(dpiped).items()]
    path.write_text("\n".join(lines) + "\nresolutions_input = [256, 512]\nwarmup_steps = 0\n")
    code, out, err = dpiped.ctl("start", "--form", str(path))
    assert code == 0, err
    assert out.startswith("started run ") and "warning: transformer_path: there is nothing at" in out
    data = tomllib.loads((dpiped.root / "configs/dataset_config.toml").read_text())
    assert data["resolutions"] == [256, 512]


def test_no_file_at_all(dpiped: Workspace) -> None:
    words = [
        word for name, value in fields(dpiped).items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    assert dpiped.json("start", *words, "--rank", "8")["written"]
    written = tomllib.loads((dpiped.root / "configs/training_config.toml").read_text())
    assert written["adapter"]["rank"] == 8


def test_what_is_wrong_is_said_field_by_field(dpiped: Workspace) -> None:
    form = write_json(dpiped, epochs="many", save_every=0, nonsense=1)
    error = dpiped.json("start", "--form", form, code=5)["error"]
    assert error["code"] == "invalid_form" and error["field"] == "epochs"
    for text in (
        'epochs takes a whole number from 1 to 1000000, not "many"',
        "save_every takes a whole number from 1 to 1000000, not 0",
        "nonsense is no field of the form",
    ):
        assert text in error["message"]
    error = dpiped.json("start", "--form", write_json(dpiped, betas="x"), code=5)["error"]
    assert error["code"] == "invalid_form" and error["message"].startswith("betas takes a JSON list")
    assert dpiped.json("runs") == []


@pytest.mark.parametrize(
    ("words", "field", "says"),
    [
        (("--form", "/no/such/file.json"), "form", "there is no file"),
        (("--form", "/"), "form", "can't be read"),
        (("--form", "/etc/hostname"), "form", "is not JSON"),
        (("--set", "epochs"), "set", "FIELD=VALUE"),
        (("--set", "epoch=1"), "epoch", "is no field of the form"),
        (("--epochs", "0"), "dataset_path", "dataset_path is required"),
    ],
)
def test_words_that_make_no_form(dpiped: Workspace, words: tuple[str, ...], field: str, says: str) -> None:
    for verb in ("start", "validate"):
        error = dpiped.json(verb, *words, code=5)["error"]
        assert error["field"] == field and says in error["message"]


@pytest.mark.parametrize(
    "words",
    [(), ("--config", "/x", "--form", "/y"), ("--config", "/x", "--epochs", "3"), ("--num-gpus", "2")],
)
def test_a_training_is_one_of_the_two(workspace: Workspace, words: tuple[str, ...]) -> None:
    for verb in ("start", "validate"):
        error = workspace.json(verb, *words, code=2)["error"]
        assert error["code"] == "usage" and "--config" in error["message"]


def test_validate_a_form(dpiped: Workspace) -> None:
    form = write_json(dpiped, dataset_path="nowhere", pipeline_stages=2)
    found = dpiped.json("validate", "--form", form, code=5)
    assert found["ok"] is False
    named = [each["field"] for each in found["findings"]]
    assert named == ["dataset_path", *MODELS, "pipeline_stages"]
    code, out, _ = dpiped.ctl("validate", "--form", form)
    assert code == 5 and "pipeline_stages: takes a number that divides the number of GPUs (1)" in out
    (dpiped.root / "models").mkdir()
    for name in MODELS:
        (dpiped.root / "models" / name).touch()
    assert dpiped.json("validate", "--form", write_json(dpiped)) == {"ok": True, "findings": []}
    assert dpiped.json("runs") == [] and not (dpiped.root / "configs/training_config.toml").exists()


def test_validate_a_config(dpiped: Workspace) -> None:
    config = dpiped.config()
    assert dpiped.json("validate", "--config", str(config)) == {"ok": True, "findings": []}
    code, out, _ = dpiped.ctl("validate", "--config", str(config))
    assert code == 0 and out.startswith("nothing is wrong with it")
    config.write_text(config.read_text().replace("epochs = 1\n", "epochs = 0\n"))
    found = dpiped.json("validate", "--config", str(config), code=5)
    assert [each["field"] for each in found["findings"]] == ["epochs"]
    found = dpiped.json("validate", "--config", str(config), "--", "--config", "x", code=5)
    assert found["findings"]


def test_the_embedded_trainer_by_a_form(dpiped: Workspace) -> None:
    """It needs no model files; that it trains is shown where there are pictures."""
    form = write_json(dpiped, model_type="dpiped", **dict.fromkeys(MODELS, ""))
    assert dpiped.json("validate", "--form", form) == {"ok": True, "findings": []}


def test_help_explains_the_fields(workspace: Workspace) -> None:
    code, out, _ = workspace.ctl("start", "--help")
    assert code == 0 and "--learning-rate" in out and "How far a step goes." in out
    code, out, _ = workspace.ctl("serve", "--help")
    assert code == 0 and "--token-file" in out


# --- without a daemon


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "5", 5),
        ("epochs", "x", "x"),
        ("learning_rate", "1e-4", 1e-4),
        ("enable_wandb", "true", True),
        ("betas", "[0.9, 0.99]", "[0.9, 0.99]"),
        ("wandb_run_name", "null", "null"),
        ("num_gpus", "null", None),
        ("resume_from_checkpoint", "true", True),
        ("resume_from_checkpoint", "20260131_12-00-00", "20260131_12-00-00"),
    ],
)
def test_values_of_the_command_line(name: str, text: str, value: object) -> None:
    assert forms.from_text(name, text) == value


def test_whole_numbers_may_be_written_with_a_point() -> None:
    form = forms.convert(
        PATHS | {"epochs": 3.0, "frame_buckets": [1.0, 33], "resolutions_input": [[512.0, 1]]}
    )
    assert (form.epochs, form.frame_buckets, form.resolutions_input) == (3, (1, 33), ((512, 1),))


def test_unknown_fields_are_refused_or_ignored() -> None:
    with pytest.raises(InvalidForm) as refused:
        forms.convert(PATHS | {"x" * 100: 1})
    assert refused.value.fields[0][1] == "is no field of the form" and len(refused.value.message) < 100
    assert forms.convert(PATHS | {"lr": 1}, ignore_unknown=True).learning_rate == 2e-5


def test_a_key_that_does_not_fit_is_not_repeated() -> None:
    with pytest.raises(InvalidForm) as refused:
        forms.convert(PATHS | {"wandb_api_key": ["secret"]})
    assert "secret" not in refused.value.message

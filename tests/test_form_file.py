"""A saved form read for a page."""

import json
import time
import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from dpipectl.http.app import create_app
from dpipectl.http.guard import Policy
from dpiped.form import Form
from tests.web import Shim

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def read(text: Any) -> tuple[int, Any]:
    """Without a daemon: none is asked."""
    with TestClient(create_app(Policy(check_host=False))) as client:
        answer = client.post("/train/form", json={"text": text})
    return answer.status_code, answer.json()


def test_json_and_toml_give_the_same(shim: Shim) -> None:
    form = shim.form(
        epochs=7, betas=[0.9, 0.99], ar_buckets=None, enable_wandb=True, wandb_api_key="a-key-of-mine"
    )
    saved = form | {"of_old": 1, "what": [2]}
    as_toml = "# a comment\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in saved.items() if value is not None
    )
    known = {name: value for name, value in form.items() if name != "wandb_api_key"}
    said = {name: value for name, value in known.items() if value is not None}
    for text, fields in (
        (json.dumps(saved), known),
        (f"\ufeff \n{json.dumps(saved, indent=1)}", known),
        (as_toml, said),
    ):
        status, found = shim.post("/train/form", {"text": text})
        assert status == 200 and found["form"] == fields and "a-key-of-mine" not in str(found)
        assert (found["unknown"], found["dropped"]) == (["of_old", "what"], ["wandb_api_key"])
        assert tomllib.loads(found["toml"]) == said
    assert shim.post("/train/form", {"text": ""})[1] == {"form": {}, "unknown": [], "dropped": [], "toml": ""}
    assert shim.post("/train/preview", found["form"] | {"enable_wandb": False})[0] == 200


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.one_of(st.sampled_from(Form.__struct_fields__), st.text()), VALUES, max_size=6))
def test_whatever_the_values_are_the_toml_says_them_without_null(data: dict[str, Any]) -> None:
    def told(value: Any) -> Any:
        return [told(each) for each in value if each is not None] if isinstance(value, list) else value

    status, found = read(json.dumps(data))
    assert status == 200
    known = {name: value for name, value in data.items() if name in Form.__struct_fields__}
    dropped = known.pop("wandb_api_key", known) is not known
    assert found["form"] == known and found["dropped"] == ["wandb_api_key"] * dropped
    assert set(found["unknown"]) == set(data) - set(Form.__struct_fields__)
    assert tomllib.loads(found["toml"]) == {
        name: told(each) for name, each in known.items() if each is not None
    }


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        (
            '{"epochs": 1,\n "rank": tru}',
            "is not JSON: JSON is malformed: invalid character (byte 27) (line 2)",
        ),
        ('\n{"epochs": 1,\n', "(line 3)"),
        ('{"epochs": NaN}', "(line 1)"),
        ('{"epochs": 1e999}', "is not JSON: Number out of range"),
        ('{"epochs": "\\ud800"}', "is not JSON"),
        ("epochs = 1\nrank = = 2", "is not TOML: Invalid value (at line 2, column 8)"),
        ("epochs = 1\nrank = ", "is not TOML: Invalid value (at line 2, the last one)"),
        ("[1, 2]\nx", "is not TOML"),
        ("just words", "is not TOML"),
        ('{"epochs": ' + "[" * 5000, "text is nested too deep"),
        ("epochs = " + "[" * 5000, "text is nested too deep"),
        ("a" + ".b" * 600 + " = 1", "a key has more than 16 dots"),
        ('["a"' + " . 'b'" * 600 + "]", "a key has more than 16 dots"),
        ('x = """\n"""""\n{y' + ".y" * 17 + " = 1}", "a key has more than 16 dots"),
        ("epochs = " + "1" * 5000, "text has a number that is too long"),
        ("epochs = 0x" + "f" * 5000, "text has a number that is too long"),
        ('{"epochs": ' + "1" * 5000 + "}", "text has a number that is too long"),
        ("#" * 65537, "takes a text of at most 65536 characters"),
        (5, "takes a text of at most 65536 characters"),
        (None, "takes a text of at most 65536 characters"),
    ],
)
def test_what_is_neither_is_refused_with_its_line(text: Any, phrase: str) -> None:
    status, found = read(text)
    (detail,) = found["detail"]
    assert status == 422 and detail["loc"] == ["body", "text"] and phrase in detail["msg"]


def test_dots_elsewhere_make_no_key_long() -> None:
    dots = ".x" * 30
    quoted = (f'"{dots}"', f"'{dots}'", f'"""\n{dots}\\""" {dots}""""', f"'''{dots}'''''")
    for value in (*(f"{each}  # {dots}" for each in quoted), f"[{', '.join(quoted[:2])}]"):
        status, found = read(f"dataset_path = {value}")
        assert status == 200 and dots in str(found["form"]), value


def test_a_hostile_text_is_answered_at_once() -> None:
    begun = time.process_time()
    for text in (
        '"""\\' * 16_000,
        "'''" * 20_000,
        "a." * 32_000,
        "a" + ".a" * 32_000 + " = 1",
        "= " * 30_000,
    ):
        assert read(text)[0] == 422
    assert time.process_time() - begun < 2

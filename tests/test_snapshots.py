"""The config of a run, shown and compared with a form."""

import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from dpiped import masking, snapshots
from dpiped.messages import Difference
from dpiped.redaction import HIDDEN
from tests.harness import Workspace
from tests.test_logs import CALM
from tests.web import Shim

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_every_kind_of_difference() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "d": {}}, "e": [{"x": 1}, {"x": "é"}], "same": {"k": True}, "k.l": 1}
    after = {"a": 1.0, "b": {"c": [1, 3]}, "e": [{"x": 1}], "same": {"k": True}, "f": True}
    assert snapshots.differences("dataset", before, after) == [
        Difference("dataset", "a", "1", "1.0"),
        Difference("dataset", "b.c", "[1, 2]", "[1, 3]"),
        Difference("dataset", "b.d", "{}", None),
        Difference("dataset", "e[1].x", '"é"', None),
        Difference("dataset", '"k.l"', "1", None),
        Difference("dataset", "f", None, "true"),
    ]
    assert snapshots.differences("training", before, before) == []
    dated = tomllib.loads("day = 1979-05-27\nnumber = nan\nnone = []")
    assert [each.before for each in snapshots.differences("training", dated, {})] == [
        '"1979-05-27"',
        "NaN",
        "[]",
    ]
    assert snapshots.differences("training", dated, dict(dated)) == []


def test_the_config_of_a_run_and_what_a_form_changes(shim: Shim) -> None:
    workspace = shim.workspace
    for name in ("config", "compare"):
        asked = (
            shim.get(f"/runs/last/{name}")
            if name == "config"
            else shim.post("/runs/last/compare", shim.form())
        )
        assert asked[0] == 404
    for name in ("transformer_path", "vae_path", "llm_path", "clip_path"):
        (workspace.root / f"models/{name}").mkdir(parents=True)
    form = shim.form(
        enable_wandb=True, wandb_run_name="r", wandb_tracker_name="t", wandb_api_key=KEY, learning_rate=1e-4
    )
    assert shim.post("/train/start", form)[0] == 200
    found = shim.get("/runs/last/config")[1]
    run = found["run"]
    training, dataset = tomllib.loads(found["training_toml"]), tomllib.loads(found["dataset_toml"])
    assert training["optimizer"]["lr"] == 1e-4 and KEY not in str(found)
    assert training["monitoring"]["wandb_api_key"] == "hidden-by-dpiped"
    assert dataset["directory"][0]["path"] == form["dataset_path"]
    # Neither the key nor where the files lie counts.
    same = form | {"wandb_api_key": None, "config_dir": f"{workspace.root}/configs/other"}
    assert shim.post(f"/runs/{run}/compare", same) == (
        200,
        {"type": "compared", "run": run, "differences": []},
    )
    (workspace.root / "datasets/two").mkdir()
    changed = same | {
        "learning_rate": 2e-4,
        "enable_wandb": False,
        "optimizer_type": "sgd",
        "dataset_path": f"{workspace.root}/datasets/two",
    }
    status, reply = shim.post(f"/runs/{run}/compare", changed)
    assert status == 200
    differences = {
        f"{each['file']} {each['key']}": (each["before"], each["after"]) for each in reply["differences"]
    }
    assert differences == {
        "training optimizer.type": ('"adamw_optimi"', '"sgd"'),
        "training optimizer.lr": ("0.0001", "0.0002"),
        "training optimizer.betas": ("[0.9, 0.99]", None),
        "training optimizer.eps": ("1e-08", None),
        "training monitoring.enable_wandb": ("true", "false"),
        "dataset directory[0].path": (f'"{form["dataset_path"]}"', f'"{changed["dataset_path"]}"'),
    }
    status, wrong = shim.post(f"/runs/{run}/compare", changed | {"epochs": 0})
    assert status == 422 and wrong["detail"][0]["loc"] == ["body", "epochs"]
    assert shim.post(f"/runs/{run}/compare", changed | {"dataset_path": "/etc"})[0] == 400
    assert shim.post("/train/stop", mode="kill", timeout=1)[1]["status"] == "stopped"


def test_a_config_that_is_damaged_is_said_without_its_path(workspace: Workspace) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    run = workspace.start(workspace.config(steps=2))
    workspace.until_ended(run)
    file = workspace.runs_dir / run / "training_config.toml"
    file.write_text('[model]\nhf_token = "a-secret"\n# hf_token = "a-secret"\n')
    shown = [shim.get(f"/runs/{run}/config"), shim.post(f"/runs/{run}/compare", shim.form())]
    assert [status for status, _ in shown] == [200, 200] and "a-secret" not in str(shown)
    (token,) = (each for each in shown[1][1]["differences"] if each["key"] == "model.hf_token")
    assert (token["before"], token["after"]) == (f'"{HIDDEN}"', None)
    file.write_text("no TOML [")
    for spoilt in (True, False):
        status, found = shim.get(f"/runs/{run}/config")
        assert status == 409 and "training_config.toml" in found["detail"], spoilt
        assert str(workspace.root) not in found["detail"]
        file.unlink(missing_ok=True)


SECRET_CONFIG = r'''
hf_token = "hf_very-secret"  # token: comment-secret
"api_key" = 'very-secret'
my.PASSWORD = """
very-secret"""
none_token = ""
max_token_length = 77
tokenizer = "shown/path"
# api_key = "comment-secret"   # not, but "kept"
#password: comment-secret
mirror = "https://user:very-secret@host/a?b=c@d"
# see ssh://comment-secret@host/x
prompt = "# password = 'shown'"
size = [1, 2]
'''


def test_secrets_of_a_plain_config_are_hidden_where_they_stand() -> None:
    dataset_comment = "# wandb: 0123456789abcdef0123456789abcdef01234567, a name: shown\n"
    hidden = masking.mask(dataset_comment + SECRET_CONFIG)
    assert "-secret" not in hidden and "0123456789" not in hidden and masking.WRITTEN_ANEW not in hidden
    assert (
        tomllib.loads(hidden)
        == masking.masked(tomllib.loads(SECRET_CONFIG))
        == {
            "hf_token": HIDDEN,
            "api_key": HIDDEN,
            "my": {"PASSWORD": HIDDEN},
            "none_token": "",
            "max_token_length": 77,
            "tokenizer": "shown/path",
            "mirror": f"https://{HIDDEN}@host/a?b=c@d",
            "prompt": "# password = 'shown'",
            "size": [1, 2],
        }
    )
    assert f'# api_key = "{HIDDEN}"   # not, but "kept"' in hidden and "a name: shown" in hidden
    assert masking.mask(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        'tokens = ["a-secret", {b = "a-secret"}]  # kept?',
        '[credentials]\nuser = "a-secret"',
        r'"\u0061pi_k\u0065y" = "a-secret"',
        r'mirror = "https\u003a//me:a-secret@host"',
    ],
)
def test_what_can_not_be_hidden_in_its_place_is_written_anew(text: str) -> None:
    hidden = masking.mask(text)
    assert hidden.startswith(masking.WRITTEN_ANEW) and "a-secret" not in hidden
    assert tomllib.loads(hidden) == masking.masked(tomllib.loads(text))


STRINGS = st.one_of(st.text(max_size=8), st.sampled_from(["a://b:c@d", "token = 'x'", '"""', "#", "\n"]))


@CALM
@given(
    st.recursive(
        st.one_of(STRINGS, st.integers(), st.booleans()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.one_of(STRINGS, st.just("k_token")), inner, max_size=3),
        ),
        max_leaves=8,
    )
)
def test_whatever_a_config_says_it_says_the_same_but_for_its_secrets(value: Any) -> None:
    data = {"key": value, "name": value, "mirror": "x://user:pw@host"}
    hidden = masking.mask(tomli_w.dumps(data, multiline_strings=True))
    assert tomllib.loads(hidden) == masking.masked(data) and "user:pw" not in hidden

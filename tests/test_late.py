"""What would fail late is refused at once, or warned about; what is right is let pass."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpiped import late, launch, oldtoml, tomltext
from dpiped.errors import InvalidInput
from dpiped.launch import Plan
from dpiped.sources import Wanted
from tests.test_launch import Machine

MODEL = "[model]\ntype = 'flux'\ndtype = 'bfloat16'\n"
OPTIMIZER = "[optimizer]\ntype = 'adamw'\n"
ADAPTER = "[adapter]\ntype = 'lora'\nrank = 8\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path.resolve())


def plan(machine: Machine, *args: str, top: str = "", model: str = MODEL, rest: str = OPTIMIZER) -> Plan:
    head = (
        f"output_dir = '{machine.out}'\ndataset = '{machine.dataset}'\nepochs = 3\nsave_every_n_epochs = 1\n"
    )
    machine.config.write_text(f"{head}{top}\n{model}{rest}")
    return launch.make(machine.settings, Wanted(machine.config, args=args))


def refused(machine: Machine, *args: str, **text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        plan(machine, *args, **text)
    return raised.value


@pytest.mark.parametrize("key", late.FROM_ONE)
@pytest.mark.parametrize("value", ["0", "-1", "1.0", "true", "'1'"])
def test_a_number_that_it_would_divide_by_is_refused(machine: Machine, key: str, value: str) -> None:
    assert refused(machine, top=f"{key} = {value}").field == key
    assert plan(machine, top=f"{key} = 1").warnings == ()


@pytest.mark.parametrize("rest", ["", "[optimizer]\nlr = 1e-4\n", "[optimizer]\ntype = 1\n"])
def test_an_optimizer_is_needed(machine: Machine, rest: str) -> None:
    assert refused(machine, rest=rest).field == "optimizer.type"


def test_betas_of_adam_are_below_one(machine: Machine) -> None:
    assert refused(machine, rest=OPTIMIZER + "betas = [1.0, 0.99]\n").field == "optimizer.betas"
    assert plan(machine, rest=OPTIMIZER + "betas = [0.9, 0.99]\n").warnings == ()
    plan(machine, rest="[optimizer]\ntype = 'Other'\nbetas = [0.9, 0.99, 1.0]\n")


@pytest.mark.parametrize("key", ["transformer_path", "vae", "diffusers_path"])
def test_a_model_that_is_not_there_is_refused(machine: Machine, key: str) -> None:
    model = machine.root / "model.safetensors"
    text = f"{MODEL}{key} = '{model}'\n"
    error = refused(machine, model=text)
    assert error.field == f"model.{key}" and "there is nothing at" in error.message
    model.touch()
    assert plan(machine, model=text).warnings == ()
    # A name on a hub.
    plan(machine, model=f"{MODEL}{key} = 'black-forest-labs/FLUX.1-dev'\n")
    adapter = f"{ADAPTER}init_from_existing = '{model}-gone'\n"
    assert refused(machine, rest=adapter + OPTIMIZER).field == "adapter.init_from_existing"


def test_a_folder_without_a_picture_is_refused(machine: Machine) -> None:
    """train.py would wait for one for ever, at no word and full price."""
    images = machine.root / "images"
    (images / "picture.png").unlink()
    for name in ("a.txt", "captions.json", "metadata.db"):
        (images / name).touch()
    (images / "below").mkdir()
    (images / "below/picture.png").touch()
    error = refused(machine)
    assert error.field == "dataset.directory[0].path" and "no picture or video" in error.message
    assert "no folders below" in (error.hint or "")
    # What it has cached before is not looked for again.
    plan(machine, "--trust_cache")
    for name in ("a.tar", "link.png"):
        (images / name).symlink_to(images / "below/picture.png")
        plan(machine)
        (images / name).unlink()
    machine.dataset.write_text(f"[[directory]]\npath = '{images}/a.txt'\n")
    assert "can't be read: Not a directory" in refused(machine).message
    machine.dataset.write_text("[[directory]]\nnum_repeats = 2\n")
    assert "is missing" in refused(machine).message


@pytest.mark.parametrize("kind", late.ADAPTER_ONLY)
def test_what_could_not_be_saved_is_refused(machine: Machine, kind: str) -> None:
    model = MODEL.replace("flux", kind)
    error = refused(machine, model=model)
    assert error.field == "adapter" and "--i_know_what_i_am_doing" in (error.hint or "")
    for flag in ("--i_know_what_i_am_doing", "--cache_only"):
        plan(machine, flag, model=model)
    plan(machine, model=model, rest=ADAPTER + OPTIMIZER)
    lokr = ADAPTER.replace("lora", "lokr")
    assert refused(machine, rest=lokr + OPTIMIZER).field == "adapter.type"


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("lr_scheduler = 'step'", "lr_scheduler = 'step' is none of constant, linear, cosine"),
        ("activation_checkpointing = 'full'", "activation_checkpointing"),
        ("video_clip_mode = 'single_midle'", "video_clip_mode"),
        ("partition_method = 'even'", "partition_method"),
        ("blocks_to_swap = 4", "with an [adapter] only"),
    ],
)
def test_what_a_later_train_py_may_know_is_warned_about(machine: Machine, top: str, said: str) -> None:
    (warning,) = plan(machine, top=top).warnings
    assert said in warning


def test_what_it_knows_is_not_warned_about(machine: Machine) -> None:
    for top in (
        "lr_scheduler = 'cosine'\nactivation_checkpointing = 'unsloth'\nvideo_clip_mode = 'single_middle'",
        "partition_method = 'type:transformerlayer'\nactivation_checkpointing = true",
        "blocks_to_swap = 0",
    ):
        assert plan(machine, top=top).warnings == ()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("""fuse_adapters = [{path = "/m/ann's", weight = 1.0}]""", "fuse_adapters"),
        ("betas = [1, 0.99]", "can't be read"),
        (r'name = "\"\"a"', "name"),
        ("a = 1\n[[b]]\nc = [1.5, 2]", "can't be read"),
    ],
)
def test_what_train_py_would_read_otherwise_is_refused(machine: Machine, text: str, where: str) -> None:
    assert tomltext.loads(text)
    assert where in (oldtoml.misreading(text) or "")
    rest = f"{OPTIMIZER}[monitoring]\n{text}\n"
    error = refused(machine, rest=rest)
    assert error.field == "config" and str(machine.config) in error.message
    data = machine.dataset.read_text()
    machine.dataset.write_text(f"{text}\n{data}")
    assert refused(machine).field == "dataset"


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(
            st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_what_is_written_for_it_is_read_well_and_nothing_breaks_the_look(data: dict[str, Any]) -> None:
    text = oldtoml.write(data)
    said = oldtoml.misreading(text)
    assert said is None or isinstance(said, str)
    if not oldtoml.misread(data):
        assert said is None

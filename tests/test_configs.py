"""The training TOML: read and refused field by field, frozen into the run directory."""

import os
import tomllib
from pathlib import Path

import pytest

from dpiped import configs
from dpiped.configs import Config
from dpiped.errors import InvalidInput

RUN = "20260304-050607-ab12"


class Place:
    """A workspace with pictures, a data set file and a training TOML; every part can be exchanged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / "apps/diffusion-pipe"
        self.images = root / "images"
        self.images.mkdir(parents=True)
        self.base.mkdir(parents=True)
        self.dataset = root / "dataset.toml"
        self.source = root / "train.toml"
        self.fields = {
            "output_dir": f'"{root}/out"',
            "dataset": f'"{self.dataset}"',
            "epochs": "3",
            "save_every_n_epochs": "1",
        }
        self.model = "type = 'flux'\ndtype = 'bfloat16'\n"
        self.data_text = f"resolutions = [512]\n\n[[directory]]\npath = '{self.images}'\n"
        self.more = ""

    def write(self) -> Path:
        top = "".join(f"{key} = {value}\n" for key, value in self.fields.items())
        self.source.write_text(top + self.more + f"[model]\n{self.model}[optimizer]\ntype = 'adamw'\n")
        if not self.dataset.exists():
            self.dataset.write_text(self.data_text)
        return self.source

    def load(self) -> Config:
        return configs.check(configs.read(self.write()), (self.root,), self.base)

    def snapshot(self, run_dir: Path | None = None) -> tuple[str, dict[str, bytes]]:
        """The frozen training TOML as text, and all files."""
        files = configs.snapshot(self.load(), RUN, run_dir or self.root / "runs" / RUN)
        return files["training_config.toml"].decode(), files

    def refusal(self) -> InvalidInput:
        with pytest.raises(InvalidInput) as refused:
            self.load()
        return refused.value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path.resolve())


def test_a_plain_config_is_read(place: Place) -> None:
    place.fields["max_steps"] = "40"
    config = place.load()
    assert (config.model_type, config.epochs, config.max_steps, config.resume) == ("flux", 3, 40, False)
    assert config.output_dir == place.root / "out"
    assert config.datasets == {str(place.dataset): place.data_text.encode()}


def test_the_digest_follows_the_config_and_its_data_sets(place: Place) -> None:
    first = place.load().digest
    assert place.load().digest == first
    place.fields["epochs"] = "4"
    second = place.load().digest
    place.dataset.write_text(place.data_text + "num_repeats = 2\n")
    assert len({first, second, place.load().digest}) == 3


def test_the_snapshot_begins_with_its_mark_and_points_into_the_run_directory(place: Place) -> None:
    run_dir = place.root / "runs" / RUN
    text, files = place.snapshot(run_dir)
    assert text.splitlines()[0] == f"# dpiped run {RUN}"
    assert set(files) == {"training_config.toml", "dataset_config.toml"}
    assert tomllib.loads(text) == tomllib.loads(place.source.read_text()) | {
        "dataset": str(run_dir / "dataset_config.toml")
    }
    assert files["dataset_config.toml"] == place.dataset.read_bytes()


def test_the_output_directory_stays_as_it_was_written(place: Place) -> None:
    place.fields["output_dir"] = "'../../out/./here'"
    config = place.load()
    assert config.output_dir == place.root / "out/here"
    text, _ = place.snapshot()
    assert "output_dir = '../../out/./here'\n" in text


def test_comments_and_order_are_kept(place: Place) -> None:
    place.more = "# a remark, with an é\nsteps_per_print = 5  # often\n"
    text, _ = place.snapshot()
    assert "# a remark, with an é\nsteps_per_print = 5  # often\n" in text
    assert text.index("output_dir") < text.index("epochs") < text.index("# a remark") < text.index("[model]")


def test_eval_datasets_are_frozen_too(place: Place) -> None:
    other = place.root / "eval.toml"
    other.write_text(place.data_text + "num_repeats = 1\n")
    place.fields["eval_datasets"] = f"[{{name = 'held out', config = '{other}'}}]"
    run_dir = place.root / "runs" / RUN
    text, files = place.snapshot(run_dir)
    assert files["eval_1_dataset_config.toml"] == other.read_bytes()
    assert tomllib.loads(text)["eval_datasets"] == [
        {"name": "held out", "config": str(run_dir / "eval_1_dataset_config.toml")}
    ]


def test_an_eval_dataset_that_is_the_training_data_set(place: Place) -> None:
    place.fields["eval_datasets"] = f"[{{name = 'same', config = '{place.dataset}'}}]"
    text, files = place.snapshot()
    data = tomllib.loads(text)
    assert data["eval_datasets"][0]["config"] == data["dataset"]
    assert set(files) == {"training_config.toml", "dataset_config.toml"}


@pytest.mark.parametrize(
    ("name", "quote"),
    [
        ("data.toml", '"'),
        ("data.toml", "'"),
        ("ann's data.toml", '"'),
        ("with spaces and #.toml", "'"),
        ("Übung.toml", '"'),
        ("Übung.toml", "'"),
        ("数据.toml", '"'),
    ],
)
def test_a_data_set_path_is_exchanged_however_it_is_quoted(place: Place, name: str, quote: str) -> None:
    place.dataset = place.root / name
    place.fields["dataset"] = f"{quote}{place.dataset}{quote}"
    run_dir = place.root / "runs" / RUN
    text, _ = place.snapshot(run_dir)
    assert tomllib.loads(text)["dataset"] == str(run_dir / "dataset_config.toml")


@pytest.mark.parametrize("folder", ["ann's runs", "Läufe", "runs 🙂"])
def test_the_run_directory_may_have_any_name(place: Place, folder: str) -> None:
    run_dir = place.root / folder / RUN
    text, _ = place.snapshot(run_dir)
    assert tomllib.loads(text)["dataset"] == str(run_dir / "dataset_config.toml")


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_a_text_that_cannot_be_re_pointed_names_the_data_set(place: Place, quotes: str) -> None:
    place.fields["dataset"] = f"{quotes}\n{place.dataset}{quotes}"
    config = place.load()
    with pytest.raises(InvalidInput) as refused:
        configs.snapshot(config, RUN, place.root / "runs" / RUN)
    assert refused.value.field == "dataset"
    assert "plain string" in (refused.value.hint or "")


def test_a_path_that_also_stands_elsewhere_is_not_exchanged_there(place: Place) -> None:
    place.more = f"some_note = '{place.dataset}'\n"
    config = place.load()
    with pytest.raises(InvalidInput) as refused:
        configs.snapshot(config, RUN, place.root / "runs" / RUN)
    assert refused.value.field == "dataset"


def test_a_byte_order_mark_and_windows_line_ends_are_taken(place: Place) -> None:
    text = place.write().read_text()
    place.source.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    config = configs.check(configs.read(place.source), (place.root,), place.base)
    files = configs.snapshot(config, RUN, place.root / "runs" / RUN)
    assert files["training_config.toml"].startswith(f"# dpiped run {RUN}\noutput_dir".encode())


def test_a_resumed_snapshot_gets_only_the_new_mark(place: Place) -> None:
    _, files = place.snapshot(place.root / "runs" / RUN)
    old = place.root / "runs" / RUN
    old.mkdir(parents=True)
    for name, data in files.items():
        (old / name).write_bytes(data)
    again = configs.check(configs.read(old / "training_config.toml"), (place.root,), place.base)
    new = place.root / "runs/20260305-000000-cd34"
    text = configs.snapshot(again, new.name, new)["training_config.toml"].decode()
    assert text.startswith(f"# dpiped run {new.name}\noutput_dir")
    assert text.count(configs.MARK) == 1
    assert tomllib.loads(text)["dataset"] == str(new / "dataset_config.toml")


def test_a_copy_is_recognised_by_its_whole_first_line(place: Place) -> None:
    text, _ = place.snapshot()
    copy = place.root / "copy.toml"
    copy.write_text(text)
    assert configs.is_marked(copy, RUN)
    assert not configs.is_marked(copy, RUN[:-1])
    assert not configs.is_marked(copy, RUN + "0")
    copy.write_text("\n" + text)
    assert not configs.is_marked(copy, RUN)
    assert not configs.is_marked(place.root / "missing.toml", RUN)
    assert not configs.is_marked(place.root, RUN)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"output_dir": None}, "output_dir"),
        ({"output_dir": "7"}, "output_dir"),
        ({"output_dir": "''"}, "output_dir"),
        ({"output_dir": "'/etc/out'"}, "output_dir"),
        ({"dataset": None}, "dataset"),
        ({"dataset": "['a', 'b']"}, "dataset"),
        ({"dataset": "'../../missing.toml'"}, "dataset"),
        ({"dataset": "'/etc/passwd'"}, "dataset"),
        ({"epochs": None}, "epochs"),
        ({"epochs": "0"}, "epochs"),
        ({"epochs": "'3'"}, "epochs"),
        ({"epochs": "true"}, "epochs"),
        ({"epochs": "2.0"}, "epochs"),
        ({"max_steps": "0"}, "max_steps"),
        ({"steps_per_print": "0"}, "steps_per_print"),
        ({"pipeline_stages": "0"}, "pipeline_stages"),
        ({"save_every_n_epochs": None}, "save_every_n_epochs"),
        ({"save_every_n_epochs": "0"}, "save_every_n_epochs"),
        ({"save_every_n_steps": "0"}, "save_every_n_steps"),
        ({"save_every_n_examples": "-5"}, "save_every_n_examples"),
        ({"eval_datasets": "['/a.toml']"}, "eval_datasets[0].config"),
        ({"eval_datasets": "'/a.toml'"}, "eval_datasets"),
        ({"eval_datasets": "[{config = '/a.toml'}]"}, "eval_datasets[0].config"),
        ({"eval_datasets": "[{name = 'x', config = 7}]"}, "eval_datasets[0].config"),
        ({"eval_datasets": "[{name = 'x', config = '/etc/passwd'}]"}, "eval_datasets[0].config"),
    ],
)
def test_a_wrong_value_names_its_field(place: Place, change: dict[str, str | None], field: str) -> None:
    for key, value in change.items():
        place.fields.pop(key, None)
        if value is not None:
            place.fields[key] = value
    refused = place.refusal()
    assert refused.field == field
    assert field.partition("[")[0] in refused.message


def test_eval_datasets_as_one_table_are_refused_or_taken_but_do_not_crash(place: Place) -> None:
    place.fields["eval_datasets"] = f"{{name = 'x', config = '{place.dataset}'}}"
    try:
        text, _ = place.snapshot()
    except InvalidInput as refused:
        assert (refused.field or "").startswith("eval_datasets")
    else:
        assert "eval_datasets" in tomllib.loads(text)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("dtype = 'bfloat16'\n", "model.type"),
        ("type = 3\n", "model.type"),
        ("type = 'flux'\ndiffusers_path = '/etc/flux'\n", "model.diffusers_path"),
        ("type = 'flux2'\nvae = '/etc/vae'\n", "model.vae"),
        (
            "type = 'flux2'\ntext_encoders = [{paths = ['/etc/a'], type = 'x'}]\n",
            "model.text_encoders[0].paths[0]",
        ),
        ("type = 'flux2'\nmerge_adapters = [{path = '/etc/a'}]\n", "model.merge_adapters[0].path"),
        ("type = 'wan'\nckpt_path = '/etc/ssl'\n", "model.ckpt_path"),
    ],
)
def test_a_wrong_model_names_its_field(place: Place, model: str, field: str) -> None:
    place.model = model
    assert place.refusal().field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("resolutions = [512]\n", "dataset.directory"),
        ("directory = []\n", "dataset.directory"),
        ("directory = 'x'\n", "dataset.directory"),
        ("[[directory]]\npath = '/etc'\n", "dataset.directory[0].path"),
        (
            "[[directory]]\npath = '../../images'\n[[directory]]\npath = '../../none'\n",
            "dataset.directory[1].path",
        ),
        ("[[directory]]\npath = '../../images'\nmask_path = '/etc'\n", "dataset.directory[0].mask_path"),
        ("no toml", "dataset"),
    ],
)
def test_a_wrong_data_set_names_its_field(place: Place, text: str, field: str) -> None:
    place.data_text = text
    assert place.refusal().field == field


@pytest.mark.parametrize("text", [b"no toml", b"\xff\xfe", b""])
def test_a_file_that_is_no_config_is_refused(place: Place, text: bytes) -> None:
    place.source.write_bytes(text)
    with pytest.raises(InvalidInput) as refused:
        configs.check(configs.read(place.source), (place.root,), place.base)
    assert refused.value.field in ("config", "model.type")
    with pytest.raises(InvalidInput) as refused:
        configs.check(configs.read(place.root / "missing.toml"), (place.root,), place.base)
    assert refused.value.field == "config"


def test_relative_paths_are_taken_from_the_base(place: Place) -> None:
    place.fields |= {"output_dir": "'out'", "dataset": "'../../dataset.toml'"}
    place.model = "type = 'flux'\ndiffusers_path = 'weights'\n"
    config = place.load()
    assert config.output_dir == place.base / "out"
    assert config.datasets == {"../../dataset.toml": place.data_text.encode()}


@pytest.mark.parametrize("key", ["output_dir", "dataset"])
def test_the_embedded_trainer_takes_no_relative_path(place: Place, key: str) -> None:
    place.model = "type = 'dpiped'\n"
    assert place.load().model_type == configs.EMBEDDED_TYPE
    place.fields[key] = "'../../dataset.toml'"
    refused = place.refusal()
    assert refused.field == key
    assert "absolute" in refused.message


@pytest.mark.parametrize(("value", "resume"), [("true", True), ("false", False), ("'20260101'", "20260101")])
def test_resume_is_a_flag_or_a_name(place: Place, value: str, resume: bool | str) -> None:
    place.fields["resume_from_checkpoint"] = value
    assert place.load().resume == resume


def test_resume_of_another_type_names_its_field(place: Place) -> None:
    place.fields["resume_from_checkpoint"] = "3"
    config = place.load()
    with pytest.raises(InvalidInput) as refused:
        config.resume  # noqa: B018 - reading it raises
    assert refused.value.field == "resume_from_checkpoint"


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("[adapter]\ninit_from_existing = '/etc'\n", "adapter.init_from_existing"),
        (
            "[adapter]\nfuse_adapters = [{path = '/etc/shadow', weight = 1.0}]\n",
            "adapter.fuse_adapters[0].path",
        ),
    ],
)
def test_an_adapter_outside_the_roots_is_refused(place: Place, table: str, field: str) -> None:
    place.model += table
    refused = place.refusal()
    assert refused.field == field and "outside the allowed roots" in refused.message


def test_a_mask_outside_the_roots_is_refused(place: Place) -> None:
    place.data_text += "default_mask_file = '/etc/passwd'\n"
    assert place.refusal().field == "dataset.directory[0].default_mask_file"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("which", ["config", "dataset"])
def test_what_is_no_toml_file_is_refused_without_reading_it(place: Place, which: str) -> None:
    place.write()
    path = place.source if which == "config" else place.dataset
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="larger than 1 MiB") as refused:
        configs.check(configs.read(place.source), (place.root,), place.base)
    assert refused.value.field == which
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidInput, match="is not a file") as refused:
        configs.check(configs.read(place.source), (place.root,), place.base)
    assert refused.value.field == which


def test_a_value_that_equals_nothing_is_no_reason_to_refuse(place: Place) -> None:
    place.fields["some_number"] = "nan"
    assert "some_number = nan" in place.snapshot()[0]

"""LoRA adapters of the embedded trainer: on a saved base, saved in peft's files, merged, resumed, refused."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.trainings import Launch, Setup, farthest, losses, make_setup, need_trainer

need_trainer()

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dpiped.trainer import __main__ as cli
from dpiped.trainer import config, flow, main, product, saved, saving
from dpiped.trainer.product import Trained
from dpiped.trainer.table import ConfigError
from dpiped.trainer.text import Tokenizer

pytestmark = pytest.mark.timeout(180)

ADAPTER = "[adapter]\ntype = 'lora'\nrank = 4\n\n[optimizer]"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Path:
    """A run directory with a fully trained model (of four epochs)."""
    setup = make_setup(tmp_path_factory.mktemp("base"))
    launch(setup.training).completed()
    return setup.run_dir


def adapted(folder: Path, base: Path, *changes: tuple[str, str]) -> Setup:
    """The same training, of an adapter on the base."""
    setup = make_setup(folder, ("width = 16\ndepth = 1", f"checkpoint_path = '{base}'"))
    setup.edit("training", ("[optimizer]", ADAPTER), ("lr = 1e-3", "lr = 1e-2"), *changes)
    return setup


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, launch: Launch, base: Path) -> Setup:
    """An adapter's training, from start to end."""
    setup = adapted(tmp_path_factory.mktemp("adapter"), base)
    training = launch(setup.training).completed()
    assert "trainable params: " in training.out
    assert "trainable%: 100.0000" not in training.out
    return setup


def test_an_adapter_is_saved_in_peft_s_files(trained: Setup, base: Path) -> None:
    folder = trained.run_dir / "epoch4"
    names = {
        "adapter_model.safetensors",
        "adapter_config.json",
        "model.json",
        "training.toml",
        "dataset.toml",
    }
    assert {path.name for path in folder.iterdir()} == names
    described = json.loads((folder / "adapter_config.json").read_text())
    assert (described["peft_type"], described["r"], described["lora_alpha"]) == ("LORA", 4, 4)
    assert described["base_model_name_or_path"] == str(base / "epoch4")
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") and "lora_" in name for name in weights)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name), "nothing was learned"


def test_peft_itself_reads_and_merges_it_to_the_same_pictures(trained: Setup, base: Path) -> None:
    # Every worker imports this module, and peft takes seconds.
    from peft import PeftModel

    plain, spec = saving.load_model(saved.find(base))
    peft = PeftModel.from_pretrained(plain, str(trained.run_dir / "epoch4")).merge_and_unload()
    ours, _ = saving.load_model(saved.find(trained.run_dir))
    unchanged, _ = saving.load_model(saved.find(base))
    tokens = Tokenizer(spec.vocabulary, spec.max_tokens)
    ids = torch.tensor([tokens.encode("a red star"), tokens.encode("a purple dog")])
    batch = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.8]), ids
    assert torch.allclose(ours(*batch), peft(*batch), atol=1e-5)
    assert not torch.allclose(ours(*batch), unchanged(*batch), atol=1e-3)


def test_the_base_is_as_it_was_and_can_be_sampled_with_and_without(
    trained: Setup, base: Path, tmp_path: Path
) -> None:
    for run in (base, trained.run_dir, trained.run_dir / "epoch2"):
        out = tmp_path / f"{run.name}.png"
        words = ["sample", "--run", str(run), "--caption", "a red star", "--steps", "2", "--out", str(out)]
        assert cli.main(words) == 0
        assert out.stat().st_size > 0


def test_a_training_from_a_base_begins_where_the_base_ended(
    launch: Launch, base: Path, trained: Setup, tmp_path: Path
) -> None:
    """The first loss, before any step was taken, is that of the base: adapters begin with no effect."""
    full = make_setup(tmp_path / "full", ("width = 16\ndepth = 1", f"checkpoint_path = '{base}'"))
    launch(full.training).completed()
    assert losses(full.run_dir)[1] == pytest.approx(losses(trained.run_dir)[1], abs=1e-6)
    assert losses(full.run_dir)[1] < losses(base)[1]


def test_resumed_it_is_the_same_training_on_the_same_base(launch: Launch, base: Path, tmp_path: Path) -> None:
    """With dropout, and also when its base, named by a run directory, was trained further since."""
    changes = [
        ("rank = 4", "rank = 4\ndropout = 0.2"),
        ("'cosine'", "'constant'"),  # `max_steps` would move the end of any other schedule
    ]
    whole = adapted(tmp_path / "whole", base, *changes)
    launch(whole.training).completed()
    further = tmp_path / "further"
    shutil.copytree(base, further)
    halves = adapted(tmp_path / "halves", further, *changes)
    halves.add("max_steps = 3")
    launch(halves.training).completed()
    shutil.copytree(further / "epoch4", further / "epoch9")
    os.utime(further / "epoch9/model.safetensors")
    halves.edit("training", ("max_steps = 3\n", ""))
    second = launch(halves.training, "--resume_from_checkpoint").completed()
    assert "step: 4\n" in second.out
    assert farthest(losses(halves.run_dir), losses(whole.run_dir)) < 1e-6
    for folder in (halves.run_dir, halves.run_dir / "epoch4"):
        described = json.loads((folder / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == str(further / "epoch4")


def built(setup: Setup) -> Trained:
    """What a training would be of, once torch is there; nothing is trained."""
    settings = config.load(setup.training)
    assert settings.model.base_spec is not None
    return product.build(settings, settings.model.base_spec, settings.model.base)


def test_two_stages_train_the_same_adapter(
    launch: Launch, trained: Setup, base: Path, tmp_path: Path
) -> None:
    """Also where the first stage has nothing to train."""
    whole = load_file(trained.run_dir / "epoch4/adapter_model.safetensors")
    changes = [("epochs = 4", "epochs = 4\npipeline_stages = 2")]
    setup = adapted(tmp_path / "two", base, *changes)
    launch(setup.training, ranks=2).completed()
    assert farthest(losses(setup.run_dir), losses(trained.run_dir)) < 1e-4
    found = load_file(setup.run_dir / "epoch4/adapter_model.safetensors")
    assert set(found) == set(whole)
    names = ", ".join(
        f"'{name}'" for name in ("stem", "patch", "position", "time", "word", "word_qkv", "word_out")
    )
    setup = adapted(tmp_path / "rest", base, ("rank = 4", f"rank = 4\nexclude_modules = [{names}]"), *changes)
    launch(setup.training, ranks=2).completed()
    left = load_file(setup.run_dir / "epoch4/adapter_model.safetensors")
    assert left and not any(".0." in name for name in left)


def refused(setup: Setup, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.main(["--config", str(setup.training)]) == 1
    assert not setup.runs()
    return capsys.readouterr().err


def test_what_does_not_fit_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Setup
) -> None:
    wider = adapted(tmp_path / "wider", base, ("checkpoint_path", "size = 'small'\ncheckpoint_path"))
    assert "model.width: the model at checkpoint_path has 16, the config says 256" in refused(wider, capsys)
    alpha = adapted(tmp_path / "alpha", base, ("rank = 4", "rank = 4\nalpha = 8"))
    assert "adapter.alpha is not to be set" in refused(alpha, capsys)
    kind = adapted(tmp_path / "kind", base, ("'lora'", "'lokr'"))
    assert "adapter.type takes 'lora', not 'lokr'" in refused(kind, capsys)
    none = adapted(tmp_path / "none", base, ("rank = 4\n", ""))
    assert "adapter.rank is missing" in refused(none, capsys)
    empty = adapted(tmp_path / "empty", base, ("rank = 4", f"rank = 4\ninit_from_existing = '{tmp_path}'"))
    assert "init_from_existing takes a directory with one .safetensors file" in refused(empty, capsys)
    of_adapter = adapted(tmp_path / "of", trained.run_dir)
    assert "holds no saved model (model.safetensors)" in refused(of_adapter, capsys)


def test_an_earlier_adapter_is_gone_on_with(trained: Setup, base: Path, tmp_path: Path) -> None:
    existing = trained.run_dir / "epoch4"
    setup = adapted(tmp_path, base, ("rank = 4", f"rank = 4\ninit_from_existing = '{existing}'"))
    begun = {
        f"base_model.model.{index}.{name.replace('.default', '')}": value
        for index, layer in enumerate(built(setup).layers)
        for name, value in layer.named_parameters()
        if value.requires_grad
    }
    wanted = load_file(existing / "adapter_model.safetensors")
    assert set(begun) == set(wanted)
    assert all(torch.equal(begun[name], wanted[name]) for name in wanted)


LATE = {
    "an adapter of another rank": ("rank = 4", "rank = 8\ninit_from_existing = 'EXISTING'", "does not fit"),
    "no such module": ("rank = 4", "rank = 4\nexclude_modules = ['nose']", "exclude_modules takes names"),
}


@pytest.mark.parametrize(("old", "new", "error"), LATE.values(), ids=LATE)
def test_what_only_the_weights_tell_is_refused_too(
    trained: Setup, base: Path, tmp_path: Path, old: str, new: str, error: str
) -> None:
    new = new.replace("EXISTING", str(trained.run_dir / "epoch4"))
    with pytest.raises(ConfigError, match=error):
        built(adapted(tmp_path, base, (old, new)))


def test_a_resume_on_other_modules_is_refused(trained: Setup, base: Path, tmp_path: Path) -> None:
    built(adapted(tmp_path / "same", base)).check(trained.run_dir)
    fewer = adapted(tmp_path / "fewer", base, ("rank = 4", "rank = 4\nexclude_modules = ['stem']"))
    with pytest.raises(ConfigError, match="is not what the checkpoint's adapter was begun with"):
        built(fewer).check(trained.run_dir)


def test_a_base_whose_weights_are_broken_is_one_line(launch: Launch, base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base / "epoch4", broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    training = launch(adapted(tmp_path / "cut", broken).training)
    assert training.finish() == 1
    assert training.err.count("train.py: error: ") == 1
    assert f"train.py: error: {file} can't be read: " in training.err
    assert "Traceback" not in training.err
    save_file({"0.word.weight": torch.zeros(1)}, file)
    with pytest.raises(ConfigError, match="the weights are not those of the model: "):
        built(adapted(tmp_path / "other", broken))


def test_a_checkpoint_of_an_adapter_is_resumed_as_one(
    trained: Setup, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = adapted(tmp_path, base)
    shutil.copytree(trained.output, setup.output)

    def resumed() -> str:
        assert main.main(["--config", str(setup.training), "--resume_from_checkpoint"]) == 1
        return capsys.readouterr().err

    setup.edit("training", ("rank = 4", "rank = 2"))
    assert "that of an adapter of rank 4, the config asks for an adapter of rank 2" in resumed()
    setup.edit("training", ("rank = 2", "rank = 4"))
    checkpoint = base / "epoch2"
    setup.edit("training", (f"checkpoint_path = '{base}'", f"checkpoint_path = '{checkpoint}'"))
    assert f"the checkpoint's adapter is trained on {base / 'epoch4'}, not on {checkpoint}" in resumed()
    described = setup.run_dir / "adapter_config.json"
    whole = described.read_text()
    described.write_text(whole[:50])
    assert f"{described} can't be read" in resumed()
    described.write_text(whole)
    setup.edit("training", ("rank = 4", "rank = 2"))
    setup.edit("training", ("[adapter]\ntype = 'lora'\nrank = 2\n\n", ""))
    assert "that of an adapter of rank 4, the config asks for a full training" in resumed()


def test_a_saved_adapter_without_its_base_says_so(trained: Setup, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained.run_dir / "epoch4", moved)
    described = json.loads((moved / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(tmp_path / "gone")
    (moved / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"names the base .*/gone, which holds no model\.safetensors"):
        saved.find(moved)


def test_samples_with_an_adapter_differ_from_the_base_s(trained: Setup, base: Path) -> None:
    pictures = []
    for run in (base, trained.run_dir):
        model, spec = saving.load_model(saved.find(run))
        pictures.append(flow.sample(model, spec, ["a red star"], steps=4, guidance=2.0, seed=1))
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() > 0

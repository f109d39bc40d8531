"""The parts of the embedded trainer: network, sampling, captions, schedules, averaged weights."""

# ruff: noqa: E402 - what needs torch is imported only where torch is
from pathlib import Path

import pytest

from tests.trainings import Setup, need_trainer

need_trainer()

import numpy as np
import torch
from safetensors.torch import load_file

from dpiped.trainer import config, flow, optimizer, preview, saving, text
from dpiped.trainer.model import Velocity, build_layers
from dpiped.trainer.spec import ModelSpec

pytestmark = pytest.mark.timeout(60)


SPEC = ModelSpec(
    width=32,
    depth=2,
    stem=8,
    patch=4,
    resolution=16,
    max_tokens=5,
    vocabulary=(*text.RESERVED, "red", "star"),
)


def test_model_shapes_and_first_output() -> None:
    ids = torch.tensor([[3, 4, 0, 0, 0], [1, 0, 0, 0, 0]])
    velocity = Velocity(SPEC)(torch.randn(2, 3, 16, 16), torch.tensor([0.0, 1.0]), ids)
    assert velocity.shape == (2, 3, 16, 16)
    assert not velocity.any(), "an untrained model predicts zero"


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_layers_can_be_cut_anywhere(cut: int) -> None:
    """What crosses the border is contiguous, and the loss sends a gradient back to all of its floats."""
    layers = build_layers(SPEC, seed=1)
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    state: tuple[torch.Tensor, ...] | torch.Tensor
    state = (torch.randn(2, 3, 16, 16), torch.rand(2), torch.tensor([[3, 4, 0, 0, 0], [1, 0, 0, 0, 0]]))
    for layer in layers[:cut]:
        state = layer(state)
    received = tuple(part.detach().clone().requires_grad_(part.is_floating_point()) for part in state)
    assert all(part.is_contiguous() for part in state)
    state = received
    for layer in layers[cut:]:
        state = layer(state)
    assert isinstance(state, torch.Tensor)
    torch.autograd.backward(state.square().mean())
    for part in received:
        assert not part.is_floating_point() or (part.grad is not None and part.grad.any())


def test_captions_matter_and_padding_does_not() -> None:
    torch.manual_seed(0)
    model = Velocity(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    noisy, time_ = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    one = model(noisy, time_, torch.tensor([[3, 4, 0, 0, 0]]))
    assert not torch.allclose(one, model(noisy, time_, torch.tensor([[4, 0, 0, 0, 0]])))
    with torch.no_grad():
        model.get_parameter("0.word.weight")[text.PAD] += 5
    assert torch.allclose(one, model(noisy, time_, torch.tensor([[3, 4, 0, 0, 0]])), atol=1e-5)


def test_sampling_depends_on_the_seed_only() -> None:
    model = Velocity(SPEC)
    draw = [flow.sample(model, SPEC, ["red"], steps=2, guidance=2.0, seed=seed) for seed in (1, 1, 2)]
    assert draw[0].shape == (1, 16, 16, 3)
    assert (draw[0] == draw[1]).all()
    assert (draw[0] != draw[2]).any()


def test_average_follows_and_comes_back() -> None:
    layer = torch.nn.Linear(2, 2)
    average = saving.Average(layer, 0.9)
    start = average.weights["weight"].clone()
    with torch.no_grad():
        layer.weight += 1
    average.update(1000)
    assert torch.allclose(average.weights["weight"], start + 0.1)
    other = saving.Average(layer, 0.9)
    other.load(average.weights)
    assert torch.equal(other.weights["weight"], average.weights["weight"])


def test_an_interrupted_save_leaves_no_model(tmp_path: Path) -> None:
    weights = {"x": torch.ones(2)}
    with pytest.raises(FileNotFoundError):
        saving.save_model(tmp_path / "epoch1", weights, "float32", SPEC, {"no/such/folder.toml": b""})
    assert not (tmp_path / "epoch1").exists()
    saving.save_model(tmp_path / "epoch1", weights, "float32", SPEC, {})
    saving.save_model(tmp_path / "epoch1", {"x": torch.zeros(2)}, "bfloat16", SPEC, {"a.toml": b"x"})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch1"]
    assert not load_file(tmp_path / "epoch1" / "model.safetensors")["x"].any()


def test_schedules(setup: Setup) -> None:
    setup.edit("training", ("warmup_steps = 0", "warmup_steps = 10"))
    cosine = optimizer.schedule(config.load(setup.training), 110)
    assert [round(cosine(step), 3) for step in (0, 9, 10, 60, 110, 200)] == [0.091, 0.909, 1, 0.5, 0, 0]
    setup.edit("training", ("'cosine'", "'linear'"))
    assert optimizer.schedule(config.load(setup.training), 110)(35) == 0.75
    setup.edit("training", ("'linear'", "'constant'"))
    assert optimizer.schedule(config.load(setup.training), 110)(109) == 1


def test_tokens_have_one_length_and_know_unknown_words() -> None:
    tokens = text.Tokenizer(text.build_vocabulary(["A red star, big", "red dot"]), 4)
    assert text.build_vocabulary(["b a", "a"]) == (*text.RESERVED, "a", "b")
    assert tokens.encode("red cat") == [tokens.encode("Red")[0], text.spare("cat"), text.PAD, text.PAD]
    assert text.spare("cat") != text.spare("dog")
    assert tokens.encode("  ") == tokens.null() == [text.NULL, 0, 0, 0]
    assert len(tokens.encode("a red star, big red dot")) == 4


def test_many_captions_are_drawn_as_few_are() -> None:
    """In parts, which must not show."""
    torch.manual_seed(0)
    model = Velocity(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    many = flow.sample(model, SPEC, ["red", "star"] * 6, steps=2, guidance=2.0, seed=3)
    assert many.shape == (12, 16, 16, 3)
    few = flow.sample(model, SPEC, ["red", "star"], steps=2, guidance=2.0, seed=3)
    assert np.abs(many[:2].astype(int) - few).max() <= 1
    assert np.abs(many[2:4].astype(int) - few).max() > 1


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16), (200, 100), (16, 16)])
def test_a_contact_sheet_keeps_the_pictures_shape(height: int, width: int) -> None:
    pictures = np.zeros((3, height, width, 3), np.uint8)
    sheet = np.asarray(preview.contact_sheet(pictures, ["a", "b", "c"]))
    black = (sheet[:, : sheet.shape[1] // 3] == 0).all(-1)
    rows, columns = black.sum(1).max(), black.sum(0).max()
    assert columns / rows == pytest.approx(height / width, rel=0.1)

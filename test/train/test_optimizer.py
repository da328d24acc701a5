"""Muon's steps are orthogonal and as large as AdamW's; both are kept in one checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.training_state import (
    OF_ADAM,
    RMS,
    MuonWithAdamW,
    TrainingState,
    load_checkpoint,
    new_training_state,
    orthogonal,
    save_checkpoint,
)

RATE = 1e-2


def named(*shapes: tuple[int, ...]) -> list[tuple[str, torch.nn.Parameter]]:
    torch.manual_seed(0)
    return [(f"layers.{i}.weight", torch.nn.Parameter(torch.randn(shape))) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("shape", [(5, 16, 16), (2, 12, 40)])
def test_matrices_come_out_with_singular_values_of_about_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_step_goes_against_the_gradient_and_is_as_large_as_adams() -> None:
    parameters = named((32, 32), (64, 32), (32,))
    optimizer = MuonWithAdamW({"eye": parameters}, RATE)
    for group in optimizer.param_groups:
        group["lr"] = RATE * group["of_peak"]
        group["weight_decay"] = 0.0
    before = [weights.detach().clone() for _, weights in parameters]
    for _, weights in parameters:
        weights.grad = torch.randn_like(weights)
    optimizer.step()
    moved = [weights.detach() - old for (_, weights), old in zip(parameters, before, strict=True)]
    assert all((step * weights.grad).sum() < 0 for step, (_, weights) in zip(moved, parameters, strict=True))
    rms = [float(step.square().mean().sqrt()) for step in moved]
    # An orthogonal m x n matrix has entries of 1 / sqrt(max(m, n)) in the mean.
    assert rms[:2] == pytest.approx([RATE * OF_ADAM * RMS] * 2, rel=0.25)
    assert rms[2] == pytest.approx(RATE, rel=0.01)


def test_only_matrices_of_layers_are_made_orthogonal_and_what_has_no_gradient_stays() -> None:
    trainee = new_training_state(TrainConfig("draft"), 30)
    groups = {(g["name"], g["of_peak"]): g["params"] for g in trainee.optimizer.param_groups}
    assert {name for name, _ in groups} == {"eye", "mouth"}
    layers = trainee.model.model.language_model.layers
    assert len(groups["mouth", OF_ADAM]) == len(layers) * 7
    assert any(p is trainee.model.lm_head.weight for p in groups["mouth", 1.0])
    before = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    trainee.optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in trainee.model.state_dict().items())


def stepped(trainee: TrainingState, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in trainee.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    trainee.optimizer.step()


def test_a_checkpoint_brings_back_the_momentum_of_both(tmp_path: Path) -> None:
    one, two = (new_training_state(TrainConfig("draft"), 30) for _ in range(2))
    stepped(one, 1)
    one.save(tmp_path / "checkpoint.pt")
    two.load(tmp_path / "checkpoint.pt")
    for trainee in (one, two):
        stepped(trainee, 2)
    weights = two.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())


def test_the_state_of_another_optimizer_is_named(tmp_path: Path) -> None:
    trainee = new_training_state(TrainConfig("draft"), 30)
    path = tmp_path / "checkpoint.pt"
    trainee.save(path)
    other = torch.optim.AdamW(trainee.model.parameters())
    save_checkpoint(load_checkpoint(path) | {"optimizer": other.state_dict()}, path)
    with pytest.raises(ModelError, match=r"checkpoint\.pt is the checkpoint of another model"):
        trainee.load(path)

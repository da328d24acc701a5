"""Exits are learned beside a target that stays as it is; what they are worth is counted on unseen frames."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from test.train.test_loop import frames  # noqa: F401  (a fixture)
from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.checkpoint import CALIBRATION_FILE, EXITS_FILE
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.train.config import ExitsConfig, TrainConfig
from vlm_spec_decode.train.exits import run_exits
from vlm_spec_decode.train.loop import run_train


@pytest.fixture
def config(frames: Path, tmp_path: Path) -> ExitsConfig:  # noqa: F811
    folder = tmp_path / "target"
    trained = TrainConfig("target", frames, folder, eye_steps=0, steps=12, batch=2, dialogues=2)
    run_train(replace(trained, precision="float32"))
    return ExitsConfig(folder, frames, batches=8, batch=2, dialogues=2, steps=25)


def test_exits_learn_leave_the_target_alone_and_come_out_the_same_for_a_seed(config: ExitsConfig) -> None:
    before = load_file(config.target / "model.safetensors")
    run_exits(replace(config, steps=1))
    poor = json.loads((config.target / CALIBRATION_FILE).read_text())["layers"]
    figures = run_exits(config)
    after = load_file(config.target / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_model(config.target).card.exit_layers == (3, 6, 9)
    found = json.loads((config.target / CALIBRATION_FILE).read_text())["layers"]
    assert list(found) == ["3", "6", "9"]
    for layer, row in found.items():
        assert figures[f"exit_{layer}_agrees"] == row["agrees"] == row["final_is_kth"][0]
        assert sum(b["share"] for b in row["by_confidence"]) == pytest.approx(1.0, abs=1e-3)
    assert sum(r["agrees"] for r in found.values()) > sum(r["agrees"] for r in poor.values())
    one = load_file(config.target / EXITS_FILE)
    run_exits(config)
    two = load_file(config.target / EXITS_FILE)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_any_other_model_learns_exits_from_its_own_answers(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    shutil.copytree(shipped("text_target"), folder)
    named = Path(f"{folder},prompt=bare")
    figures = run_exits(ExitsConfig(named, batches=8, batch=1, steps=20, device="cpu"))
    assert list(figures) == ["exit_2_agrees", "exit_4_agrees", "exit_6_agrees"]
    model = load_model(folder)
    assert model.card.exit_layers == (2, 4, 6)
    assert all(adapter is not None and adapter.weight.any() for adapter in model.decoder.exits.values())
    assert model.card.revision != load_model(shipped("text_target")).card.revision


def test_exits_of_what_cannot_be_loaded_or_written_to_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"beside the weights, and there is no folder .*none"):
        run_exits(ExitsConfig(tmp_path / "none", device="cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ModelError, match=f"cannot load {tmp_path.name}"):
        run_exits(ExitsConfig(tmp_path, device="cpu"))

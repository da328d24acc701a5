"""The training loop: it goes on where it stopped, and comes to the same weights as if it had not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from vlm_spec_decode.models.tiny import IMAGE_PX, UNK_ID
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import loop
from vlm_spec_decode.train.batches import Batcher, answer_loss, image_features, logits_of
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.frames import MAX_OBJECTS, Column, open_frames
from vlm_spec_decode.train.hardware import WorkerGroup
from vlm_spec_decode.train.loop import _set_rates, _update, fit_heads, run_train, tokenizer
from vlm_spec_decode.train.training_state import _grow, load_checkpoint, load_finished, new_training_state


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A dozen frames of noise, each with one object somewhere."""
    rng, count, folder = np.random.default_rng(0), 12, tmp_path / "frames"
    folder.mkdir()
    objects = np.full((count, MAX_OBJECTS, len(Column)), -1, dtype=np.float32)
    for row in objects[:, 0]:
        row[:] = (rng.integers(len(KINDS)), rng.integers(len(COLOURS)), rng.uniform(-40, 40), 2.0, 2.3, 300)
    np.save(folder / "frames.npy", rng.integers(0, 256, (count, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8))
    np.save(folder / "patches.npy", rng.integers(-1, 1, (count, 64), dtype=np.int8))
    np.save(folder / "objects.npy", objects)
    (folder / "meta.json").write_text(json.dumps({"digest": "0" * 16}))
    return folder


def test_a_run_in_two_parts_equals_a_run_in_one(frames: Path, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    whole = TrainConfig("draft", frames, tmp_path / "whole", eye_steps=1, steps=4, batch=2, dialogues=2)
    whole = replace(whole, precision="float32")
    try:
        told = run_train(whole)["last_running_means"]
        # The rate follows the planned length, so the first part is the same plan, cut short.
        parts = replace(whole, out=tmp_path / "parts", stop_after=2)
        assert run_train(parts)["steps"] == 2
        record = run_train(replace(parts, stop_after=None))
    finally:
        torch.use_deterministic_algorithms(False)
    assert record["steps"] == 4
    assert set(told) == {"loss", "telling", "rest"}
    assert json.loads((parts.out / "training.json").read_text())["last_running_means"] == told
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_draft_learns_from_a_target(frames: Path, tmp_path: Path) -> None:
    guide = TrainConfig("target", frames, tmp_path / "guide", eye_steps=0, steps=1, batch=1, dialogues=1)
    run_train(guide)
    config = TrainConfig("draft", frames, tmp_path / "draft", eye_steps=0, steps=16, batch=2, dialogues=2)
    run_train(replace(config, distil=guide.out, peak_rate=4e-3, log_every=4, precision="float32"))
    log = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]


def test_a_checkpoint_of_a_smaller_vocabulary_grows_into_a_larger_one() -> None:
    old = {"lm_head.weight": torch.randn(6, 3), "other": torch.randn(2, 3)}
    new = dict(old)
    _grow(new, 8)
    assert new["lm_head.weight"].shape == (8, 3)
    assert torch.equal(new["lm_head.weight"][7], old["lm_head.weight"][UNK_ID])
    assert torch.equal(new["other"], old["other"])


def test_two_processes_take_one_step_along_the_mean_of_their_gradients(frames: Path, tmp_path: Path) -> None:
    config = TrainConfig("draft", frames, tmp_path / "two", eye_steps=0, steps=3, batch=2, dialogues=2)
    config = replace(config, precision="float32", seed=4)
    record = run_train(replace(config, processes=2))
    assert record["steps"] == 3
    expected = new_training_state(config, len(tokenizer()))
    batcher = Batcher(open_frames(frames), tokenizer(), config.dialogues)
    for number in (1, 2, 3):
        losses = []
        for rank in (0, 1):
            batch = batcher.draw(WorkerGroup(rank, 2).rng(config.seed, 0, number), config.batch)
            with torch.no_grad():
                features = image_features(expected.model, batch.pixels)
            losses.append(answer_loss(logits_of(expected.model, features, batch), batch))
        _set_rates(config, expected.optimizer, False, number)
        _update(expected, torch.stack(losses).mean(), WorkerGroup())
    found = load_checkpoint(config.out / "checkpoint.pt")["model"]
    for name, weights in expected.model.state_dict().items():
        torch.testing.assert_close(found[name], weights, rtol=1e-4, atol=1e-6, msg=name)


def test_new_heads_learn_to_read_an_eye_that_stays_as_it_is(frames: Path, tmp_path: Path) -> None:
    config = TrainConfig("draft", frames, tmp_path, batch=2)
    tok, crew = tokenizer(), WorkerGroup()
    batcher, trainee = Batcher(open_frames(frames), tok, 2), new_training_state(config, len(tok))
    eye = {name: weights.clone() for name, weights in trainee.model.state_dict().items()}
    first = fit_heads(trainee, batcher, 8, 0, crew, steps=1)
    assert fit_heads(trainee, batcher, 8, 0, crew, steps=40) < 0.9 * first
    assert all(torch.equal(eye[name], weights) for name, weights in trainee.model.state_dict().items())


@pytest.mark.parametrize(("eye_steps", "fitted"), [(1, 1), (0, 0)])
def test_a_finished_model_whose_eye_goes_on_gets_heads_that_read_it_once(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eye_steps: int, fitted: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(loop, "fit_heads", lambda *given: calls.append(given[2]))
    config = TrainConfig("draft", frames, tmp_path / "one", eye_steps=1, steps=1, batch=2, dialogues=2)
    run_train(config)
    assert not calls
    on = replace(config, out=tmp_path / "two", start=config.out, eye_steps=eye_steps)
    for steps in (1, 2):
        run_train(replace(on, steps=steps))
    assert calls == [8] * fitted


def test_a_finished_models_vision_tower_is_taken_over_without_its_words(frames: Path, tmp_path: Path) -> None:
    """Also by a model of another vocabulary; its heads are fitted once, if the tower goes on."""
    config = TrainConfig("draft", frames, tmp_path / "one", eye_steps=1, steps=1, batch=2, dialogues=2)
    run_train(config)
    state = new_training_state(TrainConfig("target", seed=9), 50)
    words = state.model.lm_head.weight.clone()
    state.load_vision_tower(config.out)
    one = load_finished(LlavaForConditionalGeneration, config.out)
    for name, weights in one.model.vision_tower.state_dict().items():
        assert torch.equal(weights, state.model.model.vision_tower.state_dict()[name])
    assert torch.equal(words, state.model.lm_head.weight)

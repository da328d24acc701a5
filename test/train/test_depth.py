"""A model that begins shallow: what it says survives each growth, and all its layers are exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from test.train.test_loop import frames  # noqa: F401  (a fixture)
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.train.batches import Batcher, image_features, logits_of
from vlm_spec_decode.train.config import TrainConfig, recipe
from vlm_spec_decode.train.frames import open_frames
from vlm_spec_decode.train.loop import LayerStack, layers_at, run_train, tokenizer
from vlm_spec_decode.train.training_state import new_training_state

GROWTH = ((0.0, 4), (0.5, 12))
LAYER = "language_model.model.layers.{}."


def test_the_share_of_steps_says_how_many_layers_are_trained() -> None:
    assert [layers_at(GROWTH, step, 10) for step in (1, 5, 6, 10)] == [4, 4, 12, 12]
    assert layers_at((), 1, 10) is None
    shipped_growth = recipe("target").growth
    assert layers_at(shipped_growth, 10, 10) == 12, "the recipe ends with all of the target's layers"


def test_growth_leaves_what_the_model_says_as_it_is(frames: Path) -> None:  # noqa: F811
    trainee = new_training_state(TrainConfig("target"), len(tokenizer()))
    batch = Batcher(open_frames(frames), tokenizer(), 2).draw(np.random.default_rng(1), 2)
    depth = LayerStack(trainee.model)

    def said() -> torch.Tensor:
        with torch.no_grad():
            return logits_of(trainee.model, image_features(trainee.model, batch.pixels), batch)

    deep = said()
    depth.begin(4)
    shallow = said()
    assert not torch.allclose(deep, shallow)
    depth.grow(None)
    depth.grow(4)
    assert depth.used == 4
    depth.grow(12)
    assert depth.used == 12
    torch.testing.assert_close(said(), shallow)
    layers = trainee.model.model.language_model.layers
    assert torch.equal(layers[6].self_attn.q_proj.weight, layers[2].self_attn.q_proj.weight)
    depth.begin(4)
    depth.use_all()
    torch.testing.assert_close(said(), shallow)


def test_a_run_that_grows_goes_on_where_it_stopped_and_exports_every_layer(
    frames: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole = TrainConfig("target", frames, tmp_path / "whole", eye_steps=0, steps=4, batch=1, dialogues=1)
    whole = replace(whole, precision="float32", growth=GROWTH)
    parts = replace(whole, out=tmp_path / "parts", stop_after=1)
    torch.use_deterministic_algorithms(True)
    try:
        run_train(whole)
        run_train(parts)
        early = load_file(parts.out / "model.safetensors")
        assert load_model(parts.out).card.num_layers == 12
        run_train(replace(parts, stop_after=None))
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole.out, parts.out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    late = [name for name in one if name.startswith(LAYER.format(9)) and "proj" in name]
    assert late
    silent = [name for name in late if "o_proj" in name or "down_proj" in name]
    assert len(silent) == 2
    assert not any(early[name].any() for name in silent), "idle layers pass on what they are given"
    assert all(one[name].any() for name in silent), "and learn once they have joined"


def test_a_longer_plan_leaves_the_layers_that_have_joined_as_they_are(
    frames: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    short = TrainConfig("target", frames, tmp_path / "run", eye_steps=0, steps=2, batch=1, dialogues=1)
    short = replace(short, precision="float32", growth=GROWTH)
    run_train(short)
    trained = load_file(short.out / "model.safetensors")
    run_train(replace(short, steps=20, stop_after=2))
    kept = load_file(short.out / "model.safetensors")
    assert all(torch.equal(trained[name], kept[name]) for name in trained)

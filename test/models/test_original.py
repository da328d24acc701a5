"""The original LLaVA repository's checkpoints give the logits of the converted ones."""

import json

import numpy as np
import pytest
import torch

from test.models import checkpoints, originals
from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.loader import load_model

LAYOUTS = {
    "all in its shards": {"tower_inside": True, "projector_file": False, "pickled": False},
    "pickled shards": {"tower_inside": True, "projector_file": False},
    "projector file and a tower elsewhere": {"tower_inside": False, "projector_file": True},
    "projector in the shards, tower elsewhere": {"tower_inside": False, "projector_file": False},
}


def scores(model):
    return model.open(checkpoints.observation()).score((7,), (8, 9, 10), (0, 0, 1))


def assert_same(ours, reference):
    assert ours.encoder.encode(checkpoints.observation()).ids.count(originals.IMAGE_ID) == 1
    assert ours.card.vocab_size == reference.card.vocab_size == originals.ROWS
    assert ours.card.tokenizer_digest == reference.card.tokenizer_digest
    np.testing.assert_array_equal(scores(ours), scores(reference))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("tiled", [False, True], ids=["1.5", "1.6"])
def test_it_scores_as_the_converted_checkpoint(tmp_path, layout, tiled):
    source = originals.converted(tmp_path / "hf", tiled)
    changes = {}
    if tiled:
        changes = {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]],
        }
    folder = originals.original(tmp_path / "own", source, **layout, **changes)
    assert_same(load_model(folder), load_model(source))


def test_folder_with_nothing_but_a_projector(tmp_path):
    source = originals.converted(tmp_path / "hf")
    layout = {"tower_inside": False, "projector_file": True, "base": tmp_path / "vicuna"}
    folder = originals.original(tmp_path / "own", source, **layout)
    reference = load_model(source)
    assert_same(load_model(folder), reference)
    (tmp_path / "vicuna").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="vicuna"):
        load_model(folder)
    assert_same(load_model(f"{folder},base={tmp_path / 'moved'}"), reference)


def test_linear_projector_is_one_matrix(tmp_path):
    source = originals.converted(tmp_path / "hf", projector_hidden_act="linear")
    folder = originals.original(tmp_path / "own", source, tower_inside=False, projector_file=True)
    path = folder / "mm_projector.bin"
    full = torch.load(path, weights_only=True)
    first, second = full["model.mm_projector.0.weight"], full["model.mm_projector.2.weight"]
    bias = full["model.mm_projector.0.bias"] @ second.T + full["model.mm_projector.2.bias"]
    torch.save({"model.mm_projector.weight": second @ first, "model.mm_projector.bias": bias}, path)
    edit(folder, mm_projector_type="linear")
    np.testing.assert_allclose(scores(load_model(folder)), scores(load_model(source)), atol=1e-3)


def test_picture_is_padded_where_the_config_says_so(tmp_path):
    source = originals.converted(tmp_path / "hf")
    folder = originals.original(
        tmp_path / "own", source, tower_inside=True, projector_file=False, image_aspect_ratio="pad"
    )
    pixels = load_model(folder).encoder.encode(checkpoints.observation()).image["pixel_values"][0]
    assert pixels.shape == (3, 32, 32)
    assert torch.allclose(pixels[:, 0], torch.zeros(3, 32), atol=0.02), "the border has the mean colour"
    assert pixels[:, 16].abs().max() > 0.5


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"mm_projector_type": "resampler"}, "resampler"),
        ({"mm_use_im_start_end": True}, "start and end tokens"),
        ({"mm_vision_tower": "no/such/tower"}, "vision tower: there is no folder"),
        ({"mm_vision_tower": ""}, "names no vision tower"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"}, "flat"),
        ({"mm_vision_select_feature": "all"}, "vision feature 'all'"),
        ({"hidden_size": 48}, "cannot load own"),
    ],
)
def test_what_is_not_covered_is_named(tmp_path, changes, match):
    source = originals.converted(tmp_path / "hf")
    folder = originals.original(tmp_path / "own", source, tower_inside=False, projector_file=True)
    edit(folder, **changes)
    with pytest.raises(ModelError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_missing_or_broken_parts_are_named(tmp_path):
    source = originals.converted(tmp_path / "hf")
    folder = originals.original(tmp_path / "own", source, tower_inside=False, projector_file=True)
    projector = folder / "mm_projector.bin"
    whole = projector.read_bytes()
    projector.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load own"):
        load_model(folder)
    projector.unlink()
    with pytest.raises(ModelError, match="no projector"):
        load_model(folder)
    projector.write_bytes(whole)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelError, match="1 of 2 shards are missing"):
        load_model(folder)


def test_pickle_that_holds_more_than_tensors_is_never_run(tmp_path):
    source = originals.converted(tmp_path / "hf")
    folder = originals.original(tmp_path / "own", source, tower_inside=False, projector_file=True)
    torch.save({"model.mm_projector.0.weight": edit}, folder / "mm_projector.bin")
    with pytest.raises(ModelError, match="cannot load own"):
        load_model(folder)

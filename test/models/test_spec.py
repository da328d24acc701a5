"""Options that travel with a checkpoint's name, and what they do to a model."""

import importlib.util

import mujoco
import numpy as np
import pytest
import torch

from test.models import checkpoints, originals
from vlm_spec_decode.core.errors import ModelError, VocabularyMismatch
from vlm_spec_decode.edge.ask import AskConfig, run
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.engines import torch_loop
from vlm_spec_decode.models.engines.base import LoadOptions
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.models.prompt import PromptStyle, system_text
from vlm_spec_decode.models.spec import parse_spec
from vlm_spec_decode.models.vocabulary import assert_same_vocabulary


def test_spec_says_where_and_how():
    spec = parse_spec("a/b@v1.5,dtype=bfloat16,quantize=int8,exits=25/50", LoadOptions(device="cuda"))
    assert spec.source == "a/b"
    assert spec.options == LoadOptions("v1.5", "bfloat16", "cuda", "int8", (25, 50))
    assert parse_spec("a/b", LoadOptions(dtype="float16")).options.dtype == "float16"


def test_folder_of_just_this_name_is_taken_as_it_is(tmp_path):
    odd = tmp_path / "a@b,c=d"
    odd.mkdir()
    assert parse_spec(str(odd), LoadOptions()).source == str(odd)
    at = tmp_path / "a@b"
    at.mkdir()
    assert parse_spec(f"{at},dtype=float16", LoadOptions()).source == str(at)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("colour=red", "unknown model option 'colour=red'"),
        ("int8", "unknown model option 'int8'"),
        ("dtype=", "unknown model option"),
        ("quantize=int3", "unknown quantize 'int3'"),
        ("prompt=loud", "unknown prompt 'loud'"),
        ("exits=half", "are not percents"),
        ("exits=100", "not depths"),
    ],
)
def test_option_that_is_none_is_named(options, match):
    with pytest.raises(ModelError, match=match):
        load_model(f"a/b,{options}")


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "llava", "llava_next", "qwen2_vl", "qwen2_5_vl"]
)
def test_exits_of_a_model_that_has_none_trained(tmp_path, family):
    folder = getattr(checkpoints, family)(tmp_path / "m")
    assert load_model(folder).card.exit_layers == ()
    model, seen = load_model(f"{folder},exits=25/50/75"), {}
    assert model.card.exit_layers == (1, 2, 3)
    model.open(checkpoints.observation()).score((7,), on_exit=lambda layer, rows: seen.update({layer: rows}))
    assert list(seen) == [1, 2, 3]
    assert all(rows.shape == (1, 60) and np.isfinite(rows).all() for rows in seen.values())


def test_untrained_model_is_told_the_action_language_and_ours_is_not(tmp_path):
    told = load_model(checkpoints.llama(tmp_path / "m")).encoder
    assert told.style is PromptStyle.ACTIONS
    assert told.render(checkpoints.observation(image=False)).startswith(system_text())
    assert load_model(shipped("draft")).encoder.style is PromptStyle.AMOUNTS
    assert load_model(shipped("text_draft")).encoder.style is PromptStyle.BARE


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError("Error: engine error: Could not allocate memory"),
        OSError(12, "Cannot allocate memory"),
        mujoco.FatalError("Could not allocate memory"),
        RuntimeError("can't allocate memory: 8 GB"),
    ],
)
def test_out_of_memory_says_what_to_try(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    folder = checkpoints.llama(tmp_path / "m")
    monkeypatch.setattr(torch_loop, "load_network", fail)
    with pytest.raises(ModelError, match="cannot load m: out of memory: try dtype=bfloat16"):
        load_model(folder)


@pytest.mark.parametrize(
    ("option", "package"),
    [("quantize=int8", "torchao"), ("quantize=bnb4", "bitsandbytes"), ("device=auto", "accelerate")],
)
def test_library_that_is_not_installed_is_named(tmp_path, monkeypatch, option, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(ModelError, match=f"{option} needs {package}, which is not installed: pip install"):
        load_model(f"{checkpoints.llama(tmp_path / 'm')},{option}")


def test_int8_draft_is_nearly_the_same_model(tmp_path):
    pytest.importorskip("torchao")
    folder = checkpoints.llama(tmp_path / "m", hidden_size=64, intermediate_size=96)
    full, small = load_model(folder), load_model(f"{folder},quantize=int8")
    weights = [m.decoder.stack.layers[0].mlp.up_proj.weight for m in (full, small)]
    assert type(weights[0]) is not type(weights[1])
    rows = [m.open(checkpoints.observation(image=False)).score((7, 8), (9,), (0,)) for m in (full, small)]
    assert 0 < np.abs(rows[0] - rows[1]).max() < 0.1 * np.abs(rows[0]).max()


def test_vlm_and_its_language_model_share_a_vocabulary(tmp_path):
    """32,000 rows against 32,064: the tokens behind, `<image>` among them, are never spoken."""
    target = load_model(originals.converted(tmp_path / "llava"))
    folder = checkpoints.llama(tmp_path / "vicuna", words=originals.WORDS, vocab_size=originals.ROWS)
    checkpoints.tokenizer(originals.WORDS, image=False).save_pretrained(folder)
    draft = load_model(folder)
    assert (draft.decoder.head.weight.shape[0], target.decoder.head.weight.shape[0]) == (59, 64)
    assert draft.card.prompt_digest == target.card.prompt_digest
    assert_same_vocabulary(draft.card, target.card)
    assert draft.open(checkpoints.observation()).score(()).shape == (1, 59)


def test_language_only_pair_answers_and_a_foreign_one_is_refused(tmp_path):
    target = str(checkpoints.llama(tmp_path / "target", num_hidden_layers=6))
    draft = str(checkpoints.llama(tmp_path / "draft", num_hidden_layers=2))
    settings = {"target": target, "grammar": False, "max_tokens": 12}
    spoken = run(AskConfig(instruction="go to the red chair", settings=EdgeSettings(draft=draft, **settings)))
    plain = EdgeSettings(draft=draft, strategy="autoregressive", **settings)
    assert (
        spoken["token_ids"] == run(AskConfig(instruction="go to the red chair", settings=plain))["token_ids"]
    )
    assert len(spoken["token_ids"]) > 0
    swapped = ["<unk>", "</s>", "<pad>", *checkpoints.WORDS[3:]]
    foreign = str(checkpoints.llama(tmp_path / "foreign", words=swapped))
    with pytest.raises(VocabularyMismatch, match="differ in vocabulary"):
        run(AskConfig(instruction="go", settings=EdgeSettings(draft=foreign, **settings)))

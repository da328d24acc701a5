"""Gemma 3 and 4: what their decoders add to Llama's, each part held to Transformers and shown to count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedTokenizerFast,
)

from test.models import checkpoints
from test.models.conftest import Pair, load_pair
from test.models.test_context import ATOL, assert_plain, ends_of
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.types import Image, Observation, Tokens
from vlm_spec_decode.models.families.gemma import Gemma4Language, SharingCache
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.train.exits import LanguageHead

PREFIX: Tokens = (7, 8, 9)
NODES: tuple[Tokens, Tokens] = ((12, 13, 14, 15, 16), (0, 1, 0, 3, 4))
CAP = 2.0


def pair_of(folder: Path, family: str, **changes: Any) -> Pair:
    return load_pair(family, getattr(checkpoints, family)(folder, **changes))


def off_by(pair: Pair) -> float:
    """How far a new answer's tree is from the reference."""
    found = pair.model.open(pair.observation).score(PREFIX, *NODES)
    wanted = np.stack([pair.plain(path) for path in ends_of(PREFIX, *NODES)])
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize("family", ["gemma3_text", "gemma4_text", "gemma4"])
def test_the_softcap_follows_the_head(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(tmp_path / "m", family)
    assert off_by(pair) < ATOL
    monkeypatch.setattr(pair.model.encoder.family, "softcap", None)
    assert off_by(pair) > 0.1


def test_exits_and_choices_are_capped_too(tmp_path: Path) -> None:
    folder = checkpoints.gemma3_text(tmp_path / "m", final_logit_softcapping=CAP)
    model, heard = load_model(f"{folder},prompt=bare,exits=25/50"), []
    context: Any = model.open(checkpoints.observation(image=False))
    found = context.choose((), on_exit=lambda layer, choices: heard.append((layer, choices)))
    stack, head = model.decoder.stack, model.decoder.head
    for layer, choices in [*heard, (4, found)]:
        states = context.states(layer)
        with torch.inference_mode():
            normed = states if layer == 4 else stack.norm(states)
            plain = head(normed)[:, : model.card.vocab_size].numpy()
        wanted = CAP * np.tanh(plain / CAP)
        np.testing.assert_allclose(choices.logits, wanted, atol=1e-5)
        assert np.abs(plain).max() > CAP > np.abs(wanted).max()
        # What is chosen by is the law of the capped logits, under which the first choice is less sure.
        best = int(wanted[0].argmax())
        sure = 1 / np.exp(wanted[0] - wanted[0, best]).sum()
        assert choices.confidence(0, best) == (pytest.approx(sure, rel=1e-4), True)
        assert sure < 0.9 / np.exp(plain[0] - plain[0, best]).sum()
    assert [layer for layer, _ in heard] == [1, 2]


def test_exits_are_trained_under_the_softcap(tmp_path: Path) -> None:
    """What `vsd train exits` optimises is what an exit says, and its gradient goes through the cap."""
    folder = checkpoints.gemma3_text(tmp_path / "m", final_logit_softcapping=CAP)
    model = load_model(f"{folder},prompt=bare,exits=50")
    decoder = model.decoder
    head = LanguageHead(decoder.stack.norm, decoder.head, decoder.family.scores)
    adapter = torch.nn.Linear(32, 32)
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    logits = head.logits(states, adapter)
    logits.square().sum().backward()  # type: ignore[no-untyped-call]
    assert adapter.weight.grad is not None
    assert float(adapter.weight.grad.abs().max()) > 0
    object.__setattr__(decoder, "exits", {2: adapter})
    with torch.inference_mode():
        said = decoder.choices(2, states).logits
    np.testing.assert_allclose(said, logits.detach().numpy()[:, : model.card.vocab_size], atol=1e-5)


def test_layers_without_keys_of_their_own_store_none(tmp_path: Path) -> None:
    pair = pair_of(tmp_path / "m", "gemma4_text")
    context = pair.model.open(pair.observation)
    assert_plain(pair, context.score(PREFIX, *NODES), PREFIX, *NODES)
    assert isinstance(context._cache, SharingCache)
    family = pair.model.encoder.family
    assert isinstance(family, Gemma4Language)
    assert family.kv_sources == {4: 2, 5: 3}
    columns = pair.prompt_tokens + len(PREFIX) + len(NODES[0])
    held = [tuple(layer.keys.shape) for layer in context._cache.layers]
    assert held == [(1, 2, columns, width) for width in (8, 16, 8, 16)]  # with a window and without
    assert context.kv_bytes == sum(layer.nbytes for layer in context._cache.layers)


def test_each_layers_own_input_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding of the token itself, and padding for the rows of a picture."""
    pair = pair_of(tmp_path / "m", "gemma4")
    assert off_by(pair) < ATOL
    with monkeypatch.context() as patched:
        patched.setattr(type(pair.model.encoder.family), "placeholders", ())
        assert off_by(pair) > 0.1
    stack = pair.model.decoder.stack
    with monkeypatch.context() as patched:
        patched.setattr(stack.embed_tokens_per_layer, "embed_scale", torch.zeros(()))
        assert off_by(pair) > 0.1


def test_a_placeholder_in_an_answer_is_read_as_padding(tmp_path: Path) -> None:
    pair = pair_of(tmp_path / "m", "gemma4")
    inputs = dict(pair.inputs)
    del inputs["pixel_values"], inputs["image_position_ids"]
    blind = Pair(pair.folder, pair.model, pair.network, {}, checkpoints.observation(image=False))
    text = pair.model.encoder.render(blind.observation)
    ids = pair.model.encoder.tokenizer(text, return_tensors="pt")["input_ids"]
    blind.inputs["input_ids"] = ids
    prefix = (7, checkpoints.IMAGE_ID, 8)
    assert_plain(blind, pair.model.open(blind.observation).score(prefix), prefix)


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_half_the_bits_say_the_same_up_to_their_rounding(tmp_path: Path, family: str) -> None:
    """Masks, angles, pictures and inputs per layer are all of the weights' format; as in Transformers."""
    pair = pair_of(tmp_path / "m", family)
    model = load_model(f"{pair.folder},prompt=bare,dtype=bfloat16")
    network = type(pair.network).from_pretrained(pair.folder, dtype=torch.bfloat16).eval()
    found = model.open(pair.observation).score(PREFIX, *NODES)
    for row, path in zip(found, ends_of(PREFIX, *NODES), strict=True):
        inputs = pair.extended(path)
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
        with torch.inference_mode():
            theirs = network(**inputs).logits[0, -1, : model.card.vocab_size].float().numpy()
        exact = pair.plain(path)
        noise = max(float(np.abs(theirs - exact).max()), 0.02)
        assert np.abs(row - exact).max() < 3 * noise


@pytest.mark.parametrize(
    "changes",
    [
        # The smaller ones: a picture is causal in all layers.
        {"use_bidirectional_attention": None},
        # Keys are values in the layers without a window; nothing of its own in a layer, nothing shared.
        {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
        # Experts beside the feed-forward network.
        {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
        {"num_kv_shared_layers": 4, "use_double_wide_mlp": True},
    ],
    ids=["causal", "k-is-v", "experts", "wide"],
)
def test_other_sizes_of_gemma4(tmp_path: Path, changes: dict[str, Any]) -> None:
    pair = pair_of(tmp_path / "m", "gemma4", **changes)
    context = pair.model.open(pair.observation)
    assert_plain(pair, context.score(PREFIX, *NODES), PREFIX, *NODES)
    longer = (*PREFIX, 14, 15)
    assert_plain(pair, context.score(longer, *NODES), longer, *NODES)


def test_gemma_1_is_of_llamas_shape(tmp_path: Path) -> None:
    text = checkpoints.TEXT | {"head_dim": 8}
    folder = checkpoints._save(tmp_path / "m", GemmaForCausalLM, GemmaConfig(**text), None)
    pair = load_pair("gemma3_text", folder)
    assert pair.model.encoder.family.config.model_type == "gemma"
    assert off_by(pair) < ATOL


def lines_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that, like Gemma's, joins line breaks into one token, with a template in Gemma's manner."""
    words = [*checkpoints.WORDS[:5], "Here", "is", "the", "original", "image", "and", "\n", "\n\n", "\n\n\n"]
    words += [f"w{i}" for i in range(60 - len(words))]
    words[checkpoints.IMAGE_BEGINS], words[checkpoints.IMAGE_ENDS] = "<boi>", "<eoi>"
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    pieces = Regex(r"\n{1,3}|<\w+>|\w+|[^\w\s]")
    backend.pre_tokenizer = pre_tokenizers.Split(pieces, "removed", invert=True)
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    marks = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=marks, **special)
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}\n{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<boi>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "\n{% endfor %}"
    )
    return made


@pytest.mark.parametrize("size", [(40, 30), (64, 64), (300, 40), (40, 300), (900, 16)])
@pytest.mark.parametrize("crops", [False, True])
def test_gemma3s_prompt_is_its_processors_own(tmp_path: Path, size: tuple[int, int], crops: bool) -> None:
    """Ids to the last line break, which merge with those of the template, and the picture's crops."""
    scan = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16} if crops else {}
    folder = checkpoints.gemma3(tmp_path / "m", **scan)
    tokenizer = lines_tokenizer()
    tokenizer.save_pretrained(folder)
    model = load_model(f"{folder},prompt=bare")
    seen = Observation(Image(checkpoints.jpeg(*size), *size), "go to the red chair", ("w1 w2",))
    images = model.encoder.image_processor
    assert images.pan_and_scan_max_num_crops == 4
    processor = Gemma3Processor(images, tokenizer, image_seq_length=16)
    wanted = processor(
        images=[[decode_jpeg(seen.image.jpeg)]],
        text=model.encoder.render(seen),
        add_special_tokens=False,
        return_tensors="pt",
        **({"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16} if crops else {}),
    )
    prompt = model.encoder.encode(seen)
    embedded = model.encoder.embed(prompt)
    assert embedded.ids.tolist() == wanted["input_ids"][0].tolist()
    assert (tokenizer.convert_tokens_to_ids("\n\n\n") in prompt.ids) == (not crops or size == (64, 64))
    pictures = {(64, 64): 1, (40, 30): 3}.get(size, 5) if crops else 1
    assert len(prompt.image["pixel_values"]) == pictures
    network = Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
    with torch.inference_mode():
        said = network(**wanted).logits[0, -1, :60].numpy()
    np.testing.assert_allclose(model.open(seen).score(())[0], said, atol=ATOL)


def test_an_image_processor_may_leave_its_settings_open(tmp_path: Path) -> None:
    """As those of Google's checkpoints do."""
    folder = checkpoints.gemma3(tmp_path / "m")
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    assert saved.get("do_pan_and_scan") is None
    assert load_model(folder).encoder.image_processor.do_pan_and_scan is False

"""Checkpoints as users find them: whole, broken, padded, foreign."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from test.models import checkpoints
from vlm_spec_decode.core.errors import ImageError, InstructionError, ModelError, VocabularyMismatch
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.models.checkpoint import EXITS_FILE
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.models.vocabulary import assert_same_vocabulary


def refuse(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_card_names_what_was_loaded(tmp_path):
    checkpoints.llava(tmp_path / "one")
    checkpoints.llava(tmp_path / "two")
    one, again, two = load_model(tmp_path / "one"), load_model(tmp_path / "one"), load_model(tmp_path / "two")
    assert one.card == again.card
    assert one.card.model_id == "one"
    assert load_model(str(tmp_path / "one"), model_id="other").card.model_id == "other"
    assert (one.card.vocab_size, one.card.num_layers, one.card.exit_layers) == (60, 4, ())
    assert one.card.revision == two.card.revision
    assert one.card.prompt_digest == two.card.prompt_digest
    weights = load_file(tmp_path / "two/model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, tmp_path / "two/model.safetensors", metadata={"format": "pt"})
    assert load_model(tmp_path / "two").card.revision != one.card.revision


def test_prompt_digest_tells_what_is_said_not_how_it_is_seen(tmp_path):
    seeing, blind = (
        load_model(checkpoints.llava(tmp_path / "a")),
        load_model(checkpoints.llama(tmp_path / "b")),
    )
    assert seeing.card.prompt_digest == blind.card.prompt_digest
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "b/chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_model(tmp_path / "b").card.prompt_digest == blind.card.prompt_digest
    assert load_model(f"{tmp_path / 'b'},prompt=bare").card.prompt_digest != blind.card.prompt_digest


def test_codec_is_the_tokenizers_without_special_tokens(tmp_path):
    codec = load_model(checkpoints.llama(tmp_path / "m")).codec
    ids = codec.encode("go to the red chair")
    assert ids == (8, 9, 10, 11, 12)
    assert codec.decode((*ids, 2)) == "go to the red chair"
    assert codec.stop_ids == (2,)


def test_stop_ids_of_the_generation_config_count_too(tmp_path):
    folder = checkpoints.llama(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load_model(folder).codec.stop_ids == (2, 7)


def test_rows_that_pad_the_head_are_cut_off(tmp_path):
    model = load_model(checkpoints.llama(tmp_path / "m"))
    assert model.decoder.head.weight.shape[0] == checkpoints.PADDED_VOCAB
    assert model.open(checkpoints.observation(image=False)).score(()).shape == (1, len(checkpoints.WORDS))


def test_same_vocabulary_or_a_named_error(tmp_path):
    target = load_model(checkpoints.llava(tmp_path / "target")).card
    draft = load_model(checkpoints.llama(tmp_path / "draft", num_hidden_layers=2)).card
    assert_same_vocabulary(draft, target)
    swapped = ["<unk>", "</s>", "<pad>", *checkpoints.WORDS[3:]]
    other = load_model(checkpoints.llama(tmp_path / "other", words=swapped)).card
    with pytest.raises(VocabularyMismatch, match="differ in vocabulary"):
        assert_same_vocabulary(other, target)
    shorter = load_model(checkpoints.llama(tmp_path / "shorter", words=checkpoints.WORDS[:-1])).card
    with pytest.raises(VocabularyMismatch, match="59 tokens"):
        assert_same_vocabulary(shorter, target)


def test_missing_folder_is_named(tmp_path):
    refuse(tmp_path / "nowhere", "no folder")
    refuse(str(tmp_path / "nowhere"), "no folder")


def test_empty_folder(tmp_path):
    refuse(tmp_path, "cannot load")


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_weights(tmp_path, keep):
    weights = checkpoints.llama(tmp_path / "m") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refuse(tmp_path / "m", "cannot load m")


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated_weights_are_named_with_their_size(tmp_path, keep):
    folder = checkpoints.llama(tmp_path / "m")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refuse(folder, rf"model\.safetensors is cut off: \d+ bytes of {len(data)}")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    folder = checkpoints.llama(tmp_path / "m")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refuse(folder, "holds no tokenizer")


def test_missing_tensor_is_not_made_up(tmp_path):
    path = checkpoints.llama(tmp_path / "m") / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    refuse(tmp_path / "m", "1 tensors are missing")


def test_misshapen_tensor(tmp_path):
    edit_config(checkpoints.llama(tmp_path / "m"), intermediate_size=40)
    refuse(tmp_path / "m", "cannot load m")


def pickled(folder):
    """The same weights as Vicuna's repositories hold them: in pickles alone."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_the_same_model_and_pickles_of_code_are_never_run(tmp_path):
    safe = load_model(checkpoints.llama(tmp_path / "safe"))
    folder = pickled(checkpoints.llama(tmp_path / "m"))
    seen = checkpoints.observation(image=False)
    assert np.array_equal(load_model(folder).open(seen).score((7,)), safe.open(seen).score((7,)))
    save_file({"layers.2.weight": torch.zeros(32, 32)}, folder / EXITS_FILE)
    before = load_model(folder).card.revision
    path = folder / "pytorch_model.bin"
    torch.save({n: t + 1 for n, t in torch.load(path, weights_only=True).items()}, path)
    assert load_model(folder).card.revision != before, "exits beside pickles hide no change of them"
    torch.save({"model.norm.weight": edit_config}, folder / "pytorch_model.bin")
    refuse(folder, "cannot load m")


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "no_such_thing"])
def test_other_architectures_are_refused_by_name(tmp_path, model_type):
    edit_config(checkpoints.llama(tmp_path / "m"), model_type=model_type)
    refuse(tmp_path / "m", model_type)


def test_sliding_window_is_refused(tmp_path):
    edit_config(checkpoints.qwen2(tmp_path / "m"), layer_types=["full_attention", "sliding_attention"] * 2)
    refuse(tmp_path / "m", "sliding-window")


def test_config_that_is_no_json(tmp_path):
    (checkpoints.llama(tmp_path / "m") / "config.json").write_text("{")
    refuse(tmp_path / "m", "cannot load")


def test_exit_layers_outside_the_stack(tmp_path):
    edit_config(checkpoints.llama(tmp_path / "m"), exit_layers=[2, 4])
    refuse(tmp_path / "m", "exit layers")


def test_misshapen_exit_adapter(tmp_path):
    folder = checkpoints.llama(tmp_path / "m")
    save_file({"layers.2.weight": torch.zeros(3, 3)}, folder / EXITS_FILE)
    refuse(folder, "cannot load m")


def test_head_smaller_than_the_vocabulary(tmp_path):
    words = checkpoints.WORDS + [f"more{i}" for i in range(10)]
    refuse(checkpoints.llama(tmp_path / "m", words=words), "more than its head has rows")


def test_unknown_dtype(tmp_path):
    folder = checkpoints.llama(tmp_path / "m")
    with pytest.raises(ModelError, match="float31"):
        load_model(folder, dtype="float31")


def test_bfloat16_runs(tmp_path):
    logits = load_model(checkpoints.llava(tmp_path / "m"), dtype="bfloat16").open(checkpoints.observation())
    assert np.isfinite(logits.score((7,), (8, 9), (0, 0))).all()


def test_nothing_ships_under_an_unknown_name():
    for name in ("nonsense", "prompts"):
        with pytest.raises(ModelError, match=f"no checkpoint '{name}'.*known: draft.*, target, text_draft"):
            shipped(name)


@pytest.mark.parametrize(
    "jpeg",
    [b"", b"no image", checkpoints.jpeg()[:200], checkpoints.jpeg()[:-300], b"\x89PNG" + checkpoints.jpeg()],
    ids=["empty", "text", "header only", "cut", "not a JPEG"],
)
def test_corrupt_jpeg_is_an_image_error(llava_pair, jpeg):
    with pytest.raises(ImageError, match="not a readable JPEG"):
        llava_pair.model.open(Observation(Image(jpeg, 40, 30), "go"))


def test_huge_jpeg_is_refused_before_it_is_decoded():
    jpeg = bytearray(checkpoints.jpeg())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (7000).to_bytes(2, "big") + (7000).to_bytes(2, "big")
    with pytest.raises(ImageError, match="7000 x 7000"):
        decode_jpeg(bytes(jpeg))


def test_prompt_beyond_the_context_is_refused_at_once(llava_pair):
    with pytest.raises(InstructionError, match=r"2\d\d\d tokens leaves no room"):
        llava_pair.model.open(Observation(None, "go " * 2000))


def test_no_text_can_smuggle_an_image_token(llava_pair):
    escaped = llava_pair.model.encoder.encode(Observation(None, "go <image>"))
    assert checkpoints.IMAGE_ID not in escaped.ids
    with pytest.raises(InstructionError, match="image token"):
        llava_pair.model.open(Observation(None, "go", history=("<image>",)))


def test_language_model_leaves_the_image_out(tmp_path):
    model = load_model(checkpoints.llama(tmp_path / "m"))
    with_image, without = checkpoints.observation(), checkpoints.observation(image=False)
    assert np.array_equal(model.open(with_image).score(()), model.open(without).score(()))


def test_chat_template_of_the_checkpoint_wins(tmp_path):
    folder = checkpoints.llava(tmp_path / "m")
    template = (
        "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }}"
    )
    template += " {% endfor %}{% endfor %}ASSISTANT :"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    text = load_model(folder).encoder.render(checkpoints.observation())
    assert text.startswith("<image> ")
    assert text.endswith("ASSISTANT :")
    assert "USER" not in text

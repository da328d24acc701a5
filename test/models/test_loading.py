"""What a start costs: results kept on disk, weights that are mapped and not copied, two loads at once."""

import gc
import json
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from test.models import checkpoints
from test.models.families import cases as family_cases
from vlm_spec_decode.core import disk_cache
from vlm_spec_decode.core.errors import ModelError, NotFinite
from vlm_spec_decode.core.load_progress import LoadLog, reported, shown_by
from vlm_spec_decode.edge.factory import bring_up, load_pair
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models import checkpoint
from vlm_spec_decode.models.engines import torch_loop
from vlm_spec_decode.models.loader import load_draft_and_target, load_model, load_models
from vlm_spec_decode.models.tokenizer import TokenizerCodec, collector_paused, count_hidden

SETTLED_S = 10.0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VSD_CACHE", str(folder))
    return folder


def entries(folder: Path, kind: str = ""):
    return sorted(folder.glob(f"{kind}*.entry"))


# Special tokens behind the vocabulary -----------------------------------------------------------------


def with_special_tokens(count: int = 3):
    """A tokenizer as a VLM has it: its language model's, with special tokens behind."""
    found = checkpoints.tokenizer(checkpoints.WORDS[:-1], image=False)
    found.add_tokens([f"<extra{i}>" for i in range(count)], special_tokens=True)
    return found


def rebuilt(codec: TokenizerCodec):
    """The tokenizer that a codec stands for, built from its parts: what the codec has to agree with."""
    document = json.loads(codec.tokenizer.backend_tokenizer.to_str())
    added = [entry for entry in document["added_tokens"] if entry["id"] < codec.vocab_size]
    backend = Tokenizer.from_str(json.dumps(document | {"added_tokens": added}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_special_tokens_at_the_end_are_hidden_unless_they_end_an_answer():
    tokenizer = with_special_tokens()
    assert count_hidden(tokenizer, (2,)) == 3
    assert count_hidden(tokenizer, (2, 60)) == 1
    assert count_hidden(checkpoints.tokenizer(), (2,)) == 0
    codec = TokenizerCodec(tokenizer, (2,), 3)
    assert codec.vocab_size == 59
    assert codec.special_ids == {0, 2, 3}


@pytest.mark.parametrize(
    "text", ["go to the red chair", "go <extra1> chair", "<extra0><extra2>", "", "w1 </s> <pad> go"]
)
def test_a_codec_cuts_text_as_if_the_hidden_tokens_did_not_exist(text):
    codec = TokenizerCodec(with_special_tokens(), (2,), 3)
    reference = rebuilt(codec)
    ids = codec.encode(text)
    assert ids == tuple(reference.encode(text, add_special_tokens=False))
    assert max(ids, default=0) < codec.vocab_size
    assert codec.decode((*ids, 60)) == reference.decode(ids, skip_special_tokens=True)


def test_the_digest_is_that_of_the_vocabulary_without_hidden_tokens(cache):
    codec = TokenizerCodec(with_special_tokens(), (2,), 3)
    plain = TokenizerCodec(checkpoints.tokenizer(checkpoints.WORDS[:-1], image=False), (2,))
    assert codec.digest == plain.digest == TokenizerCodec(rebuilt(codec), (2,)).digest
    assert codec.digest != TokenizerCodec(with_special_tokens(), (2,), 2).digest
    # The value itself must not change either: the other end may run an earlier version.
    assert TokenizerCodec(checkpoints.tokenizer(), (2,)).digest == "3d45b2d5331fc38a"


def test_the_digest_is_kept_by_content_and_a_wrong_one_is_not_believed(cache):
    first = TokenizerCodec(checkpoints.tokenizer(), (2,)).digest
    (kept,) = entries(cache, "tokenizer-digest")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert TokenizerCodec(checkpoints.tokenizer(), (2,)).digest == first
    (again,) = entries(cache, "tokenizer-digest")
    assert not again.read_bytes().endswith(b"?")
    words = ["<unk>", "</s>", "<pad>", *checkpoints.WORDS[3:]]
    assert TokenizerCodec(checkpoints.tokenizer(words), (1,)).digest != first
    assert len(entries(cache, "tokenizer-digest")) == 2


# The tokenizer's content, kept by the identity of its files ---------------------------------------------


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a tokenizer's files, and let them be old."""
    clock = time.time
    monkeypatch.setattr(disk_cache.time, "time", lambda: clock() + SETTLED_S)

    def write(words=None, name="tokenizer"):
        checkpoints.tokenizer(*[words] if words else []).save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def hashed(monkeypatch):
    """Count how often a tokenizer is hashed whole."""
    found, whole = [], TokenizerCodec._hash
    monkeypatch.setattr(TokenizerCodec, "_hash", lambda codec: found.append(codec) or whole(codec))
    return found


def read(folder):
    return checkpoint.load_codec(folder, checkpoint.load_tokenizer(folder))


def test_a_tokenizer_is_hashed_whole_once(written, hashed):
    folder = written()
    first, second = read(folder), read(folder)
    assert first.content == TokenizerCodec(checkpoints.tokenizer(), (2,)).content
    assert second.content == first.content
    assert second.digest == first.digest
    assert [codec.files is None for codec in hashed] == [False, True]


def test_a_tokenizer_that_was_written_anew_is_hashed_anew(written, hashed):
    folder = written()
    before, times = read(folder), (folder / "tokenizer.json").stat()
    content, digest, size = before.content, before.digest, times.st_size
    words = [*checkpoints.WORDS[:-1], checkpoints.WORDS[-1][::-1]]
    written(words)
    os.utime(folder / "tokenizer.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (folder / "tokenizer.json").stat().st_size == size
    after = read(folder)
    assert after.content != content
    assert after.digest != digest
    assert len(hashed) == 2


def test_files_that_changed_after_they_were_read_say_nothing_of_what_was_read(written, hashed, cache):
    """Neither is the first content kept for the new files, nor the new files' content believed."""
    folder, words = written(), [*checkpoints.WORDS[:-1], checkpoints.WORDS[-1][::-1]]
    early = read(folder)
    written(words)
    assert entries(cache, "tokenizer-content") == []
    content = early.content
    assert entries(cache, "tokenizer-content") == []
    late = read(folder)
    assert late.content != content
    written()
    assert read(folder).content == content
    written(words)
    assert read(folder).content == late.content
    assert len(hashed) == 4


def test_what_a_program_changes_in_a_tokenizer_changes_its_content(written, hashed):
    folder = written()
    plain = read(folder)
    tokenizer = checkpoint.load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    more = checkpoint.load_codec(folder, tokenizer)
    tokenizer = checkpoint.load_tokenizer(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower = checkpoint.load_codec(folder, tokenizer)
    assert len({plain.content, more.content, lower.content}) == len(hashed) == 3


def test_a_tokenizer_just_written_is_hashed_at_every_start(tmp_path, hashed, cache):
    checkpoints.tokenizer().save_pretrained(tmp_path / "m")
    assert read(tmp_path / "m").content == read(tmp_path / "m").content
    assert len(hashed) == 2
    assert entries(cache, "tokenizer-content") == []


@pytest.mark.parametrize("was_enabled", [True, False])
def test_pauses_of_the_collector_overlap_and_leave_it_as_it_was(was_enabled):
    first, second = collector_paused(), collector_paused()
    try:
        if not was_enabled:
            gc.disable()
        first.__enter__()
        second.__enter__()
        assert not gc.isenabled()
        first.__exit__(None, None, None)
        assert not gc.isenabled(), "the second pause goes on"
        second.__exit__(None, None, None)
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


def test_the_collector_goes_on_after_a_tokenizer_that_is_none(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises((OSError, ValueError)):
        checkpoint.load_tokenizer(tmp_path)
    assert gc.isenabled()


# The fingerprint --------------------------------------------------------------------------------------


@pytest.fixture
def settled(tmp_path, monkeypatch):
    """A checkpoint whose files were written long ago, as far as the fingerprint can tell."""
    folder = checkpoints.llama(tmp_path / "m")
    clock = time.time
    monkeypatch.setattr(disk_cache.time, "time", lambda: clock() + SETTLED_S)
    return folder


def hashed_bytes(folder):
    with reported("m", SETTLED_S) as load:
        found = checkpoint.fingerprint([folder])
    return found, checkpoint.HASH in load.shares


def test_weights_are_hashed_once_and_again_when_a_file_has_changed(settled):
    first, was_hashed = hashed_bytes(settled)
    assert was_hashed
    assert hashed_bytes(settled) == (first, False)
    weights = settled / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    second, was_hashed = hashed_bytes(settled)
    assert was_hashed
    assert second != first
    (settled / "config.json").write_text((settled / "config.json").read_text() + " ")
    third, was_hashed = hashed_bytes(settled)
    assert was_hashed
    assert third not in (first, second)


def test_another_file_in_the_same_place_is_hashed(settled):
    first, _ = hashed_bytes(settled)
    weights, other = settled / "model.safetensors", settled / "other"
    tensors = load_file(weights)
    next(iter(tensors.values())).add_(1)
    save_file(tensors, other, metadata={"format": "pt"})
    os.utime(other, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns))
    other.replace(weights)
    assert hashed_bytes(settled)[0] != first


def test_the_fingerprint_of_files_just_written_is_not_kept(tmp_path, cache):
    folder = checkpoints.llama(tmp_path / "m")
    assert hashed_bytes(folder)[1]
    assert hashed_bytes(folder)[1]
    assert entries(cache, "fingerprint") == []


def test_a_start_without_a_cache_gives_the_same_model(tmp_path, monkeypatch, cache):
    folder = checkpoints.llava(tmp_path / "m")
    cards = [load_model(folder).card, load_model(folder).card]
    for place in ("off", "/proc/1/vsd"):
        monkeypatch.setenv("VSD_CACHE", place)
        cards.append(load_model(folder).card)
    for path in entries(cache):
        path.write_bytes(b"nonsense")
    monkeypatch.setenv("VSD_CACHE", str(cache))
    cards.append(load_model(folder).card)
    assert all(card == cards[0] for card in cards)


# Memory -----------------------------------------------------------------------------------------------


def large_llama(folder: Path, tied: bool, dtype: torch.dtype) -> Path:
    """A checkpoint that is mostly embedding: 48 MB in float32, twice that with a head of its own."""
    config = LlamaConfig(**checkpoints.TEXT | {"vocab_size": 48_000, "hidden_size": 256}, head_dim=16)
    config.tie_word_embeddings = tied
    network = LlamaForCausalLM(config).to(dtype)
    network.save_pretrained(folder)
    checkpoints.tokenizer().save_pretrained(folder)
    return folder


def mapped_file(address: int) -> str:
    """Return the file in which an address of this process lies, "" if it lies in memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    raise AssertionError("no such address")


def private_bytes(name: str = "") -> int:
    """Return the written bytes of this process's own: all of them, or those of the mappings of a file."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(name)
        elif counts and line.startswith("Private_Dirty:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_mapped_and_neither_embedding_nor_head_is_copied(tmp_path, tied, dtype):
    folder = large_llama(tmp_path / "m", tied, torch_loop.DTYPES[dtype])
    weights = str(folder / "model.safetensors")
    load_model(folder, dtype=dtype)
    before = private_bytes()
    one, two = load_model(folder, dtype=dtype), load_model(folder, dtype=dtype)
    for model in (one, two):
        head, embedding = model.decoder.head.weight, model.decoder.stack.embed_tokens.weight
        assert (head.data_ptr() == embedding.data_ptr()) == tied
        for tensor in (head, embedding, model.decoder.stack.layers[0].mlp.up_proj.weight):
            assert mapped_file(tensor.data_ptr()) == weights
        seen = checkpoints.observation(image=False)
        assert np.isfinite(model.open(seen).score((7,), (8, 9), (0, 0))).all()
    # Two answers later no page of the weights has been written, so that both models share the file's pages.
    assert private_bytes(weights) == 0
    assert private_bytes() - before < (24 << 20) * (1 if dtype == "bfloat16" else 2) / 2


# Two loads at once ------------------------------------------------------------------------------------


def test_models_are_loaded_at_once_and_in_order(tmp_path, monkeypatch):
    sources = [checkpoints.llama(tmp_path / "draft"), checkpoints.llava(tmp_path / "target")]
    both = threading.Barrier(2, timeout=60)
    family = torch_loop._family

    def meet(*given):
        both.wait()  # neither goes on before the other has begun
        return family(*given)

    alone = [load_model(source).card for source in sources]
    monkeypatch.setattr(torch_loop, "_family", meet)
    shown = transformers_logging.is_progress_bar_enabled()
    assert [model.card for model in load_models(sources)] == alone
    assert transformers_logging.is_progress_bar_enabled() == shown
    assert transformers_logging.set_tqdm_hook(None) is None


def test_loads_beside_each_other_give_the_same_weights_as_alone(tmp_path):
    """Transformers sets the default number format of the whole process while it builds a network."""
    sources = [checkpoints.llama(tmp_path / "a"), f"{checkpoints.qwen2(tmp_path / 'b')},dtype=bfloat16"]
    seen = checkpoints.observation(image=False)
    alone = [load_model(source).open(seen).score((7,)) for source in sources]
    for _ in range(5):
        models = load_models(sources)
        assert [model.decoder.dtype for model in models] == [torch.float32, torch.bfloat16]
        for model, scores in zip(models, alone, strict=True):
            assert np.array_equal(model.open(seen).score((7,)), scores)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("broken", ["draft", "target"])
def test_an_error_of_either_names_its_checkpoint(tmp_path, broken):
    pair = {name: checkpoints.llama(tmp_path / name) for name in ("draft", "target")}
    (pair[broken] / "model.safetensors").write_bytes(b"")
    settings = EdgeSettings(draft=str(pair["draft"]), target=str(pair["target"]), grammar=False)
    with pytest.raises(ModelError, match=f"^cannot load {broken}: "):
        bring_up(settings)
    with pytest.raises(ModelError, match=f"^cannot load {broken}: "):
        load_pair(settings.target, settings.draft, grammar=False)


def test_a_load_beside_one_that_fails_is_stopped_and_waited_for(tmp_path, monkeypatch):
    sources = [checkpoints.llama(tmp_path / "slow"), checkpoints.llama(tmp_path / "broken")]
    (sources[1] / "config.json").unlink()
    going, ended, family = threading.Event(), threading.Event(), torch_loop._family

    def slow(source, options):
        if source == sources[1]:
            assert going.wait(60)
            return family(source, options)
        load = torch_loop.current_load()
        going.set()
        try:
            while True:
                load.advance("tensors", 0.5)
                time.sleep(0.005)
        finally:
            ended.set()

    monkeypatch.setattr(torch_loop, "_family", slow)
    with pytest.raises(ModelError, match=r"^cannot load broken: no readable config"):
        load_models(sources)
    assert ended.is_set()


# What a load says -------------------------------------------------------------------------------------


def test_a_load_counts_its_tensors_and_its_hashed_bytes(tmp_path, monkeypatch):
    folder = checkpoints.llama(tmp_path / "m")
    lines, loads = [], []
    family = torch_loop._family

    def slow(*given):
        loads.append(torch_loop.current_load())
        while not lines:
            time.sleep(0.005)
        return family(*given)

    monkeypatch.setattr(torch_loop, "_family", slow)
    with shown_by(LoadLog(lines.append)):
        load_model(folder)
    assert loads[0].shares == {checkpoint.TENSORS: 1.0, checkpoint.HASH: 1.0}
    assert loads[0].total_bytes == (folder / "model.safetensors").stat().st_size
    assert lines[0] == "loading m …"
    assert re.fullmatch(r"loaded m \(0.\d MB\) in \d+ s", lines[1])


def test_the_lines_of_a_pair_of_one_name_tell_draft_from_target(tmp_path, monkeypatch):
    pair = [checkpoints.llama(tmp_path / role / "m") for role in ("a", "b")]
    lines = []
    family = torch_loop._family

    def slow(*given):
        while len(lines) < 2:
            time.sleep(0.005)
        return family(*given)

    monkeypatch.setattr(torch_loop, "_family", slow)
    with shown_by(LoadLog(lines.append)):
        load_draft_and_target(*pair)
    assert sorted(lines[:2]) == ["loading draft m …", "loading target m …"]
    assert {re.sub(r" \(.*", "", line) for line in lines[2:]} == {"loaded draft m", "loaded target m"}


# Bad input --------------------------------------------------------------------------------------------


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_tokenizer_without_the_images_token_is_refused(tmp_path):
    folder = checkpoints.llava(tmp_path / "beyond")
    edit_config(folder, image_token_id=63, image_token_index=63)
    with pytest.raises(ModelError, match=r"cannot load beyond: .*no token 63, the image's placeholder"):
        load_model(folder)
    folder = checkpoints.llava(tmp_path / "cut")
    checkpoints.tokenizer(image=False).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"cannot load cut: .*image's token '<image>' as \[.*\], not as 4"):
        load_model(folder)


def shift(folder, at):
    """Put one more special token at id `at`: every one from there on is found one id higher."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    for token in [*vocabulary]:
        vocabulary[token] += vocabulary[token] >= at
    for token in document["added_tokens"]:
        token["id"] += token["id"] >= at
    vocabulary["<one_more>"] = at
    path.write_text(json.dumps(document))


def test_a_tokenizer_with_one_token_more_is_refused(tmp_path):
    folder = checkpoints.llava(tmp_path / "m")
    assert load_model(folder)
    shift(folder, 4)
    with pytest.raises(
        ModelError, match=r"image_token_id is 4, .* reads as '<one_more>'; it has '<image>' as 5"
    ):
        load_model(folder)


def test_an_end_that_is_another_token_is_refused(tmp_path):
    folder = family_cases.CASES["qwen3_vl"].make(tmp_path / "m") or tmp_path / "m"
    path = folder / "generation_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"eos_token_id": [151_645, 151_643]}))
    assert load_model(folder).codec.stop_ids == (151_643, 151_645)
    path.write_text(json.dumps(said | {"eos_token_id": [151_644, 151_643]}))
    with pytest.raises(
        ModelError, match=r"eos_token_id is 151644, .* reads as '<\|im_start\|>'; .*'<\|im_end\|>' as 151645"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_nan_are_named_when_they_are_met(tmp_path, name):
    path = checkpoints.llama(tmp_path / "m") / "model.safetensors"
    weights = load_file(path)
    weights[name].fill_(torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    context = load_model(tmp_path / "m").open(checkpoints.observation(image=False))
    with pytest.raises(NotFinite, match="hold NaN"):
        context.choose(()).confidence(0, 7)

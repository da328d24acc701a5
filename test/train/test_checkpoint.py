"""Whatever stands in the way of a checkpoint is named, and what was there before survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.models.checkpoint import TRANSFORMERS_LOCK
from vlm_spec_decode.models.loader import shipped
from vlm_spec_decode.models.subword import train_subword_tokenizer
from vlm_spec_decode.train.config import DataConfig, TextConfig, TrainConfig
from vlm_spec_decode.train.frames import run_data
from vlm_spec_decode.train.loop import export, load_guide
from vlm_spec_decode.train.loop import tokenizer as word_tokenizer
from vlm_spec_decode.train.text import new_text_training_state, run_text
from vlm_spec_decode.train.training_state import (
    exporting,
    load_checkpoint,
    load_finished,
    new_training_state,
    save_checkpoint,
)

SMALL = TextConfig("draft", steps=6, batch=4, checkpoint_every=1, precision="float32")


def state(value: float) -> dict[str, object]:
    return {"model": {"weight": torch.full((4096,), value)}, "counters": (1, 2.0)}


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A checkpoint whose next version lands on a device that is always full."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state(1.0), path)
    path.with_suffix(".partial").symlink_to("/dev/full")
    return path


def test_a_full_disk_is_named_and_the_old_checkpoint_survives(full_disk: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot write checkpoint .*No space left.*as it was"):
        save_checkpoint(state(2.0), full_disk)
    assert load_checkpoint(full_disk)["model"]["weight"][0] == 1.0
    assert [p.name for p in full_disk.parent.iterdir()] == [full_disk.name], "no half of a file stays"
    save_checkpoint(state(3.0), full_disk)
    assert load_checkpoint(full_disk)["model"]["weight"][0] == 3.0


def test_a_full_disk_ends_a_training_that_then_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = replace(SMALL, out=tmp_path / "whole")
    run_text(whole)
    parts = replace(SMALL, out=tmp_path / "parts")
    run_text(replace(parts, stop_after=2))
    (parts.out / "checkpoint.partial").symlink_to("/dev/full")
    with pytest.raises(ModelError, match="No space left"):
        run_text(parts)
    assert load_checkpoint(parts.out / "checkpoint.pt")["counters"][0] == 2
    run_text(parts)
    assert_same_weights(whole.out, parts.out)


def test_a_model_that_cannot_be_exported_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("old")
    with pytest.raises(ModelError, match="No space left"):
        export_to_a_full_disk(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_named_and_left_as_it_is(tmp_path: Path, share: float) -> None:
    path = tmp_path / "out" / "checkpoint.pt"
    path.parent.mkdir()
    save_checkpoint(state(1.0), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="truncated or no checkpoint; remove it to start anew"):
        run_text(replace(SMALL, out=path.parent))
    assert path.stat().st_size == int(len(data) * share)


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    new_text_training_state(replace(SMALL, role="target"), 30).save(path)
    with pytest.raises(ModelError, match="checkpoint of another model"):
        new_text_training_state(SMALL, 40).load(path)
    with pytest.raises(ModelError, match="checkpoint of another model"):
        new_training_state(TrainConfig("draft"), 30).load(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="holds no training"):
        new_text_training_state(SMALL, 40).load(path)
    with pytest.raises(ModelError, match="there is no checkpoint"):
        new_training_state(TrainConfig("draft"), 30).load_vision_tower(tmp_path / "none.pt")


def test_a_model_to_learn_from_or_to_begin_from_must_be_there_and_of_the_same_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load .*none: no readable config.json"):
        run_text(replace(SMALL, out=tmp_path / "out", distil=tmp_path / "none"))
    with pytest.raises(ModelError, match="its architecture is 'llava', where 'llama' is needed"):
        run_text(replace(SMALL, out=tmp_path / "out", distil=shipped("draft")))
    with pytest.raises(ModelError, match="its architecture is 'llama', where 'llava' is needed"):
        load_guide(shipped("text_draft"), torch.device("cpu"))
    with pytest.raises(ModelError, match="its architecture is 'llama', where 'llava' is needed"):
        new_training_state(TrainConfig("draft"), 30).load(shipped("text_draft"))


def test_no_room_that_is_held_out_is_rendered_for_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rooms from seed 1000000 on are held out"):
        run_data(DataConfig(tmp_path / "frames", num_scenes=1_000_001))
    assert not (tmp_path / "frames").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    killed, whole = (replace(SMALL, out=tmp_path / name) for name in ("killed", "whole"))
    process = train_in_a_process(killed.out)
    try:
        wait_for(lambda: (killed.out / "checkpoint.pt").exists() or process.poll() is not None)
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) in (-signal.SIGKILL, 0)
    finally:
        process.kill()
        process.communicate()
    assert load_checkpoint(killed.out / "checkpoint.pt")["counters"][0] >= 1
    run_text(killed)
    run_text(whole)
    assert_same_weights(whole.out, killed.out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_too_little_memory_is_named_in_one_line_and_the_checkpoint_kept(tmp_path: Path) -> None:
    run_text(replace(SMALL, out=tmp_path, stop_after=1))
    process = train_in_a_process(tmp_path, "--batch", "2048", memory_bytes=160 << 20)
    try:
        _, errors = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1].startswith("vsd: OutOfMemory: out of memory: try a smaller --batch")
    assert load_checkpoint(tmp_path / "checkpoint.pt")["counters"][0] == 1


def export_to_a_full_disk(folder: Path) -> None:
    with exporting(folder) as made:
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").symlink_to("/dev/full")
        (made / "model.safetensors").write_bytes(bytes(1 << 16))


def train_in_a_process(out: Path, *options: str, memory_bytes: int = 0) -> subprocess.Popen[str]:
    """Start `vsd train draft --text`; with `memory_bytes` it gets so much more than its modules take."""
    code = (
        "import resource, sys\n"
        "from vlm_spec_decode.cli import main as cli\n"
        "import vlm_spec_decode.train.text\n"
        f"more = {memory_bytes}\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "if more: resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    settings = ["--steps", "6", "--batch", "4", "--precision", "float32", *options]
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", "draft", "--text", "--out", str(out), *settings],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(holds: Callable[[], bool], timeout_s: float = 300.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_model_waits_for_another_network_that_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of Transformers' `from_pretrained` at once leave its classes changed for good."""
    waited = []
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: TRANSFORMERS_LOCK.locked())
    assert load_finished(LlamaForCausalLM, shipped("text_draft")) is True
    with TRANSFORMERS_LOCK:
        beside = threading.Thread(
            target=lambda: waited.append(load_finished(LlamaForCausalLM, shipped("text_draft")))
        )
        beside.start()
        beside.join(0.2)
        assert waited == []
    beside.join(60)
    assert waited == [True]


def test_a_model_with_other_words_lends_its_embeddings_and_layers(tmp_path: Path) -> None:
    words = word_tokenizer()
    export(tmp_path, new_training_state(TrainConfig("draft", seed=3), len(words)).model, words, {})
    texts = [" forward(1.5) done()", " a red chair ahead . turn(20)"] * 3
    tokenizer = train_subword_tokenizer(texts, 300)
    state = new_training_state(TrainConfig("draft"), len(tokenizer))
    state.load(tmp_path, tokenizer)
    found = load_finished(LlavaForConditionalGeneration, tmp_path).state_dict()
    rows, before, vocabulary = state.model.lm_head.weight, found["lm_head.weight"], words.get_vocab()
    assert rows is state.model.model.language_model.embed_tokens.weight
    for word in ("a", ".", "(", "5"):
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert torch.equal(rows[token], before[vocabulary[word]]), word
    (call,) = tokenizer(" turn(", add_special_tokens=False)["input_ids"]
    assert torch.allclose(rows[call], (before[vocabulary["turn"]] + before[vocabulary["("]]) / 2)
    assert torch.equal(rows[:5], before[:5])
    # A token in which the old tokenizer reads no word is drawn as the words are spread.
    other = rows[tokenizer("ß", add_special_tokens=False)["input_ids"]]
    assert other.std().item() == pytest.approx(before.std().item(), rel=0.3)
    layers = [name for name in found if ".layers." in name]
    assert layers
    for name in layers:
        assert torch.equal(state.model.state_dict()[name], found[name]), name

"""Device and number format of a training: measured once, written down, and kept by a run that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.train import hardware
from vlm_spec_decode.train.config import TextConfig
from vlm_spec_decode.train.hardware import ATTENTION, Hardware, measured, pick_device
from vlm_spec_decode.train.text import run_text
from vlm_spec_decode.train.training_state import load_checkpoint

CPU = torch.device("cpu")
SMALL = TextConfig("draft", steps=2, batch=4, device="cpu")


@pytest.mark.parametrize(
    ("seconds", "chosen"), [((0.4, 0.02), "bfloat16"), ((0.02, 0.4), "float32"), ((0.21, 0.2), "float32")]
)
def test_the_faster_format_is_found_by_measuring_and_a_tie_keeps_the_exact_one(monkeypatch, seconds, chosen):
    weight, now_s = torch.ones(2, 2, requires_grad=True), [0.0]
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now_s[0])

    def forward() -> torch.Tensor:
        product = weight @ weight
        now_s[0] += seconds[product.dtype == torch.bfloat16]
        return product.sum()

    found = measured(CPU, forward)
    assert found.precision == chosen
    wanted = dict(zip(("float32", "bfloat16"), seconds, strict=True))
    assert found.step_ms == {name: pytest.approx(1e3 * took) for name, took in wanted.items()}


def test_weights_and_loss_stay_exact_under_bfloat16() -> None:
    layer = torch.nn.Linear(4, 4)
    with Hardware(CPU, "bfloat16").autocast():
        logits = layer(torch.ones(3, 4))
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert (loss.dtype, layer.weight.grad.dtype) == (torch.float32, torch.float32)


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no device tpu7"):
        pick_device("tpu7")
    assert pick_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert pick_device("auto") == CPU
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            pick_device("cuda")


@pytest.mark.sim
def test_what_was_measured_is_recorded_and_kept_by_a_run_that_goes_on(tmp_path: Path, monkeypatch) -> None:
    fast = Hardware(CPU, "bfloat16", {"float32": 2.0, "bfloat16": 1.0})
    monkeypatch.setattr("vlm_spec_decode.train.hardware.measured", lambda device, forward: fast)
    config = replace(SMALL, out=tmp_path)
    run_text(replace(config, stop_after=1))
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["device"], record["precision"], record["step_ms"]) == ("cpu", "bfloat16", fast.step_ms)
    monkeypatch.setattr(
        "vlm_spec_decode.train.hardware.measured", lambda device, forward: pytest.fail("again")
    )
    assert run_text(config)["precision"] == "bfloat16"
    assert load_checkpoint(tmp_path / "checkpoint.pt")["precision"] == "bfloat16"


@pytest.mark.sim
def test_a_whole_training_measures_for_itself(tmp_path: Path) -> None:
    record = run_text(replace(SMALL, out=tmp_path, steps=1))
    assert record["precision"] in {"float32", "bfloat16"}
    assert all(took > 0 for took in record["step_ms"].values())
    assert len(record["step_ms"]) == 2


def test_attention_of_a_forward_pass_in_bfloat16_is_computed_in_float32() -> None:
    """Its inputs are rounded to bfloat16, its sums are not, and gradients come back in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    module = LlamaForCausalLM._from_config(config, attn_implementation=ATTENTION).model.layers[0].self_attn
    attend = AttentionInterface()[ATTENTION]
    rounded = [torch.randn(1, 2, 5, 16).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(module, *rounded, None, scaling=0.25)
    exact, _ = attend(module, *(one.float() for one in rounded), None, scaling=0.25)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    found.sum().backward()
    assert all(one.grad is not None and one.grad.dtype == torch.bfloat16 for one in rounded)

"""Early exits for a trained target: one linear adapter per exit in front of the shared norm and head.

The backbone is frozen: what the target says cannot change. Adapters learn the final layer's distribution
from states of training frames, and are calibrated on frames that they have not learned from: how often an
exit that is so sure is right. Follows 2505.21594, section 4.1, with Kangaroo's adapters (2404.18911).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from vlm_spec_decode.models.parts import CALIBRATION_FILE, EXITS_FILE
from vlm_spec_decode.train.batches import Batch, Batcher
from vlm_spec_decode.train.config import ExitsConfig
from vlm_spec_decode.train.frames import open_frames
from vlm_spec_decode.train.hardware import pick_device
from vlm_spec_decode.train.network import group_outputs, image_features

BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
_ROWS = 1024
_RATE = 3e-3


@dataclass(slots=True)
class States:
    """What layers hold at positions of answers: [M, width] per exit layer, and the final logits [M, V]."""

    by_layer: dict[int, torch.Tensor] = field(default_factory=dict)
    final: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def run_exits(config: ExitsConfig) -> dict[str, Any]:
    """Train and calibrate exits for the target in `config.target`; write them into its folder."""
    torch.set_num_threads(config.threads)
    network = LlavaForConditionalGeneration.from_pretrained(config.target, attn_implementation="sdpa")
    network.to(pick_device(config.device)).eval().requires_grad_(False)
    depth = len(network.model.language_model.layers)
    layers = tuple(sorted({round(share * depth) for share in config.shares}))
    tokenizer = AutoTokenizer.from_pretrained(config.target)
    batcher = Batcher(open_frames(config.data), tokenizer, config.dialogues)
    learned = _gather(network, _batches(batcher, config, 0, config.batches), layers)
    unseen = _gather(network, _batches(batcher, config, config.batches, config.batches // 4), layers)
    adapters = {layer: _fit(network, layer, learned, config) for layer in layers}
    figures = {
        str(layer): _calibrate(network, adapter, unseen.by_layer[layer], unseen.final)
        for layer, adapter in adapters.items()
    }
    _write(config.target, adapters, figures)
    return {f"exit_{layer}_agrees": figures[str(layer)]["agrees"] for layer in layers}


def _batches(batcher: Batcher, config: ExitsConfig, first: int, count: int) -> Iterator[Batch]:
    for number in tqdm(range(first, first + count), desc="states", mininterval=5):
        yield batcher.draw(np.random.default_rng([config.seed, 0xE417, number]), config.batch)


@torch.inference_mode()
def _gather(network: Any, batches: Iterator[Batch], layers: tuple[int, ...]) -> States:
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    finals = []
    for batch in batches:
        moved = batch.to(network.device)
        features = image_features(network, moved.pixels)
        for group, output in group_outputs(network, features, moved, output_hidden_states=True):
            rows = group.labels >= 0
            for layer in layers:
                parts[layer].append(output.hidden_states[layer][rows])
            finals.append(network.lm_head(output.last_hidden_state[rows]))
    return States({layer: torch.cat(found) for layer, found in parts.items()}, torch.cat(finals))


def _fit(network: Any, layer: int, states: States, config: ExitsConfig) -> nn.Linear:
    """Return the adapter whose logits come nearest the final ones: half distribution, half first choice."""
    given, wanted = states.by_layer[layer].clone(), states.final.clone()
    width = given.shape[1]
    torch.manual_seed(config.seed)
    adapter = nn.Linear(width, width, device=given.device)
    nn.init.zeros_(adapter.weight)
    nn.init.zeros_(adapter.bias)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    rng = torch.Generator().manual_seed(config.seed)
    for _ in tqdm(range(config.steps), desc=f"exit {layer}", mininterval=5):
        rows = torch.randint(len(given), (min(_ROWS, len(given)),), generator=rng).to(given.device)
        logits = exit_logits(network, adapter, given[rows])
        soft = functional.cross_entropy(logits, wanted[rows].softmax(-1))
        hard = functional.cross_entropy(logits, wanted[rows].argmax(-1))
        optimizer.zero_grad()
        (soft + hard).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return adapter.requires_grad_(False)


def exit_logits(network: Any, adapter: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Return logits [n, vocab] of states [n, width] at an exit, as `models.decoder` computes them."""
    logits: torch.Tensor = network.lm_head(network.model.language_model.norm(states + adapter(states)))
    return logits


@torch.inference_mode()
def _calibrate(network: Any, adapter: nn.Linear, given: torch.Tensor, final: torch.Tensor) -> dict[str, Any]:
    """Say how often the exit's first choice is the final one, and how often the final one is its k-th."""
    logits = exit_logits(network, adapter, given)
    confidence = logits.softmax(-1).max(-1).values
    wanted = final.argmax(-1)
    rank = (logits > logits.gather(1, wanted[:, None])).sum(-1)
    right = rank == 0
    bins = []
    for low, high in pairwise(BINS):
        inside = (confidence >= low) & ((confidence < high) | (high == BINS[-1]))
        count = int(inside.sum())
        agrees = round(float(right[inside].float().mean()), 4) if count else None
        bins.append({"from": low, "to": high, "share": round(count / len(rank), 4), "agrees": agrees})
    ranks = [round(float((rank == k).float().mean()), 4) for k in range(4)]
    return {"agrees": round(float(right.float().mean()), 4), "final_is_kth": ranks, "by_confidence": bins}


def _write(folder: Path, adapters: dict[int, nn.Linear], figures: dict[str, Any]) -> None:
    """Write adapters and calibration beside the weights; each file is complete or the old one."""
    tensors = {}
    for layer, adapter in adapters.items():
        tensors[f"layers.{layer}.weight"] = adapter.weight.half().cpu().contiguous()
        tensors[f"layers.{layer}.bias"] = adapter.bias.half().cpu().contiguous()
    partial = folder / f"{EXITS_FILE}.partial"
    save_file(tensors, partial)
    partial.chmod(0o644)
    partial.replace(folder / EXITS_FILE)
    text = folder / f"{CALIBRATION_FILE}.partial"
    text.write_text(json.dumps({"layers": figures}, indent=1) + "\n")
    text.replace(folder / CALIBRATION_FILE)

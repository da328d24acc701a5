"""Early exits for a trained target: one linear adapter per exit in front of the shared norm and head.

The backbone is frozen: the target's answers cannot change. Adapters learn the final layer's distribution
from the layers' states at answers, and are calibrated on other answers: how often an exit with a given
confidence is right. Follows 2505.21594, section 4.1, with Kangaroo's adapters (2404.18911).

States come from the teacher's answers, many dialogues of a frame at once, for a VLM that `vsd train` made;
for every other model from its own answers, restricted to the action language, about rooms given as frames or
as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.models.checkpoint import (
    CALIBRATION_FILE,
    EXITS_FILE,
    TRAINING_RECORD,
    named,
    read_config,
)
from vlm_spec_decode.models.engines.base import LoadOptions
from vlm_spec_decode.models.engines.torch_loop import VlmModel, require_own_loop
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.registry import family_class
from vlm_spec_decode.models.spec import parse_spec
from vlm_spec_decode.train.batches import Batch, Batcher, group_outputs, image_features
from vlm_spec_decode.train.config import EvaluateConfig, ExitsConfig
from vlm_spec_decode.train.evaluate import Pair, decode, questions
from vlm_spec_decode.train.frames import open_frames
from vlm_spec_decode.train.hardware import pick_device
from vlm_spec_decode.train.spoken_dialogues import drawer_of
from vlm_spec_decode.train.text_dataset import training_dialogues
from vlm_spec_decode.train.training_state import exporting, load_finished


@dataclass(frozen=True, slots=True)
class ExitStates:
    """Hidden states at positions of answers: [M, width] per exit layer; `final` of the last layer, normed."""

    by_layer: Mapping[int, torch.Tensor]
    final: torch.Tensor


@torch.inference_mode()
def states_of_batches(network: Any, batches: Iterable[Batch], layers: tuple[int, ...]) -> ExitStates:
    """Return the states of a tiny LLaVA at the teacher's answers."""
    found = []
    for batch in batches:
        moved = batch.to(network.device)
        features = image_features(network, moved.pixels)
        for group, output in group_outputs(network, features, moved, output_hidden_states=True):
            rows = group.labels >= 0
            by_layer = {layer: output.hidden_states[layer][rows] for layer in layers}
            found.append(ExitStates(by_layer, output.last_hidden_state[rows]))
    return _concatenated(found)


def states_of_answers(model: VlmModel, asked: Iterable[Observation]) -> ExitStates:
    """Return the states of any model, at its exit layers, for its own answers."""
    pair, found = Pair.of(model, model), []
    for observation in asked:
        answer = decode(pair, observation, pair.params()).tokens
        found.append(states_of_answer(model, observation, answer))
    return _concatenated(found)


def states_of_answer(model: VlmModel, observation: Observation, answer: Tokens) -> ExitStates:
    """Return the states that predict each token of one answer."""
    context = model.open(observation)
    try:
        context.score((), answer[:-1], tuple(range(len(answer) - 1)))
        by_layer = {layer: context.states(layer) for layer in model.card.exit_layers}
        return ExitStates(by_layer, context.states(model.card.num_layers))
    finally:
        context.close()


def observations(config: ExitsConfig, count: int, *, sees: bool) -> Iterator[Observation]:
    """Yield observations of training rooms for a model."""
    if sees:
        seen = questions(EvaluateConfig(config.target, None, frames=count, first_seed=config.seed))
        asked = (question.observation for question in seen)
    else:
        described = training_dialogues(np.random.default_rng([config.seed, 0xE417]), count, poses=1, each=1)
        asked = (dialogue.observation for dialogue in described)
    yield from tqdm(asked, total=count, desc="answers", mininterval=5)


def _concatenated(found: list[ExitStates]) -> ExitStates:
    layers = found[0].by_layer
    by_layer = {layer: torch.cat([states.by_layer[layer] for states in found]) for layer in layers}
    return ExitStates(by_layer, torch.cat([states.final for states in found]))


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """A model's final norm, its head and what follows it, such as a softcap: its exits share all three."""

    norm: nn.Module
    head: nn.Module
    scores: Callable[[torch.Tensor], torch.Tensor] | None = None

    def logits(self, states: torch.Tensor, adapter: nn.Linear | None = None) -> torch.Tensor:
        """Return logits [n, vocab] of states [n, width]: of an exit with its adapter, else of the end."""
        if adapter is not None:
            # norm(h + A h + b): a residual, in float32 so that small corrections are not rounded away.
            states = states.float()
            like = next(self.norm.parameters())
            states = self.norm((states + adapter(states)).to(like.dtype))
        logits: torch.Tensor = self.head(states)
        return (self.scores(logits) if self.scores else logits).float()


BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
_ROWS = 1024
_RATE = 3e-3
_RATE_WIDTH = 128
"""Beyond this width the rate falls in proportion to it: more weights move each state of a wider adapter."""

_UNSEEN_SHARE = 4
"""Number of training batches for each batch that is used for calibration only."""


def run_exits(config: ExitsConfig) -> dict[str, Any]:
    """Train and calibrate exits for the target in `config.target`; write them into its folder.

    A VLM that `vsd train` made learns from the frames in `config.data`; any other checkpoint, which may be
    named with options, from its own answers. Raises ModelError if it cannot be loaded or written to.
    """
    torch.set_num_threads(config.threads)
    folder = Path(parse_spec(str(config.target), LoadOptions()).source)
    if not folder.is_dir():
        raise ModelError(f"exits are written beside the weights, and there is no folder {folder}")
    with named(str(folder)):
        is_ours = family_class(read_config(folder)).sees and (folder / TRAINING_RECORD).is_file()
    head, learned, unseen = _from_frames(config, folder) if is_ours else _from_answers(config)
    adapters = {layer: _fit(head, layer, learned, config) for layer in sorted(learned.by_layer)}
    figures = {str(layer): _calibrate(head, adapter, layer, unseen) for layer, adapter in adapters.items()}
    _write(folder, adapters, figures)
    return {f"exit_{layer}_agrees": figures[str(layer)]["agrees"] for layer in adapters}


def _from_frames(config: ExitsConfig, folder: Path) -> tuple[LanguageHead, ExitStates, ExitStates]:
    network = load_finished(LlavaForConditionalGeneration, folder)
    network.to(pick_device(config.device)).eval().requires_grad_(False)
    depth = len(network.model.language_model.layers)
    layers = tuple(sorted({round(share * depth) for share in config.shares}))
    tok = AutoTokenizer.from_pretrained(folder)
    batcher = Batcher(open_frames(config.data), tok, config.dialogues, drawer_of(folder))
    learned = states_of_batches(network, _batches(batcher, config, 0, config.batches), layers)
    count = config.batches // _UNSEEN_SHARE
    unseen = states_of_batches(network, _batches(batcher, config, config.batches, count), layers)
    return LanguageHead(network.model.language_model.norm, network.lm_head), learned, unseen


def _from_answers(config: ExitsConfig) -> tuple[LanguageHead, ExitStates, ExitStates]:
    depths = "/".join(f"{100 * share:.0f}" for share in config.shares)
    device = str(pick_device(config.device))
    model = require_own_loop(
        load_model(f"{config.target},exits={depths}", device=device, threads=config.threads)
    )
    learned = config.batches * config.batch
    asked = observations(config, learned + learned // _UNSEEN_SHARE, sees=model.sees)
    head = LanguageHead(model.decoder.stack.norm, model.decoder.head, model.decoder.family.scores)
    return head, states_of_answers(model, islice(asked, learned)), states_of_answers(model, asked)


def _batches(batcher: Batcher, config: ExitsConfig, first: int, count: int) -> Iterator[Batch]:
    for number in tqdm(range(first, first + count), desc="states", mininterval=5):
        yield batcher.draw(np.random.default_rng([config.seed, 0xE417, number]), config.batch)


def _fit(head: LanguageHead, layer: int, states: ExitStates, config: ExitsConfig) -> nn.Linear:
    """Return the adapter trained on the final logits: half on the distribution, half on the first choice."""
    given, final = states.by_layer[layer].clone(), states.final.clone()
    width = given.shape[1]
    torch.manual_seed(config.seed)
    adapter = nn.Linear(width, width, device=given.device)
    # With a zero adapter the exit is the hidden state through norm and head; training starts from that.
    nn.init.zeros_(adapter.weight)
    nn.init.zeros_(adapter.bias)
    rate = _RATE * min(1.0, _RATE_WIDTH / width)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    rng = torch.Generator().manual_seed(config.seed)
    for _ in tqdm(range(config.steps), desc=f"exit {layer}", mininterval=5):
        rows = torch.randint(len(given), (min(_ROWS, len(given)),), generator=rng).to(given.device)
        logits, wanted = head.logits(given[rows], adapter), head.logits(final[rows])
        # CE(final distribution, exit) + CE(final first choice, exit).
        soft = functional.cross_entropy(logits, wanted.softmax(-1))
        hard = functional.cross_entropy(logits, wanted.argmax(-1))
        optimizer.zero_grad()
        (soft + hard).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return adapter.requires_grad_(False)


@torch.inference_mode()
def _calibrate(head: LanguageHead, adapter: nn.Linear, layer: int, states: ExitStates) -> dict[str, Any]:
    """Return how often the exit's first choice is the final one, and how often the final one is its k-th."""
    confidence, rank = (
        torch.cat(part) for part in zip(*_confidences_and_ranks(head, adapter, layer, states), strict=True)
    )
    right = rank == 0
    bins = []
    for low, high in pairwise(BINS):
        # Bins are [low, high), but the last one holds certainty itself.
        inside = (confidence >= low) & ((confidence < high) | (high == BINS[-1]))
        count = int(inside.sum())
        agrees = round(float(right[inside].float().mean()), 4) if count else None
        bins.append({"from": low, "to": high, "share": round(count / len(rank), 4), "agrees": agrees})
    ranks = [round(float((rank == k).float().mean()), 4) for k in range(4)]
    return {"agrees": round(float(right.float().mean()), 4), "final_is_kth": ranks, "by_confidence": bins}


def _confidences_and_ranks(
    head: LanguageHead, adapter: nn.Linear, layer: int, states: ExitStates
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield, some rows at a time, the exit's confidence and the rank of the final choice in its logits."""
    for given, final in zip(
        *(torch.split(part, _ROWS) for part in (states.by_layer[layer], states.final)), strict=True
    ):
        logits, wanted = head.logits(given, adapter), head.logits(final).argmax(-1)
        # Rank 0: nothing scores higher than the final choice.
        rank = (logits > logits.gather(1, wanted[:, None])).sum(-1)
        yield logits.softmax(-1).max(-1).values, rank


def _write(folder: Path, adapters: dict[int, nn.Linear], figures: dict[str, Any]) -> None:
    """Write adapters and calibration beside the weights, when both are complete."""
    tensors = {}
    for layer, adapter in adapters.items():
        tensors[f"layers.{layer}.weight"] = adapter.weight.half().cpu().contiguous()
        tensors[f"layers.{layer}.bias"] = adapter.bias.half().cpu().contiguous()
    with exporting(folder) as made:
        save_file(tensors, made / EXITS_FILE)
        (made / CALIBRATION_FILE).write_text(json.dumps({"layers": figures}, indent=1) + "\n")

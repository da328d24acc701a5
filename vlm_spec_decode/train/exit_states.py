"""What layers hold while a model answers: the material that early exits are learned from.

Of a VLM that `vsd train` made, at the teacher's answers, many dialogues of a frame at once. Of every other
model at the answers that it gives itself, held to the action language, in rooms that it is shown or told of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.models.vlm import VlmModel
from vlm_spec_decode.train.agreement import Pair, decode
from vlm_spec_decode.train.batches import Batch
from vlm_spec_decode.train.config import EvaluateConfig, ExitsConfig
from vlm_spec_decode.train.evaluate import questions
from vlm_spec_decode.train.network import group_outputs, image_features
from vlm_spec_decode.train.spoken import training_dialogues


@dataclass(frozen=True, slots=True)
class States:
    """What layers hold at places in answers: [M, width] per exit layer, `final` of the last one, normed."""

    by_layer: Mapping[int, torch.Tensor]
    final: torch.Tensor


@torch.inference_mode()
def of_batches(network: Any, batches: Iterable[Batch], layers: tuple[int, ...]) -> States:
    """Return the states of a tiny LLaVA at the teacher's answers."""
    found = []
    for batch in batches:
        moved = batch.to(network.device)
        features = image_features(network, moved.pixels)
        for group, output in group_outputs(network, features, moved, output_hidden_states=True):
            rows = group.labels >= 0
            by_layer = {layer: output.hidden_states[layer][rows] for layer in layers}
            found.append(States(by_layer, output.last_hidden_state[rows]))
    return _joined(found)


def of_answers(model: VlmModel, asked: Iterable[Observation]) -> States:
    """Return the states of any model, at its exit layers, at the answers that it gives itself."""
    pair, found = Pair.of(model, model), []
    for observation in asked:
        answer = decode(pair, observation, pair.params()).tokens
        found.append(at_answer(model, observation, answer))
    return _joined(found)


def at_answer(model: VlmModel, observation: Observation, answer: Tokens) -> States:
    """Return the states from which each token of one answer was chosen."""
    context = model.open(observation)
    try:
        context.score((), answer[:-1], tuple(range(len(answer) - 1)))
        by_layer = {layer: context.states(layer) for layer in model.card.exit_layers}
        return States(by_layer, context.states(model.card.num_layers))
    finally:
        context.close()


def observations(config: ExitsConfig, count: int, *, sees: bool) -> Iterator[Observation]:
    """Yield what a model is asked, in rooms that may be trained on."""
    if sees:
        seen = questions(EvaluateConfig(config.target, None, frames=count, first_seed=config.seed))
        asked = (question.observation for question in seen)
    else:
        told = training_dialogues(np.random.default_rng([config.seed, 0xE417]), count, poses=1, each=1)
        asked = (dialogue.observation for dialogue in told)
    yield from tqdm(asked, total=count, desc="answers", mininterval=5)


def _joined(found: list[States]) -> States:
    layers = found[0].by_layer
    by_layer = {layer: torch.cat([states.by_layer[layer] for states in found]) for layer in layers}
    return States(by_layer, torch.cat([states.final for states in found]))


@dataclass(frozen=True, slots=True)
class Mouth:
    """A model's final norm and head, which its exits share."""

    norm: nn.Module
    head: nn.Module

    def logits(self, states: torch.Tensor, adapter: nn.Linear | None = None) -> torch.Tensor:
        """Return logits [n, vocab] of states [n, width]: of an exit with its adapter, else of the end."""
        if adapter is not None:
            states = states.float()
            like = next(self.norm.parameters())
            states = self.norm((states + adapter(states)).to(like.dtype))
        logits: torch.Tensor = self.head(states).float()
        return logits

"""Training that begins shallow: a language part's first layers first, and all of them later.

What a model has to learn about its language it learns in four layers as well as in twelve, in a third of the
time. Layers that join are copies of those below, whose outputs are nothing at first, so the model goes on
from where it was (stacking: arXiv 2405.15319; growth that preserves what is computed: arXiv 2305.02869).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm_spec_decode.train.config import Growth


def layers_at(growth: Growth, step: int, steps: int) -> int | None:
    """Return how many layers the `step`th of `steps` trains, counted from 1; None for all there are."""
    if not growth:
        return None
    return [layers for share, layers in growth if step > share * steps][-1]


class LayerStack:
    """How many layers of a model are in use. The others lie idle: they pass everything on."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        self._language = model.model.language_model
        self._layers: Sequence[nn.Module] = self._language.layers

    @property
    def used(self) -> int:
        """Layers in use, from below."""
        return int(self._language.config.num_hidden_layers)

    def begin(self, count: int) -> None:
        """Use the first `count` layers of a new model, and silence the rest."""
        for layer in self._layers[count:]:
            _silence(layer)
        self._use(count)

    def resume(self) -> None:
        """Use the layers that say something: whatever the plan says now, what was trained is kept."""
        self._use(sum(bool(layer.mlp.down_proj.weight.any()) for layer in self._layers))  # type: ignore[union-attr, operator]

    def use_all(self) -> None:
        """Have idle layers count as layers again; what the model says stays the same."""
        self._use(len(self._layers))

    def grow(self, count: int | None) -> None:
        """Add layers until there are `count`, each of them a silent copy of one below. None adds none."""
        if count is None or count <= self.used:
            return
        below = self._layers[: self.used]
        for layer, copied in zip(self._layers[self.used : count], cycle(below)):
            layer.load_state_dict(copied.state_dict())
            _silence(layer)
        self._use(count)

    def _use(self, count: int) -> None:
        self._language.config.num_hidden_layers = count


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    """Let a layer of a transformer add nothing to what it is given."""
    layer.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
    layer.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]

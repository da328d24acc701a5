"""The forward pass of training: dialogues through LLaVA's modules, and the vision tower's auxiliary heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, LlavaForConditionalGeneration

from vlm_spec_decode.models.tiny import NUM_IMAGE_TOKENS
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train.batches import BEARING_BINS, DISTANCE_BINS, Batch, Group

HEADS = (len(KINDS) + 1, len(COLOURS) + 1, BEARING_BINS, DISTANCE_BINS)


class VisionHeads(nn.Module):
    """What each patch shows, read off the vision tower by one linear layer; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(HEADS))

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over kind, colour, bearing and distance; `labels` [B, 64, 4]."""
        parts = self.linear(features).split(HEADS, dim=-1)
        losses = [
            functional.cross_entropy(part.flatten(0, 1), labels[..., i].flatten(), ignore_index=-100)
            for i, part in enumerate(parts)
        ]
        return torch.stack(losses).mean()


def image_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the tower's patch features [B, 64, width], as LLaVA selects them (no class token)."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    features: torch.Tensor = states[:, 1:]
    return features


def logits_of(model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return logits [M, vocab] of the answers' tokens, in the order of `batch.labels`.

    The images' keys and values are computed once [B, 64] and read by every dialogue about them.
    """
    parts = []
    for group, output in group_outputs(model, features, batch):
        parts.append(model.lm_head(output.last_hidden_state[group.labels >= 0]))
    return torch.cat(parts)


def group_outputs(
    model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch, **options: Any
) -> Iterator[tuple[Group, Any]]:
    """Yield each group with what the language model returns for it; `options` are that model's own."""
    language = model.model.language_model
    cache = DynamicCache()
    language(
        inputs_embeds=model.model.multi_modal_projector(features),
        position_ids=torch.arange(NUM_IMAGE_TOKENS, device=features.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    for group in batch.groups:
        past = DynamicCache()
        for number, layer in enumerate(cache.layers):
            past.update(layer.keys[group.images], layer.values[group.images], number)
        behind = torch.arange(group.tokens.shape[1], device=features.device)
        yield (
            group,
            language(
                inputs_embeds=language.embed_tokens(group.tokens),
                position_ids=NUM_IMAGE_TOKENS + behind[None],
                past_key_values=past,
                use_cache=True,
                **options,
            ),
        )


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the answers' tokens."""
    each = functional.cross_entropy(logits, batch.labels, reduction="none")
    return (each * batch.weights).sum() / batch.weights.sum()


def distil_loss(logits: torch.Tensor, wanted: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted cross-entropy against another model's distribution, half of it against its first choice.

    The first choice alone decides acceptance under greedy decoding; the rest of the distribution says how
    near the others were.
    """
    soft = functional.cross_entropy(logits, wanted.softmax(-1), reduction="none")
    hard = functional.cross_entropy(logits, wanted.argmax(-1), reduction="none")
    return ((soft + hard) / 2 * batch.weights).sum() / batch.weights.sum()

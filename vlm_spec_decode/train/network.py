"""The forward pass of training: packed dialogues through LLaVA's own modules, and the eye's teacher."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from vlm_spec_decode.models.tiny import NUM_IMAGE_TOKENS
from vlm_spec_decode.sim.scene import COLOURS, KINDS
from vlm_spec_decode.train.batches import BEARING_BINS, DISTANCE_BINS, Batch

HEADS = (len(KINDS) + 1, len(COLOURS) + 1, BEARING_BINS, DISTANCE_BINS)


class EyeHeads(nn.Module):
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


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    """Additive mask [B, 1, 64 + S, 64 + S]: causal, and each dialogue sees the image and itself."""
    image = segments.new_zeros(len(segments), NUM_IMAGE_TOKENS)
    whole = torch.cat([image, segments], dim=1)
    causal = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
    same = (whole[:, None, :] == whole[:, :, None]) | (whole[:, None, :] == 0)
    allowed = causal & same
    return torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)[:, None]


def logits_of(model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return logits [B, S, vocab] of the dialogues' tokens."""
    projected = model.model.multi_modal_projector(features)
    language = model.model.language_model
    embeds = torch.cat([projected, language.embed_tokens(batch.tokens)], dim=1)
    image = torch.arange(NUM_IMAGE_TOKENS).expand(len(batch.tokens), -1)
    positions = torch.cat([image, batch.positions], dim=1)
    hidden = language(
        inputs_embeds=embeds,
        attention_mask=block_mask(batch.segments),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, NUM_IMAGE_TOKENS:]
    logits: torch.Tensor = model.lm_head(hidden)
    return logits


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy of the answers' tokens."""
    flat = functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="none"
    )
    return (flat * batch.weights.flatten()).sum() / batch.weights.sum()


def distil_loss(logits: torch.Tensor, wanted: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted cross-entropy against another model's distribution, half of it against its first choice.

    The first choice alone decides acceptance under greedy decoding; the rest of the distribution says how
    near the others were.
    """
    rows = batch.labels.flatten() >= 0
    mine, theirs = logits.flatten(0, 1)[rows], wanted.flatten(0, 1)[rows]
    weights = batch.weights.flatten()[rows]
    soft = functional.cross_entropy(mine, theirs.softmax(-1), reduction="none")
    hard = functional.cross_entropy(mine, theirs.argmax(-1), reduction="none")
    return ((soft + hard) / 2 * weights).sum() / weights.sum()

"""Qwen3-VL, dense and mixture of experts: Qwen2-VL's prompt and positions, and deep features (DeepStack).

The vision tower returns, besides the rows that stand for the picture, further features that are added behind
the first text layers (DeepStack, 2406.04334). Its rotary positions have Qwen2-VL's three rows; that their
frequencies are interleaved is the rotary module's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from vlm_spec_decode.models.families.base import ImageFeatures, PlacedPrompt
from vlm_spec_decode.models.families.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    """Qwen2-VL's prompt and positions, and deep features of the vision tower."""

    def encode_image(self, body: Any, image: Mapping[str, Tensor]) -> ImageFeatures:
        """Return the rows of the picture and, for each of the first text layers, what is added behind it."""
        found = body.get_image_features(**image, return_dict=True)
        # `deepstack_visual_indexes` are layers of the tower; the n-th of them belongs to the n-th text layer.
        deep = tuple(torch.cat(list(features)) for features in found.deepstack_features)
        return ImageFeatures(torch.cat(list(found.pooler_output)), deep)

    def layer_hook(self, layer: int, hidden: Tensor, prompts: Seq[PlacedPrompt]) -> Tensor:
        """Add the deep features of this layer to the rows of the picture, in the pass that has the prompt."""
        for start, prompt in prompts:
            if prompt.image is not None and prompt.image_rows is not None and layer <= len(prompt.image.deep):
                rows = (start + prompt.image_rows).to(hidden.device)
                hidden = hidden.index_add(1, rows, prompt.image.deep[layer - 1].to(hidden)[None])
        return hidden

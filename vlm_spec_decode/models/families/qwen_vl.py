"""Qwen2-VL and Qwen2.5-VL: rotary positions in three rows, for time, height and width (M-RoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vlm_spec_decode.models.families.base import FULL, SLIDING, Family


class QwenVL(Family):
    """A VLM whose image rows share a moment and differ in height and width.

    Text stands at (t, t, t). An image that begins at position s has (s, s + row, s + column), and the text
    behind it goes on at s + max(rows, columns) (Qwen2-VL, 2409.12191, section 2.1). The prompt's highest
    position is thus below its number of tokens, and so are the answer's. A sliding window, which a config may
    ask for, counts tokens and not these positions.
    """

    layer_kinds: ClassVar[frozenset[str]] = frozenset({FULL, SLIDING})
    token_texts: ClassVar[Mapping[str, str]] = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    end_texts: ClassVar[frozenset[str]] = frozenset({"<|im_end|>", "<|endoftext|>"})
    max_aspect_ratio: ClassVar[int] = 200  # that of Transformers' `smart_resize`

    def positions(self, body: Any, ids: Tensor, image: Mapping[str, Tensor]) -> Tensor:
        """Return [3, 1, p]: Transformers' own computation from the image's grid of patches."""
        kinds = ids.eq(self.image_token_id or 0).int()[None]
        found: Tensor = body.get_rope_index(
            ids[None], mm_token_type_ids=kinds, image_grid_thw=image.get("image_grid_thw")
        )[0]
        return found

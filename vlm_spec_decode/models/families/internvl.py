"""InternVL 2.5, 3 and 3.5 in Transformers' layout: tiles in one run of image tokens, between `<img>` marks.

The picture is cut into up to 12 tiles of one size, in the grid that is nearest to its shape; behind them
comes the whole picture in one more tile (InternVL 1.5, 2404.16821). Transformers' processor cuts, but its
image processor alone does not: here it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from vlm_spec_decode.models.families.base import Family


class InternVL(Family):
    """An InternViT tower, a pixel shuffle with a projector, and a Qwen2 or Qwen3."""

    token_texts: ClassVar[Mapping[str, str]] = {"image_token_id": "<IMG_CONTEXT>"}
    end_texts: ClassVar[frozenset[str]] = frozenset({"<|im_end|>", "<|endoftext|>"})

    @property
    def marks(self) -> tuple[str, str]:
        """What begins and what ends a picture."""
        start = getattr(self.tokenizer, "start_image_token", None) or "<img>"
        end = getattr(self.tokenizer, "end_image_token", None) or "</img>"
        return start, end

    def check_config(self) -> None:
        """Raise ModelError also for a tokenizer without the marks around a picture."""
        super().check_config()
        missing = [mark for mark in self.marks if mark not in self.tokenizer.get_added_vocab()]
        if missing:
            raise self.refusal(f"its tokenizer has no token {missing[0]}")

    def image_processor(self) -> Any:
        """Return the image processor, which cuts into tiles. Raises ModelError if they may be too many."""
        images = super().image_processor()
        images.crop_to_patches = True
        tiles = images.max_patches + 1 if images.max_patches > 1 else 1
        self.check_room(tiles, self.config.image_seq_length)
        return images

    def image_text(self, image: Mapping[str, Tensor]) -> str:  # noqa: ARG002
        """Return the placeholder between its marks; it stands for the rows of all tiles."""
        start, end = self.marks
        return f"{start}{self.image_mark}{end}"

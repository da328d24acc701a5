"""SmolVLM, SmolVLM2 and Idefics3: a picture is cut into tiles, each a run of image tokens behind its mark.

A picture of 640x480 is 12 tiles in rows of four, then the whole picture once more, small: 13 runs. Each tile
gives the same number of rows, after pixel shuffle (SmolVLM, 2504.05299).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from vlm_spec_decode.models.families.base import Family

MARKS = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
"""What stands around a tile and before the whole picture, unless the tokenizer names other tokens."""


class Idefics3(Family):
    """A SigLIP tower, a pixel shuffle with one linear map, and a Llama."""

    exact_modules: ClassVar[tuple[str, ...]] = ("lm_head", "vision_model", "connector")
    token_texts: ClassVar[Mapping[str, str]] = {"image_token_id": "<image>"}

    @property
    def marks(self) -> Mapping[str, str]:
        """The marks by their names in the tokenizer."""
        return {name: getattr(self.tokenizer, name, None) or mark for name, mark in MARKS.items()}

    def check_config(self) -> None:
        """Raise ModelError also for a tokenizer without the mark that begins and ends a picture."""
        super().check_config()
        mark = self.marks["fake_image_token"]
        if mark not in self.tokenizer.get_added_vocab():
            raise self.refusal(f"its tokenizer has no token {mark}")

    def image_processor(self) -> Any:
        """Return the image processor, which tells how it has cut. Raises ModelError for too many tiles."""
        images, vision = super().image_processor(), self.config.vision_config
        images.return_row_col_info = True
        edge = images.max_image_size["longest_edge"]
        # The longer side is scaled to `size`, then both are rounded up to whole tiles.
        tiles = math.ceil(images.size["longest_edge"] / edge) ** 2 + 1 if images.do_image_splitting else 1
        self.check_room(tiles, (edge // vision.patch_size) ** 2 // self.config.scale_factor**2)
        return images

    def image_text(self, image: Mapping[str, Tensor]) -> str:
        """Return the marks of all tiles, each with one placeholder, as Transformers writes them."""
        marks = self.marks
        text: str = get_image_prompt_string(
            int(image["rows"]),
            int(image["cols"]),
            image_seq_len=1,
            fake_token_around_image=marks["fake_image_token"],
            image_token=self.image_mark,
            global_image_token=marks["global_image_token"],
        )
        return text

"""Image processors with the settings that families publish, and the image tokens of what they make.

Built from the settings alone: no weights, no Hub. Sources: `preprocessor_config.json` and `config.json` of
the checkpoints that are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from PIL import Image as PilImage
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil, LlavaNextProcessor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

Tensors = Mapping[str, Any]
Tokens = Callable[[Any, Tensors, PilImage.Image], int]


@dataclass(frozen=True, slots=True)
class ProcessorEntry:
    """One family's processor: how to make it, and the image tokens of what it returns for a picture.

    `grows`: a larger picture gives more pixels to the vision tower, up to a bound.
    """

    name: str
    checkpoints: str
    make: Callable[[], Any]
    tokens: Tokens
    grows: bool = True

    def image_tokens(self, picture: PilImage.Image) -> int:
        """Return how many tokens of the prompt a picture becomes."""
        processor = self.make()
        return self.tokens(processor, processor(images=picture, return_tensors="np"), picture)


def square(side: int, **more: Any) -> dict[str, Any]:
    """Return the settings of a processor that makes a square of `side` pixels."""
    return {"size": {"height": side, "width": side}, **more}


def _always(count: int) -> Tokens:
    return lambda _processor, _tensors, _picture: count


def _per_tile(count: int) -> Tokens:
    """Return a counter of families with the same number of tokens for each tile, the overview among them."""

    def tokens(_processor: Any, tensors: Tensors, _picture: PilImage.Image) -> int:
        shape = tensors["pixel_values"].shape  # [tiles, 3, h, w], or [1, tiles, 3, h, w]
        return count * int(math.prod(shape[:-3]))

    return tokens


def _merged_patches(processor: Any, tensors: Tensors, _picture: PilImage.Image) -> int:
    return int(tensors["image_grid_thw"].prod() // processor.merge_size**2)


def _soft_tokens(_processor: Any, tensors: Tensors, _picture: PilImage.Image) -> int:
    return int(tensors["num_soft_tokens_per_image"][0])


def _unpadded(kind: Any, side: int, patch: int, **more: Any) -> Tokens:
    """Return the counter of LLaVA's tiles without their bars, by Transformers' own processor class."""

    def tokens(processor: Any, _tensors: Tensors, picture: PilImage.Image) -> int:
        owner = SimpleNamespace(image_processor=processor, patch_size=patch, **more)
        owner._get_unpadded_features = lambda *sizes: kind._get_unpadded_features(owner, *sizes)
        count = int(kind._get_number_of_features(owner, picture.height, picture.width, side, side))
        # As both classes do before they write the placeholders: CLIP's own class token is left out.
        return count - 1 if more.get("vision_feature_select_strategy") == "default" else count

    return tokens


NEXT = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
ONEVISION = {"vision_aspect_ratio": "anyres_max_9", "num_image_tokens": 729}

PROCESSORS = (
    ProcessorEntry("ours", "shipped:target",
                   lambda: CLIPImageProcessorPil(**square(128, do_center_crop=False)),
                   _always(64), grows=False),
    ProcessorEntry("LLaVA-1.5", "llava-hf/llava-1.5-7b-hf",
                   lambda: CLIPImageProcessorPil(size={"shortest_edge": 336},
                                                 crop_size={"height": 336, "width": 336}),
                   _always(576), grows=False),
    ProcessorEntry("LLaVA-1.6", "llava-hf/llava-v1.6-vicuna-7b-hf",
                   lambda: LlavaNextImageProcessorPil(size={"shortest_edge": 336},
                                                      crop_size={"height": 336, "width": 336}),
                   _unpadded(LlavaNextProcessor, 336, 14, **NEXT)),
    ProcessorEntry("LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-7b-ov-hf",
                   lambda: LlavaOnevisionImageProcessorPil(**square(384)),
                   _unpadded(LlavaOnevisionProcessor, 384, 14, **ONEVISION)),
    ProcessorEntry("Qwen2-VL, Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct",
                   lambda: Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12_845_056), _merged_patches),
    ProcessorEntry("Qwen3-VL, Qwen3.5", "Qwen/Qwen3-VL-8B-Instruct",
                   lambda: Qwen2VLImageProcessorPil(
                       size={"shortest_edge": 65_536, "longest_edge": 16_777_216}, patch_size=16),
                   _merged_patches),
    ProcessorEntry("SmolVLM2 2.2B", "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
                   lambda: SmolVLMImageProcessorPil(size={"longest_edge": 1536},
                                                    max_image_size={"longest_edge": 384}),
                   _per_tile(81), grows=False),
    ProcessorEntry("SmolVLM2 256M, 500M", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
                   lambda: SmolVLMImageProcessorPil(size={"longest_edge": 2048},
                                                    max_image_size={"longest_edge": 512}),
                   _per_tile(64), grows=False),
    ProcessorEntry("InternVL3.5", "OpenGVLab/InternVL3_5-8B-HF",
                   lambda: GotOcr2ImageProcessorPil(**square(448, crop_to_patches=True, max_patches=12)),
                   _per_tile(256)),
    ProcessorEntry("Gemma 3", "google/gemma-3-4b-it", lambda: Gemma3ImageProcessorPil(**square(896)),
                   _always(256), grows=False),
    ProcessorEntry("Gemma 4", "google/gemma-4-E4B-it", Gemma4ImageProcessorPil, _soft_tokens, grows=False),
)  # fmt: skip

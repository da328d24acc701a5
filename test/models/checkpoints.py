"""Tiny random checkpoints, built from the families' own configs and saved as a user would find them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from vlm_spec_decode.core.types import Image, Observation

WORDS = [
    "<unk>",
    "<pad>",
    "</s>",
    "<s>",
    "<image>",
    "USER",
    "ASSISTANT",
    ":",
    "go",
    "to",
    "the",
    "red",
    "chair",
]
WORDS += [f"w{i}" for i in range(47)]
IMAGE_ID = WORDS.index("<image>")
PADDED_VOCAB = 64
TEXT = {
    "vocab_size": PADDED_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": 3,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}


def tokenizer(words: list[str] = WORDS, image: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    extra = ["<image>"] if image else []
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=extra, **special)


def jpeg(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    PilImage.fromarray(noise).save(out, "JPEG")
    return out.getvalue()


def observation(image: bool = True) -> Observation:
    return Observation(Image(jpeg(), 40, 30) if image else None, "go to the red chair", ("w1 w2",))


def llama(folder: Path, words: list[str] = WORDS, **changes: Any) -> Path:
    config = LlamaConfig(**TEXT | changes)
    return _save(folder, LlamaForCausalLM, config, None, words)


def llava(folder: Path, **changes: Any) -> Path:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_ID,
        vision_feature_layer=-1,
        **changes,
    )
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    return _save(folder, LlavaForConditionalGeneration, config, processor)


def llava_next(folder: Path, **changes: Any) -> Path:
    grid = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE_ID,
        image_grid_pinpoints=grid,
        **changes,
    )
    size = {"height": 32, "width": 32}
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=grid
    )
    return _save(folder, LlavaNextForConditionalGeneration, config, processor)


def qwen3(folder: Path) -> Path:
    return _save(folder, Qwen3ForCausalLM, Qwen3Config(**TEXT, head_dim=8), None)


def qwen2(folder: Path) -> Path:
    return _save(folder, Qwen2ForCausalLM, Qwen2Config(**TEXT), None)


WINDOW = 6
"""Shorter than any prompt here, and than most paths of a tree."""
TYPES = ["sliding_attention", "full_attention"]
ALTERNATING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": TYPES * 2}
IMAGE_BEGINS, IMAGE_ENDS = 58, 59


GEMMA3 = TEXT | ALTERNATING | {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
GEMMA4 = (
    TEXT
    | ALTERNATING
    | {"num_hidden_layers": 6, "layer_types": TYPES * 3, "num_kv_shared_layers": 2}
    | {"head_dim": 8, "global_head_dim": 16, "final_logit_softcapping": 5.0}
    | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": PADDED_VOCAB}
)


def mistral(folder: Path) -> Path:
    return _save(folder, MistralForCausalLM, MistralConfig(**TEXT, sliding_window=WINDOW), None)


def gemma3_text(folder: Path, **changes: Any) -> Path:
    return _save(folder, Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA3 | changes), None)


def gemma3(folder: Path, **images: Any) -> Path:
    siglip = {**CLIP, "model_type": "siglip_vision_model", "patch_size": 4}
    config = Gemma3Config(
        text_config=GEMMA3 | {"final_logit_softcapping": None},
        vision_config=siglip,
        mm_tokens_per_image=16,
        image_token_index=IMAGE_ID,
        boi_token_index=IMAGE_BEGINS,
        eoi_token_index=IMAGE_ENDS,
    )
    processor = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, **images)
    return _save(folder, Gemma3ForConditionalGeneration, config, processor)


def gemma4_text(folder: Path, **changes: Any) -> Path:
    return _save(folder, Gemma4ForCausalLM, Gemma4TextConfig(**GEMMA4 | changes), None)


def gemma4(folder: Path, **changes: Any) -> Path:
    vision = {**CLIP, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4}
    config = Gemma4Config(
        text_config=GEMMA4 | {"use_bidirectional_attention": "vision"} | changes,
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE_ID,
        boi_token_id=IMAGE_BEGINS,
        eoi_token_id=IMAGE_ENDS,
        video_token_id=61,
        audio_token_id=62,
    )
    processor = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    return _save(folder, Gemma4ForConditionalGeneration, config, processor)


def qwen2_vl(folder: Path) -> Path:
    vision = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return _qwen_vl(folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision)


def qwen2_5_vl(folder: Path) -> Path:
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    return _qwen_vl(
        folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision | {"window_size": 16}
    )


def qwen3_vl(folder: Path) -> Path:
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "depth": 3}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return _qwen_vl(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, vision)


def _qwen_vl(folder: Path, config: Any, network: Any, vision: dict[str, Any]) -> Path:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    shared = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    built = config(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=shared | vision | {"initializer_range": 0.3},
        image_token_id=IMAGE_ID,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    return _save(folder, network, built, _qwen_images())


RECURRENT = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}
"""Three delta nets below one layer that attends; fewer key heads than value heads, of another width."""


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def remembering(network: Any) -> Callable[[Any], Any]:
    """Return what builds a random network whose states last.

    As Transformers makes them they forget within a token, and tests would be blind to them.
    """

    def build(config: Any) -> Any:
        built = network(config)
        for name, tensor in built.named_parameters():
            if name.endswith("A_log"):
                tensor.data.copy_(torch.empty_like(tensor).uniform_(0.002, 0.2).log())
        return built

    return build


def qwen3_5_text(folder: Path) -> Path:
    return _save(folder, remembering(Qwen3_5ForCausalLM), Qwen3_5TextConfig(**TEXT | RECURRENT), None)


def qwen3_5(folder: Path) -> Path:
    return _qwen3_5(folder, Qwen3_5Config, Qwen3_5ForConditionalGeneration, {})


def qwen3_5_moe(folder: Path) -> Path:
    return _qwen3_5(folder, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, EXPERTS)


def _qwen3_5(folder: Path, config: Any, network: Any, changes: dict[str, Any]) -> Path:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
    }
    vision |= {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    built = config(
        text_config=TEXT | RECURRENT | changes,
        vision_config=vision | {"initializer_range": 0.3},
        image_token_id=IMAGE_ID,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    return _save(folder, remembering(network), built, _qwen_images())


def _qwen_images() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=256, max_pixels=1024)


def _save(folder: Path, network: Any, config: Any, processor: Any, words: list[str] = WORDS) -> Path:
    torch.manual_seed(0)
    built = network(config)
    for name, weight in built.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma 3's; left at zero, no picture would count
            torch.nn.init.normal_(weight, std=0.3)
    built.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder

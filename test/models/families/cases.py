"""The families under contract: how each one's tiny checkpoint is made, and what Transformers says of it.

To add a family, write a function that saves a checkpoint (network, tokenizer, image processor) into a folder
and add one `FamilyCase` to `CASES`: `test_contract.py` and `benchmarks/families.py` then run on it. Keep the
real vocabulary, the real ids of special tokens and the real shape of the tower's output; keep widths at 32 to
64, and picture sizes small, so that a pass takes a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4Processor,
    Gemma4TextConfig,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    MistralConfig,
    MistralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
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
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from test.models import checkpoints
from test.models.families import tokenizers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}
"""Of every language model here, whatever its family."""

QWEN_ROWS = 151_936
"""Rows of Qwen's heads; the tokenizer has fewer."""


@dataclass(frozen=True)
class FamilyCase:
    """One family's tiny checkpoint and its reference.

    `make` writes the checkpoint. `processor` is Transformers' processor, whose `replace_image_token` says
    what stands for a picture; None for a language-only family. `attributes` returns, of a `Reference`, what
    the processor would have read from its own files. `mark` is what the chat template writes for a picture,
    if that is not the placeholder of the rows. `image_kinds` names the argument that tells the
    reference which tokens are a picture's, if its forward wants one.
    """

    name: str
    make: Callable[[Path], None]
    processor: Any = None
    attributes: Callable[[Any], dict[str, Any]] | None = None
    mark: str = ""
    image_kinds: str = ""

    @property
    def sees(self) -> bool:
        """Whether pictures are part of its prompts."""
        return self.processor is not None


def save(folder: Path, network: Any, config: Any, tokenizer: Any, images: Any = None, seed: int = 0) -> None:
    """Write a checkpoint with random weights of this config."""
    torch.manual_seed(seed)
    built = network(config)
    for name, weight in built.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma 3's, which Transformers leaves at zero
            torch.nn.init.normal_(weight, std=0.3)
    built.generation_config.eos_token_id = tokenizer.eos_token_id
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if images is not None:
        images.save_pretrained(folder)


# Language-only.


def llama(folder: Path) -> None:
    save(folder, LlamaForCausalLM, LlamaConfig(**TEXT, vocab_size=32_000), tokenizers.sentencepiece())


def mistral(folder: Path) -> None:
    """Write a Mistral of the Tekken generation, all of whose layers see everything."""
    config = MistralConfig(**TEXT, vocab_size=131_072, sliding_window=None)
    save(folder, MistralForCausalLM, config, tokenizers.tekken())


def smollm3(folder: Path) -> None:
    """Write a SmolLM3: every second layer turns nothing by its position (NoPE)."""
    layers = {"no_rope_layers": [1, 0, 1, 0], "pad_token_id": 2}
    config = SmolLM3Config(**TEXT | layers, vocab_size=49_152)
    save(folder, SmolLM3ForCausalLM, config, tokenizers.smol())


def qwen2(folder: Path) -> None:
    tokenizer = tokenizers.qwen(plain=(*tokenizers.TOOLS, *tokenizers.CODE))
    save(folder, Qwen2ForCausalLM, Qwen2Config(**TEXT, vocab_size=QWEN_ROWS), tokenizer)


def qwen3_tokenizer() -> Any:
    """Return the tokenizer of Qwen3 and Qwen3-VL: 151,669 ids, `<|image_pad|>` is 151,655."""
    plain = (*tokenizers.TOOLS, *tokenizers.CODE, *tokenizers.THOUGHTS)
    return tokenizers.qwen(plain=plain, image="<|vision_start|><|image_pad|><|vision_end|>")


def qwen3(folder: Path) -> None:
    save(folder, Qwen3ForCausalLM, Qwen3Config(**TEXT, vocab_size=QWEN_ROWS), qwen3_tokenizer())


# Qwen's VLMs.

QWEN_MARKS = {
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
}
TOWER = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.3,
}


def _qwen_images() -> Any:
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=256, max_pixels=4096)


def _qwen_vl(
    folder: Path, network: Any, config: Any, tokenizer: Any, text: dict[str, Any], **vision: Any
) -> None:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    built = config(
        text_config=TEXT | {"vocab_size": QWEN_ROWS, "rope_parameters": rope} | text,
        vision_config=TOWER | vision,
        tie_word_embeddings=True,
        **QWEN_MARKS,
    )
    save(folder, network, built, tokenizer, _qwen_images())


def qwen2_vl(folder: Path) -> None:
    tokenizer = tokenizers.qwen(image="<|vision_start|><|image_pad|><|vision_end|>")
    vision = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    _qwen_vl(folder, Qwen2VLForConditionalGeneration, Qwen2VLConfig, tokenizer, {}, **vision)


def qwen2_5_vl(folder: Path) -> None:
    plain = (*tokenizers.TOOLS, *tokenizers.CODE)
    tokenizer = tokenizers.qwen(plain=plain, image="<|vision_start|><|image_pad|><|vision_end|>")
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 16}
    vision |= {"fullatt_block_indexes": [1]}
    # Of 7B and larger: 152,064 rows.
    _qwen_vl(
        folder,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig,
        tokenizer,
        {"vocab_size": 152_064},
        **vision,
    )


DEEP_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "depth": 3,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}


def qwen3_vl(folder: Path) -> None:
    _qwen_vl(folder, Qwen3VLForConditionalGeneration, Qwen3VLConfig, qwen3_tokenizer(), {}, **DEEP_TOWER)


def qwen3_vl_moe(folder: Path) -> None:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
    }
    _qwen_vl(
        folder, Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig, qwen3_tokenizer(), experts, **DEEP_TOWER
    )


# Tiles.

SIGLIP = dict(checkpoints.CLIP)
SMOL_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _smol_tiles(folder: Path, network: Any, config: Any, images: Any) -> None:
    """Write a SmolVLM: 49,280 ids, an answer ends with the last of them, `<image>` is 49,190."""
    tokenizer = tokenizers.smol(tokenizers.SMOLVLM, eos_token="<end_of_utterance>")
    tokenizer.chat_template = SMOL_TEMPLATE
    built = config(
        text_config={"model_type": "llama", **TEXT, "vocab_size": 49_280, "tie_word_embeddings": False},
        vision_config=SIGLIP,
        image_token_id=49_190,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    tiles = images(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    save(folder, network, built, tokenizer, tiles)


def _smol_attributes(reference: Any) -> dict[str, Any]:
    return {
        "image_seq_len": 4,
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "global_image_tag": "<global-img>",
    }


def smolvlm(folder: Path) -> None:
    _smol_tiles(folder, SmolVLMForConditionalGeneration, SmolVLMConfig, SmolVLMImageProcessorPil)


def idefics3(folder: Path) -> None:
    _smol_tiles(folder, Idefics3ForConditionalGeneration, Idefics3Config, Idefics3ImageProcessorPil)


INTERNVL = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def internvl(folder: Path) -> None:
    """Write an InternVL3.5 on a Qwen3: `<IMG_CONTEXT>` is 151,671, behind Qwen3's tokens."""
    plain = (*tokenizers.TOOLS, *tokenizers.CODE, *tokenizers.THOUGHTS)
    tokenizer = tokenizers.qwen(plain=plain, more=INTERNVL, image="<IMG_CONTEXT>\n")
    vision = SIGLIP | {"image_size": [32, 32], "patch_size": [8, 8]}
    built = InternVLConfig(
        text_config={"model_type": "qwen3", **TEXT, "vocab_size": QWEN_ROWS},
        vision_config=vision,
        image_token_id=151_671,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    # As in the shipped files: the cutting is left to whoever calls.
    tiles = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False, max_patches=6)
    save(folder, InternVLForConditionalGeneration, built, tokenizer, tiles)


def _internvl_attributes(reference: Any) -> dict[str, Any]:
    return {"image_seq_length": 4, "start_image_token": "<img>", "end_image_token": "</img>"}


PINPOINTS = [[32 * rows, 32 * columns] for rows in range(1, 4) for columns in range(1, 4)]


def llava_onevision(folder: Path) -> None:
    """Write a LLaVA-OneVision on a Qwen2: `<image>` is 151,646, and the head is cut behind `<video>`."""
    tokenizer = tokenizers.qwen(tokenizers.QWEN2, more=("<image>", "<video>"), image="<image>\n")
    built = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": 151_648},
        vision_config={"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False},
        image_token_index=151_646,
        video_token_index=151_647,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_4",  # so that a picture of 3x3 tiles is shrunk
        tie_word_embeddings=True,
    )
    tiles = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS)
    save(folder, LlavaOnevisionForConditionalGeneration, built, tokenizer, tiles)


def _onevision_attributes(reference: Any) -> dict[str, Any]:
    return {
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_4",
    }


# LLaVA 1.5 and 1.6: 32,000 ids, then `<image>` and `<pad>`, and a head of 32,064 rows.

LLAVA_IMAGE = 32_000


def _llava_parts() -> dict[str, Any]:
    return {
        "vision_config": CLIPVisionConfig(**SIGLIP),
        "text_config": LlamaConfig(**TEXT, vocab_size=32_064),
        "image_token_index": LLAVA_IMAGE,
    }


def _llava_tokenizer() -> Any:
    return tokenizers.sentencepiece(("<image>", "<pad>"), image="<image>\n")


def llava(folder: Path) -> None:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    )
    config = LlavaConfig(**_llava_parts(), vision_feature_layer=-1)
    save(folder, LlavaForConditionalGeneration, config, _llava_tokenizer(), images)


def llava_next(folder: Path) -> None:
    pinpoints = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    config = LlavaNextConfig(**_llava_parts(), image_grid_pinpoints=pinpoints)
    save(folder, LlavaNextForConditionalGeneration, config, _llava_tokenizer(), images)


def _llava_attributes(reference: Any) -> dict[str, Any]:
    return {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


# Gemma: windows shorter than any prompt, in every other layer.

GEMMA = TEXT | {
    "vocab_size": tokenizers.GEMMA_SIZE,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA3_MARKS = {255_999: "<start_of_image>", 256_000: "<end_of_image>"}
GEMMA4_MARKS = {
    255_999: "<|image>",
    256_000: "<|audio>",
    258_880: "<|image|>",
    258_881: "<|audio|>",
    258_882: "<image|>",
    258_883: "<audio|>",
    258_884: "<|video|>",
}
GEMMA4 = GEMMA | {
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": "vision",
}


def mistral_windows(folder: Path) -> None:
    config = MistralConfig(**TEXT, vocab_size=32_000, sliding_window=12)
    save(folder, MistralForCausalLM, config, tokenizers.sentencepiece())


def gemma3_text(folder: Path) -> None:
    config = Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=8)
    tokenizer = tokenizers.gemma(GEMMA3_MARKS, more=["<image_soft_token>"])
    save(folder, Gemma3ForCausalLM, config, tokenizer)


def gemma3(folder: Path) -> None:
    siglip = SIGLIP | {"model_type": "siglip_vision_model", "patch_size": 4}
    # 64 rows more than the tokenizer has ids, so that the placeholder is one of them.
    text = GEMMA | {"vocab_size": 262_208, "query_pre_attn_scalar": 8}
    config = Gemma3Config(text_config=text, vision_config=siglip, mm_tokens_per_image=16)
    tokenizer = tokenizers.gemma(GEMMA3_MARKS, "<start_of_image>", ["<image_soft_token>"])
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    save(folder, Gemma3ForConditionalGeneration, config, tokenizer, images)


def gemma3_processor(_reference: Any) -> dict[str, Any]:
    rows = "<image_soft_token>" * 16
    return {"full_image_sequence": f"\n\n<start_of_image>{rows}<end_of_image>\n\n"}


def gemma4_text(folder: Path) -> None:
    text = GEMMA4 | {"use_bidirectional_attention": None}
    save(folder, Gemma4ForCausalLM, Gemma4TextConfig(**text), tokenizers.gemma(GEMMA4_MARKS))


def gemma4(folder: Path) -> None:
    vision = SIGLIP | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4}
    config = Gemma4Config(text_config=GEMMA4, vision_config=vision, audio_config=None)
    images = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    tokenizer = tokenizers.gemma(GEMMA4_MARKS, "<|image|>")
    save(folder, Gemma4ForConditionalGeneration, config, tokenizer, images)


def gemma4_processor(_reference: Any) -> dict[str, Any]:
    return {"boi_token": "<|image>", "eoi_token": "<image|>"}


# Qwen3.5: three of four layers have a recurrent state.

QWEN3_5 = TEXT | checkpoints.RECURRENT | {"vocab_size": 248_320, "initializer_range": 0.2}
"""With the others' weights, its own noise between a path at once and token by token is above 1e-4."""


def qwen3_5_text(folder: Path) -> None:
    config = Qwen3_5TextConfig(**QWEN3_5)
    network = checkpoints.remembering(Qwen3_5ForCausalLM)
    save(folder, network, config, tokenizers.qwen3_5())


def qwen3_5(folder: Path) -> None:
    _qwen3_5(folder, Qwen3_5ForConditionalGeneration, Qwen3_5Config)


def qwen3_5_moe(folder: Path) -> None:
    _qwen3_5(folder, Qwen3_5MoeForConditionalGeneration, Qwen3_5MoeConfig, **checkpoints.EXPERTS)


def _qwen3_5(folder: Path, network: Any, config: Any, **text: Any) -> None:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
    }
    built = config(
        text_config=QWEN3_5 | text,
        vision_config=TOWER | vision,
        tie_word_embeddings=True,
        image_token_id=248_056,
        video_token_id=248_057,
        vision_start_token_id=248_053,
        vision_end_token_id=248_054,
    )
    tokenizer = tokenizers.qwen3_5(image="<|vision_start|><|image_pad|><|vision_end|>")
    save(folder, checkpoints.remembering(network), built, tokenizer, _qwen_images())


CASES = {
    case.name: case
    for case in (
        FamilyCase("llama", llama),
        FamilyCase("mistral", mistral),
        FamilyCase("smollm3", smollm3),
        FamilyCase("qwen2", qwen2),
        FamilyCase("qwen3", qwen3),
        FamilyCase("qwen2_vl", qwen2_vl, Qwen2VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen2_5_vl", qwen2_5_vl, Qwen2_5_VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen3_vl", qwen3_vl, Qwen3VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen3_vl_moe", qwen3_vl_moe, Qwen3VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("smolvlm", smolvlm, SmolVLMProcessor, _smol_attributes),
        FamilyCase("idefics3", idefics3, Idefics3Processor, _smol_attributes),
        FamilyCase("internvl", internvl, InternVLProcessor, _internvl_attributes),
        FamilyCase("llava_onevision", llava_onevision, LlavaOnevisionProcessor, _onevision_attributes),
        FamilyCase("llava", llava, LlavaProcessor, _llava_attributes),
        FamilyCase("llava_next", llava_next, LlavaNextProcessor, _llava_attributes),
        FamilyCase("mistral_windows", mistral_windows),
        FamilyCase("gemma3_text", gemma3_text),
        FamilyCase("gemma4_text", gemma4_text),
        FamilyCase("gemma3", gemma3, Gemma3Processor, gemma3_processor, "<start_of_image>", "token_type_ids"),
        FamilyCase("gemma4", gemma4, Gemma4Processor, gemma4_processor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen3_5_text", qwen3_5_text),
        FamilyCase("qwen3_5", qwen3_5, Qwen3VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen3_5_moe", qwen3_5_moe, Qwen3VLProcessor, image_kinds="mm_token_type_ids"),
    )
}
"""By name. A new family is one line here."""

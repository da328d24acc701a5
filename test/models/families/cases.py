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
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

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
    the processor would have read from its own files. `image_kinds` names the argument that tells the
    reference which tokens are a picture's, if its forward wants one.
    """

    name: str
    make: Callable[[Path], None]
    processor: Any = None
    attributes: Callable[[Any], dict[str, Any]] | None = None
    image_kinds: str = ""

    @property
    def sees(self) -> bool:
        """Whether pictures are part of its prompts."""
        return self.processor is not None


def save(folder: Path, network: Any, config: Any, tokenizer: Any, images: Any = None, seed: int = 0) -> None:
    """Write a checkpoint with random weights of this config."""
    torch.manual_seed(seed)
    built = network(config)
    built.generation_config.eos_token_id = tokenizer.eos_token_id
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if images is not None:
        images.save_pretrained(folder)


# Language-only.


def llama(folder: Path) -> None:
    save(folder, LlamaForCausalLM, LlamaConfig(**TEXT, vocab_size=32_000), tokenizers.sentencepiece())


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


def _qwen_vl(folder: Path, network: Any, config: Any, rows: int, tokenizer: Any, **vision: Any) -> None:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10_000.0}
    built = config(
        text_config=TEXT | {"vocab_size": rows, "rope_parameters": rope},
        vision_config=TOWER | vision,
        tie_word_embeddings=True,
        **QWEN_MARKS,
    )
    save(folder, network, built, tokenizer, _qwen_images())


def qwen2_vl(folder: Path) -> None:
    tokenizer = tokenizers.qwen(image="<|vision_start|><|image_pad|><|vision_end|>")
    vision = {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    _qwen_vl(folder, Qwen2VLForConditionalGeneration, Qwen2VLConfig, QWEN_ROWS, tokenizer, **vision)


def qwen2_5_vl(folder: Path) -> None:
    plain = (*tokenizers.TOOLS, *tokenizers.CODE)
    tokenizer = tokenizers.qwen(plain=plain, image="<|vision_start|><|image_pad|><|vision_end|>")
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 16}
    vision |= {"fullatt_block_indexes": [1]}
    # Of 7B and larger: 152,064 rows.
    _qwen_vl(folder, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, 152_064, tokenizer, **vision)


def qwen3_vl(folder: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "depth": 3}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    _qwen_vl(folder, Qwen3VLForConditionalGeneration, Qwen3VLConfig, QWEN_ROWS, qwen3_tokenizer(), **vision)


CASES = {
    case.name: case
    for case in (
        FamilyCase("llama", llama),
        FamilyCase("qwen3", qwen3),
        FamilyCase("qwen2_vl", qwen2_vl, Qwen2VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen2_5_vl", qwen2_5_vl, Qwen2_5_VLProcessor, image_kinds="mm_token_type_ids"),
        FamilyCase("qwen3_vl", qwen3_vl, Qwen3VLProcessor, image_kinds="mm_token_type_ids"),
    )
}
"""By name. A new family is one line here."""

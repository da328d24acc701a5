"""A checkpoint with Qwen2-VL's real tokenizer and 151,936 ids, random weights and a small width.

The ranks are those that the wheel `dashscope` carries (`requirements-test.lock`); merges are found from them
as byte-pair encoding would have joined them, so that `tokenizer.json` is as large as the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from test.models.families.tokenizers import CHATML, QWEN2_VL, qwen_ranks

HEAD_ROWS = 151_936


def write_checkpoint(folder: Path, width: int, layers: int, seed: int = 0) -> Path:
    """Write a Qwen2-VL of `width` (a multiple of 128) in float32, head and embedding tied."""
    tokenizer = _tokenizer()
    marks = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": HEAD_ROWS,
            "hidden_size": width,
            "intermediate_size": width * 35 // 6,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 128,
            "num_key_value_heads": max(1, width // 256),
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        vision_config={"depth": 2, "embed_dim": 128, "hidden_size": width, "num_heads": 4},
        image_token_id=marks["image_pad"],
        video_token_id=marks["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


@cache
def _tokenizer() -> Qwen2Tokenizer:
    ranks = qwen_ranks()
    letters = bytes_to_unicode()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [tuple(spelled[part] for part in _parts(token, ranks)) for token in ranks if len(token) > 1]
    tokenizer = Qwen2Tokenizer(vocab={spelled[token]: rank for token, rank in ranks.items()}, merges=merges)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in QWEN2_VL], special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML % "<|vision_start|><|image_pad|><|vision_end|>"
    return tokenizer


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that byte-pair encoding joins to `token`: what is left of all earlier merges."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]

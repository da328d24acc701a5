"""A tiny Qwen2-VL that vLLM can run: heads as wide as its kernels want them, and a real vocabulary."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from test.models.families import cases, tokenizers


def qwen2_vl(folder: Path) -> Path:
    """Write a checkpoint of 151,936 ids that sees."""
    tokenizer = tokenizers.qwen(image="<|vision_start|><|image_pad|><|vision_end|>")
    rope = {"rope_type": "default", "mrope_section": [8, 4, 4], "rope_theta": 10_000.0}
    text = {"hidden_size": 128, "head_dim": 32, "vocab_size": cases.QWEN_ROWS, "rope_parameters": rope}
    vision = {"embed_dim": 32, "hidden_size": 128, "mlp_ratio": 2, "num_heads": 1}
    config = Qwen2VLConfig(
        text_config=cases.TEXT | text,
        vision_config=cases.TOWER | vision,
        tie_word_embeddings=True,
        **cases.QWEN_MARKS,
    )
    images = cases._qwen_images()
    cases.save(folder, Qwen2VLForConditionalGeneration, config, tokenizer, images)
    return folder

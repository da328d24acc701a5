"""Language halves of real VLMs with random weights, made on the device: shapes from the published configs.

No file is read: the numbers below are those of the models' own `config.json`. Vision towers are left out, for
a picture passes them once an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.families.base import EmbeddedPrompt
from vlm_spec_decode.models.families.language import Language

QWEN2_5 = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "max_position_embeddings": 128_000,
}
QWEN3 = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    "max_position_embeddings": 262_144,
}


@dataclass(frozen=True)
class Shape:
    """A published language half. `exits` are the layers at 25, 50 and 75 % of its depth."""

    name: str
    stack_class: Any
    config: PreTrainedConfig
    is_tied: bool

    @property
    def exits(self) -> tuple[int, ...]:
        """Layers after which the model may be read early."""
        depth = self.config.num_hidden_layers
        return tuple(sorted({max(1, depth * part // 4) for part in (1, 2, 3)} - {depth}))


def _shape(
    name: str,
    classes: tuple[Any, Any],
    sizes: tuple[int, int, int, int, int],
    vocabulary: int,
    is_tied: bool,
    **more: Any,
) -> Shape:
    width, inner, layers, heads, shared = sizes
    config = classes[1](
        **{"num_key_value_heads": shared} | more,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
    )
    return Shape(name, classes[0], config, is_tied)


_QWEN2_5 = Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig
_QWEN3 = Qwen3VLTextModel, Qwen3VLTextConfig
_LLAMA = LlamaModel, LlamaConfig

SHAPES = (
    _shape("qwen2_5_vl_3b", _QWEN2_5, (2048, 11_008, 36, 16, 2), 151_936, True, **QWEN2_5),
    _shape("qwen2_5_vl_7b", _QWEN2_5, (3584, 18_944, 28, 28, 4), 152_064, False, **QWEN2_5),
    _shape("qwen3_vl_2b", _QWEN3, (2048, 6144, 28, 16, 8), 151_936, True, **QWEN3),
    _shape("qwen3_vl_8b", _QWEN3, (4096, 12_288, 36, 32, 8), 151_936, False, **QWEN3),
    _shape("llama_68m", _LLAMA, (768, 3072, 2, 12, 12), 32_000, False, max_position_embeddings=2048),
    _shape("llava_1_5_7b", _LLAMA, (4096, 11_008, 32, 32, 32), 32_064, False, max_position_embeddings=4096),
)

PAIRS = {
    "qwen2_5_vl_3b_7b": ("qwen2_5_vl_3b", "qwen2_5_vl_7b"),
    "qwen3_vl_2b_8b": ("qwen3_vl_2b", "qwen3_vl_8b"),
    "llama_68m_llava_1_5_7b": ("llama_68m", "llava_1_5_7b"),
}
"""Draft and target of each profile."""


def small(shape: Shape) -> Shape:
    """Return a shape of the same classes that a CPU runs in no time: three layers, narrow, 5,000 ids."""
    changes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": min(2, shape.config.num_key_value_heads),
        "head_dim": 16,
        "vocab_size": 5000,
    }
    raw = shape.config.to_dict() | changes
    if "mrope_section" in (rope := raw["rope_parameters"]):
        raw["rope_parameters"] = rope | {"mrope_section": [2, 3, 3]}
    for derived in ("layer_types", "model_type", "transformers_version"):
        raw.pop(derived, None)
    return Shape(shape.name, shape.stack_class, type(shape.config)(**raw), shape.is_tied)


def build(shape: Shape, device: torch.device, dtype: torch.dtype, *, is_pooled: bool | None) -> Decoder:
    """Return the decoder with random weights; nothing of it is ever in host memory if `device` is a GPU."""
    config = shape.config
    with torch.device("meta"):
        stack = shape.stack_class(config)
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    stack, head = (part.to(dtype).to_empty(device=device) for part in (stack, head))
    # What is made on the meta device has no numbers, and angles are not weights: they are made anew.
    stack.rotary_emb = type(stack.rotary_emb)(config=config).to(device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weights in stack.named_parameters():
            is_norm = weights.dim() == 1 and "bias" not in name
            weights.fill_(1.0) if is_norm else weights.normal_(0.0, 0.02)
        head.weight.normal_(0.0, 0.02)
    if shape.is_tied:
        head.weight = stack.embed_tokens.weight
    for part in (stack, head):
        part.eval().requires_grad_(False)
    family = Language.of_config(config)
    exits = dict.fromkeys(shape.exits)
    return Decoder(stack, head, exits, config.vocab_size, family, is_pooled=is_pooled)


def context_of(decoder: Decoder, prompt: int) -> VlmContext:
    """Return an answer's context below a prompt of so many tokens, which has been read."""
    ids = torch.arange(prompt, device=decoder.device) % decoder.vocab_size
    has_rows = "mrope_section" in decoder.stack.config.rope_parameters
    positions = torch.arange(prompt).expand(3, 1, -1) if has_rows else torch.arange(prompt)[None]
    context = VlmContext(decoder, lambda: EmbeddedPrompt(decoder.embed(ids), positions, ids))
    context.prefill()
    return context

"""Language-only checkpoints of Llama's shape: Llama (Vicuna), Qwen2, Qwen3, Mistral. They draft, unseeing."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoModelForCausalLM

from vlm_spec_decode.models.families.base import FULL, SLIDING, Family


class Language(Family):
    """A decoder stack and its head; an observation's image is left out."""

    sees = False

    @property
    def network_class(self) -> Any:
        """Return Transformers' class for language models."""
        return AutoModelForCausalLM

    def check_config(self) -> None:
        """Raise ModelError for what is not covered, such as a VLM that names itself a language model."""
        super().check_config()
        if "mm_vision_tower" in self.source.raw:
            raise self.refusal("the original LLaVA layout is not supported under this name: llava_llama only")


class WindowedLanguage(Language):
    """A language model whose config may give some or all layers a sliding window: Qwen2, Qwen3, Mistral."""

    layer_kinds: ClassVar[frozenset[str]] = frozenset({FULL, SLIDING})

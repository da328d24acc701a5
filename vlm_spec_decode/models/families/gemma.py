"""Gemma 3 and Gemma 4, and the language-only checkpoints of Gemma 1, 3 and 4.

Most of their layers see a sliding window only, and turn queries and keys by other angles than the rest. The
rows of a picture see each other in both directions: in Gemma 3 in all layers, in Gemma 4 in those with a
window, and there only in the larger models. Gemma 4 also feeds every layer an embedding of the token itself,
and its last layers attend to the keys and values of earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import KVSharingDict
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from vlm_spec_decode.models.families.base import (
    FULL,
    SLIDING,
    AnswerCache,
    Family,
)
from vlm_spec_decode.models.families.language import Language
from vlm_spec_decode.models.kv_slots import AttentionSpan


class _Gemma(Family):
    """What all of them share: windows, and a checkpoint that must be causal."""

    layer_kinds: ClassVar[frozenset[str]] = frozenset({FULL, SLIDING})

    def check_config(self) -> None:
        """Raise ModelError also for a text encoder, in which every token sees all others."""
        super().check_config()
        if getattr(self.config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
            raise self.refusal("all of its tokens see each other in both directions, so it writes no text")


class _Softcap(_Gemma):
    """What a softcap of the logits adds, where Transformers' own `forward` has one."""

    applied: ClassVar[frozenset[str]] = frozenset({"final_logit_softcapping"})

    @cached_property
    def softcap(self) -> float | None:
        """The bound of the logits, None for none."""
        cap: float | None = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        return cap

    def scores(self, logits: Tensor) -> Tensor:
        """Return c tanh(logits / c), which lies between -c and c."""
        if self.softcap is None:
            return logits
        if logits.requires_grad:  # exits in training: the derivative needs the values in between
            return (logits / self.softcap).tanh() * self.softcap
        # In place: three copies of rows of 262,144 would cost twice the time.
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)


class GemmaLanguage(_Softcap, Language):
    """Gemma 1 and the language model of Gemma 3."""


class _Seeing(_Gemma):
    """What the VLMs share: marks around a picture's rows, in the prompt's text."""

    def check_config(self) -> None:
        """Raise ModelError also for a checkpoint without a vision tower, or a tokenizer without a mark."""
        super().check_config()
        if self.config.vision_config is None:
            raise self.refusal("it has no vision tower")
        for name in ("boi_token_id", "eoi_token_id"):
            if not self.mark(name):
                raise self.refusal(f"its tokenizer has no token {getattr(self.config, name)}, the {name}")

    def mark(self, name: str) -> str:
        """Return the token whose id the config has under this name, "" if the tokenizer does not know it."""
        token = getattr(self.config, name)
        known = token is not None and 0 <= token < len(self.tokenizer)
        return str(self.tokenizer.convert_ids_to_tokens(token)) if known else ""


class Gemma3(_Seeing):
    """A SigLIP tower and a Gemma 3, in which a picture is always of the same number of rows.

    With pan and scan, which an image processor's config may ask for, a long picture is shown whole and in
    crops, each with its own rows. Transformers applies no softcap here.
    """

    token_texts: ClassVar[Mapping[str, str]] = {
        "image_token_id": "<image_soft_token>",
        "boi_token_id": "<start_of_image>",
        "eoi_token_id": "<end_of_image>",
    }

    def image_processor(self) -> Any:
        """Return the image processor; what its file leaves open is as in Transformers' Gemma3Processor."""
        found = super().image_processor()
        for name, value in Gemma3Processor.images_kwargs.items():
            if getattr(found, name, None) is None:
                setattr(found, name, value)
        return found

    @cached_property
    def image_mark(self) -> str:
        """What the chat template writes for an image: the mark of its beginning."""
        return self.mark("boi_token_id")

    def image_text(self, image: Mapping[str, Tensor]) -> str:
        """Return the picture's placeholder between its marks, with what Gemma 3 was told of crops."""
        one = f"\n\n{self.image_mark}{self.mark('image_token_id')}{self.mark('eoi_token_id')}\n\n"
        crops = int(image["num_crops"].sum()) if "num_crops" in image else 0
        if not crops:
            return one
        rest = " ".join([one] * crops)
        return f"Here is the original image {one} and here are some crops to help you see better {rest}"

    def attention(self) -> Mapping[str, AttentionSpan]:
        """Return what rows see: a picture's rows each other, in all layers."""
        return {name: replace(span, image_blocks=True) for name, span in super().attention().items()}


class SharingCache(AnswerCache):
    """A cache in which some layers have no keys and values of their own, but see those of another.

    `sources` maps such a layer to the one that it sees; both count from 0.
    """

    def __init__(self, sources: Mapping[int, int]) -> None:
        super().__init__()
        self._sources = sources

    @property
    def sources(self) -> Mapping[int, int]:
        """Layers that have no keys and values of their own, and the one whose they see."""
        return self._sources


class _Gemma4(_Softcap):
    """What Gemma 4's decoder adds: embeddings per layer, and layers that share keys and values."""

    applied: ClassVar[frozenset[str]] = frozenset(
        {"final_logit_softcapping", "num_kv_shared_layers", "hidden_size_per_layer_input"}
    )

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The ids that stand for something else than text, and are read as padding."""
        return ()

    @cached_property
    def kv_sources(self) -> Mapping[int, int]:
        """Which layer's keys and values a layer without its own sees, both from 0."""
        types = self.layer_types
        # The last layers see those of the last layer of their own type that has some.
        first = len(types) - self.config.get_text_config().num_kv_shared_layers
        last = {types[layer]: layer for layer in range(first)}
        return {layer: last[types[layer]] for layer in range(first, len(types))}

    def cache(self) -> AnswerCache:
        """Return the empty cache of one answer."""
        return SharingCache(self.kv_sources)

    def embed(self, stack: Any, ids: Tensor) -> Tensor:
        """Return the embeddings [n, width] of an answer's tokens [n]; a placeholder in it means nothing."""
        return super().embed(stack, self._text(stack, ids))

    def pass_context(self, stack: Any, hidden: Tensor, ids: Seq[Tensor]) -> tuple[Tensor | None, Any]:
        """Return the layers' own inputs [1, rows, layers, n], None if they have none, and room for keys."""
        if not stack.hidden_size_per_layer_input:
            return None, KVSharingDict()
        tokens = self._text(stack, torch.cat(list(ids)).to(hidden.device))
        own = stack.get_per_layer_inputs(tokens[None], None)
        return stack.project_per_layer_inputs(hidden, own), KVSharingDict()

    def layer_arguments(self, layer: int, context: tuple[Tensor | None, Any]) -> Mapping[str, Any]:
        """Return the layer's own input [1, rows, n], and where Transformers' layers leave keys for others."""
        inputs, shared = context
        own = None if inputs is None else inputs[:, :, layer - 1]
        return {"per_layer_input": own, "shared_kv_states": shared}

    def _text(self, stack: Any, ids: Tensor) -> Tensor:
        """Return `ids` with padding for placeholders, as Transformers' model reads them."""
        for placeholder in self.placeholders:
            ids = ids.masked_fill(ids == placeholder, stack.padding_idx)
        return ids


class Gemma4Language(_Gemma4, Language):
    """The language model of Gemma 4."""


class Gemma4(_Gemma4, _Seeing):
    """Gemma 4 with its vision tower, which keeps a picture's aspect ratio. Sound is not heard."""

    exact_modules: ClassVar[tuple[str, ...]] = (
        *Family.exact_modules,
        "embed_vision",
        "audio_tower",
        "embed_audio",
    )
    token_texts: ClassVar[Mapping[str, str]] = {
        "image_token_id": "<|image|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
    }

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The ids of images, videos and sounds."""
        found = (getattr(self.config, f"{kind}_token_id") for kind in ("image", "video", "audio"))
        return tuple(token for token in found if token is not None)

    def image_text(self, image: Mapping[str, Tensor]) -> str:  # noqa: ARG002
        """Return the picture's placeholder between its marks."""
        return f"{self.mark('boi_token_id')}{self.image_mark}{self.mark('eoi_token_id')}"

    def attention(self) -> Mapping[str, AttentionSpan]:
        """Return what rows see: in the larger models a picture's rows each other, where there is a window."""
        spans = dict(super().attention())
        if SLIDING in spans and self.config.get_text_config().use_bidirectional_attention == "vision":
            spans[SLIDING] = replace(spans[SLIDING], image_blocks=True)
        return spans

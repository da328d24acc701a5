"""From an observation to an embedded prompt: JPEG, chat template, token ids, image features.

Image features are cached by the content of the image: the same frame passes the vision tower once. Handles
the families' differences in vision and positions; the prompt's text is in `models/prompt.py`. The number of
image tokens is whatever the vision tower returns, so no family needs its own count.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image as PilImage
from torch import Tensor

from vlm_spec_decode.core.errors import ImageError, InstructionError
from vlm_spec_decode.core.images import DECODED
from vlm_spec_decode.core.types import Observation, Tokens
from vlm_spec_decode.models.context import EmbeddedPrompt
from vlm_spec_decode.models.prompt import PromptStyle, messages

LIMIT_BYTES = 256 * 1024 * 1024


class FeatureCache:
    """Features by the SHA-256 of the JPEG, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.hits = 0
        self.misses = 0
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, digest: bytes, compute: Callable[[], Tensor]) -> Tensor:
        """Return the features of this image, computed if they are not held."""
        features = self._held.pop(digest, None)
        if features is None:
            self.misses += 1
            features = compute()
        else:
            self.hits += 1
        self._held[digest] = features
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > self._limit_bytes:
            self._held.popitem(last=False)
        return features


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids with one placeholder for the image, the image processor's tensors, the image's digest."""

    ids: Tokens
    image: Mapping[str, Tensor]
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """One checkpoint's way from an observation to embeddings.

    `body` is the Transformers model without its head. `image_processor` is None for a language-only
    checkpoint: it then leaves an observation's image out, so that such a model can draft for a VLM.
    """

    body: Any
    tokenizer: Any
    image_processor: Any
    image_token_id: int | None
    max_tokens: int
    style: PromptStyle = PromptStyle.BARE
    features: FeatureCache = field(default_factory=FeatureCache)

    def render(self, observation: Observation) -> str:
        """Return the prompt's text, by the checkpoint's chat template or a plain one if it ships none."""
        seen = bool(self.image_processor is not None and observation.image is not None)
        template = self.tokenizer.chat_template
        said = messages(observation, self.style, system_turn=not template or "system" in template)
        turns = [_turn(message, seen, flat=self.image_processor is None) for message in said]
        if template:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return text
        image = self.tokenizer.convert_ids_to_tokens(self.image_token_id) if seen else ""
        return _plain(turns, image)

    def encode(self, observation: Observation) -> EncodedPrompt:
        """Decode, render and tokenize. Raises ImageError or InstructionError."""
        image: Mapping[str, Tensor] = {}
        digest = b""
        if self.image_processor is not None and observation.image is not None:
            digest = observation.image.digest
            image = self._preprocess(DECODED.picture(observation.image))
        text = self.render(observation)
        bos = self.tokenizer.bos_token
        ids = self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
        if self.image_token_id is not None and ids.count(self.image_token_id) != bool(image):
            raise InstructionError("the instruction contains the checkpoint's image token")
        self._check_length(len(ids))
        return EncodedPrompt(tuple(ids), image, digest)

    @torch.inference_mode()
    def embed(self, prompt: EncodedPrompt) -> EmbeddedPrompt:
        """Run the vision tower and put its features in the placeholder's place. Raises InstructionError."""
        device = next(self.body.parameters()).device
        ids = torch.tensor(prompt.ids, dtype=torch.long, device=device)
        if not prompt.image:
            return EmbeddedPrompt(self._lookup(ids), self._positions(ids, {}))
        image = {name: tensor.to(device) for name, tensor in prompt.image.items()}
        features = self.features.get(prompt.digest, lambda: self._see(image))
        at = prompt.ids.index(self.image_token_id or 0)
        ids = torch.cat([ids[:at], ids[at].expand(len(features)), ids[at + 1 :]])
        self._check_length(len(ids))
        embedded = self._lookup(ids)
        embedded[at : at + len(features)] = features.to(embedded)
        return EmbeddedPrompt(embedded, self._positions(ids, image))

    def _see(self, image: Mapping[str, Tensor]) -> Tensor:
        """Run the vision tower; return its features [image tokens, width]."""
        return torch.cat(list(self.body.get_image_features(**image, return_dict=True).pooler_output))

    def _preprocess(self, picture: PilImage.Image) -> Mapping[str, Tensor]:
        """Return the image processor's tensors. Raises ImageError for a shape that it cannot take."""
        try:
            tensors = self.image_processor(images=picture, return_tensors="pt")
        except ValueError as error:
            raise ImageError(str(error).splitlines()[0]) from error
        dtype = next(self.body.parameters()).dtype
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}

    def _lookup(self, ids: Tensor) -> Tensor:
        # The image's placeholder may lie beyond the last row: it is only ever replaced.
        known = ids if self.image_token_id is None else ids.masked_fill(ids == self.image_token_id, 0)
        embedded: Tensor = self.body.get_input_embeddings()(known)
        return embedded

    def _positions(self, ids: Tensor, image: Mapping[str, Tensor]) -> Tensor:
        """Return rotary positions [1, p]; [3, 1, p] for the Qwen2-VL families (time, height, width)."""
        if not hasattr(self.body, "get_rope_index"):
            return torch.arange(len(ids), device=ids.device)[None]
        kinds = ids.eq(self.image_token_id or 0).int()[None]
        positions: Tensor = self.body.get_rope_index(
            ids[None], mm_token_type_ids=kinds, image_grid_thw=image.get("image_grid_thw")
        )[0]
        return positions

    def _check_length(self, length: int) -> None:
        if length >= self.max_tokens:
            raise InstructionError(
                f"the prompt of {length} tokens leaves no room in {self.max_tokens} positions"
            )


def _turn(message: Mapping[str, Any], seen: bool, flat: bool) -> dict[str, Any]:
    """Return `message` without its image part unless `seen`; `flat` joins its text, for language models."""
    if isinstance(message["content"], str):
        return dict(message)
    parts = [part for part in message["content"] if seen or part["type"] != "image"]
    content = "".join(part["text"] for part in parts) if flat else parts
    return {**message, "content": content}


def _plain(turns: Seq[Mapping[str, Any]], image_token: str) -> str:
    """Render in the manner of Vicuna and LLaVA-1.5: "(rules) USER: <image>\\n… ASSISTANT:"."""
    lines = []
    for turn in turns:
        content = turn["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said = "".join(f"{image_token}\n" if part["type"] == "image" else part["text"] for part in parts)
        lines.append(said if turn["role"] == "system" else f"{turn['role'].upper()}: {said}")
    return " ".join([*lines, "ASSISTANT:"])

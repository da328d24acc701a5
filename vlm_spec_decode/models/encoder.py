"""From an observation to an embedded prompt: JPEG, chat template, token ids, image features.

Image features are cached by the content of the image: the same frame passes the vision tower once. What
differs between families is asked of the checkpoint's `Family`; the prompt's text is in `models/prompt.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import jinja2
import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor

from vlm_spec_decode.core.errors import ImageError, InstructionError
from vlm_spec_decode.core.images import DECODED
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, ImageLimits, Observation, Tokens
from vlm_spec_decode.models.families.base import EmbeddedPrompt, Family, ImageFeatures
from vlm_spec_decode.models.hardware import to_device
from vlm_spec_decode.models.prompt import PromptStyle, messages

LIMIT_BYTES = 256 * 1024 * 1024


class HasBytes(Protocol):
    """Something that takes memory."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


Features = TypeVar("Features", bound=HasBytes)


class FeatureCache(Generic[Features]):
    """Features by the SHA-256 of the JPEG, the least recently used dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.hits = 0
        self.misses = 0
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[bytes, Features] = OrderedDict()

    def get(self, digest: bytes, compute: Callable[[], Features]) -> Features:
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


def render_prompt(
    observation: Observation, tokenizer: Any, style: PromptStyle, image_token: str | None = None
) -> str:
    """Return the prompt's text, by the checkpoint's chat template or a plain one if it ships none.

    `image_token` stands for the image; None for a checkpoint that does not see, which gets no image part.
    Raises InstructionError for a chat that the template cannot tell.
    """
    template = tokenizer.chat_template
    said = messages(observation, style, system_turn=not template or "system" in template)
    seen = image_token is not None and observation.image is not None
    turns = [_turn(message, seen, flat=image_token is None) for message in said]
    if not template:
        return _plain(turns, image_token or "")
    if observation.chat is not None and len(turns) > 1:
        return _told(tokenizer, turns)
    return _rendered(tokenizer, turns)


def _rendered(tokenizer: Any, turns: Seq[Mapping[str, Any]]) -> str:
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def _told(tokenizer: Any, turns: Seq[Mapping[str, Any]]) -> str:
    """Return the text of several turns. Raises InstructionError if the template does not tell who says what.

    A template may refuse turns, leave one out, or write all as the user's: each changes what is asked.
    """
    try:
        text = _rendered(tokenizer, turns)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        raise InstructionError(f"the model's chat template refuses these turns: {error}") from error
    for turn in turns:
        if not all(said in text for said in _texts(turn)):
            raise InstructionError(f"the model's chat template leaves out the turn of the {turn['role']}")
    for role in sorted({turn["role"] for turn in turns} - {"user"}):
        as_user = [{**turn, "role": "user"} if turn["role"] == role else turn for turn in turns]
        try:
            is_told = _rendered(tokenizer, as_user) != text
        except (jinja2.TemplateError, TypeError, KeyError, ValueError):
            is_told = True  # it refuses two turns of the user's in a row, so it knows them apart
        if not is_told:
            raise InstructionError(
                f"the model's chat template knows no {role}: ask in one turn of the user's"
            )
    return text


def _texts(turn: Mapping[str, Any]) -> list[str]:
    content = turn["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]


def tokenize_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a rendered prompt; a beginning that the template has written is not added again."""
    bos = tokenizer.bos_token
    ids: list[int] = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    return ids


def check_placeholders(ids: Seq[int], image_token_id: int | None, expected: int) -> None:
    """Raise InstructionError if a prompt has another number of the image's placeholders than expected."""
    if image_token_id is not None and ids.count(image_token_id) != expected:
        raise InstructionError("the instruction contains the checkpoint's image token")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids with one placeholder for the image, the image processor's tensors, the image's digest."""

    ids: Tokens
    image: Mapping[str, Tensor]
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """One checkpoint's way from an observation to embeddings.

    `family` is the checkpoint's. `body` is the Transformers model without its head. `image_processor` is None
    for a language-only checkpoint: it then leaves an observation's image out, so that such a model can draft
    for a VLM.
    """

    family: Family
    body: Any
    tokenizer: Any
    image_processor: Any
    max_tokens: int
    style: PromptStyle = PromptStyle.BARE
    features: FeatureCache[ImageFeatures] = field(default_factory=FeatureCache)

    @property
    def image_token_id(self) -> int | None:
        """Id of the image's placeholder, None for a checkpoint that does not see."""
        return self.family.image_token_id

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the checkpoint can use; unknown for one that does not see."""
        if self.image_processor is None:
            return UNKNOWN_LIMITS
        return self.family.image_limits(self.image_processor)

    def render(self, observation: Observation) -> str:
        """Return the prompt's text (see `render_prompt`)."""
        sees = self.image_processor is not None
        return render_prompt(
            observation, self.tokenizer, self.style, self.family.image_mark if sees else None
        )

    def encode(self, observation: Observation) -> EncodedPrompt:
        """Decode, render and tokenize. Raises ImageError or InstructionError."""
        image: Mapping[str, Tensor] = {}
        digest = b""
        if self.image_processor is not None and observation.image is not None:
            digest = observation.image.digest
            image = self._preprocess(DECODED.picture(observation.image))
        text, placeholders = self.render(observation), 0
        if image:
            written = self.family.image_text(image)
            # Before it is tokenized: a mark's own line breaks may merge with those around it.
            text = text.replace(self.family.image_mark, written)
            placeholders = tokenize_prompt(self.tokenizer, written).count(self.image_token_id or 0)
        ids = tokenize_prompt(self.tokenizer, text)
        check_placeholders(ids, self.image_token_id, placeholders)
        self._check_length(len(ids))
        return EncodedPrompt(tuple(ids), image, digest)

    @torch.inference_mode()
    def embed(self, prompt: EncodedPrompt) -> EmbeddedPrompt:
        """Run the vision tower and put its features in the placeholder's place. Raises InstructionError."""
        device = next(self.body.parameters()).device
        if not prompt.image:
            ids = to_device(np.array(prompt.ids, dtype=np.int64), device)
            return EmbeddedPrompt(self._lookup(ids), self.family.positions(self.body, ids, {}), ids)
        image = {name: to_device(tensor, device) for name, tensor in prompt.image.items()}
        features = self.features.get(prompt.digest, lambda: self.family.encode_image(self.body, image))
        expanded = self.family.expand_prompt(prompt.ids, image, features)
        self._check_length(len(expanded), len(features.rows))
        tokens = np.array(expanded, dtype=np.int64)
        ids = to_device(tokens, device)
        rows = to_device(np.flatnonzero(tokens == (self.image_token_id or 0)), device)
        embedded = self._lookup(ids)
        embedded[rows] = features.rows.to(embedded)
        return EmbeddedPrompt(embedded, self.family.positions(self.body, ids, image), ids, features, rows)

    def _preprocess(self, picture: PilImage.Image) -> Mapping[str, Tensor]:
        """Return the image processor's tensors. Raises ImageError for a shape that it cannot take."""
        size, most = f"{picture.width} x {picture.height}", self.family.max_aspect_ratio
        refused = f"{self.family.config.model_type} cannot take a picture of {size} pixels"
        if most and max(picture.size) > most * min(picture.size):
            raise ImageError(f"{refused}: the long side may be {most} times the short one at most")
        try:
            found = self.image_processor(images=picture, return_tensors="pt")
        except ValueError as error:
            raise ImageError(f"{refused}: {str(error).splitlines()[0]}") from error
        tensors = {name: torch.as_tensor(value) for name, value in found.items()}
        dtype = next(self.body.parameters()).dtype
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}

    def _lookup(self, ids: Tensor) -> Tensor:
        # The image's placeholder may lie beyond the last row: it is only ever replaced.
        known = ids if self.image_token_id is None else ids.masked_fill(ids == self.image_token_id, 0)
        embedded: Tensor = self.body.get_input_embeddings()(known)
        return embedded

    def _check_length(self, length: int, image_tokens: int = 0) -> None:
        if length >= self.max_tokens:
            seen = f", {image_tokens} of them the picture's," if image_tokens else ""
            raise InstructionError(
                f"the prompt of {length} tokens{seen} leaves no room in {self.max_tokens} positions"
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

"""A loaded checkpoint behind the `Model` port: identity, codec, and a fresh context per answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.models.codec import TokenizerCodec
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.encoder import PromptEncoder


@dataclass(frozen=True, slots=True)
class VlmModel:
    """`Model` over Transformers weights. Contexts share the weights and nothing else."""

    card: ModelCard
    codec: TokenizerCodec
    decoder: Decoder
    encoder: PromptEncoder

    def open(self, observation: Observation) -> VlmContext:
        """Start one answer; the vision tower and the prompt wait for the first pass.

        Raises ImageError if the image cannot be decoded, InstructionError if the prompt is too long.
        """
        return VlmContext(self.decoder, partial(self.encoder.embed, self.encoder.encode(observation)))

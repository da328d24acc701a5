"""A loaded checkpoint behind the `Model` port: identity, codec, and a fresh context per answer."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial

from vlm_spec_decode.core.errors import OutOfMemory, VsdError
from vlm_spec_decode.core.ports import ModelCard
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.decoding.batching import Scored, ScoreRequest
from vlm_spec_decode.models.context import VlmContext
from vlm_spec_decode.models.decoder import Decoder
from vlm_spec_decode.models.encoder import PromptEncoder
from vlm_spec_decode.models.forward_batch import BatchEntry, run_pass
from vlm_spec_decode.models.tokenizer import TokenizerCodec


@dataclass(frozen=True, slots=True)
class VlmModel:
    """`Model` over Transformers weights. Contexts share the weights and nothing else."""

    card: ModelCard
    codec: TokenizerCodec
    decoder: Decoder
    encoder: PromptEncoder

    @property
    def sees(self) -> bool:
        """Whether it has a vision tower; without one an observation's image is left out."""
        return self.encoder.image_processor is not None

    def open(self, observation: Observation) -> VlmContext:
        """Start one answer; the vision tower and the prompt wait for the first pass.

        Raises ImageError if the image cannot be decoded, InstructionError if the prompt is too long.
        """
        return VlmContext(self.decoder, partial(self.encoder.embed, self.encoder.encode(observation)))

    def score_batch(self, queries: Seq[ScoreRequest]) -> list[Scored]:
        """Score many contexts of this model in one pass (see `decoding.batching.BatchModel`)."""
        return run_pass(self.decoder, [_share(query) for query in queries])


def _share(query: ScoreRequest) -> BatchEntry | VsdError:
    assert isinstance(query.context, VlmContext)
    try:
        return query.context.share(query.prefix, query.tokens, query.parents, query.on_exit)
    except OutOfMemory:
        raise
    except VsdError as error:
        return error

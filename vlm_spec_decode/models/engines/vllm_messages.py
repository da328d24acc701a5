"""What the cloud and vLLM's own process say to each other: one message, one answer, over a pipe.

Both ends are this package, in two environments, so there is no version of the protocol; imports no torch. An
answer's rows are a chain: row 0 follows what vLLM holds of the answer, row i the i-th of `tokens`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from vlm_spec_decode.core.types import SamplingParams, Tokens


class LoadCheckpoint(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message: what to load. `vocab_size` is the tokenizer's; the head may have more rows."""

    folder: str
    dtype: str
    device: str
    vocab_size: int
    sees: bool
    tensor_parallel: int
    kv_bytes: int
    answers: int


class Rows(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What one answer wants of a pass. Without `params` only its prompt is read, and nothing is chosen.

    `prompt` and `jpeg` are given when vLLM does not have the answer yet. `tokens` are drafted, or known to be
    said. `legal` holds the ids that each of the `len(tokens) + 1` rows may choose, packed as
    `core.choices.LegalTokens.bits`, None for all; () where none is held to anything.
    """

    answer: int
    prompt: Tokens = ()
    jpeg: bytes = b""
    tokens: Tokens = ()
    legal: tuple[bytes | None, ...] = ()
    params: SamplingParams | None = None


class Pass(msgspec.Struct, frozen=True, tag=True):
    """Verify the rows of many answers in as few steps as vLLM needs."""

    rows: tuple[Rows, ...]


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Free the KV of an answer, which goes on later. Has no answer."""

    answer: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """Free all that an answer holds. Has no answer."""

    answer: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How much of the checkpoint has been read, 0 to 1; may come many times before `Ready`."""

    share: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The checkpoint is loaded; a token of an answer takes so many bytes of the cache."""

    token_bytes: int


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why loading failed; the process ends after it."""

    reason: str


class Said(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """What became of one answer's rows: those of its `tokens` that the target says, and its own next one.

    If there is an `error` nothing was said: "not_finite", "out_of_memory", "too_long", "image", or words.
    """

    answer: int
    tokens: Tokens = ()
    error: str = ""


class Passed(msgspec.Struct, frozen=True, tag=True):
    """The end of a pass, an entry per `Rows` in their order."""

    said: tuple[Said, ...]


ToEngine: TypeAlias = LoadCheckpoint | Pass | Forget | Close
FromEngine: TypeAlias = Progress | Ready | Refusal | Passed

to_engine = msgspec.msgpack.Decoder(ToEngine)
from_engine = msgspec.msgpack.Decoder(FromEngine)
encode = msgspec.msgpack.encode

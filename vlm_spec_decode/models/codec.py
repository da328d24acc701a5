"""Token ids to text and back over a checkpoint's tokenizer; knows no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from vlm_spec_decode.core.types import Tokens


@dataclass(frozen=True, slots=True)
class TokenizerCodec:
    """`TextCodec` over a Transformers tokenizer. `stop_ids` end an answer."""

    tokenizer: Any
    stop_ids: Tokens

    def encode(self, text: str) -> Tokens:
        """Return token ids of `text` without special tokens."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Seq[int]) -> str:
        """Return text of `tokens`, special tokens left out."""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    @property
    def vocab_size(self) -> int:
        """Number of ids that mean something; a checkpoint's head may be padded beyond it."""
        return len(self.tokenizer)

    @property
    def digest(self) -> str:
        """Hash of the vocabulary, ids included: equal digests mean that ids mean the same."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
        return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]

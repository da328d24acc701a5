"""Token ids to text and back over a checkpoint's tokenizer; knows no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

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


def spoken(tokenizer: Any, stop_ids: Tokens) -> Any:
    """Return the tokenizer without the special tokens at the end of its ids that no answer needs.

    A VLM's tokenizer is its language model's with a few such tokens (`<image>`, `<pad>`, …) behind it.
    Without them a language-only draft of the same family shares its vocabulary. `stop_ids` stay.
    """
    own = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    added, size = tokenizer.added_tokens_decoder, len(tokenizer)
    while size > own and size - 1 not in stop_ids and size - 1 in added and added[size - 1].special:
        size -= 1
    if size == len(tokenizer):
        return tokenizer
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["added_tokens"] = [entry for entry in document["added_tokens"] if entry["id"] < size]
    marks = {
        f"{name}_token": token
        for name in ("bos", "eos", "unk")
        if (token := getattr(tokenizer, f"{name}_token")) is not None
        and tokenizer.convert_tokens_to_ids(token) < size
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)), **marks)

"""Token ids to text and back over a checkpoint's tokenizer; knows no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.core.disk_cache import cache_key, user_cache
from vlm_spec_decode.core.types import Tokens

_DIGEST_VERSION = 1
"""Of the digest's computation; a change of it also has to be announced, for both ends compare digests."""

_DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class TokenizerCodec:
    """`TextCodec` over a Transformers tokenizer. `stop_ids` end an answer.

    The last `hidden` ids of the tokenizer do not exist here (`count_hidden`).
    """

    tokenizer: Any
    stop_ids: Tokens
    hidden: int = 0

    def encode(self, text: str) -> Tokens:
        """Return token ids of `text` without special tokens."""
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        # A hidden token that the tokenizer has found in the text shows as its id; without it the text would
        # have been cut in another way, which only a tokenizer that does not know the token can tell.
        if self.hidden and max(ids, default=0) >= self.vocab_size:
            ids = tuple(self._without_hidden.encode(text, add_special_tokens=False))
        return ids

    def decode(self, tokens: Seq[int]) -> str:
        """Return text of `tokens`, special tokens left out."""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids that mean something; a checkpoint's head may be padded beyond it."""
        return len(self.tokenizer) - self.hidden

    @cached_property
    def digest(self) -> str:
        """Hash of the vocabulary, ids included: equal digests mean that ids mean the same.

        Kept on disk by the tokenizer's content: sorting and writing 152,000 entries takes a second.
        """
        cache, key = user_cache(), cache_key("tokenizer-digest", _DIGEST_VERSION, self.content)
        kept = cache.read(key)
        if kept is not None and len(kept) == _DIGEST_CHARACTERS:
            return kept.decode("ascii")
        vocabulary = json.dumps(sorted(self._vocabulary().items(), key=lambda entry: entry[1]))
        found = hashlib.sha256(vocabulary.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        cache.write(key, found.encode("ascii"))
        return found

    @cached_property
    def content(self) -> str:
        """Hash of all that the tokenizer consists of, for keys of what is computed from it."""
        return hashlib.sha256(f"{self.hidden} {self.document}".encode()).hexdigest()

    @property
    def document(self) -> str:
        """The whole tokenizer as JSON, hidden tokens included, as the tokenizers library writes it."""
        document: str = self.tokenizer.backend_tokenizer.to_str()
        return document

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that are marks rather than text."""
        if not self.hidden:
            return frozenset(self.tokenizer.all_special_ids)
        return frozenset(self.tokenizer.convert_tokens_to_ids(token) for token in self._marks().values())

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, None if there is none or it is hidden."""
        bos: int | None = self.tokenizer.bos_token_id
        return bos if bos is not None and bos < self.vocab_size else None

    def _vocabulary(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        if not self.hidden:
            return vocabulary
        hidden = {token.content for i, token in self._added().items() if i >= self.vocab_size}
        return {token: i for token, i in vocabulary.items() if token not in hidden}

    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self.tokenizer.added_tokens_decoder
        return added

    def _marks(self) -> dict[str, str]:
        """Return the named special tokens that are not hidden."""
        named = {f"{name}_token": getattr(self.tokenizer, f"{name}_token") for name in ("bos", "eos", "unk")}
        return {
            name: token
            for name, token in named.items()
            if token is not None and self.tokenizer.convert_tokens_to_ids(token) < self.vocab_size
        }

    @cached_property
    def _without_hidden(self) -> Any:
        """The tokenizer that does not know the hidden tokens. Building it takes seconds."""
        document = json.loads(self.document)
        document["added_tokens"] = [
            entry for entry in document["added_tokens"] if entry["id"] < self.vocab_size
        ]
        backend = Tokenizer.from_str(json.dumps(document))
        return PreTrainedTokenizerFast(tokenizer_object=backend, **self._marks())


def count_hidden(tokenizer: Any, stop_ids: Tokens) -> int:
    """Return how many special tokens at the end of the tokenizer's ids no answer needs.

    A VLM's tokenizer is its language model's with a few such tokens (`<image>`, `<pad>`, …) behind it.
    Without them a language-only draft of the same family shares its vocabulary. `stop_ids` stay.
    """
    own = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    added, size = tokenizer.added_tokens_decoder, len(tokenizer)
    while size > own and size - 1 not in stop_ids and size - 1 in added and added[size - 1].special:
        size -= 1
    return len(tokenizer) - size

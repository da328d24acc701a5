"""Token ids to text and back over a checkpoint's tokenizer; knows no model."""

from __future__ import annotations

import gc
import hashlib
import json
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.core.disk_cache import FileIdentities, cache_key, kept_by_files, user_cache
from vlm_spec_decode.core.types import Tokens

_DIGEST_VERSION = 1
"""Of the digest's computation; a change of it also has to be announced, for both ends compare digests."""

_DIGEST_CHARACTERS = 16

_CONTENT_VERSION, _CONTENT_CHARACTERS = 1, 64


@dataclass(frozen=True)
class TokenizerCodec:
    """`TextCodec` over a Transformers tokenizer. `stop_ids` end an answer.

    The last `hidden` ids of the tokenizer do not exist here (`count_hidden`). `files` are those that it was
    read from, None if it does not come from files.
    """

    tokenizer: Any
    stop_ids: Tokens
    hidden: int = 0
    files: FileIdentities | None = field(default=None, compare=False)

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
        with collector_paused():
            vocabulary = json.dumps(sorted(self._vocabulary().items(), key=lambda entry: entry[1]))
        found = hashlib.sha256(vocabulary.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        cache.write(key, found.encode("ascii"))
        return found

    @cached_property
    def content(self) -> str:
        """Hash of all that the tokenizer consists of, for keys of what is computed from it.

        Writing and hashing megabytes takes as long as a small network's load, so the hash is kept on disk by
        the identity of the tokenizer's files, and by what a program can have changed since it read them.
        """
        if self.files is None:
            return self._hash()
        return kept_by_files(
            "tokenizer-content", _CONTENT_VERSION, self.files, self._settings, self._hash, _CONTENT_CHARACTERS
        )

    def _hash(self) -> str:
        return hashlib.sha256(f"{self.hidden} {self.document}".encode()).hexdigest()

    @property
    def _settings(self) -> str:
        """All of the tokenizer but the vocabulary that its files hold, and who read it from them."""
        backend, kind = self.tokenizer.backend_tokenizer, type(self.tokenizer)
        parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder, backend.post_processor)
        known = [
            *(version("transformers"), version("tokenizers"), kind.__module__, kind.__qualname__),
            *(self.hidden, len(self.tokenizer), backend.truncation, backend.padding),
            *(part and part.__getstate__().decode() for part in parts),
            *(f"{i} {token!r}" for i, token in sorted(self._added().items())),
        ]
        return json.dumps(known)

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


_PAUSES_LOCK = threading.Lock()
_pauses: list[bool] = []


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running meanwhile, in this process.

    Reading a vocabulary makes hundreds of thousands of objects that all live; the collector would look
    through everything there is again and again, for nothing. Pauses may overlap: it goes on after the last.
    """
    with _PAUSES_LOCK:
        _pauses.append(gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _PAUSES_LOCK:
            # The first one alone has seen how it was before.
            was_enabled = _pauses.pop() if len(_pauses) > 1 else _pauses.pop(0)
            if not _pauses and was_enabled:
                gc.enable()


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

"""Regular expressions and JSON schemas compiled for a tokenizer, with llguidance: masks over its token ids.

Knows tokens and automata, not what the expression describes. One language may hold for all answers of a
model, and a chat may name its own form.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise

import llguidance
import msgspec
import numpy as np
from tokenizers import decoders

from vlm_spec_decode.core.choices import LegalTokens
from vlm_spec_decode.core.disk_cache import cache_key, user_cache
from vlm_spec_decode.core.errors import GrammarError
from vlm_spec_decode.core.ports import GrammarState, Mask, Model
from vlm_spec_decode.core.types import Chat, Language, Tokens
from vlm_spec_decode.decoding.grammar_mask import MaskedModel
from vlm_spec_decode.models.tokenizer import TokenizerCodec

_TABLE_VERSION = 1
"""Of the table of bytes on disk."""

_FRONT = "\x02"

_MAX_TOKENIZERS = 4
_TOKENIZERS: dict[tuple[str, int], llguidance.LLTokenizer] = {}
_TOKENIZERS_LOCK = threading.Lock()
"""Two models may be loaded at once; the second then waits for what the first one builds."""

_FIRST_LOCK = threading.Lock()
"""Held while the first state of a grammar is copied for an answer."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """`Grammar` over one tokenizer. States share what the automaton has learned.

    A matcher may be used by one thread at a time ("Already borrowed" is what it says else), so each answer
    starts from a copy of its own: answers that are decoded in several threads share none.
    """

    digest: str
    first: MatcherState

    def start(self) -> GrammarState:
        """Return the state before the first token, for one answer."""
        with _FIRST_LOCK:
            return replace(self.first, matcher=self.first.matcher.deep_copy())


@dataclass(frozen=True, slots=True)
class MatcherState(GrammarState):
    """`GrammarState` over a matcher that is copied before it moves on.

    Of several ids that end an answer only `end_id` is legal, so that an end can be forced.
    """

    matcher: llguidance.LLMatcher
    vocab_size: int
    end_id: int
    ended: bool = False

    def mask(self) -> Mask | None:
        """Return the legal next tokens [vocab], None after the end. Raises GrammarError."""
        legal = self.legal()
        return None if legal is None else legal.mask

    def legal(self) -> LegalTokens | None:
        """Return the legal next tokens, None after the end. Raises GrammarError."""
        if self.ended:
            return None
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)[
            : -(-self.vocab_size // 8)
        ].copy()
        _check(self.matcher)  # only now: a matcher in trouble answers with the end token
        # Of the last byte only the bits of the vocabulary count.
        bits[-1] &= (1 << ((self.vocab_size - 1) % 8 + 1)) - 1
        if not self.matcher.is_accepting():
            bits[self.end_id >> 3] &= ~np.uint8(1 << (self.end_id & 7))
        if not bits.any():
            raise GrammarError("the grammar leaves no token legal although the answer has not ended")
        return LegalTokens(bits, self.vocab_size)

    def after(self, token: int) -> MatcherState:
        """Return the state after `token`. Raises GrammarError if it is not legal here."""
        if self.ended or (token == self.end_id and not self.matcher.is_accepting()):
            raise GrammarError(f"token {token} is not of the grammar here")
        if token == self.end_id:
            return MatcherState(self.matcher, self.vocab_size, self.end_id, ended=True)
        # A tree asks for several tokens after one state, so that the state itself must stay where it is.
        matcher = self.matcher.deep_copy()
        if not matcher.consume_token(token):
            _check(matcher)
        return MatcherState(matcher, self.vocab_size, self.end_id)


def compile_grammar(language: Language, codec: TokenizerCodec) -> CompiledGrammar:
    """Compile the pattern of `language`. Raises GrammarError if pattern or tokenizer cannot be used."""
    return _compiled(language.digest, lambda: _grammar_text(language.pattern, codec), codec)


def _compiled(digest: str, write: Callable[[], str], codec: TokenizerCodec) -> CompiledGrammar:
    end_id = _end_id(codec)
    with _named("tokenizer"):
        tokenizer = _tokenizer(codec, end_id)
    with _named("pattern"):
        matcher = llguidance.LLMatcher(tokenizer, write(), log_level=0)
    _check(matcher)
    state = MatcherState(matcher, codec.vocab_size, end_id)
    state.mask()
    return CompiledGrammar(digest, state)


MAX_FORMS = 32
"""Forms of chats that stay compiled, for each model."""


@dataclass(slots=True, eq=False)
class ChatForms:
    """The forms of chats, compiled when they are first asked for. `digest` of each is its own text."""

    codec: TokenizerCodec
    _compiled: OrderedDict[tuple[str, str], CompiledGrammar] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, chat: Chat) -> CompiledGrammar | None:
        """Return the grammar of a chat's form, None for free text. Raises GrammarError."""
        if chat.form == "free":
            return None
        key = chat.form, chat.pattern
        with self._lock:
            found = self._compiled.pop(key, None) or compile_form(chat, self.codec)
            self._compiled[key] = found
            while len(self._compiled) > MAX_FORMS:
                self._compiled.popitem(last=False)
        return found


def compile_form(chat: Chat, codec: TokenizerCodec) -> CompiledGrammar:
    """Compile the form of a chat that has one. Raises GrammarError."""
    write = _schema_text if chat.form == "json_schema" else _grammar_text
    return _compiled(chat.pattern, lambda: write(chat.pattern, codec), codec)


def constrained(model: Model, codec: TokenizerCodec, language: Language, *, chats: bool = False) -> Model:
    """Return `model` held to `language`, or as it is if the language has no pattern. Raises GrammarError.

    With `chats` a chat is held to its own form in place of that.
    """
    grammar = compile_grammar(language, codec) if language.pattern else None
    if chats:
        return MaskedModel(model, grammar, ChatForms(codec))
    return MaskedModel(model, grammar) if grammar else model


def joins_words(codec: TokenizerCodec) -> bool:
    """Tell whether the tokenizer's text is its tokens with a space between each two."""
    return codec.tokenizer.backend_tokenizer.decoder is None


def word_bytes(codec: TokenizerCodec) -> list[bytes]:
    """Return the bytes of each id of a tokenizer that joins words.

    The space comes after the word: so a word is never taken for the beginning of a longer one, nor two
    numbers for one.
    """
    words = codec.tokenizer.convert_ids_to_tokens(list(range(codec.vocab_size)))
    return [(word if i in codec.special_ids else f"{word} ").encode() for i, word in enumerate(words)]


@dataclass(slots=True)
class _TokenTable:
    """What llguidance asks of a tokenizer: the bytes of each id, which ids are marks, and text to ids."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    encode: Callable[[str], Tokens]

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a forced text: where only one can follow, only its usual ids are legal."""
        return list(self.encode(text.decode() if isinstance(text, bytes) else text))


def _encode_inside(codec: TokenizerCodec, text: str) -> Tokens:
    """Return the ids of a text in the middle of an answer.

    A SentencePiece tokenizer puts a space before whatever it is given. A control character in front takes
    that space, and its own ids are then taken away again.
    """
    if isinstance(codec.tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return codec.encode(text)
    front = codec.encode(_FRONT)
    ids = codec.encode(_FRONT + text)
    return ids[len(front) :] if ids[: len(front)] == front else codec.encode(text)


def _no_tokens(_text: str) -> Tokens:
    """Return no ids: of a tokenizer that joins words, which is never asked, for forcing is off."""
    return ()


def _grammar_text(pattern: str, codec: TokenizerCodec) -> str:
    """Return the pattern in llguidance's own form.

    Where only one text can follow, llguidance allows only its usual tokens. That is as good a mask as any,
    but needs a tokenizer of any piece of text, which one of whole words is not; there it is switched off.
    """
    if not joins_words(codec):
        return str(llguidance.LLMatcher.grammar_from_regex(pattern))
    escaped = pattern.replace("/", r"\/")
    return str(
        llguidance.LLMatcher.grammar_from_lark(f'%llguidance {{"no_forcing": true}}\nstart: /({escaped}) ?/')
    )


def _schema_text(schema: str, codec: TokenizerCodec) -> str:
    """Return a JSON schema in llguidance's own form; JSON is then written on one line, as Python writes it.

    Whitespace that may be as long as it likes would let a model write nothing else.
    """
    if joins_words(codec):
        raise GrammarError("a tokenizer of whole words cannot write JSON")
    try:
        read = msgspec.json.decode(schema)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise GrammarError(f"the schema is no JSON: {error}") from error
    return str(
        llguidance.LLMatcher.grammar_from_json_schema(
            read, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        )
    )


def _tokenizer(codec: TokenizerCodec, end_id: int) -> llguidance.LLTokenizer:
    """Return llguidance's view of the tokenizer; draft and target of one vocabulary share it.

    Slices, which spare strings in JSON a walk over the vocabulary, do not suit our language: building them
    takes longer than all the masks of an answer.
    """
    key = (codec.content, end_id)
    with _TOKENIZERS_LOCK:
        if key not in _TOKENIZERS:
            while len(_TOKENIZERS) >= _MAX_TOKENIZERS:
                del _TOKENIZERS[next(iter(_TOKENIZERS))]
            wrapped = llguidance.TokenizerWrapper(_token_table(codec, end_id))
            _TOKENIZERS[key] = llguidance.LLTokenizer(wrapped, n_vocab=codec.vocab_size, slices=[])
        return _TOKENIZERS[key]


def _token_table(codec: TokenizerCodec, end_id: int) -> _TokenTable:
    """Return the bytes of all ids; those of byte-level and SentencePiece tokenizers are kept on disk."""
    if joins_words(codec):
        return _TokenTable(word_bytes(codec), sorted(codec.special_ids), end_id, codec.bos_id, _no_tokens)
    cache, key = user_cache(), cache_key("token-bytes", _TABLE_VERSION, version("llguidance"), codec.content)
    found = _unpacked(cache.read(key), codec.vocab_size)
    if found is None:
        # llguidance knows how each kind of tokenizer writes bytes, but takes seconds to read one.
        own = llguidance.LLTokenizer(codec.document, eos_token=end_id, slices=[])
        known = min(own.vocab_size, codec.vocab_size)
        tokens = [own.decode_bytes([i]) for i in range(known)] + [b""] * (codec.vocab_size - known)
        found = tokens, [i for i in range(known) if own.is_special_token(i)]
        cache.write(key, _packed(*found))
    return _TokenTable(*found, end_id, codec.bos_id, partial(_encode_inside, codec))


def _packed(tokens: list[bytes], special: list[int]) -> bytes:
    """Write a table: both counts, the special ids, the lengths of all tokens, their bytes, one by one."""
    numbers = [len(tokens), len(special), *special, *(len(token) for token in tokens)]
    return np.array(numbers, dtype="<u4").tobytes() + b"".join(tokens)


def _unpacked(data: bytes | None, vocab_size: int) -> tuple[list[bytes], list[int]] | None:
    """Read a table, None if it is none of so many ids."""
    if data is None or len(data) < 8:
        return None
    count, marks = (int(number) for number in np.frombuffer(data, "<u4", 2))
    start = 4 * (2 + marks + count)
    if count != vocab_size or len(data) < start:
        return None
    special = np.frombuffer(data, "<u4", marks, 8)
    ends = start + np.cumsum(np.frombuffer(data, "<u4", count, 8 + 4 * marks), dtype=np.int64)
    if len(data) != (ends[-1] if count else start) or not (special < count).all():
        return None
    bounds = [start, *ends.tolist()]
    return [data[a:b] for a, b in pairwise(bounds)], special.tolist()


def _end_id(codec: TokenizerCodec) -> int:
    """Return the id that ends an answer under a grammar: the tokenizer's own if it is one of several."""
    if not codec.stop_ids:
        raise GrammarError("a grammar needs a token that ends an answer, and this checkpoint names none")
    own = codec.tokenizer.eos_token_id
    return int(own if own in codec.stop_ids else codec.stop_ids[0])


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Turn what llguidance raises into a GrammarError of one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GrammarError(f"this {part} cannot be used with a grammar: {reason}") from error


def _check(matcher: llguidance.LLMatcher) -> None:
    if matcher.is_error():
        reason = (matcher.get_error().strip().splitlines() or ["unknown"])[0]
        raise GrammarError(f"the grammar cannot go on: {reason}")

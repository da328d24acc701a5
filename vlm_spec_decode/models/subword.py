"""The subword tokenizer of the tiny models: byte-level BPE, so that no text is ever unknown.

Trained with the `tokenizers` library on the project's own text. Digits are tokens of their own, with and
without a space before; a call's name and its parentheses are one token each (` forward(`, `)`, ` done()`),
and frequent phrases of answers are one, so that answers do not grow. Case and compatibility forms carry no
meaning: text is normalised to NFKC in lower case, and comes back in that form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.amounts import with_amounts
from vlm_spec_decode.models.tiny import SPECIALS, wrapped

MAX_IDS = 2000
"""Largest size of the vocabulary: each id is a row of the head that every token's pass multiplies."""

PHRASES = (
    *(" i do not know what that means", " i will not do that", " i can not do that", " i will not"),
    *(" that is too far", " that is too long", " i looked around and there is no", " i do not see the"),
    *(" do you mean", " done()", " ask()", " stop()", " turn(", " turn(-", " forward(", " forward(-"),
    *(" strafe(", " strafe(-", " wait("),
)
"""What is one token each, if the text that it is trained on has it."""


def _pattern() -> str:
    """Return the expression of the pieces within which tokens may grow; the first that fits counts."""
    phrases = "|".join(re.escape(p).replace(r"\ ", " ") for p in sorted(PHRASES, key=len, reverse=True))
    return "|".join(
        (
            rf"(?:{phrases})(?![\p{{L}}])",
            r" ?[\p{L}_]+\(\)?",  # a call's name with its parenthesis
            r" ?\p{N}",  # digit by digit
            r" ?[\p{L}\p{M}_']+",
            r" ?[^\s\p{L}\p{N}]",  # punctuation, sign by sign
            r"\s",
        )
    )


def train_subword_tokenizer(texts: Iterable[str], size: int = MAX_IDS) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `size` ids; the same texts give the same tokenizer.

    The first ids are those of `tiny.SPECIALS`, then all 256 bytes. Raises ModelError for a size out of range.
    """
    if not len(SPECIALS) + 256 < size <= MAX_IDS:
        raise ModelError(f"a tokenizer has {len(SPECIALS) + 257} to {MAX_IDS} ids, not {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_pattern()), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrapped(tokenizer)


def read_subword_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Read what `vsd train tokenizer` has written. Raises ModelError."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{file} is no tokenizer: {str(error).splitlines()[0]}") from error
    ids = [tokenizer.token_to_id(token) for token in SPECIALS]
    if ids != list(range(len(SPECIALS))):
        raise ModelError(f"{file}: the first ids must be {', '.join(SPECIALS)}")
    return wrapped(tokenizer)


def is_subword(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer of the tiny models is of this kind; the other kind knows whole words alone."""
    return tokenizer.backend_tokenizer.decoder is not None


_CALL = re.compile(r"\b([a-z_]+) \( ?([^()]*?) ?\)")
_ZERO = re.compile(r"(?<=\d)\.0\b")


def compact(answer: str) -> str:
    """Return an answer of the teacher as it is written in subwords: `forward(1.5)`, and 2 for 2.0.

    Full stops and commas keep the space before them, which tells them from decimal points.
    """
    return _ZERO.sub("", _CALL.sub(lambda m: f"{m[1]}({m[2].replace(' ', '')})", answer))


def encode_answer(tokenizer: PreTrainedTokenizerFast, answer: str) -> list[int]:
    """Return the ids of a teacher's answer, as it stands after the prompt."""
    if is_subword(tokenizer):
        answer = f" {compact(answer)}"
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return ids


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Return the ids of what the user says, in the marks of the tiny models' template.

    In subwords its amounts are read first, as `PromptStyle.AMOUNTS` has it.
    """
    front = ""
    if is_subword(tokenizer):
        front, prompt = " ", with_amounts(prompt)
    ids: list[int] = tokenizer(f"{front}user : {prompt} robot :", add_special_tokens=False)["input_ids"]
    return ids

"""The text that the subword tokenizer is trained on, and how long prompts and answers are with it.

The text is what a training says: taught phrasings filled for rooms that may be trained on, and the teacher's
answers in both descriptions. Every draw comes from the seed, so the same command gives the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.models.amounts import with_amounts
from vlm_spec_decode.models.subword import (
    compact,
    encode_answer,
    encode_prompt,
    train_subword_tokenizer,
)
from vlm_spec_decode.train import instructions, lexicon
from vlm_spec_decode.train.config import DESCRIPTIONS, TokenizerConfig
from vlm_spec_decode.train.loop import tokenizer as word_tokenizer
from vlm_spec_decode.train.phrasings import phrasings
from vlm_spec_decode.train.spoken_dialogues import Sayings, draw_dialogue
from vlm_spec_decode.train.teacher import FAR_STEP_M, AnswerStyle, Dialogue
from vlm_spec_decode.train.text_dataset import views

POSES, EACH = 3, 8
"""Views of a room, and dialogues about each."""


def run_tokenizer(config: TokenizerConfig) -> dict[str, Any]:
    """Train the tokenizer and write it to `config.out`; return how long texts are with it.

    Raises ModelError for a size out of range, OSError if the file cannot be written.
    """
    tok = train_subword_tokenizer(_texts(config), config.size)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    tok.backend_tokenizer.save(str(config.out))
    return {"ids": len(tok)} | lengths(tok, config.seed, min(40, config.rooms))


def _texts(config: TokenizerConfig) -> Iterator[str]:
    for dialogue in dialogues(config.seed, config.rooms):
        yield f" user : {with_amounts(dialogue.prompt)} robot :"
        yield f" {compact(dialogue.answer)}"
    # Every word of every taught phrasing and of the lexicon, however rarely it is drawn.
    for phrasing in phrasings():
        yield f" {phrasing.text}"
    for words in (*lexicon.lexicon()["kinds"].values(), *lexicon.lexicon()["colours"].values()):
        yield from (f" {word}" for word in words for _ in range(3))


def dialogues(seed: int, rooms: int, *, held_out: bool = False) -> Iterator[Dialogue]:
    """Yield dialogues about rooms, in turn with each description."""
    rng, sayings = np.random.default_rng([seed, 0x70C]), Sayings("held_out" if held_out else "taught")
    first, limit = (instructions.held_out().first_scene_seed, 1 << 30) if held_out else (0, 1_000_000)
    forbidden = frozenset() if held_out else instructions.held_out().pairs
    styles = [AnswerStyle(description, FAR_STEP_M) for description in DESCRIPTIONS]
    for room in rng.integers(first, limit, rooms).tolist():
        for view in views(room, POSES, forbidden):
            for i in range(EACH):
                yield draw_dialogue(rng, view, sayings, styles[i % 2])


def lengths(tok: PreTrainedTokenizerFast, seed: int, rooms: int = 40) -> dict[str, Any]:
    """Return mean numbers of tokens of held-out dialogues, with this tokenizer and the word-level one.

    `until_action` counts an answer's tokens to the end of its first call.
    """
    rows: dict[str, list[int]] = {}
    both = {"subword": tok, "words": word_tokenizer()}
    for i, dialogue in enumerate(dialogues(seed, rooms, held_out=True)):
        style = DESCRIPTIONS[i % EACH % 2]
        for name, one in both.items():
            answer = encode_answer(one, dialogue.answer)
            rows.setdefault(f"prompt_{name}", []).append(len(encode_prompt(one, dialogue.prompt)))
            rows.setdefault(f"answer_{style}_{name}", []).append(len(answer))
            rows.setdefault(f"until_action_{style}_{name}", []).append(_until_action(one, answer))
    return {name: round(float(np.mean(found)), 2) for name, found in sorted(rows.items())}


def _until_action(tok: PreTrainedTokenizerFast, ids: list[int]) -> int:
    ends = (i for i, one in enumerate(ids) if tok.decode([one]).rstrip().endswith(")"))
    return next(ends) + 1

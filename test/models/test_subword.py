"""The subword tokenizer: nothing is lost, numbers are digits, the grammar reads its tokens."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.errors import GrammarError, ModelError
from vlm_spec_decode.models.grammar import compile_grammar
from vlm_spec_decode.models.subword import (
    compact,
    encode_answer,
    encode_prompt,
    is_subword,
    read_subword_tokenizer,
    train_subword_tokenizer,
)
from vlm_spec_decode.models.tiny import EOS_ID, SPECIALS
from vlm_spec_decode.models.tokenizer import TokenizerCodec
from vlm_spec_decode.train.config import TokenizerConfig
from vlm_spec_decode.train.loop import tokenizer as word_tokenizer
from vlm_spec_decode.train.tokenizer_data import dialogues, lengths, run_tokenizer


@cache
def _texts() -> tuple[str, ...]:
    drawn = tuple(dialogues(0, 20))
    return tuple(t for d in drawn for t in (f" user : {d.prompt} robot :", f" {compact(d.answer)}"))


@pytest.fixture(scope="module")
def tok() -> PreTrainedTokenizerFast:
    return train_subword_tokenizer(_texts(), 1200)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(tok: PreTrainedTokenizerFast, text: str) -> None:
    ids = tok(text, add_special_tokens=False)["input_ids"]
    assert all(0 <= i < len(tok) for i in ids)
    if not any(special in text for special in SPECIALS):
        wanted = tok.backend_tokenizer.normalizer.normalize_str(text)
        assert tok.decode(ids, clean_up_tokenization_spaces=False) == wanted
        assert tok.convert_tokens_to_ids("<unk>") not in ids


def test_case_and_width_carry_no_meaning(tok: PreTrainedTokenizerFast) -> None:
    assert tok(" GO Two")["input_ids"] == tok(" go two")["input_ids"]
    assert _normal("２ｍ") == "2m"
    assert tok("２ｍ")["input_ids"] == tok("2m")["input_ids"]


@given(number=st.decimals(-999, 999, places=2).map(str), unit=st.sampled_from(["m", " m", "°", "ft", ""]))
def test_a_number_is_its_digits(tok: PreTrainedTokenizerFast, number: str, unit: str) -> None:
    pieces = [tok.decode([i]).strip() for i in tok(f"go {number}{unit} ahead")["input_ids"]]
    digits = [p for p in pieces if any(c.isdigit() for c in p)]
    assert all(len(p) == 1 for p in digits)
    assert "".join(digits) == "".join(c for c in number if c.isdigit())


def test_the_grammar_accepts_every_answer_of_the_teacher(tok: PreTrainedTokenizerFast) -> None:
    codec = TokenizerCodec(tok, (EOS_ID,))
    grammar = compile_grammar(language(), codec)
    for dialogue in list(dialogues(1, 3, held_out=True)):
        state = grammar.start()
        ids = [*encode_answer(tok, dialogue.answer), EOS_ID]
        for token in ids:
            state = state.after(token)
        assert state.legal() is None
        assert codec.decode(ids).split() == compact(dialogue.answer).split()
    state = grammar.start()
    *known, call = tok(" ok . fly(")["input_ids"]
    for token in known:
        state = state.after(token)
    with pytest.raises(GrammarError):
        state.after(call)


def test_answers_do_not_grow(tok: PreTrainedTokenizerFast) -> None:
    found = lengths(tok, 0, rooms=4)
    assert found["answer_full_subword"] <= found["answer_full_words"]
    assert found["answer_brief_subword"] < 0.7 * found["answer_full_words"]
    assert found["until_action_brief_subword"] < found["until_action_full_subword"]


def test_calls_and_refusals_are_few_tokens(tok: PreTrainedTokenizerFast) -> None:
    assert compact("ok . forward ( 2.0 ) look ( 1 , 2 ) done ( )") == "ok . forward(2) look(1,2) done()"
    assert len(encode_answer(tok, "ok . turn ( -90 ) done ( )")) == 7
    assert len(encode_answer(tok, "i do not know what that means . done ( )")) == 3


def test_the_template_of_the_tiny_models_gives_the_prompt_of_the_training(
    tok: PreTrainedTokenizerFast,
) -> None:
    from vlm_spec_decode.core.types import Observation
    from vlm_spec_decode.models.prompt import TEXT_TEMPLATE, PromptStyle, prompt_text

    seen = Observation(None, "Go to the RED chair, 2m", ("turn(60)", "forward(1.5)"))
    text = tok.apply_chat_template(
        [{"role": "user", "content": prompt_text(seen, PromptStyle.AMOUNTS)}],
        chat_template=TEXT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert tok(text)["input_ids"] == encode_prompt(tok, prompt_text(seen))
    assert (is_subword(tok), is_subword(word_tokenizer())) == (True, False)


def test_the_command_gives_the_same_tokenizer_again_and_reads_it(tmp_path: Path) -> None:
    one, two = (TokenizerConfig(tmp_path / name / "tok.json", 700, 4) for name in "ab")
    told = run_tokenizer(one)
    run_tokenizer(two)
    assert one.out.read_bytes() == two.out.read_bytes()
    assert len(read_subword_tokenizer(one.out)) == told["ids"] <= 700
    with pytest.raises(ModelError, match="no tokenizer"):
        read_subword_tokenizer(tmp_path / "none.json")
    with pytest.raises(ModelError, match="262 to 2000 ids"):
        train_subword_tokenizer((), 5000)


def test_the_held_out_dialogues_are_of_held_out_rooms() -> None:
    taught, held = (list(dialogues(0, 2, held_out=h)) for h in (False, True))
    assert {d.prompt for d in taught}.isdisjoint(d.prompt for d in held)
    assert np.mean([len(d.answer) for d in held]) > 10

"""The prompt: what an operator types never becomes part of the template."""

from __future__ import annotations

import re
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.actions.grammar import answer_pattern
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import ACTION_TYPES
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.models.prompt import (
    CHAT_TEMPLATE,
    DONE_MARK,
    EXAMPLES,
    MAX_HISTORY,
    RULES,
    PromptStyle,
    escape,
    messages,
    prompt_digest,
    prompt_text,
    system_text,
)
from vlm_spec_decode.models.tiny import IMAGE_ID, SPECIALS, UNK_ID, build_tokenizer

WORDS = ("user", "robot", ":", "go", "to", "the", "red", "chair", ".", "done", "turn", "(", ")")
HOSTILE = st.sampled_from(
    ["<image>", "</s>", "<|im_start|>", "[INST]", "user :", "robot:", "\n", " . done : ", "{{ x }}"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(HOSTILE | st.text(max_size=8), max_size=8).map(" ".join))
def test_an_instruction_cannot_open_a_mark_of_any_template(text: str) -> None:
    said = escape(text)
    assert not set(said) & set("<>[]{}:\n")
    ids = build_tokenizer(WORDS)(f"user : {said} robot :")["input_ids"]
    specials = set(range(len(SPECIALS))) - {UNK_ID}
    assert not specials & set(ids)
    assert ids.count(ids[1]) == 2, "only the template's own colons mark who speaks"


def test_history_is_told_and_old_history_forgotten() -> None:
    done = tuple(f"turn({angle})" for angle in range(0, 60, 5))
    text = prompt_text(Observation(None, "go to the red chair", done))
    assert text == "go to the red chair" + DONE_MARK + " ".join(done[-MAX_HISTORY:])
    assert prompt_text(Observation(None, " sit \n")) == "sit"


def test_the_image_comes_first_and_only_if_there_is_one() -> None:
    with_image = messages(Observation(Image(b"", 1, 1), "sit"))
    assert [part["type"] for part in with_image[0]["content"]] == ["image", "text"]
    assert [part["type"] for part in messages(Observation(None, "sit"))[0]["content"]] == ["text"]


def test_the_digest_names_what_is_said() -> None:
    assert (
        prompt_digest(PromptStyle.BARE)
        == prompt_digest(PromptStyle.BARE)
        != prompt_digest(PromptStyle.ACTIONS)
    )


def test_the_rules_name_every_action_with_its_arguments() -> None:
    for name, kind in ACTION_TYPES.items():
        units = [field.name.removesuffix("_deg") for field in fields(kind)]
        call = re.search(rf"\b{name}\(([^)]*)\)", RULES)
        assert call, name
        assert len([part for part in call[1].split(",") if part]) == len(units), name
    limits = SafetyLimits()
    assert f"{limits.max_distance_m:g} m and {limits.max_angle_deg:g} degrees" in RULES


def test_the_examples_are_answers_that_the_grammar_allows() -> None:
    for _, history, answer in EXAMPLES:
        assert re.fullmatch(answer_pattern(), answer)
        assert parse_answer(answer)
        assert all(parse_answer(action) for action in history)


def test_the_rules_come_first_and_the_instruction_last() -> None:
    seen = Observation(Image(b"", 1, 1), "find [INST] the chair", ("turn(60)",))
    system, user = messages(seen, PromptStyle.ACTIONS)
    assert (system["role"], system["content"][0]["text"]) == ("system", system_text())
    assert user["content"][1]["text"] == prompt_text(seen)
    (only,) = messages(seen, PromptStyle.ACTIONS, system_turn=False)
    assert only["content"][0] == {"type": "image"}
    assert only["content"][1]["text"].startswith(system_text())
    assert only["content"][1]["text"].endswith(prompt_text(seen))


def test_the_tiny_template_renders_what_training_packs() -> None:
    tok = build_tokenizer(WORDS)
    turn = messages(Observation(Image(b"", 1, 1), "go to the red chair", ("turn(10)",)))
    text = tok.apply_chat_template(
        turn, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    ids = tok(text)["input_ids"]
    assert ids[0] == IMAGE_ID
    assert ids[1:] == tok("user : go to the red chair . done : turn ( 10 ) robot :")["input_ids"]

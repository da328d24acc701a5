"""The prompt: what an operator types never becomes part of the template."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.models.prompt import DONE_MARK, MAX_HISTORY, escape, messages, prompt_digest, prompt_text
from vlm_spec_decode.models.tiny import CHAT_TEMPLATE, IMAGE_ID, SPECIALS, UNK_ID, build_tokenizer

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


def test_the_digest_names_the_template() -> None:
    assert prompt_digest(CHAT_TEMPLATE) == prompt_digest(CHAT_TEMPLATE)
    assert prompt_digest(CHAT_TEMPLATE) != prompt_digest(CHAT_TEMPLATE + " ")


def test_the_tiny_template_renders_what_training_packs() -> None:
    tok = build_tokenizer(WORDS)
    turn = messages(Observation(Image(b"", 1, 1), "go to the red chair", ("turn(10)",)))
    text = tok.apply_chat_template(
        turn, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    ids = tok(text)["input_ids"]
    assert ids[0] == IMAGE_ID
    assert ids[1:] == tok("user : go to the red chair . done : turn ( 10 ) robot :")["input_ids"]

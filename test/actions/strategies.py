"""Hypothesis strategies for the action language."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import strategies as st

from vlm_spec_decode.actions.types import ACTION_TYPES, Action

numbers = st.integers(-99_999_999, 99_999_999).map(lambda n: n / 10_000)


@st.composite
def actions(draw: st.DrawFn, *, with_done: bool = True) -> Action:
    endings: set[str] = set() if with_done else {"done", "ask"}
    names = sorted(set(ACTION_TYPES) - endings)
    kind = ACTION_TYPES[draw(st.sampled_from(names))]
    return kind(*(draw(numbers) for _ in fields(kind)))


words = st.text("abcdefghijklmnopqrstuvwxyzé'-0123456789_", min_size=1, max_size=9)


@st.composite
def loose_text(draw: st.DrawFn, action: Action) -> str:
    """Return `action` as a word-level tokenizer may decode it: with blanks around every mark."""
    from vlm_spec_decode.actions.types import format_action

    text = format_action(action)
    for mark in "(,)":
        text = text.replace(
            mark, draw(st.sampled_from(["", " ", "  ", "\n"])) + mark + draw(st.sampled_from(["", " "]))
        )
    return text

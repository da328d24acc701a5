"""The suffix automaton against a search of the whole text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.decoding.free_drafts import Match, SuffixAutomaton

TEXTS = st.lists(st.integers(0, 3), max_size=40)


def built(text: list[int]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    automaton.extend(text)
    return automaton


def places(text: list[int], part: list[int]) -> list[int]:
    """Return the positions behind each occurrence of `part`."""
    return [at + len(part) for at in range(len(text) - len(part) + 1) if text[at : at + len(part)] == part]


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_the_longest_match_its_count_and_what_followed_it(text: list[int], query: list[int]) -> None:
    automaton = built(text)
    longest = max(n for n in range(len(query) + 1) if places(text, query[len(query) - n :]))
    found = automaton.match(query)
    assert found.length == longest
    if not longest:
        return
    part = query[len(query) - longest :]
    behind = places(text, part)
    assert automaton.count(found) == len(behind)
    followed = Counter(text[at] for at in behind if at < len(text))
    after = automaton.after(found)
    assert set(after) == set(followed)
    assert {token: automaton.count(match) for token, match in after.items()} == dict(followed)
    assert automaton.latest(found) == (text[behind[-1]] if behind[-1] < len(text) else None)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_it_grows_token_by_token_as_at_once_and_stays_small(text: list[int]) -> None:
    whole, grown = built(text), SuffixAutomaton()
    for token in text:
        grown.extend([token])
    assert grown == whole
    assert whole.num_states <= max(2, 2 * len(text))


def test_a_text_of_one_token_costs_no_more_than_others() -> None:
    automaton = built([7] * 3000)
    assert automaton.match([7] * 10).length == 10
    assert automaton.match([7] * 4000).length == 3000
    assert automaton.latest(automaton.match([7] * 2999)) is None, "its latest place is the text's end"


@pytest.mark.parametrize("query", [[], [9], [1, 9]])
def test_what_is_not_there_matches_nothing(query: list[int]) -> None:
    automaton = built([1, 2, 3])
    assert automaton.match(query) == Match()
    assert automaton.latest(Match()) is None

"""Stop sequences in a text that grows, and bodies of any bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_spec_decode.serve.openai_api.app import READERS
from vlm_spec_decode.serve.openai_api.errors import ApiError
from vlm_spec_decode.serve.openai_api.replies import StopSequences
from vlm_spec_decode.serve.openai_api.requests import CompletionRequest

LETTERS = st.text(alphabet="abc", max_size=30)


@pytest.mark.parametrize("pieces", [("abc",), ("a", "b", "c"), ("ab", "c")])
def test_of_two_stops_the_one_that_is_complete_first_holds(pieces: tuple[str, ...]) -> None:
    stop, text, told = StopSequences(["b", "abc"]), "", ""
    for piece in pieces:
        text += piece
        told += stop.feed(text, is_last=text == "abc")
    assert told == "a"


@given(
    text=LETTERS, stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4), cuts=st.data()
)
def test_what_is_told_ends_before_the_first_stop_however_it_comes(
    text: str, stops: list[str], cuts: Any
) -> None:
    stop, told, at = StopSequences(stops), "", 0
    # The stop that is complete first ends the text, so that the pieces do not matter.
    complete = [(text.find(each) + len(each), text.find(each)) for each in stops if each in text]
    whole = min(complete, default=(0, len(text)))[1]
    while at < len(text) and not stop.is_stopped:
        at = cuts.draw(st.integers(at + 1, len(text)))
        told += stop.feed(text[:at], is_last=at == len(text))
        # What was told is never taken back, and is never beyond what a reader of the whole would be told.
        assert told == text[: len(told)]
        assert len(told) <= whole
    assert told == text[:whole]
    assert stop.is_stopped == any(each in text for each in stops)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "input",
        "stop",
        "seed",
        "response_format",
        "vsd",
        "stream",
        "n",
        "tools",
        "text",
        "max_tokens",
    ]
)
MESSAGE = {"role": "user", "content": "a"}


def read(path: str, data: bytes) -> CompletionRequest | ApiError:
    try:
        return READERS[path](data)
    except ApiError as error:
        return error


@pytest.mark.parametrize("path", READERS)
@settings(max_examples=40)
@given(body=st.dictionaries(NAMES, JSON, max_size=5), raw=st.binary(max_size=30))
def test_whatever_the_body_is_it_is_read_or_refused_with_a_client_error(
    path: str, body: Any, raw: bytes
) -> None:
    base = {"model": "m", "messages": [MESSAGE]} if "chat" in path else {"model": "m", "input": "a"}
    for data in (json.dumps({**base, **body}).encode(), json.dumps(body).encode(), raw, b"[" * 10_000):
        found = read(path, data)
        if isinstance(found, ApiError):
            assert found.status == 400
            assert found.code
        else:
            assert isinstance(found.model, str)

"""JSON for other readers: what Python alone can read is null."""

import json
import math

import pytest

from vlm_spec_decode.core import strict_json


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_numbers_that_are_none_are_null_and_everything_else_stays() -> None:
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf, 2)}], "c": "é NaN", "d": None, "e": True}
    text = strict_json.dumps(value)
    assert json.loads(text, parse_constant=refuse) == {
        "a": [1.5, None, {"b": [None, None, 2]}], "c": "é NaN", "d": None, "e": True,
    }  # fmt: skip
    plain = {"a": [1.5, {"b": 2}]}
    assert strict_json.dumps(plain) == json.dumps(plain)
    assert strict_json.dumps(plain, compact=True) == '{"a":[1.5,{"b":2}]}'
    with pytest.raises(TypeError):
        strict_json.dumps({"a": object()})

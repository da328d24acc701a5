"""The whole recipe from nothing at a tiny size: tokenizer, target, exits, draft, and what they are worth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image as PilImage
from safetensors.torch import load_file

from test.train.test_loop import frames as frames  # noqa: PLC0414 - the fixture
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.subword import read_subword_tokenizer
from vlm_spec_decode.train import teacher
from vlm_spec_decode.train.cli import train
from vlm_spec_decode.train.config import TrainConfig
from vlm_spec_decode.train.evaluate import Pair, decode
from vlm_spec_decode.train.loop import run_train
from vlm_spec_decode.train.phrasings import phrasings
from vlm_spec_decode.train.spoken_dialogues import Sayings, style_of
from vlm_spec_decode.train.spoken_evaluate import (
    SpokenAnswer,
    does_right,
    is_another_number,
    plan_of,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    result = CliRunner().invoke(train, ["tokenizer", "--out", str(out), "--rooms", "12", "--size", "900"])
    assert result.exit_code == 0, result.output
    assert "answer_brief_subword" in result.output
    return out


def _run(*arguments: str) -> None:
    result = CliRunner().invoke(train, arguments)
    assert result.exit_code == 0, result.output


def test_the_commands_of_the_recipe_make_a_pair_that_answers(
    frames: Path, tokenizer: Path, tmp_path: Path
) -> None:
    same = ("--data", str(frames), "--tokenizer", str(tokenizer), "--description", "brief", "--batch", "2")
    target, draft = tmp_path / "target", tmp_path / "draft"
    _run("target", "--out", str(target), "--vision-steps", "1", "--steps", "2", *same)
    _run(
        *("draft", "--out", str(draft), "--steps", "2", "--distil", str(target)),
        *("--vision-tower", str(target / "checkpoint.pt"), *same),
    )
    pair = Pair.of(load_model(target), load_model(draft))
    assert pair.codec.vocab_size == len(read_subword_tokenizer(tokenizer))
    assert style_of(target) == teacher.AnswerStyle("brief", 3.0)
    picture = tmp_path / "frame.jpg"
    PilImage.new("RGB", (64, 48), (90, 20, 20)).save(picture)
    seen = Observation(Image(picture.read_bytes(), 64, 48), "Geh 1,5 m vor!")
    plain = decode(pair, seen, pair.params())
    assert plain.tokens == decode(pair, seen, pair.params(), 4).tokens
    assert plan_of(plain.text) or len(plain.tokens) == pair.params().max_tokens


def test_a_run_in_two_parts_with_the_subword_tokenizer_equals_a_run_in_one(
    frames: Path, tokenizer: Path, tmp_path: Path
) -> None:
    torch.use_deterministic_algorithms(True)
    whole = TrainConfig("draft", frames, tmp_path / "whole", eye_steps=1, steps=4, batch=2, dialogues=2)
    whole = replace(whole, precision="float32", tokenizer=tokenizer)
    try:
        run_train(whole)
        parts = replace(whole, out=tmp_path / "parts", stop_after=2)
        assert run_train(parts)["steps"] == 2
        assert run_train(replace(parts, stop_after=None))["steps"] == 4
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    told = json.loads((tmp_path / "whole" / "training.json").read_text())["config"]
    assert (told["tokenizer"], told["max_step_m"]) == (str(tokenizer), "3.0")


@pytest.mark.parametrize(
    ("wanted", "text", "verdict"),
    [
        ("ok . forward ( 1.5 ) done ( )", "ok . forward(1.5) done()", "right"),
        ("ok . forward ( 1.5 ) done ( )", "ok . forward(1.4) done()", "moves"),
        ("ok . forward ( 1.5 ) done ( )", "i do not know what that means . done()", "stands"),
        ("ok . forward ( 1.5 ) done ( )", "forward(-1.5) done()", "moves"),
        ("no , i will not do that . done ( )", "i do not know what that means . done()", "right"),
        ("no , i will not do that . done ( )", "ok . sit() done()", "moves"),
        ("which ? ask ( )", "i do not know what that means . done()", "stands"),
    ],
)
def test_an_answer_is_right_stands_or_moves(wanted: str, text: str, verdict: str) -> None:
    phrasing = next(p for p in phrasings() if p.meaning == "forward")
    saying = Sayings(noise=False).say(np.random.default_rng(0), (), phrasing)
    assert SpokenAnswer(saying, wanted, text).verdict == verdict


@pytest.mark.parametrize(
    ("told", "meant", "is_another"),
    [
        ("forward(2.9) done()", "forward(1) done()", True),
        ("forward(1.2) done()", "forward(1) done()", False),
        ("done()", "forward(1) done()", False),
        ("turn(90) done()", "forward(1) done()", True),
        ("forward(3) forward(2) done()", "forward(3) forward(2) done()", False),
        ("forward(-1) done()", "forward(1) done()", True),
    ],
)
def test_another_number_is_told_from_a_rounded_one(told: str, meant: str, is_another: bool) -> None:
    assert is_another_number(plan_of(told), plan_of(meant)) == is_another


def test_the_way_to_what_is_seen_need_not_be_exact() -> None:
    rng, phrasing = np.random.default_rng(0), next(p for p in phrasings() if p.meaning == "goto")
    saying = Sayings(noise=False).say(rng, (), phrasing)
    wanted = plan_of("turn(20) forward(1.5)")
    assert does_right(saying, plan_of("turn(30) forward(1.2)"), wanted)
    assert does_right(saying, plan_of("forward(1.5)"), plan_of("turn(10) forward(1.5)"))
    assert not does_right(saying, plan_of("turn(60) forward(1.5)"), wanted)
    assert not does_right(saying, plan_of("turn(20) done()"), wanted)

"""Recorded walks as training data, and a model that goes on from the shipped one with them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from test.bags.walks import Walk
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.bags.settings import SAMPLE
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.train.config import recipe
from vlm_spec_decode.train.frames import open_frames
from vlm_spec_decode.train.loop import run_train, tokenizer
from vlm_spec_decode.train.recorded_data import RecordedDataConfig, run_recorded_data, spaced_text

pytestmark = pytest.mark.timeout(180)

DOCS = Path(__file__).parents[2] / "docs" / "bags.md"
LABELLED = int(re.findall(r"(\d+) labelled answers", DOCS.read_text())[0])
"""In the sample bag, as the docs say."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("walks") / "data"
    assert run_recorded_data(RecordedDataConfig((SAMPLE,), out))["frames"] == LABELLED
    return out


def test_a_labelled_walk_becomes_frames_with_what_was_right(folder):
    data = open_frames(folder)
    assert data.frames.shape == (LABELLED, 128, 128, 3)
    assert len(data.dialogues) == LABELLED
    assert np.asarray(data.frames).std() > 10
    first = data.dialogues[0]
    assert first["instruction"] == "turn to the red ball"
    assert parse_answer(first["answer"])
    tok = tokenizer()
    assert all(tok.unk_token_id not in tok(talk["answer"])["input_ids"] for talk in data.dialogues)


def test_labels_without_words_are_told_on_the_grid_that_the_models_know():
    actions = parse_answer("strafe(-0.26) turn(23) look(4,-17) wait(2) stand_up() done()")
    said = spaced_text(actions)
    assert said == ("ok . strafe ( -0.3 ) turn ( 25 ) look ( 5 , -15 ) wait ( 2.0 ) stand_up ( ) done ( )")
    assert len(parse_answer(said)) == len(actions)


def test_a_model_goes_on_from_the_shipped_one(folder, tmp_path):
    out = tmp_path / "draft"
    settings = {"data": folder, "start": shipped("draft"), "steps": 2, "batch": 4, "peak_rate": 1e-4}
    record = run_train(recipe("draft", out=out, **settings))
    assert record["steps"] == 2
    model, old = load_model(out), load_model(shipped("draft"))
    assert model.card.tokenizer_digest == old.card.tokenizer_digest
    assert model.card.revision != old.card.revision
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line.get("loss", 0.0)) for line in log)


def test_walks_teach_no_eye_and_without_labels_nothing(folder, tmp_path):
    with pytest.raises(ConfigError, match="--vision-steps 0"):
        run_train(recipe("target", data=folder, out=tmp_path, eye_steps=1, steps=1))
    walk = Walk(tmp_path / "walk")
    walk.text(0.0, "sit")
    walk.compressed(0.5)
    walk.close()
    with pytest.raises(ConfigError, match="no frame with a label"):
        run_recorded_data(RecordedDataConfig((tmp_path / "walk",), tmp_path / "none"))

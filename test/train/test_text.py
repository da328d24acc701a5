"""The language-only pair's training: a world in words that says enough, and runs that can be repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.models.tiny import EOS_ID, UNK_ID
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.config import TextConfig
from vlm_spec_decode.train.frames import Column, observe, sample_pose
from vlm_spec_decode.train.instructions import held_out
from vlm_spec_decode.train.loop import tokenizer
from vlm_spec_decode.train.scene_description import MIN_PIXELS, VisibleObject, project_objects
from vlm_spec_decode.train.text import near, new_text_training_state, plan_figures, run_text
from vlm_spec_decode.train.text_dataset import (
    GuidedTextDataset,
    TextDataset,
    described,
    draw,
    held_out_dialogue,
    scene_text,
    training_dialogues,
)

SMALL = TextConfig("draft", steps=5, batch=4, checkpoint_every=1, precision="float32")

VIEW = (
    VisibleObject("chair", "red", 23.0, 2.04, 2.3, 900),
    VisibleObject("box", "blue", -1.0, 7.3, 7.6, 40),
    VisibleObject("cone", "green", -80.0, 1.0, 1.2, 0),
)


@pytest.fixture(scope="module")
def camera() -> Iterator[FrontCamera]:
    made = FrontCamera(World(random_scene(1)), 256, 144)
    yield made
    made.close()


def test_what_is_told_is_what_is_in_view_rounded_as_it_is_said() -> None:
    known = described(VIEW)
    assert scene_text(known) == "a red chair 25 degrees left at 2.0 m , a blue box ahead at 5.0 m"
    assert [(t.bearing_deg, t.distance_m) for t in known] == [(25.0, 2.0), (0.0, 5.0)]
    assert scene_text(described(VIEW[2:])) == "nothing"


def test_an_answer_follows_from_the_words_alone() -> None:
    """The same words never get two answers, whatever the teacher knows besides."""
    moved = tuple(
        replace(t, bearing_deg=t.bearing_deg + 0.3, centre_m=9.0, pixels=t.pixels + 5) for t in VIEW[:2]
    )
    for seed in range(40):
        one = draw(np.random.default_rng(seed), VIEW[:2])
        other = draw(np.random.default_rng(seed), moved)
        assert one == other
        assert one.goal.text.startswith("you see a red chair 25 degrees left at 2.0 m , a blue box ahead")
        assert parse_answer(one.answer) or one.goal.verb == "see"


@pytest.mark.sim
def test_what_is_in_view_is_nearly_what_the_camera_shows(camera: FrontCamera) -> None:
    same, count = 0, 0
    for seed in range(40):
        world = World(random_scene(seed, num_objects=(2, 6)), seed=seed)
        world.teleport(sample_pose(world, np.random.default_rng(seed)))
        camera.attach(world)
        drawn, estimated = observe(camera, world), project_objects(world)
        assert np.allclose(drawn[:, : Column.PIXELS], estimated[:, : Column.PIXELS])
        used = drawn[:, Column.KIND] >= 0
        seen = [rows[used, Column.PIXELS] >= MIN_PIXELS for rows in (drawn, estimated)]
        same, count = same + int((seen[0] == seen[1]).sum()), count + int(used.sum())
    assert same / count > 0.93


@pytest.mark.sim
def test_every_word_has_a_token_and_nothing_held_out_is_trained_on() -> None:
    tok = tokenizer()
    for dialogue in training_dialogues(np.random.default_rng(0), 12, 2, 4):
        text = dialogue.prompt.replace("<unk>", "") + " " + dialogue.answer
        assert UNK_ID not in tok(text)["input_ids"], text
        scene = dialogue.prompt.split(" . ")[0]
        assert not any(pair in scene for pair in held_out().pairs)
    asked = [held_out_dialogue(seed) for seed in range(1_000_000, 1_000_040)]
    assert asked == [held_out_dialogue(seed) for seed in range(1_000_000, 1_000_040)]
    starts = tuple(form.split("{x}")[0] for form in held_out().wordings)
    assert any(d.goal.text.split(" . ")[1].startswith(starts) for d in asked)


@pytest.mark.sim
def test_a_run_in_two_parts_equals_a_run_in_one_also_of_a_draft_that_learns_answers(tmp_path: Path) -> None:
    guide = replace(SMALL, role="target", out=tmp_path / "guide", steps=1)
    run_text(guide)
    whole = replace(SMALL, out=tmp_path / "whole", distil=guide.out)
    told = run_text(whole)["last_running_means"]
    parts = replace(whole, out=tmp_path / "parts")
    run_text(replace(parts, stop_after=2))
    record = run_text(parts)
    assert record["steps"] == 5
    assert record["last_running_means"] == told
    assert str(tmp_path) not in (parts.out / "training.json").read_text(), "no path of this machine"
    one, two = (load_file(folder.out / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    model = load_model(parts.out)
    assert model.card.prompt_digest == load_model(shipped("text_draft")).card.prompt_digest
    assert model.encoder.render(held_out_dialogue(1_000_001).observation).endswith("robot :")


@pytest.mark.sim
def test_a_draft_hears_half_of_the_answers_from_its_target() -> None:
    tok = tokenizer()
    guide = new_text_training_state(replace(SMALL, role="target"), len(tok)).model.eval()
    talks = TextDataset(tok, 8, 0)
    rows, guided = talks.rows(1), GuidedTextDataset(talks, guide)
    guided.batch(1)
    own = guided._pool[0]
    assert [a == b for a, b in zip(rows, own, strict=True)] == [True, False] * 4
    greedy, length = own[1]
    with torch.no_grad():
        said = guide(torch.tensor([greedy])).logits[0, length - 1 : -1].argmax(-1).tolist()
    assert said == greedy[length:], "every second of them is the first choice"
    assert all(ids[:n] == rows[i][0][:n] for i, (ids, n) in enumerate(own))
    assert EOS_ID not in greedy[length:-1]


def test_training_begins_from_the_language_part_of_a_model_that_sees(tmp_path: Path) -> None:
    other = new_text_training_state(replace(SMALL, seed=5), 40).model
    tensors = {f"language_model.{n}": t for n, t in other.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, tmp_path / "model.safetensors")
    begun = new_text_training_state(replace(SMALL, start=tmp_path), 40).model
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in begun.state_dict().items())
    with pytest.raises(ModelError, match="cannot load"):
        new_text_training_state(replace(SMALL, role="target", start=tmp_path), 40)
    with pytest.raises(ModelError, match="cannot load"):
        new_text_training_state(replace(SMALL, start=tmp_path / "none"), 40)


def test_options_of_the_eye_are_refused_with_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "target", "--text", "--vision-steps", "3", "--json"]) == 2
    assert "--vision-steps is for models that see" in json.loads(capsys.readouterr().out)["message"]


def test_plans_are_held_against_the_teachers() -> None:
    dialogue = draw(np.random.default_rng(3), VIEW[:2])
    assert plan_figures([dialogue], [dialogue.answer])["plan_exact"] == 1.0
    wanted = parse_answer("turn(25) forward(1.1) done()")
    assert near(parse_answer("turn(35) forward(0.9) done()"), wanted)
    assert not near(parse_answer("turn(40) forward(1.1) done()"), wanted)
    assert not near(parse_answer("turn(25) forward(0.8) done()"), wanted)
    assert not near(parse_answer("turn(25) done()"), wanted)

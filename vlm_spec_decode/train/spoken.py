"""The world told in words: what the camera would show, as a sentence in front of the instruction.

The teacher then answers from what was told, rounded as it was told, so that the answer follows from the words
alone. Knows rooms, words and the teacher; no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from vlm_spec_decode.models.prompt import with_scene
from vlm_spec_decode.sim.scene import footprint_radius_m, random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train import dialogues, sight, teacher
from vlm_spec_decode.train.dialogues import Dialogue
from vlm_spec_decode.train.frames import sample_pose
from vlm_spec_decode.train.held_out import held_out
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.outlook import outlook
from vlm_spec_decode.train.sight import MAX_TOLD, Thing

STEP_DEG = 5
FARTHEST_M = 5.0
"""As far as the vocabulary of numbers goes; what is farther is told as this far."""

NEW_WORDING_SHARE = 0.3
"""Of the plain ways to say "go to" in evaluation, those that no training has heard."""


def told(view: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """Return what is told of a view, left to right: the largest `MAX_TOLD`, in 5 degrees and 0.1 m."""
    seen = sorted((t for t in view if t.seen), key=lambda t: -t.pixels)[:MAX_TOLD]
    return tuple(_rounded(t) for t in sorted(seen, key=lambda t: -t.bearing_deg))


def scene_text(things: tuple[Thing, ...]) -> str:
    """Say where things are, such as "a red chair 25 degrees left at 2.0 m , a blue box ahead at 1.4 m"."""
    return " , ".join(f"a {t.name} {_direction(t)} at {t.distance_m:.1f} m" for t in things) or "nothing"


def draw(rng: np.random.Generator, view: tuple[Thing, ...]) -> Dialogue:
    """Draw one dialogue about a view; the scene's words are part of what the user says."""
    known = told(view)
    names = {t.name for t in known}
    hidden = tuple(replace(t, pixels=0) for t in view if t.name not in names)
    return _in_words(dialogues.draw(rng, known + hidden), known)


def views(seed: int, poses: int, forbid: frozenset[str] = frozenset()) -> Iterator[tuple[Thing, ...]]:
    """Yield what is true of every object of the room of `seed`, seen from `poses` places."""
    world = World(random_scene(seed, num_objects=(2, 6), forbid=forbid), seed=seed)
    rng = np.random.default_rng([seed, 0xF2])
    for _ in range(poses):
        world.teleport(sample_pose(world, rng))
        yield sight.things(outlook(world))


def training_dialogues(rng: np.random.Generator, rooms: int, poses: int, each: int) -> list[Dialogue]:
    """Draw `each` dialogues from each of `poses` places in `rooms` rooms that may be trained on."""
    seeds = rng.integers(0, held_out().first_scene_seed, rooms)
    seen = [view for seed in seeds.tolist() for view in views(seed, poses, held_out().pairs)]
    return [draw(rng, view) for view in seen for _ in range(each)]


def held_out_dialogue(seed: int) -> Dialogue:
    """Draw the dialogue of a room that no training has seen, partly in wordings that none has heard."""
    rng = np.random.default_rng([seed, 0x7E57])
    view = next(views(seed, 1))
    dialogue = draw(rng, view)
    goal = dialogue.goal
    is_plain = goal.verb == "goto" and goal == Goal(goal.text, "goto", goal.thing)
    if not is_plain or rng.random() >= NEW_WORDING_SHARE:
        return dialogue
    forms = held_out().wordings
    text = forms[int(rng.integers(len(forms)))].format(x=goal.thing)
    return replace(dialogue, goal=replace(goal, text=with_scene(scene_text(told(view)), text)))


def _in_words(dialogue: Dialogue, known: tuple[Thing, ...]) -> Dialogue:
    """Put the scene in front of the instruction, and answer from what was told."""
    goal = dialogue.goal
    answer = teacher.answer(goal, known, dialogue.history)
    text = with_scene(scene_text(known), goal.text)
    return Dialogue(replace(goal, text=text), dialogue.history, answer)


def _rounded(thing: Thing) -> Thing:
    distance = round(min(FARTHEST_M, max(0.0, thing.distance_m)), 1)
    bearing = float(STEP_DEG * round(thing.bearing_deg / STEP_DEG))
    centre = distance + footprint_radius_m(thing.kind)
    return replace(thing, bearing_deg=bearing, distance_m=distance, centre_m=centre)


def _direction(thing: Thing) -> str:
    angle = round(abs(thing.bearing_deg))
    if angle == 0:
        return "ahead"
    return f"{angle} degrees {'left' if thing.bearing_deg > 0 else 'right'}"

"""Episodes that are told in people's own words: the tasks of `train.episodes` in the phrasings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.train.episodes import Task, draw_task
from vlm_spec_decode.train.instructions import GESTURES, Goal, held_out
from vlm_spec_decode.train.phrasings import Phrasing
from vlm_spec_decode.train.spoken_dialogues import Saying, Sayings, about, motion, picked

_MEANINGS = {
    "go to": "goto",
    "stop before": "goto_stop",
    "behind": "goto_behind",
    "face": "face",
    "find": "find",
    "follow": "follow",
    "pass": "pass",
    "absent": "goto",
}
_NEVER = {"unsafe": "unsafe", "impossible": "impossible", "unknown": "meaningless"}
_PICKED = {"nearest": "goto_nearest", "leftmost": "goto_leftmost", "rightmost": "goto_rightmost"}
PLAIN = ("forward", "back", "strafe", "turn")


def held_out_phrasing_task(seed: int, world: World, camera: FrontCamera) -> Task:
    """Draw the task of a seed as `episodes.draw_task`, told in a held-out phrasing."""
    return _spoken(draw_task(seed, world, camera), Sayings("held_out"))


def taught_phrasing_task(
    seed: int, world: World, camera: FrontCamera, kinds: dict[str, float] | None = None
) -> Task:
    """Draw the same task, of one of these kinds, told in a taught phrasing."""
    return _spoken(draw_task(seed, world, camera, kinds), Sayings())


def _spoken(task: Task, sayings: Sayings) -> Task:
    rng = np.random.default_rng([task.seed, 0x5A1E])
    goal = task.goal
    if task.kind in _MEANINGS:
        saying = about(rng, sayings.phrasing(rng, _MEANINGS[task.kind]), task.thing or goal.thing)
    elif task.kind == "nearest or outermost" and not goal.pick:  # nothing was in view to choose from
        saying = about(rng, sayings.phrasing(rng, "goto"), task.thing)
    elif task.kind == "nearest or outermost":
        saying = picked(rng, sayings.phrasing(rng, _PICKED[goal.pick]), goal.thing)
    elif task.kind in _NEVER:
        phrasing = sayings.phrasing(rng, _NEVER[task.kind])
        return replace(task, goal=sayings.say(rng, (), phrasing).goal)
    elif task.kind == "plain motion":
        name = {"forward": "back" if "-" in goal.action else "forward"}.get(
            call := goal.action.split()[0], call
        )
        phrasing = sayings.phrasing(rng, name)
        saying = motion(rng, phrasing)
        # The room has space for the motion that was drawn with it: this one is no longer.
        while not _fits(saying, goal.action):
            saying = motion(rng, phrasing)
    elif task.kind == "go and act":
        phrasing = sayings.phrasing(rng, "two")
        first = about(rng, Phrasing("goto", "command", "go to the {x}"), task.thing)
        act = GESTURES[goal.action][int(rng.integers(len(GESTURES[goal.action])))]
        text = phrasing.text.format(first=first.goal.text, second=act)
        saying = Saying(replace(first.goal, text=text, action=goal.action), phrasing)
    else:
        return task
    return replace(task, goal=replace(saying.goal, text=sayings.typed(rng, saying)))


def held_out_pair_task(seed: int, world: World, camera: FrontCamera) -> Task:
    """Draw a "go to" about an object of a held-out pair, in a room of `pair_seeds`."""
    rng = np.random.default_rng([seed, 0x9A1F])
    pairs = sorted(held_out().pairs & set(world.scene.names))
    thing = pairs[int(rng.integers(len(pairs)))]
    goal = Goal(f"go to the {thing}", "goto", thing)
    return Task(seed, "go to", goal, thing, camera.visible(thing))


def pair_seeds(first_seed: int, count: int) -> list[int]:
    """Return the first `count` seeds from `first_seed` on whose rooms hold a held-out pair."""
    found: list[int] = []
    seed = first_seed
    while len(found) < count:
        if held_out().pairs & set(random_scene(seed).names):
            found.append(seed)
        seed += 1
    return found


def _fits(saying: Saying, action: str) -> bool:
    """Whether a plain motion is a single action, and no longer than `action`, to the same side."""
    if saying.goal.verb != "act" or saying.goal.action.count("(") != 1:
        return False
    new, old = (float(text.split()[2]) for text in (saying.goal.action, action))
    is_turn = action.startswith("turn")
    return is_turn or (new * old > 0 and abs(new) <= abs(old))

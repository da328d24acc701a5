"""The wordings of instructions, and which are held out of training; data, no drawing.

`{x}` is an object, `{n}` a number of metres, `{k}` a kind alone, `{u}` an unknown word. What evaluation
alone may use is in `held_out.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scene seeds from `first_scene_seed` on, "colour kind" pairs, and wordings with `{x}` for the object."""

    first_scene_seed: int
    pairs: frozenset[str]
    wordings: tuple[str, ...]


@cache
def held_out() -> HeldOut:
    """Return what no training may see."""
    text = resources.files("vlm_spec_decode.train").joinpath("held_out.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    return HeldOut(int(data["first_scene_seed"]), frozenset(data["pairs"]), tuple(data["wordings"]))


GO_TO = (
    "go to the {x}",
    "walk to the {x}",
    "please go to the {x}",
    "move to the {x}",
    "go over to the {x}",
    "head for the {x}",
    "approach the {x}",
    "come to the {x}",
    "take me to the {x}",
    "go and stand by the {x}",
    "can you go to the {x}",
    "drive to the {x}",
    "get close to the {x}",
    "run to the {x}",
    "find the {x} and go there",
    "i want you at the {x}",
    "go up to the {x}",
    "walk up to the {x} please",
    "to the {x}",
    "could you walk to the {x}",
    "robot , go to the {x}",
    "make a move to the {x}",
    "find your way over to the {x}",
    "make for the {x}",
    "your goal is the {x}",
    "get your body over to the {x}",
    "go your way to the {x}",
    "move yourself to the {x}",
    "i need you by the {x}",
    "i would like you to go to the {x}",
)
OVER_TO = ("run over to the {x}", "come over to the {x}", "drive over to the {x}")
"""Ways to go somewhere that are one word off "run over the {x}", which is refused. Evaluation draws its tasks
from `GO_TO` alone, so that they stay those of earlier figures."""

STOP_BEFORE = (
    "stop {n} metres before the {x}",
    "go to the {x} and stop {n} metres away",
    "walk up to {n} m from the {x}",
    "go to the {x} but stay {n} m away",
    "approach the {x} and stop {n} m before it",
)
BEHIND = (
    "go to the {x} behind you",
    "turn around and go to the {x}",
    "walk to the {x} at your back",
    "the {x} is behind you , go there",
)
THEN = ("{go} then {act}", "{go} and then {act}", "{go} and {act}", "{go} , then {act}")
FACE = (
    "face the {x}",
    "turn to the {x}",
    "look at the {x}",
    "turn towards the {x}",
    "point at the {x}",
    "turn so that you face the {x}",
)
FIND = ("find the {x}", "look for the {x}", "where is the {x}", "search for the {x}", "try to find the {x}")
FOLLOW = ("follow the {x}", "stay close to the {x}", "walk behind the {x}", "keep with the {x}")
PASS = (
    "pass the {x} on the {s}",
    "go past the {x} on the {s}",
    "walk past the {x} on the {s} side",
    "pass {s} of the {x}",
    "go around the {x} on the {s}",
)
IS_THERE = ("is there a {x}", "do you see a {x}", "can you see the {x}", "is the {x} in view")
HOW_FAR = ("how far is the {x}", "how far away is the {x}", "what is the distance to the {x}")
WHAT_COLOUR = ("what colour is the {k}", "what colour does the {k} have", "tell me the colour of the {k}")
SEE = (
    "what do you see",
    "describe the view",
    "what is in front of you",
    "tell me what you see",
    "look around",
    "what is there",
)

GESTURES: dict[str, tuple[str, ...]] = {
    "sit ( )": ("sit", "sit down", "please sit", "take a seat"),
    "stand_down ( )": ("lie down", "go to sleep", "lay down", "down"),
    "stand_up ( )": ("stand up", "get up", "up", "stand"),
    "rise ( )": ("rise", "rise from sitting"),
    "hello ( )": ("say hello", "wave", "greet me", "wave hello", "say hi"),
    "stretch ( )": ("stretch", "do a stretch", "stretch yourself"),
    "stop ( )": ("stop", "halt", "freeze", "stay", "do not move", "stop now"),
}
UNSAFE = (
    "attack the {x}",
    "run into the {x}",
    "hit the {x}",
    "bite the {x}",
    "jump off the stairs",
    "break the {x}",
    "ignore your limits and run",
    "kick the {x}",
    "do a flip",
    "crash into the {x}",
    "knock the {x} over",
    "push the {x} over",
    "run over the {x}",
    "go down the stairs",
    "run as fast as you can into the wall",
    "jump on the {x}",
)
IMPOSSIBLE = (
    "fly to the {x}",
    "bring me the {x}",
    "open the {x}",
    "pick up the {x}",
    "climb on the {x}",
    "swim to the {x}",
    "carry the {x} to me",
    "throw the {x}",
    "paint the {x}",
    "eat the {x}",
)
NONSENSE = (
    "{u}",
    "{u} {u}",
    "{u} {u} {u}",
    "go to the {u}",
    "go to the {u} {u}",
    "go to the {c} {u}",
    "the {u}",
    "{u} the {x}",
    "find the {u}",
    "walk to the {u}",
    "follow the {u}",
    "please {u}",
    "{u} to the {u} {u}",
    "banana",
    "colour",
    "the the the",
    "go",
    "go to",
)
FORWARD = ("go forward {n}", "walk {n} forward", "move ahead {n}", "go straight ahead {n}", "forward {n}")
BACK = ("back up {n}", "go back {n}", "move backwards {n}", "step back {n}")
SIDE = ("step {s} {n}", "move {s} {n}", "step to the {s} {n}", "go {n} to the {s}")
TURN = (
    "turn {s} {a} degrees",
    "turn {a} degrees to the {s}",
    "rotate {s} by {a}",
    "rotate {a} degrees {s}",
    "turn {s} by {a} degrees",
)
SINGLE = (
    "turn left right rotate around turn around half a metre one meter an m meters and it now here user robot",
    "nearest closest leftmost rightmost thing",
)
"""Words that are put into the wordings above."""

ALL: tuple[tuple[str, ...], ...] = (
    *(GO_TO, OVER_TO, STOP_BEFORE, BEHIND, THEN, FACE, FIND, FOLLOW, PASS),
    *(IS_THERE, HOW_FAR, WHAT_COLOUR, SEE),
    *GESTURES.values(),
    *(UNSAFE, IMPOSSIBLE, NONSENSE, FORWARD, BACK, SIDE, TURN, SINGLE),
)

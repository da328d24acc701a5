"""Random instructions of people to the robot: an intent, its object, and a wording.

Language only. `{x}` is an object, `{n}` a number of metres, `{k}` a kind alone, `{u}` an unknown word.
Scenes, pairs and wordings reserved for evaluation are in `held_out.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, TypeAlias

import numpy as np
import yaml

from vlm_spec_decode.sim.objects import COLOURS, KINDS


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scene seeds from `first_scene_seed` on, "colour kind" pairs, and wordings with `{x}` for the object."""

    first_scene_seed: int
    pairs: frozenset[str]
    wordings: tuple[str, ...]


@cache
def held_out() -> HeldOut:
    """Return the scenes, pairs and wordings that no training may use."""
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
"""Wordings that differ in one word from "run over the {x}", which is refused. Evaluation uses `GO_TO` alone,
so that its tasks stay those of earlier figures."""

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
"""Words that are inserted into the wordings above."""

ALL: tuple[tuple[str, ...], ...] = (
    *(GO_TO, OVER_TO, STOP_BEFORE, BEHIND, THEN, FACE, FIND, FOLLOW, PASS),
    *(IS_THERE, HOW_FAR, WHAT_COLOUR, SEE),
    *GESTURES.values(),
    *(UNSAFE, IMPOSSIBLE, NONSENSE, FORWARD, BACK, SIDE, TURN, SINGLE),
)


STOP_M = 0.5
"""Wanted distance from the base's centre to the footprint; the gate lets the robot come within 0.45 m."""

STOP_SHARE = 0.22
"""Share of "go to" with a stop distance, which takes the most examples to learn."""

BEHIND_SHARE, ACT_SHARE = 0.05, 0.11
"""Shares of "go to" for objects behind the robot, and of those followed by a gesture."""

FOLLOW_M = 1.0
"""Distance kept to a followed object."""

Verb: TypeAlias = Literal[
    "goto",
    "face",
    "find",
    "follow",
    "pass",
    "see",
    "ask",
    "act",
    "unknown",
    "unsafe",
    "impossible",
]
SpokenVerb: TypeAlias = Literal["negated", "too_far", "too_long"]
"""Verbs of `train.spoken_dialogues` alone."""

Pick: TypeAlias = Literal["", "nearest", "farthest", "leftmost", "rightmost"]
Relation: TypeAlias = Literal["", "beside", "behind", "left", "right"]

PICKS: dict[str, Pick] = {
    "nearest": "nearest",
    "closest": "nearest",
    "leftmost": "leftmost",
    "rightmost": "rightmost",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """An instruction and what it means. `action` is what an `act` does or what follows a `goto`.

    `thing` is "colour kind", a kind alone, or empty for any; `pick` chooses among those that fit. `stop_m` is
    the wanted distance to its footprint, `side` that on which it is passed. `is_behind` says that the robot
    is to turn around first. The verb `ask` is answered in words, by `action`: "there", "far", "colour",
    "many" or "nearer". `relation` says where `thing` is as seen from the robot: beside, behind, left or right
    of `other`; a question of which is nearer is about `thing` and `other`. `before` are actions to carry out
    first. `may_ask`: with several that fit, the robot asks which one is meant.
    """

    text: str
    verb: Verb | SpokenVerb
    thing: str = ""
    action: str = ""
    stop_m: float = STOP_M
    pick: Pick = ""
    side: Literal["", "left", "right"] = ""
    is_behind: bool = False
    relation: Relation = ""
    other: str = ""
    before: str = ""
    may_ask: bool = False

    @property
    def stops_short(self) -> bool:
        """Whether the instruction itself gives the distance at which to stop."""
        return self.verb == "goto" and self.stop_m != STOP_M

    @property
    def called(self) -> str:
        """The robot's name for the object while it does not see it."""
        return self.thing or "thing"


def go_to(rng: np.random.Generator, thing: str, act_share: float) -> Goal:
    """Draw a wording of going to `thing`, perhaps with a stop distance or, with `act_share`, a gesture."""
    kind = rng.random()
    if kind < STOP_SHARE:
        stop = round(float(rng.integers(8, 21)) / 10, 1)
        words = _pick(rng, STOP_BEFORE).format(x=thing, n=f"{stop:.1f}")
        return Goal(words, "goto", thing, stop_m=stop)
    if kind < STOP_SHARE + BEHIND_SHARE:
        return Goal(_pick(rng, BEHIND).format(x=thing), "goto", thing, is_behind=True)
    words = _pick(rng, GO_TO + OVER_TO).format(x=thing)
    if kind < STOP_SHARE + BEHIND_SHARE + act_share:
        action = _pick(rng, tuple(GESTURES)[:6])
        gesture = _pick(rng, GESTURES[action])
        return Goal(_pick(rng, THEN).format(go=words, act=gesture), "goto", thing, action)
    return Goal(words, "goto", thing)


def picked(rng: np.random.Generator, kind: str) -> Goal:
    """Draw going to, or facing, the nearest, leftmost or rightmost of a kind, or of all objects if empty."""
    word = _pick(rng, tuple(PICKS))
    forms, verb = (GO_TO, "goto") if rng.random() < 0.75 else (FACE, "face")
    words = _pick(rng, forms).format(x=f"{word} {kind or 'thing'}")
    return Goal(words, "goto" if verb == "goto" else "face", kind, pick=PICKS[word])


def about(rng: np.random.Generator, thing: str) -> Goal:
    """Draw an instruction about an object other than going to it."""
    kind = rng.random()
    if kind < 0.24:
        return Goal(_pick(rng, FACE).format(x=thing), "face", thing)
    if kind < 0.42:
        return Goal(_pick(rng, FIND).format(x=thing), "find", thing)
    if kind < 0.60:
        return Goal(_pick(rng, FOLLOW).format(x=thing), "follow", thing, stop_m=FOLLOW_M)
    # A door stands in a wall: nobody passes it.
    if kind < 0.82 and not thing.endswith("door"):
        return past(rng, thing)
    return question(rng, thing)


def past(rng: np.random.Generator, thing: str) -> Goal:
    """Draw walking past an object on one side of it, as the robot sees it."""
    side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
    return Goal(_pick(rng, PASS).format(x=thing, s=side), "pass", thing, side=side)


def question(rng: np.random.Generator, thing: str) -> Goal:
    """Draw a question about an object, answered from this view."""
    kind = rng.random()
    if kind < 0.4:
        return Goal(_pick(rng, IS_THERE).format(x=thing), "ask", thing, "there")
    if kind < 0.7:
        return Goal(_pick(rng, HOW_FAR).format(x=thing), "ask", thing, "far")
    what = thing.rsplit(maxsplit=1)[-1]
    return Goal(_pick(rng, WHAT_COLOUR).format(k=what), "ask", what, "colour")


def other(rng: np.random.Generator, thing: str) -> Goal:
    """Draw an instruction without an object, or one that cannot or must not be carried out."""
    kind = rng.random()
    if kind < 0.12:
        return Goal(_pick(rng, SEE), "see")
    if kind < 0.48:
        return motion(rng)
    if kind < 0.66:
        action = _pick(rng, tuple(GESTURES))
        return Goal(_pick(rng, GESTURES[action]), "act", action=action)
    if kind < 0.79:
        return Goal(_pick(rng, UNSAFE).format(x=thing), "unsafe")
    if kind < 0.88:
        return Goal(_pick(rng, IMPOSSIBLE).format(x=thing), "impossible")
    words = _pick(rng, NONSENSE).format(u="<unk>", c=_pick(rng, COLOURS), x=thing)
    return Goal(words, "unknown")


def motion(rng: np.random.Generator) -> Goal:
    """Draw a plain motion with a number, sometimes in words."""
    kind = rng.random()
    side, sign = ("left", 1) if rng.random() < 0.5 else ("right", -1)
    if kind < 0.45:
        return _turning(rng, side, sign)
    distance = round(float(rng.integers(2, 31)) / 10, 1)
    amount = f"{distance:.1f} {_pick(rng, ('metres', 'm', 'meters'))}"
    if rng.random() < 0.3:
        metre = ("a metre", "one metre", "a meter", "1.0 metre")
        is_whole = rng.random() < 0.6
        distance, amount = (1.0, _pick(rng, metre)) if is_whole else (0.5, "half a metre")
    if kind < 0.65:
        return _act(_pick(rng, FORWARD).format(n=amount), f"forward ( {distance:.1f} )")
    if kind < 0.8:
        return _act(_pick(rng, BACK).format(n=amount), f"forward ( -{distance:.1f} )")
    minus = "" if side == "left" else "-"
    return _act(_pick(rng, SIDE).format(s=side, n=amount), f"strafe ( {minus}{distance:.1f} )")


def _turning(rng: np.random.Generator, side: str, sign: int) -> Goal:
    angle = int(rng.integers(2, 37)) * 5
    if rng.random() < 0.08:
        return _act("turn around", "turn ( 180 )")
    if rng.random() < 0.15:
        return _act(_pick(rng, (f"turn {side}", f"rotate {side}")), f"turn ( {90 * sign} )")
    return _act(_pick(rng, TURN).format(s=side, a=angle), f"turn ( {sign * angle} )")


def words() -> tuple[str, ...]:
    """Every word that instructions use, for the vocabulary."""
    texts = [text for forms in (*ALL, held_out().wordings) for text in forms]
    return (*COLOURS, *KINDS, *(w for text in texts for w in text.split() if "{" not in w and "<" not in w))


def _act(text: str, action: str) -> Goal:
    return Goal(text, "act", action=action)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]

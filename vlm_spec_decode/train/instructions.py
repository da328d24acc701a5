"""What people say to the robot: intents and the many wordings of each.

Knows language only. `HELD_OUT_WORDINGS` are never trained on; evaluation uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from vlm_spec_decode.sim.scene import COLOURS, KINDS

STOP_M = 0.53
"""Wanted distance from the base's centre to the footprint; the gate lets the robot come within 0.45 m."""

Verb: TypeAlias = Literal["goto", "face", "find", "see", "act", "unknown", "unsafe"]

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
)
STOP_BEFORE = (
    "stop {n} metres before the {x}",
    "go to the {x} and stop {n} metres away",
    "walk up to {n} m from the {x}",
)
THEN = ("{go} then {act}", "{go} and then {act}", "{go} and {act}", "{go} , then {act}")
FACE = ("face the {x}", "turn to the {x}", "look at the {x}", "turn towards the {x}")
FIND = ("find the {x}", "look for the {x}", "where is the {x}", "search for the {x}", "do you see a {x}")
SEE = (
    "what do you see",
    "describe the view",
    "what is in front of you",
    "tell me what you see",
    "look around",
)
HELD_OUT_WORDINGS = ("walk over to the {x}", "please head to the {x}", "move over to the {x} please")

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
    "please {u}",
    "{u} to the {u} {u}",
    "banana",
    "colour",
    "the the the",
    "go",
    "go to",
)


@dataclass(frozen=True, slots=True)
class Goal:
    """An instruction and what it means. `action` is what an `act` does or what follows a `goto`.

    `thing` is "colour kind" or a kind alone; `stop_m` the wanted distance to its footprint.
    """

    text: str
    verb: Verb
    thing: str = ""
    action: str = ""
    stop_m: float = STOP_M


def go_to(rng: np.random.Generator, thing: str) -> Goal:
    """Some wording of going to `thing`, perhaps stopping short of it or doing something there."""
    kind = rng.random()
    if kind < 0.12:
        stop = round(float(rng.integers(8, 21)) / 10, 1)
        return Goal(_pick(rng, STOP_BEFORE).format(x=thing, n=f"{stop:.1f}"), "goto", thing, stop_m=stop)
    words = _pick(rng, GO_TO).format(x=thing)
    if kind < 0.25:
        action = _pick(rng, tuple(GESTURES)[:6])
        return Goal(
            _pick(rng, THEN).format(go=words, act=_pick(rng, GESTURES[action])), "goto", thing, action
        )
    return Goal(words, "goto", thing)


def other(rng: np.random.Generator, thing: str) -> Goal:
    """Some instruction that is not about going to a thing."""
    kind = rng.random()
    if kind < 0.14:
        return Goal(_pick(rng, FACE).format(x=thing), "face", thing)
    if kind < 0.24:
        return Goal(_pick(rng, FIND).format(x=thing), "find", thing)
    if kind < 0.34:
        return Goal(_pick(rng, SEE), "see")
    if kind < 0.60:
        return motion(rng)
    if kind < 0.74:
        action = _pick(rng, tuple(GESTURES))
        return Goal(_pick(rng, GESTURES[action]), "act", action=action)
    if kind < 0.82:
        return Goal(_pick(rng, UNSAFE).format(x=thing), "unsafe")
    words = _pick(rng, NONSENSE).format(u="<unk>", c=_pick(rng, COLOURS), x=thing)
    return Goal(words, "unknown")


def motion(rng: np.random.Generator) -> Goal:
    """A plain motion with a number, some of them in words."""
    kind = rng.random()
    if kind < 0.45:
        angle = int(rng.integers(2, 37)) * 5
        side, sign = ("left", 1) if rng.random() < 0.5 else ("right", -1)
        forms = (
            f"turn {side} {angle} degrees",
            f"turn {angle} degrees to the {side}",
            f"rotate {side} by {angle}",
        )
        words = _pick(rng, forms)
        if angle == 90 or rng.random() < 0.15:
            angle, words = 90, _pick(rng, (f"turn {side}", f"rotate {side}"))
        if rng.random() < 0.08:
            angle, words = 180, "turn around"
            sign = 1
        return Goal(words, "act", action=f"turn ( {sign * angle} )")
    distance = round(float(rng.integers(2, 31)) / 10, 1)
    amount = f"{distance:.1f} {_pick(rng, ('metres', 'm', 'meters'))}"
    if rng.random() < 0.3:
        distance, amount = (
            (1.0, _pick(rng, ("a metre", "one metre", "a meter")))
            if rng.random() < 0.6
            else (0.5, "half a metre")
        )
    if kind < 0.65:
        return Goal(
            _pick(rng, ("go forward {n}", "walk {n} forward", "move ahead {n}")).format(n=amount),
            "act",
            action=f"forward ( {distance:.1f} )",
        )
    if kind < 0.8:
        return Goal(
            _pick(rng, ("back up {n}", "go back {n}", "move backwards {n}")).format(n=amount),
            "act",
            action=f"forward ( -{distance:.1f} )",
        )
    side, minus = ("left", "") if rng.random() < 0.5 else ("right", "-")
    words = _pick(rng, ("step {s} {n}", "move {s} {n}", "step to the {s} {n}")).format(s=side, n=amount)
    return Goal(words, "act", action=f"strafe ( {minus}{distance:.1f} )")


def words() -> tuple[str, ...]:
    """Every word that instructions use, for the vocabulary."""
    texts = [*GO_TO, *STOP_BEFORE, *THEN, *FACE, *FIND, *SEE, *HELD_OUT_WORDINGS, *UNSAFE, *NONSENSE]
    texts += [t for forms in GESTURES.values() for t in forms]
    texts += [
        "turn left right degrees to the rotate by around go forward walk move ahead back up backwards step",
        "metres m meters metre meter a one half an and then please robot user done now here it",
    ]
    return (*COLOURS, *KINDS, *(w for text in texts for w in text.split() if "{" not in w and "<" not in w))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]

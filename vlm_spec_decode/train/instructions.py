"""Random instructions of people to the robot: an intent, its object, and a wording.

Language only. The wordings are in `train.wordings`, those never trained on in `held_out.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import wordings
from vlm_spec_decode.train.wordings import held_out

STOP_M = 0.5
"""Wanted distance from the base's centre to the footprint; the gate lets the robot come within 0.45 m."""

STOP_SHARE = 0.22
"""Of all "go to": those that say how far from the thing to stop, which takes the most examples to learn."""

BEHIND_SHARE, ACT_SHARE = 0.05, 0.11
"""Of all "go to": those to what is behind the robot, and those that go on with a gesture."""

FOLLOW_M = 1.0
"""Distance kept to what is followed."""

Verb: TypeAlias = Literal[
    "goto", "face", "find", "follow", "pass", "see", "ask", "act", "unknown", "unsafe", "impossible"
]
Pick: TypeAlias = Literal["", "nearest", "leftmost", "rightmost"]

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
    is to turn around first. An `ask` is answered in words, by `action`: "there", "far" or "colour".
    """

    text: str
    verb: Verb
    thing: str = ""
    action: str = ""
    stop_m: float = STOP_M
    pick: Pick = ""
    side: Literal["", "left", "right"] = ""
    is_behind: bool = False

    @property
    def stops_short(self) -> bool:
        """Whether the instruction itself says how far from the thing the robot is to stand."""
        return self.verb == "goto" and self.stop_m != STOP_M

    @property
    def called(self) -> str:
        """What the robot calls the thing while it does not see it."""
        return self.thing or "thing"


def go_to(rng: np.random.Generator, thing: str, act_share: float) -> Goal:
    """Some wording of going to `thing`, perhaps stopping short of it or, `act_share` of all, doing more."""
    kind = rng.random()
    if kind < STOP_SHARE:
        stop = round(float(rng.integers(8, 21)) / 10, 1)
        words = _pick(rng, wordings.STOP_BEFORE).format(x=thing, n=f"{stop:.1f}")
        return Goal(words, "goto", thing, stop_m=stop)
    if kind < STOP_SHARE + BEHIND_SHARE:
        return Goal(_pick(rng, wordings.BEHIND).format(x=thing), "goto", thing, is_behind=True)
    words = _pick(rng, wordings.GO_TO + wordings.OVER_TO).format(x=thing)
    if kind < STOP_SHARE + BEHIND_SHARE + act_share:
        action = _pick(rng, tuple(wordings.GESTURES)[:6])
        said = _pick(rng, wordings.GESTURES[action])
        return Goal(_pick(rng, wordings.THEN).format(go=words, act=said), "goto", thing, action)
    return Goal(words, "goto", thing)


def picked(rng: np.random.Generator, kind: str) -> Goal:
    """Going to, or facing, the nearest, leftmost or rightmost of a kind, or of all things if it is empty."""
    word = _pick(rng, tuple(PICKS))
    forms, verb = (wordings.GO_TO, "goto") if rng.random() < 0.75 else (wordings.FACE, "face")
    words = _pick(rng, forms).format(x=f"{word} {kind or 'thing'}")
    return Goal(words, "goto" if verb == "goto" else "face", kind, pick=PICKS[word])


def about(rng: np.random.Generator, thing: str) -> Goal:
    """Some instruction about a thing that is not about going to it."""
    kind = rng.random()
    if kind < 0.24:
        return Goal(_pick(rng, wordings.FACE).format(x=thing), "face", thing)
    if kind < 0.42:
        return Goal(_pick(rng, wordings.FIND).format(x=thing), "find", thing)
    if kind < 0.60:
        return Goal(_pick(rng, wordings.FOLLOW).format(x=thing), "follow", thing, stop_m=FOLLOW_M)
    # A door stands in a wall: nobody passes it.
    if kind < 0.82 and not thing.endswith("door"):
        return past(rng, thing)
    return question(rng, thing)


def past(rng: np.random.Generator, thing: str) -> Goal:
    """Walking past a thing on one side of it, as the robot sees it."""
    side: Literal["left", "right"] = "left" if rng.random() < 0.5 else "right"
    return Goal(_pick(rng, wordings.PASS).format(x=thing, s=side), "pass", thing, side=side)


def question(rng: np.random.Generator, thing: str) -> Goal:
    """A question about a thing, answered from this view."""
    kind = rng.random()
    if kind < 0.4:
        return Goal(_pick(rng, wordings.IS_THERE).format(x=thing), "ask", thing, "there")
    if kind < 0.7:
        return Goal(_pick(rng, wordings.HOW_FAR).format(x=thing), "ask", thing, "far")
    what = thing.rsplit(maxsplit=1)[-1]
    return Goal(_pick(rng, wordings.WHAT_COLOUR).format(k=what), "ask", what, "colour")


def other(rng: np.random.Generator, thing: str) -> Goal:
    """Some instruction that needs no thing, or cannot or must not be carried out."""
    kind = rng.random()
    if kind < 0.12:
        return Goal(_pick(rng, wordings.SEE), "see")
    if kind < 0.48:
        return motion(rng)
    if kind < 0.66:
        action = _pick(rng, tuple(wordings.GESTURES))
        return Goal(_pick(rng, wordings.GESTURES[action]), "act", action=action)
    if kind < 0.79:
        return Goal(_pick(rng, wordings.UNSAFE).format(x=thing), "unsafe")
    if kind < 0.88:
        return Goal(_pick(rng, wordings.IMPOSSIBLE).format(x=thing), "impossible")
    words = _pick(rng, wordings.NONSENSE).format(u="<unk>", c=_pick(rng, COLOURS), x=thing)
    return Goal(words, "unknown")


def motion(rng: np.random.Generator) -> Goal:
    """A plain motion with a number, some of them in words."""
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
        return _act(_pick(rng, wordings.FORWARD).format(n=amount), f"forward ( {distance:.1f} )")
    if kind < 0.8:
        return _act(_pick(rng, wordings.BACK).format(n=amount), f"forward ( -{distance:.1f} )")
    minus = "" if side == "left" else "-"
    return _act(_pick(rng, wordings.SIDE).format(s=side, n=amount), f"strafe ( {minus}{distance:.1f} )")


def _turning(rng: np.random.Generator, side: str, sign: int) -> Goal:
    angle = int(rng.integers(2, 37)) * 5
    if rng.random() < 0.08:
        return _act("turn around", "turn ( 180 )")
    if rng.random() < 0.15:
        return _act(_pick(rng, (f"turn {side}", f"rotate {side}")), f"turn ( {90 * sign} )")
    return _act(_pick(rng, wordings.TURN).format(s=side, a=angle), f"turn ( {sign * angle} )")


def words() -> tuple[str, ...]:
    """Every word that instructions use, for the vocabulary."""
    texts = [text for forms in (*wordings.ALL, held_out().wordings) for text in forms]
    return (*COLOURS, *KINDS, *(w for text in texts for w in text.split() if "{" not in w and "<" not in w))


def _act(text: str, action: str) -> Goal:
    return Goal(text, "act", action=action)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]

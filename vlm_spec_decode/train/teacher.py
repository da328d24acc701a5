"""The teacher: what a robot with ground truth answers to a frame, and dialogues with its answers.

The answer is what the target learns: a short description of the relevant objects in view, then actions. The
loop is closed, so a first angle may be slightly off. A path past obstacles is one heading and one distance.

Dialogues about a frame are drawn anew every time from the truth about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.mission_loop import OBSTRUCTED
from vlm_spec_decode.models.prompt import DONE_MARK, MAX_HISTORY
from vlm_spec_decode.sim.objects import COLOURS, KINDS, footprint_radius_m
from vlm_spec_decode.train import instructions
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.scene_description import (
    AHEAD_DEG,
    VisibleObject,
    describe,
    direction_word,
    format_metres,
    rounded_m,
)

TURN_GRID_DEG = 10
"""How finely turns are told."""

BODY_HALF_WIDTH_M = 0.27
"""Half the body's width and a margin."""


def plan(thing: VisibleObject, view: tuple[VisibleObject, ...], step_m: float) -> tuple[float, float]:
    """Return heading in degrees and distance: straight at the thing, or past whatever is in the way."""
    others = [t for t in view if t is not thing and abs(t.bearing_deg) < 75]
    straight_deg = TURN_GRID_DEG * round(thing.bearing_deg / TURN_GRID_DEG)
    best = (float(straight_deg), 0.2)
    for off in (0, *_detours(thing, others)):
        heading = float(straight_deg + off)
        free_m = min((_free_m(t, heading) for t in others), default=math.inf)
        if free_m >= step_m:
            return heading, step_m
        if free_m > best[1]:
            best = (heading, free_m)
    return best[0], min(best[1], step_m)


def _detours(thing: VisibleObject, others: list[VisibleObject]) -> list[int]:
    """Angles off the straight way, small ones first, at each size the side away from what blocks it."""
    blocking = min(others, key=lambda t: _free_m(t, thing.bearing_deg), default=thing)
    side = -1 if blocking.bearing_deg > thing.bearing_deg else 1
    return [sign * side * off for off in range(10, 61, 10) for sign in (1, -1)]


def _free_m(other: VisibleObject, heading_deg: float) -> float:
    """How far one may walk along `heading_deg` before the body comes near `other`."""
    angle = math.radians(other.bearing_deg - heading_deg)
    along, across = other.centre_m * math.cos(angle), abs(other.centre_m * math.sin(angle))
    radius = footprint_radius_m(other.kind)
    if along <= 0 or across >= radius + BODY_HALF_WIDTH_M:
        return math.inf
    return max(0.0, along - radius - 0.5)


ARRIVED_M, STOPPED_M = 0.05, 0.12
"""Nearer than this to a thing, or to the distance before it at which to stop, is there."""

NO_FURTHER_M = 0.25
"""So near is there, too, once something in the way has stopped the robot: it is the thing itself."""

CAUTION = 0.75
"""Share of the way that is walked at once: a distance read from afar may be wrong by a fifth."""

SURE_M = 0.35
"""A way no longer than this is walked in one go."""

MAX_STEP_M = 1.5
SEARCH_DEG = 60
TRAVELS = frozenset({"goto", "follow", "pass"})
"""Verbs for which the robot may search from a second place, too."""

FULL_TURN = 6
"""Turns of SEARCH_DEG after which everything has been seen."""

SECOND_PLACE = (f"turn({SEARCH_DEG})", f"forward({MAX_STEP_M})")
"""What led to the place of the second search, as a history tells it."""

OTHER_WAY = ("turn(180)", f"forward({MAX_STEP_M})")
"""What leads there where something stops the robot on the first way."""

FOLLOW_SLACK_M = 0.25
PASS_GAP_M = 0.42
"""Between footprint and the body's middle while it is passed: half the body, the gate's margin, some air."""

PASS_GRID_DEG = 5
"""How finely turns to a tangent are told, which must be right at once."""

BEYOND_M = 0.5
LAST_LEG_M = 2.4
"""The rest of a way past something that is walked in one go; nearer, the thing may leave the view."""


def answer(goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...]) -> str:
    """Return what to say and do, in the tiny models' spaced form.

    First what is in view, whatever was asked; then what that means for the instruction. A small model
    decides far better whether the named thing is there once it has said what is.
    """
    history = tuple(entry.replace(" ", "") for entry in history)
    compares = goal.pick == "nearest" and not _has_walked(history)
    return f"{describe(view, with_distance=compares)} . {_reply(goal, view, history)}"


def _reply(goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...]) -> str:
    fixed = {
        "act": f"ok . {goal.action} done ( )",
        "unknown": "i do not know what that means . done ( )",
        "unsafe": "no , i will not do that . done ( )",
        "impossible": "no , i can not do that . done ( )",
        "see": "done ( )",
    }
    if goal.verb in fixed:
        return fixed[goal.verb]
    if goal.is_behind and not history:
        return "ok . turn ( 180 )"
    thing = find(goal, view, history)
    if goal.verb == "ask":
        return f"{_answer_question(goal, thing)} . done ( )"
    if thing is None:
        return _search(goal, history)
    about = f"the {thing.name} is {direction_word(thing)} at {format_metres(rounded_m(thing.distance_m))} m"
    if goal.stops_short:
        # Said first, the difference is easy to act on; never said, a small model does not learn to subtract.
        about += f" , to {format_metres(goal.stop_m)} m it is {_way_m(goal, thing):.1f} m"
    return f"{about} . {_actions(goal, thing, view, history)}"


def _actions(
    goal: Goal, thing: VisibleObject, view: tuple[VisibleObject, ...], history: tuple[str, ...]
) -> str:
    if goal.verb == "goto":
        return _approach(goal, thing, view, history)
    if goal.verb == "follow":
        return _follow(goal, thing, view)
    if goal.verb == "pass":
        return _pass(goal, thing)
    return f"{_turn(thing.bearing_deg) if goal.verb == 'face' else ''}done ( )"


def _answer_question(goal: Goal, thing: VisibleObject | None) -> str:
    if thing is None:
        return f"no , i do not see the {goal.thing}"
    if goal.action == "colour":
        return f"the {thing.kind} is {thing.colour}"
    return (
        f"yes , the {thing.name} is {direction_word(thing)} at {format_metres(rounded_m(thing.distance_m))} m"
    )


def find(goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...] = ()) -> VisibleObject | None:
    """Return the seen thing that is meant: of that name or kind, and the nearest if nothing else is said.

    What was picked as the nearest or leftmost is walked towards, so from then on it is the one ahead: on the
    way another may come nearer, but it was not meant.
    """
    fits = [t for t in view if t.is_visible and goal.thing in ("", t.name, t.kind)]
    order: dict[str, Callable[[VisibleObject], float]] = {
        "leftmost": lambda t: -t.bearing_deg,
        "rightmost": lambda t: t.bearing_deg,
    }
    if goal.pick and _has_walked(history):
        return min(fits, key=lambda t: abs(t.bearing_deg), default=None)
    return min(fits, key=order.get(goal.pick, lambda t: t.distance_m), default=None)


def _way_m(goal: Goal, thing: VisibleObject) -> float:
    """How far it still is to where the robot is to stand, as the told distances say; negative: too near."""
    return round(rounded_m(thing.distance_m) - goal.stop_m, 1) + 0.0  # never -0.0


def _has_walked(history: tuple[str, ...]) -> bool:
    return any("forward" in entry for entry in history)


def _is_glance(entry: str) -> bool:
    """Whether a history's entry is a turn towards something that was in view, not one of a search."""
    return entry.startswith("turn(") and abs(float(entry[5:-1])) != SEARCH_DEG


def _search(goal: Goal, history: tuple[str, ...]) -> str:
    """Turn on, the way that was begun; after a detour towards where the thing was left.

    `history` is what a prompt tells, the last `MAX_HISTORY` actions.
    """
    stopped = history[-1:] == (OBSTRUCTED,)
    is_dead_end = history[-3:] == (OBSTRUCTED, OTHER_WAY[0], OBSTRUCTED)
    history = tuple(entry for entry in history if entry != OBSTRUCTED)
    turns = [int(float(h[5:-1])) for h in history if h.startswith("turn(")]
    turned = 0
    for entry in reversed(history):
        if entry not in (f"turn({SEARCH_DEG})", f"turn(-{SEARCH_DEG})"):
            break
        turned += 1
    is_second_place = history[: len(history) - turned][-2:] in (SECOND_PLACE, OTHER_WAY)
    if goal.verb in TRAVELS and not is_second_place:
        # From somewhere else more may be seen.
        if turned == FULL_TURN:
            return f"i do not see the {goal.called} . turn ( {SEARCH_DEG} ) forward ( {MAX_STEP_M} )"
        if turned == FULL_TURN + 1 and stopped:
            return f"i do not see the {goal.called} . turn ( 180 ) forward ( {MAX_STEP_M} )"
    if turned >= FULL_TURN or is_dead_end:
        return f"i looked around and there is no {goal.called} here . stop ( ) done ( )"
    begun = turned > 0
    sign = -1 if turns and (turns[-1] < 0 if begun else turns[-1] > 0) else 1
    return f"i do not see the {goal.called} . turn ( {sign * SEARCH_DEG} )"


def _approach(
    goal: Goal, thing: VisibleObject, view: tuple[VisibleObject, ...], history: tuple[str, ...] = ()
) -> str:
    left_m = _way_m(goal, thing)
    last = history[-1] if history else ""
    if goal.stops_short and left_m < -STOPPED_M:
        return f"{_turn(thing.bearing_deg)}forward ( {left_m:.1f} )"
    near_m = STOPPED_M if goal.stops_short else NO_FURTHER_M if last == OBSTRUCTED else ARRIVED_M
    if left_m <= near_m:
        if abs(thing.bearing_deg) > AHEAD_DEG and not _is_glance(last):
            # What the picture's edge cuts off looks nearer than it is, so it is looked at before it counts.
            return _turn(thing.bearing_deg).strip()
        return f"{goal.action + ' ' if goal.action else ''}done ( )"
    careful_m = max(min(left_m, SURE_M), CAUTION * left_m)
    heading, step_m = plan(thing, view, min(careful_m, MAX_STEP_M))
    return f"{_turn(heading)}forward ( {format_metres(step_m)} )"


def _follow(goal: Goal, thing: VisibleObject, view: tuple[VisibleObject, ...]) -> str:
    """Keep the distance; never done, so that it goes on until somebody stops it."""
    if rounded_m(thing.distance_m) <= goal.stop_m + FOLLOW_SLACK_M:
        return f"{_turn(thing.bearing_deg)}wait ( 1.0 )"
    return _approach(goal, thing, view)


def _pass(goal: Goal, thing: VisibleObject) -> str:
    """Walk along a tangent that leaves `PASS_GAP_M` to the thing, to `BEYOND_M` past it."""
    gap = footprint_radius_m(thing.kind) + PASS_GAP_M
    sign = 1 if goal.side == "left" else -1
    aside_deg = math.degrees(math.asin(min(1.0, gap / max(thing.centre_m, gap))))
    heading = min(150.0, max(-150.0, thing.bearing_deg + sign * aside_deg))
    way_m = math.sqrt(max(0.0, thing.centre_m**2 - gap**2)) + BEYOND_M
    if way_m <= LAST_LEG_M:
        return f"{_turn(heading, PASS_GRID_DEG)}forward ( {format_metres(way_m)} ) done ( )"
    step_m = min(MAX_STEP_M, way_m - LAST_LEG_M + 0.5)
    return f"{_turn(heading, PASS_GRID_DEG)}forward ( {format_metres(step_m)} )"


def _turn(bearing_deg: float, grid_deg: int = TURN_GRID_DEG) -> str:
    angle = grid_deg * round(bearing_deg / grid_deg)
    return f"turn ( {angle} ) " if abs(angle) >= 10 else ""


def words() -> tuple[str, ...]:
    """Every word that answers use, for the vocabulary."""
    texts = (
        "ok . turn ( ) forward strafe look wait stop stand_up stand_down sit rise hello stretch done , ;",
        "i do not know what that means so i stay where i am . no will not do that because it is safe",
        "yes no can wait thing",
        "i see nothing but the room and a else ahead to my left right at m looked around there is no here",
    )
    return tuple(w for text in texts for w in text.split())


SHARES = {"go to": 0.46, "picked": 0.20, "about": 0.18, "other": 0.16}
"""How often what is said."""

NEAR_M = 1.0
"""Nearer than this, what a robot does last is mostly to turn to the thing, or to be stopped by it."""

NEAR_WEIGHT = 5.0
"""How much more often what is near is asked for: a few pictures of an episode, and where it ends."""

THERE_M, ACT_THERE_SHARE = 0.8, 0.5
"""What is so near has mostly been reached; only there is it learned what "then sit" asks for."""

SEARCHED = frozenset({"goto", "find", "face", "follow", "pass"})
"""What is searched for when it is not in view."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One instruction about one frame, and the teacher's answer in the spaced form."""

    goal: Goal
    history: tuple[str, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """What the user says, as `models.prompt.prompt_text` renders it; `<unk>` stands for unknown words."""
        return self.goal.text + (DONE_MARK + " ".join(self.history) if self.history else "")

    @property
    def observation(self) -> Observation:
        """The prompt's side as the engine would hold it, without the image."""
        return Observation(None, self.goal.text.replace("<unk>", "dragon"), self.history)


def draw_dialogue(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> Dialogue:
    """Draw one dialogue about a frame with these things in or out of view."""
    what = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    goal = _goal(rng, what, view)
    history = _arriving(rng, _history(rng, goal, view), find(goal, view))[-MAX_HISTORY:]
    return Dialogue(goal, history, answer(goal, view, history))


def _goal(rng: np.random.Generator, what: str, view: tuple[VisibleObject, ...]) -> Goal:
    thing = _choose(rng, view)
    if what == "go to":
        is_there = any(t.name == thing and t.distance_m < THERE_M for t in view if t.is_visible)
        return instructions.go_to(rng, thing, ACT_THERE_SHARE if is_there else instructions.ACT_SHARE)
    if what == "about":
        return instructions.about(rng, thing)
    if what == "other":
        return instructions.other(rng, thing)
    kinds = [t.kind for t in view if t.is_visible] or [thing.split()[-1]]
    # Where two of a kind are in view the word decides; then it is worth asking.
    twice = sorted({k for k in kinds if kinds.count(k) > 1})
    kind = str(rng.choice(twice or kinds))
    return instructions.picked(rng, "" if rng.random() < 0.4 else kind)


def _choose(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> str:
    """Name a thing: mostly one in view, sometimes out of view, sometimes absent but nearly there."""
    seen = [t for t in view if t.is_visible]
    kind = rng.random()
    if seen and kind < 0.68:
        weights = np.array([NEAR_WEIGHT if t.distance_m < NEAR_M else 1.0 for t in seen])
        chosen = seen[int(rng.choice(len(seen), p=weights / weights.sum()))]
        alone = sum(t.kind == chosen.kind for t in view) == 1
        return chosen.kind if alone and rng.random() < 0.12 else chosen.name
    hidden = [t for t in view if not t.is_visible]
    if hidden and kind < 0.84:
        return hidden[int(rng.integers(len(hidden)))].name
    colour, what = (str(rng.choice(COLOURS)), str(rng.choice(KINDS)))
    if view and rng.random() < 0.7:
        near = view[int(rng.integers(len(view)))]
        colour, what = (near.colour, what) if rng.random() < 0.5 else (colour, near.kind)
    return f"{colour} {what}"


def _history(rng: np.random.Generator, goal: Goal, view: tuple[VisibleObject, ...]) -> tuple[str, ...]:
    """Actions that may have led here, written as the executor reports them: "forward(1)", not "forward(1.0)".

    After a full turn in vain the search is over.
    """
    turn = f"turn({SEARCH_DEG if rng.random() < 0.7 else -SEARCH_DEG})"
    if goal.verb in TRAVELS and rng.random() < 0.06:
        closed = _closed_search(turn)
        return closed if rng.random() < 0.6 else (*closed, OTHER_WAY[0], OBSTRUCTED)
    if goal.verb in SEARCHED and find(goal, view) is None:
        turns = int(rng.choice(8, p=[0.20, 0.08, 0.08, 0.08, 0.08, 0.12, 0.30, 0.06]))
        before = _moves(rng, int(rng.integers(0, 4))) if rng.random() < (0.6 if turns == 0 else 0.4) else ()
        if turns and rng.random() < 0.6:
            before = _before_search(rng, turn)
        return (*before, *[turn] * turns)
    if goal.is_behind:
        return () if rng.random() < 0.4 else ("turn(180)", *_moves(rng, int(rng.integers(0, 3))))
    if rng.random() < 0.45:
        return ()
    if goal.verb == "follow" and rng.random() < 0.6:
        return (*_moves(rng, int(rng.integers(0, 3))), *["wait(1)"] * int(rng.integers(1, 7)))
    # A search ends by seeing the thing, wherever it began: no history may tell that it is not there.
    turns = int(rng.integers(1, 7)) if rng.random() < 0.6 else 0
    if turns and rng.random() < 0.6:
        return (*_before_search(rng, turn), *[turn] * turns)
    moves = _moves(rng, int(rng.integers(0, 5))) if not turns or rng.random() < 0.4 else ()
    return (*[turn] * turns, *moves)


def _arriving(
    rng: np.random.Generator, history: tuple[str, ...], thing: VisibleObject | None
) -> tuple[str, ...]:
    """End a history, now and then, as ways do that lead to something near: turned to it, or stopped by it."""
    is_near = thing is not None and thing.distance_m < NEAR_M
    if rng.random() >= (0.5 if is_near else 0.06):
        return history
    glance = f"turn({10 * int(rng.integers(1, 6)) * int(rng.choice((-1, 1)))})"
    return (*history, OBSTRUCTED if rng.random() < 0.6 else glance)


def _before_search(rng: np.random.Generator, turn: str) -> tuple[str, ...]:
    """Return what may stand before the turns of a search: a way that was walked, or the first search."""
    kind = rng.random()
    if kind < 0.3:
        return (*[turn] * int(rng.integers(0, 7)), *SECOND_PLACE)
    if kind < 0.5:
        return (*_closed_search(turn), *OTHER_WAY)
    return _moves(rng, int(rng.integers(0, 4)))


def _closed_search(turn: str) -> tuple[str, ...]:
    """Return a full turn in vain whose way to another place is closed."""
    return (*[turn] * FULL_TURN, SECOND_PLACE[0], OBSTRUCTED)


def _moves(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    moves: list[str] = []
    for _ in range(count):
        if rng.random() < 0.6:
            moves.append(f"turn({int(rng.integers(-12, 13)) * 5})")
        moves.append(f"forward({rng.integers(2, 16) / 10:g})" if rng.random() < 0.95 else OBSTRUCTED)
    return tuple(moves)

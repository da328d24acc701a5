"""The teacher: the correct answer to a frame, from the ground truth, and dialogues with its answers.

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
from vlm_spec_decode.edge.told_numbers import rounded_m
from vlm_spec_decode.models.prompt import DONE_MARK, MAX_HISTORY
from vlm_spec_decode.sim.objects import COLOURS, KINDS, footprint_radius_m
from vlm_spec_decode.train import instructions
from vlm_spec_decode.train.config import Description
from vlm_spec_decode.train.free_way import TURN_GRID_DEG, plan
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.lexicon import plural
from vlm_spec_decode.train.scene_description import (
    AHEAD_DEG,
    VisibleObject,
    describe,
    describe_briefly,
    direction_word,
    format_metres,
    related,
)

ARRIVED_M, STOPPED_M = 0.05, 0.12
"""Distances to an object, and to a stop distance, that count as arrived."""

BETWEEN_M = 0.5
"""Longest step over a stop distance, and error of a distance that is read far away, in metres."""

NO_FURTHER_M = 0.25
"""Also counts as arrived once an obstacle has stopped the robot: it is the object itself."""

CAUTION = 0.75
"""Share of a distance that is walked at once: an estimate from afar may be wrong by a fifth."""

SURE_M = 0.35
"""A distance no longer than this is walked in one action."""

MAX_STEP_M = 1.5
SEARCH_DEG = 60
TRAVELS = frozenset({"goto", "follow", "pass"})
"""Verbs for which the robot may also search from a second place."""

FULL_TURN = 6
"""Turns of SEARCH_DEG after which everything has been seen."""

SECOND_PLACE = (f"turn({SEARCH_DEG})", f"forward({MAX_STEP_M})")
"""The actions that lead to the place of the second search, as in a history."""

OTHER_WAY = ("turn(180)", f"forward({MAX_STEP_M})")
"""The actions that lead there if an obstacle stops the robot on the first way."""

FOLLOW_SLACK_M = 0.25
PASS_GAP_M = 0.42
"""Distance between an object's footprint and the body's centre while passing: half the body and margins."""

PASS_GRID_DEG = 5
"""Grid of turns to a tangent in degrees; these turns are not corrected later."""

BEYOND_M = 0.5
LAST_LEG_M = 2.4
"""Last distance past an object, walked in one action; nearer, the object may leave the view."""


FAR_STEP_M = 3.0
"""Longest way planned at once where nothing in view is near the straight line to a far object."""


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """How much an answer says before its first action, and how far it plans.

    `full` describes all objects in view first, for every instruction; `brief` names those that share a word
    with the named object, and nothing where no object is named. `max_step_m` is the longest straight way.
    """

    description: Description = "full"
    max_step_m: float = MAX_STEP_M


FULL = AnswerStyle()
"""The style of the models that answer with word-level tokens."""


def answer(
    goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...], style: AnswerStyle = FULL
) -> str:
    """Return the teacher's answer, in the tiny models' spaced form.

    First it describes the objects in view, then it answers the instruction. A small model decides far better
    whether the named object is in view after describing the view.
    """
    history = tuple(entry.replace(" ", "") for entry in history)
    described = _described(goal, view, history, style)
    return f"{described}{_reply(goal, view, history, style)}"


def _described(
    goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...], style: AnswerStyle
) -> str:
    compares = goal.pick in ("nearest", "farthest") and not _has_walked(history)
    if style.description == "full" or goal.verb == "see":
        return f"{describe(view, with_distance=compares)} . "
    if goal.verb in ONLY_WORDS or goal.verb == "act" or (goal.before and not history):
        return ""
    names = describe_briefly(view, (goal.thing, goal.other), with_distance=compares)
    return f"{names} . " if names else ""


ONLY_WORDS = {
    "unknown": "i do not know what that means",
    "unsafe": "no , i will not do that",
    "impossible": "no , i can not do that",
    "negated": "ok , i will not",
    "too_far": "no , that is too far",
    "too_long": "no , that is too long",
}
"""Verbs that are answered in words and without motion, and the words."""


def _reply(goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...], style: AnswerStyle) -> str:
    if goal.verb in ONLY_WORDS:
        return f"{ONLY_WORDS[goal.verb]} . done ( )"
    if goal.verb == "act":
        return f"ok . {goal.action} done ( )"
    if goal.verb == "see":
        return "done ( )"
    if goal.before and not history:
        return f"ok . {goal.before}"
    if goal.is_behind and not history:
        return "ok . turn ( 180 )"
    if goal.verb == "ask":
        return f"{_answer_question(goal, view)} . done ( )"
    if names := _which(goal, view, history):
        return f"do you mean {_choice(names)} ? ask ( )"
    thing = find(goal, view, history)
    if thing is None:
        return "ok . done ( )" if _has_passed(goal, history) else _search(goal, history)
    far = format_metres(rounded_m(thing.distance_m))
    if style.description == "brief":
        about = f"{thing.name} {direction_word(thing)} {far} m"
    else:
        about = f"the {thing.name} is {direction_word(thing)} at {far} m"
    if goal.stops_short:
        # With the difference in the text the action is easy; without it a small model does not learn to
        # subtract.
        about += f" , to {_exact(goal.stop_m)} m it is {_exact(_way_m(goal, thing))} m"
    return f"{about} . {_actions(goal, thing, view, history, style)}"


def _which(goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...]) -> tuple[str, ...]:
    """Return the colours of what may be meant, if an instruction names a kind and several are in view.

    On the way the robot has decided, so it does not ask any more.
    """
    if not goal.may_ask or goal.pick or goal.relation or _has_walked(history):
        return ()
    seen = sorted((t for t in view if t.is_visible and t.kind == goal.thing), key=lambda t: -t.bearing_deg)
    colours = tuple(dict.fromkeys(t.colour for t in seen))
    if len(colours) < 2:
        return ()
    return (*(f"the {colour}" for colour in colours[:-1]), f"the {colours[-1]} {goal.thing}")


def _choice(names: tuple[str, ...]) -> str:
    return f"{' , '.join(names[:-1])} or {names[-1]}"


def _exact(metres: float) -> str:
    """Return metres with one decimal, or two where the second is not 0."""
    text = f"{metres:.2f}"
    return text.removesuffix("0")


def _actions(
    goal: Goal,
    thing: VisibleObject,
    view: tuple[VisibleObject, ...],
    history: tuple[str, ...],
    style: AnswerStyle,
) -> str:
    if goal.verb == "goto":
        return _approach(goal, thing, view, history, style)
    if goal.verb == "follow":
        return _follow(goal, thing, view)
    if goal.verb == "pass":
        return _pass(goal, thing)
    after = f"{goal.action} " if goal.action else ""
    return f"{_turn(thing.bearing_deg) if goal.verb == 'face' else ''}{after}done ( )"


def _answer_question(goal: Goal, view: tuple[VisibleObject, ...]) -> str:
    if goal.action == "many":
        count = sum(t.is_visible and t.kind == goal.thing for t in view)
        kinds = plural(goal.thing) if count != 1 else goal.thing
        return f"i see {count or 'no'} {kinds}"
    thing = find(goal, view)
    if thing is None:
        return f"no , i do not see the {goal.thing}"
    if goal.action == "nearer":
        other = find(Goal("", "ask", goal.other), view)
        if other is None:
            return f"no , i do not see the {goal.other}"
        return f"the {min(thing, other, key=lambda t: t.distance_m).name} is nearer"
    if goal.action == "colour":
        return f"the {thing.kind} is {thing.colour}"
    return (
        f"yes , the {thing.name} is {direction_word(thing)} at {format_metres(rounded_m(thing.distance_m))} m"
    )


def find(goal: Goal, view: tuple[VisibleObject, ...], history: tuple[str, ...] = ()) -> VisibleObject | None:
    """Return the visible object that the goal names: by name or kind, and by default the nearest.

    The robot walks towards an object that was picked as nearest or leftmost, so later it is the one ahead:
    another may come nearer on the way, but it was not picked.
    """
    fits = [t for t in view if t.is_visible and goal.thing in ("", t.name, t.kind)]
    if goal.relation and not _has_walked(history):
        other = find(Goal("", "find", goal.other), view)
        return None if other is None else related(goal.relation, fits, other)
    order: dict[str, Callable[[VisibleObject], float]] = {
        "leftmost": lambda t: -t.bearing_deg,
        "rightmost": lambda t: t.bearing_deg,
        "farthest": lambda t: -t.distance_m,
    }
    if (goal.pick or goal.relation or goal.may_ask) and _has_walked(history):
        return min(fits, key=lambda t: abs(t.bearing_deg), default=None)
    return min(fits, key=order.get(goal.pick, lambda t: t.distance_m), default=None)


def _way_m(goal: Goal, thing: VisibleObject) -> float:
    """Return the distance left to the stop position, by the rounded distances; negative: too near."""
    return round(rounded_m(thing.distance_m) - goal.stop_m, 2) + 0.0  # never -0.0


def is_near_stop(goal: Goal, view: tuple[VisibleObject, ...]) -> bool:
    """Whether the goal asks to stop short of an object that is seen near that distance."""
    thing = find(goal, view)
    return goal.stops_short and thing is not None and abs(_way_m(goal, thing)) <= BETWEEN_M


def _has_walked(history: tuple[str, ...]) -> bool:
    return any("forward" in entry for entry in history)


def _walked_m(entry: str) -> float:
    """Return how far a history's entry walked, backwards negative; 0 for another action."""
    return float(entry[8:-1]) if entry.startswith("forward(") else 0.0


def _has_passed(goal: Goal, history: tuple[str, ...]) -> bool:
    """Whether what is to be passed lies behind: out of view right after a walk that was no search for it."""
    is_search = history[-2:] in (SECOND_PLACE, OTHER_WAY) or history[-3:-1] in (SECOND_PLACE, OTHER_WAY)
    walks = history[-1:] == (OBSTRUCTED,) or (bool(history) and _walked_m(history[-1]) > 0)
    return goal.verb == "pass" and _has_walked(history) and walks and not is_search


def _is_glance(entry: str) -> bool:
    """Whether a history's entry is a turn towards an object in view, not one of a search."""
    return entry.startswith("turn(") and abs(float(entry[5:-1])) != SEARCH_DEG


def _search(goal: Goal, history: tuple[str, ...]) -> str:
    """Continue to turn in the same direction; after a detour, towards where the object was.

    `history` is that of the prompt, the last `MAX_HISTORY` actions.
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
        # From another place more may be visible.
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
    goal: Goal,
    thing: VisibleObject,
    view: tuple[VisibleObject, ...],
    history: tuple[str, ...] = (),
    style: AnswerStyle = FULL,
) -> str:
    left_m = _way_m(goal, thing)
    last = history[-1] if history else ""
    # Far away the eye tells only every half metre, so the wanted distance may never be read. If a short step
    # has led from too far to too near, or back, that distance was in between.
    stepped_m = _walked_m(last)
    is_between = 0 < abs(stepped_m) <= BETWEEN_M and stepped_m * left_m < 0 and abs(left_m) <= BETWEEN_M
    if goal.stops_short and left_m < -STOPPED_M and not is_between:
        return f"{_turn(thing.bearing_deg)}forward ( {_exact(left_m)} )"
    if goal.stops_short:
        near_m = BETWEEN_M if is_between else STOPPED_M
    else:
        near_m = NO_FURTHER_M if last == OBSTRUCTED else ARRIVED_M
    if left_m <= near_m:
        if abs(thing.bearing_deg) > AHEAD_DEG and not _is_glance(last):
            # An object cut off by the picture's edge looks nearer than it is, so the robot turns to it first.
            return _turn(thing.bearing_deg).strip()
        return f"{goal.action + ' ' if goal.action else ''}done ( )"
    careful_m = max(min(left_m, SURE_M), CAUTION * left_m)
    heading, step_m = plan(thing, view, min(careful_m, style.max_step_m))
    if step_m > MAX_STEP_M and heading != TURN_GRID_DEG * round(thing.bearing_deg / TURN_GRID_DEG):
        # Only a straight and free way is planned far ahead; past an obstacle the robot looks again soon.
        heading, step_m = plan(thing, view, MAX_STEP_M)
    return f"{_turn(heading)}forward ( {format_metres(step_m)} )"


def _follow(goal: Goal, thing: VisibleObject, view: tuple[VisibleObject, ...]) -> str:
    """Keep the distance. Never done: it continues until it is stopped."""
    if rounded_m(thing.distance_m) <= goal.stop_m + FOLLOW_SLACK_M:
        return f"{_turn(thing.bearing_deg)}wait ( 1.0 )"
    return _approach(goal, thing, view)


def _pass(goal: Goal, thing: VisibleObject) -> str:
    """Walk along a tangent at `PASS_GAP_M` from the object, to `BEYOND_M` past it."""
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
"""Shares of the kinds of instruction."""

NEAR_M = 1.0
"""Nearer than this, the last action is mostly a turn to the object, or a stop by it."""

NEAR_WEIGHT = 5.0
"""Weight of near objects in drawing: they are few in an episode, but decide its end."""

THERE_M, ACT_THERE_SHARE = 0.8, 0.5
"""Objects this near have mostly been reached; only there can the meaning of "then sit" be learned."""

SEARCHED = frozenset({"goto", "find", "face", "follow", "pass"})
"""Verbs whose object is searched for if it is not in view."""


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
        """The observation that an engine would get, without the image."""
        return Observation(None, self.goal.text.replace("<unk>", "dragon"), self.history)


def draw_dialogue(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> Dialogue:
    """Draw one dialogue about a frame with these objects, in or out of view."""
    what = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    goal = _goal(rng, what, view)
    history = draw_history(rng, goal, view)
    return Dialogue(goal, history, answer(goal, view, history))


def draw_history(rng: np.random.Generator, goal: Goal, view: tuple[VisibleObject, ...]) -> tuple[str, ...]:
    """Draw earlier actions, the last `MAX_HISTORY`, that do not give the answer away."""
    return _arriving(rng, _history(rng, goal, view), find(goal, view))[-MAX_HISTORY:]


def _goal(rng: np.random.Generator, what: str, view: tuple[VisibleObject, ...]) -> Goal:
    thing = choose_thing(rng, view)
    if what == "go to":
        is_there = any(t.name == thing and t.distance_m < THERE_M for t in view if t.is_visible)
        return instructions.go_to(rng, thing, ACT_THERE_SHARE if is_there else instructions.ACT_SHARE)
    if what == "about":
        return instructions.about(rng, thing)
    if what == "other":
        return instructions.other(rng, thing)
    kinds = [t.kind for t in view if t.is_visible] or [thing.split()[-1]]
    # With two of a kind in view the word matters, so such instructions are worth drawing.
    twice = sorted({k for k in kinds if kinds.count(k) > 1})
    kind = str(rng.choice(twice or kinds))
    return instructions.picked(rng, "" if rng.random() < 0.4 else kind)


def choose_thing(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> str:
    """Draw an object: mostly one in view, sometimes out of view, sometimes absent but similar to one."""
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
    """Draw earlier actions, as the executor writes them: "forward(1)", not "forward(1.0)".

    After a full turn without success the search ends.
    """
    turn = f"turn({SEARCH_DEG if rng.random() < 0.7 else -SEARCH_DEG})"
    if goal.verb in TRAVELS and rng.random() < 0.06:
        closed = _closed_search(turn)
        return closed if rng.random() < 0.6 else (*closed, OTHER_WAY[0], OBSTRUCTED)
    if goal.verb in SEARCHED and find(goal, view) is None:
        turns = int(rng.choice(8, p=[0.20, 0.08, 0.08, 0.08, 0.08, 0.12, 0.30, 0.06]))
        before = (
            draw_moves(rng, int(rng.integers(0, 4))) if rng.random() < (0.6 if turns == 0 else 0.4) else ()
        )
        if turns and rng.random() < 0.6:
            before = _before_search(rng, turn)
        return (*before, *[turn] * turns)
    if goal.is_behind:
        return () if rng.random() < 0.4 else ("turn(180)", *draw_moves(rng, int(rng.integers(0, 3))))
    if rng.random() < 0.45:
        return ()
    if goal.verb == "follow" and rng.random() < 0.6:
        return (*draw_moves(rng, int(rng.integers(0, 3))), *["wait(1)"] * int(rng.integers(1, 7)))
    # A search ends when the object is seen, wherever it began: no history may imply that it is absent.
    turns = int(rng.integers(1, 7)) if rng.random() < 0.6 else 0
    if turns and rng.random() < 0.6:
        return (*_before_search(rng, turn), *[turn] * turns)
    moves = draw_moves(rng, int(rng.integers(0, 5))) if not turns or rng.random() < 0.4 else ()
    return (*[turn] * turns, *moves)


def _arriving(
    rng: np.random.Generator, history: tuple[str, ...], thing: VisibleObject | None
) -> tuple[str, ...]:
    """Sometimes end a history like a path to a near object: with a turn to it, or with a stop by it."""
    is_near = thing is not None and thing.distance_m < NEAR_M
    if rng.random() >= (0.5 if is_near else 0.06):
        return history
    glance = f"turn({10 * int(rng.integers(1, 6)) * int(rng.choice((-1, 1)))})"
    return (*history, OBSTRUCTED if rng.random() < 0.6 else glance)


def _before_search(rng: np.random.Generator, turn: str) -> tuple[str, ...]:
    """Return actions that may precede the turns of a search: a walked path, or the first search."""
    kind = rng.random()
    if kind < 0.3:
        return (*[turn] * int(rng.integers(0, 7)), *SECOND_PLACE)
    if kind < 0.5:
        return (*_closed_search(turn), *OTHER_WAY)
    return draw_moves(rng, int(rng.integers(0, 4)))


def _closed_search(turn: str) -> tuple[str, ...]:
    """Return a full turn without success, whose way to another place is blocked."""
    return (*[turn] * FULL_TURN, SECOND_PLACE[0], OBSTRUCTED)


def draw_moves(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Draw `count` walks, most with a turn before, as a history has them."""
    moves: list[str] = []
    for _ in range(count):
        if rng.random() < 0.6:
            moves.append(f"turn({int(rng.integers(-12, 13)) * 5})")
        moves.append(f"forward({rng.integers(2, 16) / 10:g})" if rng.random() < 0.95 else OBSTRUCTED)
    return tuple(moves)

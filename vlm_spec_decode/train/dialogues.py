"""Dialogues about a frame, drawn anew every time from the truth about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.mission_loop import OBSTRUCTED
from vlm_spec_decode.models.prompt import DONE_MARK, MAX_HISTORY
from vlm_spec_decode.sim.objects import COLOURS, KINDS
from vlm_spec_decode.train import instructions, teacher
from vlm_spec_decode.train.instructions import Goal
from vlm_spec_decode.train.scene_description import VisibleObject
from vlm_spec_decode.train.teacher import FULL_TURN, SEARCH_DEG, TRAVELS

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


def draw(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> Dialogue:
    """Draw one dialogue about a frame with these things in or out of view."""
    what = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    goal = _goal(rng, what, view)
    history = _arriving(rng, _history(rng, goal, view), teacher.find(goal, view))[-MAX_HISTORY:]
    return Dialogue(goal, history, teacher.answer(goal, view, history))


def _goal(rng: np.random.Generator, what: str, view: tuple[VisibleObject, ...]) -> Goal:
    thing = _choose(rng, view)
    if what == "go to":
        is_there = any(t.name == thing and t.distance_m < THERE_M for t in view if t.seen)
        return instructions.go_to(rng, thing, ACT_THERE_SHARE if is_there else instructions.ACT_SHARE)
    if what == "about":
        return instructions.about(rng, thing)
    if what == "other":
        return instructions.other(rng, thing)
    kinds = [t.kind for t in view if t.seen] or [thing.split()[-1]]
    # Where two of a kind are in view the word decides; then it is worth asking.
    twice = sorted({k for k in kinds if kinds.count(k) > 1})
    kind = str(rng.choice(twice or kinds))
    return instructions.picked(rng, "" if rng.random() < 0.4 else kind)


def _choose(rng: np.random.Generator, view: tuple[VisibleObject, ...]) -> str:
    """Name a thing: mostly one in view, sometimes out of view, sometimes absent but nearly there."""
    seen = [t for t in view if t.seen]
    kind = rng.random()
    if seen and kind < 0.68:
        weights = np.array([NEAR_WEIGHT if t.distance_m < NEAR_M else 1.0 for t in seen])
        chosen = seen[int(rng.choice(len(seen), p=weights / weights.sum()))]
        alone = sum(t.kind == chosen.kind for t in view) == 1
        return chosen.kind if alone and rng.random() < 0.12 else chosen.name
    hidden = [t for t in view if not t.seen]
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
        return closed if rng.random() < 0.6 else (*closed, teacher.OTHER_WAY[0], OBSTRUCTED)
    if goal.verb in SEARCHED and teacher.find(goal, view) is None:
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
        return (*[turn] * int(rng.integers(0, 7)), *teacher.SECOND_PLACE)
    if kind < 0.5:
        return (*_closed_search(turn), *teacher.OTHER_WAY)
    return _moves(rng, int(rng.integers(0, 4)))


def _closed_search(turn: str) -> tuple[str, ...]:
    """Return a full turn in vain whose way to another place is closed."""
    return (*[turn] * FULL_TURN, teacher.SECOND_PLACE[0], OBSTRUCTED)


def _moves(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    moves: list[str] = []
    for _ in range(count):
        if rng.random() < 0.6:
            moves.append(f"turn({int(rng.integers(-12, 13)) * 5})")
        moves.append(f"forward({rng.integers(2, 16) / 10:g})" if rng.random() < 0.95 else OBSTRUCTED)
    return tuple(moves)

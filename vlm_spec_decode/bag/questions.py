"""From a walk to questions: which frame is asked about with which instruction, and what is known to be right.

An answer that was recorded is asked again as it was, and its actions are the label. Other bags are asked
about a frame every so often, under whatever instruction holds then; the label is a person's, or how the
robot really moved in the seconds after.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.bag.events import NANOSECONDS, Answered, Event, Frame, Instructed, Moved
from vlm_spec_decode.core.errors import ActionParseError, BagError
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.images import for_uplink

SAME_FRAME_S = 1e-3
KEPT_FRAMES = 600


@dataclass(frozen=True, slots=True)
class Executed:
    """Motion after a frame, summed up: metres forward and left, degrees to the left."""

    forward_m: float = 0.0
    left_m: float = 0.0
    turn_deg: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """One (frame, instruction) and its labels, any of which may be missing."""

    number: int
    at_s: float
    observation: Observation
    actions: tuple[str, ...] | None = None
    token_ids: tuple[int, ...] = ()
    executed: Executed | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """An instruction from a file: from `at_s` on (seconds after the bag's start), with a person's label."""

    at_s: float
    instruction: str
    actions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AskPlan:
    """What is asked. `instruction` holds from the start; `every_s` is between two frames."""

    instruction: str = ""
    spoken: tuple[Spoken, ...] = ()
    every_s: float = 1.0
    horizon_s: float = 2.0
    limit: int = 0


def read_spoken(path: Path) -> tuple[Spoken, ...]:
    """Read instructions from CSV (`time_s,instruction[,actions]`) or a YAML list of the same keys.

    Raises BagError naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows: Any = (
            yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else csv.DictReader(text.splitlines())
        )
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BagError(f"{path}: {error}") from error
    found = []
    for number, row in enumerate(rows or (), 1):
        try:
            label = row.get("actions")
            actions = None if label is None else _actions(str(label))
            found.append(Spoken(float(row["time_s"]), str(row["instruction"]).strip(), actions))
        except (KeyError, TypeError, ValueError, AttributeError, ActionParseError) as error:
            raise BagError(f"{path}: entry {number}: {type(error).__name__}: {error}") from error
    return tuple(sorted(found, key=lambda spoken: spoken.at_s))


def _actions(text: str) -> tuple[str, ...]:
    return tuple(format_action(action) for action in parse_answer(text))


@dataclass(slots=True)
class _Asker:
    """Turns events into questions as they come; what waits for its horizon is held back."""

    plan: AskPlan
    asks_again: bool
    start_ns: int = -1
    number: int = 0
    instruction: str = ""
    next_s: float = 0.0
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=KEPT_FRAMES))
    waiting: deque[tuple[Question, list[Moved]]] = field(default_factory=deque)

    def take(self, event: Event) -> Iterator[Question]:
        """Yield what this event completes."""
        if self.start_ns < 0:
            self.start_ns, self.instruction = event.at_ns, self.plan.instruction
        at_s = (event.at_ns - self.start_ns) / NANOSECONDS
        if isinstance(event, Instructed) and not self.plan.instruction:
            self.instruction = event.text
        elif isinstance(event, Moved):
            for _, moves in self.waiting:
                moves.append(event)
        elif isinstance(event, Frame):
            self.frames.append(event)
            if not self.asks_again and at_s >= self.next_s:
                self._ask(event, at_s)
        elif isinstance(event, Answered) and self.asks_again:
            yield from self._again(event)
        while self.waiting and at_s >= self.waiting[0][0].at_s + self.plan.horizon_s:
            yield self.ripe()

    def ripe(self) -> Question:
        """Return the question that has waited longest, with the motion seen since."""
        question, moves = self.waiting.popleft()
        return replace(question, executed=summed(moves)) if len(moves) > 1 else question

    def _ask(self, frame: Frame, at_s: float) -> None:
        spoken = next((s for s in reversed(self.plan.spoken) if s.at_s <= at_s), None)
        text = spoken.instruction if spoken else self.instruction
        if not text:
            return
        self.next_s = at_s + self.plan.every_s
        self.number += 1
        seen = Observation(frame.image, text, (), frame.stamp_s, frame.frame_id)
        self.waiting.append((Question(self.number, at_s, seen, spoken.actions if spoken else None), []))

    def _again(self, said: Answered) -> Iterator[Question]:
        frame = min(self.frames, key=lambda f: abs(f.stamp_s - said.stamp_s), default=None)
        if frame is None or abs(frame.stamp_s - said.stamp_s) > SAME_FRAME_S:
            return
        self.number += 1
        at_s = (frame.at_ns - self.start_ns) / NANOSECONDS
        image = for_uplink(frame.image.jpeg)
        seen = Observation(image, said.instruction, said.history, frame.stamp_s, frame.frame_id)
        yield Question(self.number, at_s, seen, said.actions, said.token_ids)


def questions(events: Iterable[Event], plan: AskPlan, has_answers: bool = False) -> Iterator[Question]:
    """Yield the questions of a bag, in order, at most `plan.limit` (0: all).

    With recorded answers (`has_answers`) those are asked again, unless `plan` brings instructions of its own.
    """
    return itertools.islice(_all(events, plan, has_answers), plan.limit or None)


def _all(events: Iterable[Event], plan: AskPlan, has_answers: bool) -> Iterator[Question]:
    asker = _Asker(plan, has_answers and not plan.instruction and not plan.spoken)
    for event in events:
        yield from asker.take(event)
    while asker.waiting:
        yield asker.ripe()


def summed(moves: list[Moved]) -> Executed:
    """Integrate motion; gaps of more than a second count as standing."""
    forward = left = turn = 0.0
    for a, b in itertools.pairwise(moves):
        step_s = min(1.0, max(0.0, (b.at_ns - a.at_ns) / NANOSECONDS))
        forward += a.vx_mps * step_s
        left += a.vy_mps * step_s
        turn += math.degrees(a.vyaw_radps) * step_s
    return Executed(forward, left, turn)

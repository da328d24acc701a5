"""From a recorded walk to questions: frame, instruction and the reference answer of each.

A recorded answer is repeated with its own frame, history and settings; without answers the labels give the
questions. In other bags a frame becomes a question at fixed intervals, with the instruction active at that
time. The reference is a label, else the recorded answer, and the robot's motion in the seconds after the
frame. Also reads instructions from files.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.bags.events import (
    NANOSECONDS,
    Answered,
    Event,
    Events,
    Frame,
    Instructed,
    Labelled,
    Moved,
    SentImage,
)
from vlm_spec_decode.bags.settings import ReplaySettings
from vlm_spec_decode.core.config import read_yaml, same_as
from vlm_spec_decode.core.errors import ActionParseError, BagError, ImageError
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, Image, ImageLimits, Observation
from vlm_spec_decode.edge.mission_loop import check_instruction


@dataclass(frozen=True, slots=True)
class Executed:
    """Total motion after a frame: metres forward and left, degrees to the left."""

    forward_m: float = 0.0
    left_m: float = 0.0
    turn_deg: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """One (frame, instruction) and its labels, any of which may be missing.

    `actions` is the correct answer; `text` is its full text, if the recording has one. `start` is what the
    robot had begun on the draft when it was answered, "" if nothing.
    """

    number: int
    at_s: float
    observation: Observation
    actions: tuple[str, ...] | None = None
    text: str = ""
    token_ids: tuple[int, ...] = ()
    executed: Executed | None = None
    start: str = ""


@dataclass(frozen=True, slots=True)
class TimedInstruction:
    """An instruction from a file: from `at_s` on (seconds after the bag's start), with a person's label."""

    at_s: float
    instruction: str
    actions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class AskPlan:
    """How questions are made.

    `instruction` is active from the start; `every_s` is the time between two frames.
    """

    instruction: str = ""
    spoken: tuple[TimedInstruction, ...] = ()
    every_s: float = same_as(ReplaySettings, "every_s")
    horizon_s: float = same_as(ReplaySettings, "horizon_s")
    limit: int = same_as(ReplaySettings, "limit")

    def __post_init__(self) -> None:
        """Raise InstructionError for an invalid instruction."""
        if self.instruction:
            check_instruction(self.instruction)


def read_instructions(path: Path) -> tuple[TimedInstruction, ...]:
    """Read instructions from CSV (`time_s,instruction[,actions]`) or a YAML list of the same keys.

    An entry without actions has no label. Raises BagError that names the line.
    """
    rows: Any
    if path.suffix in (".yaml", ".yml"):
        rows = read_yaml(path, BagError)
    else:
        try:
            rows = csv.DictReader(
                path.read_text(encoding="utf-8-sig").splitlines()
            )  # sheets begin with a mark
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BagError(f"{path}: {error}") from error
    if not isinstance(rows, (list, csv.DictReader)):
        raise BagError(f"{path}: not a list of instructions")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            label = row.get("actions") or ""
            text = " ".join(map(str, label)) if isinstance(label, list) else str(label)
            actions = _actions(text) if text.strip() else None
            found.append(TimedInstruction(float(row["time_s"]), str(row["instruction"]).strip(), actions))
        except (KeyError, TypeError, ValueError, AttributeError, ActionParseError) as error:
            raise BagError(f"{path}: entry {number}: {type(error).__name__}: {error}") from error
    return tuple(sorted(found, key=lambda spoken: spoken.at_s))


def _actions(text: str) -> tuple[str, ...]:
    return tuple(format_action(action) for action in parse_answer(text))


SAME_FRAME_S = 1e-3
MAX_FRAMES, MAX_FRAME_BYTES = 600, 192 * 2**20
"""Limits of the buffer of frames that a later message may refer to."""

MAX_LABELS = 5000

Key = tuple[int, str, tuple[str, ...]]


@dataclass(slots=True)
class _FrameBuffer:
    """The newest frames, within the limits of number and memory."""

    frames: deque[Frame] = field(default_factory=deque)
    num_bytes: int = 0

    def add(self, frame: Frame) -> None:
        """Add a frame and drop the oldest ones."""
        self.frames.append(frame)
        self.num_bytes += frame.num_bytes
        while len(self.frames) > MAX_FRAMES or (self.num_bytes > MAX_FRAME_BYTES and len(self.frames) > 1):
            self.num_bytes -= self.frames.popleft().num_bytes

    def find(self, stamp_s: float) -> Frame | None:
        """Return the frame of this stamp."""
        frame = min(self.frames, key=lambda f: abs(f.stamp_s - stamp_s), default=None)
        return frame if frame and abs(frame.stamp_s - stamp_s) <= SAME_FRAME_S else None


@dataclass(slots=True)
class _PendingQuestion:
    """A question that still collects motion, from `since_s` until its horizon."""

    question: Question
    since_s: float
    moves: list[Moved] = field(default_factory=list)

    def completed(self) -> Question:
        """Return the question with the collected motion."""
        moved = summed(self.moves) if len(self.moves) > 1 else None
        return replace(self.question, executed=moved)


@dataclass(slots=True)
class _QuestionBuilder:
    """Turns events into questions as they arrive; a question is yielded after its horizon.

    `limits` are those of the target: frames without a recorded answer are made as large as it can use.
    `roles` are the kinds of message that the bag has.
    """

    plan: AskPlan
    limits: ImageLimits
    roles: frozenset[str]
    faults: Counter[str]
    start_ns: int = -1
    number: int = 0
    instruction: str = ""
    next_s: float = 0.0
    frames: _FrameBuffer = field(default_factory=_FrameBuffer)
    labels: OrderedDict[Key, Labelled] = field(default_factory=OrderedDict)
    pending: deque[_PendingQuestion] = field(default_factory=deque)

    @property
    def repeated_role(self) -> str:
        """The role whose recorded messages are repeated as questions: `answer`, `label`, or ""."""
        if self.plan.instruction or self.plan.spoken:
            return ""
        return next((role for role in ("answer", "label") if role in self.roles), "")

    def on_event(self, event: Event) -> Iterator[Question]:
        """Process an event; yield the questions that it completes."""
        if self.start_ns < 0:
            self.start_ns, self.instruction = event.at_ns, self.plan.instruction
        at_s = (event.at_ns - self.start_ns) / NANOSECONDS
        if isinstance(event, Instructed) and not self.plan.instruction:
            self.instruction = event.text
        elif isinstance(event, Moved):
            for waiting in self.pending:
                waiting.moves.append(event)
        elif isinstance(event, Frame):
            self._on_frame(event, at_s)
        elif isinstance(event, Labelled):
            self._on_label(event, at_s)
        elif isinstance(event, Answered) and self.repeated_role == "answer":
            self._add_repeated(event, at_s)
        while self.pending and at_s >= self.pending[0].since_s + self.plan.horizon_s:
            yield self.pending.popleft().completed()

    def remaining(self) -> Iterator[Question]:
        """Yield the questions still pending at the end of the bag."""
        while self.pending:
            yield self.pending.popleft().completed()

    def _on_frame(self, frame: Frame, at_s: float) -> None:
        if not self.repeated_role:
            return self._add_question(frame, at_s) if at_s >= self.next_s else None
        self.frames.add(frame)
        if self.repeated_role == "label":
            for label in [
                lb for lb in self.labels.values() if abs(lb.stamp_s - frame.stamp_s) <= SAME_FRAME_S
            ]:
                self._add_repeated(label, at_s)
        return None

    def _on_label(self, label: Labelled, at_s: float) -> None:
        self.labels[_key(label)] = label
        if len(self.labels) > MAX_LABELS:
            self.labels.popitem(last=False)
        if self.repeated_role == "label" and self.frames.find(label.stamp_s):
            self._add_repeated(label, at_s)

    def _add_question(self, frame: Frame, at_s: float) -> None:
        spoken = next((s for s in reversed(self.plan.spoken) if s.at_s <= at_s), None)
        text = spoken.instruction if spoken else self.instruction
        image = self._image(frame) if text else None
        if image is None:
            return
        self.next_s = at_s + self.plan.every_s
        observation = Observation(image, text, (), frame.stamp_s, frame.frame_id)
        self._append(at_s, at_s, observation, spoken.actions if spoken else None)

    def _add_repeated(self, recorded: Answered | Labelled, since_s: float) -> None:
        """Repeat a recorded question; motion counts from the time of its answer."""
        frame = self.frames.find(recorded.stamp_s)
        sent, tokens = (recorded.sent, recorded.token_ids) if isinstance(recorded, Answered) else (None, ())
        image = self._image(frame, sent) if frame else None
        if frame is None or image is None:
            if frame is None:
                self.faults["an answer whose frame is not in the bag"] += 1
            return
        label = self.labels.pop(_key(recorded), None)
        observation = Observation(
            image, recorded.instruction, recorded.history, frame.stamp_s, frame.frame_id
        )
        right = label or recorded
        at_s = (frame.at_ns - self.start_ns) / NANOSECONDS
        start = recorded.start if isinstance(recorded, Answered) else ""
        text = label.text if label else ""
        self._append(at_s, since_s, observation, right.actions, text, tokens, start)

    def _append(
        self,
        at_s: float,
        since_s: float,
        observation: Observation,
        actions: tuple[str, ...] | None,
        text: str = "",
        tokens: tuple[int, ...] = (),
        start: str = "",
    ) -> None:
        self.number += 1
        question = Question(self.number, at_s, observation, actions, text, tokens, start=start)
        self.pending.append(_PendingQuestion(question, since_s))

    def _image(self, frame: Frame, sent: SentImage | None = None) -> Image | None:
        try:
            return frame.image_for(self.limits, sent)
        except ImageError as error:
            self.faults[f"a frame that cannot be asked about: {error}"] += 1
            return None


def _key(recorded: Answered | Labelled) -> Key:
    return round(recorded.stamp_s / SAME_FRAME_S), recorded.instruction, recorded.history


def questions(events: Events, plan: AskPlan, limits: ImageLimits = UNKNOWN_LIMITS) -> Iterator[Question]:
    """Yield the questions of a bag, in order, at most `plan.limit` (0: all).

    Recorded answers, else labels, are repeated, unless `plan` has its own instructions. The images are those
    that were sent, where the bag tells, else as large as a target with these `limits` can use.
    """
    return itertools.islice(_all(events, plan, limits), plan.limit or None)


def _all(events: Events, plan: AskPlan, limits: ImageLimits) -> Iterator[Question]:
    builder = _QuestionBuilder(plan, limits, frozenset(events.topics.values()), events.faults)
    for event in events:
        yield from builder.on_event(event)
        events.skips_motion = not builder.pending
    yield from builder.remaining()


def summed(moves: list[Moved]) -> Executed:
    """Integrate motion; gaps longer than a second count as standing."""
    forward = left = turn = 0.0
    for a, b in itertools.pairwise(moves):
        step_s = min(1.0, max(0.0, (b.at_ns - a.at_ns) / NANOSECONDS))
        forward += a.vx_mps * step_s
        left += a.vy_mps * step_s
        turn += math.degrees(a.vyaw_radps) * step_s
    return Executed(forward, left, turn)

"""One instruction as a closed loop of look, answer, act. Knows neither models nor robots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.types import Action, Done, Stop, format_action
from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.core.types import MAX_INSTRUCTION_CHARS, Image, Observation, text_problem

REPLACEMENT = "\ufffd"
"""What ROS makes of a byte that is not UTF-8: nobody may guess what was asked of the robot."""

LOOK_AGAIN = frozenset({"obstacle", "blocked"})
"""Reasons of a broken-off action after which another look may help: something was in the way."""

OBSTRUCTED = format_action(Stop())
"""How a history tells that something in the way stopped the robot: the next look should know it."""

MAX_OBSTRUCTIONS = 3
"""In a row; then the way is closed and the mission refused."""

SILENCES = frozenset({"watchdog", "stale_state"})
"""Reasons of a broken-off action after which somebody may be heard again: the plan's heartbeat came late, or
the robot's state did. A busy computer or network does that; the robot stands meanwhile."""

MAX_SILENCES = 8
"""In one mission; then commander and robot hear too little of each other, and the mission ends."""

Status: TypeAlias = Literal["running", "done", "step_limit", "refused", "cancelled", "failed"]


def check_instruction(text: str) -> str:
    """Return `text` stripped. Raises InstructionError if it is empty, too long or no text."""
    if problem := text_problem(text):
        raise InstructionError(f"the instruction is no text: {problem}")
    if REPLACEMENT in text:
        raise InstructionError("the instruction holds U+FFFD, which stands for bytes that were no text")
    stripped = text.strip()
    if not stripped:
        raise InstructionError("the instruction is empty")
    if len(stripped) > MAX_INSTRUCTION_CHARS:
        raise InstructionError(
            f"the instruction has {len(stripped)} characters; {MAX_INSTRUCTION_CHARS} are allowed"
        )
    return stripped


@dataclass(slots=True)
class Mission:
    """What has been carried out for one instruction, and whether it goes on."""

    instruction: str
    max_steps: int = 24
    history: list[str] = field(default_factory=list)
    steps: int = 0
    status: Status = "running"
    obstructions: int = 0
    silences: int = 0

    def __post_init__(self) -> None:
        self.instruction = check_instruction(self.instruction)

    @property
    def is_running(self) -> bool:
        """Whether another answer is wanted."""
        return self.status == "running"

    def observation(self, image: Image | None, stamp_s: float, frame_id: str = "") -> Observation:
        """Return what the next answer is about."""
        return Observation(image, self.instruction, tuple(self.history), stamp_s, frame_id)

    def record(self, executed: Iterable[str], planned: Iterable[Action]) -> None:
        """Take note of a finished step: actions carried out (as text) and the plan of the answer.

        The mission is done when the plan says so. A plan without any action asks for nothing, and asking
        again would bring the same answer, so it ends the mission too.
        """
        self._take(executed)
        self.obstructions = 0
        plan = tuple(planned)
        if not plan or any(isinstance(action, Done) for action in plan):
            self.status = "done"

    def record_obstruction(self, executed: Iterable[str]) -> None:
        """Take note of a step that something in the way broke off: look again, but not forever."""
        self._take((*executed, OBSTRUCTED))
        self.obstructions += 1
        if self.obstructions >= MAX_OBSTRUCTIONS:
            self.status = "refused"

    def record_silence(self, executed: Iterable[str]) -> None:
        """Take note of a step that a silence broke off, the commander's or the robot's: the robot stands.

        Another look begins anew from where it stands, but not forever.
        """
        self._take(executed)
        self.silences += 1
        if self.silences >= MAX_SILENCES:
            self.status = "cancelled"

    def record_interruption(self, executed: Iterable[str]) -> None:
        """Take note of a step that lost its cloud in the middle; what was carried out counts."""
        self._take(executed)

    def _take(self, executed: Iterable[str]) -> None:
        self.steps += 1
        done = format_action(Done())
        self.history += [text for text in executed if text != done]
        if self.steps >= self.max_steps:
            self.status = "step_limit"

    def end(self, status: Status) -> None:
        """End the mission from outside; the first end stands."""
        if self.is_running:
            self.status = status

"""One instruction as a closed loop of look, answer, act. Uses neither models nor robots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.types import Action, Ask, Done, Stop, format_action
from vlm_spec_decode.core.errors import InstructionError
from vlm_spec_decode.core.types import MAX_INSTRUCTION_CHARS, Image, Observation, text_problem

REPLACEMENT = "\ufffd"
"""What ROS puts in place of a byte that is not UTF-8. Such an instruction is refused, not guessed."""

LOOK_AGAIN = frozenset({"obstacle", "blocked"})
"""Reasons of an aborted action after which another look may help: something was in the way."""

OBSTRUCTED = format_action(Stop())
"""Entry of the history that says that an obstacle stopped the robot."""

MAX_OBSTRUCTIONS = 3
"""Obstructions in a row after which the mission is refused."""

SILENCES = frozenset({"watchdog", "stale_state", "odometry_jump"})
"""Reasons of an aborted action that may pass: the plan's heartbeat, or the robot's state, came late because
a computer or network was busy, or the odometry has jumped. The robot stands meanwhile."""

MAX_SILENCES = 8
"""Silences in one mission after which it ends: messages arrive too late too often."""

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
class MissionLoop:
    """State of one mission: the actions carried out for its instruction, and its status."""

    instruction: str
    max_steps: int = 24
    history: list[str] = field(default_factory=list)
    steps: int = 0
    status: Status = "running"
    obstructions: int = 0
    silences: int = 0
    is_asking: bool = False
    """Whether the last answer asks the operator something: the next one needs the operator's word."""
    answer: int = 0
    """The number of the last answer: at least one for each step; a search takes more."""

    def __post_init__(self) -> None:
        self.instruction = check_instruction(self.instruction)

    @property
    def is_running(self) -> bool:
        """Whether another answer is needed."""
        return self.status == "running"

    @property
    def next_answer(self) -> int:
        """The number of the next answer: those of a mission are numbered upwards."""
        return self.answer + 1

    def observation(
        self,
        image: Image | None,
        stamp_s: float,
        frame_id: str = "",
        planned: Iterable[Action] = (),
    ) -> Observation:
        """Return the observation for the next answer, with the history as it will be after `planned`."""
        history = (*self.history, *_told(map(format_action, planned)))
        return Observation(image, self.instruction, history, stamp_s, frame_id)

    def record(self, executed: Iterable[str], planned: Iterable[Action]) -> None:
        """Record a finished step: the actions carried out (as text) and the plan of the answer.

        The mission is done when the plan holds `done()`. A plan without any action ends it too, since the
        same question would get the same answer. One that ends in `ask()` leaves it waiting for a word.
        """
        self._add_step(executed)
        self.obstructions = 0
        plan = tuple(planned)
        if any(isinstance(action, Ask) for action in plan):
            self.is_asking = True
        elif not plan or any(isinstance(action, Done) for action in plan):
            self.status = "done"

    def instruction_with(self, word: str) -> str:
        """Return the instruction with the operator's word added; the mission stays as it is.

        Raises InstructionError for no word, as `check_instruction`, and for one that makes it too long.
        """
        word = check_instruction(word)
        longer = f"{self.instruction} . {word}"
        if len(longer) > MAX_INSTRUCTION_CHARS:
            room = max(0, MAX_INSTRUCTION_CHARS - (len(longer) - len(word)))
            raise InstructionError(
                f"the reply has {len(word)} characters; the instruction has room for {room}"
            )
        return longer

    def go_on_with(self, word: str) -> None:
        """Add the operator's word to the instruction. Raises InstructionError as `instruction_with`."""
        self.instruction = self.instruction_with(word)
        self.is_asking = False

    def record_obstruction(self, executed: Iterable[str]) -> None:
        """Record a step that an obstacle aborted; after `MAX_OBSTRUCTIONS` the mission is refused."""
        self._add_step((*executed, OBSTRUCTED))
        self.obstructions += 1
        if self.obstructions >= MAX_OBSTRUCTIONS:
            self.status = "refused"

    def record_silence(self, executed: Iterable[str]) -> None:
        """Record a step that was aborted because heartbeat or robot state came late.

        The next step starts where the robot stands. After `MAX_SILENCES` the mission is cancelled.
        """
        self._add_step(executed)
        self.silences += 1
        if self.silences >= MAX_SILENCES:
            self.status = "cancelled"

    def record_interruption(self, executed: Iterable[str]) -> None:
        """Record a step in which the cloud was lost; the actions carried out count."""
        self._add_step(executed)

    def _add_step(self, executed: Iterable[str]) -> None:
        self.steps += 1
        self.answer += 1
        self.history += _told(executed)
        if self.steps >= self.max_steps:
            self.status = "step_limit"

    @property
    def has_steps(self) -> bool:
        """Whether the step after the present one may still be made."""
        return self.is_running and self.steps + 1 < self.max_steps

    def end(self, status: Status) -> None:
        """End the mission from outside; the first end stands."""
        if self.is_running:
            self.status = status


def _told(executed: Iterable[str]) -> list[str]:
    """Return what a history tells of carried out actions: all but `done()` and `ask()`."""
    ends = {format_action(Done()), format_action(Ask())}
    return [text for text in executed if text not in ends]

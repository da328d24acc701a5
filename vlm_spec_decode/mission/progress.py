"""One mission as text for a person: the answer as it streams, the robot's actions, the end.

The one place where reports of a mission become words; `vsd say`, `vsd top` and `vsd demo` print these.
Reports in, text out; independent of ROS and terminals. Reports of other missions are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.errors import CloudError, InstructionError, RobotError, VsdError
from vlm_spec_decode.mission.events import BROKEN_OFF
from vlm_spec_decode.mission.queue import Ack
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import (
    END_STATES,
    LOOK_WORDS,
    NOTES,
    START_WORDS,
    MissionStatus,
    PartialAnswer,
    Shown,
    shown_by,
)

MissionReport: TypeAlias = Ack | MissionStatus | PartialAnswer | AnswerReport | DecodeReport | PlanStatus
"""What is told about a mission."""

AWAITED = {
    "queued": "the missions before it",
    "looking": "a camera frame, or the cloud",
    "answering": "the answer",
    "proposed": "a yes or a no",
    "acting": "the robot to finish",
    "waiting": "the operator's word",
    "holding": "the cloud to come back",
    "drafting": "the next look",
}
"""What a mission waits for in each of its states."""


START_NOTES = {
    "begun": "on the draft, not verified",
    "refused": "not begun on the draft",
    "withdrawn": "withdrawn by the draft",
    "confirmed": "begun on the draft, confirmed",
    "corrected": "begun on the draft, corrected",
}
"""What became of a start on the draft, by the executor's `start`."""


def mission_line(status: MissionStatus) -> str:
    """Return the state of a mission in words, with reason and detail where it has them."""
    reason = NOTES.get(status.reason, status.reason)
    return ": ".join(part for part in (status.state.replace("_", " "), reason, status.detail) if part)


def robot_line(status: PlanStatus) -> str:
    """Return the executor's status in words: what the robot does, and why it has left its plan."""
    doing = f"{status.state} {status.action}".strip()
    if start := START_NOTES.get(status.start):
        doing += f" ({start}: {status.start_detail})"
    if status.state not in BROKEN_OFF:
        return doing
    return f"{doing}: {status.reason} {status.detail}".rstrip(": ")


def decoding_line(trace: DecodeReport) -> str:
    """Return the figures of an answer in words."""
    cost = f"{trace.tokens} tokens, {trace.total_s:.2f} s, {trace.target_passes} target passes"
    if not trace.drafted:
        return f"{cost}, nothing drafted"
    return f"{cost}, {trace.accepted} of {trace.drafted} drafted kept"


@dataclass(slots=True)
class MissionProgress:
    """The state of the mission named `mission`.

    `on_report` takes a report and returns the text to print, newlines included.
    """

    mission: str
    state: str = ""
    reason: str = ""
    detail: str = ""
    steps: int = 0
    actions: list[str] = field(default_factory=list)
    proposed: str = ""
    asked: str = ""
    """What the robot asks, while the mission waits for the operator's word."""
    shown: Shown = Shown()  # noqa: RUF009 - frozen
    """What a yes, a no or a word now is a reply to."""
    is_acknowledged: bool = False
    """Whether the VLM node has acknowledged the mission."""
    listeners: int = 0
    """Number of subscribers of the request's topic, as the VLM node knows it."""
    _shown: str = ""
    _has_streamed: bool = False
    """Whether part of the present answer was printed before its end."""
    _acting: str = ""
    _is_open_line: bool = False
    _deferred_lines: list[str] = field(default_factory=list)
    """Lines that arrived while an answer was being printed; they follow it."""

    @property
    def has_ended(self) -> bool:
        """Whether the mission is over."""
        return self.state in END_STATES

    @property
    def exit_code(self) -> int:
        """What the command returns: 0 done, 2 to 4 by the kind of failure, 1 for any other end."""
        if self.state == "done":
            return 0
        kinds = _subclasses(CloudError) | _subclasses(RobotError) | _subclasses(InstructionError)
        kind = kinds.get(self.reason) if self.state == "failed" else None
        return 1 if kind is None else kind.exit_code

    @property
    def awaited(self) -> str:
        """What the mission waits for, in words."""
        return AWAITED.get(self.state, "vlm_node to begin")

    def on_report(self, report: MissionReport) -> str:
        """Take one report; return what to print."""
        if isinstance(report, PartialAnswer):
            return self._partial(report.text)
        if report.mission != self.mission:
            return self._refusal(report) if isinstance(report, MissionStatus) else ""
        if isinstance(report, Ack):
            return self._ack(report)
        if isinstance(report, MissionStatus):
            return self._status(report)
        if isinstance(report, AnswerReport):
            return self._answer(report)
        if isinstance(report, DecodeReport):
            return self._line(f"    {decoding_line(report)}")
        return self._plan_status(report)

    def _line(self, text: str) -> str:
        """Return `text` as a separate line; an answer that is still being printed is ended first."""
        start = "\n" if self._is_open_line else ""
        self._is_open_line = False
        held, self._deferred_lines = self._deferred_lines, []
        return f"{start}{''.join(held)}{text}\n"

    def note(self, text: str) -> str:
        """Return a line that is not from a message. An answer being printed starts again after it."""
        self._shown = ""
        return self._line(text)

    def _ack(self, ack: Ack) -> str:
        if ack.reply:  # somebody's word was taken, or not; neither ends the mission
            return ""
        self.is_acknowledged = self.is_acknowledged or ack.state == "taken"
        self.listeners = max(self.listeners, ack.listeners)
        if ack.state == "taken" or self.has_ended:
            return ""
        return self._ended(MissionStatus(state=ack.status or "failed", reason=ack.reason, detail=ack.detail))

    def _ended(self, status: MissionStatus) -> str:
        self.state, self.reason, self.detail = status.state, status.reason, status.detail
        self.asked = ""
        return self._line(mission_line(status))

    def _refusal(self, status: MissionStatus) -> str:
        """Handle a refused request. It has no mission, so every client that has sent one reads it."""
        is_mine = not (status.mission or self.state or self.is_acknowledged)
        if not is_mine or status.reason != InstructionError.__name__:
            return ""
        return self._ended(replace(status, state="failed"))

    def _status(self, status: MissionStatus) -> str:
        if self.has_ended:
            return ""
        self.is_acknowledged = True
        self.state, self.reason, self.detail = status.state, status.reason, status.detail
        self.asked = self.detail if self.state == "waiting" else ""
        self.shown = shown_by(status)
        if self.reason in LOOK_WORDS:
            return self._after_answer(f"    ~ {LOOK_WORDS[self.reason]}: {self.detail}")
        self.proposed = self.detail if (self.state, self.reason) == ("proposed", "approve") else ""
        if self.state == "answering" and self.reason in START_WORDS:
            return self._after_answer(f"    ~ {START_WORDS[self.reason]}: {self.detail}")
        if self.state == "answering":
            self.steps, self._shown, self._has_streamed = status.step, "", False
            mark = " (draft only, not verified)" if self.reason == "unverified" else ""
            return self._line(f"[{self.steps}] looks{mark}")
        if self.state == "acting":
            return ""
        return self._line(mission_line(status))

    def _partial(self, text: str) -> str:
        """Print what is new; text that was already shown stays, since it was committed."""
        text = " ".join(text.splitlines())
        if self.state != "answering" or not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        if not new:
            return ""
        start = "" if self._is_open_line else "    "
        self._is_open_line = self._has_streamed = True
        return start + new

    def _answer(self, answer: AnswerReport) -> str:
        if not answer.final:
            return ""
        self.actions += map(format_action, answer.actions)
        text = " ".join(answer.text.splitlines())
        if text and not (self._has_streamed and text.startswith(self._shown)):
            # Its partial texts have not been printed, and are not any more: it came before them, or they were
            # those of another frame that was asked about at the same time.
            self._shown, self._has_streamed = text, True
            mark = "" if answer.number == self.steps else f"[{answer.number}] "
            return self._line(f"    {mark}{text}")
        end, self._is_open_line = "\n" if self._is_open_line else "", False
        held, self._deferred_lines = self._deferred_lines, []
        return end + "".join(held)

    def _plan_status(self, status: PlanStatus) -> str:
        is_start = status.start == "begun"
        doing = f"{status.state} {status.action} {'?' if is_start else ''}"
        if doing == self._acting:
            return ""
        self._acting = doing
        if status.state == "moving":
            return self._after_answer(f"    > {status.action}{' (not verified)' if is_start else ''}")
        if status.state in BROKEN_OFF:
            return self._after_answer(f"    ! {robot_line(status)}")
        return ""

    def _after_answer(self, text: str) -> str:
        """Return a line, or defer it until the answer that is being printed has ended."""
        if not self._is_open_line:
            return self._line(text)
        self._deferred_lines.append(f"{text}\n")
        return ""


def _subclasses(kind: type[VsdError]) -> dict[str, type[VsdError]]:
    found: dict[str, type[VsdError]] = {kind.__name__: kind}
    for child in kind.__subclasses__():
        found |= _subclasses(child)
    return found

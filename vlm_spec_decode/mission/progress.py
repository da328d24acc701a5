"""One mission as text for a person: the answer as it streams, the robot's actions, the end.

The one place where reports of a mission become words; `vsd say`, `vsd top` and `vsd demo` print these. Text
in, text out; independent of ROS and terminals. Messages of other missions are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_spec_decode.core.errors import CloudError, InstructionError, RobotError, VsdError
from vlm_spec_decode.mission.events import BROKEN_OFF
from vlm_spec_decode.mission.state import END_STATES, START_WORDS

AWAITED = {
    "queued": "the missions before it",
    "looking": "a camera frame, or the cloud",
    "answering": "the answer",
    "proposed": "a yes or a no",
    "acting": "the robot to finish",
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


def mission_line(status: Mapping[str, Any]) -> str:
    """Return the state of a `vlm/status` in words, with reason and detail where it has them."""
    why = ": ".join(str(part) for part in (status["reason"], status["detail"]) if part)
    return f"{str(status['state']).replace('_', ' ')}{': ' if why else ''}{why}"


def robot_line(status: Mapping[str, Any]) -> str:
    """Return a `vlm/plan/status` in words: what the robot does, and why it has left its plan."""
    doing = f"{status['state']} {status['action']}".strip()
    if start := START_NOTES.get(str(status.get("start", ""))):
        doing += f" ({start}: {status['start_detail']})"
    if status["state"] not in BROKEN_OFF:
        return doing
    return f"{doing}: {status['reason']} {status['detail']}".rstrip(": ")


def decoding_line(trace: Mapping[str, Any]) -> str:
    """Return the figures of a `vlm/trace` in words."""
    cost = f"{trace['tokens']} tokens, {trace['total_s']:.2f} s, {trace['target_passes']} target passes"
    if not trace["drafted"]:
        return f"{cost}, nothing drafted"
    return f"{cost}, {trace['accepted']} of {trace['drafted']} drafted kept"


@dataclass(slots=True)
class MissionProgress:
    """The state of the mission named `mission`.

    `on_message` takes a message and returns the text to print, newlines included.
    """

    mission: str
    state: str = ""
    reason: str = ""
    detail: str = ""
    steps: int = 0
    actions: list[str] = field(default_factory=list)
    proposed: str = ""
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

    def on_message(self, topic: str, text: str) -> str:
        """Read one message of a topic; return what to print."""
        if topic == "vlm/answer/partial":
            return self._partial(text)
        data = json.loads(text)
        if data.get("mission") != self.mission:
            return self._refusal(data) if topic == "vlm/status" else ""
        handlers = {
            "vlm/ack": self._ack,
            "vlm/status": self._status,
            "vlm/answer": self._answer,
            "vlm/plan/status": self._plan_status,
            "vlm/trace": self._trace,
        }
        return handlers[topic](data)

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

    def _ack(self, data: Mapping[str, Any]) -> str:
        self.is_acknowledged = self.is_acknowledged or data["state"] == "taken"
        self.listeners = max(self.listeners, int(data["listeners"]))
        if data["state"] == "taken" or self.has_ended:
            return ""
        self.state, self.reason, self.detail = data["status"] or "failed", data["reason"], data["detail"]
        return self._line(self._state_line())

    def _state_line(self) -> str:
        return mission_line({"state": self.state, "reason": self.reason, "detail": self.detail})

    def _refusal(self, data: Mapping[str, Any]) -> str:
        """Handle a refused request. It has no mission, so every client that has sent one reads it."""
        is_mine = not (data["mission"] or self.state or self.is_acknowledged)
        if not is_mine or data["reason"] != InstructionError.__name__:
            return ""
        self.state, self.reason, self.detail = "failed", data["reason"], data["detail"]
        return self._line(self._state_line())

    def _status(self, data: Mapping[str, Any]) -> str:
        if self.has_ended:
            return ""
        self.is_acknowledged = True
        self.state, self.reason, self.detail = data["state"], data["reason"], data["detail"]
        self.proposed = self.detail if (self.state, self.reason) == ("proposed", "approve") else ""
        if self.state == "answering" and self.reason in START_WORDS:
            return self._after_answer(f"    ~ {START_WORDS[self.reason]}: {self.detail}")
        if self.state == "answering":
            self.steps, self._shown, self._has_streamed = data["step"], "", False
            mark = " (draft only, not verified)" if self.reason == "unverified" else ""
            return self._line(f"[{self.steps}] looks{mark}")
        if self.state == "acting":
            return ""
        return self._line(self._state_line())

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

    def _answer(self, data: Mapping[str, Any]) -> str:
        self.actions += data["actions"]
        if not self._has_streamed and data["text"]:
            # If the answer arrives before its partial texts, those are not printed any more.
            self._shown = " ".join(data["text"].splitlines())
            return self._line(f"    {self._shown}")
        end, self._is_open_line = "\n" if self._is_open_line else "", False
        held, self._deferred_lines = self._deferred_lines, []
        return end + "".join(held)

    def _trace(self, data: Mapping[str, Any]) -> str:
        return self._line(f"    {decoding_line(data)}")

    def _plan_status(self, data: Mapping[str, Any]) -> str:
        is_start = data.get("start") == "begun"
        doing = f"{data['state']} {data['action']} {'?' if is_start else ''}"
        if doing == self._acting:
            return ""
        self._acting = doing
        if data["state"] == "moving":
            return self._after_answer(f"    > {data['action']}{' (not verified)' if is_start else ''}")
        if data["state"] in BROKEN_OFF:
            return self._after_answer(f"    ! {robot_line(data)}")
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

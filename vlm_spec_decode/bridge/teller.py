"""One mission told to a person while it goes on: the answer as it streams, what the robot does, how it ended.

Text in, text out; knows neither ROS nor terminals. Messages of other missions are not told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_spec_decode.bridge.missions import ENDED
from vlm_spec_decode.core.errors import CloudError, InstructionError, RobotError, VsdError

TROUBLE = frozenset({"refused", "stopped", "fault", "estop"})


@dataclass(slots=True)
class Teller:
    """What is known of the mission named `mission`; `hear` returns what to print, newlines included."""

    mission: str
    state: str = ""
    reason: str = ""
    detail: str = ""
    steps: int = 0
    actions: list[str] = field(default_factory=list)
    proposed: str = ""
    _shown: str = ""
    _acting: str = ""
    _is_open_line: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the mission is over."""
        return self.state in ENDED

    @property
    def exit_code(self) -> int:
        """What the command returns: 0 done, 2 to 4 by the kind of failure, 1 for any other end."""
        if self.state == "done":
            return 0
        kinds = _subclasses(CloudError) | _subclasses(RobotError) | _subclasses(InstructionError)
        kind = kinds.get(self.reason) if self.state == "failed" else None
        return 1 if kind is None else kind.exit_code

    def hear(self, topic: str, text: str) -> str:
        """Take one message; return what to print."""
        if topic == "vlm/answer/partial":
            return self._partial(text)
        data = json.loads(text)
        if data.get("mission") != self.mission:
            return self._refusal(data) if topic == "vlm/status" else ""
        handlers = {
            "vlm/status": self._status,
            "vlm/answer": self._answer,
            "vlm/plan/status": self._plan_status,
            "vlm/trace": self._trace,
        }
        return handlers[topic](data)

    def _line(self, text: str) -> str:
        start = "\n" if self._is_open_line else ""
        self._is_open_line = False
        return f"{start}{text}\n"

    def _refusal(self, data: Mapping[str, Any]) -> str:
        """A request that cannot be read or used gets no mission; the answer is for whoever has asked."""
        if data["mission"] or self.state or data["reason"] != InstructionError.__name__:
            return ""
        self.state, self.reason, self.detail = "failed", data["reason"], data["detail"]
        return self._line(f"failed: {self.reason}: {self.detail}")

    def _status(self, data: Mapping[str, Any]) -> str:
        self.state, self.reason, self.detail = data["state"], data["reason"], data["detail"]
        why = ": ".join(part for part in (self.reason, self.detail) if part)
        self.proposed = self.detail if (self.state, self.reason) == ("proposed", "approve") else ""
        if self.state == "answering":
            self.steps, self._shown = data["step"], ""
            mark = " (draft only, not verified)" if self.reason == "unverified" else ""
            return self._line(f"[{self.steps}] looks{mark}")
        if self.state == "acting":
            return ""
        return self._line(f"{self.state.replace('_', ' ')}{': ' if why else ''}{why}")

    def _partial(self, text: str) -> str:
        """Print what is new; text that was already shown stays, since it was committed."""
        if self.state != "answering" or not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        if not new:
            return ""
        start = "" if self._is_open_line else "    "
        self._is_open_line = True
        return start + new

    def _answer(self, data: Mapping[str, Any]) -> str:
        self.actions += data["actions"]
        end, self._is_open_line = "\n" if self._is_open_line else "", False
        return end

    def _trace(self, data: Mapping[str, Any]) -> str:
        kept = (
            f"{data['accepted']} of {data['drafted']} drafted kept" if data["drafted"] else "nothing drafted"
        )
        return self._line(
            f"    {data['tokens']} tokens, {data['total_s']:.2f} s, {data['target_passes']} passes, {kept}"
        )

    def _plan_status(self, data: Mapping[str, Any]) -> str:
        said = f"{data['state']} {data['action']}".strip()
        if said == self._acting:
            return ""
        self._acting = said
        if data["state"] == "moving":
            return self._line(f"    > {data['action']}")
        if data["state"] in TROUBLE:
            return self._line(f"    ! {said}: {data['reason']} {data['detail']}".rstrip(": "))
        return ""


def _subclasses(kind: type[VsdError]) -> dict[str, type[VsdError]]:
    found: dict[str, type[VsdError]] = {kind.__name__: kind}
    for child in kind.__subclasses__():
        found |= _subclasses(child)
    return found

"""The events of a mission, derived from its topics. Independent of ROS and processes.

`hear` takes every message once, in the order of arrival, and returns lines for people to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENDED = frozenset({"done", "step_limit", "refused", "cancelled", "failed"})
"""States of `/vlm/status` after which the mission will not move the robot any more."""


@dataclass(slots=True)
class MissionStep:
    """One look, answer and act."""

    number: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    actions: tuple[str, ...] = ()
    executed: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    stamp_s: float = 0.0
    trace: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class MissionLog:
    """A mission in progress; times are seconds of the clock whose readings `hear` gets."""

    given_s: float = float("nan")
    mission: str = ""
    link: str = "connecting"
    detail: str = ""
    state: str = ""
    reason: str = ""
    first_action_s: float | None = None
    ended_s: float | None = None
    steps: list[MissionStep] = field(default_factory=list)
    _acting: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the mission is over."""
        return self.ended_s is not None

    def give(self, now_s: float) -> None:
        """Note that the instruction goes out now; what older missions said does not count."""
        self.given_s = now_s

    def hear(self, topic: str, text: str, now_s: float) -> list[str]:
        """Take one message in; return lines to print."""
        if topic == "/vlm/status":
            return self._status(json.loads(text), now_s)
        handler = {
            "/vlm/answer": self._answer,
            "/vlm/trace": self._trace,
            "/vlm/plan": self._plan,
            "/vlm/plan/status": self._plan_status,
        }.get(topic)
        if handler is None or not self.mission:
            return []
        data = json.loads(text)
        return handler(data, now_s) if data.get("mission") == self.mission else []

    def _status(self, data: Mapping[str, Any], now_s: float) -> list[str]:
        state, why = data["state"], ": ".join(p for p in (data["reason"], data["detail"]) if p)
        if not data["mission"] and state not in ENDED:
            self.link, self.detail = state, why
            return []
        if not self.given_s <= now_s or self.has_ended:
            return []
        self.mission = data["mission"] or "refused"
        self.state, self.reason = state, why
        if state == "looking":
            return ["the robot takes the mission"]
        if state == "answering":
            self.steps.append(MissionStep(data["step"]))
            return [f"step {data['step']}: looks and asks"]
        if state in ENDED:
            self.ended_s = now_s
            return [f"mission {state.replace('_', ' ')}" + (f" ({why})" if why else "")]
        return []

    def _step(self, number: int) -> MissionStep | None:
        return next((step for step in self.steps if step.number == number), None)

    def _answer(self, data: Mapping[str, Any], _now_s: float) -> list[str]:
        step = self._step(data["answer"])
        if step is None:
            return []
        step.text, step.token_ids = data["text"], tuple(data["token_ids"])
        step.actions, step.history = tuple(data["actions"]), tuple(data["history"])
        step.stamp_s = data["stamp_s"]
        return [f'  answer: "{step.text}"']

    def _trace(self, data: Mapping[str, Any], _now_s: float) -> list[str]:
        step = self._step(data["answer"])
        if step is None:
            return []
        step.trace = data
        kept = f"{data['accepted']} of {data['drafted']} drafted tokens kept"
        return [
            f"  {data['tokens']} tokens in {data['total_s']:.2f} s, {data['target_passes']} passes, {kept}"
        ]

    def _plan(self, data: Mapping[str, Any], now_s: float) -> list[str]:
        if data["actions"] and self.first_action_s is None:
            self.first_action_s = now_s
        return []

    def _plan_status(self, data: Mapping[str, Any], _now_s: float) -> list[str]:
        step = self._step(data["answer"])
        if step is None:
            return []
        step.executed = tuple(data["executed"])
        said = f"{data['state']} {data['action']}".strip()
        if said == self._acting:
            return []
        self._acting = said
        if data["state"] == "moving":
            return [f"  acts: {data['action']}"]
        if data["state"] in {"refused", "stopped", "fault", "estop"}:
            return [f"  {data['state']}: {data['action']} {data['reason']}: {data['detail']}".rstrip(": ")]
        return []

"""An executor on the fake robot in virtual time."""

from __future__ import annotations

import math

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.control.action_runner import InlineCallRunner
from vlm_spec_decode.control.executor import Executor, run_plan
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.robot.fake import Disc, FakeBody, FakeRobot


class Rig:
    """A standing robot; `run` carries out a plan, `go` ticks with the heartbeat of the last plan."""

    def __init__(
        self,
        *discs: Disc,
        limits: SafetyLimits | None = None,
        body: FakeBody | None = None,
        starts: bool = True,
    ) -> None:
        self.clock = VirtualClock(100.0)
        self.robot = FakeRobot(self.clock, body, discs)
        self.limits = limits or SafetyLimits()
        self.executor = Executor(self.robot, SafetyGate(self.limits), self.clock, runner=InlineCallRunner())
        self._sent: Plan | None = None
        if starts:
            self.robot.start()

    def plan(
        self, text: str, *, mission: str = "m", answer: int = 0, final: bool = True, sequence: int = 0
    ) -> Plan:
        return Plan(mission, answer, self.clock.now(), sequence, parse_answer(text), final)

    def run(self, text: str, *, mission: str = "m", answer: int = 0, timeout_s: float = 60.0) -> PlanStatus:
        return run_plan(self.executor, self.plan(text, mission=mission, answer=answer), self.clock, timeout_s)

    def send(
        self, text: str, *, mission: str = "m", answer: int = 0, final: bool = True, sequence: int = 0
    ) -> None:
        self._sent = self.plan(text, mission=mission, answer=answer, final=final, sequence=sequence)
        self.executor.submit(self._sent)

    def go(self, duration_s: float, *, heartbeat: bool = True) -> PlanStatus:
        end_s = self.clock.now() + duration_s
        while self.clock.now() < end_s:
            if heartbeat and self._sent is not None:
                self.executor.submit(self._sent)
            self.executor.tick()
            self.clock.sleep(self.executor.period_s)
        return self.executor.status()

    @property
    def x_m(self) -> float:
        return self.robot.true_pose[0]

    @property
    def y_m(self) -> float:
        return self.robot.true_pose[1]

    @property
    def yaw_deg(self) -> float:
        return math.degrees(self.robot.true_pose[2])

    @property
    def is_still(self) -> bool:
        return self.robot.state().is_still

    def moves(self) -> list[tuple[float, tuple[float, float, float]]]:
        """Return time and velocity of every Move sent."""
        found = []
        for at_s, call in self.robot.calls:
            if call.startswith("move("):
                vx, vy, vyaw = (float(part) for part in call[5:-1].split(","))
                found.append((at_s, (vx, vy, vyaw)))
        return found

"""One instruction as a closed loop: look, answer, act, until it is done. Knows no ROS.

Runs on a thread of its own. What it has to say goes out through `emit`; what it waits for comes in
through a `MissionFeed`. Whatever ends a mission, its last plan is one without actions, which stops the
robot without waiting for the watchdog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.bridge.mission_feed import Frame, MissionFeed
from vlm_spec_decode.bridge.ports import Answerer
from vlm_spec_decode.bridge.reports import Answer, MissionStatus, Partial
from vlm_spec_decode.core.errors import Cancelled, CloudError, InstructionError, VsdError
from vlm_spec_decode.edge.images import for_uplink
from vlm_spec_decode.edge.mission import LOOK_AGAIN, SILENCE, Mission, Status

SHOWN_CHARS = 200
"""How much of an instruction a status repeats."""

WHY = {
    "estop": "the e-stop is engaged; the e_stop service releases it",
    "cancelled": "somebody asked for it",
    "watchdog": "the plan's heartbeat was lost",
}
"""What a reason means for a person, where the executor has not said more."""

Report: TypeAlias = Plan | Partial | Answer | MissionStatus


@dataclass(frozen=True, slots=True)
class Job:
    """An instruction and the name of its mission."""

    mission: str
    instruction: str


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """When a mission gives up."""

    max_steps: int = 24
    ready_s: float = 2.0
    frame_s: float = 5.0
    silence_s: float = 2.0
    act_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a mission ended, and why if not by `done()`; `lost_cloud` asks for a new handshake."""

    status: Status
    reason: str = ""
    detail: str = ""
    lost_cloud: bool = False


def failure(error: VsdError) -> Ending:
    """Return the ending that an error makes."""
    return Ending("failed", type(error).__name__, str(error), isinstance(error, CloudError))


class MissionRunner:
    """Runs one job at a time; `now_s` is ROS time, the clock of the frames' stamps."""

    def __init__(
        self,
        feed: MissionFeed,
        emit: Callable[[Job, Report], None],
        now_s: Callable[[], float],
        config: RunnerConfig,
    ) -> None:
        self._feed = feed
        self._emit = emit
        self._now_s = now_s
        self._config = config

    def run(self, job: Job, engine: Answerer) -> Ending:
        """Run a mission to its end and say how it ended."""
        try:
            mission = Mission(job.instruction, self._config.max_steps)
        except InstructionError as error:
            return self.refuse(job, error)
        ending = self._loop(job, mission, engine)
        self._finish(job, ending, mission.steps)
        return ending

    def refuse(self, job: Job, error: VsdError) -> Ending:
        """End a mission that cannot begin."""
        ending = failure(error)
        self._finish(job, ending, 0)
        return ending

    def _loop(self, job: Job, mission: Mission, engine: Answerer) -> Ending:
        try:
            self._announce(job)
            while mission.is_running:
                self._step(job, mission, engine)
        except Cancelled as error:
            status = self._feed.broken_off()
            return Ending("cancelled", "cancel", str(error)) if status is None else ending_of(status)
        except VsdError as error:
            return failure(error)
        return Ending(mission.status)

    def _announce(self, job: Job) -> None:
        """Let the executor drop what it has and stand, before the first look."""
        self._feed.begin(job.mission, 0)
        self._say(job, "looking", 0)
        self._emit(job, Plan(job.mission, 0, self._now_s(), 0))
        self._feed.wait_ready(self._config.ready_s)

    def _step(self, job: Job, mission: Mission, engine: Answerer) -> None:
        number = mission.steps + 1
        frame = self._feed.wait_frame(self._now_s(), self._config.frame_s)
        self._feed.begin(job.mission, number)
        self._say(job, "answering", number)
        try:
            plan = self._answer(job, mission, engine, frame)
            self._say(job, "acting", number)
            status = self._feed.wait_end(self._config.silence_s, self._config.act_s)
        except Cancelled:
            broken_off = self._feed.broken_off()
            if broken_off is None or broken_off.reason not in LOOK_AGAIN | {SILENCE}:
                raise
            if broken_off.reason == SILENCE:
                mission.record_silence(broken_off.executed)
            else:
                mission.record_obstruction(broken_off.executed)
            if not mission.is_running:
                raise
            return
        mission.record(status.executed, plan.actions)

    def _answer(self, job: Job, mission: Mission, engine: Answerer, frame: Frame) -> Plan:
        """Decode one answer; the plan grows, and is acted on, while it is being said."""
        number = mission.steps + 1
        image = for_uplink(frame.image.jpeg)
        observation = mission.observation(image, frame.stamp_s, frame.frame_id)
        plan = Plan(job.mission, number, frame.stamp_s, 0)
        self._emit(job, plan)
        for update in engine.answer(observation):
            self._feed.check()
            self._emit(job, Partial(update.text))
            is_last = update.result is not None
            if update.actions or is_last:
                actions = plan.actions + update.actions
                plan = replace(plan, actions=actions, sequence=plan.sequence + 1, final=is_last)
                self._emit(job, plan)
            if update.result is not None:
                self._emit(job, Answer(job.mission, number, observation, plan.actions, update.result))
        return plan

    def _finish(self, job: Job, ending: Ending, steps: int) -> None:
        self._emit(job, Plan(job.mission, steps + 2, self._now_s(), 0, final=True))
        self._say(job, ending.status, steps, ending.reason, ending.detail)

    def _say(self, job: Job, state: str, step: int, reason: str = "", detail: str = "") -> None:
        said = job.instruction[:SHOWN_CHARS]
        self._emit(job, MissionStatus(state, job.mission, said, step, reason, detail))


def ending_of(status: PlanStatus) -> Ending:
    """Return what an executor's breaking off means for the mission."""
    said = status.detail or WHY.get(status.reason, "")
    detail = f"{status.action}: {said}" if status.action else said
    meaning: dict[str, Status] = {"refused": "refused", "fault": "failed"}
    return Ending(meaning.get(status.state, "cancelled"), status.reason or status.state, detail)

"""A robot in virtual time whose engine answers by where the robot looked when the frame was taken."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

from test.actions.rig import Rig
from test.mission.scripted import ScriptedEngines, plain_jpeg, result_of
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.engine import AnswerUpdate
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.runner import MissionRunner
from vlm_spec_decode.mission.state import Answer, MissionJob, MissionStatus, RunnerConfig

CAMERA_S = 0.1
NOT_SEEN = "i do not see the red box . turn(60)"


class Ticking(threading.Condition):
    """Waiting lets the robot's time pass, on the caller's thread."""

    def __init__(self, clock, tick):
        super().__init__()
        self._clock, self._tick = clock, tick

    def wait_for(self, predicate, timeout=None):
        until_s = math.inf if timeout is None else self._clock.now() + timeout
        while not (found := predicate()) and self._clock.now() < until_s:
            self._tick()
        return found


class TurningWorld:
    """`says(heading_deg, history)` is the answer about a frame, whose tokens come after `answer_s`."""

    def __init__(self, says, *, answer_s=2.5, config=None, rig=None, has_odometry=True):
        self.rig = rig or Rig()
        self.says, self.answer_s, self.has_odometry = says, answer_s, has_odometry
        self.events = MissionEvents(self.rig.clock, Ticking(self.rig.clock, self.tick))
        self.said, self.asked, self.plan = [], [], None
        self.headings = {}
        self.cancelled = 0
        self._frame_s = 0.0
        self.at = {}
        """What happens at a time: a call each."""
        # One thread owns this world's time: no answer may be decoded on another.
        config = replace(config or RunnerConfig(max_steps=12), early_frames="off")
        self.runner = MissionRunner(self.events, self.hear, self.rig.clock.now, config)

    def tick(self):
        clock, executor = self.rig.clock, self.rig.executor
        for due_s in [s for s in self.at if s <= clock.now()]:
            self.at.pop(due_s)()
        if self.plan is not None:
            executor.submit(self.plan)
        executor.tick()
        clock.sleep(executor.period_s)
        x_m, y_m, yaw_rad = self.rig.robot.true_pose
        if self.has_odometry:
            self.events.put_pose(clock.now(), Pose2D(x_m, y_m, yaw_rad))
        if clock.now() - self._frame_s >= CAMERA_S:
            self._frame_s = clock.now()
            self.headings[self._frame_s] = math.degrees(yaw_rad)
            self.events.put_frame(Frame(Image(plain_jpeg(), 32, 24), self._frame_s, "camera"))
        self.events.put_status(executor.status())

    def hear(self, job, report):
        self.said.append(report)
        if isinstance(report, Plan):
            self.plan = report
            self.rig.executor.submit(report)

    def picture(self, data):
        return Image(data, 32, 24)

    def answer(self, observation):
        self.asked.append(observation)
        text = self.says(self.headings[observation.stamp_s], observation.history)
        actions = parse_answer(text)
        pieces = [actions[:1], actions[1:]] if actions else [()]
        try:
            for number, piece in enumerate(pieces):
                until_s = self.rig.clock.now() + self.answer_s / len(pieces)
                while self.rig.clock.now() < until_s and self.events.broken_off() is None:
                    self.tick()
                is_last = number == len(pieces) - 1
                yield AnswerUpdate(
                    answer=1,
                    tokens=(1,),
                    text=text,
                    actions=piece,
                    result=result_of(text) if is_last else None,
                )
        except GeneratorExit:
            self.cancelled += 1
            raise

    def cancel(self):
        self.cancelled += 1

    def lose_cloud(self, when):
        """Let the next question raise for which `when()` is true."""
        answer = self.answer

        def lost(observation):
            if when():
                raise CloudUnreachable("gone")
            return answer(observation)

        self.answer = lost

    def run(self, **job):
        began_s = self.rig.clock.now()
        ending = self.runner.run(MissionJob("m", "go to the red box", **job), ScriptedEngines(self))
        self.time_s = self.rig.clock.now() - began_s
        return ending

    def of(self, kind):
        return [report for report in self.said if isinstance(report, kind)]


__all__ = ["NOT_SEEN", "Answer", "MissionStatus", "Plan", "TurningWorld"]

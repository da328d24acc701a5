"""One action under way: its stages, the watch over it, and the slew-limited velocity to the robot.

Used by the executor's one control thread only. Decides nothing about plans, heartbeats or the e-stop.
"""

from __future__ import annotations

import math
from collections import deque

from vlm_spec_decode.actions.jobs import Call, Job, Runner
from vlm_spec_decode.actions.motion import STILL, Line, Moment, Motion, Slew, Velocity
from vlm_spec_decode.actions.safety import OBSTACLE_MARGIN_M, SafetyGate, motion_direction
from vlm_spec_decode.actions.stages import Stage, StageMaker
from vlm_spec_decode.actions.stopping import Stopper
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.actions.unfinished import Unfinished
from vlm_spec_decode.core.errors import ActionRefused, Cancelled, RobotRefused, RobotStale
from vlm_spec_decode.core.robot import RobotState

ARRIVED_M = 0.10
"""An obstacle this little before a motion's end has not kept it from being carried out."""

MOVE_FAILING_S = 0.3
"""A Move may be lost now and then: the robot holds the one before for 1 s. This long is a fault."""


class Performer:
    """Carries out one action at a time."""

    def __init__(self, gate: SafetyGate, stopper: Stopper, stages: StageMaker, runner: Runner) -> None:
        self._gate = gate
        self._stopper = stopper
        self._maker = stages
        self._runner = runner
        self._permit = stopper.permit
        self._slew = Slew(gate.limits)
        self._stages: deque[Stage] | None = None
        self._said: Action | None = None
        self._action: Action | None = None
        self._motion: Motion | None = None
        self.unfinished = Unfinished()
        self._job: Job | None = None
        self._moved = False
        self._failing_since_s: float | None = None
        self._moment: Moment | None = None
        self._stamp_s = -math.inf
        self._stamp_seen_s = -math.inf

    @property
    def is_busy(self) -> bool:
        """Whether a driver's call is still running, be it for an action that was abandoned."""
        return self._job is not None and not self._job.ended

    def obey(self, gate: SafetyGate) -> None:
        """Let the limits of `gate` hold from here on; to be called between actions only."""
        self._gate = gate
        self._slew.limits = self._maker.limits = gate.limits

    def begin_period(self) -> None:
        """Take the permit for what this period will decide; to be called before its orders are read."""
        self._permit = self._stopper.permit

    def observe(self, state: RobotState, now_s: float) -> Moment:
        """Take in the newest state."""
        if state.stamp_s != self._stamp_s:
            self._stamp_s, self._stamp_seen_s = state.stamp_s, now_s
        self._moment = Moment(state, now_s)
        return self._moment

    def perform(self, action: Action, frame_age_s: float) -> bool:
        """Do the next bit of `action`; return whether it is carried out.

        If it is the motion that was broken off last, only what is left of it.
        Raises ActionRefused when gate or world say no, RobotError when the robot is at fault.
        """
        moment = self._moment
        if moment is None or (self._stages is None and self.is_busy):
            return False
        age_s = moment.now_s - self._stamp_seen_s
        if self._stages is None:
            self._job = None
            rest = self.unfinished.rest_of(action, moment.state)
            self._gate.check(rest, moment.state, frame_age_s, age_s)
            self._said, self._action = action, rest
            self._stages = deque(self._maker.stages(rest))
        elif age_s > self._gate.limits.max_state_age_s:
            raise RobotStale(f"the state's stamp stands still for {age_s:.2f} s")
        if self._motion is None and self._job is None and not self._next_stage(moment):
            return True
        if self._job is not None:
            self._poll(self._job)
        elif self._motion is not None and self._action is not None:
            self._drive(self._motion, self._action, moment, age_s)
        return False

    def steer(self, wanted: Velocity) -> None:
        """Follow a person's velocity: within the limits of speed and slew, and not into an obstacle.

        Raises RobotStale if the state stands still, RobotRefused if the robot takes no Moves.
        """
        moment = self._moment
        if moment is None or self.is_busy:
            return
        age_s = moment.now_s - self._stamp_seen_s
        if age_s > self._gate.limits.max_state_age_s:
            raise RobotStale(f"the state's stamp stands still for {age_s:.2f} s")
        if moment.state.code not in self._gate.limits.modes:
            self._slew.reset()
            return
        if not self._has_room(wanted, moment.state):
            if self._slew.velocity[:2] != STILL[:2]:
                self._slew.reset()
                self._stopper.stop("obstacle").check()
            wanted = (0.0, 0.0, wanted[2])
        self._command(wanted, moment.now_s)

    def abandon(self) -> bool:
        """Forget the present action; return whether there was one. A running call stays known as busy."""
        was_active = self._stages is not None
        self.unfinished.keep(self._said, self._motion)
        self._stages, self._motion = None, None
        if self._job is not None and self._job.ended:
            self._job = None
        self._failing_since_s = None
        self._slew.reset()
        return was_active

    def come_to_rest(self) -> None:
        """After the last action known: end the gait, if anything moved. Raises RobotRefused."""
        if self._moved:
            self._moved = False
            self._stopper.stop("rest").check()

    def _next_stage(self, moment: Moment) -> bool:
        if not self._stages:
            self._stages = None
            return False
        begun = self._stages.popleft()(moment)
        if isinstance(begun, Call):
            self._start(begun)
        else:
            self._motion = begun
            self.unfinished.forget()
        return True

    def _start(self, call: Call) -> None:
        """Register the job before anything runs: an e-stop must not be released in between."""
        permit = self._permit

        def guarded() -> None:
            if not self._stopper.allows(permit):
                raise Cancelled(f"{call.name} was not begun: there has been an e-stop")
            call.run()

        self._job = Job(call.name)
        self._runner.run(self._job, Call(call.name, guarded))

    def _poll(self, job: Job) -> None:
        if not job.ended:
            return
        self._job = None
        if job.error is not None:
            raise job.error
        if not job.succeeded:
            raise RobotRefused(job.name, -1, "the call died of an unforeseen error")

    def _drive(self, motion: Motion, action: Action, moment: Moment, age_s: float) -> None:
        state = moment.state
        try:
            self._gate.watch(action, state, age_s)
        except ActionRefused as refusal:
            if refusal.reason == "mode":
                raise RobotRefused("move", state.code, f"stopped walking: {refusal.detail}") from refusal
            raise
        direction = motion_direction(action)
        room_m = math.inf if direction is None else self._gate.room_m(state, *direction)
        wanted = motion.step(Moment(state, moment.now_s, room_m))
        if wanted is None:
            self._motion = None
        elif self._has_room(wanted, state):
            self._command(wanted, moment.now_s)
        elif isinstance(motion, Line) and abs(motion.remaining(state)) <= ARRIVED_M:
            self._halt_before_obstacle()
        else:
            clearance_m = self._gate.clearance_m(state, wanted[0], wanted[1])
            raise ActionRefused("obstacle", f"{clearance_m:.2f} m ahead of the body")

    def _has_room(self, wanted: Velocity, state: RobotState) -> bool:
        """Whether the body may go on that way, counting what it still coasts after a stop."""
        if not wanted[0] and not wanted[1]:
            return True
        coasting_m = state.speed_mps * self._maker.tuning.latency_s
        return self._gate.room_m(state, wanted[0], wanted[1]) - coasting_m > OBSTACLE_MARGIN_M

    def _command(self, wanted: Velocity, now_s: float) -> None:
        velocity = self._slew.towards(wanted, now_s)
        if velocity != STILL:
            self._moved = True
        if not self._moved:
            return
        try:
            self._stopper.move(velocity, self._permit)
            self._failing_since_s = None
        except RobotRefused:
            if self._failing_since_s is None:
                self._failing_since_s = now_s
            if now_s - self._failing_since_s > MOVE_FAILING_S:
                raise

    def _halt_before_obstacle(self) -> None:
        self._motion = None
        self._slew.reset()
        self.come_to_rest()

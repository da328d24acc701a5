"""The only caller of the robot's move, posture and look: plans in, robot motion and status out.

Ticks on a thread of its own (`start`), or by the owner of the clock: evaluation in virtual time, tests,
scripts. Independent of models, network and ROS. Priorities: e-stop, then teleoperation, then plans. The
robot is stopped by gate, obstacle, watchdog, cancel, a stale state, a robot error, close, and from any
thread by the e-stop, which latches.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Done, format_action
from vlm_spec_decode.control.action_runner import ActionRunner, ActionSteps, CallRunner, ThreadCallRunner
from vlm_spec_decode.control.emergency_stop import RESTOP_S, EmergencyStop, StopReport, fault_reason
from vlm_spec_decode.control.motion_profile import STILL, MotionTuning, Velocity
from vlm_spec_decode.control.plan_queue import PlanQueue, PlanReceipt, TimedPlan
from vlm_spec_decode.control.safety import SafetyGate
from vlm_spec_decode.core.errors import ActionRefused, Cancelled, RobotError
from vlm_spec_decode.core.ports import Clock, RobotDriver

JOIN_S = 5.0


class PeriodicThread:
    """Runs `tick` every `period_s`; `at_end` is called also after an unexpected error."""

    def __init__(
        self, name: str, clock: Clock, period_s: float, tick: Callable[[], None], at_end: Callable[[], object]
    ) -> None:
        self._clock, self._period_s = clock, period_s
        self._tick, self._at_end = tick, at_end
        self._closing = threading.Event()
        self.error: Exception | None = None
        """What ended the thread, if nobody foresaw it."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Do the last thing now, then wait for the thread. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            self._at_end()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=JOIN_S)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                began_s = self._clock.now()
                self._tick()
                self._clock.sleep(self._period_s - (self._clock.now() - began_s))
        except Exception as error:
            self.error = error
            raise
        finally:
            self._at_end()


TELEOP_TIMEOUT_S = 0.5
"""What twist_mux usually gives a source."""


@dataclass(slots=True)
class Teleoperation:
    """The newest velocity, when it came, and its way to the robot.

    `put`, `is_live` and `drop` are safe for threads; `follow` and `was_live` belong to the control thread.
    """

    performer: ActionRunner
    stopper: EmergencyStop
    timeout_s: float = TELEOP_TIMEOUT_S
    was_live: bool = False
    _velocity: Velocity = STILL
    _heard_s: float = -math.inf
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, velocity: Velocity, now_s: float) -> bool:
        """Take a velocity; False, and nothing taken, if it is not one."""
        if not all(map(math.isfinite, velocity)):
            return False
        with self._lock:
            self._velocity, self._heard_s = velocity, now_s
        return True

    def is_live(self, now_s: float) -> bool:
        """Whether somebody steers."""
        with self._lock:
            return now_s - self._heard_s <= self.timeout_s

    def drop(self) -> None:
        """Forget what was wanted, as after an e-stop."""
        with self._lock:
            self._heard_s = -math.inf

    def follow(self, now_s: float) -> bool:
        """Follow a person; whether there is one. Where he falls silent, the robot is stopped.

        Raises RobotError if it does not stop, or takes no Moves.
        """
        was_live, self.was_live = self.was_live, self.is_live(now_s)
        if self.was_live:
            self.performer.steer(self._velocity)
        elif was_live:
            self.performer.abandon()
            self.stopper.stop("teleop_silent").check()
        return self.was_live


PERIOD_S = 0.025
"""40 Hz: far below the 1 s that the robot holds a Move, spaced enough for its request queue."""


class Executor:
    """Carries out plans. `submit`, `steer`, `cancel`, `estop` and `status` may be called from any thread.

    `frame_now` reads the clock of the plans' stamps, if it is not `clock`. Exactly one thread ticks.
    """

    def __init__(
        self,
        driver: RobotDriver,
        gate: SafetyGate,
        clock: Clock,
        *,
        runner: CallRunner | None = None,
        tuning: MotionTuning | None = None,
        frame_now: Callable[[], float] | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        self.period_s = period_s
        self._driver, self._gate, self._clock = driver, gate, clock
        self._gates = {True: gate, False: SafetyGate(gate.limits.unverified())}
        self._frame_now = frame_now or clock.now
        self._runner = runner or ThreadCallRunner()
        self._stopper = EmergencyStop(driver, clock)
        stages = ActionSteps(driver, self._stopper, gate.limits, tuning or MotionTuning())
        self._performer = ActionRunner(gate, self._stopper, stages, self._runner)
        self._steering = Teleoperation(self._performer, self._stopper)
        self._reception = PlanQueue()
        self._inbox = self._reception.inbox
        self._estop_lock = threading.Lock()
        self._status, self._active = PlanStatus(), False
        self._read_s = 0.0
        self._stop_owed_s: float | None = None
        self._loop = PeriodicThread(
            "executor", clock, period_s, self.tick, lambda: self._stopper.stop("close")
        )

    @property
    def last_stop(self) -> StopReport | None:
        """The newest stop that had a reason, with its times."""
        return self._stopper.last

    def status(self) -> PlanStatus:
        """Return where the present answer stands; `estop` from the moment of the call on."""
        status, crash = self._status, self._loop.error
        if self._stopper.latched:
            return replace(status, state="estop", reason="estop")
        if crash is not None:
            # The thread has stopped the robot and is gone; whoever waits for the plan must know.
            return replace(status, state="fault", reason="internal", detail=f"the executor ended: {crash!r}")
        return status

    def submit(self, plan: Plan) -> None:
        """Take a plan, or the repetition that is its heartbeat. Never blocks."""
        letter = TimedPlan(plan, self._clock.now(), self._frame_now() - plan.stamp_s)
        self._reception.post(letter, void=self._stopper.latched)

    def cancel(self) -> None:
        """End the present mission; the robot is stopped within one period. Never blocks."""
        self._reception.drop("cancelled")

    def estop(self, engaged: bool) -> StopReport | None:
        """Engage: stop at once on this thread and latch; whatever was commanded until then is void.

        Release: only once the robot stands still and no posture is under way; raises ActionRefused with
        `estop` otherwise. Nothing moves by releasing: a new mission must come.
        """
        if engaged:
            trigger_s = self._clock.now()
            with self._estop_lock:  # no release between latch and drop
                self._stopper.engage()
                self._steering.drop()
                self._reception.drop("estop")
            return self._stopper.stop_now(trigger_s)
        with self._estop_lock:
            if self._performer.is_busy:
                raise ActionRefused("estop", "a posture is still under way")
            self._stopper.release()
        return None

    def steer(self, velocity: Velocity) -> bool:
        """Take a person's velocity, which goes before language; whether it is one. Never blocks."""
        return self._steering.put(velocity, self._clock.now())

    @property
    def source(self) -> str:
        """Who commands now: `estop`, `teleop`, `language` or `none`."""
        if self._stopper.latched:
            return "estop"
        if self._steering.is_live(self._clock.now()):
            return "teleop"
        return "language" if self._active else "none"

    def start(self) -> None:
        """Tick on a thread of its own until `close`."""
        self._loop.start()

    def close(self) -> None:
        """Stop the robot and the thread. Idempotent."""
        self._loop.close()

    def tick(self) -> None:
        """Do what is due now: one control period."""
        began_s = self._clock.now()
        self._performer.begin_period()
        try:
            self._take_orders()
            self._act(self._clock.now())
        except ActionRefused as refusal:
            self._end("refused", refusal.reason, refusal.detail)
        except Cancelled as problem:
            self._end("stopped", "cancelled", str(problem))
        except RobotError as problem:
            self._end("fault", fault_reason(problem), str(problem))
        if not self._runner.concurrent:
            # Nobody could send a heartbeat while this thread let the seconds pass.
            self._inbox.heard_s += self._clock.now() - began_s

    def _take_orders(self) -> None:
        self._read_s = self._clock.now()
        steered = self._steering.is_live(self._read_s) and not self._stopper.latched
        reason, letters = self._reception.take("teleop" if steered else "")
        if reason and (reason != "teleop" or self._active):
            self._performer.obey(self._gates[True])
            self._end("stopped", reason, "")
        for letter in letters:
            self._receive(letter)

    def _receive(self, letter: TimedPlan) -> None:
        plan = letter.plan
        receipt = self._inbox.receive(plan, letter.arrived_s, letter.frame_age_s)
        if receipt is PlanReceipt.DROPPED:
            self._answer_barred(plan)
        elif receipt is PlanReceipt.NEW:
            self._supersede(plan)
        if self._active and receipt in (PlanReceipt.NEW, PlanReceipt.MORE):
            self._gate.check_plan(plan.actions)

    def _answer_barred(self, plan: Plan) -> None:
        """Tell a commander who goes on after a cancel or an e-stop that nobody listens."""
        why = self._inbox.barred(plan.mission)
        known = (self._status.mission, self._status.answer) == (plan.mission, plan.answer)
        if why in ("cancelled", "estop", "teleop") and not self._active and not known:
            self._status = PlanStatus(plan.mission, plan.answer, state="stopped", reason=why)

    def _supersede(self, plan: Plan) -> None:
        was_moving = self._performer.abandon()
        if plan.mission != self._status.mission or (was_moving and plan.actions):
            self._performer.unfinished.forget()
        self._gate = self._gates[plan.verified]
        self._performer.obey(self._gate)
        self._active = True
        self._status = PlanStatus(plan.mission, plan.answer)
        if was_moving:
            self._stopper.stop("superseded").check()

    def _act(self, now_s: float) -> None:
        if self._stop_owed_s is not None and now_s >= self._stop_owed_s:
            self._owe(self._stopper.stop("again"))
        latched = self._stopper.latched
        try:
            moment = self._performer.observe(self._driver.state(), now_s)
        except RobotError:
            if (self._active or self._steering.was_live) and not latched:
                raise
            return
        if latched and not moment.state.is_still and self._stop_owed_s is None:
            self._stop_owed_s = now_s
        if latched or self._stop_owed_s is not None:
            return
        if not self._steering.follow(now_s) and self._active:
            self._carry_out()

    def _carry_out(self) -> None:
        """Go on with the present action, or begin the next one, or end the answer."""
        done = self._status.actions_done
        upcoming = self._inbox.action(done)
        if upcoming is None:
            self._rest()
            return
        # Silence up to the last look into the mailbox: a stop that took long since then is not silence.
        # One period early, because at the next look it would be too late.
        if self._read_s - self._inbox.heard_s > self._gate.limits.watchdog_s - self.period_s:
            self._end("stopped", "watchdog", "the commander fell silent", self._inbox.heard_s)
            return
        action, frame_age_s = upcoming
        text = format_action(action)
        self._status = replace(self._status, state="moving", action=text)
        if self._performer.perform(action, frame_age_s):
            executed = (*self._status.executed, text)
            self._status = replace(self._status, actions_done=done + 1, executed=executed)
            if isinstance(action, Done):
                self._finish()
            elif self._inbox.action(done + 1) is None:
                self._rest()

    def _rest(self) -> None:
        """All that is known is carried out: the answer is over, or more is still to come."""
        if self._inbox.plan is not None and self._inbox.plan.final:
            self._finish()
        elif self._status.state != "idle":
            self._performer.come_to_rest()
            self._status = replace(self._status, state="idle", action="")

    def _finish(self) -> None:
        self._performer.come_to_rest()
        self._active = False
        self._status = replace(self._status, state="done", action="")

    def _end(self, state: str, reason: str, detail: str, trigger_s: float | None = None) -> None:
        """Stop the robot, then say so. A stop that is not confirmed is a fault, and is tried again."""
        self._performer.abandon()
        self._active = False
        # An e-stop has stopped and been reported on its caller's thread; here it is only made sure.
        self._owe(report := self._stopper.stop("again" if reason == "estop" else reason, trigger_s))
        if report.confirmed_s is None and state != "fault":
            state, detail = "fault", f"{detail} (stop not confirmed: {report.error})"
        plan, status = self._inbox.plan, self._status
        if plan is not None and (plan.mission, plan.answer) != (status.mission, status.answer):
            status = PlanStatus(plan.mission, plan.answer)
        self._status = replace(status, state=state, reason=reason, detail=detail)

    def _owe(self, report: StopReport) -> None:
        self._stop_owed_s = None if report.confirmed_s is not None else self._clock.now() + RESTOP_S


def run_plan(executor: Executor, plan: Plan, clock: Clock, timeout_s: float = 120.0) -> PlanStatus:
    """Tick until `plan` has ended, being its heartbeat too; return where it stands then.

    Returns early when all known actions of a plan that is not final are carried out, and after `timeout_s` of
    the clock whatever the state.
    """
    give_up_s = clock.now() + timeout_s
    while True:
        executor.submit(plan)
        executor.tick()
        status = executor.status()
        waits = status.state == "idle" and status.actions_done >= len(plan.actions)
        mine = (status.mission, status.answer) == (plan.mission, plan.answer)
        if (mine and (status.is_terminal or waits)) or status.state == "estop" or clock.now() > give_up_s:
            return status
        clock.sleep(executor.period_s)

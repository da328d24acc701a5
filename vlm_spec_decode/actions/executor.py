"""The sole caller of the robot's move, posture and look: plans in, a moving robot and its status out.

Runs at a fixed rate on its own thread (`start`), or is ticked by whoever owns the clock, in virtual time.
Knows plans, the gate and a driver; no models, network or ROS. What stops the robot here: the gate, an
obstacle, the watchdog on the commander's heartbeat, cancel, a state that stands still, a robot error, close,
and from any thread the e-stop, which latches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from vlm_spec_decode.actions.approach import MotionTuning
from vlm_spec_decode.actions.inbox import PlanInbox, Receipt
from vlm_spec_decode.actions.jobs import Runner, ThreadRunner
from vlm_spec_decode.actions.mailbox import Letter, Mailbox
from vlm_spec_decode.actions.performer import Performer
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.safety import SafetyGate
from vlm_spec_decode.actions.stages import StageMaker
from vlm_spec_decode.actions.stopping import RESTOP_S, Stopper, StopReport, fault_reason
from vlm_spec_decode.actions.types import Done, format_action
from vlm_spec_decode.core.errors import ActionRefused, Cancelled, RobotError
from vlm_spec_decode.core.ports import Clock, RobotDriver

PERIOD_S = 0.025
"""40 Hz: far below the 1 s that the robot holds a Move, spaced enough for its request queue."""


class Executor:
    """Carries out plans. `submit`, `cancel`, `estop` and `status` may be called from any thread.

    `frame_now` reads the clock in which plans stamp their frames, if it is not `clock` (ROS time). Exactly
    one thread ticks.
    """

    def __init__(
        self,
        driver: RobotDriver,
        gate: SafetyGate,
        clock: Clock,
        *,
        runner: Runner | None = None,
        tuning: MotionTuning | None = None,
        frame_now: Callable[[], float] | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        self.period_s = period_s
        self._driver, self._gate, self._clock = driver, gate, clock
        self._gates = {True: gate, False: SafetyGate(gate.limits.unverified())}
        self._frame_now = frame_now or clock.now
        self._runner = runner or ThreadRunner()
        self._stopper = Stopper(driver, clock)
        stages = StageMaker(driver, self._stopper, gate.limits, tuning or MotionTuning())
        self._performer = Performer(gate, self._stopper, stages, self._runner)
        self._inbox = PlanInbox()
        self._mailbox = Mailbox()
        self._estop_lock = threading.Lock()
        self._status = PlanStatus()
        self._active = False
        self._read_s = 0.0
        self._stop_owed_s: float | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def last_stop(self) -> StopReport | None:
        """The newest stop that had a reason, with its times."""
        return self._stopper.last

    def status(self) -> PlanStatus:
        """Return where the present answer stands; `estop` from the moment of the call on."""
        status = self._status
        return replace(status, state="estop", reason="estop") if self._stopper.latched else status

    def submit(self, plan: Plan) -> None:
        """Take a plan, or the repetition that is its heartbeat. Never blocks."""
        letter = Letter(plan, self._clock.now(), self._frame_now() - plan.stamp_s)
        self._mailbox.post(letter, void=self._stopper.latched)

    def cancel(self) -> None:
        """End the present mission; the robot is stopped within one period. Never blocks."""
        self._mailbox.drop("cancelled")

    def estop(self, engaged: bool) -> StopReport | None:
        """Engage: stop at once on this thread and latch; whatever was commanded until then is void.

        Release: only once the robot stands still and no posture is under way; raises ActionRefused with
        `estop` otherwise. Nothing moves by releasing: a new mission must come.
        """
        if engaged:
            trigger_s = self._clock.now()
            with self._estop_lock:  # no release between latch and drop
                self._stopper.engage()
                self._mailbox.drop("estop")
            return self._stopper.stop_now(trigger_s)
        with self._estop_lock:
            if self._performer.is_busy:
                raise ActionRefused("estop", "a posture is still under way")
            self._stopper.release()
        return None

    def start(self) -> None:
        """Tick on a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._loop, name="executor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the robot and the thread. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            self._stopper.stop("close")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

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

    def _loop(self) -> None:
        try:
            while not self._closing.is_set():
                began_s = self._clock.now()
                self.tick()
                self._clock.sleep(self.period_s - (self._clock.now() - began_s))
        finally:
            # Also on an error that nobody foresaw: the robot must not walk on without its executor.
            self._stopper.stop("close")

    def _take_orders(self) -> None:
        self._read_s = self._clock.now()
        orders = self._mailbox.take()
        reason = orders.drop_reason
        for letter in orders.void:
            self._inbox.bar(letter.plan.mission, reason or "estop")
        if reason:
            if self._inbox.plan is not None:
                self._inbox.bar(self._inbox.plan.mission, reason)
            self._end("stopped", reason, "")
        for letter in (*orders.void, *orders.letters):
            self._receive(letter)

    def _receive(self, letter: Letter) -> None:
        plan = letter.plan
        receipt = self._inbox.receive(plan, letter.arrived_s, letter.frame_age_s)
        if receipt is Receipt.DROPPED:
            self._answer_barred(plan)
        elif receipt is Receipt.NEW:
            self._supersede(plan)
        if receipt in (Receipt.NEW, Receipt.MORE) and self._active:
            self._gate.check_plan(plan.actions)

    def _answer_barred(self, plan: Plan) -> None:
        """Tell a commander who goes on after a cancel or an e-stop that nobody listens."""
        why = self._inbox.barred(plan.mission)
        known = (self._status.mission, self._status.answer) == (plan.mission, plan.answer)
        if why in ("cancelled", "estop") and not self._active and not known:
            self._status = PlanStatus(plan.mission, plan.answer, state="stopped", reason=why)

    def _supersede(self, plan: Plan) -> None:
        was_moving = self._performer.abandon()
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
            if self._active and not latched:
                raise
            return
        if latched and not moment.state.is_still and self._stop_owed_s is None:
            self._stop_owed_s = now_s
        if self._active and not latched and self._stop_owed_s is None:
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

"""One instruction as a closed loop: look, answer, act, until it is done. Independent of ROS.

Runs on a thread of its own. Its output goes to `emit`; its input comes through a `MissionEvents`. However a
mission ends, its last plan is one without actions, which stops the robot without waiting for the watchdog.
A cloud that is lost during an answer stops the robot too; `fallback` decides what follows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.core.errors import (
    Cancelled,
    CloudError,
    CloudTimeout,
    CloudUnreachable,
    InstructionError,
    VsdError,
)
from vlm_spec_decode.edge.image_upload import for_uplink
from vlm_spec_decode.edge.mission_loop import LOOK_AGAIN, SILENCES, MissionLoop
from vlm_spec_decode.mission.connection import Answerer, EngineConnection, Engines
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.state import (
    Answer,
    MissionEnd,
    MissionJob,
    MissionStatus,
    PartialAnswer,
    RunnerConfig,
    alike,
    ending_of,
    failure,
    said,
)

SHOWN_CHARS = 200
"""How much of an instruction a status repeats."""

Report: TypeAlias = Plan | PartialAnswer | Answer | MissionStatus

HOLD_LOOK_S = 0.05


class MissionRunner:
    """Runs one job at a time; `now_s` is ROS time, the clock of the frames' stamps.

    `config` may be replaced between jobs.
    """

    def __init__(
        self,
        feed: MissionEvents,
        emit: Callable[[MissionJob, Report], None],
        now_s: Callable[[], float],
        config: RunnerConfig,
    ) -> None:
        self.config = config
        self._feed = feed
        self._emit = emit
        self._now_s = now_s

    def run(self, job: MissionJob, engines: Engines) -> MissionEnd:
        """Run a mission to its end and say how it ended."""
        try:
            mission = MissionLoop(job.instruction, self.config.max_steps)
        except InstructionError as error:
            return self._refuse(job, error)
        if engines.ensure() is None and self.config.fallback != "draft_only":
            return self._refuse(job, engines.error)
        ending = self._loop(job, mission, engines)
        self._finish(job, ending, mission.steps)
        return ending

    def _refuse(self, job: MissionJob, error: VsdError) -> MissionEnd:
        ending = failure(error)
        self._finish(job, ending, 0)
        return ending

    def _loop(self, job: MissionJob, mission: MissionLoop, engines: Engines) -> MissionEnd:
        try:
            self._announce(job)
            while mission.is_running:
                planned = self._turn(job, mission, engines)
                if job.dry_run and planned is not None:
                    return MissionEnd("done", "dry_run", f"nothing was sent: {said(planned)}")
        except Cancelled as error:
            status = self._feed.broken_off()
            if status is not None:
                return ending_of(status)
            # Whoever notices first, engine or feed: the reason is the one that was given.
            return MissionEnd("cancelled", "cancel", self._feed.why_cancelled or str(error))
        except VsdError as error:
            return failure(error)
        finally:
            engines.use(None)
        return MissionEnd(mission.status)

    def _announce(self, job: MissionJob) -> None:
        """Let the executor drop what it has and stand, before the first look."""
        self._feed.begin(job.mission, 0)
        self._say(job, "looking", 0)
        self._emit(job, Plan(job.mission, 0, self._now_s(), 0))
        self._feed.wait_ready(self.config.ready_s)

    # With and without a cloud --------------------------------------------------------------------

    def _turn(self, job: MissionJob, mission: MissionLoop, engines: Engines) -> tuple[Action, ...] | None:
        """Make one step with whoever can answer; return what it planned, None if it came to no plan."""
        cloud = engines.current
        try:
            if cloud is None and self.config.fallback != "draft_only":
                self._hold(job, mission, engines)
                return None
            engine = cloud or engines.draft()
            engines.use(engine)
            return self._step(job, mission, engine, verified=cloud is not None)
        except CloudError as error:
            if cloud is None:
                raise
            engines.lost()
            self._stand(job, mission)
            if self.config.fallback == "stop" or not isinstance(error, (CloudUnreachable, CloudTimeout)):
                raise
            state = "holding" if self.config.fallback == "hold" else "drafting"
            self._say(job, state, mission.steps, type(error).__name__, str(error))
            return None

    def _stand(self, job: MissionJob, mission: MissionLoop) -> None:
        """Supersede what the lost answer had planned: the robot stops."""
        mission.record_interruption(self._feed.executed())
        number = mission.steps + 1
        self._feed.begin(job.mission, number)
        self._emit(job, Plan(job.mission, number, self._now_s(), 0))

    def _hold(self, job: MissionJob, mission: MissionLoop, engines: Engines) -> None:
        """Stand until the cloud is back. Raises what it failed with once `hold_s` is over, or Cancelled."""
        until_s = self._now_s() + self.config.hold_s
        while engines.current is None:
            if self._now_s() > until_s:
                raise engines.error
            self._feed.pause(HOLD_LOOK_S)
        self._say(job, "looking", mission.steps, detail="the cloud is back")

    def _listen(self, job: MissionJob, mission: MissionLoop) -> None:
        """Stand a moment before the next look: whoever was silent may need one to be heard again."""
        self._feed.begin(job.mission, mission.steps + 1)
        self._feed.pause(self.config.listen_s)

    # One step ------------------------------------------------------------------------------------

    def _step(
        self, job: MissionJob, mission: MissionLoop, engine: Answerer, *, verified: bool
    ) -> tuple[Action, ...] | None:
        number = mission.steps + 1
        frame = self._feed.wait_frame(self._now_s(), self.config.frame_s)
        self._feed.begin(job.mission, number)
        self._say(job, "answering", number, "" if verified else "unverified")
        try:
            plan = self._answer(job, mission, engine, frame, verified)
            if job.dry_run:
                self._say(job, "proposed", number, "dry_run", said(plan.actions))
                return plan.actions
            if job.approve:
                plan = self._approved(job, mission, engine, plan)
            self._say(job, "acting", number)
            status = self._feed.wait_end(self.config.silence_s, self.config.act_s)
        except Cancelled:
            broken_off = self._feed.broken_off()
            if broken_off is None or broken_off.reason not in LOOK_AGAIN | SILENCES:
                raise
            if broken_off.reason in LOOK_AGAIN:
                mission.record_obstruction(broken_off.executed)
            else:
                mission.record_silence(broken_off.executed)
            if not mission.is_running:
                raise
            if broken_off.reason in SILENCES:
                self._listen(job, mission)
            return None
        mission.record(status.executed, plan.actions)
        return plan.actions

    def _answer(
        self,
        job: MissionJob,
        mission: MissionLoop,
        engine: Answerer,
        frame: Frame,
        verified: bool,
        sequence: int = 0,
    ) -> Plan:
        """Decode one answer; the plan grows, and is acted on, while it is being said.

        Where a person must see it first, the plan that is sent stays empty.
        """
        number = mission.steps + 1
        image = for_uplink(frame.image.jpeg)
        observation = mission.observation(image, frame.stamp_s, frame.frame_id)
        plan = Plan(job.mission, number, frame.stamp_s, sequence, verified=verified)
        self._emit(job, plan)
        for update in engine.answer(observation):
            self._feed.check()
            self._emit(job, PartialAnswer(update.text))
            is_last = update.result is not None
            if update.actions or is_last:
                actions = plan.actions + update.actions
                plan = replace(plan, actions=actions, sequence=plan.sequence + 1, final=is_last)
                if not (job.approve or job.dry_run):
                    self._emit(job, plan)
            if update.result is not None:
                self._emit(
                    job,
                    Answer(
                        mission=job.mission,
                        number=number,
                        observation=observation,
                        actions=plan.actions,
                        result=update.result,
                    ),
                )
        return plan

    def _approved(self, job: MissionJob, mission: MissionLoop, engine: Answerer, plan: Plan) -> Plan:
        """Show the plan, wait for a yes, send it. Raises Cancelled without one.

        A yes takes its time; meanwhile the world moves on. So an old plan is made anew and sent without
        another question only if it is like the one that was approved.
        """
        number = mission.steps + 1
        while True:
            self._say(job, "proposed", number, "approve", said(plan.actions))
            if not self._feed.wait_verdict(self.config.approve_s):
                raise Cancelled("the plan was not approved")
            approved = plan
            if self._now_s() - plan.stamp_s > self.config.fresh_s:
                frame = self._feed.wait_frame(self._now_s(), self.config.frame_s)
                plan = self._answer(job, mission, engine, frame, plan.verified, plan.sequence + 1)
            if alike(approved.actions, plan.actions):
                self._emit(job, plan)
                return plan

    def _finish(self, job: MissionJob, ending: MissionEnd, steps: int) -> None:
        self._emit(job, Plan(job.mission, steps + 2, self._now_s(), 0, final=True))
        self._say(job, ending.status, steps, ending.reason, ending.detail)

    def _say(self, job: MissionJob, state: str, step: int, reason: str = "", detail: str = "") -> None:
        told = job.instruction[:SHOWN_CHARS]
        self._emit(
            job,
            MissionStatus(
                state=state, mission=job.mission, instruction=told, step=step, reason=reason, detail=detail
            ),
        )


class VlmWorker:
    """Runs jobs. `submit`, `cancel` and `close` may be called from any thread; only `close` waits."""

    def __init__(
        self,
        keeper: EngineConnection,
        runner: MissionRunner,
        feed: MissionEvents,
        on_crash: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`on_crash` is given what nobody foresaw and ended the thread; without it the error is raised."""
        self._on_crash = on_crash
        self._keeper = keeper
        self._runner = runner
        self._feed = feed
        self._changed = threading.Condition()
        self._waiting: MissionJob | None = None
        self._running: MissionJob | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="missions", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether the cloud has welcomed the engine and not failed it since."""
        return self._keeper.current is not None

    @property
    def has_tried(self) -> bool:
        """Whether a first attempt to reach the cloud has ended, well or not."""
        return self._keeper.has_tried

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; a plan may only be kept alive while it does."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start connecting and working."""
        self._keeper.start()
        self._thread.start()

    def submit(self, job: MissionJob) -> None:
        """Run this job next, and at once: the one that runs is cancelled."""
        self.cancel("superseded by a new instruction")
        with self._changed:
            self._waiting = job
            self._changed.notify_all()

    def cancel(self, reason: str) -> None:
        """End the job that runs and drop the one that waits."""
        with self._changed:
            running, self._waiting = self._running, None
        if running is not None:
            self._feed.cancel(running.mission, reason)
        self.break_off()

    def break_off(self) -> None:
        """Let the engine drop the answer in progress; what that means is for the mission to find out."""
        if self._running is not None:
            self._keeper.cancel()

    def close(self, timeout_s: float) -> None:
        """End what runs and wait for the threads, at most `timeout_s` for each. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel("the node ends")
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._keeper.close(timeout_s)

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._runner.run(job, self._keeper)
                with self._changed:
                    self._running = None
        except BaseException as error:
            # Also an interrupt or an exit inside the engine: the thread ends, and with it the heartbeat.
            if self._on_crash is None:
                raise
            self._on_crash(error)

    def _next(self) -> MissionJob | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            self._running, self._waiting = self._waiting, None
            return None if self._closed else self._running

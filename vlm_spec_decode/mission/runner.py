"""One instruction as a closed loop: look, answer, act, until it is done. Independent of ROS.

Runs on a thread of its own. Its output goes to `emit`; its input comes through a `MissionEvents`. However a
mission ends, its last plan is one without actions, which stops the robot without waiting for the watchdog.
A cloud that is lost during an answer stops the robot too; `fallback` decides what follows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from vlm_spec_decode.actions.parser import question_of
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Action, Turn
from vlm_spec_decode.core.errors import (
    Cancelled,
    CloudError,
    CloudTimeout,
    CloudUnreachable,
    InstructionError,
    VsdError,
)
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.mission_loop import LOOK_AGAIN, SILENCES, MissionLoop
from vlm_spec_decode.mission.background import Background
from vlm_spec_decode.mission.connection import Answerer, EngineConnection, Engines, TextUpdate
from vlm_spec_decode.mission.draft_start import DraftStarts
from vlm_spec_decode.mission.early_frames import EarlyAnswer, EarlyFrames
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.late_answer import LateAnswer
from vlm_spec_decode.mission.replanning import Latency, Replanning
from vlm_spec_decode.mission.search import Search, looks_of, search_turn, thing_words
from vlm_spec_decode.mission.state import (
    Answer,
    MissionEnd,
    MissionJob,
    MissionStatus,
    PartialAnswer,
    RunnerConfig,
    are_alike,
    ending_of,
    failure,
    format_actions,
)

SHOWN_CHARS = 200
"""How many characters of an instruction a status repeats."""

Report: TypeAlias = Plan | PartialAnswer | Answer | MissionStatus

HOLD_POLL_S = 0.05

TOO_OLD = "stale_frame"
"""The gate's reason for a plan that has come too late for its frame. A frame from before the robot stood is
older than one at rest would be, so then the mission looks again."""


class MissionRunner:
    """Runs one job at a time; `now_s` is ROS time, the clock of the frames' stamps.

    `config` may be replaced between jobs.
    """

    def __init__(
        self,
        events: MissionEvents,
        emit: Callable[[MissionJob, Report], None],
        now_s: Callable[[], float],
        config: RunnerConfig,
        background: Background | None = None,
    ) -> None:
        self.config = config
        self._early = EarlyFrames(events, now_s, background)
        self._events = events
        self._emit = emit
        self._now_s = now_s
        self._said = self._state = ""
        self._latency = Latency()
        self._starts = DraftStarts()

    def run(self, job: MissionJob, engines: Engines) -> MissionEnd:
        """Run a mission to its end and return how it ended."""
        try:
            mission = MissionLoop(job.instruction, self.config.max_steps)
        except InstructionError as error:
            return self._refuse(job, error)
        if engines.ensure() is None and self.config.fallback != "draft_only":
            return self._refuse(job, engines.error)
        ending = self._loop(job, mission, engines)
        self._finish(job, ending, mission)
        return ending

    def _refuse(self, job: MissionJob, error: VsdError) -> MissionEnd:
        ending = failure(error)
        self._finish(job, ending)
        return ending

    def _loop(self, job: MissionJob, mission: MissionLoop, engines: Engines) -> MissionEnd:
        self._early.note = partial(self._note, job)
        try:
            self._announce(job)
            while mission.is_running:
                planned = self._next_plan(job, mission, engines)
                if job.dry_run and planned is not None:
                    return MissionEnd("done", "dry_run", f"nothing was sent: {format_actions(planned)}")
                if mission.is_asking and mission.is_running:
                    self._wait_for_word(job, mission)
        except Cancelled as error:
            status = self._events.broken_off()
            if status is not None:
                return ending_of(status)
            # The engine or the events may notice a cancel first; the reason is the one given to `cancel`.
            return MissionEnd("cancelled", "cancel", self._events.cancel_reason or str(error))
        except VsdError as error:
            return failure(error)
        finally:
            self._early.drop()
            engines.set_active(None)
        return MissionEnd(mission.status)

    def _wait_for_word(self, job: MissionJob, mission: MissionLoop) -> None:
        """Wait, standing, for the operator's word on what the answer asks, and go on with it.

        Raises Cancelled without one.
        """
        question = question_of(self._said)
        self._events.expect_word(mission.steps, question, mission.instruction_with)
        self._report(job, "waiting", mission.steps, "asked", question)
        word = self._events.wait_word(self.config.reply_s)
        if not word.strip():
            raise Cancelled("the robot's question was not answered")
        mission.go_on_with(word)

    def _announce(self, job: MissionJob) -> None:
        """Have the executor drop its plan, and wait until the robot stands, before the first frame."""
        self._events.begin(job.mission, 0)
        self._report(job, "looking", 0)
        self._emit(job, Plan(job.mission, 0, self._now_s(), 0))
        self._events.wait_ready(self.config.ready_s)

    # With and without a cloud --------------------------------------------------------------------

    def _next_plan(
        self, job: MissionJob, mission: MissionLoop, engines: Engines
    ) -> tuple[Action, ...] | None:
        """Make one step, with the cloud or by the fallback; return its plan, None if there is none."""
        cloud = engines.current
        try:
            if cloud is None and self.config.fallback != "draft_only":
                self._wait_for_cloud(job, mission, engines)
                return None
            engine = cloud or engines.draft()
            engines.set_active(engine)
            return self._step(job, mission, engine, verified=cloud is not None)
        except CloudError as error:
            if cloud is None:
                raise
            engines.reconnect()
            self._stop_robot(job, mission)
            if self.config.fallback == "stop" or not isinstance(error, (CloudUnreachable, CloudTimeout)):
                raise
            state = "holding" if self.config.fallback == "hold" else "drafting"
            self._report(job, state, mission.steps, type(error).__name__, str(error))
            return None

    def _stop_robot(self, job: MissionJob, mission: MissionLoop) -> None:
        """Supersede the plan of the lost answer: the robot stops."""
        mission.record_interruption(self._events.executed())
        number = mission.next_answer
        self._events.begin(job.mission, number)
        self._emit(job, Plan(job.mission, number, self._now_s(), 0))

    def _wait_for_cloud(self, job: MissionJob, mission: MissionLoop, engines: Engines) -> None:
        """Wait, standing, until the cloud is back. Raises its error after `hold_s`, or Cancelled."""
        until_s = self._now_s() + self.config.hold_s
        while engines.current is None:
            if self._now_s() > until_s:
                raise engines.error
            self._events.pause(HOLD_POLL_S)
        self._report(job, "looking", mission.steps, detail="the cloud is back")

    def _pause_after_silence(self, job: MissionJob, mission: MissionLoop) -> None:
        """Wait a moment before the next frame, so that a silent commander or robot can be heard again."""
        self._events.begin(job.mission, mission.next_answer)
        self._events.pause(self.config.listen_s)

    # One step ------------------------------------------------------------------------------------

    def _step(
        self, job: MissionJob, mission: MissionLoop, engine: Answerer, *, verified: bool
    ) -> tuple[Action, ...] | None:
        number = mission.next_answer
        late: Search | Replanning | None = None
        early = self._early.take(engine, mission)
        frame = early.frame if early else self._events.wait_frame(self._now_s(), self.config.frame_s)
        self._events.begin(job.mission, number)
        self._report(job, "answering", number, "" if verified else "unverified")
        try:
            plan = self._answer(job, mission, engine, frame, verified, early=early)
            if job.dry_run:
                self._report(job, "proposed", number, "dry_run", format_actions(plan.actions))
                return plan.actions
            if job.approve:
                plan = self._ask_approval(job, mission, engine, plan)
            self._report(job, "acting", number, detail=f"by a frame {self._age_s(frame):.1f} s old")
            if (turn := self._search_turn(job, plan, frame)) is not None:
                late = search = self._search(job, mission, engine, plan, turn)
                if (winner := search.run()) is None:
                    return None
                plan, said = search.plan, winner.believed
                self._report(
                    job, "acting", plan.answer, detail=f"by a frame {self._age_s(winner.frame):.1f} s old"
                )
            else:
                said = plan.actions
            if self.config.replan == "walking" and not job.approve and verified:
                found = late.winner if isinstance(late, Search) else None
                late = self._replanning(job, mission, engine, plan, said, found)
                status = late.run(self.config.silence_s, self.config.act_s)
                said = late.said
            else:
                status = self._early.wait_end(engine, mission, plan, said, self.config)
        except Cancelled:
            broken_off = self._events.broken_off()
            was_late = early is not None or late is not None
            is_old = was_late and broken_off is not None and broken_off.reason == TOO_OLD
            if broken_off is None or not (is_old or broken_off.reason in LOOK_AGAIN | SILENCES):
                raise
            executed = broken_off.executed if late is None else late.told(broken_off.executed)
            if is_old:
                mission.record_interruption(executed)
            elif broken_off.reason in LOOK_AGAIN:
                mission.record_obstruction(executed)
            else:
                mission.record_silence(executed)
            if not mission.is_running:
                raise
            if broken_off.reason in SILENCES:
                self._pause_after_silence(job, mission)
            return None
        executed = status.executed if late is None else late.told(status.executed)
        if self._starts.on_executed(status, executed, said):
            mission.record(executed, said)
        else:
            mission.record_interruption(executed)
        return said

    def _search_turn(self, job: MissionJob, plan: Plan, frame: Frame) -> Turn | None:
        """Return the turn of an answer with which a search begins, if the mission searches while turning."""
        is_known = self._events.poses.at(frame.stamp_s) is not None
        if self.config.search != "turning" or job.approve or not plan.verified or not is_known:
            return None
        return search_turn(self._said, plan.actions)

    def _search(
        self, job: MissionJob, mission: MissionLoop, engine: Answerer, plan: Plan, turn: Turn
    ) -> Search:
        """Return a search that goes on from the turn of an answer."""
        return Search(
            mission=mission,
            events=self._events,
            looks=looks_of(engine, self.config.search_looks),
            turn=turn,
            thing=thing_words(self._said, job.instruction),
            plan=plan,
            emit=partial(self._emit, job),
            ask=self._asks(job, mission, engine, "searching while it turns"),
            report=self._reports(job),
            note=partial(self._note, job),
        )

    def _replanning(
        self,
        job: MissionJob,
        mission: MissionLoop,
        engine: Answerer,
        plan: Plan,
        said: tuple[Action, ...],
        late: LateAnswer | None,
    ) -> Replanning:
        """Return what looks again while `plan` is walked; `said` is the plan in its answer's words."""
        return Replanning(
            mission=mission,
            events=self._events,
            plan=plan,
            said=said,
            latency=self._latency,
            now_s=self._now_s,
            answer=engine.answer,
            emit=partial(self._emit, job),
            ask=self._asks(job, mission, engine, "looking while it walks"),
            report=self._reports(job),
            note=partial(self._note, job),
            late=late,
        )

    def _asks(
        self, job: MissionJob, mission: MissionLoop, engine: Answerer, detail: str
    ) -> Callable[[tuple[str, ...]], tuple[Frame, Observation]]:
        """Return what takes a new frame and makes its observation, with a history, while the robot moves."""

        def ask(history: tuple[str, ...]) -> tuple[Frame, Observation]:
            frame = self._events.wait_frame(self._now_s(), self.config.frame_s)
            observation = mission.observation(engine.picture(frame.image.jpeg), frame.stamp_s, frame.frame_id)
            self._report(job, "answering", mission.next_answer, detail=detail)
            return frame, replace(observation, history=history)

        return ask

    def _reports(self, job: MissionJob) -> Callable[[LateAnswer, TextUpdate], None]:
        """Return what reports each commit of an answer about a frame taken in motion."""

        def report(view: LateAnswer, update: TextUpdate) -> None:
            self._emit(job, PartialAnswer(update.text))
            if update.result is not None:
                self._emit(
                    job,
                    Answer(
                        mission=job.mission,
                        number=view.number,
                        observation=view.observation,
                        actions=view.actions,
                        result=update.result,
                    ),
                )

        return report

    def _answer(
        self,
        job: MissionJob,
        mission: MissionLoop,
        engine: Answerer,
        frame: Frame,
        verified: bool,
        sequence: int = 0,
        early: EarlyAnswer | None = None,
    ) -> Plan:
        """Decode one answer. The plan grows, and is carried out, while the answer is decoded.

        An `early` answer is under way already, about this frame and this history. If a person must approve it
        first, the plan that is sent stays empty.
        """
        number = mission.next_answer
        if early is None:
            image = engine.picture(frame.image.jpeg)
            observation = mission.observation(image, frame.stamp_s, frame.frame_id)
        else:
            observation = early.observation
        plan = Plan(job.mission, number, frame.stamp_s, sequence, verified=verified)
        self._emit(job, plan)
        start = self._starts.begin(
            self.config, job, verified, partial(self._report, job, "answering", number)
        )
        if early is not None:
            updates = early.answer.updates()
        elif start.is_wanted:
            updates = engine.answer(observation, preview=True)
        else:
            updates = engine.answer(observation)
        for update in updates:
            self._events.check()
            if self.config.start == "draft" and update.drafted is not None:
                if begun := start.on_draft(update.drafted, plan):
                    plan = replace(plan, sequence=begun.sequence)
                    self._emit(job, begun)
                continue
            self._emit(job, PartialAnswer(update.text))
            is_last = update.result is not None
            if update.actions and not plan.actions:
                self._latency.learn(self._now_s() - frame.stamp_s)
            if update.actions or is_last:
                actions = plan.actions + update.actions
                plan = replace(plan, actions=actions, sequence=plan.sequence + 1, final=is_last)
                if not (job.approve or job.dry_run):
                    self._emit(job, plan)
                start.on_committed(plan.actions, self._events.status())
            if update.result is not None:
                self._said = update.text
                self._emit(
                    job,
                    Answer(
                        mission=job.mission,
                        number=number,
                        observation=observation,
                        actions=plan.actions,
                        result=update.result,
                        start=start.report(plan.actions),
                        verified=verified,
                    ),
                )
                self._starts.described = update.result.text
        return plan

    def _ask_approval(self, job: MissionJob, mission: MissionLoop, engine: Answerer, plan: Plan) -> Plan:
        """Show the plan, wait for a yes, then send it. Raises Cancelled without a yes.

        The scene may change before the yes. So an old plan is decoded again from a new frame, and sent
        without another question only if it is like the approved one.
        """
        number = mission.next_answer
        while True:
            shown = format_actions(plan.actions)
            self._events.expect_approval(number, shown)
            self._report(job, "proposed", number, "approve", shown)
            if not self._events.wait_approval(self.config.approve_s):
                raise Cancelled("the plan was not approved")
            approved = plan
            if self._now_s() - plan.stamp_s > self.config.fresh_s:
                frame = self._events.wait_frame(self._now_s(), self.config.frame_s)
                plan = self._answer(job, mission, engine, frame, plan.verified, plan.sequence + 1)
            if are_alike(approved.actions, plan.actions):
                self._emit(job, plan)
                return plan

    def _finish(self, job: MissionJob, ending: MissionEnd, mission: MissionLoop | None = None) -> None:
        # The number after the next: a lost answer may have sent an empty plan under the next one.
        number, steps = (mission.next_answer + 1, mission.steps) if mission is not None else (2, 0)
        self._emit(job, Plan(job.mission, number, self._now_s(), 0, final=True))
        self._report(job, ending.status, steps, ending.reason, ending.detail)

    def _age_s(self, frame: Frame) -> float:
        return self._now_s() - frame.stamp_s

    def _note(self, job: MissionJob, reason: str, number: int, frame: Frame, detail: str) -> None:
        """Report what becomes of the answer about a frame that was taken in motion (`LOOK_WORDS`)."""
        about = f"answer {number}, its frame {self._age_s(frame):.1f} s old: {detail}"
        self._report(job, self._state, number, reason, about)

    def _report(self, job: MissionJob, state: str, step: int, reason: str = "", detail: str = "") -> None:
        self._state, instruction = state, job.instruction[:SHOWN_CHARS]
        self._emit(
            job,
            MissionStatus(
                state=state,
                mission=job.mission,
                instruction=instruction,
                step=step,
                reason=reason,
                detail=detail,
            ),
        )


class VlmWorker:
    """Runs jobs. `submit`, `cancel` and `close` may be called from any thread; only `close` waits."""

    def __init__(
        self,
        connection: EngineConnection,
        runner: MissionRunner,
        events: MissionEvents,
        on_crash: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`on_crash` gets an unexpected error that ended the thread; without it the error is raised."""
        self._on_crash = on_crash
        self._connection = connection
        self._runner = runner
        self._events = events
        self._changed = threading.Condition()
        self._waiting: MissionJob | None = None
        self._running: MissionJob | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="missions", daemon=True)

    @property
    def is_connected(self) -> bool:
        """Whether the engine is connected to the cloud."""
        return self._connection.current is not None

    @property
    def has_tried(self) -> bool:
        """Whether a first attempt to reach the cloud has ended, with or without success."""
        return self._connection.has_tried

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs. A plan may be repeated only while it does."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start connecting and working."""
        self._connection.start()
        self._thread.start()

    def submit(self, job: MissionJob) -> None:
        """Run this job at once: the running one is cancelled."""
        self.cancel("superseded by a new instruction")
        with self._changed:
            self._waiting = job
            self._changed.notify_all()

    def cancel(self, reason: str) -> None:
        """Cancel the running job and drop the waiting one."""
        with self._changed:
            running, self._waiting = self._running, None
        if running is not None:
            self._events.cancel(running.mission, reason)
        self.cancel_answer()

    def cancel_answer(self) -> None:
        """Cancel the answer in progress; the mission then sees why it ended."""
        if self._running is not None:
            self._connection.cancel()

    def close(self, timeout_s: float) -> None:
        """Cancel the running job and wait for the threads, at most `timeout_s` for each. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel("the node ends")
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._connection.close(timeout_s)

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._runner.run(job, self._connection)
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

"""Receives requests, runs one mission at a time, and publishes its reports. Independent of ROS and robots.

`MissionService` is the common part of the VLM node and `mission.mission.Mission`: names and supersession,
the queue, leases, the plan in progress as a heartbeat, the thread of the engine. Its reports go to a
`MissionOutput`: topics there, the robot and a caller here. Its methods are called from one thread at a time,
except `repeat_plan`, `put_frame`, `put_pose`, `put_status` and `close`, which any thread may call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.core.errors import InstructionError, VsdError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.pose import Pose2D
from vlm_spec_decode.edge.mission_loop import check_instruction
from vlm_spec_decode.mission.connection import EngineConnection, EngineSource
from vlm_spec_decode.mission.events import ANY, Frame, MissionEvents
from vlm_spec_decode.mission.queue import Ack, MissionLeases, MissionQueue, MissionRequest
from vlm_spec_decode.mission.runner import MissionRunner, Report, VlmWorker
from vlm_spec_decode.mission.state import (
    END_STATES,
    Answer,
    MissionJob,
    MissionStatus,
    PartialAnswer,
    RunnerConfig,
    Shown,
)

CLOSE_S = 2.0
LEASE_CHECK_S = 0.05
"""How often `check_leases` is to be called while `has_leases`."""

SHOWN_CHARS = 200
SUPERSEDED = "superseded by a new instruction"


class PlanHeartbeat:
    """Sends plans, and repeats the one in progress, so that silence means that nobody commands.

    Safe for threads. `now_s` is the clock of the plans' stamps. `on_change` is told, under the lock, whether
    there is a plan to be repeated from now on.
    """

    def __init__(
        self,
        send: Callable[[Plan], None],
        now_s: Callable[[], float],
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._send, self._now_s, self._on_change = send, now_s, on_change
        self._plan: Plan | None = None
        self._lock = threading.Lock()

    def send_plan(self, plan: Plan) -> None:
        """Send a plan and store it as the heartbeat."""
        with self._lock:
            self._plan = plan
            self._on_change(True)
            self._send(plan)

    def repeat_plan(self) -> None:
        """Send the plan in progress again."""
        with self._lock:
            if self._plan is not None:
                self._send(self._plan)

    def end_plan(self) -> None:
        """End the heartbeat: no plan is in progress."""
        with self._lock:
            self._plan = None
            self._on_change(False)

    def send_empty_plan(self) -> None:
        """Send an empty plan that supersedes the one in progress: the robot stops."""
        with self._lock:
            plan, self._plan = self._plan, None
            self._on_change(False)
            if plan is not None:
                self._send(Plan(plan.mission, plan.answer + 1, self._now_s(), 0, final=True))


class MissionOutput(Protocol):
    """Receives all output of a mission: plans, texts, statuses."""

    def send_plan(self, plan: Plan) -> None:
        """Send a plan and store it as the heartbeat."""
        ...

    def repeat_plan(self) -> None:
        """Send the plan in progress again."""
        ...

    def end_plan(self) -> None:
        """End the heartbeat."""
        ...

    def send_empty_plan(self) -> None:
        """Send an empty plan that supersedes the one in progress: the robot stops."""
        ...

    def publish_partial(self, report: PartialAnswer) -> None:
        """Publish the committed text so far."""
        ...

    def publish_answer(self, report: Answer) -> None:
        """Publish a finished answer and its figures."""
        ...

    def publish_status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Publish a status; `aside` for one that is not about the mission in progress."""
        ...

    def acknowledge(self, ack: Ack) -> None:
        """Publish the reply to a request or a heartbeat."""
        ...

    def publish_run(self, facts: str) -> None:
        """Publish the settings and models that decide the tokens from now on, as JSON."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionSettings:
    """Settings of the next mission, whatever its request says."""

    runner: RunnerConfig = field(default_factory=RunnerConfig)
    approve: bool = False
    dry_run: bool = False
    queue: bool = False


class MissionService:
    """Runs missions.

    `settings` is read for every mission, `now_s` is the clock of the frames' stamps. `prefix` begins the
    names that this process makes. `wake` is called, on any thread, when `drain` has something to do.
    `on_failure` gets errors that waiting does not fix, `on_crash` unexpected ones.
    """

    def __init__(
        self,
        source: EngineSource,
        output: MissionOutput,
        clock: Clock,
        settings: Callable[[], MissionSettings],
        *,
        prefix: str,
        now_s: Callable[[], float],
        wake: Callable[[], None],
        on_failure: Callable[[VsdError], None],
        on_crash: Callable[[BaseException], None] | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._source, self._output, self._clock, self._settings = source, output, clock, settings
        self._wake, self._log = wake, log
        self._events = MissionEvents(clock)
        self._reports: SimpleQueue[tuple[MissionJob | None, Report]] = SimpleQueue()
        self._queue = MissionQueue(prefix)
        self._leases = MissionLeases(LEASE_CHECK_S)
        self._replied: MissionRequest | None = None
        self._runner = MissionRunner(self._events, self._post, now_s, settings().runner)
        connection = EngineConnection(source, partial(self._post, None), on_failure)
        self._worker = VlmWorker(connection, self._runner, self._events, on_crash)

    @property
    def has_tried(self) -> bool:
        """Whether a first attempt to reach the cloud has ended; further attempts follow by themselves."""
        return self._worker.has_tried

    @property
    def is_connected(self) -> bool:
        """Whether the engine is connected to the cloud."""
        return self._worker.is_connected

    @property
    def is_live(self) -> bool:
        """Whether a frame and a robot's status have ever arrived."""
        return self._events.is_live

    @property
    def missions(self) -> int:
        """Number of requested missions."""
        return self._queue.missions

    def start(self) -> None:
        """Start to connect, and to run missions."""
        self._worker.start()

    def send_empty_plan(self) -> None:
        """Send an empty plan in place of the one in progress: the robot stops."""
        self._output.send_empty_plan()

    def close(self) -> None:
        """Stop the robot, end the mission and disconnect from the cloud. Idempotent."""
        self._output.send_empty_plan()
        self._queue.current = None
        self._queue.drop_waiting()
        self._worker.close(CLOSE_S)

    # Requests and inputs ---------------------------------------------------------------------------

    def on_request(
        self, topic: str, read: Callable[[], MissionRequest], listeners: Callable[[], int]
    ) -> None:
        """Handle a request and acknowledge it; a repeated one is only acknowledged again."""
        asked, is_reply = "", False
        try:
            request = read()
            asked, is_reply = request.mission, request.reply
            if not self._is_repeat(request):
                asked = self.instruct(request)
            elif not is_reply:
                self._leases.beat(asked, self._clock.now())
        except InstructionError as error:
            self.refuse(topic, asked, error, is_reply=is_reply)
        else:
            taken = Ack(state="taken", mission=asked, topic=topic, listeners=listeners(), reply=is_reply)
            self._output.acknowledge(replace(taken, detail=request.instruction) if is_reply else taken)

    def _is_repeat(self, request: MissionRequest) -> bool:
        """Whether the same request was taken before: by its name, a reply by its question."""
        if request.reply:
            return bool(request.mission and request.step) and request == self._replied
        return self._queue.is_repeat(request)

    def refuse(self, topic: str, mission: str, error: InstructionError, *, is_reply: bool = False) -> None:
        """Say why the request of this name is not carried out. A refused reply ends no mission."""
        name, detail = type(error).__name__, str(error)
        if is_reply:
            self._log(f"a reply is refused: {detail}")
        else:
            self._output.publish_status(MissionStatus(state="failed", reason=name, detail=detail), aside=True)
        refused = Ack(
            state="refused", mission=mission, topic=topic, reason=name, detail=detail, reply=is_reply
        )
        self._output.acknowledge(refused)

    def check(self, request: MissionRequest) -> None:
        """Raise InstructionError for a request that `instruct` would refuse; for one that is no reply."""
        self._queue.check(request, waits=request.queue or self._settings().queue)

    def instruct(self, request: MissionRequest) -> str:
        """Start a request's mission at once, superseding the present one, or queue it; return its name.

        The settings `approve`, `dry_run` and `queue` hold for every request. While the mission waits for the
        operator's word, a request without a name is that word. A reply is never anything else, and returns
        the name of who asked. Raises InstructionError.
        """
        asker = self._queue.current
        if request.reply:
            return self._reply(asker, request)
        if asker is not None and not request.mission and self._events.put_word(request.instruction):
            return asker.mission
        settings = self._settings()
        job = self._queue.new_job(request)
        job = replace(job, approve=job.approve or settings.approve, dry_run=job.dry_run or settings.dry_run)
        self._schedule(job, waits=request.queue or settings.queue)
        self._leases.begin(job.mission, request.lease_s, self._clock.now())
        return job.mission

    def _reply(self, asker: MissionJob | None, request: MissionRequest) -> str:
        """Give a word to the mission that has asked, if it is the one that is meant; return its name."""
        word, shown = check_instruction(request.instruction), Shown(request.mission, request.step)
        if asker is None or not self._events.put_word(word, shown):
            raise InstructionError("nobody waits for a word on this question, or it was answered already")
        self._replied = request
        self._log(f"mission {asker.mission}: the operator replies {request.instruction[:120]!r}")
        return asker.mission

    def on_heartbeat(self, mission: str) -> None:
        """Record the heartbeat of a mission's client.

        If the mission has ended, reply with its last status.
        """
        self._leases.beat(mission, self._clock.now())
        if self._queue.is_alive(mission):
            return
        ended = self._queue.end_status(mission) or MissionStatus(
            state="failed",
            reason="Unknown",
            detail="vlm_node does not know this mission; it was started anew",
        )
        self._output.acknowledge(
            Ack(
                state="over",
                mission=mission,
                reason=ended.reason,
                detail=ended.detail,
                status=ended.state,
            )
        )

    @property
    def has_leases(self) -> bool:
        """Whether a mission has a client whose silence ends it."""
        return self._leases.is_any

    def end_status(self, mission: str) -> MissionStatus | None:
        """Return the last status of a mission that has ended; None if it has not, or ended long ago."""
        return self._queue.end_status(mission)

    def check_leases(self) -> None:
        """Cancel the missions whose clients have fallen silent."""
        for mission in self._leases.expired(self._clock.now()):
            self._log(f"mission {mission}: its asker fell silent")
            self.cancel(mission, "its asker fell silent")

    def cancel(self, mission: str, why: str) -> None:
        """End the mission of this name, whether it waits or is in progress; others continue."""
        current, waiting = self._queue.current, self._queue.withdraw(mission)
        if waiting is not None:
            self._report(waiting, "cancelled", why)
        elif current is not None and current.mission == mission:
            self._output.send_empty_plan()
            self._worker.cancel(why)

    def put_approval(self, yes: bool, shown: Shown = ANY) -> bool:
        """Store a person's yes or no to the plan that was shown; return whether it waits for one."""
        return self._events.put_approval(yes, shown)

    def put_word(self, text: str, shown: Shown = ANY) -> bool:
        """Store the operator's word on what was asked; return whether somebody waits for it.

        Raises InstructionError for one that cannot be used; the mission goes on waiting.
        """
        return self._events.put_word(text, shown)

    def put_frame(self, frame: Frame) -> None:
        """Store the newest frame."""
        self._events.put_frame(frame)

    def put_pose(self, stamp_s: float, pose: Pose2D) -> None:
        """Store the body's newest pose by odometry, stamped in the time of the frames."""
        self._events.put_pose(stamp_s, pose)

    def put_status(self, status: PlanStatus) -> None:
        """Store the executor's newest status; if it ends the answer in progress, decoding is cancelled."""
        if self._events.put_status(status):
            self._worker.cancel_answer()

    def repeat_plan(self) -> None:
        """Send the plan in progress again, as long as the thread that decodes is alive."""
        if self._worker.is_alive:
            self._output.repeat_plan()

    # Reports of the mission------------------------------------------------------------------------

    def drain(self) -> None:
        """Publish all waiting reports of the mission."""
        while True:
            try:
                job, report = self._reports.get_nowait()
            except Empty:
                return
            if job is None or job == self._queue.current:
                self._publish(report)

    def _post(self, job: MissionJob | None, report: Report) -> None:
        self._reports.put((job, report))
        self._wake()

    def _publish(self, report: Report) -> None:
        if isinstance(report, Plan):
            self._output.send_plan(report)
        elif isinstance(report, PartialAnswer):
            self._output.publish_partial(report)
        elif isinstance(report, Answer):
            self._output.publish_answer(report)
        else:
            self._output.publish_status(report)
            if report.state == "ready":
                self._output.publish_run(self._source.facts())
            if report.state in END_STATES:
                self._start_next(report)

    def _start_next(self, status: MissionStatus) -> None:
        """Start the next waiting mission after a success; any other end empties the queue."""
        self._queue.current = None
        self._record_end(status)
        self._output.end_plan()
        if status.state == "done" and self._queue.waiting:
            self._begin(self._queue.waiting.popleft())
        else:
            self._drop_waiting(f"the mission before it ended as {status.state}")

    def _schedule(self, job: MissionJob, *, waits: bool) -> None:
        if waits and self._queue.current is not None:
            self._queue.enqueue(job)
            self._report(job, "queued", f"{len(self._queue.waiting)} in the queue")
            return
        self._drop_waiting(SUPERSEDED)
        if self._queue.current is not None:
            self._report(self._queue.current, "cancelled", SUPERSEDED)
        self._output.send_empty_plan()
        self._begin(job)

    def _begin(self, job: MissionJob) -> None:
        self._queue.current = job
        self._log(f"mission {job.mission}: {job.instruction[:120]!r}")
        self._runner.config = self._settings().runner
        self._worker.submit(job)

    def _drop_waiting(self, why: str) -> None:
        for job in self._queue.drop_waiting():
            self._report(job, "cancelled", why)

    def _report(self, job: MissionJob, state: str, detail: str) -> None:
        """Publish the status of a mission that is not the one in progress."""
        instruction = job.instruction[:SHOWN_CHARS]
        status = MissionStatus(
            state=state, mission=job.mission, instruction=instruction, reason="queue", detail=detail
        )
        self._output.publish_status(status, aside=True)
        if state in END_STATES:
            self._record_end(status)

    def _record_end(self, status: MissionStatus) -> None:
        """Store how a mission ended, and end its lease."""
        self._queue.end(status)
        self._leases.end(status.mission)

"""Takes requests, runs one mission at a time, and hands on what it says. Independent of ROS and of robots.

`MissionService` is what the VLM node and `mission.mission.Mission` have in common: names and supersession,
the queue, leases, the plan under way as a heartbeat, the thread of the engine. What it says goes to a
`MissionOutput`: topics there, the robot and a caller here. Its methods are called from one thread at a time,
but for `beat`, `put_frame`, `put_status` and `close`, which any thread may call.
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
from vlm_spec_decode.mission.connection import EngineConnection, EngineSource
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.queue import Ack, MissionLeases, MissionQueue, MissionRequest
from vlm_spec_decode.mission.runner import MissionRunner, Report, VlmWorker
from vlm_spec_decode.mission.state import (
    ENDED,
    Answer,
    MissionJob,
    MissionStatus,
    PartialAnswer,
    RunnerConfig,
)

CLOSE_S = 2.0
LEASE_LOOK_S = 0.05
"""How often `check_leases` is to be called."""

SHOWN_CHARS = 200
SUPERSEDED = "superseded by a new instruction"


class PlanHeartbeat:
    """Sends plans, and the one under way again and again, so that silence means that nobody commands.

    Safe for threads. `now_s` is the clock of the plans' stamps.
    """

    def __init__(self, send: Callable[[Plan], None], now_s: Callable[[], float]) -> None:
        self._send, self._now_s = send, now_s
        self._plan: Plan | None = None
        self._lock = threading.Lock()

    def plan(self, plan: Plan) -> None:
        """Send a plan and keep it as the heartbeat."""
        with self._lock:
            self._plan = plan
            self._send(plan)

    def beat(self) -> None:
        """Send the plan under way again."""
        with self._lock:
            if self._plan is not None:
                self._send(self._plan)

    def rest(self) -> None:
        """Let the heartbeat end: nothing is under way."""
        with self._lock:
            self._plan = None

    def halt(self) -> None:
        """Send a plan that supersedes what is under way and holds nothing."""
        with self._lock:
            plan, self._plan = self._plan, None
            if plan is not None:
                self._send(Plan(plan.mission, plan.answer + 1, self._now_s(), 0, final=True))


class MissionOutput(Protocol):
    """Where everything goes that a mission says."""

    def plan(self, plan: Plan) -> None:
        """Send a plan and keep it as the heartbeat."""
        ...

    def beat(self) -> None:
        """Send the plan under way again."""
        ...

    def rest(self) -> None:
        """Let the heartbeat end."""
        ...

    def halt(self) -> None:
        """Send a plan that supersedes what is under way and holds nothing."""
        ...

    def partial(self, report: PartialAnswer) -> None:
        """Take the committed text so far."""
        ...

    def answer(self, report: Answer) -> None:
        """Take a finished answer and its figures."""
        ...

    def status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Take a status; `aside` for one that is not about the mission under way."""
        ...

    def acknowledge(self, ack: Ack) -> None:
        """Take what became of a request or a heartbeat."""
        ...

    def run(self, facts: str) -> None:
        """Take what decides the tokens from now on, as JSON."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionSettings:
    """What holds for the next mission, whatever its request says."""

    runner: RunnerConfig = field(default_factory=RunnerConfig)
    approve: bool = False
    dry_run: bool = False
    queue: bool = False


class MissionService:
    """Runs missions.

    `settings` is read for every mission, `now_s` is the clock of the frames' stamps. `prefix` makes names of
    this process's own. `wake` is called, on any thread, when `drain` has something to do. `on_failure` is
    told what waiting cannot mend, `on_crash` what nobody foresaw.
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
        self._leases = MissionLeases(LEASE_LOOK_S)
        self._runner = MissionRunner(self._events, self._post, now_s, settings().runner)
        connection = EngineConnection(source, partial(self._post, None), on_failure)
        self._worker = VlmWorker(connection, self._runner, self._events, on_crash)

    @property
    def has_tried(self) -> bool:
        """Whether the cloud has been asked for the first time; one that is not there is asked again."""
        return self._worker.has_tried

    @property
    def is_connected(self) -> bool:
        """Whether the cloud has welcomed the engine and not failed it since."""
        return self._worker.is_connected

    @property
    def is_live(self) -> bool:
        """Whether a frame and a robot's status have ever arrived."""
        return self._events.is_live

    @property
    def missions(self) -> int:
        """How many have been asked for."""
        return self._queue.missions

    def start(self) -> None:
        """Look for the cloud, and begin to work."""
        self._worker.start()

    def halt(self) -> None:
        """Send a plan that holds nothing, in place of the one under way: the robot stops."""
        self._output.halt()

    def close(self) -> None:
        """Stop the robot, end the mission and leave the cloud. Idempotent."""
        self._output.halt()
        self._queue.current = None
        self._queue.drop_waiting()
        self._worker.close(CLOSE_S)

    # What others ask for ---------------------------------------------------------------------------

    def take(self, topic: str, read: Callable[[], MissionRequest], listeners: Callable[[], int]) -> None:
        """Take a request and acknowledge it; one that comes again is acknowledged again, no more."""
        asked = ""
        try:
            request = read()
            asked = request.mission
            if self._queue.repeats(request):
                self._leases.beat(asked, self._clock.now())
            else:
                asked = self.instruct(request)
        except InstructionError as error:
            name, detail = type(error).__name__, str(error)
            self._output.status(MissionStatus(state="failed", reason=name, detail=detail), aside=True)
            self._output.acknowledge(
                Ack(state="refused", mission=asked, topic=topic, reason=name, detail=detail)
            )
        else:
            self._output.acknowledge(Ack(state="taken", mission=asked, topic=topic, listeners=listeners()))

    def instruct(self, request: MissionRequest) -> str:
        """Take a request: at once, superseding what is under way, or into the queue; return its name.

        The settings `approve`, `dry_run` and `queue` hold for every request. Raises InstructionError.
        """
        settings = self._settings()
        job = self._queue.job(request)
        job = replace(job, approve=job.approve or settings.approve, dry_run=job.dry_run or settings.dry_run)
        self._order(job, waits=request.queue or settings.queue)
        self._leases.begin(job.mission, request.lease_s, self._clock.now())
        return job.mission

    def heartbeat(self, mission: str) -> None:
        """Take note that a mission's asker lives; tell one whose mission has ended how it did."""
        self._leases.beat(mission, self._clock.now())
        if self._queue.is_alive(mission):
            return
        ended = self._queue.ending(mission) or MissionStatus(
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

    def check_leases(self) -> None:
        """Cancel the missions whose askers have fallen silent."""
        for mission in self._leases.expired(self._clock.now()):
            self._log(f"mission {mission}: its asker fell silent")
            self.cancel(mission, "its asker fell silent")

    def cancel(self, mission: str, why: str) -> None:
        """End one mission by its name, whether it waits or is under way; others go on."""
        current, waiting = self._queue.current, self._queue.withdraw(mission)
        if waiting is not None:
            self._tell(waiting, "cancelled", why)
        elif current is not None and current.mission == mission:
            self._output.halt()
            self._worker.cancel(why)

    def put_verdict(self, yes: bool) -> None:
        """Take a person's yes or no to the plan that is shown."""
        self._events.put_verdict(yes)

    def put_frame(self, frame: Frame) -> None:
        """Take the newest frame."""
        self._events.put_frame(frame)

    def put_status(self, status: PlanStatus) -> None:
        """Take the executor's newest status; one that ends the answer under way ends its decoding, too."""
        if self._events.put_status(status):
            self._worker.break_off()

    def beat(self) -> None:
        """Send the plan under way again, as long as the thread lives that answers for it."""
        if self._worker.is_alive:
            self._output.beat()

    # What the mission says -------------------------------------------------------------------------

    def drain(self) -> None:
        """Hand on everything that the mission has said."""
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
            self._output.plan(report)
        elif isinstance(report, PartialAnswer):
            self._output.partial(report)
        elif isinstance(report, Answer):
            self._output.answer(report)
        else:
            self._output.status(report)
            if report.state == "ready":
                self._output.run(self._source.facts())
            if report.state in ENDED:
                self._ended(report)

    def _ended(self, status: MissionStatus) -> None:
        """Go on with the queue after a success; whatever else ends a mission empties it."""
        self._queue.current = None
        self._over(status)
        self._output.rest()
        if status.state == "done" and self._queue.waiting:
            self._begin(self._queue.waiting.popleft())
        else:
            self._drop_waiting(f"the mission before it ended as {status.state}")

    def _order(self, job: MissionJob, *, waits: bool) -> None:
        if waits and self._queue.current is not None:
            self._queue.enqueue(job)
            self._tell(job, "queued", f"{len(self._queue.waiting)} in the queue")
            return
        self._drop_waiting(SUPERSEDED)
        if self._queue.current is not None:
            self._tell(self._queue.current, "cancelled", SUPERSEDED)
        self._output.halt()
        self._begin(job)

    def _begin(self, job: MissionJob) -> None:
        self._queue.current = job
        self._log(f"mission {job.mission}: {job.instruction[:120]!r}")
        self._runner.config = self._settings().runner
        self._worker.submit(job)

    def _drop_waiting(self, why: str) -> None:
        for job in self._queue.drop_waiting():
            self._tell(job, "cancelled", why)

    def _tell(self, job: MissionJob, state: str, detail: str) -> None:
        """Say the status of a mission that is not the one under way."""
        told = job.instruction[:SHOWN_CHARS]
        status = MissionStatus(
            state=state, mission=job.mission, instruction=told, reason="queue", detail=detail
        )
        self._output.status(status, aside=True)
        if state in ENDED:
            self._over(status)

    def _over(self, status: MissionStatus) -> None:
        """Remember how a mission ended; nobody needs to be heard for it any more."""
        self._queue.end(status)
        self._leases.end(status.mission)

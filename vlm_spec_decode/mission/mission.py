"""The public mission: an engine and a robot carry out one instruction, without ROS.

::

    mission = vsd.Mission(engine, robot)
    result = mission.run("go to the red chair", on_event=print)

`run` has the safety of the nodes: the robot obeys only its executor, the plan under way is repeated as a
heartbeat, and silence stops it. Decoding, camera and heartbeat have threads of their own; `on_event` is
called on the thread of `run`. Whatever ends `run` (its end, an exception in `on_event`, Ctrl-C, `cancel`
from another thread, an error inside the engine), the robot stands when it returns or raises.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core import errors
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import (
    ActionRefused,
    Cancelled,
    ConfigError,
    InstructionError,
    VsdError,
)
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.mission.connection import Answerer, EngineSource, OwnedEngine
from vlm_spec_decode.mission.feeds import RobotFeeds
from vlm_spec_decode.mission.queue import Ack, MissionLeases, MissionRequest
from vlm_spec_decode.mission.robot import Robot, without_interrupts
from vlm_spec_decode.mission.service import MissionService, MissionSettings, PlanHeartbeat
from vlm_spec_decode.mission.state import END_STATES, Answer, MissionStatus, PartialAnswer, shown_by

HEARTBEAT_S = 0.05
CALLBACK_S = 5.0
"""How long `on_event` may take. After that the caller seems to be gone, and the mission is cancelled."""

HOLD_S = 0.45
"""Silence of the thread of `run` outside a callback after which nothing is sent to the robot: its watchdog
stops it within 0.7 s. Where the thread goes on, the mission looks anew, as after any late heartbeat."""

GONE_S = 2.0
"""Silence of that thread that ends the mission, the robot standing. A time in which the thread that measures
it did not run either is no silence: then a busy computer has stopped both."""

JOIN_S = 1.0
MAX_WORDS = 3
"""How often a word is asked for that cannot be used. After that there is none."""

Report: TypeAlias = MissionStatus | PartialAnswer | Answer | PlanStatus
Kind: TypeAlias = Literal["state", "text", "answer", "robot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionEvent:
    """One event of a mission: as text, and as the report that the text was made from.

    `state`: what the mission does (MissionStatus); `text`: the committed text of the present answer so far
    (PartialAnswer); `answer`: a finished answer (Answer); `robot`: what the executor does (PlanStatus).
    """

    kind: Kind
    text: str
    report: Report

    def __str__(self) -> str:
        """Return the text."""
        return self.text


def event_of(report: Report) -> MissionEvent:
    """Return the event of a report."""
    if isinstance(report, PartialAnswer):
        return MissionEvent(kind="text", text=report.text, report=report)
    if isinstance(report, Answer):
        actions = " ".join(map(format_action, report.actions))
        return MissionEvent(kind="answer", text=f"answer {report.number}: {actions}", report=report)
    if isinstance(report, PlanStatus):
        doing = (report.state, report.action, report.reason, report.detail)
        return MissionEvent(kind="robot", text=" ".join(filter(None, doing)), report=report)
    parts = (report.state.replace("_", " "), report.reason, report.detail)
    return MissionEvent(kind="state", text=": ".join(filter(None, parts)), report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionResult:
    """How a mission ended.

    `status` is `done`, `step_limit`, `refused`, `cancelled` or `failed`; `reason` a stable name and
    `detail` a sentence, if it is not `done`. `steps` counts the answers, `actions` holds what was carried
    out, as text.
    """

    status: str
    reason: str = ""
    detail: str = ""
    steps: int = 0
    actions: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the instruction was carried out."""
        return self.status == "done"

    def check(self) -> MissionResult:
        """Return the result if it is `done`; else raise what ended it, by its own type where it has one."""
        if self.is_done:
            return self
        text = ": ".join(filter(None, (self.status.replace("_", " "), self.reason, self.detail)))
        if self.status == "cancelled":
            raise Cancelled(text)
        if self.status == "refused":
            raise ActionRefused(self.reason, self.detail)
        kind = getattr(errors, self.reason, None)
        # Only what a text makes whole again: some errors carry more than that.
        if isinstance(kind, type) and issubclass(kind, VsdError) and kind.__init__ is Exception.__init__:
            raise kind(self.detail)
        raise VsdError(text)


class Mission:
    """Carries out instructions on one robot, one at a time. It owns neither engine nor robot.

    `engine` is a `vsd.Engine`, or any object that reduces frames and answers observations. `source` makes
    engines instead, and another one after a loss, as `vsd edge` does. `camera` replaces the robot's own.
    `approve` is asked, on the thread of `run`, before each plan moves the robot. `reply` gets what the robot
    asks, on the same thread, and returns the operator's word, "" for none; a word that cannot be used is
    asked for again, the reason before the question. `settings` say when a mission gives up, and what it
    does without its cloud.
    """

    def __init__(
        self,
        engine: Answerer | None,
        robot: Robot,
        *,
        source: EngineSource | None = None,
        camera: Callable[[], tuple[Image, float]] | None = None,
        approve: Callable[[str], bool] | None = None,
        reply: Callable[[str], str] | None = None,
        settings: MissionSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        if camera is None and not robot.has_camera:
            raise ConfigError(f"robot {robot.spec.name!r} has no camera: give the mission one")
        if engine is not None:
            source = OwnedEngine(engine)
        if source is None:
            raise ConfigError("a mission has an engine, or a source that makes one")
        self._source: EngineSource = source
        self._robot, self._capture = robot, camera or robot.capture
        self._approve, self._reply = approve, reply
        self._settings = settings or MissionSettings()
        self._clock = clock or WallClock()
        self._busy = threading.Lock()
        self._running: _Run | None = None

    def run(
        self,
        instruction: str,
        on_event: Callable[[MissionEvent], object] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> MissionResult:
        """Carry out one instruction and return how it ended; the robot stands then.

        `on_event` gets every event. After `timeout_s` the mission is cancelled.

        Raises InstructionError for no instruction, UsageError if this mission runs already, and what
        `on_event`, `approve` or the engine raise that is no error of ours. Errors of ours are in the
        result: see `MissionResult.check`.
        """
        asks = self._approve is not None
        request = MissionRequest(
            instruction=instruction, mission=f"run-{uuid.uuid4().hex[:12]}", approve=asks, lease_s=CALLBACK_S
        )
        if not self._busy.acquire(blocking=False):
            raise errors.UsageError("this mission runs already; cancel it, or use another")
        try:
            run = _Run(request, self._source, self._robot, self._capture, self._settings, self._clock)
            self._running = run
            try:
                run.start()
                return run.follow(on_event, self._approve, self._reply, timeout_s)
            finally:
                # Not even a second Ctrl-C keeps the robot from being stopped.
                without_interrupts(run.end)
        finally:
            self._running = None
            self._busy.release()

    def cancel(self, reason: str = "cancelled by the caller") -> None:
        """End the mission under way, from any thread; the robot stops, and `run` returns."""
        run = self._running
        if run is not None:
            run.cancel(reason)

    def stop(self, reason: str = "stopped") -> None:
        """Stop the robot, then end the mission, from any thread: the stop waits for nothing that decodes.

        Raises RobotError as `Robot.stop`.
        """
        self.cancel(reason)
        self._robot.stop()


class _Run:
    """One running mission: its threads, and what they share with the thread of `run`."""

    def __init__(
        self,
        request: MissionRequest,
        source: EngineSource,
        robot: Robot,
        capture: Callable[[], tuple[Image, float]],
        settings: MissionSettings,
        clock: Clock,
    ) -> None:
        self._request, self._robot, self._clock = request, robot, clock
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._lock = threading.RLock()
        self._crash: BaseException | None = None
        self._status = MissionStatus(state="connecting")
        self._actions: list[str] = []
        self._answer, self._executed = -1, 0
        self._is_asking = self._is_calling = False
        self._steps = 0
        """How often the thread of `run` has shown that it goes on."""
        self._follower = MissionLeases(HEARTBEAT_S / 2)
        output = _Output(robot, clock, self._reports.put)
        self._service = MissionService(
            source,
            output,
            clock,
            lambda: settings,
            prefix="run",
            now_s=clock.now,
            wake=self._wake.set,
            on_failure=lambda _: None,
            on_crash=self._on_crash,
        )
        feeds = RobotFeeds(self._service, robot, capture, clock, self._closing, self._on_plan_status)
        work = (self._serve, feeds.watch_robot, feeds.read_camera)
        self._threads = [
            threading.Thread(target=self._guard, args=(each,), name=f"mission {each.__name__}", daemon=True)
            for each in work
        ]

    def start(self) -> None:
        """Request the mission and start its threads."""
        with self._lock:
            self._service.start()
            self._service.instruct(self._request)
        self._follower.begin(self._request.mission, GONE_S, self._clock.now())
        for thread in self._threads:
            thread.start()

    def follow(
        self,
        on_event: Callable[[MissionEvent], object] | None,
        approve: Callable[[str], bool] | None,
        reply: Callable[[str], str] | None,
        timeout_s: float | None,
    ) -> MissionResult:
        """Pass every event to `on_event` until the mission has ended; return its result."""
        until_s = None if timeout_s is None else self._clock.now() + timeout_s
        while self._status.state not in END_STATES:
            # Without the lock: who measures this silence must not cause it.
            self._steps += 1
            if self._crash is not None:
                raise self._crash
            if until_s is not None and self._clock.now() > until_s:
                until_s = None
                self.cancel(f"no end within {timeout_s:g} s")
            try:
                report = self._reports.get(timeout=HEARTBEAT_S)
            except Empty:
                continue
            self._on_report(report)
            self._is_calling = True
            if on_event is not None:
                on_event(event_of(report))
            if isinstance(report, MissionStatus) and report.reason == "approve" and approve is not None:
                # A person may think for a long time; that does not count as silence.
                self._is_asking = True
                self._service.put_approval(approve(report.detail), shown_by(report))
                self._is_asking = False
            if isinstance(report, MissionStatus) and report.state == "waiting" and reply is not None:
                self._is_asking = True
                self._take_word(reply, report)
                self._is_asking = False
            self._steps += 1
            self._is_calling = False
        return self._result()

    def _take_word(self, reply: Callable[[str], str], status: MissionStatus) -> None:
        """Pass on a word on what the mission asks; one that cannot be used is asked for again."""
        asked, shown = status.detail, shown_by(status)
        for _ in range(MAX_WORDS):
            word = reply(asked)
            try:
                self._service.put_word(word, shown)
            except InstructionError as error:
                asked = f"{error}. {status.detail}"
            else:
                return
        self._service.put_word("", shown)

    def cancel(self, reason: str) -> None:
        """End the mission, from any thread."""
        # The robot first, without the lock: a stop waits for no other thread.
        self._service.send_empty_plan()
        with self._lock:
            self._service.cancel(self._request.mission, reason)

    def end(self) -> None:
        """Stop the robot if it still moves, and end every thread."""
        has_ended = self._status.state in END_STATES
        with self._lock:
            # A plan without actions first: the executor stops, whatever the other threads do.
            self._service.send_empty_plan()
        try:
            if not (has_ended and self._status.state == "done") and not self._robot.is_stopped:
                self._robot.stop()
        finally:
            self._closing.set()
            self._wake.set()
            self._service.close()
            for thread in self._threads:
                if thread.is_alive():
                    thread.join(JOIN_S)

    def _on_report(self, report: Report) -> None:
        if isinstance(report, MissionStatus):
            self._status = report
        elif isinstance(report, PlanStatus):
            if report.answer != self._answer:
                self._answer, self._executed = report.answer, 0
            self._actions += report.executed[self._executed :]
            self._executed = len(report.executed)

    def _result(self) -> MissionResult:
        status = self._status
        return MissionResult(
            status=status.state,
            reason=status.reason,
            detail=status.detail,
            steps=status.step,
            actions=tuple(self._actions),
        )

    def _on_crash(self, error: BaseException) -> None:
        self._crash = error

    # Threads ---------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; an unexpected error ends `run`, and with it the mission."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again on the thread of `run`
            self._crash = error

    def _serve(self) -> None:
        """Pass on the mission's reports, repeat its plan, and check that it is followed."""
        mission, beaten_s = self._request.mission, 0.0
        steps, heard_s, is_gone = -1, self._clock.now(), False
        while not self._closing.is_set():
            self._wake.wait(HEARTBEAT_S / 2)
            self._wake.clear()
            now_s, has_stepped = self._clock.now(), self._steps != steps
            if has_stepped or self._is_calling:
                steps, heard_s = self._steps, now_s
                self._follower.beat(mission, now_s)
            with self._lock:
                if has_stepped or self._is_asking:
                    self._service.on_heartbeat(mission)
                if self._follower.expired(now_s):
                    is_gone = True
                    self._service.cancel(mission, "nobody follows the mission any more")
                self._service.check_leases()
                if now_s - heard_s > HOLD_S and not is_gone:
                    continue
                self._service.drain()
            if self._clock.now() - beaten_s >= HEARTBEAT_S / 2:
                beaten_s = self._clock.now()
                self._service.repeat_plan()

    def _on_plan_status(self, status: PlanStatus) -> None:
        if status.mission == self._request.mission:
            self._reports.put(status)


class _Output:
    """`MissionOutput` for one caller: plans go to the robot, everything else to `on_report`."""

    def __init__(self, robot: Robot, clock: Clock, on_report: Callable[[Report], None]) -> None:
        heartbeat = PlanHeartbeat(robot.submit, clock.now)
        self.send_plan, self.repeat_plan = heartbeat.send_plan, heartbeat.repeat_plan
        self.end_plan, self.send_empty_plan = heartbeat.end_plan, heartbeat.send_empty_plan
        self._on_report = on_report

    def publish_partial(self, report: PartialAnswer) -> None:
        """Report the committed text so far."""
        self._on_report(report)

    def publish_answer(self, report: Answer) -> None:
        """Report a finished answer."""
        self._on_report(report)

    def publish_status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Report the state of the mission in progress, or of the connection."""
        if not aside:
            self._on_report(status)

    def acknowledge(self, ack: Ack) -> None:
        """Do nothing: the caller is this process."""

    def publish_run(self, facts: str) -> None:
        """Do nothing: the caller has made the engine."""

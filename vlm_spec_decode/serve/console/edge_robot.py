"""The console's robot without ROS: the robot, its camera and its missions in this process.

Behind `vsd console`, as `vsd edge` has it for one mission after the other: a mission service that lives as
long as the page's server, plans to the executor, everything reported to the page.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from functools import partial

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.control.motion_profile import Velocity
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ImageError, RobotError, UsageError, VsdError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.core.token_fates import TokenFates
from vlm_spec_decode.core.types import Image, Tokens
from vlm_spec_decode.mission.connection import EngineSource
from vlm_spec_decode.mission.feeds import FRAME_S, RobotFeeds
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.robot import Robot
from vlm_spec_decode.mission.service import MissionService, MissionSettings, PlanHeartbeat
from vlm_spec_decode.mission.state import END_STATES, Answer, MissionStatus, PartialAnswer, Shown
from vlm_spec_decode.serve.console.app import VIDEO_HZ
from vlm_spec_decode.serve.console.commands import ConsoleRobot
from vlm_spec_decode.serve.console.state import Body, ConsoleState, RobotFacts
from vlm_spec_decode.serve.console.video import VideoFeed

SERVE_S = 0.025
"""How often the plan in progress is repeated, and reports are passed on."""

SOURCE_S, HEALTH_S = 0.1, 1.0
JOIN_S = 2.0
log = logging.getLogger(__name__)


class EdgeRobot(ConsoleRobot):
    """Runs missions on a robot in this process, for the console. It owns neither robot nor source.

    `settings` hold for every mission. `capture` replaces the robot's own camera.
    """

    def __init__(
        self,
        robot: Robot,
        make_source: Callable[[Callable[[Callable[[Tokens], str]], TokenFates]], EngineSource],
        settings: MissionSettings | None = None,
        *,
        capture: Callable[[], tuple[Image, float]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`make_source` gets what makes a tracer of the answers' tokens (`EdgeEngineSource.watch`)."""
        clock = clock or WallClock()
        spec = robot.spec
        facts = RobotFacts(
            name=spec.name,
            title=spec.title,
            limits=robot.limits,
            hull_m=(spec.hull.length_m, spec.hull.width_m),
        )
        self.state, self.video = ConsoleState(facts, clock), VideoFeed()
        self._robot, self._clock = robot, clock
        self._take = capture or robot.capture
        self._taking = threading.Lock()
        self._taken: tuple[Image, float] | None = None
        self._camera_fault = ""
        self._lock = threading.RLock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._mission, self._is_busy = "", False
        settings = settings or MissionSettings()
        self._service = MissionService(
            make_source(self._watch_tokens),
            _Output(robot, clock, self.state, self._on_status),
            clock,
            lambda: settings,
            prefix="page",
            now_s=clock.now,
            wake=self._wake.set,
            on_failure=partial(self._on_fault, "engine"),
            on_crash=partial(self._on_fault, "missions"),
            log=log.info,
        )
        feeds = RobotFeeds(
            self._service, robot, self._capture, clock, self._closing, self.state.on_executor, self._on_body
        )
        works = (self._serve, feeds.watch_robot, feeds.read_camera, self._film)
        self._threads = [
            threading.Thread(target=work, name=f"console {work.__name__}", daemon=True) for work in works
        ]

    def start(self) -> None:
        """Begin to reach the cloud, to read robot and camera, and to take commands."""
        with self._lock:
            self._service.start()
        for thread in self._threads:
            thread.start()

    def halt(self) -> None:
        """Stop the robot and take no more commands; waits for no lock and no page. Idempotent."""
        self._closing.set()  # first: no plan is repeated any more
        self._robot.end_steering()
        self._service.send_empty_plan()

    def close(self) -> None:
        """Stop the robot, end the mission and all threads. Idempotent."""
        self.halt()
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._service.close()

    # Commands --------------------------------------------------------------------------------------

    def instruct(self, instruction: str, *, approve: bool, queue: bool) -> None:
        """Begin a mission, or queue it."""
        if self._closing.is_set():
            raise UsageError("the console ends")
        if self._robot.is_stopped:
            raise UsageError("the e-stop is engaged; release it first")
        name = f"page-{uuid.uuid4().hex[:12]}"
        request = MissionRequest(instruction=instruction, mission=name, approve=approve, queue=queue)
        with self._lock:
            if not (self._is_busy or self._service.is_connected):
                waiting = MissionStatus(
                    state="looking", mission=name, instruction=instruction, detail="waits for the cloud"
                )
                self._on_status(waiting, False)
            self._service.instruct(request)

    def withdraw(self, mission: str) -> None:
        """End a mission."""
        # The robot first, without the lock.
        if mission == self._mission:
            self._service.send_empty_plan()
        with self._lock:
            self._service.cancel(mission, "withdrawn by a person")

    def approve(self, yes: bool, shown: Shown) -> None:
        """Answer the plan that was shown. Raises UsageError if it does not wait for that."""
        if not self._service.put_approval(yes, shown):
            raise UsageError("that plan does not wait for a yes or a no any more")

    def reply(self, word: str, shown: Shown) -> None:
        """Give the operator's word to the mission that asks.

        Raises UsageError if none is wanted, InstructionError for one that cannot be used.
        """
        if not self._service.put_word(word, shown):
            raise UsageError("that question was answered already, or its mission has ended")

    def stop(self) -> str:
        """Engage the e-stop on this thread."""
        report = self._robot.emergency_stop()
        if report is None:
            return "stopped"
        if report.confirmed_s is None:
            raise RobotError(f"the stop was sent, but no standstill was confirmed: {report.error}")
        return f"stands after {1e3 * report.standstill_s:.0f} ms"

    def release(self) -> None:
        """Release the e-stop. Raises ActionRefused while the robot moves."""
        self._robot.release()

    def drive(self, velocity: Velocity) -> None:
        """Let a person steer."""
        if not self._closing.is_set():
            self._robot.steer(velocity)

    def end_drive(self) -> None:
        """Stop the robot if a person steers it."""
        self._robot.end_steering()

    # Threads and what they read -----------------------------------------------------------------------

    def _serve(self) -> None:
        """Pass on the mission's reports, repeat its plan, and show who commands."""
        beaten_s = shown_s = checked_s = 0.0
        while not self._closing.is_set():
            self._wake.wait(SERVE_S)
            self._wake.clear()
            with self._lock:
                self._service.drain()
            now_s = self._clock.now()
            if now_s - beaten_s >= SERVE_S:
                beaten_s = now_s
                self._service.repeat_plan()
            if now_s - shown_s >= SOURCE_S:
                shown_s = now_s
                self.state.on_source(self._robot.source)
            if now_s - checked_s >= HEALTH_S:
                checked_s = now_s
                self._show_health()

    def _show_health(self) -> None:
        try:
            robot = ("OK", self._robot.state.label)
        except RobotError as error:
            robot = ("ERROR", str(error))
        camera = ("ERROR", self._camera_fault) if self._camera_fault else ("OK", "sends pictures")
        self.state.on_diagnostics({"robot": robot, "camera": camera})

    def _on_status(self, status: MissionStatus, aside: bool) -> None:
        if status.mission and not aside:
            self._mission = status.mission
            self._is_busy = status.state not in END_STATES
        if not status.mission:
            level = {"ready": "OK", "unavailable": "ERROR"}.get(status.state, "WARN")
            told = ": ".join(filter(None, (status.state, status.reason, status.detail)))
            self.state.on_diagnostics({"cloud": (level, told)})
        self.state.on_status(status)

    def _on_fault(self, part: str, error: BaseException) -> None:
        log.error("%s: %s", part, error, exc_info=None if isinstance(error, VsdError) else error)
        self.state.on_diagnostics({part: ("ERROR", f"{type(error).__name__}: {error}")})

    def _on_body(self, state: RobotState) -> None:
        sensors = self._robot.spec.sensors
        self.state.on_body(
            Body(
                pose=(state.x_m, state.y_m, state.yaw_rad),
                speed_mps=state.speed_mps,
                battery=state.battery_soc if "battery" in sensors else None,
                ranges_m=state.range_obstacle_m if "ranges" in sensors else None,
                posture=state.label,
            )
        )

    def _watch_tokens(self, decode: Callable[[Tokens], str]) -> TokenFates:
        return TokenFates(decode, self._clock.now, self.state.on_tokens)

    def _capture(self) -> tuple[Image, float]:
        """Return a picture for a mission: the one that a page was just shown, or a new one."""
        while not (self._is_busy or self._closing.is_set()):
            self._closing.wait(FRAME_S / 4)  # between missions nobody looks
        with self._taking:
            taken = self._taken
            if taken is not None and self._clock.now() - taken[1] < FRAME_S / 2:
                return taken
            try:
                taken = self._taken = self._take()
            except (RobotError, ImageError) as error:
                self._camera_fault = str(error)
                raise
            self._camera_fault = ""
        self.video.put(taken[0])
        return taken

    def _film(self) -> None:
        """Take pictures for the pages, as long as any shows the video."""
        while not self._closing.is_set():
            began_s = self._clock.now()
            if not self.video.viewers:
                self._closing.wait(FRAME_S)
                continue
            try:
                with self._taking:
                    taken = self._taken = self._take()
                self._camera_fault = ""
                self.video.put(taken[0])
            except (RobotError, ImageError) as error:
                self._camera_fault = str(error)
                self._closing.wait(HEALTH_S)
            self._closing.wait(max(0.0, 1 / VIDEO_HZ - (self._clock.now() - began_s)))


class _Output:
    """`MissionOutput` of the console: plans go to the robot, and everything is shown."""

    def __init__(
        self,
        robot: Robot,
        clock: Clock,
        state: ConsoleState,
        on_status: Callable[[MissionStatus, bool], None],
    ) -> None:
        def send(plan: Plan) -> None:
            robot.submit(plan)
            state.on_plan(plan)

        heartbeat = PlanHeartbeat(send, clock.now)
        self.send_plan, self.repeat_plan = heartbeat.send_plan, heartbeat.repeat_plan
        self.end_plan, self.send_empty_plan = heartbeat.end_plan, heartbeat.send_empty_plan
        self._state, self._on_status = state, on_status

    def publish_partial(self, report: PartialAnswer) -> None:
        """Show the committed text so far."""
        self._state.on_partial(report)

    def publish_answer(self, report: Answer) -> None:
        """Show a finished answer."""
        self._state.on_answer(report)

    def publish_status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Show the state of a mission, or of the connection."""
        self._on_status(status, aside)

    def acknowledge(self, ack: Ack) -> None:
        """Do nothing: the page sees the mission's state."""

    def publish_run(self, facts: str) -> None:
        """Do nothing: the diagnostics say that the cloud is ready."""

"""Instructions in; answers, plans and figures out. Decoding runs on a worker thread, never in a callback.

Reports come back through a queue and a guard condition, so only executor threads touch publishers. The
plan of the mission under way is republished as the heartbeat that the executor's watchdog listens for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.bridge import diagnostics
from vlm_spec_decode.bridge.convert import from_compressed
from vlm_spec_decode.bridge.mission_feed import Frame, MissionFeed
from vlm_spec_decode.bridge.mission_runner import Job, MissionRunner, Report, RunnerConfig
from vlm_spec_decode.bridge.parameters import Parameter, Parameters
from vlm_spec_decode.bridge.ports import EngineSource
from vlm_spec_decode.bridge.qos import COMMAND, LATCHED
from vlm_spec_decode.bridge.reports import Answer, MissionStatus, Partial
from vlm_spec_decode.bridge.stamps import STEADY, Stamps
from vlm_spec_decode.bridge.vlm_worker import VlmWorker
from vlm_spec_decode.core.errors import ActionParseError, ImageError, InstructionError, VsdError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.edge.mission import check_instruction

CLOSE_S = 2.0
WARN_EVERY_S = 5.0
ENDED = frozenset({"done", "step_limit", "refused", "cancelled", "failed"})

PARAMETERS = (
    Parameter("instruction", "", "Given once, as soon as camera, robot and cloud are there; empty: none."),
    Parameter("max_steps", 24, "Answers after which a mission ends without done().", 1, 200),
    Parameter("heartbeat_hz", 20.0, "Rate at which the plan under way is republished.", 10.0, 100.0),
    Parameter("frame_timeout_s", 5.0, "Silence of the camera that fails a mission.", 0.5, 60.0),
    Parameter("status_timeout_s", 2.0, "Silence of the locomotion node that fails a mission.", 0.5, 30.0),
    Parameter("act_timeout_s", 120.0, "Longest time that one answer's actions may take.", 1.0, 600.0),
)


@dataclass(slots=True)
class _Current:
    """The mission that speaks for this node; what an older one still says is dropped."""

    job: Job | None = None
    plan: Plan | None = None
    status: MissionStatus = field(default_factory=lambda: MissionStatus("connecting"))
    last: Answer | None = None
    missions: int = 0
    bad_frames: int = 0


class VlmNode:
    """Runs missions.

    Hears `vlm/instruction`, `vlm/plan/status` and the camera; says `vlm/plan`, `vlm/answer`, `vlm/trace`,
    `vlm/answer/partial`, `vlm/status` and `/diagnostics`.
    """

    def __init__(
        self, node: Node, source: EngineSource, clock: Clock, on_failure: Callable[[VsdError], None]
    ) -> None:
        self._node = node
        self._stamps = Stamps(node, clock)
        self._parameters = Parameters(node, PARAMETERS)
        self._feed = MissionFeed(clock)
        self._reports: SimpleQueue[tuple[Job | None, Report]] = SimpleQueue()
        self._current = _Current()
        self._plan_lock = threading.Lock()
        self._auto = self._parameters.text("instruction")
        runner = MissionRunner(self._feed, self._post, self._stamps.ros_now_s, self._runner_config())
        self._worker = VlmWorker(source, runner, self._feed, partial(self._post, None), on_failure)
        self._publish_to()
        self._listen()
        self._worker.start()

    def _publish_to(self) -> None:
        node = self._node
        self._answers = node.create_publisher(String, "vlm/answer", COMMAND)
        self._partials = node.create_publisher(String, "vlm/answer/partial", COMMAND)
        self._plans = node.create_publisher(String, "vlm/plan", COMMAND)
        self._traces = node.create_publisher(String, "vlm/trace", COMMAND)
        self._statuses = node.create_publisher(String, "vlm/status", LATCHED)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def _listen(self) -> None:
        node = self._node
        talk, see, beat = (MutuallyExclusiveCallbackGroup() for _ in range(3))
        self._wake = node.create_guard_condition(self._drain, talk)
        sensor = qos_profile_sensor_data
        node.create_subscription(String, "vlm/instruction", self._on_text, COMMAND, callback_group=talk)
        node.create_subscription(String, "vlm/plan/status", self._on_status, COMMAND, callback_group=beat)
        topic = "camera/image_raw/compressed"
        node.create_subscription(CompressedImage, topic, self._on_image, sensor, callback_group=see)
        period_s = 1 / self._parameters.real("heartbeat_hz")
        node.create_timer(period_s, self._beat, beat, clock=STEADY)
        node.create_timer(1.0, self._each_second, talk, clock=STEADY)

    def instruct(self, text: str) -> None:
        """Start a mission; the one under way ends at once, its robot stopped. Raises InstructionError."""
        instruction = check_instruction(text)
        self._halt()
        self._current.missions += 1
        stamp_ns = self._node.get_clock().now().nanoseconds
        job = Job(f"{stamp_ns:x}-{self._current.missions}", instruction)
        self._current.job = job
        self._node.get_logger().info(f"mission {job.mission}: {instruction[:120]!r}")
        self._worker.submit(job)

    def close(self) -> None:
        """Stop the robot, end the mission and leave the cloud. Idempotent."""
        self._halt()
        self._current.job = None
        self._worker.close(CLOSE_S)

    # Callbacks -----------------------------------------------------------------------------------

    def _on_text(self, message: String) -> None:
        try:
            self.instruct(message.data)
        except InstructionError as error:
            refusal = MissionStatus("failed", reason=type(error).__name__, detail=str(error))
            self._publish_status(refusal)

    def _on_image(self, message: CompressedImage) -> None:
        try:
            image, stamp_s = from_compressed(message)
        except ImageError as error:
            self._current.bad_frames += 1
            self._node.get_logger().warning(f"frame dropped: {error}", throttle_duration_sec=WARN_EVERY_S)
            return
        self._feed.put_frame(Frame(image, stamp_s, message.header.frame_id))

    def _on_status(self, message: String) -> None:
        try:
            status = PlanStatus.from_json(message.data)
        except ActionParseError as error:
            self._node.get_logger().warning(f"status dropped: {error}", throttle_duration_sec=WARN_EVERY_S)
            return
        if self._feed.put_status(status):
            self._worker.break_off()

    def _beat(self) -> None:
        with self._plan_lock:
            plan = self._current.plan
            if plan is not None and self._worker.is_alive:
                self._plans.publish(String(data=plan.to_json()))

    def _each_second(self) -> None:
        if self._auto and self._worker.is_connected and self._feed.is_live:
            text, self._auto = self._auto, ""
            self._on_text(String(data=text))
        self._diagnose()

    # What the mission says -----------------------------------------------------------------------

    def _post(self, job: Job | None, report: Report) -> None:
        self._reports.put((job, report))
        self._wake.trigger()

    def _drain(self) -> None:
        while True:
            try:
                job, report = self._reports.get_nowait()
            except Empty:
                return
            if job is None or job == self._current.job:
                self._publish(report)

    def _publish(self, report: Report) -> None:
        if isinstance(report, Plan):
            with self._plan_lock:
                self._current.plan = report
                self._plans.publish(String(data=report.to_json()))
        elif isinstance(report, Partial):
            self._partials.publish(String(data=report.text))
        elif isinstance(report, Answer):
            self._current.last = report
            self._answers.publish(String(data=report.to_json()))
            self._traces.publish(String(data=report.trace_json()))
        else:
            self._publish_status(report)
            if report.state in ENDED:
                self._current.plan = self._current.job = None

    def _publish_status(self, status: MissionStatus) -> None:
        self._current.status = status
        self._statuses.publish(String(data=status.to_json()))
        say = self._node.get_logger()
        text = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
        say.warning(text) if status.reason else say.info(text)

    def _halt(self) -> None:
        """Publish a plan that supersedes what is under way and holds nothing."""
        with self._plan_lock:
            plan, self._current.plan = self._current.plan, None
            if plan is not None:
                stop = Plan(plan.mission, plan.answer + 1, self._stamps.ros_now_s(), 0, final=True)
                self._plans.publish(String(data=stop.to_json()))

    def _diagnose(self) -> None:
        current, last = self._current, self._current.last
        values = {"state": current.status.state, "missions": str(current.missions)}
        if last is not None:
            result = last.result
            values |= {
                "strategy": result.strategy,
                "acceptance_rate": f"{result.acceptance_rate:.3f}",
                "last_answer_s": f"{result.total_s:.3f}",
                "uplink_bytes": str(result.usage.uplink_bytes),
            }
        name = self._node.get_name()
        linked = self._worker.is_connected
        level = diagnostics.OK if linked else diagnostics.ERROR
        said = "connected" if linked else current.status.detail or "connecting"
        lines = [diagnostics.Health(f"{name}: cloud", level, said, values)]
        if current.bad_frames:
            frames = {"dropped": str(current.bad_frames)}
            lines.append(diagnostics.Health(f"{name}: frames", diagnostics.WARN, "bad frames", frames))
        self._diagnostics.publish(diagnostics.array(lines, self._stamps.ros_now_s(), "go2"))

    def _runner_config(self) -> RunnerConfig:
        real = self._parameters.real
        steps = self._parameters.integer("max_steps")
        silence_s = real("status_timeout_s")
        return RunnerConfig(steps, silence_s, real("frame_timeout_s"), silence_s, real("act_timeout_s"))

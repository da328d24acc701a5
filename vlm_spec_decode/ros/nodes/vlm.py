"""The VLM node: instructions in; answers, plans and figures out.

Decoding runs on a worker thread, never in a callback. Reports come back through a queue and a guard
condition, so only executor threads touch publishers. The plan of the mission under way is republished as
the heartbeat for the executor's watchdog.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, cast

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.guard_condition import GuardCondition
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ActionParseError, ImageError, InstructionError, VsdError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import FUTURE_TOLERANCE_S
from vlm_spec_decode.mission.connection import EngineConnection, EngineSource
from vlm_spec_decode.mission.events import Frame, MissionEvents
from vlm_spec_decode.mission.leases import MissionLeases
from vlm_spec_decode.mission.queue import Ack, MissionQueue, MissionRequest
from vlm_spec_decode.mission.runner import MissionRunner, Report
from vlm_spec_decode.mission.state import (
    ENDED,
    Answer,
    Fallback,
    MissionJob,
    MissionStatus,
    PartialAnswer,
    RunnerConfig,
)
from vlm_spec_decode.mission.worker import VlmWorker
from vlm_spec_decode.ros import action_server as action_face
from vlm_spec_decode.ros.action_server import MissionActionServer, action_type
from vlm_spec_decode.ros.convert import from_compressed
from vlm_spec_decode.ros.params import Parameters, parameters
from vlm_spec_decode.ros.publishers import VlmPublishers
from vlm_spec_decode.ros.qos import COMMAND
from vlm_spec_decode.ros.stamps import STEADY, ClockConverter
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S, listen

OF_MISSION = {
    "frame_s": "frame_timeout_s",
    "silence_s": "status_timeout_s",
    "act_s": "act_timeout_s",
    "hold_s": "hold_timeout_s",
    "approve_s": "approve_timeout_s",
    "fresh_s": "approve_fresh_s",
}
"""Fields of `RunnerConfig` that are parameters under other names."""

PARAMETERS = (
    Setting("instruction", "", "Given once, as soon as camera, robot and cloud are there; empty: none."),
    Setting("heartbeat_hz", 20.0, "Rate at which the plan under way is republished.", 10.0, 100.0),
    *parameters(RunnerConfig, "max_steps", "fallback", **OF_MISSION),
    Setting("approve", False, "Show every plan and wait for a yes on vlm/approve.", live=True),
    Setting("dry_run", False, "Show what would be sent to the robot, and send nothing.", live=True),
    Setting("queue", False, "A new instruction waits for the one under way, not superseding it.", live=True),
    action_face.PARAMETER,
)


def runner_config(values: Parameters) -> RunnerConfig:
    """Return what holds for the next mission."""
    numbers: dict[str, Any] = {field: values.real(name) for field, name in OF_MISSION.items()}
    return RunnerConfig(
        max_steps=values.integer("max_steps"),
        fallback=cast(Fallback, values.text("fallback")),
        ready_s=numbers["silence_s"],
        **numbers,
    )


CLOSE_S = 2.0
LEASE_LOOK_S = 0.05
SUPERSEDED = "superseded by a new instruction"

INSTRUCTION, REQUEST = "vlm/instruction", "vlm/request"


class VlmNode:
    """Runs missions.

    Subscribes to `vlm/instruction`, `vlm/request`, `vlm/heartbeat`, `vlm/withdraw`, `vlm/plan/status` and
    the camera; publishes `vlm/ack`, `vlm/plan`, `vlm/answer`, `vlm/answer/partial`, `vlm/trace`, `vlm/run`,
    `vlm/status` and `/diagnostics`; serves `vlm/approve`.
    """

    def __init__(
        self, node: Node, source: EngineSource, clock: Clock, on_failure: Callable[[VsdError], None]
    ) -> None:
        self._node, self._clock = node, clock
        self._source = source
        self._stamps = ClockConverter(node, clock)
        self._parameters = Parameters(node, PARAMETERS)
        self._feed = MissionEvents(clock)
        self._reports: SimpleQueue[tuple[MissionJob | None, Report]] = SimpleQueue()
        self._voice = VlmPublishers(node, self._stamps)
        self._bad_frames, self._why_bad = 0, ""
        self._orders = MissionQueue(f"{node.get_clock().now().nanoseconds:x}")
        self._leases = MissionLeases(LEASE_LOOK_S)
        self._auto = self._parameters.text("instruction")
        self._runner = MissionRunner(
            self._feed, self._post, self._stamps.ros_now_s, runner_config(self._parameters)
        )
        keeper = EngineConnection(source, partial(self._post, None), on_failure)
        self._worker = VlmWorker(keeper, self._runner, self._feed)
        self._wake: GuardCondition | None = None
        kind = self._parameters.text("action_type")
        self._action = MissionActionServer(node, action_type(kind)) if kind else None

    @property
    def is_settled(self) -> bool:
        """Whether the cloud has been asked for the first time; one that is not there is asked again."""
        return self._worker.has_tried

    def begin(self) -> None:
        """Listen, and look for the cloud."""
        self._listen()
        self._worker.start()

    def _listen(self) -> None:
        node = self._node
        talk, see, beat = (MutuallyExclusiveCallbackGroup() for _ in range(3))
        self._wake = node.create_guard_condition(self._drain, talk)
        sensor = qos_profile_sensor_data
        for topic, take in (
            (INSTRUCTION, self._on_text),
            (REQUEST, self._on_request),
            ("vlm/heartbeat", self._on_heartbeat),
            ("vlm/withdraw", self._on_withdraw),
        ):
            listen(node, String, topic, take, COMMAND, callback_group=talk)
        node.create_timer(LEASE_LOOK_S, self._look_at_leases, talk, clock=STEADY)
        node.create_service(SetBool, "vlm/approve", self._on_verdict, callback_group=beat)
        listen(node, String, "vlm/plan/status", self._on_status, COMMAND, callback_group=beat)
        topic = "camera/image_raw/compressed"
        listen(node, CompressedImage, topic, self._on_image, sensor, callback_group=see)
        period_s = 1 / self._parameters.real("heartbeat_hz")
        node.create_timer(period_s, self._beat, beat, clock=STEADY)
        node.create_timer(1.0, self._each_second, talk, clock=STEADY)

    def instruct(self, request: MissionRequest) -> str:
        """Take a request: at once, superseding what is under way, or into the queue; return its name.

        The parameters `approve`, `dry_run` and `queue` hold for every request. Raises InstructionError.
        """
        flag = self._parameters.flag
        job = self._orders.job(request)
        job = replace(job, approve=job.approve or flag("approve"), dry_run=job.dry_run or flag("dry_run"))
        self._order(job, request)
        self._leases.begin(job.mission, request.lease_s, self._clock.now())
        return job.mission

    def _order(self, job: MissionJob, request: MissionRequest) -> None:
        flag = self._parameters.flag
        if (request.queue or flag("queue")) and self._orders.current is not None:
            self._orders.enqueue(job)
            self._tell(job, "queued", f"{len(self._orders.waiting)} in the queue")
            return
        self._drop_waiting(SUPERSEDED)
        if self._orders.current is not None:
            self._tell(self._orders.current, "cancelled", SUPERSEDED)
        self._voice.halt()
        self._begin(job)

    def _begin(self, job: MissionJob) -> None:
        self._orders.current = job
        self._node.get_logger().info(f"mission {job.mission}: {job.instruction[:120]!r}")
        self._runner.config = runner_config(self._parameters)
        self._worker.submit(job)

    def _drop_waiting(self, why: str) -> None:
        for job in self._orders.drop_waiting():
            self._tell(job, "cancelled", why)

    def _tell(self, job: MissionJob, state: str, detail: str) -> None:
        """Publish the status of a mission that is not the one under way."""
        status = MissionStatus(
            state=state, mission=job.mission, instruction=job.instruction[:200], reason="queue", detail=detail
        )
        self._voice.status(status, aside=True)
        if state in ENDED:
            self._over(status)

    def _over(self, status: MissionStatus) -> None:
        """Remember how a mission ended; nobody needs to be heard for it any more."""
        self._orders.end(status)
        self._leases.end(status.mission)

    def close(self) -> None:
        """Stop the robot, end the mission and leave the cloud. Idempotent."""
        self._voice.halt()
        self._orders.current = None
        self._orders.drop_waiting()
        if self._action is not None:
            self._action.close()
        self._worker.close(CLOSE_S)

    # Callbacks -----------------------------------------------------------------------------------

    def _on_text(self, message: String) -> None:
        self._take(INSTRUCTION, lambda: MissionRequest(instruction=message.data))

    def _on_request(self, message: String) -> None:
        self._take(REQUEST, lambda: MissionRequest.from_json(message.data))

    def _take(self, topic: str, read: Callable[[], MissionRequest]) -> None:
        """Take a request and acknowledge it; one that comes again is acknowledged again, no more."""
        asked = ""
        try:
            request = read()
            asked = request.mission
            if self._orders.repeats(request):
                self._leases.beat(asked, self._clock.now())
            else:
                asked = self.instruct(request)
        except InstructionError as error:
            name, detail = type(error).__name__, str(error)
            self._voice.status(MissionStatus(state="failed", reason=name, detail=detail), aside=True)
            self._voice.acknowledge(
                Ack(state="refused", mission=asked, topic=topic, reason=name, detail=detail)
            )
        else:
            listeners = self._node.count_subscribers(topic)
            self._voice.acknowledge(Ack(state="taken", mission=asked, topic=topic, listeners=listeners))

    def _on_heartbeat(self, message: String) -> None:
        """Take note that a mission's asker lives; tell one whose mission has ended how it did."""
        mission = message.data
        self._leases.beat(mission, self._clock.now())
        if self._orders.is_alive(mission):
            return
        ended = self._orders.ending(mission) or MissionStatus(
            state="failed",
            reason="Unknown",
            detail="vlm_node does not know this mission; it was started anew",
        )
        self._voice.acknowledge(
            Ack(
                state="over",
                mission=mission,
                topic=REQUEST,
                reason=ended.reason,
                detail=ended.detail,
                status=ended.state,
            )
        )

    def _look_at_leases(self) -> None:
        for mission in self._leases.expired(self._clock.now()):
            self._node.get_logger().warning(f"mission {mission}: its asker fell silent")
            self._cancel(mission, "its asker fell silent")

    def _on_withdraw(self, message: String) -> None:
        """End one mission by its name, whether it waits or is under way; others go on."""
        self._cancel(message.data, "withdrawn")

    def _cancel(self, mission: str, why: str) -> None:
        current, waiting = self._orders.current, self._orders.withdraw(mission)
        if waiting is not None:
            self._tell(waiting, "cancelled", why)
        elif current is not None and current.mission == mission:
            self._voice.halt()
            self._worker.cancel(why)

    def _on_verdict(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        shown = self._voice.shown
        response.success = shown.state == "proposed" and shown.reason == "approve"
        response.message = shown.detail if response.success else "no plan waits for a yes"
        if response.success:
            self._feed.put_verdict(bool(request.data))
        return response

    def _on_image(self, message: CompressedImage) -> None:
        try:
            image, stamp_s = from_compressed(message)
        except ImageError as error:
            self._bad_frames += 1
            self._why_bad = str(error)
            self._node.get_logger().warning(f"frame dropped: {error}", throttle_duration_sec=WARN_EVERY_S)
            return
        self._feed.put_frame(Frame(image, self._captured_s(stamp_s), message.header.frame_id))

    def _captured_s(self, stamp_s: float) -> float:
        """Return the capture time of a frame; that of its receipt where the camera says none."""
        say = self._node.get_logger()
        if stamp_s == 0:
            say.warning(
                "frames have no stamp (0): the time of their receipt is taken for it, so that they are a "
                "little older than it says",
                once=True,
            )
            return self._stamps.ros_now_s()
        ahead_s = self._stamps.ahead_s(stamp_s)
        if ahead_s > FUTURE_TOLERANCE_S:
            self._why_bad = f"stamped {ahead_s:.1f} s in the future"
            say.warning(
                f"a frame is {self._why_bad}: the camera's clock and this machine's differ",
                throttle_duration_sec=WARN_EVERY_S,
            )
        return stamp_s

    def _on_status(self, message: String) -> None:
        try:
            status = PlanStatus.from_json(message.data)
        except ActionParseError as error:
            self._node.get_logger().warning(f"status dropped: {error}", throttle_duration_sec=WARN_EVERY_S)
            return
        if self._feed.put_status(status):
            self._worker.break_off()

    def _beat(self) -> None:
        if self._worker.is_alive:
            self._voice.beat()

    def _each_second(self) -> None:
        if self._auto and self._worker.is_connected and self._feed.is_live:
            text, self._auto = self._auto, ""
            self._on_text(String(data=text))
        self._voice.diagnose(
            linked=self._worker.is_connected,
            missions=self._orders.missions,
            bad_frames=self._bad_frames,
            why_bad=self._why_bad,
        )

    # What the mission says -----------------------------------------------------------------------

    def _post(self, job: MissionJob | None, report: Report) -> None:
        self._reports.put((job, report))
        if self._wake is not None:
            self._wake.trigger()

    def _drain(self) -> None:
        while True:
            try:
                job, report = self._reports.get_nowait()
            except Empty:
                return
            if job is None or job == self._orders.current:
                self._publish(report)

    def _publish(self, report: Report) -> None:
        if isinstance(report, Plan):
            self._voice.plan(report)
        elif isinstance(report, PartialAnswer):
            self._voice.partial(report)
        elif isinstance(report, Answer):
            self._voice.answer(report)
        else:
            self._voice.status(report)
            if report.state == "ready":
                self._voice.run(self._source.facts())
            if report.state in ENDED:
                self._ended(report)

    def _ended(self, status: MissionStatus) -> None:
        """Go on with the queue after a success; whatever else ends a mission empties it."""
        self._orders.current = None
        self._over(status)
        self._voice.rest()
        if status.state == "done" and self._orders.waiting:
            self._begin(self._orders.waiting.popleft())
        else:
            self._drop_waiting(f"the mission before it ended as {status.state}")

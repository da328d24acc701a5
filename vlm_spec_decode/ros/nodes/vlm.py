"""The VLM node: instructions in; answers, plans and figures out.

Decoding runs on a worker thread, never in a callback. Reports come back through a queue and a guard
condition, so only executor threads use publishers. The plan of the mission in progress is republished as
the heartbeat for the executor's watchdog.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, cast

from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.guard_condition import GuardCondition
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ActionParseError, ImageError, VsdError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.profiles import load_hardware, load_link
from vlm_spec_decode.core.types import FUTURE_TOLERANCE_S
from vlm_spec_decode.edge.protocol_timing import ProtocolTiming
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.connection import EngineSource
from vlm_spec_decode.mission.events import ANY, Frame
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.mission.service import LEASE_CHECK_S, MissionService, MissionSettings
from vlm_spec_decode.mission.state import (
    EarlyFramesMode,
    Fallback,
    ReplanMode,
    RunnerConfig,
    SearchMode,
    Shown,
    Start,
    shown_by,
)
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.action_server import MissionActionServer
from vlm_spec_decode.ros.convert import STEADY, ClockConverter, from_compressed, from_odometry
from vlm_spec_decode.ros.middleware import COMMAND
from vlm_spec_decode.ros.middleware import REQUEST as REQUESTS
from vlm_spec_decode.ros.mission_topics import VlmPublishers
from vlm_spec_decode.ros.params import Parameters, parameters
from vlm_spec_decode.ros.subscriptions import WARN_EVERY_S, PausedTimer, subscribe
from vlm_spec_decode_msgs import msg
from vlm_spec_decode_msgs.srv import Approve

OF_ENGINE = (
    *(
        "cloud",
        "cloud_choice",
        "keys",
        "draft",
        "strategy",
        "rule",
        "objective",
        "temperature",
        "seed",
        "max_tokens",
    ),
    *(
        "draft_length",
        "draft_budget",
        "draft_floor",
        "deadline_s",
        "image_budget_s",
        "answer_timeout_s",
        "connect_timeout_s",
        "grammar",
        "threads",
    ),
)
"""Fields of `EdgeSettings` that are parameters of the node, by the same names."""

ENGINE_PARAMETERS = (
    *parameters(EdgeSettings, *OF_ENGINE),
    Setting("link_silence_s", 0.6, "Silence of the link, heartbeats too, that loses the cloud.", 0.3, 30.0),
    Setting(
        "link_file", "", "Link profile to emulate in front of the socket, a name or a YAML file; empty: none."
    ),
    Setting(
        "hardware_profile",
        "",
        "Hardware profile, a name or a YAML file, that says how long draft steps take; empty: this machine.",
    ),
)


def read_settings(node: Node) -> EdgeSettings:
    """Declare the parameters and return their values. Raises ConfigError."""
    values = Parameters(node, ENGINE_PARAMETERS)
    link, hardware = values.path("link_file"), values.path("hardware_profile")
    timing = ProtocolTiming.walking(values.real("link_silence_s"), values.real("connect_timeout_s"))
    given: dict[str, Any] = {name: values.value(name) for name in OF_ENGINE}
    given["keys"] = values.path("keys")
    return EdgeSettings(
        **given,
        link=load_link(str(link)) if link else None,
        hardware=load_hardware(str(hardware)) if hardware else None,
        timing=timing,
    )


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
    *parameters(
        RunnerConfig,
        "max_steps",
        "fallback",
        "search",
        "search_looks",
        "replan",
        "early_frames",
        "start",
        **OF_MISSION,
    ),
    Setting("approve", False, "Show every plan and wait for a yes on vlm/approve.", live=True),
    Setting("dry_run", False, "Show what would be sent to the robot, and send nothing.", live=True),
    Setting("queue", False, "A new instruction waits for the one under way, not superseding it.", live=True),
)


def mission_settings(values: Parameters) -> MissionSettings:
    """Return the settings of the next mission."""
    return MissionSettings(
        runner=runner_config(values),
        approve=values.flag("approve"),
        dry_run=values.flag("dry_run"),
        queue=values.flag("queue"),
    )


def runner_config(values: Parameters) -> RunnerConfig:
    """Return the time-outs, the fallback and the start of the next mission."""
    numbers: dict[str, Any] = {field: values.real(name) for field, name in OF_MISSION.items()}
    return RunnerConfig(
        max_steps=values.integer("max_steps"),
        fallback=cast(Fallback, values.text("fallback")),
        search=cast(SearchMode, values.text("search")),
        search_looks=values.integer("search_looks"),
        replan=cast(ReplanMode, values.text("replan")),
        early_frames=cast(EarlyFramesMode, values.text("early_frames")),
        start=cast(Start, values.text("start")),
        ready_s=numbers["silence_s"],
        **numbers,
    )


INSTRUCTION, REQUEST = "vlm/instruction", "vlm/request"


class VlmNode:
    """Runs missions.

    Subscribes to `vlm/instruction`, `vlm/request`, `vlm/heartbeat`, `vlm/withdraw`, `vlm/plan/status` and
    the camera; publishes `vlm/ack`, `vlm/plan`, `vlm/answer`, `vlm/answer/typed`, `vlm/answer/partial`,
    `vlm/trace`, `vlm/run`, `vlm/status` and `/diagnostics`; serves `vlm/approve`, `vlm/approve_plan` and the
    action `vlm/execute`.
    """

    def __init__(
        self, node: Node, source: EngineSource, clock: Clock, on_failure: Callable[[VsdError], None]
    ) -> None:
        self._node, self._clock = node, clock
        self._stamps = ClockConverter(node, clock)
        self._parameters = Parameters(node, PARAMETERS)
        self._publishers = VlmPublishers(node, self._stamps)
        self._bad_frames, self._why_bad = 0, ""
        self._auto = self._parameters.text("instruction")
        self._service = MissionService(
            source,
            self._publishers,
            clock,
            partial(mission_settings, self._parameters),
            prefix=f"{node.get_clock().now().nanoseconds:x}",
            now_s=self._stamps.ros_now_s,
            wake=self._trigger,
            on_failure=on_failure,
            log=node.get_logger().info,
        )
        self._wake: GuardCondition | None = None
        self._withdrawn: SimpleQueue[str] = SimpleQueue()
        self._action: MissionActionServer | None = None

    @property
    def is_settled(self) -> bool:
        """Whether a first attempt to reach the cloud has ended; further attempts follow by themselves."""
        return self._service.has_tried

    def begin(self) -> None:
        """Subscribe, and start to connect to the cloud."""
        self._listen()
        self._service.start()

    def _listen(self) -> None:
        node = self._node
        topic_group, frame_group, beat_group = (MutuallyExclusiveCallbackGroup() for _ in range(3))
        self._wake = node.create_guard_condition(self._drain, topic_group)
        sensor = qos_profile_sensor_data
        for kind, topic, take in (
            (String, INSTRUCTION, self._on_text),
            (msg.Mission, REQUEST, self._on_request),
            (String, "vlm/heartbeat", self._on_heartbeat),
            (String, "vlm/withdraw", self._on_withdraw),
        ):
            subscribe(node, kind, topic, take, COMMAND, callback_group=topic_group)
        self._requests = node.create_publisher(msg.Mission, REQUEST, REQUESTS)
        self._action = MissionActionServer(
            node,
            topic_group,
            check=self._service.check,
            submit=self._submit,
            withdraw=self._withdraw_later,
            end_status=self._service.end_status,
            refuse=partial(self._service.refuse, REQUEST),
            now_s=self._stamps.ros_now_s,
        )
        self._publishers.listeners.append(self._action)
        self._leases = PausedTimer(node, LEASE_CHECK_S, self._check_leases, topic_group, STEADY)
        node.create_service(SetBool, "vlm/approve", self._on_approval, callback_group=beat_group)
        node.create_service(Approve, "vlm/approve_plan", self._on_plan_approval, callback_group=beat_group)
        subscribe(
            node, msg.PlanStatus, "vlm/plan/status", self._on_status, COMMAND, callback_group=beat_group
        )
        topic = "camera/image_raw/compressed"
        subscribe(node, CompressedImage, topic, self._on_image, sensor, callback_group=frame_group)
        subscribe(node, Odometry, "odom", self._on_odometry, sensor, callback_group=beat_group)
        period_s = 1 / self._parameters.real("heartbeat_hz")
        beats = PausedTimer(node, period_s, self._service.repeat_plan, beat_group, STEADY)
        self._publishers.on_plan_in_progress = lambda is_there: beats.run_if(lambda: is_there)
        node.create_timer(1.0, self._each_second, topic_group, clock=STEADY)

    def instruct(self, request: MissionRequest) -> str:
        """Start or queue a request's mission; see `MissionService.instruct`."""
        mission = self._service.instruct(request)
        self._leases.run_if(lambda: self._service.has_leases)
        return mission

    def close(self) -> None:
        """Stop the robot, end the mission and disconnect from the cloud. Idempotent."""
        self._publishers.send_empty_plan()
        if self._action is not None:
            self._action.close()
        self._service.close()

    def _trigger(self) -> None:
        if self._wake is not None:
            self._wake.trigger()

    def _drain(self) -> None:
        """End what was withdrawn, and publish all waiting reports."""
        with suppress(Empty):
            while True:
                self._service.cancel(self._withdrawn.get_nowait(), "withdrawn")
        self._service.drain()

    def _withdraw_later(self, mission: str) -> None:
        self._withdrawn.put(mission)
        self._trigger()

    def _submit(self, request: MissionRequest) -> None:
        """Take the request of a goal, and publish it for whoever records; its echo here is a repeat."""
        self._on_mission_request(REQUEST, lambda: request)
        self._requests.publish(typed.request_to_message(request))

    # Callbacks -----------------------------------------------------------------------------------

    def _on_text(self, message: String) -> None:
        self._on_mission_request(INSTRUCTION, lambda: MissionRequest(instruction=message.data))

    def _on_request(self, message: msg.Mission) -> None:
        self._on_mission_request(REQUEST, lambda: typed.request_from_message(message))

    def _on_mission_request(self, topic: str, read: Callable[[], MissionRequest]) -> None:
        self._service.on_request(topic, read, lambda: self._node.count_subscribers(topic))
        self._leases.run_if(lambda: self._service.has_leases)

    def _check_leases(self) -> None:
        self._service.check_leases()
        self._leases.run_if(lambda: self._service.has_leases)

    def _on_heartbeat(self, message: String) -> None:
        self._service.on_heartbeat(message.data)

    def _on_withdraw(self, message: String) -> None:
        self._service.cancel(message.data, "withdrawn")

    def _on_approval(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        response.success, response.message = self._approve(bool(request.data))
        return response

    def _on_plan_approval(self, request: Approve.Request, response: Approve.Response) -> Approve.Response:
        named = Shown(str(request.mission), int(request.step), str(request.plan))
        response.success, response.message = self._approve(bool(request.yes), named)
        return response

    def _approve(self, yes: bool, named: Shown = ANY) -> tuple[bool, str]:
        """Give a yes or no to the plan that is shown, if it is the one that is `named`."""
        status = self._publishers.shown
        if (status.state, status.reason) != ("proposed", "approve"):
            return False, "no plan waits for a yes"
        shown = shown_by(status)
        if not named.is_of(shown):
            return False, f"another plan waits: step {status.step} of mission {status.mission}"
        # What was published last may be over by now: only a yes to just that counts.
        if not self._service.put_approval(yes, shown):
            return False, "no plan waits for a yes any more"
        return True, status.detail

    def _on_image(self, message: CompressedImage) -> None:
        try:
            image, stamp_s = from_compressed(message)
        except ImageError as error:
            self._bad_frames += 1
            self._why_bad = str(error)
            self._node.get_logger().warning(f"frame dropped: {error}", throttle_duration_sec=WARN_EVERY_S)
            return
        self._service.put_frame(Frame(image, self._captured_s(stamp_s), message.header.frame_id))

    def _captured_s(self, stamp_s: float) -> float:
        """Return the capture time of a frame, or that of its receipt if the camera sets none."""
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

    def _on_odometry(self, message: Odometry) -> None:
        self._service.put_pose(*from_odometry(message))

    def _on_status(self, message: msg.PlanStatus) -> None:
        try:
            status = typed.plan_status_from_message(message)
        except ActionParseError as error:
            self._node.get_logger().warning(f"status dropped: {error}", throttle_duration_sec=WARN_EVERY_S)
            return
        self._service.put_status(status)
        if self._action is not None:
            self._action.on_plan_status(status)

    def _each_second(self) -> None:
        if self._auto and self._service.is_connected and self._service.is_live:
            text, self._auto = self._auto, ""
            self._on_text(String(data=text))
        self._publishers.diagnose(
            linked=self._service.is_connected,
            missions=self._service.missions,
            bad_frames=self._bad_frames,
            why_bad=self._why_bad,
        )

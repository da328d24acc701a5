"""Displays for people: overlay, markers, path, and numbers to plot. Commands nothing.

Renders only topics with subscribers, so that an unobserved robot spends nothing on it.
"""

from __future__ import annotations

import math
from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, LaserScan
from std_msgs.msg import Float64, String
from visualization_msgs.msg import MarkerArray

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.plan import Plan, Pose
from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ActionParseError, ImageError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.mission.state import END_STATES, NOTES
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros import visualization as markers
from vlm_spec_decode.ros import visualization as overlay
from vlm_spec_decode.ros.convert import (
    STEADY,
    ClockConverter,
    from_compressed,
    from_odometry,
    from_ranges,
    to_compressed,
    to_seconds,
)
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.subscriptions import subscribe
from vlm_spec_decode_msgs import msg

PARAMETERS = (
    Setting("odom_frame", "odom", "Frame of the markers and the path."),
    Setting("base_frame", "base_link", "Frame of the body's box."),
    Setting("path_length", 600, "Poses that the path keeps.", 2, 10000),
    Setting(
        "obstacle_stop_m", SafetyLimits().obstacle_stop_m, "Depth of the stop zone that is drawn.", 0.0, 2.0
    ),
)

FIGURES = {
    "latency_s": "Seconds from the question to the end of the last answer.",
    "first_action_s": "Seconds from the question to its first action.",
    "acceptance": "Share of drafted tokens that the cloud accepted.",
    "tokens_per_pass": "Committed tokens over passes of the target.",
    "link_s": "Estimate of the link: waiting less the target's own time, a round, mean.",
    "uplink_bytes": "Bytes up for the last answer, without the image.",
    "downlink_bytes": "Bytes down for the last answer.",
    "speed_mps": "Horizontal speed by odometry.",
    "frame_age_s": "Age of the newest frame at its arrival.",
}
"""Numeric topics below `vlm/figures/`, and the meaning of each."""

STEP_M = 0.03
NEWEST = QoSProfile(depth=1)


class MonitorNode:
    """Publishes `vlm/overlay/compressed`, `vlm/markers`, `vlm/markers/body`, `vlm/path`, `vlm/figures/*`."""

    def __init__(self, node: Node, clock: Clock) -> None:
        self._node = node
        self._stamps = ClockConverter(node, clock)
        self._values = Parameters(node, PARAMETERS)
        self._caption = overlay.Caption()
        self._pose: Pose = (0.0, 0.0, 0.0)
        self._start: tuple[tuple[str, int], Pose] = (("", -1), self._pose)
        self._drawn: tuple[Any, ...] = ()
        self._plan: Plan | None = None
        self._labels = 0
        self._over = ""
        self._ranges_m: tuple[float, ...] = markers.BodyView(stop_m=0.0).ranges_m
        self._path = Path()
        self._path.header.frame_id = self._values.text("odom_frame")
        self._closed = False
        self._is_verified = True
        self._overlays = node.create_publisher(
            CompressedImage, "vlm/overlay/compressed", qos_profile_sensor_data
        )
        # A plan is published once and kept for late viewers; what surrounds the body is published again and
        # again, on a topic of its own, where it pushes no plan out.
        self._markers = node.create_publisher(MarkerArray, "vlm/markers", LATCHED)
        self._body = node.create_publisher(MarkerArray, "vlm/markers/body", NEWEST)
        self._paths = node.create_publisher(Path, "vlm/path", NEWEST)
        self._figures = {name: node.create_publisher(Float64, f"vlm/figures/{name}", 10) for name in FIGURES}

    @property
    def is_settled(self) -> bool:
        """Always true: there is nothing to wait for."""
        return True

    @property
    def caption(self) -> overlay.Caption:
        """The caption of the next frame."""
        return self._caption

    def begin(self) -> None:
        """Subscribe to the topics."""
        node = self._node
        frame_group, state_group = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        topic = "camera/image_raw/compressed"
        subscribe(node, CompressedImage, topic, self._on_frame, newest, callback_group=frame_group)
        subscribe(node, Odometry, "odom", self._on_odometry, 5, callback_group=state_group)
        subscribe(node, LaserScan, "vlm/ranges", self._on_ranges, newest, callback_group=state_group)
        texts = {
            "vlm/status": (msg.MissionStatus, self._on_status, LATCHED),
            "vlm/control": (String, self._on_source, LATCHED),
            "vlm/answer/partial": (String, self._on_partial, COMMAND),
            "vlm/answer/typed": (msg.Answer, self._on_answer, COMMAND),
            "vlm/trace": (msg.DecodeTrace, self._on_trace, COMMAND),
            "vlm/plan": (msg.Plan, self._on_plan, COMMAND),
        }
        for topic, (kind, take, qos) in texts.items():
            subscribe(node, kind, topic, take, qos, callback_group=state_group)
        self._markers.publish(markers.wiped())
        node.create_timer(1.0, self._each_second, state_group, clock=STEADY)

    def close(self) -> None:
        """Publish nothing more. Idempotent."""
        self._closed = True

    def _publish_figure(self, name: str, value: float | None) -> None:
        publisher = self._figures[name]
        if (
            value is None
            or not math.isfinite(value)
            or self._closed
            or not publisher.get_subscription_count()
        ):
            return
        publisher.publish(Float64(data=float(value)))

    def _change(self, **fields: Any) -> None:
        caption = self._caption
        present = {name: getattr(caption, name) for name in ("pieces", "state", "figures", "source")}
        self._caption = overlay.Caption(**present | fields)

    # Callbacks -----------------------------------------------------------------------------------

    def _on_frame(self, message: CompressedImage) -> None:
        stamp_s = to_seconds(message.header.stamp)
        self._publish_figure("frame_age_s", self._stamps.ros_now_s() - stamp_s)
        if self._closed or not self._overlays.get_subscription_count():
            return
        try:
            drawn = overlay.draw(from_compressed(message)[0], self._caption)
        except ImageError as error:
            self._node.get_logger().warning(f"frame dropped: {error}", throttle_duration_sec=5.0)
            return
        self._overlays.publish(to_compressed(drawn, stamp_s, message.header.frame_id))

    def _on_status(self, message: msg.MissionStatus) -> None:
        status = typed.mission_status_from_message(message)
        parts = (status.state, status.reason, status.instruction)
        self._change(state=" | ".join(part for part in parts if part))
        if status.state == "answering" and status.reason not in NOTES:
            self._is_verified = status.reason != "unverified"
            self._change(pieces=())
        if status.state in END_STATES and self._plan is not None:
            self._draw(self._plan, is_over=True)
            # A heartbeat of it may still be under way.
            self._over, self._plan = self._plan.mission, None
        self._draw_body()

    def _on_source(self, message: String) -> None:
        self._change(source=message.data)
        self._draw_body()

    def _on_ranges(self, message: LaserScan) -> None:
        self._ranges_m = from_ranges(message, markers.HULL.half_m)
        self._draw_body()

    def _on_partial(self, message: String) -> None:
        self._change(pieces=(self._piece(message.data),))

    def _on_answer(self, message: msg.Answer) -> None:
        self._change(pieces=(self._piece(message.text),))

    def _piece(self, text: str) -> overlay.AnswerPiece:
        """Return text whose tokens are not classified yet; without the cloud all are the draft's."""
        return overlay.AnswerPiece(text, "committed" if self._is_verified else "drafted")

    def _on_trace(self, message: msg.DecodeTrace) -> None:
        trace = typed.trace_from_message(message).to_mapping()
        rounds = trace["rounds"]
        text = "".join(piece.text for piece in self._caption.pieces)
        figures = (
            f"{trace['strategy']}  {trace['total_s']:.2f} s  {100 * trace['acceptance_rate']:.0f} % accepted"
        )
        pieces = overlay.pieces_of(text, rounds) if self._is_verified else (self._piece(text),)
        self._change(pieces=pieces, figures=figures)
        waits = [each["wait_s"] - each["verify_s"] for each in rounds]
        self._publish_figure("latency_s", trace["total_s"])
        self._publish_figure("first_action_s", trace["time_to_first_action_s"])
        self._publish_figure("acceptance", trace["acceptance_rate"] if trace["drafted"] else None)
        self._publish_figure("tokens_per_pass", trace["tokens"] / len(rounds) if rounds else None)
        self._publish_figure("link_s", max(0.0, sum(waits) / len(waits)) if waits else None)
        self._publish_figure("uplink_bytes", trace["uplink_bytes"])
        self._publish_figure("downlink_bytes", trace["downlink_bytes"])

    def _on_plan(self, message: msg.Plan) -> None:
        """Draw a plan when it changes; it starts where the body stood when its answer began."""
        try:
            plan = typed.plan_from_message(message)
        except ActionParseError:
            return
        if (plan.mission, plan.answer) != self._start[0]:
            self._start = ((plan.mission, plan.answer), self._pose)
        content = (plan.mission, plan.answer, plan.actions, plan.verified)
        if content == self._drawn or plan.mission == self._over or self._closed:
            return
        self._drawn, self._plan = content, plan
        self._draw(plan)

    def _draw(self, plan: Plan, *, is_over: bool = False) -> None:
        """Draw a plan in place of what is drawn; grey if it is over."""
        if self._closed:
            return
        frame, start = self._values.text("odom_frame"), self._start[1]
        drawn = markers.plan_markers(plan, start, frame, is_over=is_over, labels=self._labels)
        self._labels = max(self._labels, len(plan.actions))
        self._markers.publish(drawn)

    def _draw_body(self) -> None:
        if self._closed or not self._body.get_subscription_count():
            return
        view = markers.BodyView(
            stop_m=self._values.real("obstacle_stop_m"),
            ranges_m=self._ranges_m,
            status=self._caption.state,
            source=self._caption.source,
        )
        self._body.publish(markers.body_markers(view, self._values.text("base_frame")))

    def _on_odometry(self, message: Odometry) -> None:
        pose = from_odometry(message)[1]
        self._pose = (pose.x_m, pose.y_m, pose.yaw_rad)
        twist = message.twist.twist.linear
        self._publish_figure("speed_mps", math.hypot(twist.x, twist.y))
        poses = self._path.poses
        last = poses[-1].pose.position if poses else None
        if last is None or math.hypot(pose.x_m - last.x, pose.y_m - last.y) > STEP_M:
            self._path.poses = [*poses, PoseStamped(header=message.header, pose=message.pose.pose)][
                -self._values.integer("path_length") :
            ]

    def _each_second(self) -> None:
        if self._closed:
            return
        self._path.header.stamp = self._node.get_clock().now().to_msg()
        if self._paths.get_subscription_count():
            self._paths.publish(self._path)
        self._draw_body()

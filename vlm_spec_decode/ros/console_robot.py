"""The console's robot over ROS topics: what the nodes of one namespace publish is shown, commands go to them.

Subscribes to little while no page is open: pictures come only while a page shows them, odometry only while
one is open.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, LaserScan
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool

from vlm_spec_decode.control.motion_profile import STILL, Velocity
from vlm_spec_decode.core.errors import ImageError, InstructionError, RobotUnreachable, UsageError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.token_fates import Fate, TokenPiece
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import PartialAnswer, Shown
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import STEADY, from_compressed, from_odometry, from_ranges
from vlm_spec_decode.ros.lifecycle import ManagedNode
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED, LATCHED_QUEUE, REQUEST
from vlm_spec_decode.ros.subscriptions import guarded_timer, subscribe
from vlm_spec_decode.serve.console.answers import AnswerFigures
from vlm_spec_decode.serve.console.commands import ConsoleRobot
from vlm_spec_decode.serve.console.state import Body, ConsoleState, RobotFacts
from vlm_spec_decode.serve.console.video import VideoFeed
from vlm_spec_decode_msgs import msg
from vlm_spec_decode_msgs.srv import Approve

CAMERA, ODOMETRY, RANGES = "camera/image_raw/compressed", "odom", "vlm/ranges"
WATCH_S = 0.25
"""How often it is looked whether a page is open."""

REPLY_S, ACK_S, RESEND_S = 3.0, 2.0, 0.4
LEVELS = {b"\x00": "OK", b"\x01": "WARN", b"\x02": "ERROR", b"\x03": "STALE"}
FATES: dict[str, Fate] = {"accepted": "accepted", "target": "corrected", "unverified": "drafted"}
"""Fates of tokens as reports name them, and as the console does."""

KEPT_ACKS = 64


class RosRobot(ConsoleRobot):
    """The nodes in one namespace, through `node`. `begin` subscribes; the node's executor must spin."""

    def __init__(self, node: Node, facts: RobotFacts, clock: Clock, namespace: str = "") -> None:
        """`namespace` is that of the robot's nodes; "" for that of `node` itself."""
        self.state, self.video = ConsoleState(facts, clock), VideoFeed()
        self._node = node
        self._below = f"/{namespace.strip('/')}/" if namespace.strip("/") else ""
        self._acks: dict[tuple[str, bool], Ack] = {}
        self._acked, self._replying = threading.Condition(), threading.Lock()
        self._report: AnswerReport | None = None
        self._trace: DecodeReport | None = None
        self._battery: float | None = None
        self._posture = ""
        self._ranges_m: tuple[float, ...] | None = None
        self._optional: dict[str, Any] = {}
        self._asking: ReentrantCallbackGroup | None = None

    def begin(self) -> None:
        """Subscribe, and find who takes commands."""
        node, group = self._node, MutuallyExclusiveCallbackGroup()
        self._states, self._pictures = group, MutuallyExclusiveCallbackGroup()
        self._asking = ReentrantCallbackGroup()
        kinds: dict[str, tuple[Any, Callable[[Any], None], QoSProfile]] = {
            "vlm/status": (msg.MissionStatus, self._on_status, LATCHED_QUEUE),
            "vlm/control": (String, lambda text: self.state.on_source(text.data), LATCHED),
            "vlm/answer/partial": (String, self._on_partial, LATCHED_QUEUE),
            "vlm/answer/typed": (msg.Answer, self._on_answer, COMMAND),
            "vlm/trace": (msg.DecodeTrace, self._on_trace, LATCHED),
            "vlm/plan": (msg.Plan, self._on_plan, COMMAND),
            "vlm/plan/status": (msg.PlanStatus, self._on_plan_status, COMMAND),
            "vlm/ack": (msg.MissionAck, self._on_ack, COMMAND),
        }
        for topic, (kind, take, qos) in kinds.items():
            subscribe(node, kind, self._below + topic, take, qos, callback_group=group)
        subscribe(node, DiagnosticArray, "/diagnostics", self._on_diagnostics, 10, callback_group=group)
        self._requests = node.create_publisher(msg.Mission, f"{self._below}vlm/request", REQUEST)
        self._withdrawals = node.create_publisher(String, f"{self._below}vlm/withdraw", COMMAND)
        self._stops = node.create_publisher(Bool, f"{self._below}e_stop/request", COMMAND)
        self._steers = node.create_publisher(Twist, f"{self._below}cmd_vel_teleop", 1)
        self._estop = node.create_client(SetBool, f"{self._below}e_stop", callback_group=self._asking)
        plan = f"{self._below}vlm/approve_plan"
        self._approval = node.create_client(Approve, plan, callback_group=self._asking)
        watch = guarded_timer(node, "pages", self.watch)
        node.create_timer(WATCH_S, watch, group, clock=STEADY)

    def close(self) -> None:
        """Let whoever waits for an acknowledgement go on. Idempotent."""
        with self._acked:
            self._acked.notify_all()

    # Commands --------------------------------------------------------------------------------------

    def instruct(self, instruction: str, *, approve: bool, queue: bool) -> None:
        """Request a mission, and wait until the VLM node has taken it. Raises InstructionError."""
        name = f"page-{uuid.uuid4().hex[:12]}"
        request = MissionRequest(instruction=instruction, mission=name, approve=approve, queue=queue)
        ack = self._request(request)
        if ack.state == "refused":
            raise InstructionError(f"{ack.reason}: {ack.detail}")

    def _request(self, request: MissionRequest) -> Ack:
        """Publish a request until the VLM node acknowledges it; return that. Raises RobotUnreachable."""
        key, until_s = (request.mission, request.reply), time.monotonic() + ACK_S
        with self._acked:
            self._acks.pop(key, None)  # that of an earlier reply to the same mission
        while time.monotonic() < until_s:
            self._requests.publish(typed.request_to_message(request))
            with self._acked:
                if self._acked.wait_for(lambda: key in self._acks, RESEND_S):
                    return self._acks[key]
        raise RobotUnreachable("no vlm_node has taken it")

    def withdraw(self, mission: str) -> None:
        """End a mission."""
        self._withdrawals.publish(String(data=mission))

    def approve(self, yes: bool, shown: Shown) -> None:
        """Answer the plan that was shown."""
        plan = {"mission": shown.mission, "step": shown.step, "plan": shown.text}
        self._ask(self._approval, Approve.Request(yes=yes, **plan), "vlm_node")

    def reply(self, word: str, shown: Shown) -> None:
        """Give the operator's word to the mission that asks, and wait until the VLM node has taken it.

        Raises UsageError if it does not wait for one, or another page's word came first.
        """
        request = MissionRequest(instruction=word, mission=shown.mission, reply=True, step=shown.step)
        with self._replying:
            ack = self._request(request)
        if ack.state == "refused":
            raise UsageError(ack.detail)
        if ack.detail != word:
            raise UsageError(f"another reply came first: {ack.detail[:80]!r}")

    def stop(self) -> str:
        """Engage the e-stop: on the topic, which needs no reply, then by the service, which confirms."""
        self._stops.publish(Bool(data=True))
        return self._ask(self._estop, SetBool.Request(data=True), "locomotion_node")

    def release(self) -> None:
        """Release the e-stop."""
        self._ask(self._estop, SetBool.Request(data=False), "locomotion_node")

    def drive(self, velocity: Velocity) -> None:
        """Publish a person's velocity."""
        twist = Twist()
        twist.linear.x, twist.linear.y, twist.angular.z = velocity
        self._steers.publish(twist)

    def end_drive(self) -> None:
        """Publish standstill; the silence after it ends the steering."""
        self.drive(STILL)

    def _ask(self, client: Any, request: Any, who: str) -> str:
        """Call a service and return its message. Raises RobotUnreachable, or UsageError if it refuses."""
        if not client.wait_for_service(REPLY_S):
            raise RobotUnreachable(f"no {who} answers to {client.srv_name}")
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(REPLY_S):
            client.remove_pending_request(future)
            raise RobotUnreachable(f"{who} has not answered to {client.srv_name}")
        response = future.result()
        if not response.success:
            raise UsageError(str(response.message))
        return str(response.message)

    # Topics ----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Subscribe to what only pages need while there are pages."""
        is_watched = self.state.is_watched
        wanted = {CAMERA: self.video.viewers > 0, ODOMETRY: is_watched, RANGES: is_watched}
        newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        kinds = {
            CAMERA: (CompressedImage, self._on_frame, newest, self._pictures),
            ODOMETRY: (Odometry, self._on_odometry, QoSProfile(depth=1), self._states),
            RANGES: (LaserScan, self._on_ranges, newest, self._states),
        }
        for topic, is_wanted in wanted.items():
            if is_wanted and topic not in self._optional:
                kind, take, qos, group = kinds[topic]
                self._optional[topic] = subscribe(
                    self._node, kind, self._below + topic, take, qos, callback_group=group
                )
            elif not is_wanted and topic in self._optional and isinstance(self._node, ManagedNode):
                # It must go between two spins of the executor.
                self._node.destroy_later(self._optional.pop(topic))

    def _on_frame(self, message: CompressedImage) -> None:
        if not self.video.viewers:
            return
        try:
            self.video.put(from_compressed(message)[0])
        except ImageError as error:
            self.state.on_diagnostics({"console: frames": ("WARN", str(error))})

    def _on_odometry(self, message: Odometry) -> None:
        pose = from_odometry(message)[1]
        twist = message.twist.twist.linear
        self.state.on_body(
            Body(
                pose=(pose.x_m, pose.y_m, pose.yaw_rad),
                speed_mps=math.hypot(twist.x, twist.y),
                battery=self._battery,
                ranges_m=self._ranges_m,
                posture=self._posture,
            )
        )

    def _on_ranges(self, message: LaserScan) -> None:
        length_m, width_m = self.state.facts.hull_m
        self._ranges_m = from_ranges(message, (length_m / 2, width_m / 2))

    def _on_status(self, message: msg.MissionStatus) -> None:
        self.state.on_status(typed.mission_status_from_message(message))

    def _on_partial(self, message: String) -> None:
        self.state.on_partial(PartialAnswer(message.data))

    def _on_answer(self, message: msg.Answer) -> None:
        self._report = typed.answer_from_message(message)
        self._show_answer()

    def _on_trace(self, message: msg.DecodeTrace) -> None:
        self._trace = typed.trace_from_message(message)
        self._show_answer()

    def _show_answer(self) -> None:
        """Show an answer once both its messages are here."""
        report, trace = self._report, self._trace
        if report is None or trace is None:
            return
        if (report.mission, report.number) != (trace.mission, trace.number):
            return
        self._report = None
        self.state.on_figures(AnswerFigures.of_reports(report, trace, pieces_of(report)))

    def _on_plan(self, message: msg.Plan) -> None:
        self.state.on_plan(typed.plan_from_message(message))

    def _on_plan_status(self, message: msg.PlanStatus) -> None:
        self.state.on_executor(typed.plan_status_from_message(message))

    def _on_ack(self, message: msg.MissionAck) -> None:
        ack = typed.ack_from_message(message)
        with self._acked:
            self._acks[ack.mission, ack.reply] = ack
            while len(self._acks) > KEPT_ACKS:
                del self._acks[next(iter(self._acks))]
            self._acked.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        below = self._below.strip("/") or str(self._node.get_namespace()).strip("/")
        found = {}
        for status in message.status:
            if below and not status.name.startswith(f"{below}/"):
                continue
            name = status.name.removeprefix(f"{below}/")
            found[name] = (LEVELS.get(bytes(status.level), "STALE"), str(status.message))
            values = {each.key: each.value for each in status.values}
            if name.endswith(": battery") and values.get("soc_percent", "").isdigit():
                self._battery = int(values["soc_percent"]) / 100
            if name.endswith(": robot"):
                self._posture = values.get("state", "")
        if found:
            self.state.on_diagnostics(found)


def pieces_of(report: AnswerReport) -> tuple[TokenPiece, ...]:
    """Return an answer's tokens with what became of each; one piece where that is not known."""
    if not report.token_ends or len(report.token_ends) != len(report.token_fates):
        return (TokenPiece(report.text, "committed"),)
    begins = (0, *report.token_ends)
    ends = (*report.token_ends[:-1], len(report.text))
    spans = zip(begins, ends, report.token_fates, strict=False)
    return tuple(TokenPiece(report.text[begin:end], FATES[fate]) for begin, end, fate in spans if end > begin)

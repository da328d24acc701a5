"""The operator's side of topics and action, for terminals: hears the nodes; asks, approves, cancels.

Has a ROS context of its own; it acts only while `spin` is called, except for the heartbeat of a mission,
which has a thread. Independent of terminals. The e-stop is in `estop_client`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.action import ActionClient
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vlm_spec_decode.core.errors import RobotUnreachable, VsdError
from vlm_spec_decode.mission.progress import MissionReport
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.mission.state import PartialAnswer, Shown
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED_QUEUE, REQUEST, OwnNode, first_to_find
from vlm_spec_decode_msgs import msg
from vlm_spec_decode_msgs.action import ExecuteInstruction
from vlm_spec_decode_msgs.srv import Approve

TOPICS = ("vlm/answer/typed", "vlm/plan/status", "vlm/ack")
LATCHED_TOPICS = ("vlm/status", "vlm/trace", "vlm/answer/partial")
ACTION_NAME = "vlm/execute"
GOAL_FIELDS = tuple(ExecuteInstruction.Goal.get_fields_and_field_types())
SPIN_S = 0.05
HEARTBEAT_S = 0.1
NOTICE_S = 1.5
"""Seconds of searching after which the user is informed."""

RESEND_S = 0.25
OnReport = Callable[[MissionReport], Any]
"""Called with every report that arrives."""


class Operator:
    """A node in the namespace of the running ones. Close it after use."""

    def __init__(self, domain: int, namespace: str = "", on_report: OnReport | None = None) -> None:
        self.odometry: Odometry | None = None
        self.diagnostics: dict[str, Any] = {}
        self.received_s = time.monotonic()
        """When the VLM node's last message arrived."""
        self._on_report = on_report or (lambda _report: None)
        self._unreadable: set[str] = set()
        self._own = OwnNode(
            "vsd_operator", domain, namespace, start_parameter_services=False, enable_rosout=False
        )
        self._node = node = self._own.node
        self.where = f"on ROS domain {domain} in namespace {node.get_namespace()}"
        """Domain and namespace of this node, for messages."""
        self._action = ActionClient(node, ExecuteInstruction, ACTION_NAME)
        self._goals: list[Any] = []
        self._withdrawals = node.create_publisher(String, "vlm/withdraw", COMMAND)
        self._beats = node.create_publisher(String, "vlm/heartbeat", COMMAND)
        self._requests = node.create_publisher(msg.Mission, "vlm/request", REQUEST)
        self._approval = node.create_client(Approve, "vlm/approve_plan")
        self._cancel = node.create_client(Trigger, "vlm/cancel")
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def listen(self) -> None:
        """Subscribe to all topics of the nodes; `on_report` gets their messages as reports."""
        node = self._node
        for topics, quality in ((TOPICS, COMMAND), (LATCHED_TOPICS, LATCHED_QUEUE)):
            for topic in topics:
                kind = typed.TOPICS.get(topic, String)
                node.create_subscription(kind, topic, self._callback(topic), quality)
        node.create_subscription(Odometry, "odom", self._on_odometry, 5)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def spin(self, duration_s: float = SPIN_S) -> None:
        """Process callbacks for about `duration_s`."""
        self._own.spin(duration_s)

    def finds_node(self) -> bool:
        """Whether there is a VLM node: it publishes acks, serves the action and hears withdrawals."""
        return bool(
            self._node.count_publishers("vlm/ack")
            and self._action.server_is_ready()
            and self._withdrawals.get_subscription_count()
        )

    def send_request(self, request: MissionRequest) -> None:
        """Send a request as a goal; it may be repeated until it is acknowledged, and is carried out once."""
        fields = {name: getattr(request, name) for name in GOAL_FIELDS}
        self._action.send_goal_async(ExecuteInstruction.Goal(**fields)).add_done_callback(self._on_goal)

    def send_reply(self, word: str, shown: Shown) -> bool:
        """Send the operator's word on a question; the ack says `reply`. One that names it may be repeated.

        Returns False, and sends nothing, while nobody listens. Raises InstructionError for what is no word.
        """
        request = MissionRequest(instruction=word, mission=shown.mission, reply=True, step=shown.step)
        if not self._requests.get_subscription_count():
            return False
        self._requests.publish(typed.request_to_message(request))
        return True

    def _on_goal(self, future: Any) -> None:
        goal = future.result()
        if goal is None or not goal.accepted:
            return  # why is on vlm/ack
        self._goals.append(goal)
        goal.get_result_async().add_done_callback(self._on_result)

    def _on_result(self, future: Any) -> None:
        response = future.result()
        if response is not None and response.result.status.state:
            # Its last status arrives as a topic, too; whichever comes first counts.
            self._callback("vlm/execute")(response.result.status)

    def keep_alive(self, mission: str, until_s: float) -> None:
        """Send a mission's heartbeat on a thread from now on, until `close` or until `until_s`."""

        def beat() -> None:
            while not self._ended.is_set() and time.monotonic() < until_s:
                self._beats.publish(String(data=mission))
                self._ended.wait(HEARTBEAT_S)

        self._beating = threading.Thread(target=beat, name="heartbeat", daemon=True)
        self._beating.start()

    def withdraw(self, mission: str) -> None:
        """Request the end of one mission; it may be repeated."""
        goals, self._goals = self._goals, []
        for goal in goals:
            goal.cancel_goal_async()
        if not goals:
            # It was not taken as a goal yet, or cancelling that has not helped.
            self._withdrawals.publish(String(data=mission))

    def cancel(self, timeout_s: float) -> bool:
        """Have the locomotion node drop its plan; return whether it has answered."""
        return self._call(self._cancel, Trigger.Request(), timeout_s) is not None

    def send_approval(self, yes: bool, shown: Shown, timeout_s: float) -> str:
        """Approve or reject the plan that was shown; return the node's message if it cannot be."""
        request = Approve.Request(mission=shown.mission, step=shown.step, plan=shown.text, yes=yes)
        response = self._call(self._approval, request, timeout_s)
        if response is None:
            raise RobotUnreachable("vlm_node does not take the answer")
        return "" if response.success else str(response.message)

    def stop_heartbeat(self) -> None:
        """End the heartbeat. Idempotent."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join(1.0)

    def close(self) -> None:
        """Leave ROS. Idempotent."""
        self.stop_heartbeat()
        self._own.close()

    def _call(self, client: Any, request: Any, timeout_s: float) -> Any | None:
        until_s = time.monotonic() + timeout_s
        while not client.service_is_ready():
            if time.monotonic() > until_s:
                return None
            self.spin(0.01)
        future = client.call_async(request)
        while not future.done():
            if time.monotonic() > until_s:
                return None
            self.spin(0.01)
        return future.result()

    def _callback(self, topic: str) -> Callable[[Any], None]:
        def take(message: Any) -> None:
            if topic != "vlm/plan/status":
                self.received_s = time.monotonic()
            try:
                is_text = isinstance(message, String)
                report = PartialAnswer(message.data) if is_text else typed.from_message(message)
            except (ValueError, VsdError) as error:
                self._warn_unreadable(topic, error)
            else:
                self._on_report(report)

        return take

    def _warn_unreadable(self, topic: str, error: Exception) -> None:
        """Warn once per topic about a message that is not of this package."""
        if topic not in self._unreadable:
            self._unreadable.add(topic)
            text = " ".join(str(error).split())
            sys.stderr.write(f"vsd: ignored a message on {topic}: {type(error).__name__}: {text}\n")

    def _on_odometry(self, message: Odometry) -> None:
        self.odometry = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        below = str(self._node.get_namespace()).strip("/")
        for status in message.status:
            if not below or status.name.startswith(f"{below}/"):
                name = status.name.removeprefix(f"{below}/")
                self.diagnostics[name] = status
                if name.endswith(": cloud"):
                    self.received_s = time.monotonic()


def find_node(
    domain: int,
    namespace: str,
    on_report: OnReport,
    timeout_s: float,
    on_progress: Callable[[str], None] = lambda _text: None,
) -> tuple[Operator, bool]:
    """Return a subscribed operator, and whether a VLM node was found within `timeout_s`.

    `on_progress` gets a sentence if that takes long.
    """
    patient_s = time.monotonic() + NOTICE_S

    def has_found(operator: Operator) -> bool:
        nonlocal patient_s
        if time.monotonic() > patient_s:
            patient_s = float("inf")
            on_progress(f"looking for a vlm_node {operator.where}, for {timeout_s:g} s at most")
        return operator.finds_node()

    operator, is_found = first_to_find(lambda: Operator(domain, namespace, on_report), has_found, timeout_s)
    operator.received_s = time.monotonic()
    operator.listen()
    return operator, is_found

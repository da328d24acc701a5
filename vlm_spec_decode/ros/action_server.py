"""A mission as a ROS 2 action: the goal is the instruction, feedback the answer, cancel withdraws it.

No action type with a sentence comes with ROS 2, and a Python package cannot make one, so a parameter names
the type: any whose goal has a string field. Further fields are filled if their kind fits: a string of
feedback with each new state, a bool and a string of the result. Uses the VLM node's topics like any other
client: a new goal supersedes the mission under way, and the e-stop ends it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from std_msgs.msg import String

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ConfigError, InstructionError
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.mission.state import ENDED, MissionStatus
from vlm_spec_decode.ros.qos import COMMAND, HEARD, REQUEST
from vlm_spec_decode.ros.subscriptions import listen

PARAMETER = Setting(
    "action_type", "", "Also serve missions as an action of this type, such as my_msgs/action/Say; empty: no."
)
NAME = "vlm/execute"
LOOK_S = 0.05


def action_type(text: str) -> Any:
    """Return the class of `package/action/Type`. Raises ConfigError if it is not there or has no sentence."""
    package, _, name = text.partition("/action/")
    try:
        kind = getattr(import_module(f"{package}.action"), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"action_type: {text!r} is not installed ({error})") from error
    if not field_of(kind.Goal, "string"):
        raise ConfigError(f"action_type: the goal of {text} has no string for the instruction")
    return kind


def field_of(message: Any, kind: str) -> str:
    """Return the first field of a type, or nothing."""
    fields = message.get_fields_and_field_types()
    return next((name for name, found in fields.items() if found == kind), "")


class MissionActionServer:
    """Serves `vlm/execute`."""

    def __init__(self, node: Node, kind: Any, sentence: Callable[[Any], str] | None = None) -> None:
        """`sentence` reads the instruction out of a goal; by default its first string."""
        self._node, self._kind = node, kind
        group = ReentrantCallbackGroup()
        self._requests = node.create_publisher(String, "vlm/request", REQUEST)
        self._withdrawals = node.create_publisher(String, "vlm/withdraw", COMMAND)
        listen(node, String, "vlm/status", self._hear, HEARD, callback_group=group)
        self._sentence = sentence or (lambda goal: str(getattr(goal, field_of(kind.Goal, "string"))))
        self._heard: dict[str, SimpleQueue[MissionStatus]] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._closed = threading.Event()
        self._server = ActionServer(
            node,
            kind,
            NAME,
            self._execute,
            callback_group=group,
            goal_callback=self._judge,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    def _hear(self, message: String) -> None:
        status = MissionStatus(**json.loads(message.data))
        with self._lock:
            heard = self._heard.get(status.mission)
        if heard is not None:
            heard.put(status)

    def close(self) -> None:
        """End every goal that still waits; the server goes with the node's other entities. Idempotent."""
        self._closed.set()

    def _judge(self, goal: Any) -> Any:
        try:
            MissionRequest(instruction=self._sentence(goal))
        except InstructionError as error:
            self._node.get_logger().warning(f"goal refused: {error}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _execute(self, goal: Any) -> Any:
        heard: SimpleQueue[MissionStatus] = SimpleQueue()
        with self._lock:
            self._count += 1
            mission = f"goal-{self._node.get_clock().now().nanoseconds:x}-{self._count}"
            self._heard[mission] = heard
        self._requests.publish(
            String(data=MissionRequest(instruction=self._sentence(goal.request), mission=mission).to_json())
        )
        try:
            status = self._follow(goal, mission, heard)
        finally:
            with self._lock:
                del self._heard[mission]
        if status.state == "done":
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        said = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
        return self._filled(self._kind.Result, said, status.state == "done")

    def _follow(self, goal: Any, mission: str, heard: SimpleQueue[MissionStatus]) -> MissionStatus:
        is_withdrawn = False
        while not self._closed.is_set():
            if goal.is_cancel_requested and not is_withdrawn:
                is_withdrawn = True
                self._withdrawals.publish(String(data=mission))
            try:
                status = heard.get(timeout=LOOK_S)
            except Empty:
                continue
            if status.state in ENDED:
                return status
            said = ": ".join(part for part in (status.state, status.detail) if part)
            goal.publish_feedback(self._filled(self._kind.Feedback, said, False))
        return MissionStatus(state="cancelled", mission=mission, detail="the node ends")

    @staticmethod
    def _filled(kind: Any, said: str, good: bool) -> Any:
        message = kind()
        for field, value in ((field_of(kind, "string"), said), (field_of(kind, "boolean"), good)):
            if field:
                setattr(message, field, value)
        return message

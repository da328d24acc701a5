"""The ROS interface of a mission: the VLM node's topics, and a ROS 2 action.

`VlmPublishers` has the publishers, the plan and its heartbeat, and the last status.

In the action, the goal is the instruction, the feedback is the state, and cancel withdraws the mission. ROS 2
has no action type with a text, and a Python package cannot define one, so a parameter names the type: any
whose goal has a string field. Further fields are filled if their type fits: a string of feedback with each
new state, a bool and a string of the result. Uses the VLM node's topics like any other client: a new goal
supersedes the mission under way, and the e-stop ends it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from std_msgs.msg import String

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ConfigError, InstructionError
from vlm_spec_decode.mission.queue import Ack, MissionRequest
from vlm_spec_decode.mission.service import PlanHeartbeat
from vlm_spec_decode.mission.state import END_STATES, Answer, MissionStatus, PartialAnswer
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import ClockConverter
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED, LATCHED_QUEUE, REQUEST, STREAMED
from vlm_spec_decode.ros.subscriptions import fault_lines, subscribe


class VlmPublishers:
    """Publishes.

    `repeat_plan` and `send_empty_plan` are safe for any thread, the rest is for one callback group.
    """

    def __init__(self, node: Node, stamps: ClockConverter) -> None:
        self._node = node
        self._stamps = stamps
        self._last: Answer | None = None
        self.shown = MissionStatus(state="connecting")
        """The newest status of the mission in progress, or of the link."""
        self._answers = node.create_publisher(String, "vlm/answer", COMMAND)
        self._partials = node.create_publisher(String, "vlm/answer/partial", STREAMED)
        self._plans = node.create_publisher(String, "vlm/plan", COMMAND)
        heartbeat = PlanHeartbeat(self._send, stamps.ros_now_s)
        self.send_plan, self.repeat_plan, self.end_plan = (
            heartbeat.send_plan,
            heartbeat.repeat_plan,
            heartbeat.end_plan,
        )
        self.send_empty_plan = heartbeat.send_empty_plan
        self._traces = node.create_publisher(String, "vlm/trace", LATCHED)
        self._runs = node.create_publisher(String, "vlm/run", LATCHED)
        self._statuses = node.create_publisher(String, "vlm/status", LATCHED)
        self._acks = node.create_publisher(String, "vlm/ack", COMMAND)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def acknowledge(self, ack: Ack) -> None:
        """Publish the reply to a request or a heartbeat."""
        self._acks.publish(String(data=ack.to_json()))

    def _send(self, plan: Plan) -> None:
        self._plans.publish(String(data=plan.to_json()))

    def publish_partial(self, report: PartialAnswer) -> None:
        """Publish the committed text so far."""
        self._partials.publish(String(data=report.text))

    def publish_answer(self, report: Answer) -> None:
        """Publish a finished answer and its figures."""
        self._last = report
        self._answers.publish(String(data=report.to_json()))
        self._traces.publish(String(data=report.trace_json()))

    def publish_run(self, facts: str) -> None:
        """Publish the settings and models that decide the tokens from now on."""
        self._runs.publish(String(data=facts))

    def publish_status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Publish a status; `aside` for one that is not about the mission in progress."""
        if not aside:
            self.shown = status
        self._statuses.publish(String(data=status.to_json()))
        say = self._node.get_logger()
        text = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
        say.warning(text) if status.reason else say.info(text)

    def diagnose(self, *, linked: bool, missions: int, bad_frames: int, why_bad: str = "") -> None:
        """Publish diagnostics; `why_bad` is the fault of the last bad frame."""
        values = {"state": self.shown.state, "missions": str(missions)}
        if self._last is not None:
            result = self._last.result
            values |= {
                "strategy": result.strategy,
                "acceptance_rate": f"{result.acceptance_rate:.3f}",
                "last_answer_s": f"{result.total_s:.3f}",
                "uplink_bytes": str(result.usage.uplink_bytes),
            }
        name = diagnostics.name_of(self._node)
        level = diagnostics.OK if linked else diagnostics.ERROR
        message = "connected" if linked else self.shown.detail or "connecting"
        lines = [diagnostics.Health(f"{name}: cloud", level, message, values)]
        if bad_frames or why_bad:
            frames = {"dropped": str(bad_frames), "last": why_bad}
            lines.append(diagnostics.Health(f"{name}: frames", diagnostics.WARN, "bad frames", frames))
        lines += fault_lines(self._node, name)
        self._diagnostics.publish(diagnostics.array(lines, self._stamps.ros_now_s(), "go2"))


ACTION_PARAMETER = Setting(
    "action_type", "", "Also serve missions as an action of this type, such as my_msgs/action/Say; empty: no."
)
ACTION_NAME = "vlm/execute"
LOOK_S = 0.05


def action_type(text: str) -> Any:
    """Return the class of `package/action/Type`. Raises ConfigError if it is missing or has no text field."""
    package, _, name = text.partition("/action/")
    try:
        kind = getattr(import_module(f"{package}.action"), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"action_type: {text!r} is not installed ({error})") from error
    if not field_of(kind.Goal, "string"):
        raise ConfigError(f"action_type: the goal of {text} has no string for the instruction")
    return kind


def field_of(message: Any, kind: str) -> str:
    """Return the name of the first field of a type, or ""."""
    fields = message.get_fields_and_field_types()
    return next((name for name, found in fields.items() if found == kind), "")


class MissionActionServer:
    """Serves `vlm/execute`."""

    def __init__(self, node: Node, kind: Any, sentence: Callable[[Any], str] | None = None) -> None:
        """`sentence` reads the instruction from a goal; by default its first string."""
        self._node, self._kind = node, kind
        group = ReentrantCallbackGroup()
        self._requests = node.create_publisher(String, "vlm/request", REQUEST)
        self._withdrawals = node.create_publisher(String, "vlm/withdraw", COMMAND)
        subscribe(node, String, "vlm/status", self._on_status, LATCHED_QUEUE, callback_group=group)
        self._sentence = sentence or (lambda goal: str(getattr(goal, field_of(kind.Goal, "string"))))
        self._statuses: dict[str, SimpleQueue[MissionStatus]] = {}
        self._lock = threading.Lock()
        self._count = 0
        self._closed = threading.Event()
        self._server = ActionServer(
            node,
            kind,
            ACTION_NAME,
            self._execute,
            callback_group=group,
            goal_callback=self._check_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    def _on_status(self, message: String) -> None:
        status = MissionStatus(**json.loads(message.data))
        with self._lock:
            statuses = self._statuses.get(status.mission)
        if statuses is not None:
            statuses.put(status)

    def close(self) -> None:
        """End every goal that still waits. The server is freed with the node's entities. Idempotent."""
        self._closed.set()

    def _check_goal(self, goal: Any) -> Any:
        try:
            MissionRequest(instruction=self._sentence(goal))
        except InstructionError as error:
            self._node.get_logger().warning(f"goal refused: {error}")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _execute(self, goal: Any) -> Any:
        statuses: SimpleQueue[MissionStatus] = SimpleQueue()
        with self._lock:
            self._count += 1
            mission = f"goal-{self._node.get_clock().now().nanoseconds:x}-{self._count}"
            self._statuses[mission] = statuses
        self._requests.publish(
            String(data=MissionRequest(instruction=self._sentence(goal.request), mission=mission).to_json())
        )
        try:
            status = self._follow(goal, mission, statuses)
        finally:
            with self._lock:
                del self._statuses[mission]
        if status.state == "done":
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        text = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
        return self._filled(self._kind.Result, text, status.state == "done")

    def _follow(self, goal: Any, mission: str, statuses: SimpleQueue[MissionStatus]) -> MissionStatus:
        is_withdrawn = False
        while not self._closed.is_set():
            if goal.is_cancel_requested and not is_withdrawn:
                is_withdrawn = True
                self._withdrawals.publish(String(data=mission))
            try:
                status = statuses.get(timeout=LOOK_S)
            except Empty:
                continue
            if status.state in END_STATES:
                return status
            text = ": ".join(part for part in (status.state, status.detail) if part)
            goal.publish_feedback(self._filled(self._kind.Feedback, text, False))
        return MissionStatus(state="cancelled", mission=mission, detail="the node ends")

    @staticmethod
    def _filled(kind: Any, text: str, good: bool) -> Any:
        message = kind()
        for field, value in ((field_of(kind, "string"), text), (field_of(kind, "boolean"), good)):
            if field:
                setattr(message, field, value)
        return message

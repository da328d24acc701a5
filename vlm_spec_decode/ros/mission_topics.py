"""The topics of a mission: what the VLM node publishes.

`VlmPublishers` has the publishers, the plan and its heartbeat, and the last status. `vlm/answer` stays JSON
in a String and `vlm/answer/partial` plain text, which people read with `ros2 topic echo`; `vlm/run` is JSON,
because its keys are those of whatever settings and models are in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from std_msgs.msg import String

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.mission.queue import Ack
from vlm_spec_decode.mission.reports import AnswerReport
from vlm_spec_decode.mission.service import PlanHeartbeat
from vlm_spec_decode.mission.state import Answer, MissionStatus, PartialAnswer
from vlm_spec_decode.ros import diagnostics, typed
from vlm_spec_decode.ros.convert import ClockConverter
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED, STREAMED
from vlm_spec_decode.ros.subscriptions import fault_lines
from vlm_spec_decode_msgs import msg


class MissionListener(Protocol):
    """Is told what is published about missions, on the thread that publishes it."""

    def on_status(self, status: MissionStatus) -> None:
        """Take a status, of any mission."""
        ...

    def on_text(self, mission: str, text: str) -> None:
        """Take the committed text of a mission's present answer."""
        ...

    def on_plan(self, plan: Plan) -> None:
        """Take a plan that has changed."""
        ...


class VlmPublishers:
    """Publishes.

    `repeat_plan` and `send_empty_plan` are safe for any thread, the rest is for one callback group.
    """

    def __init__(self, node: Node, stamps: ClockConverter) -> None:
        self._node = node
        self._stamps = stamps
        self._last: Answer | None = None
        self.listeners: list[MissionListener] = []
        """They are told what is published."""
        self.on_plan_in_progress: Callable[[bool], None] = lambda _: None
        """Is told, on any thread, whether there is a plan to be repeated from now on."""
        self.shown = MissionStatus(state="connecting")
        """The newest status of the mission in progress, or of the link."""
        self._answers = node.create_publisher(String, "vlm/answer", COMMAND)
        self._typed_answers = node.create_publisher(msg.Answer, "vlm/answer/typed", COMMAND)
        self._partials = node.create_publisher(String, "vlm/answer/partial", STREAMED)
        self._plans = node.create_publisher(msg.Plan, "vlm/plan", COMMAND)
        heartbeat = PlanHeartbeat(self._send, stamps.ros_now_s, self._on_plan_in_progress)
        self._heartbeat = heartbeat
        self.repeat_plan, self.end_plan = heartbeat.repeat_plan, heartbeat.end_plan
        self.send_empty_plan = heartbeat.send_empty_plan
        self._traces = node.create_publisher(msg.DecodeTrace, "vlm/trace", LATCHED)
        self._runs = node.create_publisher(String, "vlm/run", LATCHED)
        self._statuses = node.create_publisher(msg.MissionStatus, "vlm/status", LATCHED)
        self._acks = node.create_publisher(msg.MissionAck, "vlm/ack", COMMAND)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def send_plan(self, plan: Plan) -> None:
        """Send a plan and store it as the heartbeat."""
        self._heartbeat.send_plan(plan)
        for listener in self.listeners:
            listener.on_plan(plan)

    def acknowledge(self, ack: Ack) -> None:
        """Publish the reply to a request or a heartbeat."""
        self._acks.publish(typed.ack_to_message(ack))

    def _on_plan_in_progress(self, is_there: bool) -> None:
        self.on_plan_in_progress(is_there)

    def _send(self, plan: Plan) -> None:
        self._plans.publish(typed.plan_to_message(plan))

    def publish_partial(self, report: PartialAnswer) -> None:
        """Publish the committed text so far."""
        self._partials.publish(String(data=report.text))
        shown = self.shown
        so_far = AnswerReport(mission=shown.mission, number=shown.step, text=report.text, final=False)
        self._typed_answers.publish(typed.answer_to_message(so_far))
        for listener in self.listeners:
            listener.on_text(self.shown.mission, report.text)

    def publish_answer(self, report: Answer) -> None:
        """Publish a finished answer and its figures."""
        self._last = report
        answer = report.report()
        self._answers.publish(String(data=answer.to_json()))
        self._typed_answers.publish(typed.answer_to_message(answer))
        self._traces.publish(typed.trace_to_message(report.trace(), self._stamps.ros_now_s()))

    def publish_run(self, facts: str) -> None:
        """Publish the settings and models that decide the tokens from now on."""
        self._runs.publish(String(data=facts))

    def publish_status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Publish a status; `aside` for one that is not about the mission in progress."""
        if not aside:
            self.shown = status
        self._statuses.publish(typed.mission_status_to_message(status, self._stamps.ros_now_s()))
        for listener in self.listeners:
            listener.on_status(status)
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

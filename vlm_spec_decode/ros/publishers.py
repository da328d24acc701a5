"""The VLM node's publishers, the plan that is its heartbeat, and its last status."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from std_msgs.msg import String

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.mission.queue import Ack
from vlm_spec_decode.mission.service import PlanHeartbeat
from vlm_spec_decode.mission.state import Answer, MissionStatus, PartialAnswer
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.qos import COMMAND, LATCHED, STREAMED
from vlm_spec_decode.ros.stamps import ClockConverter
from vlm_spec_decode.ros.subscriptions import fault_lines


class VlmPublishers:
    """Publishes. `beat` and `halt` may be called from any thread, the rest from one callback group."""

    def __init__(self, node: Node, stamps: ClockConverter) -> None:
        self._node = node
        self._stamps = stamps
        self._last: Answer | None = None
        self.shown = MissionStatus(state="connecting")
        """The newest status of the mission under way, or of the link."""
        self._answers = node.create_publisher(String, "vlm/answer", COMMAND)
        self._partials = node.create_publisher(String, "vlm/answer/partial", STREAMED)
        self._plans = node.create_publisher(String, "vlm/plan", COMMAND)
        heartbeat = PlanHeartbeat(self._send, stamps.ros_now_s)
        self.plan, self.beat, self.rest = heartbeat.plan, heartbeat.beat, heartbeat.rest
        self.halt = heartbeat.halt
        self._traces = node.create_publisher(String, "vlm/trace", LATCHED)
        self._runs = node.create_publisher(String, "vlm/run", LATCHED)
        self._statuses = node.create_publisher(String, "vlm/status", LATCHED)
        self._acks = node.create_publisher(String, "vlm/ack", COMMAND)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def acknowledge(self, ack: Ack) -> None:
        """Say what became of a request or a heartbeat."""
        self._acks.publish(String(data=ack.to_json()))

    def _send(self, plan: Plan) -> None:
        self._plans.publish(String(data=plan.to_json()))

    def partial(self, report: PartialAnswer) -> None:
        """Publish the committed text so far."""
        self._partials.publish(String(data=report.text))

    def answer(self, report: Answer) -> None:
        """Publish a finished answer and its figures."""
        self._last = report
        self._answers.publish(String(data=report.to_json()))
        self._traces.publish(String(data=report.trace_json()))

    def run(self, facts: str) -> None:
        """Publish what decides the tokens from now on."""
        self._runs.publish(String(data=facts))

    def status(self, status: MissionStatus, *, aside: bool = False) -> None:
        """Publish a status; `aside` for one that is not about the mission under way."""
        if not aside:
            self.shown = status
        self._statuses.publish(String(data=status.to_json()))
        say = self._node.get_logger()
        text = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
        say.warning(text) if status.reason else say.info(text)

    def diagnose(self, *, linked: bool, missions: int, bad_frames: int, why_bad: str = "") -> None:
        """Publish diagnostics; `why_bad` is what was wrong with the last bad frame."""
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
        said = "connected" if linked else self.shown.detail or "connecting"
        lines = [diagnostics.Health(f"{name}: cloud", level, said, values)]
        if bad_frames or why_bad:
            frames = {"dropped": str(bad_frames), "last": why_bad}
            lines.append(diagnostics.Health(f"{name}: frames", diagnostics.WARN, "bad frames", frames))
        lines += fault_lines(self._node, name)
        self._diagnostics.publish(diagnostics.array(lines, self._stamps.ros_now_s(), "go2"))

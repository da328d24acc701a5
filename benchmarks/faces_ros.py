"""The faces of ROS 2: how long a goal of the action takes to its first feedback, beside the string topic.

A vlm_node in a process of its own, with both models; a client here. Both ways begin a mission, and the first
thing that the node says of it is taken: the feedback of the goal, and `vlm/status` for the topic. The two
ways take turns. Discovery is over before, and no camera is there, so no answer is decoded.
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from figures import Figure
from lib.ros_node import BenchmarkNode
from rclpy.action import ActionClient
from robot_rig import until
from std_msgs.msg import String

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.process_stack import Processes
from vlm_spec_decode.ros.middleware import LATCHED_QUEUE
from vlm_spec_decode_msgs import msg
from vlm_spec_decode_msgs.action import ExecuteInstruction

START_S, REPLY_S, PAUSE_S = 120.0, 10.0, 0.05
BAR_S = 0.05
NODE = "import sys; from vlm_spec_decode.ros.entry_points import vlm_main as m; sys.exit(m())"


class Client(BenchmarkNode):
    """Gives instructions by topic and by action, and takes the time until the first word about each."""

    def __init__(self) -> None:
        super().__init__("faces", threads=2)
        self._voice = self.node.create_publisher(String, "vlm/instruction", 10)
        self._action = ActionClient(self.node, ExecuteInstruction, "vlm/execute")
        self._first: dict[str, float] = {}
        self._heard = threading.Event()
        self._wanted = ""
        self.states: list[int] = []
        self.node.create_subscription(msg.MissionStatus, "vlm/status", self._on_status, LATCHED_QUEUE)
        self.start(lambda: None)

    def is_ready(self) -> bool:
        """Whether the node has its cloud, and both ways lead to it."""
        return (
            msg.MissionStatus.READY in self.states
            and self._action.server_is_ready()
            and self._voice.get_subscription_count() > 0
        )

    def by_topic(self, number: int) -> float:
        """Return the seconds from an instruction on the topic to the first status about it."""
        return self._spent(f"topic {number}", lambda text: self._voice.publish(String(data=text)))

    def by_action(self, number: int) -> float:
        """Return the seconds from a goal to its first feedback."""

        def send(text: str) -> None:
            self._action.send_goal_async(ExecuteInstruction.Goal(instruction=text), self._on_feedback)

        return self._spent(f"goal {number}", send)

    def _spent(self, text: str, send: Any) -> float:
        self._wanted = text
        self._heard.clear()
        began_s = time.monotonic()
        send(text)
        if not self._heard.wait(REPLY_S):
            raise SystemExit(f"{text}: nothing said within {REPLY_S:.0f} s")
        return self._first[text] - began_s

    def _on_status(self, message: Any) -> None:
        self.states.append(message.state)
        if self._wanted.startswith("topic"):
            self._note(message)

    def _on_feedback(self, message: Any) -> None:
        self._note(message.feedback.status)

    def _note(self, status: Any) -> None:
        if status.instruction == self._wanted and status.instruction not in self._first:
            self._first[status.instruction] = time.monotonic()
            self._heard.set()


def figures(out: Path, *, quick: bool) -> list[Figure]:
    """Return the figures of ROS 2."""
    count = 40 if quick else 200
    spent: dict[str, list[float]] = {"topic": [], "action": []}
    with Processes(out / "logs", WallClock(), {}) as processes:
        processes.start("vlm_node", ["-c", NODE, "--ros-args", "-p", "frame_timeout_s:=60.0"])
        client = Client()
        try:
            until(client.is_ready, START_S, "a vlm_node that is ready")
            for number in range(count + 5):
                for way, ask in (("topic", client.by_topic), ("action", client.by_action)):
                    seconds = ask(number)
                    if number >= 5:
                        spent[way].append(seconds)
                    time.sleep(PAUSE_S)
        finally:
            client.close()
            processes.stop(["vlm_node"])
    p95 = {way: sorted(found)[math.ceil(0.95 * count) - 1] for way, found in spent.items()}
    middle = {way: 1000 * statistics.median(found) for way, found in spent.items()}
    note = (
        f"s, p95 of {count}: goal to feedback {1000 * p95['action']:.1f} ms, topic to status "
        f"{1000 * p95['topic']:.1f} ms; medians {middle['action']:.1f} and {middle['topic']:.1f} ms"
    )
    return [Figure("action_more_than_topic_p95", p95["action"] - p95["topic"], BAR_S, "at most", note)]


if __name__ == "__main__":
    sys.exit("run: python benchmarks/faces.py --only ros")

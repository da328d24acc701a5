"""The lease's board as a ROS topic: for executors of one namespace, and for robots reached over ROS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from std_msgs.msg import String

from vlm_spec_decode.ros.qos import COMMAND
from vlm_spec_decode.ros.subscriptions import listen

TOPIC = "vlm/executor"


class TopicBoard:
    """`robot.lease.Board` over a topic of String."""

    def __init__(self, node: Node, topic: str = TOPIC) -> None:
        self._node, self._topic = node, topic
        self._publisher: Any = None
        self._hear: Callable[[str], None] | None = None

    def open(self, hear: Callable[[str], None]) -> None:
        """See `robot.lease.Board`; once opened it stays until its node's part is freed."""
        self._hear = hear
        if self._publisher is None:
            self._publisher = self._node.create_publisher(String, self._topic, COMMAND)
            group = MutuallyExclusiveCallbackGroup()
            listen(self._node, String, self._topic, self._take, COMMAND, callback_group=group)

    def write(self, text: str) -> None:
        """See `robot.lease.Board`."""
        if self._publisher is not None and self._hear is not None:
            try:
                self._publisher.publish(String(data=text))
            except (rclpy_implementation.RCLError, InvalidHandle):
                return  # the node is being taken down

    def poll(self) -> None:
        """Do nothing: the node's executor reads."""

    def close(self) -> None:
        """See `robot.lease.Board`; the node frees the topic."""
        self._hear = None

    def _take(self, message: String) -> None:
        if self._hear is not None:
            self._hear(message.data)

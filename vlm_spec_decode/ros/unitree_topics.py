"""A Go2 over ROS 2 topics with Unitree's own messages, where those are installed: no SDK in this process.

The robot's DDS services are ROS 2 topics by other names (`rt/api/sport/request` is `/api/sport/request`),
so a node whose middleware shares the robot's network can publish `unitree_api/Request` to it and subscribe
to `unitree_go/SportModeState`. The messages come with Unitree's `unitree_ros2` workspace; they are on no
package index. The driver on top is `robot.go2.driver.Go2Driver`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.robot.go2.link import ApiCall, PendingReplies, RobotLink, SportCalls, StateMonitor
from vlm_spec_decode.ros.subscriptions import subscribe

REQUEST_TOPIC, RESPONSE_TOPIC = "/api/sport/request", "/api/sport/response"
DEPTH = 10


@dataclass(frozen=True, slots=True)
class UnitreeMessages:
    """The four message types, as their packages define them."""

    request: Any
    response: Any
    sport_state: Any
    low_state: Any


def find_messages() -> UnitreeMessages:
    """Return the installed types. Raises ConfigError saying what to build and source."""
    try:
        api, go = importlib.import_module("unitree_api.msg"), importlib.import_module("unitree_go.msg")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"driver ros2 needs the message packages unitree_api and unitree_go ({error.name} is missing): "
            "build Unitree's unitree_ros2 workspace and source it before this one, or use driver sdk"
        ) from error
    return UnitreeMessages(api.Request, api.Response, go.SportModeState, go.LowState)


class SportTopics:
    """Publishes requests, receives replies and states.

    The node's executor needs a free thread for replies.
    """

    def __init__(self, node: Node, messages: UnitreeMessages, config: Go2Config, clock: Clock) -> None:
        self._node = node
        self._request = messages.request
        self.replies = PendingReplies(clock)
        self.feed = StateMonitor(clock, _ros_name(config.state_topic), config.stale_after_s, config.states)
        self._publisher = node.create_publisher(messages.request, REQUEST_TOPIC, DEPTH)
        # Replies arrive while another callback waits for them, so they need another callback group.
        group = ReentrantCallbackGroup()
        self._subscriptions = [
            subscribe(node, kind, topic, take, DEPTH, callback_group=group)
            for kind, topic, take in (
                (messages.response, RESPONSE_TOPIC, self._on_response),
                (messages.sport_state, _ros_name(config.state_topic), self.feed.on_sport_state),
                (messages.low_state, _ros_name(config.low_topic), self.feed.on_low_state),
            )
        ]

    def send(self, request_id: int, api: ApiCall, parameter: str) -> bool:
        """See `robot.go2.link.RequestCarrier`."""
        if not self._publisher.get_subscription_count():
            return False
        message = self._request()
        message.header.identity.id = request_id
        message.header.identity.api_id = api.id
        message.header.policy.noreply = not api.is_answered
        message.parameter = parameter
        self._publisher.publish(message)
        return True

    def close(self) -> None:
        """Leave the topics. Idempotent."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
            if not self._subscriptions:
                self._node.destroy_publisher(self._publisher)

    def _on_response(self, message: Any) -> None:
        self.replies.put(message.header.identity.id, message.header.status.code)


class RosConnector:
    """The `connect` argument of `Go2Driver`: makes a link over this node's topics."""

    def __init__(self, node: Node, messages: UnitreeMessages | None = None) -> None:
        """Raise ConfigError at once if the messages are not installed."""
        self._node = node
        self._messages = messages or find_messages()

    def __call__(self, config: Go2Config, clock: Clock) -> RobotLink:
        """Return a link. A missing robot is noticed later. The middleware sets interface and domain."""
        topics = SportTopics(self._node, self._messages, config, clock)
        posture = SportCalls(topics, topics.replies, config.call_timeout_s)
        urgent = SportCalls(topics, topics.replies, config.stop_timeout_s)
        return RobotLink(topics.feed, posture, urgent, urgent, topics.close)


def _ros_name(dds_topic: str) -> str:
    return "/" + dds_topic.removeprefix("rt/")

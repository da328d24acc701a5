"""Operator inputs beside language: a stop on a topic, a joystick's button, a dead man's switch, a velocity.

Each is passed to the executor; nothing here decides what is safe, and nothing here releases a stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from geometry_msgs.msg import Twist, TwistStamped
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool

from vlm_spec_decode.control.motion_profile import STILL
from vlm_spec_decode.control.robot_supervisor import RobotSupervisor
from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.ros.convert import STEADY
from vlm_spec_decode.ros.middleware import COMMAND
from vlm_spec_decode.ros.params import Parameters
from vlm_spec_decode.ros.subscriptions import guarded_timer, subscribe

CHECK_S = 0.02

PARAMETERS = (
    Setting("teleop_topic", "cmd_vel_teleop", "Velocities of a person, which go before language."),
    Setting("teleop_stamped", False, "Whether they are TwistStamped instead of Twist."),
    Setting("joy_topic", "joy", "Joystick (sensor_msgs/Joy) with the e-stop button."),
    Setting("estop_button", -1, "Index of the button that engages the e-stop; -1: none.", -1, 63),
    Setting(
        "deadman_timeout_s",
        0.0,
        "Once e_stop/request is heard, silence of it that engages the e-stop; 0: none.",
        0.0,
        60.0,
    ),
)


class OperatorInputs:
    """Subscriptions of one node. `engage` is called from any of them and must stop the robot."""

    def __init__(
        self, node: Node, supervisor: RobotSupervisor, clock: Clock, engage: Callable[[str], None]
    ) -> None:
        values = Parameters(node, PARAMETERS)
        self._supervisor, self._clock, self._engage = supervisor, clock, engage
        self._button = values.integer("estop_button")
        self._deadman_s = values.real("deadman_timeout_s")
        self._alive_s: float | None = None
        self.dropped = self.unusable = 0
        stops, steers = ReentrantCallbackGroup(), MutuallyExclusiveCallbackGroup()
        subscribe(node, Bool, "e_stop/request", self._on_request, COMMAND, callback_group=stops)
        if self._button >= 0:
            topic = values.text("joy_topic")
            subscribe(node, Joy, topic, self._on_joy, 5, callback_group=stops)
        topic = values.text("teleop_topic")
        if values.flag("teleop_stamped"):
            subscribe(node, TwistStamped, topic, self._on_stamped, 1, callback_group=steers)
        else:
            subscribe(node, Twist, topic, self._on_twist, 1, callback_group=steers)
        if self._deadman_s > 0:
            node.create_timer(
                CHECK_S, guarded_timer(node, "dead man's switch", self._check_deadman), stops, clock=STEADY
            )

    def _on_request(self, message: Bool) -> None:
        self._alive_s = self._clock.now()
        if message.data:
            self._engage("e_stop/request")

    def _on_joy(self, message: Joy) -> None:
        if self._button < len(message.buttons) and message.buttons[self._button]:
            self._engage("joystick button")

    def _on_stamped(self, message: TwistStamped) -> None:
        self._on_twist(message.twist)

    def _on_twist(self, message: Twist) -> None:
        velocity = (message.linear.x, message.linear.y, message.angular.z)
        if not all(map(math.isfinite, velocity)):
            # A person steers, but the message is unusable: the robot stands, as for a zero velocity.
            self.unusable += 1
            velocity = STILL
        if not self._supervisor.steer(velocity):
            self.dropped += 1

    def _check_deadman(self) -> None:
        """Engage the e-stop when the messages of the dead man's switch stop."""
        if self._alive_s is not None and self._clock.now() - self._alive_s > self._deadman_s:
            self._alive_s = None
            self._engage(f"dead man's switch: {self._deadman_s:g} s of silence")

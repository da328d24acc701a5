"""The part of hardening_sensors.py with a real node process: a base behind cmd_vel, and all its topics."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hardening_messages as messages
from figures import Figure
from geometry_msgs.msg import Twist
from hardening_messages import Case
from lib.ros_node import BenchmarkNode
from nav_msgs.msg import Odometry
from rclpy.serialization import serialize_message
from robot_rig import until
from sensor_msgs.msg import BatteryState, Image, LaserScan, PointCloud2

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.demo.process_stack import Processes
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import to_quaternion
from vlm_spec_decode_msgs import msg

START_S = 120.0
STOP_S = 1.8
"""From the first degenerate message until no velocity may be sent, with a margin for a busy computer."""
KINDS: dict[str, tuple[Any, Callable[[], Iterator[Case]], Any]] = {
    "scan": (LaserScan, messages.bad_scans, messages.scan([5.0] * messages.BEAMS)),
    "points": (PointCloud2, messages.bad_clouds, messages.cloud(messages.far_points())),
    "depth": (Image, messages.bad_depths, messages.depth(5.0)),
}
LIMITS = "max_state_age_s: 1.0\nwatchdog_s: 1.0\n"


class Base(BenchmarkNode):
    """A base on wheels, its sensors, and its source of plans; `overrides` replaces a topic's message."""

    def __init__(self) -> None:
        super().__init__("base", threads=2)
        node = self.node
        self.overrides: dict[str, Callable[[], Any]] = {}
        self.plan: Plan | None = None
        self._pose, self._wanted, self._at_s = (0.0, 0.0), (0.0, 0.0, 0.0), time.monotonic()
        self.moved_s = -math.inf
        kinds = {name: kind for name, (kind, _, _) in KINDS.items()}
        kinds |= {"odom": Odometry, "battery": BatteryState, "cmd_vel_teleop": Twist, "vlm/plan": msg.Plan}
        self._publishers = {name: node.create_publisher(kind, name, 5) for name, kind in kinds.items()}
        node.create_subscription(Twist, "cmd_vel", self._drive, 10)
        self.start(self._publish_sensors)

    @property
    def speed(self) -> float:
        """The velocity that was commanded last."""
        return max(map(abs, self._wanted))

    def listeners(self) -> int:
        """Return how many of its topics have a subscriber."""
        return sum(publisher.get_subscription_count() > 0 for publisher in self._publishers.values())

    def _drive(self, message: Twist) -> None:
        self._wanted = (message.linear.x, message.linear.y, message.angular.z)
        if any(self._wanted):
            self.moved_s = time.monotonic()

    def _publish_sensors(self) -> None:
        for count in itertools.count():
            if self._ended.wait(0.02):
                return
            now_s = time.monotonic()
            x, y = self._pose
            step_s, self._at_s = now_s - self._at_s, now_s
            self._pose = (x + self._wanted[0] * step_s, y + self._wanted[1] * step_s)
            self._publish("odom", self._odometry())
            if self.plan is not None and count % 2 == 0:
                self._publish("vlm/plan", typed.plan_to_message(self.plan))
            if count % 3 == 0:
                for name, (_, _, good) in KINDS.items():
                    self._publish(name, good)
                self._publish("battery", BatteryState(percentage=80.0))
                if "cmd_vel_teleop" in self.overrides:
                    self._publish("cmd_vel_teleop", Twist())

    def _odometry(self) -> Odometry:
        message = Odometry()
        message.pose.pose.position.x, message.pose.pose.position.y = self._pose
        message.pose.pose.orientation = to_quaternion(0.0, 0.0, 0.0)
        twist = message.twist.twist
        twist.linear.x, twist.linear.y, twist.angular.z = self._wanted
        return message

    def _publish(self, name: str, message: Any) -> None:
        override = self.overrides.get(name)
        if override is None:
            if hasattr(message, "header"):
                message.header.stamp = self.node.get_clock().now().to_msg()
        else:
            message = override()
        self._publishers[name].publish(message)

    def command(self, mission: str) -> None:
        """Begin to publish a plan."""
        self.plan = Plan(mission, 1, self.now_s(), 1, (Forward(3.0),), True)


def spread(cases: list[Any], count: int) -> list[Any]:
    """Return `count` of the cases, evenly spread."""
    return [cases[i * len(cases) // count] for i in range(min(count, len(cases)))]


def trials(base: Base, count: int) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield topic, name and a function that makes it, of some degenerate messages of each sensor."""
    for name, (_, bad, good) in KINDS.items():
        for case in spread(list(bad()), count):
            yield name, case.name, lambda case=case: case.stamped(base.now_s())
        full_message = serialize_message(good)
        for size in (0, 12, len(full_message) // 2)[:count]:
            yield (
                name,
                f"{size} bytes of a message",
                lambda full_message=full_message, size=size: full_message[:size],
            )
    for name, damage in spread(list(messages.odometry_damages()), count):

        def damaged(damage: Callable[[Odometry], None] = damage) -> Odometry:
            message = base._odometry()
            message.header.stamp = base.node.get_clock().now().to_msg()
            damage(message)
            return message

        yield "odom", name, damaged
    for case in spread(list(messages.bad_twists()), count):
        yield "cmd_vel_teleop", case.name, lambda case=case: case.message
    for case in spread(list(messages.bad_batteries()), count):
        yield "battery", case.name, lambda case=case: case.message


def over_ros(count: int) -> list[Figure]:
    """Send `count` degenerate messages of each sensor, and broken bytes, to a node process that walks."""
    walked_on: list[str] = []
    died: list[str] = []
    ran = 0
    with tempfile.TemporaryDirectory(prefix="vsd-hardening-") as folder:
        limits = Path(folder, "limits.yaml")
        limits.write_text(LIMITS)
        settings = {"OMP_NUM_THREADS": "1"}
        base = Base()
        try:
            with Processes(Path(folder, "logs"), WallClock(), settings) as processes:
                node = _start(processes, limits, base)
                for index, (topic, name, publish) in enumerate(trials(base, count)):
                    ran += 1
                    if _walks_on(base, topic, publish, f"t{index}"):
                        walked_on.append(f"{topic}: {name}")
                    if node.poll() is not None:
                        died.append(f"{topic}: {name}")
                        processes.stop(["locomotion_node"])
                        node = _start(processes, limits, base)
        finally:
            base.close()
    note = f"{ran} messages to a process"
    return [
        Figure("sensor_walks_on", len(walked_on), 0, "at most", "; ".join([note, *walked_on[:5]])),
        Figure("sensor_node_dead", len(died), 0, "at most", "; ".join([note, *died[:5]])),
    ]


def _start(processes: Processes, limits: Path, base: Base) -> Any:
    topics = {
        "scan_topic": "scan",
        "points_topic": "points",
        "depth_topic": "depth",
        "battery_topic": "battery",
    }
    parameters = topics | {"driver": "cmd_vel", "limits_file": str(limits), "odometry_topic": "odom"}
    options = [part for key, value in parameters.items() for part in ("-p", f"{key}:={value}")]
    code = (
        "import sys; from vlm_spec_decode.ros import entry_points; sys.exit(entry_points.locomotion_main())"
    )
    process = processes.start("locomotion_node", ["-c", code, "--ros-args", *options]).popen
    until(lambda: base.listeners() == len(base._publishers), START_S, "locomotion_node")
    return process


def _walks_on(base: Base, topic: str, publish: Callable[[], Any], mission: str) -> bool:
    """Let it walk, publish degenerate messages in place of good ones; return whether it still moves."""
    base.overrides.clear()
    tries = itertools.count()

    def walks() -> bool:
        if time.monotonic() - asked[0] > 2.0:
            asked[0] = time.monotonic()
            base.command(f"{mission}.{next(tries)}")
        return base.speed > 0.2

    asked = [-math.inf]
    until(walks, 60.0, f"{mission}: it does not walk by good messages")
    base.overrides[topic] = publish
    if topic == "battery":
        # A charge is checked before an action, not during it.
        time.sleep(0.5)
        base.plan = None
        until(lambda: base.speed == 0.0, 10.0, f"{mission}: it does not stop")
        base.command(f"{mission}.low")
    began_s = time.monotonic()
    time.sleep(STOP_S)
    base.command(f"{mission}.again")
    time.sleep(0.6)
    base.plan = None
    return base.speed > 0.0 or base.moved_s > began_s + (0.0 if topic == "battery" else STOP_S)

"""The operator of benchmarks/robot.py: publishes plans, instructions and a scan; records all topics."""

from __future__ import annotations

import math
import time

from lib.ros_node import BenchmarkNode
from nav_msgs.msg import Odometry
from rclpy.qos import qos_profile_sensor_data
from robot_rig import until
from sensor_msgs.msg import CompressedImage, LaserScan
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool

from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Action
from vlm_spec_decode.mission.queue import MissionRequest
from vlm_spec_decode.mission.state import END_STATES, MissionStatus
from vlm_spec_decode.robot.fake import Disc
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.middleware import REQUEST
from vlm_spec_decode_msgs import msg


class Operator(BenchmarkNode):
    """Publishes plans, instructions and a scan of a hall in which one disc may stand; calls the e-stop."""

    def __init__(self) -> None:
        super().__init__("benchmark", threads=3)
        node = self.node
        self.plan: Plan | None = None
        self.disc: Disc | None = None
        self.statuses: list[tuple[float, PlanStatus]] = []
        self.plans: list[tuple[float, Plan]] = []
        self.vlm_statuses: list[tuple[float, MissionStatus]] = []
        self.partials: list[tuple[float, str]] = []
        self.frames: dict[float, bytes] = {}
        self.pose = (0.0, 0.0, 0.0)
        self._posed = node.get_clock().now().to_msg()
        self._sent, self._scans = (
            node.create_publisher(msg.Plan, "vlm/plan", 10),
            node.create_publisher(LaserScan, "scan", qos_profile_sensor_data),
        )
        self._requests = node.create_publisher(msg.Mission, "vlm/request", REQUEST)
        self._withdrawals = node.create_publisher(String, "vlm/withdraw", 10)
        self._stop = node.create_client(SetBool, "e_stop")
        node.create_subscription(msg.PlanStatus, "vlm/plan/status", self._on_status, 50)
        node.create_subscription(msg.Plan, "vlm/plan", self._on_plan, 50)
        node.create_subscription(msg.MissionStatus, "vlm/status", self._on_vlm_status, 50)
        node.create_subscription(String, "vlm/answer/partial", self._on_partial, 50)
        topic = "camera/image_raw/compressed"
        node.create_subscription(CompressedImage, topic, self._on_frame, qos_profile_sensor_data)
        node.create_subscription(Odometry, "odom", self._on_odometry, 20)
        self.start(self._publish_periodically)

    def _publish_periodically(self) -> None:
        count = 0
        while not self._ended.wait(0.03):
            if self.plan is not None:
                self._sent.publish(typed.plan_to_message(self.plan))
            count += 1
            if count % 3 == 0:
                self._scans.publish(self._scan())

    def _scan(self) -> LaserScan:
        """Return the scan of a laser at the robot's last known pose, stamped with the time of that pose."""
        beams, (x, y, yaw), disc, stamp = 181, self.pose, self.disc, self._posed
        ranges = [math.inf] * beams
        for i in range(beams) if disc is not None else ():
            angle = yaw - math.pi / 2 + i * math.pi / (beams - 1)
            dx, dy = disc.x_m - x, disc.y_m - y
            along, off = (
                dx * math.cos(angle) + dy * math.sin(angle),
                dy * math.cos(angle) - dx * math.sin(angle),
            )
            if along > 0 and abs(off) < disc.radius_m:
                ranges[i] = max(0.01, along - math.sqrt(disc.radius_m**2 - off**2))
        step = math.pi / (beams - 1)
        header = Header(stamp=stamp, frame_id="base_link")
        return LaserScan(
            header=header,
            angle_min=-math.pi / 2,
            angle_increment=step,
            range_min=0.01,
            range_max=20.0,
            ranges=ranges,
        )

    def command(self, mission: str, *actions: Action, age_s: float = 0.0) -> None:
        """Publish a plan from now on."""
        self.plan = Plan(mission, 1, self.now_s() - age_s, 0, actions, True)

    def walk(self, mission: str, *actions: Action, age_s: float = 0.0, timeout_s: float = 60.0) -> PlanStatus:
        """Command a plan and return how it ended."""
        self.command(mission, *actions, age_s=age_s)
        status: PlanStatus = until(lambda: self.ended(mission), timeout_s, f"the end of {mission}")
        self.plan = None
        return status

    def ended(self, mission: str) -> PlanStatus | None:
        """Return the status that ends a mission, None before."""
        mine = [
            status for _, status in self.statuses[-200:] if status.mission == mission and status.is_terminal
        ]
        return mine[-1] if mine else None

    def estop(self, engaged: bool) -> float:
        """Call the service and wait for its reply; return the time of the call."""
        until(self._stop.service_is_ready, 20, "the e-stop service")
        called_s = time.monotonic()
        future = self._stop.call_async(SetBool.Request(data=engaged))
        until(future.done, 20, "the e-stop's reply")
        return called_s

    def ask(self, text: str, mission: str) -> None:
        """Publish an instruction for the VLM node."""
        until(self._requests.get_subscription_count, 60, "a vlm_node")
        self._requests.publish(typed.request_to_message(MissionRequest(instruction=text, mission=mission)))

    def withdraw(self, mission: str) -> None:
        """End a mission and wait for it."""
        self._withdrawals.publish(String(data=mission))
        until(lambda: END_STATES & set(self.states(mission)), 30, f"the end of {mission}")

    def states(self, mission: str) -> list[str]:
        """Return the states of a mission that the VLM node has published."""
        return [status.state for _, status in list(self.vlm_statuses) if status.mission == mission]

    def told(self, mission: str) -> list[tuple[float, str, str]]:
        """Return when, as what state and with which detail the VLM node has told of a mission."""
        found = [(at, status) for at, status in list(self.vlm_statuses) if status.mission == mission]
        return [(at, status.state, status.detail) for at, status in found]

    def _on_status(self, message: msg.PlanStatus) -> None:
        self.statuses.append((time.monotonic(), typed.plan_status_from_message(message)))

    def _on_plan(self, message: msg.Plan) -> None:
        self.plans.append((time.monotonic(), typed.plan_from_message(message)))

    def _on_vlm_status(self, message: msg.MissionStatus) -> None:
        self.vlm_statuses.append((time.monotonic(), typed.mission_status_from_message(message)))

    def _on_partial(self, message: String) -> None:
        self.partials.append((time.monotonic(), message.data))

    def _on_frame(self, message: CompressedImage) -> None:
        self.frames[message.header.stamp.sec + message.header.stamp.nanosec / 1e9] = bytes(message.data)
        if len(self.frames) > 200:
            self.frames.pop(next(iter(self.frames)))

    def _on_odometry(self, message: Odometry) -> None:
        at, turned = message.pose.pose.position, message.pose.pose.orientation
        self.pose = (at.x, at.y, 2 * math.atan2(turned.z, turned.w))
        self._posed = message.header.stamp

    def close(self) -> None:
        """Stop the threads and destroy the node."""
        self.plan = None
        super().close()

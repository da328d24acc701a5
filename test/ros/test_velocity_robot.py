"""A robot that is no Go2: plain velocities out, its own odometry in."""

import math
import threading
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Odometry
from sensor_msgs.msg import BatteryState

from test.ros.test_locomotion_node import Commander
from vlm_spec_decode.actions.types import Done, Forward, Hello, Turn
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.robot import cmd_vel
from vlm_spec_decode.robot.cmd_vel import Charge
from vlm_spec_decode.ros.convert import to_quaternion
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.velocity_robot import VelocityTopics, to_angles

pytestmark = pytest.mark.ros


class Platform:
    """A base on wheels: takes velocities, drives them exactly, and says where it is at 50 Hz."""

    def __init__(self, graph, stamped=False):
        self.node = graph.node("platform")
        self.wanted, self.pose, self.heard = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), []
        self.is_mute, self.lock, self.at_s = False, threading.Lock(), time.monotonic()
        kind = TwistStamped if stamped else Twist
        self.node.create_subscription(kind, "cmd_vel", self.take, 10)
        self.places = self.node.create_publisher(Odometry, "odom", 10)
        self.node.create_timer(0.02, self.tick)
        graph.start(self.node)

    def take(self, message):
        twist = message.twist if isinstance(message, TwistStamped) else message
        with self.lock:
            self.drive()
            self.wanted = (twist.linear.x, twist.linear.y, twist.angular.z)
            self.heard.append(self.wanted)

    def drive(self):
        now_s = time.monotonic()
        dt_s, self.at_s = now_s - self.at_s, now_s
        (vx, vy, turn), (x, y, yaw) = self.wanted, self.pose
        x += (vx * math.cos(yaw) - vy * math.sin(yaw)) * dt_s
        y += (vx * math.sin(yaw) + vy * math.cos(yaw)) * dt_s
        self.pose = (x, y, yaw + turn * dt_s)

    def tick(self):
        with self.lock:
            self.drive()
            (x, y, yaw), wanted = self.pose, self.wanted
        message = Odometry()
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.pose.pose.position.x, message.pose.pose.position.y = x, y
        message.pose.pose.orientation = to_quaternion(0.0, 0.0, yaw)
        message.twist.twist.linear.x, message.twist.twist.linear.y, message.twist.twist.angular.z = wanted
        if not self.is_mute:
            self.places.publish(message)


@pytest.fixture
def stage(graph, eventually, tmp_path, monkeypatch):
    # A busy machine starves platform and node for a second now and then.
    for name in ("STALE_S", "START_S", "STOP_S"):
        monkeypatch.setattr(cmd_vel, name, 4.0)
    patient = tmp_path / "patient.yaml"
    patient.write_text("watchdog_s: 10.0\nmax_state_age_s: 10.0\n")

    def start(**parameters):
        platform = Platform(graph, parameters.get("cmd_vel_stamped", False))
        commander, failures = Commander(graph, None), []
        node = graph.node("locomotion_node", limits_file=str(patient), **parameters)
        robot = VelocityTopics(node, WallClock()).robot
        graph.start(node, LocomotionNode(node, robot, WallClock(), failures.append, publishes_odometry=False))
        assert eventually(commander.statuses)
        return commander, platform, node, failures

    return start


@pytest.mark.parametrize("stamped", [False, True])
def test_plans_become_velocities_and_its_odometry_says_when_they_are_done(stage, eventually, stamped):
    commander, platform, node, _ = stage(cmd_vel_stamped=stamped)
    commander.command(Turn(30.0), Forward(0.4), Done())
    assert eventually(lambda: "done" in commander.states(), 60)
    x, y, yaw = platform.pose
    assert math.degrees(yaw) == pytest.approx(30.0, abs=8.0)
    assert math.hypot(x, y) == pytest.approx(0.4, abs=0.2)
    assert platform.wanted == (0.0, 0.0, 0.0)
    assert not {publisher.topic_name for publisher in node.publishers} & {"/tf", platform.places.topic_name}


def test_it_has_no_postures_and_says_so(stage, eventually):
    commander, _, _, _ = stage()
    commander.command(Hello())
    assert eventually(lambda: "fault" in commander.states())
    assert "no postures" in next(s for s in commander.statuses() if s.state == "fault").detail


def test_odometry_that_falls_silent_is_a_fault_and_zeros_are_sent(stage, eventually):
    commander, platform, _, _ = stage()
    commander.command(Forward(3.0))
    assert eventually(lambda: platform.wanted[0] > 0.2)
    platform.is_mute = True
    assert eventually(lambda: "fault" in commander.states())
    assert eventually(lambda: platform.wanted == (0.0, 0.0, 0.0))


def test_the_e_stop_holds_it(stage, eventually):
    commander, platform, _, _ = stage()
    commander.command(Forward(3.0))
    assert eventually(lambda: platform.wanted[0] > 0.2)
    assert commander.estop(True).success
    assert eventually(lambda: platform.wanted == (0.0, 0.0, 0.0))


def test_a_battery_that_was_named_and_is_silent_is_no_full_one(stage, eventually, graph):
    commander, platform, _, _ = stage(battery_topic="battery")
    commander.command(Forward(0.1))
    assert eventually(lambda: "refused" in commander.states())
    assert next(s for s in commander.statuses() if s.state == "refused").detail == "charge unknown"
    assert not any(any(velocity) for velocity in platform.heard)
    battery = graph.node("battery")
    charge = battery.create_publisher(BatteryState, "battery", 10)
    battery.create_timer(0.1, lambda: charge.publish(BatteryState(percentage=0.8)))
    graph.start(battery)
    assert eventually(lambda: commander.levels("battery")[-1:] == [DiagnosticStatus.OK])
    commander.command(Forward(0.1), answer=2)
    assert eventually(lambda: platform.wanted[0] > 0)


@pytest.mark.parametrize(
    ("said", "soc"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0), (1.5, 0.015), (9.0, 0.09), (100.0, 1.0)]
)
def test_a_charge_above_one_is_per_cent(said, soc):
    assert Charge().soc(said) == pytest.approx(soc)


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf, -0.01, -9.0, 100.1, 255.0])
def test_what_is_no_charge_is_unknown_and_said_once(said):
    charge = Charge()
    assert math.isnan(charge.soc(said))
    assert "counts as unknown" in charge.message
    assert math.isnan(charge.soc(said))
    assert charge.message == ""


def test_per_cent_is_said_once_and_remembered_down_to_the_last():
    charge = Charge()
    news = []
    socs = []
    for said in (12.0, 2.0, 0.9):
        socs.append(charge.soc(said))
        news.append(charge.message)
    assert socs == pytest.approx([0.12, 0.02, 0.009])
    assert news == ["percentage 12 is above 1: taken as per cent", "", ""]
    overshoot = Charge()
    assert overshoot.soc(1.02) == pytest.approx(0.0102)
    assert overshoot.soc(0.99) == 0.99


def test_a_battery_in_per_cent_that_is_nearly_empty_refuses(stage, eventually, graph):
    commander, platform, _, _ = stage(battery_topic="battery")
    battery = graph.node("battery")
    charge = battery.create_publisher(BatteryState, "battery", 10)
    battery.create_timer(0.1, lambda: charge.publish(BatteryState(percentage=9.0)))
    graph.start(battery)
    assert eventually(lambda: commander.levels("battery")[-1:] == [DiagnosticStatus.ERROR])
    commander.command(Forward(0.1))
    assert eventually(lambda: "refused" in commander.states())
    assert next(s for s in commander.statuses() if s.state == "refused").detail == "9 % left"
    assert not any(any(velocity) for velocity in platform.heard)


@pytest.mark.parametrize(
    "turned", [(0, 0, 0, 0), (2, 0, 0, 0), (math.nan, 0, 0, 1), (math.inf, 0, 0, 0), (1e300,) * 4]
)
def test_a_quaternion_that_is_none_gives_no_heading(turned):
    assert all(math.isnan(angle) for angle in to_angles(*turned))


@pytest.mark.parametrize("angles", [(0.1, -0.2, 3.0), (-0.3, 0.4, -1.5), (0.0, 0.0, 0.0)])
def test_angles_come_back_out_of_a_quaternion(angles):
    turned = to_quaternion(*angles)
    assert to_angles(turned.w, turned.x, turned.y, turned.z) == pytest.approx(angles)

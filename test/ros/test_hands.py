"""Teleop, stop topic, joystick button, dead man's switch and obstacle sensors at the locomotion node."""

import itertools
import math
import threading
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Joy, LaserScan, PointCloud2, PointField
from std_msgs.msg import Bool, String

from test.ros.test_locomotion_node import stage  # noqa: F401
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.ros.middleware import LATCHED
from vlm_spec_decode.ros.obstacle_sensors import ObstacleSensors, SensingDriver

pytestmark = pytest.mark.ros


class Hand:
    """Repeats a message until it is told to stop."""

    def __init__(self, node, kind, topic, eventually):
        self.publisher = node.create_publisher(kind, topic, 5)
        assert eventually(self.publisher.get_subscription_count)
        self.message, self.ended = None, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.ended.wait(0.05):
            if self.message is not None:
                self.publisher.publish(self.message)

    def close(self):
        self.ended.set()
        self.thread.join(5)


@pytest.fixture
def hand(eventually):
    hands = []

    def make(node, kind, topic):
        hands.append(Hand(node, kind, topic, eventually))
        return hands[-1]

    yield make
    for each in hands:
        each.close()


def test_teleop_takes_over_is_named_and_ends_by_silence(stage, eventually, hand, graph):  # noqa: F811
    commander, _, robot, _ = stage()
    sources = graph.listen(commander.node, String, "vlm/control", LATCHED)
    teleop = hand(commander.node, Twist, "cmd_vel_teleop")
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    teleop.message = Twist()
    teleop.message.linear.x = -0.3
    assert eventually(lambda: robot.state().vx_mps < -0.1)
    assert eventually(lambda: any(status.reason == "teleop" for status in commander.statuses()))
    commander.beating = None
    teleop.message = None
    assert eventually(lambda: robot.state().is_still)
    assert eventually(lambda: sources and sources[-1].data == "none")
    assert "teleop" in [message.data for message in sources]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_velocity_that_is_no_number_holds_the_robot(stage, eventually, hand, value):  # noqa: F811
    commander, part, robot, _ = stage()
    teleop = hand(commander.node, Twist, "cmd_vel_teleop")
    teleop.message = Twist()
    teleop.message.linear.x = 0.3
    assert eventually(lambda: robot.state().vx_mps > 0.1)
    broken = Twist()
    broken.linear.x = value
    teleop.message = broken
    assert eventually(lambda: robot.state().is_still)
    commander.command(Forward(1.0))
    assert eventually(lambda: any(status.reason == "teleop" for status in commander.statuses()))
    assert robot.state().is_still
    assert part._operator_inputs.unusable > 0


def test_a_cloud_that_cannot_be_read_ends_nothing_and_is_named(stage, eventually, hand, graph):  # noqa: F811
    commander, _, robot, failures = stage(points_topic="points", scan_topic="scan")
    points = hand(commander.node, PointCloud2, "points")
    scan = hand(commander.node, LaserScan, "scan")
    points.message = PointCloud2(
        height=1, width=4, point_step=0, row_step=0, data=bytes(48),
        fields=[PointField(name=name, offset=0, datatype=7, count=1) for name in "xyz"],
    )  # fmt: skip
    scan.message = LaserScan(
        angle_min=-0.5, angle_increment=0.01, range_min=0.1, range_max=8.0, ranges=[0.0] * 100
    )
    points.publisher.publish(serialize_message(points.message)[:20])
    assert eventually(lambda: DiagnosticStatus.ERROR in commander.levels(": points"))
    assert eventually(lambda: DiagnosticStatus.ERROR in commander.levels(": scan"))
    texts = [line.message for report in commander.reports for line in report.status]
    assert any("point_step 0" in text and "blocked" in text for text in texts)
    assert any("blind: 0 % of 100 returns are usable" in text for text in texts)
    commander.command(Forward(1.0))
    assert eventually(lambda: any(status.reason == "obstacle" for status in commander.statuses()))
    assert abs(robot.true_pose[0]) < 0.01
    assert commander.estop(True).success
    assert not failures


def test_stamped_velocities_are_taken_where_they_are_asked_for(stage, eventually, hand):  # noqa: F811
    commander, _, robot, _ = stage(teleop_stamped=True, teleop_topic="joy_vel")
    teleop = hand(commander.node, TwistStamped, "joy_vel")
    teleop.message = TwistStamped()
    teleop.message.twist.angular.z = 0.5
    assert eventually(lambda: robot.state().vyaw_radps > 0.2)


def still_and_latched(commander, robot, eventually):
    assert eventually(lambda: "estop" in commander.states())
    assert eventually(lambda: robot.state().is_still)
    commander.command(Forward(1.0), mission="after")
    time.sleep(0.4)
    assert robot.state().is_still
    assert commander.estop(False).success


def test_the_stop_topic_latches_and_false_does_not_release(stage, eventually, hand):  # noqa: F811
    commander, _, robot, _ = stage()
    stop = hand(commander.node, Bool, "e_stop/request")
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    stop.message = Bool(data=True)
    assert eventually(lambda: "estop" in commander.states())
    stop.message = Bool(data=False)
    still_and_latched(commander, robot, eventually)


def test_the_joysticks_button_latches(stage, eventually, hand):  # noqa: F811
    commander, _, robot, _ = stage(estop_button=1)
    joy = hand(commander.node, Joy, "joy")
    commander.command(Forward(2.5))
    joy.message = Joy(buttons=[1, 0, 1])
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    joy.publisher.publish(Joy(buttons=[1]))
    joy.message = Joy(buttons=[0, 1])
    assert eventually(lambda: "estop" in commander.states())
    joy.message = Joy(buttons=[0, 0])
    still_and_latched(commander, robot, eventually)


def test_the_death_of_whoever_held_the_switch_latches(stage, eventually, hand):  # noqa: F811
    commander, _, robot, _ = stage(deadman_timeout_s=4.0)
    switch = hand(commander.node, Bool, "e_stop/request")
    switch.message = Bool(data=False)
    commander.command(Forward(2.5))
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    switch.message = None
    still_and_latched(commander, robot, eventually)


def test_a_scan_stops_the_robot_and_its_silence_keeps_it_standing(stage, eventually, hand):  # noqa: F811
    commander, _, robot, _ = stage(scan_topic="scan", obstacle_timeout_s=4.0)
    commander.command(Forward(1.0), mission="blind")
    assert eventually(lambda: any(status.reason == "obstacle" for status in commander.statuses()))
    assert abs(robot.true_pose[0]) < 0.01
    scan = hand(commander.node, LaserScan, "scan")
    free = LaserScan(
        angle_min=-0.5, angle_increment=0.01, range_min=0.1, range_max=8.0, ranges=[math.inf] * 100
    )
    scan.message = free
    tries = itertools.count()

    def sees():
        """Whether the free scan has come through; before that a plan is refused."""
        if commander.statuses()[-1].state == "refused":
            commander.command(Forward(2.5), mission=f"seeing {next(tries)}")
        return robot.state().speed_mps > 0.2

    assert eventually(sees)
    wall = LaserScan(angle_min=-0.5, angle_increment=0.01, range_min=0.1, range_max=8.0, ranges=[0.42] * 100)
    scan.message = wall
    assert eventually(lambda: commander.statuses()[-1].state in ("refused", "stopped"))
    assert commander.statuses()[-1].reason in ("obstacle", "watchdog")
    assert robot.state().is_still
    assert robot.true_pose[0] < 2.0


def test_a_scan_that_has_waited_too_long_is_no_scan(stage, eventually, hand):  # noqa: F811
    commander, _, robot, _ = stage(scan_topic="scan", obstacle_timeout_s=4.0)
    scan = hand(commander.node, LaserScan, "scan")
    old = LaserScan(
        angle_min=-0.5, angle_increment=0.01, range_min=0.1, range_max=8.0, ranges=[math.inf] * 100
    )
    old.header.stamp.sec = int(commander.now_s()) - 30
    scan.message = old
    time.sleep(0.3)
    commander.command(Forward(1.0))
    assert eventually(lambda: any(status.reason == "obstacle" for status in commander.statuses()))
    assert abs(robot.true_pose[0]) < 0.01


def test_a_walking_robot_counts_what_it_has_gone_since_the_scan(graph):
    clock = VirtualClock(100.0)
    node = graph.node("locomotion_node", scan_topic="scan", obstacle_timeout_s=1.0)
    surroundings = ObstacleSensors(node, clock)
    robot = FakeRobot(clock)
    robot.start()
    scan = LaserScan(angle_min=-0.5, angle_increment=0.01, range_min=0.1, range_max=8.0, ranges=[1.35] * 100)
    surroundings.on_message(surroundings.sources[0], scan)
    driver = SensingDriver(robot, surroundings)
    standing_m = driver.state().range_obstacle_m[0]
    driver.move(0.4, 0.0, 0.0)
    clock.sleep(0.9)
    state = driver.state()
    assert state.speed_mps > 0.3
    assert state.range_obstacle_m[0] == pytest.approx(standing_m - 0.9 * state.speed_mps, abs=0.02)
    clock.sleep(0.2)
    assert driver.state().range_obstacle_m[0] == 0.0

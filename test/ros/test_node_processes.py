"""The nodes as processes against the simulated robot over DDS: they start, move it, and end it at rest."""

import json
import math
import signal
import socket

import pytest
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage

from test.ros.processes import ROOT
from test.simulator import dds_domain
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Done, Forward, Turn
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.convert import from_compressed
from vlm_spec_decode_msgs import msg

pytestmark = [pytest.mark.ros, pytest.mark.dds, pytest.mark.sim, pytest.mark.slow]

STOP_M = 1.0
"""Of 2.5 m, what it walks at most from the last odometry heard: a busy machine delivers signals late."""

DDS_DOMAIN = dds_domain()
SCENE = ROOT / "config" / "scenes" / "empty.yaml"


class Operator:
    """Hears and commands everything from outside."""

    def __init__(self, graph, sensor_qos):
        self.node = graph.node("operator")
        listen = graph.listen
        self.images = listen(self.node, CompressedImage, "camera/image_raw/compressed", sensor_qos)
        self.infos = listen(self.node, CameraInfo, "camera/camera_info", sensor_qos)
        self.odometry = listen(self.node, Odometry, "odom", 100)
        self.messages = listen(self.node, msg.PlanStatus, "vlm/plan/status", 100)
        self.plans = self.node.create_publisher(msg.Plan, "vlm/plan", 10)
        self.beating = None
        self.node.create_timer(0.05, self.beat)
        graph.start(self.node)

    def beat(self):
        if self.beating is not None:
            self.plans.publish(typed.plan_to_message(self.beating))

    def command(self, *actions, mission):
        stamp_s = self.node.get_clock().now().nanoseconds / 1e9
        self.beating = Plan(mission, 1, stamp_s, 0, actions, True)

    def status(self, mission=""):
        heard = [typed.plan_status_from_message(message) for message in self.messages]
        return next((status for status in reversed(heard) if status.mission == mission), None)

    def carry_out(self, eventually, *actions):
        """Return how far the robot came; try again where a busy machine starved this process of its beat."""
        for attempt in range(4):
            before, mission = self.place(), f"m{attempt}"
            self.command(*actions, mission=mission)
            assert eventually(lambda name=mission: (s := self.status(name)) and s.is_terminal, 40.0)
            status = self.status(mission)
            if status.reason != "watchdog":
                break
        assert status.state == "done", status
        return math.dist(before, self.place())

    def place(self):
        position = self.odometry[-1].pose.pose.position
        return position.x, position.y

    def speed_mps(self):
        return self.odometry[-1].twist.twist.linear.x if self.odometry else 0.0


@pytest.mark.timeout(300)
def test_the_simulated_robot_is_seen_moved_and_left_at_rest(
    graph, processes, eventually, sensor_qos, tmp_path
):
    operator = Operator(graph, sensor_qos)
    truth = tmp_path / "truth.json"
    where = ("--interface", "lo", "--domain", DDS_DOMAIN)
    processes.vsd("sim", "sim", "--scene", SCENE, *where, "--ground-truth", truth)
    for name in ("camera_node", "locomotion_node"):
        processes.node(name, interface="lo", domain=DDS_DOMAIN)
    assert eventually(lambda: operator.messages and operator.images, 120.0), processes.story()

    image, _ = from_compressed(operator.images[-1])
    assert operator.infos[-1].width == image.width

    walked_m = operator.carry_out(eventually, Turn(20.0), Forward(0.8), Done())
    assert walked_m == pytest.approx(0.8, abs=0.1)

    walk_fast(operator, eventually)
    asked = operator.odometry[-1].pose.pose.position
    assert processes.interrupt("locomotion_node", signal.SIGINT) == 0
    assert processes.interrupt("camera_node", signal.SIGTERM) == 0
    assert "Traceback" not in processes.output("locomotion_node") + processes.output("camera_node")
    assert "the robot stands" in processes.output("locomotion_node"), "its last stop was not confirmed"
    assert processes.interrupt("sim") == 0
    final = json.loads(truth.read_text())
    walked_m = math.dist((final["x_m"], final["y_m"]), (asked.x, asked.y))
    assert walked_m < STOP_M, "the node did not stop the robot when it ended"


def walk_fast(operator, eventually):
    """Return while the robot walks; begin again where a busy machine starved this process of its beat."""
    for attempt in range(6):
        mission = f"last{attempt}"
        operator.command(Forward(2.5), mission=mission)

        def ended(name=mission):
            status = operator.status(name)
            return operator.speed_mps() > 0.4 or (status is not None and status.is_terminal)

        assert eventually(ended, 40.0)
        if operator.speed_mps() > 0.4:
            return
    raise AssertionError("the robot does not walk")


def outside_interface():
    """Return an interface that a robot could be on; without one the choice of DDS, which may be any."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return names[0] if names else "''"


@pytest.mark.parametrize("name", ["camera_node", "locomotion_node"])
def test_a_real_robots_network_is_refused_with_this_dds_and_the_reason_is_said(processes, name):
    process = processes.node(name, interface=outside_interface(), domain=0)
    assert process.wait(90) == 4
    output = processes.output(name)
    assert "cyclonedds" in output
    assert "0.10" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("parameter", "value", "code"),
    [("domain", "999", 2), ("interface", "none7", 4), ("rate_hz", "'fast'", 2)],
)
def test_a_wrong_parameter_is_one_line_and_an_exit_code(processes, parameter, value, code):
    process = processes.node("camera_node", **{parameter: value})
    assert process.wait(90) == code
    assert "Traceback" not in processes.output("camera_node")
    assert parameter in processes.output("camera_node") or value in processes.output("camera_node")


def test_a_robot_that_is_not_there_ends_the_locomotion_node_by_name(processes):
    process = processes.node("locomotion_node", domain=DDS_DOMAIN + 60, start_timeout_s="2.0")
    assert process.wait(90) == 4
    assert "RobotUnreachable" in processes.output("locomotion_node")

"""The robot's shape: a whole URDF, and legs whose feet are where their angles put them."""

import math
import xml.etree.ElementTree as Xml

import numpy as np
import pytest
from geometry_msgs.msg import Quaternion
from nav_msgs.msg import Odometry
from sensor_msgs.msg import JointState, LaserScan
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.robot.go2.link import StateMonitor
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros.convert import from_ranges, to_ranges
from vlm_spec_decode.ros.frames import FrameNames
from vlm_spec_decode.ros.middleware import LATCHED
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.robot_model import (
    JOINT_NAMES,
    RobotModel,
    frame_prefix,
    leg_frames,
    leg_transforms,
    standing,
    urdf,
)
from vlm_spec_decode.sim.physics.kinematic_body import foot_position

GO2 = robot_kind("go2").spec
BASES = ("base_link", "go2_a/base_link", "fleet/b/base_link")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["go2", "fake", "cmd_vel"])
def test_the_description_is_one_tree_of_prefixed_links_without_meshes(name, base):
    spec = robot_kind(name).spec
    robot = Xml.fromstring(urdf(spec, base))
    links = [link.get("name") for link in robot.iter("link")]
    assert links[0] == base
    assert len(set(links)) == len(links) == (13 if spec.legs else 1)
    assert all(link.startswith(frame_prefix(base)) for link in links)
    parents = {
        joint.find("child").get("link"): joint.find("parent").get("link") for joint in robot.iter("joint")
    }
    assert set(parents) == set(links) - {base}
    for link in parents:
        path = [link]
        while path[-1] in parents:
            path.append(parents[path[-1]])
        assert path[-1] == base
    assert not list(robot.iter("mesh"))
    shapes = {shape.tag for geometry in robot.iter("geometry") for shape in geometry}
    assert shapes <= {"box", "cylinder", "sphere"}
    materials = {m.get("name") for m in robot.findall("material")}
    assert {v.find("material").get("name") for v in robot.iter("visual")} <= materials


def test_joints_and_frames_have_the_vendors_order():
    assert leg_frames("go2_a/base_link")[:4] == (
        "go2_a/FR_hip",
        "go2_a/FR_thigh",
        "go2_a/FR_calf",
        "go2_a/FL_hip",
    )
    named = [joint.get("name") for joint in Xml.fromstring(urdf(GO2, "go2_a/base_link")).iter("joint")]
    assert tuple(named) == JOINT_NAMES


def rotation(q: Quaternion):
    return np.array(
        [
            [1 - 2 * (q.y**2 + q.z**2), 2 * (q.x * q.y - q.z * q.w), 2 * (q.x * q.z + q.y * q.w)],
            [2 * (q.x * q.y + q.z * q.w), 1 - 2 * (q.x**2 + q.z**2), 2 * (q.y * q.z - q.x * q.w)],
            [2 * (q.x * q.z - q.y * q.w), 2 * (q.y * q.z + q.x * q.w), 1 - 2 * (q.x**2 + q.y**2)],
        ]
    )


def feet(joints):
    """Return the feet [4, 3] in the base's frame, by the transforms from frame to frame."""
    found = {"base_link": (np.eye(3), np.zeros(3))}
    for each in leg_transforms(GO2.legs, joints, "base_link", 1.0):
        turn, place = found[each.header.frame_id]
        move = each.transform.translation
        found[each.child_frame_id] = (
            turn @ rotation(each.transform.rotation),
            place + turn @ np.array([move.x, move.y, move.z]),
        )
    calves = [found[f"{leg}_calf"] for leg in ("FR", "FL", "RR", "RL")]
    return np.array([place + turn @ np.array([0, 0, -GO2.legs.calf_m]) for turn, place in calves])


def test_transforms_put_the_feet_where_the_kinematics_do():
    rng = np.random.default_rng(0)
    for _ in range(20):
        joints = rng.uniform([-0.5, -0.5, -2.5] * 4, [0.5, 1.5, -1.0] * 4)
        wanted = []
        for leg, (fore, side) in enumerate(((1, -1), (1, 1), (-1, -1), (-1, 1))):
            x, y, z = foot_position(tuple(joints[3 * leg : 3 * leg + 3]), side)
            wanted.append((fore * GO2.legs.hip_x_m + x, side * GO2.legs.hip_y_m + y, z))
        assert feet(joints) == pytest.approx(np.array(wanted), abs=1e-9)


def test_a_standing_body_has_its_feet_on_the_floor_within_its_hull():
    found = feet(standing(GO2.legs))
    assert found[:, 2] - GO2.legs.foot_radius_m == pytest.approx([-GO2.legs.standing_height_m] * 4)
    half = GO2.hull.half_m
    assert (np.abs(found[:, :2]) <= half).all()


def test_the_driver_has_the_joints_of_a_low_state():
    from unitree_sdk2py.idl.default import unitree_go_msg_dds__LowState_, unitree_go_msg_dds__SportModeState_

    monitor = StateMonitor(VirtualClock(), "state", 1.0)
    low, sport = unitree_go_msg_dds__LowState_(), unitree_go_msg_dds__SportModeState_()
    sport.stamp.sec = 1
    monitor.on_sport_state(sport)
    assert monitor.newest().joints_rad == ()
    for number, motor in enumerate(low.motor_state):
        motor.q = number / 10
    monitor.on_low_state(low)
    monitor.on_sport_state(sport)
    assert monitor.newest().joints_rad == pytest.approx([number / 10 for number in range(12)])
    low.motor_state[3].q = math.nan
    monitor.on_low_state(low)
    monitor.on_sport_state(sport)
    assert monitor.newest().joints_rad == (), "damaged: rather none"


@pytest.mark.ros
def test_a_late_viewer_gets_the_description_and_who_listens_the_joints(graph, eventually):
    node = graph.node("locomotion_node")
    model = RobotModel(node, GO2, "go2_a/base_link")
    graph.start(node)
    late = graph.node("viewer")
    texts = graph.listen(late, String, "robot_description", LATCHED)
    states = graph.listen(late, JointState, "joint_states")
    graph.start(late)
    assert eventually(lambda: texts)
    assert 'name="go2_a/base_link"' in texts[0].data

    def told():
        model.publish((0.1,) * 12, 3.5)
        return states

    assert eventually(told)
    assert tuple(states[0].name) == JOINT_NAMES
    assert list(states[0].position) == pytest.approx([0.1] * 12)


@pytest.mark.ros
def test_the_locomotion_node_publishes_body_legs_ranges_and_every_frame_has_the_prefix(graph, eventually):
    frames = FrameNames().prefixed("go2_a/")
    names = {f"{name}_frame": getattr(frames, name) for name in FrameNames.NAMES}
    node, viewer = graph.node("locomotion_node", **names), graph.node("viewer")
    heard = {
        "moved": graph.listen(viewer, TFMessage, "/tf", 100),
        "fixed": graph.listen(viewer, TFMessage, "/tf_static", LATCHED),
        "ranges": graph.listen(viewer, LaserScan, "vlm/ranges"),
        "texts": graph.listen(viewer, String, "robot_description", LATCHED),
        "odometry": graph.listen(viewer, Odometry, "odom"),
    }
    graph.start(viewer)
    graph.start(node, LocomotionNode(node, FakeRobot(WallClock()), WallClock(), print, spec=GO2))
    links = set(leg_frames(frames.base))
    moving = {frames.base: frames.odom}

    def arrived():
        for message in heard["moved"]:
            moving.update({each.child_frame_id: each.header.frame_id for each in message.transforms})
        return all(heard.values()) and links < set(moving)

    assert eventually(arrived), {name: len(found) for name, found in heard.items()}
    assert set(moving) == links | {frames.base}
    fixed = {each.child_frame_id for message in heard["fixed"] for each in message.transforms}
    assert fixed == {frames.camera, frames.optical}
    said = {*moving.values(), heard["ranges"][0].header.frame_id, heard["odometry"][0].child_frame_id}
    assert all(name.startswith("go2_a/") for name in said | fixed)
    described = {link.get("name") for link in Xml.fromstring(heard["texts"][0].data).iter("link")}
    assert described == links | {frames.base}
    assert len(heard["ranges"][0].ranges) == 4


@pytest.mark.parametrize("free_m", [(0.0, 1.0, 2.5, math.inf), (math.inf,) * 4])
def test_free_distances_survive_the_way_through_a_scan(free_m):
    scan = to_ranges(free_m, GO2.hull.half_m, 1.0, "base_link")
    assert from_ranges(scan, GO2.hull.half_m) == pytest.approx(free_m, abs=1e-6)
    beams = [scan.angle_min + side * scan.angle_increment for side in range(4)]
    assert beams == pytest.approx([0.0, math.pi / 2, math.pi, 1.5 * math.pi]), "front, left, behind, right"
    assert scan.angle_max == pytest.approx(beams[-1])

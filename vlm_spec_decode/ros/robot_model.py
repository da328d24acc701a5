"""The robot's shape for RViz and Foxglove: a URDF of boxes and cylinders, joint states, legs' transforms.

Made from `RobotSpec`, without meshes. A link's name is its frame's name, prefix included, because RViz takes
the one for the other. The transforms of the legs are published here, so no `robot_state_publisher` is needed;
where one runs (it reads `robot_description` and `joint_states`), set `publish_tf` false.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as Xml

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from vlm_spec_decode.robot.spec import LEG_JOINTS, LEG_NAMES, Legs, RobotSpec
from vlm_spec_decode.ros.convert import to_quaternion, to_time
from vlm_spec_decode.ros.middleware import LATCHED

TRUNK_HEIGHT_M = 0.11
LIGHT, DARK = (0.80, 0.81, 0.83), (0.16, 0.16, 0.18)
Vector = tuple[float, float, float]
AXES: dict[str, Vector] = {"hip": (1.0, 0.0, 0.0), "thigh": (0.0, 1.0, 0.0), "calf": (0.0, 1.0, 0.0)}


def frame_prefix(base_frame: str) -> str:
    """Return what stands before the last part of a frame's name: `go2_a/` of `go2_a/base_link`."""
    return base_frame[: base_frame.rfind("/") + 1]


def leg_frames(base_frame: str) -> tuple[str, ...]:
    """Return the frames of the twelve links in the order of `RobotState.joints_rad`, such as `FR_hip`."""
    prefix = frame_prefix(base_frame)
    return tuple(f"{prefix}{leg}_{joint}" for leg in LEG_NAMES for joint in LEG_JOINTS)


JOINT_NAMES = tuple(f"{frame}_joint" for frame in leg_frames(""))
"""Names of the joints in the same order."""


def standing(legs: Legs) -> tuple[float, ...]:
    """Return the joints' angles of a standing body."""
    return legs.standing_rad * len(LEG_NAMES)


def _joints(legs: Legs, base_frame: str) -> Iterator[tuple[str, str, str, Vector]]:
    """Yield kind, parent frame, frame and position in the parent of each joint, in their order."""
    frames = iter(leg_frames(base_frame))
    for leg in LEG_NAMES:
        fore, side = (1 if leg[0] == "F" else -1), (1 if leg[1] == "L" else -1)
        hip, thigh, calf = (next(frames) for _ in LEG_JOINTS)
        yield "hip", base_frame, hip, (fore * legs.hip_x_m, side * legs.hip_y_m, 0.0)
        yield "thigh", hip, thigh, (0.0, side * legs.abduction_m, 0.0)
        yield "calf", thigh, calf, (0.0, 0.0, -legs.thigh_m)


def leg_transforms(
    legs: Legs, joints_rad: Sequence[float], base_frame: str, stamp_s: float
) -> list[TransformStamped]:
    """Return the twelve transforms of the legs at these angles."""
    found = []
    stamp = to_time(stamp_s)
    for (kind, parent, child, place), angle in zip(_joints(legs, base_frame), joints_rad, strict=True):
        made = TransformStamped(child_frame_id=child)
        made.header.frame_id, made.header.stamp = parent, stamp
        move = made.transform.translation
        move.x, move.y, move.z = place
        x, y, z = AXES[kind]
        made.transform.rotation = to_quaternion(x * angle, y * angle, z * angle)
        found.append(made)
    return found


def joint_states(joints_rad: Sequence[float], stamp_s: float) -> JointState:
    """Return the angles as a message."""
    message = JointState(name=list(JOINT_NAMES), position=[float(angle) for angle in joints_rad])
    message.header.stamp = to_time(stamp_s)
    return message


def urdf(spec: RobotSpec, base_frame: str = "base_link") -> str:
    """Return the robot as URDF. Without legs it is its hull: one box."""
    robot = Xml.Element("robot", name=spec.name)
    for name, (r, g, b) in (("light", LIGHT), ("dark", DARK)):
        material = Xml.SubElement(robot, "material", name=name)
        Xml.SubElement(material, "color", rgba=f"{r} {g} {b} 1")
    base, hull, legs = Xml.SubElement(robot, "link", name=base_frame), spec.hull, spec.legs
    if legs is None:
        _visual(base, "box", (hull.length_m, hull.width_m, hull.height_m))
        return Xml.tostring(robot, encoding="unicode")
    # The trunk reaches from hip to hip, the head from there to the hull's front.
    head_m = hull.length_m / 2 - legs.hip_x_m
    _visual(base, "box", (2 * legs.hip_x_m, 3 * legs.hip_y_m, TRUNK_HEIGHT_M))
    _visual(base, "box", (head_m, 2 * legs.hip_y_m, 0.08), (legs.hip_x_m + head_m / 2, 0, 0.02), "dark")
    for kind, parent, child, place in _joints(legs, base_frame):
        joint = Xml.SubElement(robot, "joint", name=f"{child[len(frame_prefix(base_frame)) :]}_joint")
        joint.set("type", "continuous")
        Xml.SubElement(joint, "parent", link=parent)
        Xml.SubElement(joint, "child", link=child)
        Xml.SubElement(joint, "origin", xyz=_numbers(place))
        Xml.SubElement(joint, "axis", xyz=_numbers(AXES[kind]))
        _limb(Xml.SubElement(robot, "link", name=child), kind, legs, left=place[1] > 0)
    return Xml.tostring(robot, encoding="unicode")


def _limb(link: Xml.Element, kind: str, legs: Legs, *, left: bool) -> None:
    """Draw one part of a leg: the hip's motor across, thigh and calf down, a foot below the calf."""
    if kind == "hip":
        across = legs.abduction_m / 2 * (1 if left else -1)
        _visual(link, "cylinder", (0.045, legs.abduction_m), (0, across, 0), "dark", roll_rad=math.pi / 2)
    elif kind == "thigh":
        _visual(link, "box", (0.05, 0.035, legs.thigh_m), (0, 0, -legs.thigh_m / 2))
    else:
        _visual(link, "cylinder", (0.014, legs.calf_m), (0, 0, -legs.calf_m / 2), "dark")
        _visual(link, "sphere", (legs.foot_radius_m,), (0, 0, -legs.calf_m), "dark")


def _visual(
    link: Xml.Element,
    shape: str,
    size: Sequence[float],
    place: Sequence[float] = (0, 0, 0),
    material: str = "light",
    *,
    roll_rad: float = 0.0,
) -> None:
    """Add a shape: a box by its sides, a cylinder by radius and length, a sphere by its radius; metres."""
    visual = Xml.SubElement(link, "visual")
    Xml.SubElement(visual, "origin", xyz=_numbers(place), rpy=_numbers((roll_rad, 0, 0)))
    geometry = Xml.SubElement(visual, "geometry")
    if shape == "box":
        Xml.SubElement(geometry, "box", size=_numbers(size))
    elif shape == "cylinder":
        Xml.SubElement(geometry, "cylinder", radius=f"{size[0]:g}", length=f"{size[1]:g}")
    else:
        Xml.SubElement(geometry, "sphere", radius=f"{size[0]:g}")
    Xml.SubElement(visual, "material", name=material)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


class RobotModel:
    """Publishes `robot_description`, latched, and `joint_states` while somebody listens."""

    def __init__(self, node: Node, spec: RobotSpec, base_frame: str) -> None:
        self._base_frame, self.legs = base_frame, spec.legs
        self._description = node.create_publisher(String, "robot_description", LATCHED)
        self._states = node.create_publisher(JointState, "joint_states", 10)
        self._description.publish(String(data=urdf(spec, base_frame)))

    def publish(self, joints_rad: Sequence[float], stamp_s: float) -> None:
        """Publish the joints' angles; nothing for a robot that reports none."""
        if joints_rad and self._states.get_subscription_count():
            self._states.publish(joint_states(joints_rad, stamp_s))

    def transforms(self, joints_rad: Sequence[float], stamp_s: float) -> list[TransformStamped]:
        """Return the transforms of the legs; those of a standing body where the angles are not known."""
        if self.legs is None:
            return []
        return leg_transforms(self.legs, joints_rad or standing(self.legs), self._base_frame, stamp_s)

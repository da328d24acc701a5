"""Writes docs/parameters.md from what the nodes declare. A test compares the tables with the running nodes.

python -m vlm_spec_decode.ros.parameter_docs          prints the page
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from std_msgs.msg import String

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.core.config import Setting, settings_of
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.node_parameters import NODES, settings
from vlm_spec_decode.ros.nodes import monitor as monitor_node

PARAMETERS: Mapping[str, tuple[Setting, ...]] = {name: settings(name) for name in NODES}
"""Every parameter of every node."""


@dataclass(frozen=True, slots=True)
class TopicDoc:
    """A topic, service or action of a node: `in`, `out`, `serves` or `action`."""

    direction: str
    name: str
    kind: str
    meaning: str


def _topics(direction: str, **meanings: str) -> tuple[TopicDoc, ...]:
    """Return topics of this package's own messages, or of String."""
    names = {name.replace("__", "/"): meaning for name, meaning in meanings.items()}
    return tuple(
        TopicDoc(direction, name, typed.type_name(typed.TOPICS.get(name, String)), meaning)
        for name, meaning in names.items()
    )


ODOMETRY = "nav_msgs/msg/Odometry"
ACTION = "vlm_spec_decode_msgs/action/ExecuteInstruction"


FRAMES = TopicDoc("in", "camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage", "JPEG frames.")
DIAGNOSTICS = TopicDoc("out", "/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", "Health, once a second.")

CHANNELS: Mapping[str, tuple[TopicDoc, ...]] = {
    "camera_node": (
        TopicDoc(
            "out",
            "camera/image_raw/compressed",
            "sensor_msgs/msg/CompressedImage",
            "JPEG frames, stamped with their capture; sensor-data QoS.",
        ),
        TopicDoc("out", "camera/camera_info", "sensor_msgs/msg/CameraInfo", "Calibration of each frame."),
        DIAGNOSTICS,
    ),
    "vlm_node": (
        FRAMES,
        *_topics(
            "in",
            vlm__instruction="Plain words: a reply while the robot asks, else a new instruction.",
            vlm__request="An instruction with name, approval, dry run, queue, lease; or a reply.",
            vlm__heartbeat="Name of a mission whose asker lives; silence of its `lease_s` cancels it.",
            vlm__withdraw="Name of a mission to end, whether it waits or is under way.",
            vlm__plan__status="Where the robot stands with the plan.",
        ),
        TopicDoc("in", "odom", ODOMETRY, "How far the robot has moved since a frame was taken."),
        *_topics(
            "out",
            vlm__ack="What became of a request, an instruction or a heartbeat: taken, refused, over.",
            vlm__plan="The plan under way, republished as heartbeat.",
            vlm__answer="JSON: a finished answer, with its frame's stamp.",
            vlm__answer__typed="An answer with actions, tokens, and where each token came from.",
            vlm__answer__partial="The committed text so far; transient local.",
            vlm__request="The goals of the action that were accepted, for whoever records.",
            vlm__trace="Figures of an answer and of its rounds; transient local.",
            vlm__run="JSON: settings and models that decide the tokens; transient local.",
            vlm__status="State of mission and link; transient local.",
        ),
        TopicDoc("action", "vlm/execute", ACTION, "An instruction to its end, with feedback; cancel stops."),
        TopicDoc("serves", "vlm/approve", "std_srvs/srv/SetBool", "Yes or no to the plan that is shown."),
        TopicDoc(
            "serves",
            "vlm/approve_plan",
            "vlm_spec_decode_msgs/srv/Approve",
            "Yes or no to a named plan only.",
        ),
        DIAGNOSTICS,
    ),
    "locomotion_node": (
        *_topics("in", vlm__plan="Plans, which are their heartbeat, too."),
        TopicDoc("in", "cmd_vel_teleop", "geometry_msgs/msg/Twist", "A person's velocity; before language."),
        TopicDoc("in", "e_stop/request", "std_msgs/msg/Bool", "True engages the e-stop; never releases it."),
        *_topics("in", vlm__executor="JSON: who else asks for this robot, or holds it."),
        *_topics(
            "out",
            vlm__plan__status="State, reason, what was carried out.",
            vlm__control="Who commands: estop, teleop, language, none.",
            vlm__executor="JSON: this executor's own claim, as heartbeat; the robot's DDS carries it, too.",
        ),
        TopicDoc("out", "odom", ODOMETRY, "Pose and velocity, with covariance."),
        TopicDoc("out", "/tf", "tf2_msgs/msg/TFMessage", "The body in the frame of its odometry."),
        TopicDoc("out", "/tf_static", "tf2_msgs/msg/TFMessage", "The camera on the body; transient local."),
        TopicDoc(
            "out",
            "vlm/ranges",
            "sensor_msgs/msg/LaserScan",
            "What the gate takes for free in front, left, behind, right: four beams from the base's centre.",
        ),
        TopicDoc(
            "out", "robot_description", "std_msgs/msg/String", "URDF of boxes and cylinders; transient local."
        ),
        TopicDoc(
            "out", "joint_states", "sensor_msgs/msg/JointState", "Angles of the legs; only while subscribed."
        ),
        TopicDoc("serves", "e_stop", "std_srvs/srv/SetBool", "True engages and latches, false releases."),
        TopicDoc("serves", "vlm/cancel", "std_srvs/srv/Trigger", "Drops the present mission and stops."),
        DIAGNOSTICS,
    ),
    "monitor_node": (
        FRAMES,
        TopicDoc("in", "odom", ODOMETRY, "For path and markers."),
        TopicDoc("in", "vlm/ranges", "sensor_msgs/msg/LaserScan", "For the markers."),
        *_topics(
            "in",
            vlm__status="For the overlay.",
            vlm__control="For the overlay.",
            vlm__answer__partial="For the overlay.",
            vlm__answer__typed="For the overlay.",
            vlm__trace="For overlay and figures.",
            vlm__plan="For the markers.",
        ),
        TopicDoc(
            "out",
            "vlm/overlay/compressed",
            "sensor_msgs/msg/CompressedImage",
            "Frame with the answer (accepted green, corrected orange, the draft's alone blue), state and "
            "figures; only while subscribed.",
        ),
        TopicDoc(
            "out",
            "vlm/markers",
            "visualization_msgs/msg/MarkerArray",
            "The plan: green verified, orange the draft's alone, grey over; transient local.",
        ),
        TopicDoc(
            "out",
            "vlm/markers/body",
            "visualization_msgs/msg/MarkerArray",
            "Hull, stop zone, obstacles, status, e-stop; only while subscribed.",
        ),
        TopicDoc("out", "vlm/path", "nav_msgs/msg/Path", "Where the robot has been."),
        *(
            TopicDoc("out", f"vlm/figures/{name}", "std_msgs/msg/Float64", said)
            for name, said in monitor_node.FIGURES.items()
        ),
    ),
    "console_node": (
        TopicDoc(
            "in",
            "camera/image_raw/compressed",
            "sensor_msgs/msg/CompressedImage",
            "JPEG frames; only while a page shows them.",
        ),
        TopicDoc("in", "odom", ODOMETRY, "For the map; only while a page is open."),
        TopicDoc("in", "vlm/ranges", "sensor_msgs/msg/LaserScan", "For the map; only while a page is open."),
        *_topics(
            "in",
            vlm__status="For the page.",
            vlm__control="For the page.",
            vlm__answer__partial="For the page.",
            vlm__answer__typed="For the page.",
            vlm__trace="For the page.",
            vlm__plan="For the page.",
            vlm__plan__status="For the page.",
            vlm__ack="Whether an instruction or a reply of a page was taken.",
        ),
        TopicDoc("in", "/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", "For the page."),
        *_topics(
            "out", vlm__request="Instructions and replies of pages.", vlm__withdraw="Missions that pages end."
        ),
        TopicDoc("out", "cmd_vel_teleop", "geometry_msgs/msg/Twist", "Velocities of the page that drives."),
        TopicDoc("out", "e_stop/request", "std_msgs/msg/Bool", "Stops of pages; the service confirms them."),
    ),
}
"""Every topic, service and action of every node at its default parameters."""


def page() -> str:
    """Return docs/parameters.md."""
    lines = [
        "# Parameters, topics and services",
        "",
        "Written by `python -m vlm_spec_decode.ros.parameter_docs` from what the nodes declare. A parameter",
        "marked live can be changed while the node runs (`ros2 param set`), and is checked; the others are",
        "read-only.",
        "Names without a leading slash are relative to the node's namespace. The messages of",
        "`vlm_spec_decode_msgs` say what their fields mean, and in which units: `ros2 interface show TYPE`.",
        "",
        "Every node is a managed one (`ros2 lifecycle set NODE …`): configure reads the settings and files,",
        "activate waits until robot and cloud are there or have failed, deactivate stops the robot first.",
        "`autostart` does the first two.",
    ]
    for node, parameters in PARAMETERS.items():
        lines += [
            "",
            f"## {node}",
            "",
            "| parameter | default | range | unit | live | meaning |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_row(parameter) for parameter in parameters]
        lines += ["", "| | topic, service or action | type | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| {c.direction} | `{c.name}` | `{c.kind}` | {c.meaning} |" for c in CHANNELS[node]]
    for title, text, kind in FILES:
        lines += _file(title, text, kind)
    return "\n".join(lines) + "\n"


LIMITS_FILE = """\
How fast, how far and when the robot may move is set in a YAML file that the locomotion node reads
when it starts: parameter `limits_file`, launch argument `limits`. A limit that the file does not
name keeps its default; an unknown name and a value that cannot be meant are refused.
[safety.md](safety.md#limits) has an example, and what the limits guarantee."""

LINK_FILE = """\
What `--link` and the parameter `link_file` take: the name of a file in `config/links`, or a path."""

HARDWARE_FILE = """\
What `--profile`, `vsd bench --profiles` and the parameter `hardware_profile` take: the name of a file in
`config/profiles`, or a path. [timing.md](timing.md) shows what a robot with such hardware does."""


FILES: tuple[tuple[str, str, type[Any]], ...] = (
    ("Limits file", LIMITS_FILE, SafetyLimits),
    ("Link profile", LINK_FILE, LinkProfile),
    ("Hardware profile", HARDWARE_FILE, HardwareProfile),
)


def _file(title: str, text: str, kind: type[Any]) -> list[str]:
    """Return the section of a settings file whose keys are the settings of a dataclass."""
    rows = [
        f"| `{each.name}` | {_default(each)} | {each.bounds} | {each.unit} | {each.description} |"
        for each in settings_of(kind).values()
    ]
    head = ["| key | default | range | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    return ["", f"## {title}", "", text, "", *head, *rows]


def _row(setting: Setting) -> str:
    live = "yes" if setting.live else ""
    cells = (f"`{setting.name}`", _default(setting), setting.bounds, setting.unit, live, setting.description)
    return f"| {' | '.join(cells)} |"


def _default(setting: Setting) -> str:
    return f"`{setting.text}`" if setting.text else "empty"


if __name__ == "__main__":
    sys.stdout.write(page())

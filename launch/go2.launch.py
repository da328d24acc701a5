"""The four nodes on a robot's computer, towards a real Go2 and a cloud elsewhere.

    ros2 launch vlm_spec_decode go2.launch.py interface:=eth0 cloud:=tcp://10.0.0.2:5557 keys:=~/.vsd/keys

Needs cyclonedds 0.10.x: the nodes refuse to meet a real robot with 11.x, and say why.
"""

from launch.actions import OpaqueFunction

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros.launch import Values, declare, node, recorder, view
from vlm_spec_decode.ros.launch_arguments import DECODING, MISSION, PROCESSES, Argument

ARGUMENTS = (
    Argument("interface", None, "Network interface towards the robot, such as eth0."),
    Argument("cloud", None, "Address of the verifier, such as tcp://10.0.0.2:5557."),
    Argument("keys", None, "Folder of CURVE keys: this robot's pair, the cloud's public key (`vsd keys`)."),
    Argument("domain", "0", "DDS domain of the robot."),
    Argument(
        "driver",
        "sdk",
        "sdk or ros2: a Go2; cmd_vel: any robot that takes velocities and says its odometry.",
        ("sdk", "ros2", "cmd_vel"),
    ),
    *DECODING,
    *MISSION,
    Argument(
        "source",
        "robot",
        "robot, multicast, image:TOPIC, compressed:TOPIC, file:VIDEO or bag:FOLDER.",
    ),
    Argument("calibration", "", "Calibration YAML of the camera; empty: a pinhole of 100 deg."),
    *PROCESSES,
)
CONFIG = "go2.yaml"


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    value = Values.of(context, ARGUMENTS)
    if value["driver"] == "cmd_vel" and value["source"] == "robot":
        raise ConfigError("driver:=cmd_vel has no Go2's camera: say source:=image:TOPIC")
    robot = {"interface": value["interface"], "domain": value.whole("domain")}
    prefix = value["frame_prefix"]
    base = {"odom_frame": f"{prefix}odom", "base_frame": f"{prefix}base_link"}
    lens = f"{prefix}front_camera_optical"
    eye = {"calibration_file": value["calibration"], "source": value["source"], "frame_id": lens}
    legs = value.some("driver", "scan_topic") | {"limits_file": value["limits"]}
    legs |= {"camera_frame": f"{prefix}front_camera", "optical_frame": lens}
    told = ("cloud", "keys", "strategy", "objective", "draft", "instruction", "fallback")
    vlm = value.some(*told) | {"approve": value.flag("approve")}
    return [
        node("camera_node", value, robot | eye, CONFIG),
        node("locomotion_node", value, robot | base | legs, CONFIG),
        node("monitor_node", value, base, CONFIG),
        node("vlm_node", value, vlm, CONFIG),
        *recorder(value),
        *view(value),
    ]


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=bring_up)])

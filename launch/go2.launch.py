"""The four nodes on a robot's computer, towards a real Go2 and a cloud elsewhere.

    ros2 launch vlm_spec_decode go2.launch.py interface:=eth0 cloud:=tcp://10.0.0.2:5557 keys:=~/.vsd/keys

Needs cyclonedds 0.10.x: the nodes refuse to meet a real robot with 11.x, and say why.
"""

from launch.actions import OpaqueFunction

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros.frames import frame_parameters
from vlm_spec_decode.ros.launch import Values, declare, nodes
from vlm_spec_decode.ros.node_parameters import DECODING, MISSION, PROCESSES, parameter

ARGUMENTS = (
    parameter("interface", default=None),
    parameter("cloud", default=None),
    parameter("cloud_choice"),
    parameter("keys", default=None),
    parameter("domain", default="0"),
    parameter("driver"),
    *DECODING,
    *MISSION,
    parameter("source"),
    parameter("calibration_file", "calibration"),
    *PROCESSES,
)
CONFIG = "go2.yaml"


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    value = Values.of(context, ARGUMENTS)
    if value["driver"] == "cmd_vel" and value["source"] == "robot":
        raise ConfigError("driver:=cmd_vel has no Go2's camera: say source:=image:TOPIC")
    robot = {"interface": value["interface"], "domain": value.integer("domain")}
    frames = frame_parameters(value["frame_prefix"])
    eye = {"calibration_file": value["calibration"], "source": value["source"]}
    legs = value.subset("driver", "scan_topic") | {"limits_file": value["limits"]}
    told = (
        "cloud",
        "cloud_choice",
        "keys",
        "strategy",
        "objective",
        "draft",
        "instruction",
        "fallback",
        "start",
    )
    vlm = value.subset(*told) | {"approve": value.flag("approve")}
    return nodes(value, CONFIG, frames, camera=robot | eye, locomotion=robot | legs, vlm=vlm)


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=bring_up)])

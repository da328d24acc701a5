"""Everything on this machine: simulated Go2, cloud, and the four nodes.

ros2 launch vlm_spec_decode sim.launch.py instruction:="walk to the red ball" rviz:=true
"""

from launch.actions import OpaqueFunction

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vlm_spec_decode.ros.frames import frame_parameters
from vlm_spec_decode.ros.launch import Values, declare, nodes, option, vsd
from vlm_spec_decode.ros.node_parameters import (
    BODY,
    CLOUD_PORT,
    DECODING,
    MISSION,
    PROCESSES,
    TARGET,
    Argument,
    parameter,
)

ARGUMENTS = (
    Argument("scene_seed", "0", "Seed of the random room."),
    Argument("scene", "", "YAML file of a room; empty: a random one from scene_seed."),
    BODY,
    *DECODING,
    *MISSION,
    TARGET,
    parameter("keys"),
    CLOUD_PORT,
    parameter("domain", "dds_domain"),
    *PROCESSES,
)
CONFIG = "sim.yaml"
LINGER = ("--linger", "3")
"""Ctrl-C reaches everything at once, and the locomotion node still has to see the robot stand."""


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    value = Values.of(context, ARGUMENTS)
    address = f"tcp://127.0.0.1:{value.integer('cloud_port')}"
    robot = {"interface": "lo", "domain": value.integer("dds_domain")}
    legs = value.subset("scan_topic") | {"limits_file": value["limits"]}
    vlm = value.subset("keys", "strategy", "objective", "draft", "instruction", "fallback", "start")
    vlm |= {"cloud": address, "approve": value.flag("approve")}
    return [
        vsd("simulator", "sim", *room(value), *LINGER, "--domain", value["dds_domain"]),
        vsd("cloud", "cloud", "--bind", address, *option("--model", value.path("target")), *security(value)),
        *nodes(
            value,
            CONFIG,
            frame_parameters(value["frame_prefix"]),
            camera=robot,
            locomotion=robot | legs,
            vlm=vlm,
        ),
    ]


def room(value: Values) -> tuple[str, ...]:
    """Return the simulator's options for room and body."""
    scene = option("--scene", value.path("scene")) or ("--scene-seed", str(value.integer("scene_seed")))
    return (*scene, "--body", value["body"])


def security(value: Values) -> tuple[str, ...]:
    """Return the cloud's options for its keys; plaintext never leaves this machine."""
    return option("--keys", value.path("keys")) or ("--insecure",)


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=bring_up)])

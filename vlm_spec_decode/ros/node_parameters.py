"""Which parameters each node declares. Imports of a node's modules only what is asked for."""

from __future__ import annotations

from vlm_spec_decode.robot.go2.codes import POSTURE_CODES
from vlm_spec_decode.ros.lifecycle import AUTOSTART
from vlm_spec_decode.ros.params import Parameter

ROBOT_PARAMETERS = (
    Parameter("interface", "lo", "Network interface towards the robot; lo: a simulated one."),
    Parameter("domain", 1, "DDS domain of the robot: 0 on a real one.", 0, 232),
)

DRIVER_PARAMETERS = (
    Parameter(
        "driver",
        "sdk",
        "How the robot is spoken to: sdk (a Go2, Unitree's SDK), ros2 (a Go2, unitree_api messages) or "
        "cmd_vel (any robot with odometry).",
        choices=("sdk", "ros2", "cmd_vel"),
    ),
    Parameter(
        "state_codes",
        "",
        "What codes of the robot's state mean on its firmware, such as 2077 walk, 2078 lock; words: "
        f"{', '.join(POSTURE_CODES)}.",
    ),
)

SOURCE_PARAMETERS = (
    Parameter(
        "source",
        "robot",
        "Frames: robot, multicast (its own stream), image:TOPIC, compressed:TOPIC, file:VIDEO, bag:FOLDER.",
    ),
)

NODES = ("camera_node", "vlm_node", "locomotion_node", "monitor_node")


def settings(name: str) -> tuple[Parameter, ...]:
    """Return the parameters of one of `NODES`, in the order in which they are documented."""
    return (*_OF[name](), AUTOSTART)


def _camera() -> tuple[Parameter, ...]:
    from vlm_spec_decode.ros.nodes import camera

    return SOURCE_PARAMETERS + ROBOT_PARAMETERS + camera.PARAMETERS


def _vlm() -> tuple[Parameter, ...]:
    from vlm_spec_decode.ros import engine_source
    from vlm_spec_decode.ros.nodes import vlm

    return vlm.PARAMETERS + engine_source.PARAMETERS


def _locomotion() -> tuple[Parameter, ...]:
    from vlm_spec_decode.ros import obstacle_sensors, operator_inputs, process_priority, velocity_robot
    from vlm_spec_decode.ros.nodes import locomotion

    own = DRIVER_PARAMETERS + ROBOT_PARAMETERS + (process_priority.PARAMETER,) + velocity_robot.PARAMETERS
    return own + locomotion.PARAMETERS + operator_inputs.PARAMETERS + obstacle_sensors.PARAMETERS


def _monitor() -> tuple[Parameter, ...]:
    from vlm_spec_decode.ros.nodes import monitor

    return monitor.PARAMETERS


_OF = dict(zip(NODES, (_camera, _vlm, _locomotion, _monitor), strict=True))

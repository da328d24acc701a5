"""Which parameters each node declares, and the arguments that several launch files share.

Does not import `launch`, so that tests can read the arguments. One that is a parameter of a node has its
description, default and choices from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_spec_decode.core.config import Setting, settings_of
from vlm_spec_decode.core.profiles import BODIES
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.ros.params import AUTOSTART, DRIVER_PARAMETERS, ROBOT_PARAMETERS, SOURCE_PARAMETERS
from vlm_spec_decode.transport.address import DEFAULT_PORT

NODES = ("camera_node", "vlm_node", "locomotion_node", "monitor_node", "console_node")


def settings(name: str) -> tuple[Setting, ...]:
    """Return the parameters of one of `NODES`, in the order in which they are documented.

    Imports the node's modules and no other's.
    """
    found = {
        "camera_node": _camera,
        "vlm_node": _vlm,
        "locomotion_node": _locomotion,
        "monitor_node": _monitor,
        "console_node": _console,
    }
    return (*found[name](), AUTOSTART)


def _camera() -> tuple[Setting, ...]:
    from vlm_spec_decode.ros.nodes import camera

    return SOURCE_PARAMETERS + ROBOT_PARAMETERS + camera.PARAMETERS


def _vlm() -> tuple[Setting, ...]:
    from vlm_spec_decode.ros.nodes import vlm

    return vlm.PARAMETERS + vlm.ENGINE_PARAMETERS


def _locomotion() -> tuple[Setting, ...]:
    from vlm_spec_decode.ros import obstacle_sensors, operator_inputs, velocity_robot
    from vlm_spec_decode.ros.nodes import locomotion

    own = DRIVER_PARAMETERS + ROBOT_PARAMETERS + (locomotion.PRIORITY,) + velocity_robot.PARAMETERS
    return own + locomotion.PARAMETERS + operator_inputs.PARAMETERS + obstacle_sensors.PARAMETERS


def _monitor() -> tuple[Setting, ...]:
    from vlm_spec_decode.ros.nodes import monitor

    return monitor.PARAMETERS


def _console() -> tuple[Setting, ...]:
    from vlm_spec_decode.ros.nodes import console

    return console.PARAMETERS


YES_NO = ("true", "false", "True", "False")

PARAMETERS: Mapping[str, Setting] = {each.name: each for name in reversed(NODES) for each in settings(name)}
"""Every parameter of the nodes by name."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One launch argument. Without a default it is required; `choices` limits its values."""

    name: str
    default: str | None
    description: str
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, setting: Setting, name: str = "", **default: str | None) -> Argument:
        """Return the argument of a setting; `default` replaces the setting's default."""
        is_flag = isinstance(setting.default, bool)
        usual = str(setting.default).lower() if is_flag else setting.text
        choices = YES_NO if is_flag else setting.choices
        return cls(name or setting.name, default.get("default", usual), setting.description, choices)


def parameter(name: str, argument: str = "", **default: str | None) -> Argument:
    """Return the argument of a node's parameter; `argument` is the argument's name if it differs."""
    return Argument.of(PARAMETERS[name], argument, **default)


TARGET = Argument.of(settings_of(EdgeSettings)["target"])
BODY = Argument("body", BODIES[0], "Body of the simulated robot.", BODIES)
CLOUD_PORT = Argument("cloud_port", str(DEFAULT_PORT), "TCP port of the cloud on 127.0.0.1.")
NAMESPACE = Argument("namespace", "", "Namespace of the nodes.")
RVIZ = Argument("rviz", "false", "Also start rviz2 (of your ROS installation).", YES_NO)

STRATEGY = parameter("strategy")
DECODING = (
    STRATEGY,
    *map(parameter, ("objective", "draft", "draft_budget", "image_budget_s")),
)
"""How the VLM node decodes."""

MISSION = (
    parameter("instruction"),
    parameter("fallback"),
    parameter("start"),
    parameter("approve"),
    parameter("limits_file", "limits"),
    parameter("scan_topic"),
)
"""What moves the robot, and how far."""

PROCESSES = (
    NAMESPACE,
    Argument("frame_prefix", "", "Put before every frame, such as go2_a/, where several robots share /tf."),
    parameter("autostart"),
    Argument(
        "respawn", "false", "Start a node that ends again after 2 s, instead of ending everything.", YES_NO
    ),
    Argument("console", "false", "Also serve the console, a page in a browser.", YES_NO),
    parameter("bind", "console_bind"),
    parameter("tokens", "console_tokens"),
    Argument("record", "", "Folder of a new bag that `vsd record` fills; empty: nothing is recorded."),
    RVIZ,
)
"""How the nodes are run, seen and recorded."""

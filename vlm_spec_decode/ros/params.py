"""Settings as ROS 2 parameters of a node.

A parameter is a `Setting`: a field of a settings dataclass (`parameters`), or, where no dataclass holds it,
one of a module's `PARAMETERS`. `ros2 param describe` shows description and range. Parameters marked `live`
may be changed while the node runs; every change is checked like a first value. All others are read-only: a
safety limit must not change while the robot moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.utilities import remove_ros_args

from vlm_spec_decode.core.config import Scalar, Setting, settings_of
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import text_problem
from vlm_spec_decode.robot.go2.codes import POSTURE_CODES
from vlm_spec_decode.robot.go2.config import Go2Config
from vlm_spec_decode.ros.middleware import named_errors

DRIVERS: Mapping[str, str] = {
    "sdk": "a Go2, Unitree's SDK",
    "ros2": "a Go2, unitree_api messages",
    "cmd_vel": "any robot with odometry",
}
"""Drivers of the locomotion node, and the robots of each."""

CAMERA_SOURCES = ("robot", "multicast", "image:TOPIC", "compressed:TOPIC", "file:VIDEO", "bag:FOLDER[#TOPIC]")
"""Sources of frames (`ros.camera_sources`); multicast is the robot's own stream."""


def parameters(kind: type[Any], *names: str, **renamed: str) -> tuple[Setting, ...]:
    """Return settings of a dataclass as parameters: those in `names`, then the `renamed` ones, field to name.

    A value of None is an empty text as a parameter.
    """
    known = settings_of(kind)
    pairs = [*((name, name) for name in names), *renamed.items()]
    return tuple(
        replace(known[field], name=name, default="" if known[field].default is None else known[field].default)
        for field, name in pairs
    )


AUTOSTART = Setting("autostart", True, "Configure and activate at the start; false: a manager does it.")
ROBOT_PARAMETERS = parameters(Go2Config, "interface", "domain")
DRIVER_PARAMETERS = (
    Setting(
        "driver",
        "sdk",
        f"How the robot is spoken to: {'; '.join(f'{name} ({what})' for name, what in DRIVERS.items())}.",
        one_of=tuple(DRIVERS),
    ),
    Setting(
        "state_codes",
        "",
        "What codes of the robot's state mean on its firmware, such as 2077 walk, 2078 lock; words: "
        f"{', '.join(POSTURE_CODES)}.",
    ),
)
SOURCE_PARAMETERS = (Setting("source", CAMERA_SOURCES[0], f"Frames: {', '.join(CAMERA_SOURCES)}."),)


def descriptor(setting: Setting) -> ParameterDescriptor:
    """Return what rclpy enforces and `ros2 param describe` shows."""
    message = ParameterDescriptor(description=setting.description, read_only=not setting.live)
    # A file with `rate_hz: 2` gives an integer, which rclpy would refuse for a real number, so the type of
    # real numbers is checked here. So is that of a switch, which `-p early_frames:=off` makes a boolean.
    message.dynamic_typing = setting.is_real or _is_switch(setting)
    if setting.choices:
        message.additional_constraints = f"one of: {', '.join(setting.choices)}"
    if setting.low is None or setting.high is None:
        return message
    if isinstance(setting.default, int):
        bounds = IntegerRange(from_value=int(setting.low), to_value=int(setting.high), step=0)
        message.integer_range = [bounds]
    else:
        message.floating_point_range = [FloatingPointRange(from_value=setting.low, to_value=setting.high)]
    return message


def _is_switch(setting: Setting) -> bool:
    return {"on", "off"} <= set(setting.choices)


def _in_words(setting: Setting, value: object) -> object:
    """Return a switch's value as text: YAML reads a plain on or off as true or false."""
    return ("on" if value else "off") if _is_switch(setting) and isinstance(value, bool) else value


def problem_of(setting: Setting, value: object) -> str:
    """Return the fault of a parameter's value beyond what rclpy checks, or "".

    rclpy checks the type of all but real numbers and switches.
    """
    if setting.is_real and (isinstance(value, bool) or not isinstance(value, int | float)):
        return f"parameter {setting.name}: a number is wanted, not {value!r}"
    value = _in_words(setting, value)
    if _is_switch(setting) and not isinstance(value, str):
        return f"parameter {setting.name}: one of {', '.join(setting.choices)} is wanted, not {value!r}"
    problem = setting.check(value)
    if not problem and isinstance(value, float) and not math.isfinite(value):
        problem = f"{value} is no finite number"
    return f"parameter {setting.name}: {problem}" if problem else ""


class Parameters:
    """The values of a node's parameters, by type; a live one answers with its newest value."""

    def __init__(self, node: Node, declared: tuple[Setting, ...]) -> None:
        """Declare all parameters; those that an earlier part of the node has declared are only read.

        Raises ConfigError for a value of the wrong type or out of range.
        """
        self._node = node
        known = {parameter.name for parameter in declared if node.has_parameter(parameter.name)}
        self._declared = {parameter.name: parameter for parameter in declared}
        for parameter in declared:
            _declare(node, parameter)
        if any(parameter.live and parameter.name not in known for parameter in declared):
            node.add_on_set_parameters_callback(self._on_set)

    def real(self, name: str) -> float:
        """Return a number."""
        return float(self._value(name))

    def integer(self, name: str) -> int:
        """Return an integer."""
        return int(self._value(name))

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        return bool(self._value(name))

    def text(self, name: str) -> str:
        """Return a string."""
        return str(self._value(name))

    def path(self, name: str) -> Path | None:
        """Return a file or folder, None where the parameter is empty. Raises ConfigError for no such user."""
        try:
            return Path(self.text(name)).expanduser() if self.text(name) else None
        except RuntimeError as error:
            raise ConfigError(f"parameter {name}: {self.text(name)}: {error}") from error

    def value(self, name: str) -> Scalar:
        """Return a value as its setting's type."""
        return self.real(name) if self._declared[name].is_real else self._value(name)

    def _value(self, name: str) -> Scalar:
        value = _in_words(self._declared[name], self._node.get_parameter(name).value)
        return cast(Scalar, value)

    def _on_set(self, changed: Sequence[rclpy.Parameter]) -> SetParametersResult:
        for new in changed:
            declared = self._declared.get(new.name)
            problem = problem_of(declared, new.value) if declared else ""
            if problem:
                return SetParametersResult(successful=False, reason=problem)
        return SetParametersResult(successful=True)


def _declare(node: Node, parameter: Setting) -> None:
    try:
        if node.has_parameter(parameter.name):
            value: object = node.get_parameter(parameter.name).value
        else:
            declared = node.declare_parameter(parameter.name, parameter.default, descriptor(parameter))
            value = declared.value
    except InvalidParameterTypeException as error:
        wanted = {bool: "true or false", int: "a whole number", str: "text"}.get(type(parameter.default), "")
        raise ConfigError(f"parameter {parameter.name}: {wanted or 'a number'} is wanted: {error}") from error
    except InvalidParameterValueException as error:
        raise ConfigError(f"parameter {parameter.name}: {error}") from error
    problem = problem_of(parameter, value)
    if problem:
        raise ConfigError(problem)


HELP = ("-h", "--help")


def asks_for_help(args: Sequence[str]) -> bool:
    """Return whether `args`, the program's name first, ask for help."""
    return bool(set(args[1:]) & set(HELP))


def check_arguments(args: Sequence[str]) -> None:
    """Raise ConfigError for arguments that ROS cannot read or would ignore, and for bytes that are no text.

    rclpy reads what follows `--ros-args` and ignores the rest, so that `vlm_node cloud:=…` would start
    without any of the given settings.
    """
    for each in args:
        if problem := text_problem(each):
            raise ConfigError(f"argument {each!r}: {problem}")
    with named_errors():
        remove_ros_args(list(args))
    unknown = _beside_ros(args[1:])
    if unknown:
        raise ConfigError(
            f"unknown argument {unknown[0]!r}; parameters are given as --ros-args -p NAME:=VALUE, "
            "and --help lists them"
        )


def _beside_ros(args: Sequence[str]) -> list[str]:
    """Return the arguments outside `--ros-args` … `--`. rclpy's own function takes `a:=b` for a remapping."""
    found, is_for_ros = [], False
    for each in args:
        if each == "--ros-args":
            is_for_ros = True
        elif is_for_ros and each == "--":
            is_for_ros = False
        elif not is_for_ros:
            found.append(each)
    return found


def help_text(name: str, parameters: Sequence[Setting]) -> str:
    """Return what `--help` prints for a node."""
    lines = [
        f"Usage: {name} [--help] [--ros-args [-p NAME:=VALUE]... [--params-file FILE] [-r __ns:=/NAME]]",
        "",
        "Parameters (default; range or choices; * can be changed while the node runs):",
    ]
    for each in sorted(parameters, key=lambda parameter: parameter.name):
        bounds = each.bounds
        default = repr(each.default) if isinstance(each.default, str) else str(each.default)
        mark = "*" if each.live else " "
        lines += [
            f"{mark} {each.name} ({default}{'; ' + bounds if bounds else ''})",
            f"      {each.description}",
        ]
    lines += [
        "",
        "Topics and services: docs/parameters.md. Exit codes: 0 ended, 1 failed, 2 settings, 4 robot.",
    ]
    return "\n".join(lines) + "\n"

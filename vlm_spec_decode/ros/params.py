"""Declared parameters with description and range, and YAML files that parameters name.

`ros2 param describe` shows description and range. Parameters marked `live` may be changed while the node
runs; every change is checked like a first value. All others are read-only: changing a limit under a moving
robot would be a command, not a setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.text import text_problem
from vlm_spec_decode.core.yaml_file import read_yaml


def load_yaml(path: Path) -> Mapping[str, Any]:
    """Return a YAML file's mapping. Raises ConfigError naming the file and what is wrong with it."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: no mapping of settings")
    return values


Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `low` and `high` bound numbers; `choices` bounds strings; `live` allows changes."""

    name: str
    default: Scalar
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """Return what rclpy enforces and `ros2 param describe` shows."""
        message = ParameterDescriptor(description=self.description, read_only=not self.live)
        # A file that says `rate_hz: 2` gives an integer, which rclpy would not take for a real number: what
        # type a real number may have is checked here.
        message.dynamic_typing = self.is_real
        if self.choices:
            message.additional_constraints = f"one of: {', '.join(self.choices)}"
        if self.low is None or self.high is None:
            return message
        if isinstance(self.default, int):
            bounds = IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)
            message.integer_range = [bounds]
        else:
            message.floating_point_range = [FloatingPointRange(from_value=self.low, to_value=self.high)]
        return message

    @property
    def is_real(self) -> bool:
        """Whether it is a real number."""
        return isinstance(self.default, float)

    def check(self, value: object) -> str:
        """Return what is wrong with `value` beyond what rclpy checks; or nothing.

        rclpy checks the type of all but real numbers, and the range of integers.
        """
        if isinstance(value, str) and (problem := text_problem(value)):
            return f"parameter {self.name}: {problem}"
        if self.choices and value not in self.choices:
            return f"parameter {self.name}: {value!r} is none of {', '.join(self.choices)}"
        return self._check_real(value) if self.is_real else ""

    def _check_real(self, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"parameter {self.name}: a number is wanted, not {value!r}"
        low, high = (
            -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )
        if not (math.isfinite(value) and low <= value <= high):
            return f"parameter {self.name}: {value} is not within {low:g} to {high:g}"
        return ""


class Parameters:
    """The values of a node's parameters, by type; a live one answers with its newest value."""

    def __init__(self, node: Node, declared: tuple[Parameter, ...]) -> None:
        """Declare all; what is declared already, by a part that is put together again, is only read.

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

    def _value(self, name: str) -> Scalar:
        value: Scalar = self._node.get_parameter(name).value
        return value

    def _on_set(self, changed: Sequence[rclpy.Parameter]) -> SetParametersResult:
        for new in changed:
            declared = self._declared.get(new.name)
            problem = declared.check(new.value) if declared else ""
            if problem:
                return SetParametersResult(successful=False, reason=problem)
        return SetParametersResult(successful=True)


def _declare(node: Node, parameter: Parameter) -> None:
    try:
        if node.has_parameter(parameter.name):
            value: object = node.get_parameter(parameter.name).value
        else:
            declared = node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
            value = declared.value
    except InvalidParameterTypeException as error:
        wanted = {bool: "true or false", int: "a whole number", str: "text"}.get(type(parameter.default), "")
        raise ConfigError(f"parameter {parameter.name}: {wanted or 'a number'} is wanted: {error}") from error
    except InvalidParameterValueException as error:
        raise ConfigError(f"parameter {parameter.name}: {error}") from error
    problem = parameter.check(value)
    if problem:
        raise ConfigError(problem)

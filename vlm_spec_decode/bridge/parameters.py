"""Declared parameters: a description and a range for each, shown by `ros2 param describe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from vlm_spec_decode.core.errors import ConfigError

Scalar: TypeAlias = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `low` and `high` bound numbers; `choices` bounds strings.

    All are read once when the node starts, so they are read-only: changing a limit under a moving robot
    is no setting but a command.
    """

    name: str
    default: Scalar
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """Return what rclpy enforces and `ros2 param describe` shows."""
        message = ParameterDescriptor(description=self.description, read_only=True)
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


class Parameters:
    """The values of a node's parameters, by type."""

    def __init__(self, node: Node, declared: tuple[Parameter, ...]) -> None:
        """Declare all. Raises ConfigError for a value of the wrong type or out of range."""
        self._values: dict[str, Scalar] = {}
        for parameter in declared:
            self._values[parameter.name] = _declare(node, parameter)

    def real(self, name: str) -> float:
        """Return a number."""
        return float(self._values[name])

    def integer(self, name: str) -> int:
        """Return an integer."""
        return int(self._values[name])

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        return bool(self._values[name])

    def text(self, name: str) -> str:
        """Return a string."""
        return str(self._values[name])

    def path(self, name: str) -> Path | None:
        """Return a file or folder, None where the parameter is empty."""
        return Path(self.text(name)).expanduser() if self.text(name) else None


def _declare(node: Node, parameter: Parameter) -> Scalar:
    try:
        value: Scalar = node.declare_parameter(
            parameter.name, parameter.default, parameter.descriptor()
        ).value
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise ConfigError(f"parameter {parameter.name}: {error}") from error
    if parameter.choices and value not in parameter.choices:
        known = ", ".join(parameter.choices)
        raise ConfigError(f"parameter {parameter.name}: {value!r} is none of {known}")
    return value

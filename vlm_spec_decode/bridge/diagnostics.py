"""What `/diagnostics` says: levels and values, once a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vlm_spec_decode.bridge.convert import to_time

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
STALE = DiagnosticStatus.STALE

LOW_BATTERY = 0.2
EMPTY_BATTERY = 0.1


@dataclass(frozen=True, slots=True)
class Health:
    """One line of diagnostics."""

    name: str
    level: bytes
    message: str
    values: Mapping[str, str] = field(default_factory=dict)

    def status(self, hardware_id: str) -> DiagnosticStatus:
        """Return the line as message."""
        pairs = [KeyValue(key=key, value=value) for key, value in self.values.items()]
        fields = {"name": self.name, "message": self.message, "hardware_id": hardware_id}
        return DiagnosticStatus(level=self.level, values=pairs, **fields)


def name_of(node: Node) -> str:
    """Return a node's name with its namespace: all robots share one topic."""
    return str(node.get_fully_qualified_name()).removeprefix("/")


def array(lines: list[Health], stamp_s: float, hardware_id: str) -> DiagnosticArray:
    """Return all lines of one node as the message of `/diagnostics`."""
    message = DiagnosticArray(status=[line.status(hardware_id) for line in lines])
    message.header.stamp = to_time(stamp_s)
    return message


def battery(name: str, soc: float) -> Health:
    """Judge a state of charge, 0 to 1; no number where nobody says it."""
    if not 0.0 <= soc <= 1.0:
        return Health(name, ERROR, "its charge is not known")
    level = ERROR if soc < EMPTY_BATTERY else WARN if soc < LOW_BATTERY else OK
    said = {OK: "charged", WARN: "low", ERROR: "nearly empty"}[level]
    return Health(name, level, said, {"soc_percent": f"{100 * soc:.0f}"})


def rate(name: str, age_s: float | None, limit_s: float, values: Mapping[str, str]) -> Health:
    """Judge a source by the age of its newest item; None means that nothing has come yet."""
    if age_s is None:
        return Health(name, STALE, "nothing received yet", values)
    if age_s > limit_s:
        return Health(name, ERROR, f"silent for {age_s:.1f} s", values)
    return Health(name, OK, "arriving", values)

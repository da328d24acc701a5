"""Contents of `/diagnostics` about nodes, robot and executor: levels and values, once a second."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.control.emergency_stop import StopReport
from vlm_spec_decode.control.robot_supervisor import RobotSupervisor
from vlm_spec_decode.core.errors import RobotError
from vlm_spec_decode.ros.convert import to_time

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
    """Return the health of a battery by its state of charge, 0 to 1; NaN: unknown."""
    if not 0.0 <= soc <= 1.0:
        return Health(name, ERROR, "its charge is not known")
    level = ERROR if soc < EMPTY_BATTERY else WARN if soc < LOW_BATTERY else OK
    message = {OK: "charged", WARN: "low", ERROR: "nearly empty"}[level]
    return Health(name, level, message, {"soc_percent": f"{100 * soc:.0f}"})


def rate(name: str, age_s: float | None, limit_s: float, values: Mapping[str, str]) -> Health:
    """Return the health of a source by the age of its newest item; None: nothing received yet."""
    if age_s is None:
        return Health(name, STALE, "nothing received yet", values)
    if age_s > limit_s:
        return Health(name, ERROR, f"silent for {age_s:.1f} s", values)
    return Health(name, OK, "arriving", values)


EXECUTOR_LEVELS = {
    "refused": WARN,
    "stopped": WARN,
    "fault": ERROR,
    "estop": ERROR,
}


def robot_lines(name: str, supervisor: RobotSupervisor, now_s: float) -> list[Health]:
    """Return the health of the robot: whether it is up, its state, and its battery."""
    readiness = supervisor.readiness
    if not readiness.is_ready:
        level = ERROR if readiness.error else STALE
        return [Health(f"{name}: robot", level, readiness.detail)]
    try:
        state = supervisor.state()
    except RobotError as error:
        return [Health(f"{name}: robot", ERROR, f"{type(error).__name__}: {error}")]
    values = {
        "state": state.label,
        "state_age_s": f"{now_s - state.received_s:.3f}",
        "speed_mps": f"{state.speed_mps:.2f}",
        "front_m": f"{state.range_obstacle_m[0]:.2f}",
    }
    level = OK if state.can_walk else WARN
    message = "ready to walk" if state.can_walk else f"does not walk in state {state.label}"
    if not state.is_known:
        message = f"state {state.code} is not known: say what it means in `state_codes` (docs/real_robot.md)"
    return [
        Health(f"{name}: robot", level, message, values),
        battery(f"{name}: battery", state.battery_soc),
    ]


def executor_line(name: str, status: PlanStatus, stop: StopReport | None) -> Health:
    """Return the health of the executor: its status, and the times of the last stop."""
    level = EXECUTOR_LEVELS.get(status.state, OK)
    message = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
    values = {"mission": status.mission, "answer": str(status.answer), "action": status.action}
    if stop is not None:
        values["last_stop"] = describe_stop(stop)
    return Health(f"{name}: executor", level, message, values)


def describe_stop(stop: StopReport) -> str:
    """Return a stop's cause and times in words."""
    if not math.isfinite(stop.standstill_s):
        return f"{stop.cause}: NOT CONFIRMED ({stop.error})"
    distance = "" if stop.distance_m is None else f" after {stop.distance_m:.2f} m"
    return (
        f"{stop.cause}: commanded in {stop.reaction_s:.3f} s, still {stop.standstill_s:.2f} s later{distance}"
    )

"""What diagnostics say about the robot and its executor."""

from __future__ import annotations

import math

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.actions.stopping import StopReport
from vlm_spec_decode.bridge import diagnostics
from vlm_spec_decode.bridge.diagnostics import Health
from vlm_spec_decode.bridge.legs import Legs
from vlm_spec_decode.core.errors import RobotError
from vlm_spec_decode.robot.codes import state_name

EXECUTOR_LEVELS = {
    "refused": diagnostics.WARN,
    "stopped": diagnostics.WARN,
    "fault": diagnostics.ERROR,
    "estop": diagnostics.ERROR,
}


def robot_lines(name: str, legs: Legs, now_s: float) -> list[Health]:
    """Judge the robot: whether it is up, what its state says, and its battery."""
    readiness = legs.readiness
    if not readiness.is_ready:
        level = diagnostics.ERROR if readiness.error else diagnostics.STALE
        return [Health(f"{name}: robot", level, readiness.detail)]
    try:
        state = legs.state()
    except RobotError as error:
        return [Health(f"{name}: robot", diagnostics.ERROR, f"{type(error).__name__}: {error}")]
    values = {
        "state": state_name(state.code if state.reported_code is None else state.reported_code),
        "state_age_s": f"{now_s - state.received_s:.3f}",
        "speed_mps": f"{state.speed_mps:.2f}",
        "front_m": f"{state.range_obstacle_m[0]:.2f}",
    }
    level = diagnostics.OK if state.can_walk else diagnostics.WARN
    said = "ready to walk" if state.can_walk else f"does not walk in state {state_name(state.code)}"
    if not state.is_known:
        said = f"state {state.code} is not known: say what it means in `state_codes` (docs/real_robot.md)"
    return [
        Health(f"{name}: robot", level, said, values),
        diagnostics.battery(f"{name}: battery", state.battery_soc),
    ]


def executor_line(name: str, status: PlanStatus, stop: StopReport | None) -> Health:
    """Judge what the executor is doing; the last stop's times are its evidence."""
    level = EXECUTOR_LEVELS.get(status.state, diagnostics.OK)
    said = ": ".join(part for part in (status.state, status.reason, status.detail) if part)
    values = {"mission": status.mission, "answer": str(status.answer), "action": status.action}
    if stop is not None:
        values["last_stop"] = describe_stop(stop)
    return Health(f"{name}: executor", level, said, values)


def describe_stop(stop: StopReport) -> str:
    """Return a stop's cause and times in words."""
    if not math.isfinite(stop.standstill_s):
        return f"{stop.cause}: NOT CONFIRMED ({stop.error})"
    way = "" if stop.distance_m is None else f" after {stop.distance_m:.2f} m"
    return f"{stop.cause}: commanded in {stop.reaction_s:.3f} s, still {stop.standstill_s:.2f} s later{way}"

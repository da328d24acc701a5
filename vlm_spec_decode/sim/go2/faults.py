"""Faults of the simulated robot, by name and time.

Written `NAME`, `NAME@START` or `NAME@START+DURATION` in seconds. Times count from the first request on the
sport service, so that a fault meets a robot at work however long its user took to start; `sport_off` alone
counts from the simulator's start. Pure: time is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vlm_spec_decode.core.errors import ConfigError

BURST_PERIOD_S = 4.0
BURST_LENGTH_S = 0.8

FAULTS: dict[str, tuple[float, str]] = {
    "sport_off": (0.0, "the sport service is absent and its state topics are silent"),
    "link_loss": (3.0, "nothing crosses the link any more, while discovery still believes in it"),
    "burst_3102": (2.0, "the sport service's reader vanishes for 0.8 s every 4 s"),
    "burst_3104": (2.0, "requests of all services are lost for 0.8 s every 4 s"),
    "frozen_stamp": (3.0, "the motion computer freezes: calls return 0, body and state stand still"),
    "low_battery": (0.0, "the battery is at 9 % and falls fast"),
    "fall": (3.0, "the robot tips over and needs RecoveryStand"),
}
"""Start time in seconds where none is given, and meaning of each fault."""

_PATTERN = re.compile(r"(?P<name>\w+)(@(?P<start>\d+(\.\d+)?)(\+(?P<duration>\d+(\.\d+)?))?)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and when it is there."""

    name: str
    start_s: float
    duration_s: float = float("inf")


def parse_fault(text: str) -> Fault:
    """Read `NAME[@START[+DURATION]]`. Raises ConfigError naming what is known."""
    match = _PATTERN.fullmatch(text)
    if match is None or match["name"] not in FAULTS:
        known = ", ".join(sorted(FAULTS))
        raise ConfigError(f"unknown fault {text!r}; NAME[@START_S[+DURATION_S]] with a NAME of: {known}")
    start_s = float(match["start"]) if match["start"] else FAULTS[match["name"]][0]
    return Fault(match["name"], start_s, float(match["duration"]) if match["duration"] else float("inf"))


class FaultSchedule:
    """Which faults are there at a given time."""

    def __init__(self, faults: Iterable[Fault], now_s: float) -> None:
        self._faults = tuple(faults)
        self._started_s = now_s
        self._armed_s: float | None = None

    def arm(self, now_s: float) -> None:
        """Note the first sport request; later ones change nothing."""
        if self._armed_s is None:
            self._armed_s = now_s

    def active(self, name: str, now_s: float) -> bool:
        """Return whether a fault of that name is there now."""
        return any(self._is_active(fault, now_s) for fault in self._faults if fault.name == name)

    def _is_active(self, fault: Fault, now_s: float) -> bool:
        origin_s = self._started_s if fault.name == "sport_off" else self._armed_s
        if origin_s is None:
            return False
        age_s = now_s - origin_s - fault.start_s
        if not 0.0 <= age_s < fault.duration_s:
            return False
        return not fault.name.startswith("burst_") or age_s % BURST_PERIOD_S < BURST_LENGTH_S

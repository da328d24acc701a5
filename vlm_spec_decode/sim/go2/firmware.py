"""The state codes of the simulated robot's firmware, and the calls that it has.

Firmware versions differ in both, and newer ones report codes that are not published. Each entry is a kind of
difference seen in reports, not a copy of one version. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.go2.state_machine import WALKING, StateCode

BALANCE_STAND_API = 1002
RENUMBERED_BY = 3000


@dataclass(frozen=True, slots=True)
class Firmware:
    """One kind of firmware. `codes` replace the published ones, `missing` are api ids answered with 3203.

    Without `fills_mode` the older fields `mode` and `gait_type` stay 0.
    """

    name: str
    meaning: str
    codes: Mapping[StateCode, int] = field(default_factory=dict)
    missing: frozenset[int] = frozenset()
    fills_mode: bool = True

    def code(self, code: StateCode) -> int:
        """Return what this firmware says for a state."""
        return self.codes.get(code, int(code))


DOCUMENTED = Firmware("documented", "the published codes and calls")

FIRMWARES = {
    firmware.name: firmware
    for firmware in (
        DOCUMENTED,
        Firmware(
            "classic",
            "2010 wherever it can walk, at rest too; no BalanceStand",
            {code: int(StateCode.CLASSIC) for code in WALKING},
            frozenset({BALANCE_STAND_API}),
        ),
        Firmware(
            "renumbered",
            f"every code is {RENUMBERED_BY} higher than the published one; no BalanceStand, no mode or gait",
            {code: int(code) + RENUMBERED_BY for code in StateCode},
            frozenset({BALANCE_STAND_API}),
            fills_mode=False,
        ),
    )
}


def find_firmware(name: str) -> Firmware:
    """Return the firmware of that name. Raises ConfigError naming what is known."""
    if name not in FIRMWARES:
        known = "; ".join(f"{firmware.name} ({firmware.meaning})" for firmware in FIRMWARES.values())
        raise ConfigError(f"unknown firmware {name!r}; known: {known}")
    return FIRMWARES[name]

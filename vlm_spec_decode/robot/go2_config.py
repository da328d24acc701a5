"""How to reach a Go2, and how long to wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.robot.states import StateTable


@dataclass(frozen=True, slots=True)
class Go2Config:
    """Network, topics and deadlines. `interface` None lets DDS choose one.

    The low-rate topics suffice for control at 20 Hz and cost Python a fifteenth of the full ones.
    `stale_after_s` is how long the state's stamp may stand still before the robot counts as lost, `settle_s`
    how long a code that nobody knows may last before it counts as one that stays.
    """

    interface: str | None = "lo"
    domain: int = 1
    state_topic: str = "rt/lf/sportmodestate"
    low_topic: str = "rt/lf/lowstate"
    call_timeout_s: float = 1.0
    stop_timeout_s: float = 0.1
    stale_after_s: float = 0.5
    first_state_s: float = 4.0
    posture_s: float = 12.0
    stop_s: float = 2.5
    look_s: float = 2.0
    settle_s: float = 2.0
    frame_s: float = 3.0
    states: StateTable = field(default_factory=StateTable)

    def __post_init__(self) -> None:
        """Check what safety depends on. Raises ConfigError."""
        if not 0.0 < self.stop_timeout_s <= 0.1:
            raise ConfigError("stop_timeout_s: above 0 and at most 0.1; a stop that waits is no stop")
        if not 0.1 <= self.stale_after_s <= 0.5:
            raise ConfigError("stale_after_s: within 0.1 to 0.5")

"""The settings of `vsd sim`. Imports nothing heavy: the command's options are made from these fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.core.config import check_ranges, setting
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.profiles import BODIES
from vlm_spec_decode.sim.go2.state_machine import DOCUMENTED, FIRMWARES, StateCode

START_STATES = {
    "lying": StateCode.CROUCH,
    "damping": StateCode.DAMPING,
    "locked": StateCode.STANDING_LOCK,
    "standing": StateCode.BALANCE_STAND,
}


@dataclass(frozen=True, slots=True)
class SimConfig:
    """All settings of `vsd sim`. `faults` are texts that `sim.go2.robot.parse_fault` reads."""

    scene_seed: int = setting(0, "Seed of a random room.")
    scene: Path | None = setting(None, "YAML file of a room.")
    seed: int = setting(0, "Seed of the robot's noise.")
    interface: str = setting("lo", "Network interface of the DDS services.")
    domain: int = setting(1, "DDS domain.", 0, MAX_DOMAIN)
    body: str = setting(BODIES[0], "How the robot moves.", one_of=BODIES)
    start: str = setting("damping", "Posture in which the robot begins.", one_of=tuple(START_STATES))
    faults: tuple[str, ...] = setting((), "NAME or NAME@SECONDS…; may be repeated.")
    firmware: str = setting(DOCUMENTED.name, "Kind of state codes and calls.", one_of=tuple(FIRMWARES))
    view: Path | None = setting(None, "PNG or GIF to save at the end.")
    truth: Path | None = setting(None, "JSON of path and collisions.")
    width: int = setting(640, "Width of the camera's frames in pixels.", 32, 1920)
    height: int = setting(360, "Height of the camera's frames in pixels.", 32, 1080)
    quality: int = setting(85, "JPEG quality of the camera's frames.", 1, 100)
    loop_hz: float = setting(50.0, "Steps of the world.", 10, 500)
    state_hz: float = setting(50.0, "State messages of the fast topics.", 0, 500)
    lf_state_hz: float = setting(20.0, "State messages of the slow topics.", 1, 500)
    drift: float = setting(0.0, "Drift of the odometry, as a share of the way.")
    reselect_s: float = setting(10.0, "How long a released motion service stays out.")
    linger_s: float = setting(
        0.0, "Time that the robot stays after Ctrl-C, so that its commander can still stop it.", 0, 60
    )

    def __post_init__(self) -> None:
        """Check the ranges. Raises ConfigError naming the setting."""
        check_ranges(self)
        if self.view is not None:
            from vlm_spec_decode.sim.ground_truth import check_view

            check_view(self.view)

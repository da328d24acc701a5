"""How to reach a Go2, how long to wait for it, and which DDS version may join which network.

The version is checked before anything joins a network: a participant of cyclonedds 11.x and the robot's own
0.10.x never match on one domain, and 0.10.x processes have been seen to crash in type discovery when they
meet; so 11.x is limited to loopback interfaces, where only a simulator can be.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from vlm_spec_decode.core.config import setting
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.errors import ConfigError, DomainBusy, RobotError, RobotUnreachable
from vlm_spec_decode.robot.go2.codes import StateTable


@dataclass(frozen=True, slots=True)
class Go2Config:
    """Network, topics and deadlines. `interface` None lets DDS choose one.

    The low-rate topics suffice for control at 20 Hz and cost Python a fifteenth of the full ones.
    `stale_after_s` is how long the state's stamp may stay the same before the robot counts as lost,
    `settle_s` how long an unknown code may last before it counts as permanent.
    """

    interface: str | None = setting("lo", "Network interface towards the robot; lo: a simulated one.")
    domain: int = setting(1, "DDS domain of the robot: 0 on a real one.", 0, MAX_DOMAIN)
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
        """Check the deadlines that safety depends on. Raises ConfigError."""
        if not 0.0 < self.stop_timeout_s <= 0.1:
            raise ConfigError("stop_timeout_s: above 0 and at most 0.1; a stop that waits is no stop")
        if not 0.1 <= self.stale_after_s <= 0.5:
            raise ConfigError("stale_after_s: within 0.1 to 0.5")


ROBOT_DDS = "0.10"
_IFF_LOOPBACK = 0x8


def is_loopback(interface: str | None) -> bool:
    """Return whether nothing outside this machine is reachable there; None (DDS chooses) is False."""
    if interface is None:
        return False
    flags = Path("/sys/class/net", interface, "flags")
    if not interface or "/" in interface or not flags.exists():
        return False
    return bool(int(flags.read_text(), 16) & _IFF_LOOPBACK)


def dds_version() -> str:
    """Return the installed version of cyclonedds. Raises RobotError if there is none."""
    try:
        return metadata.version("cyclonedds")
    except metadata.PackageNotFoundError as error:
        raise RobotError("cyclonedds is not installed; it is what speaks to the robot") from error


def check_dds_version(*, allow_simulator: bool) -> None:
    """Refuse cyclonedds 11.x and later towards a real robot. Raises RobotError saying why and what to do.

    `allow_simulator` is for loopback interfaces (`is_loopback`), which no real robot can be on.
    """
    version = dds_version()
    if allow_simulator or version.startswith(f"{ROBOT_DDS}."):
        return
    raise RobotError(
        f"cyclonedds {version} must not join a real Go2's DDS domain: the robot speaks {ROBOT_DDS}.x, the "
        "two never match, and participants of 0.10.x have been seen to crash when they meet 11.x. Install "
        "cyclonedds 0.10.2 (Python 3.10, or built from source); on a loopback interface a simulator is fine"
    )


def check_network(domain: int, interface: str | None) -> None:
    """Check domain, interface and DDS version before joining.

    Raises RobotUnreachable, RobotError (version).
    """
    if not 0 <= domain <= MAX_DOMAIN:
        raise RobotUnreachable(f"DDS domain {domain} does not exist; use 0 to {MAX_DOMAIN}")
    names = [name for _, name in socket.if_nameindex()]
    if interface is not None and interface not in names:
        raise RobotUnreachable(f"no network interface {interface!r} here; there are: {', '.join(names)}")
    check_dds_version(allow_simulator=is_loopback(interface))


def middleware_clash(rmw: str, ros_domain: int, sdk_domain: int, driver: str) -> str:
    """Return why ROS and the robot's SDK cannot share a process, and what to do; "" if they can.

    `rmw` is ROS's middleware in this process, "" without ROS. Both on Cyclone DDS open their domain with a
    configuration of their own, and a process can open a domain once only. `driver` ros2 has no SDK in it.
    """
    if driver != "sdk" or rmw != "rmw_cyclonedds_cpp" or ros_domain != sdk_domain:
        return ""
    return (
        f"ROS (rmw_cyclonedds_cpp) and the robot's SDK both want DDS domain {sdk_domain} in one process, "
        "which Cyclone DDS opens once only: export another ROS_DOMAIN_ID, or "
        "RMW_IMPLEMENTATION=rmw_fastrtps_cpp, or let driver:=ros2 speak to the robot over ROS"
    )


def check_middleware(rmw: str, ros_domain: int, sdk_domain: int, driver: str) -> None:
    """Raise DomainBusy where `middleware_clash` finds one."""
    clash = middleware_clash(rmw, ros_domain, sdk_domain, driver)
    if clash:
        raise DomainBusy(clash)

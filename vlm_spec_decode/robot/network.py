"""Which DDS may meet which robot: checks made before anything is put on the network.

A participant of cyclonedds 11.x and the robot's own 0.10.x never match on one domain, and 0.10.x processes
have been seen to crash in type discovery when they meet; so 11.x is kept to loopback interfaces, where only
a simulator can be.
"""

from __future__ import annotations

import socket
from importlib import metadata
from pathlib import Path

from vlm_spec_decode.core.errors import DomainBusy, RobotError, RobotUnreachable

ROBOT_DDS = "0.10"
MAX_DOMAIN = 232
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
    """Check what can be known before joining. Raises RobotUnreachable, or RobotError for the DDS version."""
    if not 0 <= domain <= MAX_DOMAIN:
        raise RobotUnreachable(f"DDS domain {domain} does not exist; use 0 to {MAX_DOMAIN}")
    names = [name for _, name in socket.if_nameindex()]
    if interface is not None and interface not in names:
        raise RobotUnreachable(f"no network interface {interface!r} here; there are: {', '.join(names)}")
    check_dds_version(allow_simulator=is_loopback(interface))


def middleware_clash(rmw: str, ros_domain: int, sdk_domain: int, driver: str) -> str:
    """Return why ROS and the robot's SDK cannot share a process, with the ways out; "" if they can.

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

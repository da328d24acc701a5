"""The robots by name. A new one is one new file and one `register_robot` line.

A robot's module is imported when the robot is first used: the names alone, which help texts show, import
nothing heavy. Others add theirs without touching this package: by a call of `register_robot`, or by an entry
point, which all programs of this package find:

    [project.entry-points."vlm_spec_decode.robots"]
    my_robot = "my_package.my_robot:ROBOT"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.registry import Registry

if TYPE_CHECKING:
    from vlm_spec_decode.core.ports import Camera, Clock, RobotDriver
    from vlm_spec_decode.robot.lease import Board
    from vlm_spec_decode.robot.spec import RobotSpec

ENTRY_POINTS = "vlm_spec_decode.robots"
"""Group of the entry points that other packages declare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotAddress:
    """Where a robot is, as the caller of `connect` gives it. None means the robot's own default.

    `settings` are the robot's own, by the names of `RobotSpec.settings`.
    """

    interface: str | None = None
    domain: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotParts:
    """A robot that can be started: its driver, its camera, and the boards of its lease.

    `open_camera` joins the camera's network and may be called again after a loss; None: it has no camera.
    `boards` carry the lease that keeps two executors from moving one robot. `close` frees shared resources.
    """

    driver: RobotDriver
    open_camera: Callable[[], Camera] | None = None
    boards: Sequence[Board] = ()
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class RobotKind:
    """A kind of robot: its facts, and how to reach one. Nothing moves before the driver's `start`.

    `connect` raises ConfigError for an address that this kind cannot have, RobotError if it is not reached.
    """

    spec: RobotSpec
    connect: Callable[[RobotAddress, Clock], RobotParts]


class RobotRegistry(Registry[RobotKind]):
    """Names to robots, each registered under its own name."""

    kind = "robot"
    expected = "RobotKind of this name"
    attribute = "ROBOT"

    def fits(self, name: str, found: object) -> bool:
        """Tell whether `found` is the robot called `name`."""
        return isinstance(found, RobotKind) and found.spec.name == name


ROBOTS = RobotRegistry(ENTRY_POINTS)
"""All robots; iterating gives the names and imports no robot."""


def register_robot(name: str, source: RobotKind | str) -> None:
    """Register a robot under `name` in this process, for Python API, command line and nodes.

    `source` is the `RobotKind`, or where it is, "MODULE" or "MODULE:ATTRIBUTE" (default ROBOT), imported when
    it is first used. To register the same twice does nothing.
    Raises ConfigError if the name is taken or cannot be one.
    """
    ROBOTS.add(name, source)


def robot_kind(name: str) -> RobotKind:
    """Return the robot called `name`. Raises ConfigError that names the known ones."""
    return ROBOTS.find(name)


def check_settings(kind: RobotKind, address: RobotAddress) -> None:
    """Raise ConfigError for a setting that this robot does not have; it names those that it has."""
    known = kind.spec.settings
    if wrong := sorted(set(address.settings) - set(known)):
        has = ", ".join(known) or "none"
        raise ConfigError(f"robot {kind.spec.name!r} has no setting {', '.join(wrong)}; it has: {has}")


register_robot("go2", "vlm_spec_decode.robot.go2.driver")
register_robot("sim", "vlm_spec_decode.robot.go2.driver:SIMULATED")
register_robot("fake", "vlm_spec_decode.robot.fake")
register_robot("cmd_vel", "vlm_spec_decode.ros.velocity_robot")

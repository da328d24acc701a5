"""What the launch files have in common: arguments, nodes, commands, RViz.

Needs `launch` and `launch_ros`, that is a ROS installation; nothing but the launch files imports it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch.actions import DeclareLaunchArgument, ExecuteProcess, LogInfo, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchContext, LaunchDescriptionEntity
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros.frames import write_view
from vlm_spec_decode.ros.node_parameters import Argument

PACKAGE = "vlm_spec_decode"
NAME_SIMILARITY = 0.8
"""Similarity from which an unknown argument counts as a misspelt one: `aprove` must not be ignored."""

RESPAWN_S = 2.0
PATIENCE_S = "10"
"""Time from Ctrl-C to SIGTERM: a stop may take a second or two, on a busy computer more."""

VIEW_NEEDS = {
    "rviz2": "it is RViz itself",
    "compressed_image_transport": "without it RViz loads nothing of the view, because the overlay is a JPEG",
}
"""Packages of a ROS installation that `rviz:=true` needs, and why."""

CONSOLE_SHARES = ("limits_file",)
"""Parameters of the locomotion node that the console node takes over."""

Setting = bool | int | float | str


def declare(arguments: Sequence[Argument]) -> list[DeclareLaunchArgument]:
    """Return the actions that declare the arguments; `launch` refuses a value that is not in `choices`."""
    return [
        DeclareLaunchArgument(
            each.name, default_value=each.default, description=each.description, choices=each.choices or None
        )
        for each in arguments
    ]


@dataclass(frozen=True, slots=True)
class Values:
    """The values of the launch arguments. Raises ConfigError for values that cannot be read."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, context: LaunchContext, arguments: Sequence[Argument]) -> Values:
        """Read the values. Raises ConfigError for a name that is nearly an argument's."""
        names = [each.name for each in arguments]
        for given in context.launch_configurations:
            similar = [] if given in names else get_close_matches(given, names, 1, NAME_SIMILARITY)
            if similar:
                raise ConfigError(f"there is no argument {given!r}; {similar[0]!r} is one")
        return cls({name: LaunchConfiguration(name).perform(context) for name in names})

    def __getitem__(self, name: str) -> str:
        """Return a value as the given text."""
        return self.values[name]

    def flag(self, name: str) -> bool:
        """Return a boolean; False for a name that is no argument of this launch file."""
        return self.values.get(name, "").lower() == "true"

    def path(self, name: str) -> str:
        """Return a file or folder with its ~ resolved, which no shell does behind `:=`."""
        return str(Path(self.values[name]).expanduser()) if self.values[name] else ""

    def integer(self, name: str) -> int:
        """Return a whole number."""
        try:
            return int(self.values[name])
        except ValueError as error:
            raise ConfigError(f"{name}:={self.values[name]} is no whole number") from error

    def number(self, name: str) -> float:
        """Return a number."""
        try:
            return float(self.values[name])
        except ValueError as error:
            raise ConfigError(f"{name}:={self.values[name]} is no number") from error

    def subset(self, *names: str) -> dict[str, Setting]:
        """Return several as parameters of the same names."""
        return {name: self.values[name] for name in names}


def node(name: str, value: Values, parameters: Mapping[str, Setting], config: str) -> Node:
    """Run one of the package's nodes. Its end ends the whole launch, unless `respawn` is set."""
    shared = {"autostart": value.flag("autostart")} if "autostart" in value.values else {}
    # Without a type, launch would read a text such as "turn left: now" as YAML.
    typed = {
        k: ParameterValue(setting, value_type=type(setting))
        for k, setting in {**parameters, **shared}.items()
    }
    comes_back = value.flag("respawn")
    return Node(
        package=PACKAGE,
        executable=name,
        name=name,
        namespace=value["namespace"],
        output="screen",
        sigterm_timeout=PATIENCE_S,
        parameters=[f"{get_package_share_directory(PACKAGE)}/config/{config}", typed],
        respawn=comes_back,
        respawn_delay=RESPAWN_S,
        on_exit=None if comes_back else [Shutdown(reason=f"{name} ended")],
    )


def nodes(
    value: Values,
    config: str,
    frames: Mapping[str, Mapping[str, str]],
    *,
    camera: Mapping[str, Setting],
    locomotion: Mapping[str, Setting],
    vlm: Mapping[str, Setting],
) -> list[LaunchDescriptionEntity]:
    """Run the four nodes with these parameters, and console, recorder and RViz if asked for.

    `frames` are further parameters of camera, locomotion and monitor (`ros.frames.frame_parameters`).
    """
    return [
        node("camera_node", value, {**camera, **frames["camera"]}, config),
        node("locomotion_node", value, {**locomotion, **frames["locomotion"]}, config),
        node("monitor_node", value, frames["monitor"], config),
        node("vlm_node", value, vlm, config),
        *console(value, config, {name: locomotion[name] for name in CONSOLE_SHARES if name in locomotion}),
        *recorder(value),
        *view(value),
    ]


def console(value: Values, config: str, parameters: Mapping[str, Setting]) -> list[Node]:
    """Serve the page, if `console` is set."""
    if not value.flag("console"):
        return []
    own = {"bind": value["console_bind"], "tokens": value.path("console_tokens")}
    return [node("console_node", value, {**parameters, **own}, config)]


def vsd(name: str, *arguments: str, on_exit: LaunchDescriptionEntity | None = None) -> ExecuteProcess:
    """Run one of the package's commands. Its end ends the whole launch, or does what `on_exit` says."""
    program = ExecutableInPackage("vsd", PACKAGE)
    ending = on_exit or Shutdown(reason=f"{name} ended")
    command = [program, *arguments]
    return ExecuteProcess(
        cmd=command, name=name, output="screen", sigterm_timeout=PATIENCE_S, on_exit=[ending]
    )


@dataclass(slots=True)
class LastOf:
    """Ends the launch with the last of several processes, so that each may be looked at after the others."""

    names: tuple[str, ...]
    _ended: set[str] = field(default_factory=set)

    def on_exit(self, name: str) -> OpaqueFunction:
        """Return what is to happen at the end of the process of this name."""
        return OpaqueFunction(function=lambda _context: self.ended(name))

    def ended(self, name: str) -> list[LaunchDescriptionEntity]:
        """Return the actions that follow the end of a process."""
        self._ended.add(name)
        left = [each for each in self.names if each not in self._ended]
        if not left:
            return [Shutdown(reason=f"{name} ended")]
        return [LogInfo(msg=f"{name} has ended; the rest ends with {' and '.join(left)}, or by Ctrl-C")]


def option(name: str, value: str) -> tuple[str, ...]:
    """Return a command's option, or nothing for an empty value."""
    return (name, value) if value else ()


def recorder(value: Values) -> list[ExecuteProcess]:
    """Record a bag, if `record` is set."""
    return [vsd("record", "record", value.path("record"))] if value["record"] else []


def view(
    value: Values, *, use_sim_time: bool = False, on_exit: LaunchDescriptionEntity | None = None
) -> list[Node]:
    """Open RViz on this robot's topics and frames, if `rviz` is set; its end ends nothing, but by `on_exit`.

    Raises ConfigError if a package is missing. Call it before anything is started: if `launch` itself finds a
    program missing, the others keep running.
    """
    if not value.flag("rviz"):
        return []
    for package, why in VIEW_NEEDS.items():
        try:
            get_package_prefix(package)
        except PackageNotFoundError as error:
            apt = f"sudo apt install ros-$ROS_DISTRO-{package.replace('_', '-')}"
            raise ConfigError(f"rviz:=true needs {package}, which is not here ({why}): {apt}") from error
    template = Path(get_package_share_directory(PACKAGE)) / "rviz" / "vlm.rviz"
    folder = Path(tempfile.mkdtemp(prefix="vsd-rviz-"))
    prefix = value.values.get("frame_prefix", "")
    file = write_view(template, folder, namespace=value["namespace"], prefix=prefix)
    return [
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", str(file)],
            parameters=[{"use_sim_time": use_sim_time}],
            on_exit=[on_exit] if on_exit is not None else None,
        )
    ]

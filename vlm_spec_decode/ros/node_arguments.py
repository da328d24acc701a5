"""The command line of a node process: `--help`, and a named refusal of words that are no ROS arguments.

rclpy reads what follows `--ros-args` and ignores the rest, so that `vlm_node cloud:=…` would start without
any of the given settings.
"""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.utilities import remove_ros_args

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.text import text_problem
from vlm_spec_decode.ros.own_node import named
from vlm_spec_decode.ros.params import Parameter

HELP = ("-h", "--help")


def asks_for_help(args: Sequence[str]) -> bool:
    """Return whether `args`, the program's name first, ask for help."""
    return bool(set(args[1:]) & set(HELP))


def check(args: Sequence[str]) -> None:
    """Raise ConfigError for what ROS cannot read or would pass over, and for what is no text."""
    for each in args:
        if problem := text_problem(each):
            raise ConfigError(f"argument {each!r}: {problem}")
    with named():
        remove_ros_args(list(args))
    unknown = _beside_ros(args[1:])
    if unknown:
        raise ConfigError(
            f"unknown argument {unknown[0]!r}; parameters are given as --ros-args -p NAME:=VALUE, "
            "and --help lists them"
        )


def _beside_ros(args: Sequence[str]) -> list[str]:
    """Return what is not between `--ros-args` and `--`. Not rclpy's own: it takes `a:=b` for a remapping."""
    found, is_for_ros = [], False
    for each in args:
        if each == "--ros-args":
            is_for_ros = True
        elif is_for_ros and each == "--":
            is_for_ros = False
        elif not is_for_ros:
            found.append(each)
    return found


def help_text(name: str, parameters: Sequence[Parameter]) -> str:
    """Return what `--help` prints for a node."""
    lines = [
        f"Usage: {name} [--help] [--ros-args [-p NAME:=VALUE]... [--params-file FILE] [-r __ns:=/NAME]]",
        "",
        "Parameters (default; range or choices; * can be changed while the node runs):",
    ]
    for each in sorted(parameters, key=lambda parameter: parameter.name):
        bounds = ", ".join(each.choices)
        if each.low is not None and each.high is not None:
            bounds = f"{each.low:g} to {each.high:g}"
        default = repr(each.default) if isinstance(each.default, str) else str(each.default)
        mark = "*" if each.live else " "
        lines += [
            f"{mark} {each.name} ({default}{'; ' + bounds if bounds else ''})",
            f"      {each.description}",
        ]
    lines += [
        "",
        "Topics and services: docs/parameters.md. Exit codes: 0 ended, 1 failed, 2 settings, 4 robot.",
    ]
    return "\n".join(lines) + "\n"

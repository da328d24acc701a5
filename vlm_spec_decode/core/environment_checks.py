"""The checks of the variables of `core.environment`, and the values that replace bad ones.

A check takes the environment and returns what is wrong in a few words, "" if nothing is. It reads files and
names of computers, imports no library that it speaks of, and changes nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.internal_error import scratch_folder

Environment = Mapping[str, str]
Check = Callable[[Environment], str]
Replacement = Callable[[Environment], str | None]


def ros_domain(environ: Environment) -> int:
    """Return ROS_DOMAIN_ID, 0 if it is empty. Raises ConfigError if it is no domain."""
    text = environ.get("ROS_DOMAIN_ID", "").strip() or "0"
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", text) or int(text) > MAX_DOMAIN:
        raise ConfigError(f"ROS_DOMAIN_ID is {text!r}; good: a whole number from 0 to {MAX_DOMAIN}")
    return int(text)


# ROS: middleware ----------------------------------------------------------------------------------------

_RMW_LIBRARY = re.compile(r"librmw_(?!.*(_shared_|__|security|_common|implementation))\w+\.so")


def library_folders(environ: Environment) -> Iterator[Path]:
    """Yield the folders in which the loader of a ROS installation looks for the library of an RMW."""
    for text in filter(None, environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        yield Path(text)
    for text in filter(None, environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        yield Path(text, "lib")


def installed_rmw(
    environ: Environment, prefix: str = sys.prefix, rclpy: str | None = None
) -> tuple[str, ...]:
    """Return the RMW implementations that rclpy can use here, Fast DDS first; empty if none is found.

    In a ROS installation `librmw_implementation.so` loads any `lib<name>.so` on the library path. The wheels
    have no such library: there rcl is linked to the one RMW beside it, whatever a sourced ROS has as well.
    `rclpy` is the folder that rclpy is imported from (default: found).
    """
    own = Path(prefix, "lib")
    names = _rmw_libraries(own)
    is_ours = Path(rclpy if rclpy is not None else _rclpy()).is_relative_to(prefix)
    if not (is_ours and names and not (own / "librmw_implementation.so").exists()):
        for folder in library_folders(environ):
            names |= _rmw_libraries(folder)
    return tuple(sorted(names, key=lambda name: (name != "rmw_fastrtps_cpp", name)))


def _rclpy() -> str:
    found = importlib.util.find_spec("rclpy")
    return (found.origin or "") if found else ""


def _rmw_libraries(folder: Path) -> set[str]:
    found = folder.glob("librmw_*.so") if folder.is_dir() else ()
    return {path.stem.removeprefix("lib") for path in found if _RMW_LIBRARY.fullmatch(path.name)}


def _is_installed(name: str, environ: Environment) -> bool:
    known = installed_rmw(environ)
    # Without any library this is an unknown kind of ROS installation: the loader then reports the error.
    return not known or name in known


def rmw(environ: Environment) -> str:
    """RMW_IMPLEMENTATION names what is installed; else rcl ends the process with code 102."""
    name = environ.get("RMW_IMPLEMENTATION", "")
    return "" if not name or _is_installed(name, environ) else f"RMW_IMPLEMENTATION={name} is not installed"


def first_installed_rmw(environ: Environment) -> str | None:
    """Return an RMW that is installed."""
    return next(iter(installed_rmw(environ)), None)


def asserted_rmw(environ: Environment) -> str:
    """RCL_ASSERT_RMW_ID_MATCHES names the RMW that is used; else rcl ends the process."""
    name, chosen = (environ.get(key, "") for key in ("RCL_ASSERT_RMW_ID_MATCHES", "RMW_IMPLEMENTATION"))
    used = chosen or first_installed_rmw(environ) or name
    return f"RCL_ASSERT_RMW_ID_MATCHES={name} is not what is used, {used}" if name and name != used else ""


def rmw_in_use(environ: Environment) -> str:
    """Return which RMW rclpy will use in an environment without bad values; "" if none is known."""
    return environ.get("RMW_IMPLEMENTATION", "") or first_installed_rmw(environ) or ""


# ROS: discovery -----------------------------------------------------------------------------------------

RANGES = ("OFF", "LOCALHOST", "SUBNET", "SYSTEM_DEFAULT")


def domain(environ: Environment) -> str:
    """ROS_DOMAIN_ID is a domain."""
    try:
        ros_domain(environ)
    except ConfigError as error:
        return str(error).split(";")[0]
    return ""


def discovery_range(environ: Environment) -> str:
    """ROS_AUTOMATIC_DISCOVERY_RANGE is one of `RANGES`."""
    value = environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    return "" if not value or value in RANGES else f"ROS_AUTOMATIC_DISCOVERY_RANGE={value} is no range"


def nearest_range(environ: Environment) -> str:
    """Return the range that was probably meant."""
    upper = environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").strip().upper()
    # rcl, too, takes what it does not know for LOCALHOST.
    return upper if upper in RANGES else "LOCALHOST"


def range_off(environ: Environment) -> str:
    """ROS_AUTOMATIC_DISCOVERY_RANGE lets nodes discover each other."""
    off = environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "OFF"
    return "ROS_AUTOMATIC_DISCOVERY_RANGE=OFF: no node hears another one" if off else ""


def localhost_only(environ: Environment) -> str:
    """ROS_LOCALHOST_ONLY, which is deprecated, is not set."""
    value = environ.get("ROS_LOCALHOST_ONLY", "")
    if value == "1":
        return "ROS_LOCALHOST_ONLY=1: other computers are not heard, whatever the discovery range says"
    return "" if value in ("", "0") else f"ROS_LOCALHOST_ONLY={value} is read as 0"


def _resolves(host: str) -> bool:
    import socket

    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _peers(environ: Environment) -> list[str]:
    return [peer for peer in environ.get("ROS_STATIC_PEERS", "").split(";") if peer.strip()]


def unresolved_peers(environ: Environment) -> str:
    """ROS_STATIC_PEERS names known computers; else rmw_fastrtps makes no node."""
    lost = [peer for peer in _peers(environ) if not _resolves(peer)]
    return f"ROS_STATIC_PEERS: no such computer: {', '.join(lost)}" if lost else ""


def resolvable_peers(environ: Environment) -> str | None:
    """Return the static peers that are known."""
    return ";".join(peer for peer in _peers(environ) if _resolves(peer)) or None


_SERVER = re.compile(r"(\w+:)?(?P<host>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:(?P<port>[0-9]{1,5}))?", re.ASCII)


def discovery_server(environ: Environment) -> str:
    """ROS_DISCOVERY_SERVER names servers as HOST:PORT."""
    value = environ.get("ROS_DISCOVERY_SERVER", "")
    for part in filter(None, (each.strip() for each in value.split(";"))):
        found = _SERVER.fullmatch(part)
        if found is None or int(found["port"] or 0) > 65535 or not _resolves(found["host"].strip("[]")):
            return f"ROS_DISCOVERY_SERVER: {part} is no server"
    return ""


# ROS: files ---------------------------------------------------------------------------------------------


def fast_dds_profile(name: str) -> Check:
    """Return the check of a variable that names a file of Fast DDS's profiles."""

    def problem(environ: Environment) -> str:
        value = environ.get(name, "")
        return f"{name}={value} {_xml_problem(Path(value))}" if value and _xml_problem(Path(value)) else ""

    return problem


def _xml_problem(path: Path) -> str:
    from xml.etree import ElementTree

    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ElementTree.ParseError, ValueError):
        return "is no XML"
    # Fast DDS puts its namespace before the name.
    return "" if root.tag.rpartition("}")[2] in ("dds", "profiles") else "holds no profiles of Fast DDS"


def cyclone_uri(environ: Environment) -> str:
    """CYCLONEDDS_URI holds XML or names files that are there."""
    value = environ.get("CYCLONEDDS_URI", "")
    for part in filter(None, (each.strip() for each in value.split(",") if "<" not in value)):
        path = Path(part.removeprefix("file://"))
        if not path.is_file():
            return f"CYCLONEDDS_URI: there is no file {path}"
    return ""


def log_folder(environ: Environment) -> Path | None:
    """Return where ROS writes its logs, None if the environment does not determine it."""
    if value := environ.get("ROS_LOG_DIR", ""):
        return Path(os.path.expanduser(value))  # noqa: PTH111 - Path.expanduser raises without a home
    if value := environ.get("ROS_HOME", ""):
        return Path(os.path.expanduser(value), "log")  # noqa: PTH111
    home = environ.get("HOME", "")
    return Path(home, ".ros", "log") if home else None


def can_write(folder: Path) -> bool:
    """Return whether files can be made in `folder`, or in its nearest parent that exists."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except (OSError, StopIteration):
        return False
    # /proc and /sys let root write, but create no files.
    is_kernel = nearest.is_relative_to("/proc") or nearest.is_relative_to("/sys")
    return nearest.is_dir() and not is_kernel and os.access(nearest, os.W_OK | os.X_OK)


def logs(environ: Environment) -> str:
    """The folder of ROS's logs can be written; else rcl_logging raises."""
    folder = log_folder(environ)
    if folder is not None and can_write(folder):
        return ""
    return f"ROS_LOG_DIR: the log folder {folder or '~/.ros/log'} cannot be written"


def fallback_log_folder(_: Environment) -> str | None:
    """Return a folder for logs that can be written."""
    folder = scratch_folder("ros-log")
    return str(folder) if folder else os.devnull


def security(environ: Environment) -> str:
    """Security that is enforced has a keystore."""
    if environ.get("ROS_SECURITY_ENABLE") != "true" or environ.get("ROS_SECURITY_STRATEGY") != "Enforce":
        return ""
    store = environ.get("ROS_SECURITY_KEYSTORE", "")
    if store and Path(store, "enclaves").is_dir():
        return ""
    return f"ROS_SECURITY_STRATEGY=Enforce without a keystore: ROS_SECURITY_KEYSTORE is {store!r}"


# ROS: logging -------------------------------------------------------------------------------------------


def one_of(name: str, *known: str) -> Check:
    """Return the check of a variable that has a few values."""

    def problem(environ: Environment) -> str:
        value = environ.get(name, "")
        return f"{name}={value} is none of {', '.join(known)}" if value and value not in known else ""

    return problem


def log_format(environ: Environment) -> str:
    """RCUTILS_CONSOLE_OUTPUT_FORMAT shows the message, and no escape breaks it."""
    value = environ.get("RCUTILS_CONSOLE_OUTPUT_FORMAT", "")
    if not value:
        return ""
    if "{message}" not in value:
        return "RCUTILS_CONSOLE_OUTPUT_FORMAT has no {message}"
    odd = re.search(r"\\(?![abfnrtv\\]|x[0-9a-fA-F]{2}|0[0-7]{2})", value)
    return "RCUTILS_CONSOLE_OUTPUT_FORMAT: a backslash that begins no escape" if odd else ""


# Python -------------------------------------------------------------------------------------------------

_BUILT_FOR = re.compile(r"\.cpython-(\d)(\d+)-")


def foreign_rclpy(folder: str) -> str:
    """Return which Python the rclpy in `folder` was built for, such as "3.10"; "" if ours, or none."""
    built = {match.groups() for path in Path(folder, "rclpy").glob("_rclpy_pybind11*.so")
             if (match := _BUILT_FOR.search(path.name))}  # fmt: skip
    if not built or (str(sys.version_info.major), str(sys.version_info.minor)) in built:
        return ""
    return ".".join(max(built))


def foreign_ros(environ: Environment) -> str:
    """PYTHONPATH has no rclpy that was built for another Python."""
    for folder in filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)):
        if version := foreign_rclpy(folder):
            ours = f"{sys.version_info.major}.{sys.version_info.minor}"
            return f"PYTHONPATH: the ROS in {folder} is for Python {version}, this is {ours}"
    return ""


def pythonpath_without_foreign_ros(environ: Environment) -> str | None:
    """Return PYTHONPATH without the ROS of another Python."""
    folders = environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not foreign_rclpy(folder)) or None


def remove_foreign_ros(path: list[str]) -> None:
    """Remove folders with an rclpy for another Python from `sys.path`."""
    path[:] = [folder for folder in path if not folder or not foreign_rclpy(folder)]


def home(environ: Environment) -> str:
    """HOME is set; pathlib and rcl raise without it."""
    return "" if environ.get("HOME", "") else "HOME is not set"


def fallback_home(_: Environment) -> str | None:
    """Return the user's home, or a temporary folder for a user without one."""
    try:
        import pwd

        home = pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):
        home = ""
    return home if home and Path(home).is_dir() else str(scratch_folder("home") or os.sep)


def warnings(environ: Environment) -> str:
    """PYTHONWARNINGS makes no warning of a library an error."""
    value = environ.get("PYTHONWARNINGS", "")
    stops = any(part.strip().split(":")[0] == "error" for part in value.split(","))
    return f"PYTHONWARNINGS={value} would end a program at a library's first warning" if stops else ""


def temporary(environ: Environment) -> str:
    """The configured temporary folder can be used."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        value = environ.get(name, "")
        if value and not (Path(value).is_dir() and can_write(Path(value))):
            return f"{name}={value} cannot be written; Python uses another temporary folder"
    return ""


# DDS of the robot's SDK ---------------------------------------------------------------------------------


def no_dds_library(environ: Environment) -> str:
    """CYCLONEDDS_PYTHON_NO_IMPORT_LIBS, which is for building its docs, is not set."""
    there = "CYCLONEDDS_PYTHON_NO_IMPORT_LIBS" in environ
    return "CYCLONEDDS_PYTHON_NO_IMPORT_LIBS keeps cyclonedds from its own library" if there else ""


def dds_home(environ: Environment) -> str:
    """CYCLONEDDS_HOME, if it is set, holds the C library; builds from source load it from there."""
    value = environ.get("CYCLONEDDS_HOME", "")
    folders = [Path(value, name) for name in ("lib", "lib64", "bin", "")] if value else []
    there = any(found for folder in folders for found in folder.glob("libddsc.*")) or not value
    return "" if there else f"CYCLONEDDS_HOME={value} holds no libddsc"


# OpenGL -------------------------------------------------------------------------------------------------

LIBRARIES = {"osmesa": "OSMesa", "egl": "EGL"}
OFFSCREEN = tuple(LIBRARIES)
_WINDOW = ("glfw", "enable", "enabled", "on", "true", "1")


def default_gl(has_display: bool = False) -> str:
    """Return the OpenGL backend for this computer: OSMesa (software), else EGL; "" lets MuJoCo choose.

    OSMesa comes first although EGL may use a GPU: its frames are the same on every machine, and the models
    are trained and evaluated on these frames.
    """
    found = next((name for name, library in LIBRARIES.items() if _has_library(library)), "")
    return found or ("" if has_display else "osmesa")


@functools.cache
def _has_library(name: str) -> bool:
    from ctypes.util import find_library

    return find_library(name) is not None


def gl(environ: Environment) -> str:
    """MUJOCO_GL draws without a window, or there is a display."""
    value = environ.get("MUJOCO_GL", "")
    if not value:
        return ""
    if value.lower() in OFFSCREEN:
        there = _has_library(LIBRARIES[value.lower()]) or not any(map(_has_library, LIBRARIES.values()))
        return "" if there else f"MUJOCO_GL={value}: there is no lib{LIBRARIES[value.lower()]} here"
    if value.lower() in _WINDOW and environ.get("DISPLAY"):
        return ""
    return f"MUJOCO_GL={value} draws no pictures here"


def platform(environ: Environment) -> str:
    """PYOPENGL_PLATFORM is what MUJOCO_GL is; else MuJoCo's import fails."""
    value, gl = (environ.get(name, "").lower() for name in ("PYOPENGL_PLATFORM", "MUJOCO_GL"))
    gl = gl or default_gl()
    if not value or value == gl or gl not in OFFSCREEN:
        return ""
    return f"PYOPENGL_PLATFORM={value} does not go with MUJOCO_GL={gl} (set both to egl to draw with a GPU)"


def gl_in_use(environ: Environment) -> str:
    """Return the OpenGL backend in use."""
    return environ.get("MUJOCO_GL", "").lower() or default_gl()


def whole_number(name: str, low: int = 0) -> Check:
    """Return the check of a variable that is a whole number."""

    def problem(environ: Environment) -> str:
        value = environ.get(name, "").strip()
        parts = value.split(",") if name == "OMP_NUM_THREADS" else [value]
        good = all(re.fullmatch(r"-?[0-9]{1,9}", part) and int(part) >= low for part in parts)
        return f"{name}={value} is no whole number of {low} or more" if value and not good else ""

    return problem


# Service -----------------------------------------------------------------------------------------------


def ray(environ: Environment) -> str:
    """RAY_ADDRESS is not set: it is not what decides where replicas run."""
    value = environ.get("RAY_ADDRESS", "")
    return f"RAY_ADDRESS={value} is not read by vsd" if value else ""


def unwritable_home(environ: Environment) -> str:
    """HOME can be written."""
    home = environ.get("HOME", "")
    return f"HOME={home} cannot be written: nothing is cached" if home and not can_write(Path(home)) else ""


def ament(environ: Environment) -> str:
    """AMENT_PREFIX_PATH names folders that are there."""
    folders = [each for each in environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if each]
    lost = [each for each in folders if not Path(each).is_dir()]
    return f"AMENT_PREFIX_PATH: no such folder: {', '.join(lost)}" if lost else ""


def cache(name: str) -> Check:
    """Return the check of a variable that names a folder of caches."""

    def problem(environ: Environment) -> str:
        value = environ.get(name, "")
        bad = value and not can_write(Path(value))
        return f"{name}={value} cannot be written: no model can be fetched from the Hub" if bad else ""

    return problem


def no_gpu(environ: Environment) -> str:
    """CUDA_VISIBLE_DEVICES hides no GPU."""
    value = environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU" if value in ("", "-1") else ""


_TRANSPORT = re.compile(
    r"|(NONE|DEFAULT|DEFAULTv6|SHM|UDPv4|UDPv6|TCPv4|TCPv6|LARGE_DATA|LARGE_DATAv6|P2P)(\?.*)?"
)


def transport(environ: Environment) -> str:
    """FASTDDS_BUILTIN_TRANSPORTS names a set of transports."""
    value = environ.get("FASTDDS_BUILTIN_TRANSPORTS", "")
    return "" if _TRANSPORT.fullmatch(value) else f"FASTDDS_BUILTIN_TRANSPORTS={value} is no transport"

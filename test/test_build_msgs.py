"""`vsd build-msgs`: what decides that something is built, and what it says where nothing can be built."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from test.test_extras import without
from vlm_spec_decode.cli import build_msgs as builder
from vlm_spec_decode.cli.build_msgs import BuildFailed, InterfacePackage
from vlm_spec_decode.core import extras
from vlm_spec_decode.core.errors import ConfigError, MissingExtra
from vlm_spec_decode.core.interfaces import NAME, interface_folder, message_definitions

ROOT = Path(__file__).parents[1]
VERSIONS = {"ros-rclpy": "9.1.2", "ros-std-msgs": "5.5.1"}


def test_the_key_covers_every_file_and_every_version() -> None:
    package = InterfacePackage.of_folder(interface_folder())
    key = package.key(VERSIONS)
    assert key == InterfacePackage.of_folder(interface_folder()).key(dict(reversed(VERSIONS.items())))
    keys = {key}
    for name, content in package.files.items():
        keys.add(InterfacePackage(NAME, {**package.files, name: content + b"\n"}).key(VERSIONS))
    renamed = {name.replace("msg/", "msg/x"): content for name, content in package.files.items()}
    keys |= {InterfacePackage(NAME, renamed).key(VERSIONS), package.key({**VERSIONS, "ros-rclpy": "9.1.3"})}
    keys.add(package.key({**VERSIONS, "ros-std-msgs": "5.5.2"}))
    assert len(keys) == len(package.files) + 4
    assert package.key({**VERSIONS, "ros-test-msgs": "2.3.0"}) == key, "which it has nothing to do with"


def test_what_is_listed_for_cmake_is_what_is_there() -> None:
    package = InterfacePackage.of_folder(interface_folder())
    listed = package.files["CMakeLists.txt"].decode()
    sources = {name for name in package.files if name.endswith((".msg", ".srv", ".action"))}
    assert {name for name in sources if f'"{name}"' in listed} == sources
    assert len(message_definitions()) == sum(name.endswith(".msg") for name in sources)
    assert package.wheels() == ["ros-action-msgs", "ros-builtin-interfaces", "ros-rosidl-default-runtime",
                                "ros-std-msgs"]  # fmt: skip


def test_what_set_up_has_built_is_not_built_again() -> None:
    assert [package.name for package in builder.packages() if not builder.is_built(package)] == []
    done = subprocess.run(
        [sys.executable, "-m", "vlm_spec_decode.cli", "build-msgs", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {NAME: "up to date", "tf2_msgs": "up to date"}


class Without:
    """Metadata without some distributions."""

    PackageNotFoundError = metadata.PackageNotFoundError

    def __init__(self, *names: str) -> None:
        self._names = names

    def distribution(self, name: str) -> Any:
        if name in self._names:
            raise metadata.PackageNotFoundError(name)
        return metadata.distribution(name)

    def distributions(self) -> list[Any]:
        return [each for each in metadata.distributions() if each.name not in self._names]


def refuse(monkeypatch: pytest.MonkeyPatch, error: type[Exception], text: str, **changes: Any) -> None:
    builder.wheel_versions.cache_clear()
    for name, value in changes.items():
        monkeypatch.setattr(builder, name, value)
    with pytest.raises(error, match=text):
        builder.prefix()
    builder.wheel_versions.cache_clear()


def test_this_environment_can_build() -> None:
    assert (builder.prefix() / "share" / "rclpy").is_dir()


def test_without_rclpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Without("ros-rclpy")
    refuse(monkeypatch, MissingExtra, r"\[ros\]", metadata=gone, find_spec=lambda _: None)


def test_rclpy_of_a_ros_installation_is_left_to_colcon(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, ConfigError, "colcon build --base-paths", metadata=Without("ros-rclpy"))


def test_without_generators_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Without("ros-ament-cmake")
    refuse(monkeypatch, MissingExtra, r"^ros-ament-cmake not installed.*\[ros\]", metadata=gone)


@pytest.mark.parametrize(
    ("lacking", "error", "text"),
    [
        ({"c++"}, ConfigError, r"apt-get install g\+\+$"),
        ({"c++", "make"}, ConfigError, r"apt-get install make g\+\+$"),
        ({"cmake"}, MissingExtra, r"cmake.*\[ros\]"),
    ],
)
def test_without_a_tool_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, lacking: set[str], error: type[Exception], text: str
) -> None:
    found = builder._tool
    monkeypatch.setattr(builder, "_tool", lambda name, where: None if name in lacking else found(name, where))
    refuse(monkeypatch, error, text)


def test_without_the_header_of_python_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = SimpleNamespace(get_path=lambda _: "/nowhere", get_platform=lambda: "linux-x86_64")
    refuse(monkeypatch, ConfigError, r"apt-get install python3\.\d+-dev", sysconfig=nowhere)


def test_a_prefix_that_cannot_be_written_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_tool", lambda name, _: name)
    nowhere = SimpleNamespace(access=lambda *_: False, W_OK=2)
    refuse(monkeypatch, ConfigError, "virtual environment", os=nowhere)


def test_a_failed_build_shows_the_end_of_what_the_tool_said() -> None:
    code = "import sys; print('begun'); sys.exit('no such message')"
    with pytest.raises(BuildFailed, match=r"m does not build: begun \| no such message"):
        builder._run([sys.executable, "-c", code], {}, "m does not build")


def test_messages_of_an_installation_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are not distributions; the folder of the sources in a checkout is no package at all."""
    assert builder.source_of("json") == str(Path(json.__file__).parent)
    assert builder.source_of("deploy") == "", "a folder of the checkout"
    assert builder.source_of("no_such_package") == ""
    assert builder.source_of(NAME) == "built"


def described(folder: Path, version: str, *files: str) -> Path:
    """Describe a package of this name and version in a folder, as pip or colcon does."""
    info = folder / f"{NAME}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / NAME).mkdir()
    (folder / NAME / "__init__.py").write_text("")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in (f"{NAME}/__init__.py", *files)))
    return info


def test_what_was_interrupted_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = InterfacePackage.of_folder(interface_folder())
    info = described(tmp_path, package.version, f"{NAME}/late.so", f"{NAME}/__pycache__/gone.pyc")
    monkeypatch.syspath_prepend(tmp_path)
    assert builder.source_of(NAME) == "built"
    assert not builder.is_built(package), "its last file is not there yet"
    (tmp_path / NAME / "late.so").write_text("")
    assert builder.is_built(package)
    (info / "RECORD").unlink()  # the last file that is written
    assert not builder.is_built(package)


def test_what_a_sourced_workspace_describes_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(tmp_path, "0.1.0")
    monkeypatch.syspath_prepend(tmp_path)
    # A test before may have imported the messages; the command has not.
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    assert builder.source_of(NAME) == str(tmp_path / NAME)


def test_rclpy_of_a_sourced_installation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sourced = SimpleNamespace(origin="/opt/ros/rolling/lib/python3/site-packages/rclpy/__init__.py")
    refuse(monkeypatch, ConfigError, "is sourced in this shell: .*/opt/ros", find_spec=lambda _: sourced)


def test_a_build_and_its_installation_see_nothing_that_is_sourced() -> None:
    own = Path("/home/me/.venv")
    environment = {
        "AMENT_PREFIX_PATH": "/home/me/.venv:/opt/ros/rolling",
        "COLCON_PREFIX_PATH": "/home/me/ws/install",
        "PYTHONPATH": "/opt/ros/rolling/lib/python3/site-packages:/home/me/lib:/home/me/ws/install/x",
        "LD_LIBRARY_PATH": "/opt/ros/rolling/lib:/home/me/.venv/lib:/usr/lib/gcc",
        "PATH": "/opt/ros/rolling/bin:/usr/bin",
        "HOME": "/home/me",
    }
    assert builder.without_ros(environment, own) == {
        "PYTHONPATH": "/home/me/lib",
        "LD_LIBRARY_PATH": "/home/me/.venv/lib:/usr/lib/gcc",
        "PATH": "/usr/bin",
        "HOME": "/home/me",
    }


def test_two_builds_at_once_wait_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = SimpleNamespace(get_path=lambda _: str(tmp_path))
    monkeypatch.setattr(builder, "sysconfig", paths)
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with builder.one_at_a_time(waits.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with builder.one_at_a_time(lambda: order.append("waits")):
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    monkeypatch.setattr(paths, "get_path", lambda _: "/nowhere")
    with builder.one_at_a_time(lambda: order.append("waits")):
        order.append("nowhere")
    assert order == ["first", "second", "nowhere"]


def test_a_wheel_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = InterfacePackage.of_folder(interface_folder())
    tree = tmp_path / "install" / "share" / NAME
    tree.mkdir(parents=True)
    (tree / "package.xml").write_text("x")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        builder._pack(package, tmp_path / "install", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    wheel = builder._pack(package, tmp_path / "install", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [wheel]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None


def test_tf2_msgs_is_one_message_with_one_field() -> None:
    _, package = builder.packages()
    assert ElementTree.fromstring(package.files["package.xml"]).findtext("name") == package.name == "tf2_msgs"
    assert package.files["msg/TFMessage.msg"] == b"geometry_msgs/TransformStamped[] transforms\n"


def test_without_the_messages_the_command_that_builds_them_is_named() -> None:
    code = (
        "from vlm_spec_decode.core import extras\n"
        "with extras.translate_missing():\n    import vlm_spec_decode.ros.typed"
    )
    done = without({NAME}, code)
    assert "MissingExtra: vlm_spec_decode_msgs is not built, and this needs it: vsd build-msgs" in done.stderr
    assert "colcon build" in done.stderr


def test_the_folder_of_the_sources_is_not_taken_for_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout whose messages are not built: an empty namespace is found there."""
    empty = SimpleNamespace()
    monkeypatch.setitem(sys.modules, NAME, SimpleNamespace(msg=empty))  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "vlm_spec_decode.ros.typed", raising=False)
    with pytest.raises(MissingExtra, match="vsd build-msgs"):
        __import__("vlm_spec_decode.ros.typed")
    assert set(extras.BUILT) == {NAME, "tf2_msgs"}

"""The list of what libraries read from outside: every entry with good, bad and empty values."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_spec_decode.core import environment, environment_checks
from vlm_spec_decode.core.environment import (
    NOTE,
    REFUSE,
    REPLACE,
    VARIABLES,
    find_problems,
    raise_for_refused,
    replace_bad_values,
)
from vlm_spec_decode.core.errors import ConfigError

NOWHERE = "/proc/no/such/folder"
XML = '<?xml version="1.0"?><dds xmlns="http://www.eprosima.com"><profiles/></dds>'


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """Folders and files that values name."""
    for name, text in {"good.xml": XML, "bad.xml": "no xml", "other.xml": "<html/>", "file": ""}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "keystore" / "enclaves").mkdir(parents=True)
    (tmp_path / "dds" / "lib").mkdir(parents=True)
    (tmp_path / "dds" / "lib" / "libddsc.so.0").touch()
    ours = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    for name, python in (("ours", ours), ("theirs", "cpython-37")):
        (tmp_path / name / "rclpy").mkdir(parents=True)
        (tmp_path / name / "rclpy" / f"_rclpy_pybind11.{python}-x86_64-linux-gnu.so").touch()
    return {"tmp": str(tmp_path)}


WHOLE = (("1", "16"), ("abc", "-2", "1.5", "1e3", "²"))
FOLDER = (("{tmp}",), (NOWHERE, "{tmp}/file"))
PROFILES = (("{tmp}/good.xml",), ("{tmp}/bad.xml", "{tmp}/other.xml", NOWHERE, "{tmp}"))
FLAG = (("0", "1"), ("yes", "2", "true"))

VALUES: dict[tuple[str, environment.Remedy], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("HOME", REPLACE): (("/root", NOWHERE), ()),
    ("HOME", NOTE): FOLDER,
    ("PYTHONWARNINGS", REPLACE): (
        ("default", "ignore::DeprecationWarning"),
        ("error", "default,error::A"),
    ),
    ("TMPDIR", NOTE): FOLDER,
    ("PYTHONPATH", REPLACE): (("{tmp}", "{tmp}/ours"), ("{tmp}/theirs", "{tmp}:{tmp}/theirs")),
    ("AMENT_PREFIX_PATH", NOTE): (("{tmp}",), ("/nowhere", "{tmp}:/nowhere")),
    ("RMW_IMPLEMENTATION", REPLACE): (("rmw_fastrtps_cpp",), ("rmw_cyclonedds_cpp", "rmw_nonsense", "²")),
    ("RCL_ASSERT_RMW_ID_MATCHES", REPLACE): (("rmw_fastrtps_cpp",), ("rmw_cyclonedds_cpp",)),
    ("ROS_DOMAIN_ID", REFUSE): (
        ("0", "42", "232", " 7 "),
        ("233", "-1", "abc", "0x10", "010", "1.0", "²", "1 2", "9" * 30),
    ),
    ("ROS_AUTOMATIC_DISCOVERY_RANGE", REPLACE): (("SUBNET", "OFF"), ("subnet", "LAN", "1")),
    ("ROS_AUTOMATIC_DISCOVERY_RANGE", NOTE): (("SUBNET", "LOCALHOST"), ("OFF",)),
    ("ROS_LOCALHOST_ONLY", NOTE): (("0",), ("1", "2", "yes")),
    ("ROS_STATIC_PEERS", REPLACE): (
        ("127.0.0.1", "127.0.0.1;localhost;"),
        ("nobody.invalid", "a\udcff"),
    ),
    ("ROS_DISCOVERY_SERVER", REPLACE): (
        ("127.0.0.1:11811", ";localhost:7400", "[::1]:7400"),
        ("no server", "127.0.0.1:99999", "no.such.invalid:1"),
    ),
    ("ROS_LOG_DIR", REPLACE): (("{tmp}", "{tmp}/new/folder"), (NOWHERE, "{tmp}/file", "/sys/log")),
    ("ROS_SECURITY_STRATEGY", REFUSE): (("Permissive",), ("Enforce",)),
    ("RCUTILS_LOGGING_USE_STDOUT", REPLACE): FLAG,
    ("RCUTILS_COLORIZED_OUTPUT", REPLACE): FLAG,
    ("RCUTILS_LOGGING_BUFFERED_STREAM", REPLACE): FLAG,
    ("RCUTILS_CONSOLE_OUTPUT_FORMAT", REPLACE): (
        ("[{severity}] {message}", "{message}\\n"),
        ("{severity}", "nothing", "{message} \\x", "{message}\\"),
    ),
    ("FASTRTPS_DEFAULT_PROFILES_FILE", REPLACE): PROFILES,
    ("FASTDDS_DEFAULT_PROFILES_FILE", REPLACE): PROFILES,
    ("FASTDDS_BUILTIN_TRANSPORTS", REPLACE): (
        ("UDPv4", "SHM", "LARGE_DATA?soft=1"),
        ("udp", "UDP4"),
    ),
    ("RMW_FASTRTPS_PUBLICATION_MODE", REPLACE): (("ASYNCHRONOUS", "AUTO"), ("async",)),
    ("CYCLONEDDS_URI", REPLACE): (
        ("<CycloneDDS/>", "file://{tmp}/good.xml", "{tmp}/good.xml,{tmp}/other.xml"),
        ("file:///nowhere.xml", NOWHERE),
    ),
    ("CYCLONEDDS_PYTHON_NO_IMPORT_LIBS", REPLACE): ((), ("1",)),
    ("CYCLONEDDS_HOME", REPLACE): (("{tmp}/dds",), ("{tmp}", NOWHERE)),
    ("MUJOCO_GL", REPLACE): (("osmesa", "OSMesa"), ("glfw", "off", "nonsense", "cgl")),
    ("PYOPENGL_PLATFORM", REPLACE): (("osmesa",), ("egl", "glx", "nonsense")),
    ("MUJOCO_EGL_DEVICE_ID", REPLACE): (("0", "3"), ("first", "-1")),
    ("OMP_NUM_THREADS", REPLACE): (("1", "4,2"), ("0", *WHOLE[1])),
    ("MKL_NUM_THREADS", REPLACE): (WHOLE[0], ("0", *WHOLE[1])),
    ("HF_HUB_DOWNLOAD_TIMEOUT", REPLACE): WHOLE,
    ("HF_HUB_ETAG_TIMEOUT", REPLACE): WHOLE,
    ("HF_HOME", NOTE): FOLDER,
    ("XDG_CACHE_HOME", NOTE): FOLDER,
    ("CUDA_VISIBLE_DEVICES", NOTE): (("0", "0,1", "GPU-1"), ("", "-1")),
    ("RAY_ADDRESS", NOTE): ((), ("10.0.0.1:6379",)),
}
EMPTY_IS_BAD = {"CUDA_VISIBLE_DEVICES", "HOME", "CYCLONEDDS_PYTHON_NO_IMPORT_LIBS"}
"""Where an empty value means something."""


def shell(name: str, value: str, place: dict[str, str]) -> dict[str, str]:
    """Return an environment that is good but for one variable."""
    more = {"ROS_SECURITY_ENABLE": "true"} if name == "ROS_SECURITY_STRATEGY" else {}
    gl = {"MUJOCO_GL": "osmesa"} if name == "PYOPENGL_PLATFORM" else {}
    return {"HOME": place["tmp"], **more, **gl, name: value.replace("{tmp}", place["tmp"])}


def found(environ: dict[str, str], name: str, remedy: environment.Remedy) -> list[str]:
    every = [
        each
        for each in find_problems(environ)
        if (each.variable.name, each.variable.remedy) == (name, remedy)
    ]
    return [each.problem for each in every]


def test_every_entry_is_exercised_and_says_who_reads_it() -> None:
    assert {(each.name, each.remedy) for each in VARIABLES} == set(VALUES)
    assert len(VARIABLES) == len(VALUES)
    assert all(each.reader and each.good and each.group in environment.GROUPS for each in VARIABLES)


@pytest.mark.parametrize(("name", "remedy"), VALUES)
def test_good_and_empty_values_are_left_alone(
    name: str, remedy: environment.Remedy, place: dict[str, str]
) -> None:
    for value in VALUES[name, remedy][0] + (() if name in EMPTY_IS_BAD else ("",)):
        environ = shell(name, value, place)
        assert found(environ, name, remedy) == [], value
        settled = dict(environ)
        replace_bad_values(settled)
        assert settled[name] == environ[name]


@pytest.mark.parametrize(("name", "remedy"), [key for key in VALUES if VALUES[key][1]])
def test_bad_values_are_named_and_what_stands_in_their_place_is_good(
    name: str, remedy: environment.Remedy, place: dict[str, str]
) -> None:
    for value in VALUES[name, remedy][1]:
        environ = shell(name, value, place)
        (problem,) = found(environ, name, remedy)
        assert name in problem
        assert "\n" not in problem
        if remedy is REPLACE:
            said = replace_bad_values(environ)
            assert any(line.startswith(problem) for line in said)
            assert found(environ, name, remedy) == []
            assert replace_bad_values(environ) == []
        elif remedy is REFUSE:
            with pytest.raises(ConfigError, match=name):
                raise_for_refused(environ)
        else:
            before = dict(environ)
            replace_bad_values(environ)
            raise_for_refused(environ)
            assert environ[name] == before[name]


def test_only_what_a_program_uses_is_checked() -> None:
    environ = {"HOME": "/", "ROS_DOMAIN_ID": "nonsense", "MUJOCO_GL": "nonsense"}
    assert find_problems(environ, environment.PYTHON, environment.MODELS) == []
    raise_for_refused(environ, environment.OPENGL)
    with pytest.raises(ConfigError, match="0 to 232"):
        raise_for_refused(environ, environment.ROS)


@pytest.mark.parametrize("home", [None, ""])
def test_a_home_is_found_where_none_is_set(home: str | None) -> None:
    environ = {} if home is None else {"HOME": home}
    assert replace_bad_values(environ, environment.PYTHON)
    assert Path(environ["HOME"]).is_dir()


def test_a_user_without_a_home_gets_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number that /etc/passwd does not know."""
    import pwd

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    environ: dict[str, str] = {}
    replace_bad_values(environ, environment.PYTHON)
    assert Path(environ["HOME"]).is_dir()
    assert os.access(environ["HOME"], os.W_OK)


def test_logs_follow_ros_home_and_home() -> None:
    assert environment_checks.log_folder({"HOME": "/a"}) == Path("/a/.ros/log")
    assert environment_checks.log_folder({"HOME": "/a", "ROS_HOME": "/b"}) == Path("/b/log")
    assert environment_checks.log_folder({"HOME": "/a", "ROS_HOME": "/b", "ROS_LOG_DIR": "/c"}) == Path("/c")
    assert environment_checks.log_folder({}) is None


def libraries(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*names, "librmw_dds_common.so", "librmw_fastrtps_shared_cpp.so",
                 "librmw_dds_common__rosidl_typesupport_c.so", "librmw_security_common.so"):  # fmt: skip
        (folder / name).touch()
    return folder


def test_a_real_installation_keeps_the_rmw_that_it_has(tmp_path: Path) -> None:
    """Where `librmw_implementation.so` loads one at run time, each that is there can be chosen."""
    ros = libraries(tmp_path / "ros" / "lib", "librmw_implementation.so", "librmw_cyclonedds_cpp.so",
                    "librmw_fastrtps_cpp.so")  # fmt: skip
    for environ in ({"LD_LIBRARY_PATH": str(ros)}, {"AMENT_PREFIX_PATH": str(tmp_path / "ros")}):
        known = environment_checks.installed_rmw(environ, str(tmp_path / "usr"), "/opt/ros/rclpy")
        assert known == ("rmw_fastrtps_cpp", "rmw_cyclonedds_cpp")


def test_one_rmw_is_used_if_it_is_the_only_one(tmp_path: Path) -> None:
    ros = libraries(tmp_path / "lib", "librmw_implementation.so", "librmw_cyclonedds_cpp.so")
    known = environment_checks.installed_rmw({"LD_LIBRARY_PATH": str(ros)}, str(tmp_path / "usr"), "")
    assert known == ("rmw_cyclonedds_cpp",)


def test_the_wheels_have_their_own_rmw_whatever_is_sourced(tmp_path: Path) -> None:
    libraries(tmp_path / "venv" / "lib", "librmw_fastrtps_cpp.so")
    ros = libraries(tmp_path / "ros" / "lib", "librmw_implementation.so", "librmw_cyclonedds_cpp.so")
    rclpy = str(tmp_path / "venv" / "lib" / "python3" / "site-packages" / "rclpy" / "__init__.py")
    known = environment_checks.installed_rmw({"LD_LIBRARY_PATH": str(ros)}, str(tmp_path / "venv"), rclpy)
    assert known == ("rmw_fastrtps_cpp",)


def test_without_any_ros_in_sight_nothing_is_guessed(tmp_path: Path) -> None:
    assert environment_checks.installed_rmw({}, str(tmp_path), "") == ()


@pytest.mark.parametrize(
    ("gl", "platform", "wanted"),
    [("egl", "osmesa", "egl"), ("EGL", "glx", "egl"), ("osmesa", "egl", "osmesa"), ("", "egl", "osmesa")],
)
def test_both_rendering_variables_are_set_together(
    gl: str, platform: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_checks, "_has_library", lambda _: True)
    environ = {"HOME": "/", "MUJOCO_GL": gl, "PYOPENGL_PLATFORM": platform}
    replace_bad_values(environ, environment.OPENGL)
    assert (environ["MUJOCO_GL"], environ["PYOPENGL_PLATFORM"]) == (gl, wanted)


def test_a_gpu_may_draw_where_osmesa_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_checks, "_has_library", lambda name: name == "EGL")
    environ = {"HOME": "/", "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    replace_bad_values(environ, environment.OPENGL)
    assert (environ["MUJOCO_GL"], environ["PYOPENGL_PLATFORM"]) == ("egl", "egl")


def test_output_that_cannot_say_a_sign_says_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    environment.escape_unencodable_output()
    stream.write("tür \udcff")
    stream.flush()
    assert stream.buffer.getvalue() == b"t\\xfcr \\udcff"  # type: ignore[attr-defined]


def test_a_ros_of_another_python_is_forgotten(place: dict[str, str]) -> None:
    path = ["", place["tmp"], f"{place['tmp']}/theirs", f"{place['tmp']}/ours"]
    environment_checks.remove_foreign_ros(path)
    assert path == ["", place["tmp"], f"{place['tmp']}/ours"]


def test_the_list_costs_no_command_its_quick_start() -> None:
    code = "import sys; from vlm_spec_decode.core import environment; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "yaml", "socket", "xml.etree", "tempfile", "click"} & set(done.stdout.split())

"""What is installed by pip and by colcon: files, scripts, dependencies."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vlm_spec_decode import __version__

ROOT = Path(__file__).parents[1]
NAME = "vlm_spec_decode"
NODES = ("camera_node", "locomotion_node", "vlm_node")

WITHOUT_KEY = {
    *("llguidance", "cyclonedds", "msgspec", "safetensors", "tokenizers", "unitree-sdk2py-dimos"),
    "huggingface-hub",
}
"""Runtime packages for which rosdistro has no rosdep key; package.xml says how they are installed."""
ROSDEP = {
    "pillow": "python3-pil",
    "pyyaml": "python3-yaml",
    "pyzmq": "python3-zmq",
    "transformers": "python3-transformers-pip",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git knows, so that a build leaves nothing behind here."""
    folder = tmp_path_factory.mktemp("source") / NAME
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the package is not known")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def build(source: Path, out: Path, hook: str) -> Path:
    code = f"import sys; from setuptools import build_meta as b; print(b.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_wheel_holds_what_runs_and_what_ros_looks_for(source, tmp_path):
    with zipfile.ZipFile(build(source, tmp_path, "build_wheel")) as wheel:
        names = set(wheel.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        scripts = wheel.read(entry).decode()
    for role in ("draft", "target"):
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert f"{NAME}/assets/{role}/{file}" in names
    assert {f"{NAME}/py.typed", f"{NAME}/assets/README.md"} <= names
    assert any(name.endswith("/LICENSE") for name in names)
    data = f"{NAME}-{__version__}.data"
    share = f"{data}/data/share"
    assert f"{share}/ament_index/resource_index/packages/{NAME}" in names
    for path in (
        "package.xml",
        "launch/sim.launch.py",
        "launch/go2.launch.py",
        "config/sim.yaml",
        "rviz/vlm.rviz",
        "vlm_spec_decode_msgs/package.xml",
        "vlm_spec_decode_msgs/msg/Plan.msg",
        "vlm_spec_decode_msgs/action/ExecuteInstruction.action",
    ):
        assert f"{share}/{NAME}/{path}" in names
    assert any(name.startswith(f"{share}/{NAME}/config/scenes/") for name in names)
    for script in ("vsd", *NODES):
        assert f"{script} = {NAME}." in scripts
    assert not any(name.startswith(("test/", "benchmarks/", "nodes/")) for name in names)


@pytest.mark.slow
def test_a_source_archive_can_be_built_from(source, tmp_path):
    with tarfile.open(build(source, tmp_path, "build_sdist")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {"setup.py", "setup.cfg", "package.xml", "README.md", "LICENSE", f"resource/{NAME}"}
    needed |= {"requirements.lock", "requirements-test.lock", "CITATION.cff", "CONTRIBUTING.md"}
    needed |= {"vlm_spec_decode_msgs/CMakeLists.txt", "vlm_spec_decode_msgs/srv/Approve.srv"}
    assert needed | {f"nodes/{node}" for node in NODES} | {"launch/sim.launch.py"} <= names


def colcon_command():
    colcon = shutil.which("colcon") or shutil.which("colcon", path=str(Path(sys.executable).parent))
    if colcon is None:
        pytest.skip("colcon is not installed")
    return [colcon, "--log-base", "log"]


def test_colcon_finds_both_packages_in_the_folders_that_the_page_names(source, tmp_path):
    page = (ROOT / "docs" / "install.md").read_text()
    (folders,) = re.findall(r"^colcon build --base-paths (.+)$", page, re.MULTILINE)
    paths = [folder.replace("src/vlm_spec_decode", str(source), 1) for folder in folders.split()]
    command = [*colcon_command(), "list", "--base-paths", *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    found = {line.split("\t")[0]: line.split("\t")[-1] for line in done.stdout.splitlines()}
    assert found == {NAME: "(ros.ament_python)", f"{NAME}_msgs": "(ros.ament_cmake)"}


@pytest.mark.slow
def test_colcon_builds_it(source, tmp_path):
    command = [*colcon_command(), "build", "--base-paths", str(source), "--packages-select", NAME]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    installed = tmp_path / "install" / NAME
    for node in (*NODES, "vsd"):
        assert (installed / "lib" / NAME / node).is_file()
    assert (installed / "share" / NAME / "launch" / "sim.launch.py").is_file()
    assert (installed / "share" / "ament_index" / "resource_index" / "packages" / NAME).is_file()


def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def requirements(name: str) -> set[str]:
    """Return the packages of one of the lists in setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)]
    found = {"NAME": NAME}
    exec(compile(ast.Module(lists, []), "setup.py", "exec"), found)
    return {re.split(r"[<>=;\[ ]", text)[0] for text in found[name]}


def test_the_manifest_is_of_format_3_and_of_this_version():
    root = manifest()
    assert root.get("format") == "3"
    assert root.findtext("version") == __version__
    assert root.findtext("license") == "Apache-2.0"
    assert root.findtext("export/build_type") == "ament_python"


def test_the_manifest_names_every_package_that_a_robot_needs_and_none_of_another_machine():
    keys = {node.text for node in manifest().iter("exec_depend")}
    needed = requirements("BASE") | requirements("EDGE")
    others = {name for part in ("CLOUD", "SIM", "BAGS", "TRAIN", "BENCH") for name in requirements(part)}
    for name in others - needed:
        assert not {f"python3-{name}", f"python3-{name}-pip"} & keys
    for name in needed - WITHOUT_KEY:
        assert ROSDEP.get(name, f"python3-{name}") in keys


def test_the_manifest_names_every_ros_package_that_is_imported():
    keys = {node.text for node in manifest().iter("exec_depend")}
    imported = set()
    for path in [*(ROOT / NAME).rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        found = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        imported |= {
            n
            for n in found
            if n in {"rclpy", "launch", "launch_ros", "ament_index_python"}
            or n.endswith(("_msgs", "_srvs", "_interfaces"))
        }
    assert imported <= keys


def pinned(lock: str) -> dict[str, list[str]]:
    """Return package -> its pins (one for each marker) of a lock file."""
    found = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition("==")
            assert rest, f"{line!r} is not pinned"
            found.setdefault(name.lower().replace("_", "-"), []).append(rest)
    return found


def test_the_lock_pins_every_requirement_for_every_python():
    found = pinned("requirements.lock")
    parts = ("BASE", "EDGE", "CLOUD", "SIM", "BAGS", "TRAIN", "SERVE", "BENCH", "ROS", "PHYSICAL")
    for name in {name for part in parts for name in requirements(part)}:
        assert name.lower() in found, f"{name} is not in requirements.lock"
    assert len(found["cyclonedds"]) == 2


def test_what_only_tests_need_is_locked_apart_and_not_in_the_way_of_the_demo():
    base, tests = pinned("requirements.lock"), pinned("requirements-test.lock")
    assert not set(base) & set(tests)
    for name in requirements("DEV"):
        assert name.lower() in base | tests, f"{name} is in no lock"
    for name in ("pytest", "mypy", "ruff", "ray", "av", "opencv-python-headless", "torchao", "ros-test-msgs"):
        assert name in tests, f"{name} is for tests alone"
    assert base["torch"] == ["2.13.0"], "torch is installed first, by this pin"
    assert not [name for name in base | tests if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_demo_does_not_install_what_only_tests_need():
    def setup_of(target):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        return re.findall(r"^bash \.ci/setup (\w+)", done.stdout, re.MULTILINE)

    assert setup_of("demo") == ["demo"]
    assert setup_of("setup") == setup_of("test") == ["test"]
    done = subprocess.run(["bash", ".ci/setup", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "[setup] error: unknown part nothing: demo or test\n")


def test_make_knows_its_targets():
    for target in ("setup", "demo", "test", "lint", "bench", "lock", "clean"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

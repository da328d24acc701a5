"""Extras by machine: each part of the package runs with the libraries of its own extra and no others."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from test.test_packaging import requirements
from vlm_spec_decode.core import extras
from vlm_spec_decode.core.errors import MissingExtra

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlm_spec_decode"
OTHER_ENVIRONMENT = PACKAGE / "models" / "engines" / "vllm_host.py"
"""Runs in vLLM's own environment, and is imported nowhere in ours."""

OTHER_NAMES = {"cv2": "opencv-python-headless"}

HIDE = """
import sys

class Without:
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

hidden = set(sys.argv.pop(1).split(","))
sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
"""
"""Makes libraries disappear, as on a machine where they are not installed."""

PARTS = {
    "edge": (
        *("core", "decoding", "strategies", "protocol", "transport", "actions", "models"),
        *("control", "robot", "edge", "mission"),
    ),
    "cloud": ("core", "decoding", "strategies", "protocol", "transport", "models", "cloud"),
    "sim": ("core", "sim"),
    "bags": ("bags",),
    "train": ("train", "sim", "bags"),
    "serve": ("core", "serve"),
    "bench": ("bench",),
}
"""The folders of which every module can be imported with one extra alone."""


EXTRAS_OF = {
    "core": (),
    "decoding": (),
    "strategies": (),
    "protocol": (),
    "transport": (),
    "actions": (),
    "control": (),
    "models": ("edge",),
    "robot": ("edge",),
    "sim": ("sim", "physical"),
    "edge": ("edge", "video"),
    "cloud": ("cloud", "cluster"),
    "mission": (),
    "bags": ("bags",),
    "serve": ("serve",),
    "train": ("train",),
    "bench": ("bench",),
    "ros": ("ros", "video"),
    "demo": ("ros",),
    "cli": ("cloud",),
}
"""The extras of which a folder may use the libraries, also inside functions: the usual one, then one for a
less usual use (replicas, other cameras, the physical body)."""

BESIDE = ("cluster", "video", "physical")


def without(hidden: set[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE + code, ",".join(sorted(hidden)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)


def not_in(extra: str) -> set[str]:
    return {library for library, found in extras.EXTRAS.items() if extra not in found}


def third_party(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"vlm_spec_decode"}


def test_every_library_that_is_imported_is_of_the_base_or_of_an_extra() -> None:
    base = {name.replace("-", "_") for name in requirements("BASE")}
    base = base - {"pillow", "pyyaml", "pyzmq"} | {"PIL", "yaml", "zmq"}
    of_ros_itself = {"ament_index_python", "launch", "launch_ros"}
    only_for_types = {"_typeshed", "typing_extensions"}
    of_its_own_environment = {"vllm"}
    imported = {name for path in PACKAGE.rglob("*.py") for name in third_party(path)}
    assert imported - base - set(extras.EXTRAS) == (of_ros_itself | only_for_types | of_its_own_environment)
    assert not base & set(extras.EXTRAS)


def optional_libraries(folder: str) -> set[str]:
    """Return what a folder imports, also inside functions, that the base does not bring."""
    found = {name for path in (PACKAGE / folder).rglob("*.py") for name in third_party(path)}
    return found & set(extras.EXTRAS)


@pytest.mark.parametrize("folder", EXTRAS_OF)
def test_every_import_of_a_folder_is_brought_by_the_extra_of_its_machine(folder: str) -> None:
    libraries = optional_libraries(folder)
    for library in libraries:
        bringers = set(extras.EXTRAS[library])
        usual, beside = {EXTRAS_OF[folder][0]}, set(EXTRAS_OF[folder]) & set(BESIDE)
        assert bringers & (usual | beside), f"{folder} imports {library}, which {bringers} bring"
    assert bool(libraries) == bool(EXTRAS_OF[folder])


@pytest.mark.parametrize("extra", PARTS)
def test_an_extra_brings_what_all_folders_of_its_machine_import(extra: str) -> None:
    for folder in PARTS[extra]:
        for library in optional_libraries(folder):
            assert {extra, *BESIDE} & set(extras.EXTRAS[library]), f"{folder} imports {library}"


def test_what_runs_in_another_environment_is_imported_nowhere_in_ours() -> None:
    imports = re.compile(rf"^\s*(from|import) .*\b{OTHER_ENVIRONMENT.stem}\b", re.MULTILINE)
    for path in PACKAGE.rglob("*.py"):
        assert not imports.search(path.read_text(encoding="utf-8")), path


def test_no_folder_is_left_out() -> None:
    assert set(EXTRAS_OF) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_what_is_for_type_checkers_only_is_not_imported() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
        checked = [block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING"]
        inside = {node for block in checked for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in ("_typeshed.wsgi", "typing_extensions"):
                assert node in inside, path


def test_the_page_of_the_installation_lists_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    declared = re.findall(r'^        "(\w+)": [A-Z]+,$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert len(declared) > 10
    listed = re.findall(r"^\| [^|]+ \| `pip install '\.\[(\w+)\]'`", page, re.MULTILINE)
    assert set(listed) == set(declared) - {"dev"}


def test_an_extra_brings_the_libraries_that_are_said_to_come_with_it() -> None:
    known = packages_distributions()
    for library, found in extras.EXTRAS.items():
        names = {OTHER_NAMES.get(library, library), *known.get(library, ())}
        wanted = {name.lower().replace("_", "-") for name in names}
        for extra in found:
            packages = {name.lower() for name in requirements(extra.upper())}
            # Messages that nobody names come with rclpy.
            assert wanted & packages or (extra == "ros" and "ros-rclpy" in packages), (library, extra)


@pytest.mark.parametrize("extra", PARTS)
def test_a_part_is_imported_whole_with_its_own_extra_alone(extra: str) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in PARTS[extra]
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        if path != OTHER_ENVIRONMENT
    ]
    code = (
        "import importlib, json\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules} & hidden)))"
    )
    hidden = not_in(extra)
    assert {"rclpy", "ray"} <= hidden
    assert extra in ("sim", "train") or "mujoco" in hidden
    done = without(hidden, code, json.dumps(modules))
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("arguments", "hidden", "way"),
    [
        (["ask", "--instruction", "go", "--image", "docs/images/frame.jpg"], not_in("sim"), "[edge]"),
        (["sim", "--headless", "--actions", "turn(20)"], not_in("edge"), "[sim]"),
        (["replay", "--sample"], not_in("edge"), "[bags]"),
        (["train", "evaluate"], not_in("sim"), "[edge]"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_without_its_extra_names_the_way_to_it(
    arguments: list[str], hidden: set[str], way: str, tmp_path: Path
) -> None:
    code = "from vlm_spec_decode.cli.main import main; sys.exit(main(sys.argv[1:]))"
    out = ["--out", str(tmp_path)] if arguments[0] in ("replay", "bench") else []
    done = without(hidden, code, *arguments, *out)
    assert done.returncode == MissingExtra.exit_code, done.stderr[-1500:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vsd: ")]
    assert re.match(r"vsd: MissingExtra: \w+ is not installed, and this needs it: pip install '", line)
    assert way in line


def test_help_needs_the_base_alone() -> None:
    code = "from vlm_spec_decode.cli.main import main; sys.exit(main(['--help']))"
    done = without(set(extras.EXTRAS), code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ask" in done.stdout


def test_the_public_engine_names_what_is_missing() -> None:
    code = (
        "import vlm_spec_decode as vsd\n"
        "try: vsd.Engine.local()\n"
        "except vsd.MissingExtra as error: print(error)"
    )
    done = without(set(extras.EXTRAS), code)
    assert done.stdout.strip().endswith(
        "pip install 'vlm_spec_decode[edge]' (or [cloud], [bags], [train], [bench])"
    )


def test_other_import_errors_stay_what_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"), extras.translate_missing():
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401


def test_the_doctor_does_not_call_a_machine_ill_for_what_it_need_not_have() -> None:
    code = (
        "from vlm_spec_decode.cli.doctor import _package, _rclpy, _rendering\n"
        "packages = _package('no-such-package', 'sim'), _package('no-such-package')\n"
        "for found in (_rclpy(), _rendering(), *(check() for check in packages)):\n"
        "    print(found.level, found.advice)"
    )
    done = without({"rclpy", "mujoco"}, code)
    assert done.stdout.splitlines() == [
        "warn if this machine is to have it: pip install 'vlm_spec_decode[ros]'",
        "warn if this machine is to have it: pip install 'vlm_spec_decode[sim]'",
        "warn if this machine is to have it: pip install 'vlm_spec_decode[sim]'",
        "FAIL `make setup` installs it",
    ], done.stderr

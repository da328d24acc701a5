"""Launch files and the settings they hand to the nodes, as far as this installation can run them."""

import importlib.util
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from test.launch_files import declared_arguments
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros import node_parameters as params
from vlm_spec_decode.ros.frames import frame_parameters, write_view
from vlm_spec_decode.ros.parameter_docs import CHANNELS
from vlm_spec_decode.ros.parameter_docs import PARAMETERS as DECLARED
from vlm_spec_decode.ros.robot_model import leg_frames
from vlm_spec_decode.sim.physics.physical_world import BODIES

ROOT = Path(__file__).parents[2]
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))
CONFIG_FILES = sorted((ROOT / "config").glob("*.yaml"))

needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch_ros has no wheel: part of a ROS installation",
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_launch_files_are_there():
    assert [path.name for path in LAUNCH_FILES] == ["go2.launch.py", "replay.launch.py", "sim.launch.py"]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_argument_is_described_and_rviz_is_off(path):
    found = declared_arguments(path)
    assert len(found) >= 10
    assert all(len(each.description) > 8 and each.description.endswith(".") for each in found.values())
    assert all(each.default in each.choices for each in found.values() if each.choices)
    assert found["rviz"].default == "false"
    assert path.name == "replay.launch.py" or found["record"].default == ""


def test_an_argument_takes_what_its_parameter_takes():
    parameters = {p.name: p for declared in DECLARED.values() for p in declared}
    for path in LAUNCH_FILES:
        for name, argument in declared_arguments(path).items():
            parameter = parameters.get(name)
            if parameter is not None and argument.choices != params.YES_NO:
                assert argument.choices == parameter.choices, name
            if parameter is not None and argument.default and name not in {"interface", "domain"}:
                assert argument.default == str(parameter.default).lower(), name
    assert declared_arguments(LAUNCH_FILES[-1])["body"].choices == tuple(BODIES)


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.name)
def test_settings_name_declared_parameters_within_their_ranges(path):
    nodes = yaml.safe_load(path.read_text())
    assert {name.removeprefix("/**/") for name in nodes} <= set(DECLARED)
    for name, values in nodes.items():
        declared = {parameter.name: parameter for parameter in DECLARED[name.removeprefix("/**/")]}
        for key, value in values["ros__parameters"].items():
            parameter = declared[key]
            assert type(value) is type(parameter.default), key
            assert parameter.low is None or parameter.low <= value <= parameter.high, key


@pytest.mark.parametrize("declared", DECLARED.values(), ids=DECLARED)
def test_no_parameter_is_declared_twice_or_without_a_word(declared):
    names = [parameter.name for parameter in declared]
    assert len(names) == len(set(names))
    assert all(parameter.description.endswith(".") for parameter in declared)
    bounded = [p for p in declared if isinstance(p.default, int | float) and not isinstance(p.default, bool)]
    assert all(p.low is not None and p.low <= p.default <= p.high for p in bounded)


@needs_launch
@pytest.mark.parametrize("console", ["true", "false"])
@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_what_is_started_gets_parameters_that_its_node_declares(path, console, monkeypatch):
    from launch_ros.actions import Node

    from launch import LaunchContext
    from vlm_spec_decode.ros import launch as launch_parts

    module = load(path)
    monkeypatch.setattr(launch_parts, "get_package_share_directory", lambda _: str(ROOT))
    context = LaunchContext()
    given = {"interface": "eth0", "cloud": "tcp://10.0.0.2:5711", "keys": "/keys", "instruction": "a: b"}
    given["console"] = console
    for action in module.generate_launch_description().entities[:-1]:
        value = given.get(action.name)
        default = "" if value is not None else action.default_value[0].perform(context)
        context.launch_configurations[action.name] = value if value is not None else default
    started = module.bring_up(context)
    nodes = [action for action in started if isinstance(action, Node)]
    wanted = {"monitor_node", "vlm_node"} if path.name == "replay.launch.py" else set(DECLARED)
    if console == "false":
        wanted -= {"console_node"}
    assert sorted(node.node_executable for node in nodes) == sorted(wanted)
    for node in nodes:
        declared = {parameter.name for parameter in DECLARED[node.node_executable]}
        given_names = set(parameters_of(node)) - {"use_sim_time"}
        assert given_names or node.node_executable == "monitor_node"
        assert declared >= given_names


@needs_launch
def test_a_walk_is_recorded_if_asked_for():
    from vlm_spec_decode.ros.launch import Values, recorder

    assert recorder(Values({"record": ""})) == []
    (process,) = recorder(Values({"record": "~/walks/monday"}))
    words = [part.text for word in process.cmd[1:] for part in word]
    assert words == ["record", str(Path("~/walks/monday").expanduser())]


@needs_launch
def test_a_robot_that_is_no_go2_must_name_its_camera():
    from launch import LaunchContext

    module, context = load(ROOT / "launch" / "go2.launch.py"), LaunchContext()
    context.launch_configurations.update({each.name: each.default or "x" for each in module.ARGUMENTS})
    context.launch_configurations["driver"] = "cmd_vel"
    with pytest.raises(ConfigError, match="source:="):
        module.bring_up(context)


def test_commands_that_are_launched_know_their_options():
    commands = ("cloud", "sim", "replay", "record")
    known = {
        option
        for name in commands
        for parameter in cli.vsd.get_command(None, name).params
        for option in parameter.opts
    }
    for path in LAUNCH_FILES:
        assert set(re.findall(r'"(--\w[\w-]*)"', path.read_text())) <= known, path.name


def parameters_of(node):
    names = []
    for group in node._Node__parameters:
        if isinstance(group, dict):
            names += ["".join(part.text for part in key) for key in group]
    return names


TEMPLATE = (ROOT / "rviz" / "vlm.rviz").read_text()
FRAMES = {"odom", "base_link", "front_camera", "front_camera_optical", *leg_frames("base_link")}


def leaves(part, path=()):
    """Yield the path and value of everything in a config that holds nothing else."""
    children = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    yield from (leaf for key, value in children for leaf in leaves(value, (*path, key)))
    if not children:
        yield path, part


def displays(config):
    return {each["Name"]: each for each in config["Visualization Manager"]["Displays"]}


@pytest.mark.parametrize(("namespace", "prefix"), [("", ""), ("go2_a", "go2_a/"), ("/fleet/b/", "b/")])
def test_every_frame_and_topic_of_rviz_is_this_robots(tmp_path, namespace, prefix):
    template = ROOT / "rviz" / "vlm.rviz"
    path = write_view(template, tmp_path, namespace=namespace, prefix=prefix)
    below = f"/{namespace.strip('/')}" if namespace else ""
    found, topics = set(), set()
    for where, value in leaves(yaml.safe_load(path.read_text())):
        # Whatever says a known frame, as value or as key, says it with the prefix.
        words = {value, *where} & (FRAMES | {f"{prefix}{frame}" for frame in FRAMES})
        assert all(word.startswith(prefix) for word in words), where
        found |= {word.removeprefix(prefix) for word in words}
        if where[-1] == "Value" and isinstance(value, str) and value.startswith("/"):
            assert value.startswith(f"{below}/"), where
            topics.add(value.removeprefix(f"{below}/"))
    assert found == FRAMES
    published = {c.name for channels in CHANNELS.values() for c in channels if c.direction == "out"}
    assert topics
    assert topics <= published
    assert set(re.findall(r"Value: /(\S+)", TEMPLATE)) == topics
    assert not (tmp_path / "vlm.rviz").samefile(template)


def test_rviz_listens_as_the_nodes_publish():
    shown = displays(yaml.safe_load(TEMPLATE))
    asked = {name: each.get("Topic", each.get("Description Topic")) for name, each in shown.items()}
    latched = {name for name, topic in asked.items() if topic and "Local" in topic["Durability Policy"]}
    assert latched == {"Plan", "Robot"}, "what is published once; the rest comes again and again"
    assert asked["Plan"]["Value"] != asked["Hull, obstacles, status"]["Value"]
    assert asked["Camera"]["Reliability Policy"] == "Best Effort"
    assert all(
        topic["Reliability Policy"] == "Reliable"
        for name, topic in asked.items()
        if topic and name != "Camera"
    )


def test_the_path_is_seen_among_the_arrows_and_no_label_lies_on_another():
    shown = displays(yaml.safe_load(TEMPLATE))
    odometry, arrow = shown["Odometry"], shown["Odometry"]["Shape"]
    assert shown["Path"]["Line Width"] > 2 * max(arrow["Shaft Radius"], arrow["Head Radius"])
    # A turn on the spot draws an arrow for each step of the angle's tolerance: a star, not a disc.
    assert 2 * math.pi / odometry["Angle Tolerance"] <= 16
    assert odometry["Keep"] <= 40
    assert not shown["Frames"]["Show Names"], "the body covers most of each"
    frames = shown["Frames"]["Frames"]
    assert [name for name in FRAMES if frames[name]["Value"] and "camera" in name] == ["front_camera_optical"]
    assert {name for name in FRAMES if frames[name]["Value"]} == {"odom", "base_link", "front_camera_optical"}


def test_the_saved_layout_holds_the_panels_and_a_camera_that_can_be_read():
    config = yaml.safe_load(TEMPLATE)
    window, panels = config["Window Geometry"], [panel["Name"] for panel in config["Panels"]]
    assert panels == ["Displays"], "the views' panel took a third of the dock"
    state = bytes.fromhex(window["QMainWindow State"])
    # Qt's format: a marker and version, then areas with the docks' names in UTF-16 and their sizes.
    assert state[:8] == b"\0\0\0\xff\0\0\0\0"
    assert all(name.encode("utf-16-be") in state for name in ("Camera", *panels))
    width = int.from_bytes(state[17:21], "big")
    height = int.from_bytes(state[21:25], "big")
    assert width >= 640 <= window["Width"] - width, "the overlay's own width, and as much for the view"
    assert height <= window["Height"]


def test_foxglove_names_its_plots():
    layout = json.loads((ROOT / "rviz" / "foxglove_layout.json").read_text())["configById"]
    plots = {name: panel for name, panel in layout.items() if name.startswith("Plot!")}
    assert len(plots) == 3
    for panel in plots.values():
        assert panel["foxglovePanelTitle"] == panel["lichtblickPanelTitle"] != ""
    assert {"/vlm/markers", "/vlm/markers/body", "/robot_description"} <= set(layout["3D!scene"]["topics"])


def test_every_frame_parameter_has_the_prefix_and_belongs_to_its_node():
    for keyword, values in frame_parameters("go2_a/").items():
        declared = {parameter.name: parameter for parameter in DECLARED[f"{keyword}_node"]}
        frames = {name for name in declared if name.endswith("_frame") or name == "frame_id"}
        assert set(values) == frames, keyword
        assert values == {name: f"go2_a/{declared[name].default}" for name in frames}
    assert not [n for n in DECLARED["vlm_node"] if n.name.endswith("_frame") or n.name == "frame_id"]


def test_what_rviz_needs_is_a_dependency_and_is_documented():
    depends = {each.text for each in ElementTree.parse(ROOT / "package.xml").iter("exec_depend")}
    assert "compressed_image_transport" in depends
    for page in ("install.md", "real_robot.md"):
        assert "compressed_image_transport" in (ROOT / "docs" / page).read_text().replace("-", "_"), page


@needs_launch
@pytest.mark.parametrize("missing", ["rviz2", "compressed_image_transport"])
def test_what_rviz_lacks_is_named_before_anything_starts(monkeypatch, missing):
    from ament_index_python.packages import PackageNotFoundError

    from launch import LaunchContext
    from vlm_spec_decode.ros import launch as launch_parts

    def find(package):
        if package == missing:
            raise PackageNotFoundError(package)
        return str(ROOT)

    monkeypatch.setattr(launch_parts, "get_package_prefix", find)
    monkeypatch.setattr(launch_parts, "get_package_share_directory", lambda _: str(ROOT))
    for path in LAUNCH_FILES:
        module, context = load(path), LaunchContext()
        context.launch_configurations.update({each.name: each.default or "1" for each in module.ARGUMENTS})
        context.launch_configurations["rviz"] = "true"
        with pytest.raises(ConfigError, match=f"needs {missing}, which is not here"):
            module.bring_up(context)


@needs_launch
@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_frame_of_a_launch_with_a_prefix_has_it(path, monkeypatch, tmp_path):
    from launch_ros.actions import Node
    from launch_ros.utilities import evaluate_parameters

    from launch import LaunchContext
    from vlm_spec_decode.ros import launch as launch_parts

    monkeypatch.setattr(launch_parts, "get_package_share_directory", lambda _: str(ROOT))
    monkeypatch.setattr(launch_parts, "get_package_prefix", lambda _: str(ROOT))
    monkeypatch.setattr(launch_parts.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    module, context = load(path), LaunchContext()
    context.launch_configurations.update({each.name: each.default or "1" for each in module.ARGUMENTS})
    context.launch_configurations.update(rviz="true", namespace="go2_a", frame_prefix="go2_a/")
    prefixed = 0
    for action in module.bring_up(context):
        if not isinstance(action, Node) or action.node_executable == "rviz2":
            continue
        for group in evaluate_parameters(context, action._Node__parameters):
            values = group if isinstance(group, dict) else {}
            frames = {
                name: text for name, text in values.items() if name.endswith("_frame") or name == "frame_id"
            }
            assert all(text.startswith("go2_a/") for text in frames.values()), frames
            prefixed += len(frames)
    assert prefixed == (0 if path.name == "replay.launch.py" else 7)
    shown = yaml.safe_load((tmp_path / "vlm.rviz").read_text())["Visualization Manager"]
    prefix = "" if "frame_prefix" not in {each.name for each in module.ARGUMENTS} else "go2_a/"
    assert shown["Global Options"]["Fixed Frame"] == f"{prefix}odom"
    assert displays({"Visualization Manager": shown})["Plan"]["Topic"]["Value"] == "/go2_a/vlm/markers"


@needs_launch
def test_rviz_stays_open_when_the_replay_has_ended():
    from launch.actions import LogInfo, Shutdown

    from vlm_spec_decode.ros.launch import LastOf

    for first, second in (("the replay", "RViz"), ("RViz", "the replay")):
        ends = LastOf(("the replay", "RViz"))
        (told,) = ends.ended(first)
        assert isinstance(told, LogInfo)
        assert isinstance(ends.ended(second)[0], Shutdown)


@needs_launch
def test_what_cannot_be_meant_is_refused_by_name():
    from launch import LaunchContext
    from vlm_spec_decode.ros.launch import Values, declare

    context = LaunchContext()
    for action in declare(params.MISSION):
        action.execute(context)
    assert not Values.of(context, params.MISSION).flag("approve")
    context.launch_configurations["aprove"] = "true"
    with pytest.raises(ConfigError, match="approve"):
        Values.of(context, params.MISSION)
    with pytest.raises(ConfigError, match="domain:=x"):
        Values({"domain": "x"}).integer("domain")

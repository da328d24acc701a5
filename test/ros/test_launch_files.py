"""Launch files and the settings they hand to the nodes, as far as this installation can run them."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from test.launch_files import declared_arguments
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros import node_parameters as params
from vlm_spec_decode.ros.parameter_docs import PARAMETERS as DECLARED
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
@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_what_is_started_gets_parameters_that_its_node_declares(path, monkeypatch):
    from launch_ros.actions import Node

    from launch import LaunchContext
    from vlm_spec_decode.ros import launch as launch_parts

    module = load(path)
    monkeypatch.setattr(launch_parts, "get_package_share_directory", lambda _: str(ROOT))
    context = LaunchContext()
    given = {"interface": "eth0", "cloud": "tcp://10.0.0.2:5711", "keys": "/keys", "instruction": "a: b"}
    for action in module.generate_launch_description().entities[:-1]:
        value = given.get(action.name)
        default = "" if value is not None else action.default_value[0].perform(context)
        context.launch_configurations[action.name] = value if value is not None else default
    started = module.bring_up(context)
    nodes = [action for action in started if isinstance(action, Node)]
    without_robot = ["monitor_node", "vlm_node"] if path.name == "replay.launch.py" else list(DECLARED)
    assert sorted(node.node_executable for node in nodes) == sorted(without_robot)
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


def test_what_rviz_shows_is_what_launch_files_carry_into_a_namespace():
    shown = set(re.findall(r"Value: /(\S+)", (ROOT / "rviz" / "vlm.rviz").read_text()))
    text = (ROOT / "vlm_spec_decode" / "ros" / "launch.py").read_text()
    assert set(ast.literal_eval(re.search(r"^RVIZ_TOPICS = (\(.*\))$", text, re.MULTILINE).group(1))) == shown


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

"""Parameters as YAML files and command lines give them, and the command line of a node."""

import itertools

import pytest
from rclpy.parameter import Parameter as RosParameter

from vlm_spec_decode.core.config import Setting
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros import params
from vlm_spec_decode.ros.node_parameters import NODES, settings
from vlm_spec_decode.ros.parameter_docs import PARAMETERS
from vlm_spec_decode.ros.params import Parameters

pytestmark = pytest.mark.ros

DECLARED = (
    Setting("rate_hz", 5.0, "a rate", 1.0, 10.0, live=True),
    Setting("free", 1.0, "any real number"),
    Setting("count", 3, "a count", 1, 5),
    Setting("flag", False, "a flag"),
    Setting("text", "", "a text"),
    Setting("switch", "on", "a switch", one_of=("on", "off"), live=True),
)
NUMBER = itertools.count()


def declare(graph, name, value):
    return Parameters(graph.node(f"parameters_{next(NUMBER)}", **{name: value}), DECLARED)


@pytest.mark.parametrize(
    ("name", "value"), [("rate_hz", 2), ("rate_hz", 2.5), ("rate_hz", 10), ("free", -7), ("free", 1e9)]
)
def test_a_whole_number_will_do_for_a_real_one(graph, name, value):
    found = declare(graph, name, value).real(name)
    assert found == value
    assert isinstance(found, float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("rate_hz", value)
            for value in ("2", True, [1.0], [2], 11, 0, 0.5, float("nan"), float("inf"), "")
        ),
        *(("free", value) for value in ("2", False, ["a"], float("nan"), float("inf"))),
        *(("count", value) for value in (2.0, "2", True, 9, [1])),
        *(("flag", value) for value in (1, "true", [True])),
        *(("text", value) for value in (1, 1.5, True, ["a"])),
        *(("switch", value) for value in (1, "yes", ["on"])),
    ],
)
def test_anything_else_is_refused_by_name(graph, name, value):
    with pytest.raises(ConfigError, match=f"parameter {name}: ") as caught:
        declare(graph, name, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "said"), [("off", "off"), (False, "off"), (True, "on"), ("on", "on")])
def test_a_plain_on_or_off_which_yaml_reads_as_a_truth_value_is_taken(graph, value, said):
    assert declare(graph, "switch", value).text("switch") == said


def test_a_change_while_the_node_runs_is_held_to_the_same(graph):
    node = graph.node("parameters_live")
    values = Parameters(node, DECLARED)

    def change(value=None):
        (result,) = node.set_parameters([RosParameter("rate_hz", value=value)])
        return result.successful, result.reason

    assert change(3) == (True, "")
    assert values.real("rate_hz") == 3.0
    for bad in ("4", True, 30.0, 30, 0, float("nan"), [1.0], None):
        good, why = change(bad)
        assert not good
        assert "rate_hz" in why
    assert values.real("rate_hz") == 3.0
    (fixed,) = node.set_parameters([RosParameter("free", value=3)])
    assert not fixed.successful


@pytest.mark.parametrize("name", NODES)
def test_help_lists_every_parameter(name):
    text = params.help_text(name, settings(name))
    assert text.startswith(f"Usage: {name} ")
    for each in PARAMETERS[name]:
        assert f" {each.name} (" in text
        assert each.description in text


@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_help_is_asked_for_anywhere(asked):
    assert params.asks_for_help(["vlm_node", asked])
    assert params.asks_for_help(["vlm_node", "--ros-args", "-p", "a:=1", "--", asked])
    assert not params.asks_for_help(["vlm_node", "--ros-args", "-p", "a:=1"])


@pytest.mark.parametrize("argument", ["cloud:=tcp://127.0.0.1:5557", "__ns:=/go2", "now", "-v", "a\udcff"])
def test_what_ros_would_pass_over_is_refused(argument):
    with pytest.raises(ConfigError, match="argument"):
        params.check_arguments(["vlm_node", argument])
    params.check_arguments(
        ["vlm_node", "--ros-args", "-p", "cloud:=tcp://127.0.0.1:5557", "--log-level", "info"]
    )

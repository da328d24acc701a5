"""The guard around callbacks: what a message does to one of them is counted, named, and ends nothing."""

import ast
from pathlib import Path

import pytest

from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.subscriptions import fault_lines, guarded, guarded_timer, subscribe

ROS = Path(__file__).parents[2] / "vlm_spec_decode" / "ros"
ELSEWHERE = {"subscriptions.py": 1, "camera_sources.py": 1, "operator.py": 3, "recorder.py": 1}
"""Unguarded: its own, one that keeps the message, a command's, and one of raw bytes."""


class Node:
    def __init__(self):
        self.said, self.made = [], []

    def get_logger(self):
        return self

    def error(self, text, **_):
        self.said.append(text)

    debug = error

    def create_subscription(self, kind, topic, take, qos, **options):
        self.made.append((kind, topic, take, qos, options))
        return topic


def fail(message):
    raise message


@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), OverflowError(), RecursionError(), ZeroDivisionError(), AssertionError("x" * 999)],
)
def test_what_a_callback_raises_is_counted_named_and_told(error):
    node, told = Node(), []
    subscribe(node, str, "points", fail, 5, on_fault=told.append, callback_group="g")
    kind, topic, take, qos, options = node.made[0]
    assert (kind, topic, qos, options) == (str, "points", 5, {"callback_group": "g"})
    take(error)
    take(error)
    assert told == [f"{type(error).__name__}: {error}"[:300]] * 2
    (line,) = fault_lines(node, "node")
    assert line.level == diagnostics.WARN
    assert "points" in line.message
    assert line.values["points"].startswith(f"2; last: {type(error).__name__}")
    assert node.said[0].startswith("points: dropped")


def test_what_goes_well_is_passed_on_and_says_nothing():
    node, heard = Node(), []
    guarded(node, "scan", heard.append)("message")
    guarded_timer(node, "odom", lambda: heard.append("tick"))()
    assert heard == ["message", "tick"]
    assert fault_lines(node, "node") == []
    guarded_timer(node, "odom", lambda: fail(ValueError()))()
    assert fault_lines(node, "node")[0].values.keys() == {"timer odom"}


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_is_let_through(end):
    with pytest.raises(end):
        guarded(Node(), "scan", fail)(end())


def test_no_node_subscribes_without_the_guard():
    found = {}
    for path in sorted(ROS.rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr == "create_subscription"
        ]
        if calls:
            found[path.name] = len(calls)
    assert found == ELSEWHERE

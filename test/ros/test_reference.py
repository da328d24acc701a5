"""docs/parameters.md is what the nodes declare, and its tables are what they do."""

from pathlib import Path

import pytest
from rclpy.action.graph import get_action_server_names_and_types_by_node

from test.mission.scripted import ScriptedEngine
from test.ros import NAMESPACE
from test.ros.test_camera_node import FakeCamera
from test.ros.test_vlm_node import Source
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.ros import parameter_docs as reference
from vlm_spec_decode.ros.nodes.camera import CameraNode
from vlm_spec_decode.ros.nodes.console import ConsoleNode
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.nodes.monitor import MonitorNode
from vlm_spec_decode.ros.nodes.vlm import VlmNode
from vlm_spec_decode.ros.typed import type_name

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[2]
OF_EVERY_NODE = {"/parameter_events", "/rosout"}


def test_the_page_is_what_the_nodes_declare():
    assert (ROOT / "docs" / "parameters.md").read_text() == reference.page(), (
        "run: python -m vlm_spec_decode.ros.parameter_docs > docs/parameters.md"
    )


def build(name, node, image):
    clock = WallClock()
    return {
        "camera_node": lambda: CameraNode(node, lambda: FakeCamera(image), clock),
        "vlm_node": lambda: VlmNode(node, Source(ScriptedEngine([["done()"]])), clock, print),
        "locomotion_node": lambda: LocomotionNode(node, FakeRobot(clock), clock, print),
        "monitor_node": lambda: MonitorNode(node, clock),
        "console_node": lambda: ConsoleNode(node, clock),
    }[name]()


def open_page(part):
    """Let a console subscribe to what it needs for an open page alone."""
    for robot in getattr(part, "robots", ()):
        robot.state.subscribe(lambda _: None)
        robot.video.join()
        robot.watch()


@pytest.mark.parametrize("name", reference.CHANNELS)
def test_the_tables_of_topics_are_what_the_nodes_do(name, graph, image, eventually):
    node = graph.node(name)
    part = graph.start(node, build(name, node, image))
    open_page(part)

    def full(topic):
        return topic if topic.startswith("/") else f"{NAMESPACE}/{topic}"

    def found():
        actions = get_action_server_names_and_types_by_node(node, name, NAMESPACE)
        names = {
            *(("in", each.topic_name) for each in node.subscriptions),
            *(("out", each.topic_name) for each in node.publishers),
            *(("serves", each.srv_name) for each in node.services if f"{name}/" not in each.srv_name),
            *(("action", action) for action, _ in actions),
        }
        every = {(way, topic) for topic in OF_EVERY_NODE for way in ("in", "out")}
        return {(way, full(topic)) for way, topic in names} - every

    told = {(channel.direction, full(channel.name)) for channel in reference.CHANNELS[name]}
    eventually(lambda: found() == told)  # the robot's lease opens its topic on a thread of its own
    assert found() == told


def test_the_types_in_the_tables_are_those_of_the_nodes(graph, image, eventually):
    nodes = {name: graph.node(name) for name in reference.CHANNELS}
    for name, node in nodes.items():
        open_page(graph.start(node, build(name, node, image)))
    told = {
        (c.direction, name, c.name.rpartition("/")[2], c.kind)
        for name, channels in reference.CHANNELS.items()
        for c in channels
        if c.direction in ("in", "out")
    }

    def found():
        ends = [("in", name, s.topic_name, s.msg_type) for name, n in nodes.items() for s in n.subscriptions]
        ends += [("out", name, p.topic_name, p.msg_type) for name, n in nodes.items() for p in n.publishers]
        return {(way, name, topic.rpartition("/")[2], type_name(kind)) for way, name, topic, kind in ends}

    eventually(lambda: told <= found())
    assert told - found() == set()

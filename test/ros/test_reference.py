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
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.nodes.monitor import MonitorNode
from vlm_spec_decode.ros.nodes.vlm import VlmNode

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
    }[name]()


@pytest.mark.parametrize("name", reference.CHANNELS)
def test_the_tables_of_topics_are_what_the_nodes_do(name, graph, image, eventually):
    node = graph.node(name)
    graph.start(node, build(name, node, image))

    def full(topic):
        return topic if topic.startswith("/") else f"{NAMESPACE}/{topic}"

    def resolved():
        found = {("in", s.topic_name) for s in node.subscriptions} | {
            ("out", p.topic_name) for p in node.publishers
        }
        found |= {("serves", s.srv_name) for s in node.services if f"{name}/" not in s.srv_name}
        actions = get_action_server_names_and_types_by_node(node, name, NAMESPACE)
        found |= {("action", action) for action, _ in actions}
        return {(way, full(topic)) for way, topic in found} - {
            (w, t) for t in OF_EVERY_NODE for w in ("in", "out")
        }

    wanted = {(c.direction, full(c.name)) for c in reference.CHANNELS[name]}
    # The lease opens its topic on a thread of its own.
    eventually(lambda: resolved() == wanted)
    assert resolved() == wanted

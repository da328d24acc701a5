"""Missions as a ROS 2 action: with the type of an installation, here one whose goal is a number."""

import threading

import pytest
from rclpy.action import ActionClient

from test.ros.test_vlm_node import stage  # noqa: F401
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros.mission_topics import MissionActionServer, action_type

pytestmark = pytest.mark.ros


def wait(future):
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    assert ended.wait(60)
    return future.result()


@pytest.fixture
def serve(stage, graph, eventually):  # noqa: F811
    messages = pytest.importorskip("test_msgs.action", reason="ros-test-msgs is not installed")

    def start(script):
        ear, _, source = stage(script)
        host = graph.node("action_host")
        face = MissionActionServer(host, messages.Fibonacci, sentence=lambda goal: "go " * goal.order)
        graph.executor.add_node(host)
        graph.executor.wake()
        client = ActionClient(ear.node, messages.Fibonacci, "vlm/execute")
        assert client.wait_for_server(30)
        assert eventually(face._requests.get_subscription_count)
        assert eventually(face._withdrawals.get_subscription_count)
        return ear, source, lambda order: wait(client.send_goal_async(messages.Fibonacci.Goal(order=order)))

    return start


def test_a_goal_is_a_mission_and_its_end_the_result(serve):
    ear, source, send = serve([["turn(20)"], ["done()"]])
    goal = send(2)
    assert goal.accepted
    assert wait(goal.get_result_async()).status == 4, "succeeded"
    assert source.engine.seen[0].instruction == "go go"
    assert "done" in ear.states()


def test_a_cancelled_goal_withdraws_its_mission(serve, eventually):
    ear, _, send = serve([["forward(0.5) ", "…"]])
    goal = send(1)
    assert eventually(lambda: "answering" in ear.states())
    wait(goal.cancel_goal_async())
    assert wait(goal.get_result_async()).status == 5, "cancelled"
    assert "cancelled" in ear.states()


def test_a_goal_without_an_instruction_is_rejected(serve):
    assert not serve([["done()"]])[2](0).accepted


@pytest.mark.parametrize("text", ["", "no_such_msgs/action/Say", "std_msgs", "test_msgs/action/Fibonacci"])
def test_a_type_that_cannot_carry_a_sentence_is_named(text):
    if text.startswith("test_msgs"):
        pytest.importorskip("test_msgs.action")
    with pytest.raises(ConfigError, match="action_type"):
        action_type(text)

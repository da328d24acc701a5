"""A bag at its own rate to a real node under its clock; never where an executor is."""

import numpy as np
import pytest
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from test.bags.walks import START_NS, plain_walk
from test.mission.scripted import ScriptedEngine
from test.ros import NAMESPACE, ROS_DOMAIN
from test.ros.reports import kind_of
from test.ros.test_vlm_node import Source
from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import Done, Forward
from vlm_spec_decode.bags.events import Events, Topics
from vlm_spec_decode.bags.questions import AskPlan, questions
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.demo.live import FakeExecutor, LiveConfig, LivePlayer
from vlm_spec_decode.ros.middleware import COMMAND, LATCHED
from vlm_spec_decode.ros.nodes.vlm import VlmNode
from vlm_spec_decode.ros.robot_model import leg_frames

pytestmark = pytest.mark.ros


def player(tmp_path, walk):
    return LivePlayer(LiveConfig(walk, tmp_path / "live", domain=ROS_DOMAIN, namespace=NAMESPACE))


def test_the_node_answers_about_the_bags_frames_and_what_it_says_can_be_replayed(graph, tmp_path, eventually):
    walk = plain_walk(tmp_path / "walk", seconds=8.0)
    node = graph.node("vlm_node", use_sim_time=True, status_timeout_s=10.0)
    source = Source(ScriptedEngine([["ok . forward ( 0.2 )"], ["done ( )"]]))
    graph.start(node, VlmNode(node, source, WallClock(), source.failures.append))
    viewer = graph.node("viewer")
    moved = graph.listen(viewer, TFMessage, "/tf", 100)
    graph.start(viewer)
    live = player(tmp_path, walk)
    try:
        document = live.play(lambda: False)
        # Who looks when it has ended still gets what is fixed.
        late = graph.node("late_viewer")
        fixed = graph.listen(late, TFMessage, "/tf_static", LATCHED)
        texts = graph.listen(late, String, "robot_description", LATCHED)
        graph.start(late)
        assert eventually(lambda: fixed and texts)
    finally:
        live.close()
    bodies = [each for message in moved for each in message.transforms if each.child_frame_id == "base_link"]
    assert {each.header.frame_id for each in bodies} == {"odom"}
    stamps = [each.header.stamp.sec + each.header.stamp.nanosec / 1e9 for each in bodies]
    assert stamps == sorted(stamps)
    # All the while, ten times a second or so, so that a view can follow.
    assert len(stamps) > 40
    assert max(np.diff(stamps)) < 1.0
    assert min(stamps) - START_NS / 1e9 < 0.5
    assert bodies[-1].transform.translation.z > 0.2, "the body stands on the floor"
    parents = {each.child_frame_id: each.header.frame_id for each in fixed[-1].transforms}
    assert {"front_camera_optical", *leg_frames("base_link")} <= set(parents)
    assert set(parents.values()) <= {"base_link", *parents}
    assert (document["frames"], document["instructions"]) == (32, 1)
    assert document["answers"] == 2
    bag = open_bag(tmp_path / "live" / "bag")
    found = list(questions(Events(bag, Topics().choose(bag.topics)), AskPlan()))
    bag.close()
    assert [q.actions for q in found] == [("forward(0.2)",), ("done()",)]
    assert [q.observation.history for q in found] == [(), ("forward(0.2)",)]
    assert all(0.0 <= q.observation.stamp_s - START_NS / 1e9 <= 8.0 for q in found)


def test_where_an_executor_is_nothing_is_replayed(graph, tmp_path):
    node = graph.node("locomotion_node")
    node.create_publisher(kind_of("vlm/plan/status"), "vlm/plan/status", COMMAND)
    graph.start(node)
    live = player(tmp_path, plain_walk(tmp_path / "walk", seconds=1.0))
    try:
        with pytest.raises(ConfigError, match="not for a robot"):
            live.play(lambda: False)
    finally:
        live.close()


def test_the_stand_in_takes_its_time_and_takes_up_what_is_added():
    robot = FakeExecutor()
    assert robot.status(0.0) is None
    walk = Plan("m", 1, 0.0, 1, (Forward(0.5),))
    robot.set_plan(walk, 10.0)
    assert (robot.status(10.5).state, robot.status(10.5).executed) == ("moving", ())
    assert (robot.status(11.1).state, robot.status(11.1).executed) == ("idle", ("forward(0.5)",))
    robot.set_plan(Plan("m", 1, 0.0, 2, (Forward(0.5), Forward(1.0), Done()), final=True), 12.0)
    assert robot.status(13.0).action == "forward(1)"
    assert robot.status(14.1).executed == ("forward(0.5)", "forward(1)", "done()")
    assert robot.status(14.1).state == "done"
    robot.set_plan(Plan("m", 2, 0.0, 0), 15.0)
    assert (robot.status(15.0).answer, robot.status(15.0).state) == (2, "idle")

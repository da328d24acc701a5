"""Several robots on one ROS domain: each hears its own namespace, and nobody stops another one's."""

import pytest

from test.ros.test_locomotion_node import Commander
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode

pytestmark = pytest.mark.ros


def test_two_robots_are_commanded_stopped_and_told_apart(graph, eventually, tmp_path):
    limits = tmp_path / "limits.yaml"
    limits.write_text("watchdog_s: 10.0\nmax_state_age_s: 10.0\n")
    robots, commanders = [], []
    for below in ("/go2_a", "/go2_b"):
        robots.append(FakeRobot(WallClock()))
        commanders.append(Commander(graph, robots[-1], below))
        node = graph.node("locomotion_node", below, limits_file=str(limits), odom_frame=f"{below[1:]}/odom")
        graph.start(node, LocomotionNode(node, robots[-1], WallClock(), print))
    for commander in commanders:
        assert eventually(commander.plans.get_subscription_count)
        assert eventually(lambda c=commander: c.statuses() and c.odometry)
    one, other = commanders
    one.command(Forward(2.0))
    assert eventually(lambda: robots[0].state().speed_mps > 0.2)
    assert robots[1].true_pose == (0.0, 0.0, 0.0)
    other.command(Forward(0.2), mission="mine")
    assert eventually(lambda: other.statuses()[-1].state == "done")
    assert {status.mission for status in other.statuses()} <= {"", "mine"}
    assert one.estop(True).success
    assert eventually(lambda: "estop" in one.states())
    other.command(Forward(0.2), mission="again")
    assert eventually(lambda: (other.statuses()[-1].mission, other.statuses()[-1].state) == ("again", "done"))
    assert {m.header.frame_id for m in one.odometry} == {"go2_a/odom"}
    names = {line.name for report in one.reports for line in report.status}
    assert any("go2_a/locomotion_node" in name for name in names)
    assert eventually(
        lambda: any("go2_b/locomotion_node" in s.name for report in one.reports for s in report.status)
    )

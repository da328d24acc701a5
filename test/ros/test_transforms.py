"""`/tf` and `/tf_static`, as RViz gets them."""

from __future__ import annotations

import pytest
from tf2_msgs.msg import TFMessage

from test.ros.test_locomotion_node import stage  # noqa: F401
from vlm_spec_decode.actions.types import Forward
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.middleware import LATCHED

pytestmark = pytest.mark.ros


def test_the_body_moves_in_its_odometry_and_carries_the_camera(stage, graph, eventually):  # noqa: F811
    commander, _, _, _ = stage()
    moving = graph.listen(commander.node, TFMessage, "/tf", 50)
    fixed = graph.listen(commander.node, TFMessage, "/tf_static", LATCHED)
    commander.command(Forward(1.0))

    def places():
        return [one for message in moving for one in message.transforms]

    assert eventually(lambda: any(one.transform.translation.x > 0.3 for one in places()))
    assert {(one.header.frame_id, one.child_frame_id) for one in places()} == {("odom", "base_link")}
    stamps = [one.header.stamp.sec + one.header.stamp.nanosec / 1e9 for one in places()]
    assert stamps == sorted(stamps)
    assert eventually(lambda: fixed), "latched: a late subscriber gets it"
    mount = {(one.header.frame_id, one.child_frame_id) for one in fixed[-1].transforms}
    assert mount == {("base_link", "front_camera"), ("front_camera", "front_camera_optical")}
    assert eventually(lambda: diagnostics.OK in commander.levels("tf"))

"""A plan told anew leads where the old one led: the end poses are compared in the frame of the odometry."""

import math
import random

import pytest

from vlm_spec_decode.actions.reprojection import LIMITS, ReprojectionLimits, reproject
from vlm_spec_decode.actions.types import Done, Forward, Hello, Strafe, Turn, Wait
from vlm_spec_decode.core.errors import ActionRefused
from vlm_spec_decode.core.pose import Pose2D

WIDE = ReprojectionLimits(max_moved_m=3.0, max_turn_deg=181.0)


def walked(pose, actions):
    """Return all poses of a body that carries out the motions exactly."""
    poses = [pose]
    for action in actions:
        x_m, y_m, yaw_rad = pose.x_m, pose.y_m, pose.yaw_rad
        if isinstance(action, Turn):
            pose = Pose2D(x_m, y_m, yaw_rad + math.radians(action.angle_deg))
        elif isinstance(action, (Forward, Strafe)):
            way_rad = yaw_rad + (math.pi / 2 if isinstance(action, Strafe) else 0.0)
            d_m = action.distance_m
            pose = Pose2D(x_m + d_m * math.cos(way_rad), y_m + d_m * math.sin(way_rad), yaw_rad)
        poses.append(pose)
    return poses


def some_plan(rng):
    plan = []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.6:
            plan.append(Turn(float(rng.randint(-120, 120))))
        kind = Forward if rng.random() < 0.8 else Strafe
        plan.append(kind(round(rng.uniform(-1, 2) or 1.0, 1)))
    return tuple(plan)


@pytest.mark.parametrize("seed", range(200))
def test_the_end_is_the_same_point_and_heading(seed):
    rng = random.Random(seed)
    plan = some_plan(rng)
    then = Pose2D(rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(-3, 3))
    off_m = 0.0 if seed % 2 else rng.uniform(0.1, 1.0)
    side_rad = rng.uniform(-3, 3)
    now = Pose2D(
        then.x_m + off_m * math.cos(side_rad),
        then.y_m + off_m * math.sin(side_rad),
        then.yaw_rad + rng.uniform(-3, 3),
    )
    wanted = walked(then, plan)[-1]
    found = walked(now, reproject(plan, now.seen_from(then), WIDE))[-1]
    assert math.hypot(found.x_m - wanted.x_m, found.y_m - wanted.y_m) < 0.06 + 0.001 * len(plan)
    # A last way that was walked from elsewhere leaves the heading of that way: nothing follows that needs it.
    last_way_moved = off_m > 0 and not any(isinstance(a, (Turn, Forward, Strafe)) for a in plan[2:])
    if not last_way_moved:
        off_rad = math.remainder(found.yaw_rad - wanted.yaw_rad, 2 * math.pi)
        assert abs(off_rad) < math.radians(1.5)


def test_what_has_been_turned_is_turned_no_more():
    moved = Pose2D(0.02, -0.01, math.radians(115))
    assert reproject((Turn(20), Forward(1.5)), moved) == (Turn(-95), Forward(1.5))
    assert reproject((Forward(1.5),), moved) == (Turn(-115), Forward(1.5))
    assert reproject((Turn(115), Done()), moved) == (Done(),)


@pytest.mark.parametrize("plan", [(), (Done(),), (Hello(), Forward(1)), (Wait(1.0),)])
def test_what_begins_with_no_motion_is_left_alone(plan):
    assert reproject(plan, Pose2D(0.3, 0, 1)) == plan


def test_what_is_done_after_a_turn_is_done_where_the_frame_looked():
    moved = Pose2D(0.01, 0.0, math.radians(70))
    assert reproject((Done(),), moved) == (Turn(-70), Done())
    assert reproject((Hello(), Done()), moved) == (Turn(-70), Hello(), Done())
    assert reproject((), moved) == ()


def test_a_body_that_stands_repeats_the_plan():
    plan = (Turn(-30), Forward(1.2), Turn(10), Done())
    assert reproject(plan, Pose2D(0, 0, 0)) == plan


def test_half_a_way_that_was_walked_leaves_the_other_half():
    assert reproject((Forward(1.5), Done()), Pose2D(0.6, 0.0, 0.0)) == (Forward(0.9), Done())
    assert reproject((Forward(-1.0),), Pose2D(-0.4, 0.0, 0.0)) == (Forward(-0.6),)


def test_a_point_that_was_passed_is_refused_and_not_turned_to():
    """Such turns of 171 degrees, to and fro, were limit cycles."""
    with pytest.raises(ActionRefused) as found:
        reproject((Forward(0.5),), Pose2D(0.8, 0.05, 0.0))
    assert found.value.reason == "reprojection"


def test_further_than_the_limit_is_refused():
    with pytest.raises(ActionRefused, match="from where the frame was taken"):
        reproject((Forward(3.0),), Pose2D(LIMITS.max_moved_m + 0.1, 0, 0))

import math

import pytest

from vlm_spec_decode.core.pose import KEPT_S, Pose2D, PoseHistory


def test_a_pose_seen_from_another():
    origin = Pose2D(1.0, 2.0, math.pi / 2)
    seen = Pose2D(1.0, 3.0, -math.pi / 2).seen_from(origin)
    assert (seen.x_m, seen.y_m, abs(seen.yaw_rad)) == pytest.approx((1.0, 0.0, math.pi))


def test_between_two_poses_it_is_interpolated_also_across_half_a_turn():
    history = PoseHistory()
    history.put(1.0, Pose2D(0.0, 0.0, math.radians(170)))
    history.put(1.2, Pose2D(0.2, 0.4, math.radians(-170)))
    pose = history.at(1.1)
    assert (pose.x_m, pose.y_m) == pytest.approx((0.1, 0.2))
    assert math.degrees(pose.yaw_rad) % 360 == pytest.approx(180)


def test_far_from_every_stamp_nothing_is_known():
    history = PoseHistory()
    assert history.at(1.0) is None
    assert history.newest is None
    history.put(1.0, Pose2D(0, 0))
    assert history.at(1.2) == Pose2D(0, 0)
    assert history.at(1.3) is None
    assert history.at(0.7) is None


def test_a_jump_of_the_odometry_forgets_what_was_before():
    history = PoseHistory()
    history.put(1.0, Pose2D(0, 0))
    history.put(1.05, Pose2D(3, 0))
    assert history.jumps == 1
    assert history.at(1.0, tolerance_s=0.01) is None
    assert history.newest == Pose2D(3, 0)
    history.put(1.1, Pose2D(3, 0, 1.5))
    assert history.jumps == 2


def test_a_gap_in_the_messages_of_a_walking_robot_is_no_jump():
    history = PoseHistory()
    history.put(1.0, Pose2D(0, 0))
    history.put(4.0, Pose2D(1.5, 0, 1.0))
    assert history.jumps == 0


def test_what_is_no_number_or_not_newer_is_dropped_and_the_old_is_forgotten():
    history = PoseHistory()
    history.put(1.0, Pose2D(0, 0))
    history.put(math.nan, Pose2D(1, 0))
    history.put(1.1, Pose2D(math.nan, 0))
    history.put(0.9, Pose2D(1, 0))
    assert history.newest == Pose2D(0, 0)
    history.put(1.0 + KEPT_S + 1, Pose2D(0.1, 0))
    assert history.at(1.0) is None

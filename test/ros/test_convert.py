import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.robot import RobotState
from vlm_spec_decode.ros import convert


def rotate(q, vector):
    """Rotate by the quaternion's own matrix, written out independently of the code under test."""
    w, x, y, z = q.w, q.x, q.y, q.z
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return tuple(sum(a * b for a, b in zip(row, vector, strict=True)) for row in rows)


@given(st.floats(0, 4e9))
def test_a_stamp_survives_the_message(stamp_s):
    assert convert.to_seconds(convert.to_time(stamp_s)) == pytest.approx(stamp_s, abs=1e-6)


def test_a_stamp_that_rounds_up_carries_into_the_seconds():
    stamp = convert.to_time(1.9999999999)
    assert (stamp.sec, stamp.nanosec) == (2, 0)


def test_a_jpeg_survives_the_message(jpeg):
    image = convert.jpeg_image(jpeg)
    assert (image.width, image.height) == (32, 24)
    message = convert.to_compressed(image, 12.5, "front_camera_optical")
    assert message.header.frame_id == "front_camera_optical"
    assert convert.from_compressed(message) == (image, 12.5)


@pytest.mark.parametrize(
    ("data", "format_"),
    [(b"", "jpeg"), (b"\xff\xd8\xff", "jpeg"), (b"GIF89a" + bytes(40), "jpeg"), (b"\xff\xd8", "png")],
)
def test_what_is_no_jpeg_is_named(data, format_):
    with pytest.raises(ImageError):
        convert.from_compressed(CompressedImage(format=format_, data=data))


def test_an_image_over_the_limit_is_refused_before_it_is_looked_at(jpeg):
    with pytest.raises(ImageError, match="allowed"):
        convert.jpeg_image(jpeg + bytes(convert.MAX_CAMERA_FRAME_BYTES))


def test_yaw_turns_forward_to_the_left_and_pitch_points_it_down():
    forward = (1.0, 0.0, 0.0)
    assert rotate(convert.to_quaternion(0, 0, math.pi / 2), forward) == pytest.approx((0, 1, 0), abs=1e-12)
    assert rotate(convert.to_quaternion(0, 0.3, 0), forward)[2] == pytest.approx(-math.sin(0.3))


def test_odometry_and_transform_tell_the_same_pose():
    state = RobotState(1.0, 2.0, 0.5, -0.25, math.pi / 2, 0.4, 0.1, 0.2, body_height_m=0.31)
    odometry = convert.to_odometry(state, 7.0, "odom", "base_link")
    transform = convert.to_transform(odometry)
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
    assert (transform.header.frame_id, transform.child_frame_id) == ("odom", "base_link")
    moved = transform.transform.translation
    assert (moved.x, moved.y, moved.z) == (0.5, -0.25, 0.31)
    assert transform.transform.rotation.z == pytest.approx(math.sin(math.pi / 4))
    twist = odometry.twist.twist
    assert (twist.linear.x, twist.linear.y, twist.angular.z) == (0.4, 0.1, 0.2)
    assert odometry.pose.covariance[0] > 0
    assert odometry.pose.covariance[1] == 0


def test_the_optical_frame_looks_where_the_robot_looks():
    mount, lens = convert.camera_transforms(0.0, "base_link", "front_camera", "front_camera_optical", 0.0)
    assert mount.transform.translation.x == pytest.approx(0.327)
    axis = (0.0, 0.0, 1.0)
    assert rotate(lens.transform.rotation, axis) == pytest.approx((1, 0, 0), abs=1e-12)
    right = (1.0, 0.0, 0.0)
    assert rotate(lens.transform.rotation, right) == pytest.approx((0, -1, 0), abs=1e-12)

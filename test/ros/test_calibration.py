import math

import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.ros.nodes import camera as calibration

FILE = """
image_width: 1280
image_height: 720
camera_name: front
camera_matrix: {rows: 3, cols: 3, data: [864.4, 0, 639.2, 0, 863.7, 373.3, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.355, 0.102, 0, 0, 0]}
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "camera.yaml"
        path.write_text(text)
        return path

    return write_file


def test_the_edge_of_a_pinhole_image_is_half_the_field_of_view_away():
    camera = calibration.pinhole(1920, 1080, 100.0)
    assert math.degrees(math.atan((1920 - camera.cx) / camera.fx)) == pytest.approx(50.0)
    assert (camera.cx, camera.cy, camera.fy) == (960, 540, camera.fx)


def test_a_file_fills_the_message(write):
    info = calibration.load(write(FILE)).message(3.0, "front_camera_optical")
    assert (info.width, info.height, info.distortion_model) == (1280, 720, "plumb_bob")
    assert list(info.k) == [864.4, 0, 639.2, 0, 863.7, 373.3, 0, 0, 1]
    assert list(info.p) == [864.4, 0, 639.2, 0, 0, 863.7, 373.3, 0, 0, 0, 1, 0]
    assert list(info.d) == [-0.355, 0.102, 0, 0, 0]
    assert (info.header.stamp.sec, info.header.frame_id) == (3, "front_camera_optical")


def test_another_resolution_of_the_same_view_scales_focal_length_and_centre(write):
    camera = calibration.load(write(FILE)).scaled(640, 360)
    assert (camera.fx, camera.cx, camera.cy) == (432.2, 319.6, 186.65)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("camera_matrix", "matrix"), "camera_matrix"),
        (("plumb_bob", "fisheye"), "fisheye"),
        (("0, 0, 1]", "0]"), "numbers"),
        (("-0.355, 0.102", "0.102"), "coefficients"),
        (("1280", "wide"), "wide"),
        (("image_width: 1280", "[1280"), "no YAML"),
    ],
)
def test_a_file_that_does_not_hold_is_named(write, change, named):
    with pytest.raises(ConfigError, match=named):
        calibration.load(write(FILE.replace(*change)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        calibration.load(tmp_path / "none.yaml")


def test_an_impossible_field_of_view_is_refused():
    with pytest.raises(ConfigError):
        calibration.pinhole(640, 480, 180.0)

import itertools

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import CameraInfo, CompressedImage

from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, ImageError, RobotUnreachable
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import to_seconds
from vlm_spec_decode.ros.nodes.camera import CameraNode

pytestmark = pytest.mark.ros


class FakeCamera:
    """Frames of a given age, or an error for the first few calls."""

    def __init__(self, image, age_s=0.0, errors=0, freeze=False):
        self.image, self.age_s, self.errors = image, age_s, errors
        self.frozen_s = WallClock().now() if freeze else None
        self.calls, self.closed = itertools.count(), False

    def frame(self):
        if next(self.calls) < self.errors:
            raise RobotUnreachable("nobody answers")
        return self.image, self.frozen_s or WallClock().now() - self.age_s

    def close(self):
        self.closed = True


@pytest.fixture
def camera_graph(graph, sensor_qos):
    def start(camera, **parameters):
        ear = graph.node("ear")
        heard = {
            "images": graph.listen(ear, CompressedImage, "camera/image_raw/compressed", sensor_qos),
            "infos": graph.listen(ear, CameraInfo, "camera/camera_info", sensor_qos),
            "diagnostics": graph.listen(ear, DiagnosticArray, "/diagnostics"),
        }
        graph.start(ear)
        node = graph.node("camera_node", rate_hz=20.0, **parameters)
        part = graph.start(node, CameraNode(node, lambda: camera, WallClock()))
        return part, node, heard

    return start


def test_frames_carry_their_capture_time_and_calibration(camera_graph, eventually, image):
    _, node, heard = camera_graph(FakeCamera(image, age_s=0.4), hfov_deg=90.0, max_age_s=5.0)
    assert eventually(lambda: len(heard["images"]) >= 3 and heard["infos"])
    message, info = heard["images"][-1], heard["infos"][-1]
    assert bytes(message.data) == image.jpeg
    assert message.header.frame_id == info.header.frame_id == "front_camera_optical"
    now_s = node.get_clock().now().nanoseconds / 1e9
    assert 0.35 < now_s - to_seconds(message.header.stamp) < 0.4 + 5.0
    assert info.k[0] == pytest.approx(32.0)


def test_a_camera_that_comes_late_is_picked_up(camera_graph, eventually, image):
    part, _, heard = camera_graph(camera := FakeCamera(image, errors=5), max_age_s=5.0)
    assert eventually(lambda: heard["images"])
    part.close()
    assert camera.closed


def test_the_same_frame_is_published_once_and_then_reported_as_silence(camera_graph, eventually, image):
    _, _, heard = camera_graph(FakeCamera(image, freeze=True), max_age_s=10.0)

    def silent():
        levels = [m.status[0].level for m in heard["diagnostics"] if m.status[0].name.endswith("frames")]
        return diagnostics.ERROR in levels

    assert eventually(silent)
    assert len(heard["images"]) == 1


def test_a_stale_frame_is_dropped(camera_graph, eventually, image):
    _, _, heard = camera_graph(FakeCamera(image, age_s=3.0), max_age_s=0.5)

    def dropped():
        said = [{v.key: v.value for v in m.status[0].values} for m in heard["diagnostics"]]
        return any(int(values["stale_dropped"]) > 3 for values in said)

    assert eventually(dropped)
    assert not heard["images"]


def values_of(heard):
    return [{v.key: v.value for v in m.status[0].values} for m in heard["diagnostics"]]


def test_a_frame_of_the_future_is_dropped_and_named(camera_graph, eventually, image):
    _, _, heard = camera_graph(FakeCamera(image, age_s=-5.0))
    assert eventually(lambda: any(int(values["future_dropped"]) > 3 for values in values_of(heard)))
    assert "in the future" in values_of(heard)[-1]["last_drop"]
    assert not heard["images"]


def test_why_a_stale_frame_is_dropped_is_said(camera_graph, eventually, image):
    _, _, heard = camera_graph(FakeCamera(image, age_s=3.0), max_age_s=0.5)
    assert eventually(lambda: any("max_age_s is 0.5" in values["last_drop"] for values in values_of(heard)))


def test_frames_whose_stamps_go_back_are_counted(camera_graph, eventually, image):
    camera = FakeCamera(image, age_s=0.0)
    _, _, heard = camera_graph(camera, max_age_s=10.0)
    assert eventually(lambda: heard["images"])
    camera.age_s = 5.0
    assert eventually(lambda: any(int(values["backwards_dropped"]) > 3 for values in values_of(heard)))


def test_bytes_that_are_no_image_are_counted_and_named(camera_graph, eventually, image):
    class Broken(FakeCamera):
        def frame(self):
            raise ImageError("an image of 0 x 0 pixels")

    _, _, heard = camera_graph(Broken(image))
    assert eventually(lambda: any("0 x 0" in values["last_error"] for values in values_of(heard)))


def test_a_parameter_out_of_range_is_named(graph, image):
    node = graph.node("camera_node", rate_hz=500.0)
    with pytest.raises(ConfigError, match="rate_hz"):
        CameraNode(node, lambda: FakeCamera(image), WallClock())


def test_parameters_describe_themselves(camera_graph, image):
    _, node, _ = camera_graph(FakeCamera(image))
    described = node.describe_parameter("rate_hz")
    assert "per second" in described.description
    assert described.floating_point_range[0].to_value == 30.0

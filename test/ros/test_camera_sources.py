"""Frames from topics, files and bags, as the camera node takes them."""

import io

import numpy as np
import pytest
from PIL import Image as PilImage
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as RawImage

from vlm_spec_decode.bridge.camera_node import CameraNode
from vlm_spec_decode.bridge.camera_sources import TimedCamera, open_source, raw_image
from vlm_spec_decode.bridge.convert import to_time
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import ConfigError, ImageError, RobotUnreachable

pytestmark = pytest.mark.ros


def pixels_of(image):
    with PilImage.open(io.BytesIO(image.jpeg)) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def red(encoding):
    pixel = {"rgb8": (250, 10, 10), "bgr8": (10, 10, 250), "rgba8": (250, 10, 10, 255),
             "bgra8": (10, 10, 250, 255), "mono8": (90,)}[encoding]  # fmt: skip
    rows = np.zeros((24, 32 * len(pixel) + 4), np.uint8)
    rows[:, : 32 * len(pixel)] = np.tile(pixel, 32)
    return RawImage(height=24, width=32, encoding=encoding, step=rows.shape[1], data=rows.tobytes())


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_raw_images_keep_their_colour_and_their_rows(encoding):
    image = raw_image(red(encoding))
    assert (image.width, image.height) == (32, 24)
    wanted = (90, 90, 90) if encoding == "mono8" else (250, 10, 10)
    assert np.abs(pixels_of(image) - wanted).max() < 12


def test_what_is_no_image_is_named():
    message = red("rgb8")
    message.encoding = "32FC1"
    with pytest.raises(ImageError, match="distances"):
        raw_image(message)
    message.encoding = "bayer_xxxx8"
    with pytest.raises(ImageError, match="bayer_xxxx8"):
        raw_image(message)
    message.encoding, message.data = "rgb8", b"short"
    with pytest.raises(ImageError, match="bytes"):
        raw_image(message)


@pytest.mark.parametrize(("kind", "name"), [(RawImage, "image"), (CompressedImage, "compressed")])
def test_a_topic_becomes_the_cameras_own(graph, image, eventually, sensor_qos, kind, name):
    other = graph.node("other")
    frames = other.create_publisher(kind, "their/camera", 5)
    heard = graph.listen(other, CompressedImage, "camera/image_raw/compressed", sensor_qos)
    graph.start(other)
    node, clock = graph.node("camera_node", rate_hz=20.0), WallClock()
    camera = open_source(f"{name}:their/camera", node, clock)
    with pytest.raises(RobotUnreachable):
        camera.frame()
    graph.start(node, CameraNode(node, lambda: camera, clock))
    stamps = []

    def arrived():
        message = red("rgb8") if kind is RawImage else CompressedImage(format="jpeg", data=image.jpeg)
        stamps.append(to_time(other.get_clock().now().nanoseconds / 1e9))
        message.header.stamp = stamps[-1]
        frames.publish(message)
        return len(heard) > 2

    assert eventually(arrived)
    sent = [stamp.sec + stamp.nanosec / 1e9 for stamp in stamps]
    got = heard[-1].header.stamp.sec + heard[-1].header.stamp.nanosec / 1e9
    assert min(abs(got - stamp) for stamp in sent) < 0.02


def test_a_recording_plays_in_its_own_time_and_then_ends(image):
    clock = VirtualClock(5.0)
    camera = TimedCamera(iter([(0.0, image), (0.5, image), (1.0, image)]), clock)
    assert camera.frame()[1] == 5.0
    clock.sleep(0.7)
    assert camera.frame()[1] == 5.5
    clock.sleep(0.5)
    assert camera.frame()[1] == 6.0
    clock.sleep(2.0)
    with pytest.raises(RobotUnreachable, match="over"):
        camera.frame()


def test_a_bag_is_a_camera(graph, image, tmp_path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    with Writer(tmp_path / "bag", version=9) as writer:
        connection = writer.add_connection("/eye", "sensor_msgs/msg/CompressedImage", typestore=store)
        for index in range(3):
            header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](index, 0), "eye")
            data = np.frombuffer(image.jpeg, np.uint8)
            message = types["sensor_msgs/msg/CompressedImage"](header, "jpeg", data)
            at_ns = 10**9 * (100 + index)
            writer.write(connection, at_ns, store.serialize_cdr(message, "sensor_msgs/msg/CompressedImage"))
    node, clock = graph.node("camera_node"), VirtualClock(5.0)
    camera = open_source(f"bag:{tmp_path / 'bag'}#/eye", node, clock)
    clock.sleep(1.2)
    frame, at_s = camera.frame()
    assert (frame.jpeg, at_s) == (image.jpeg, 6.0)
    camera.close()
    with pytest.raises(ConfigError, match="no image topic"):
        open_source(f"bag:{tmp_path / 'bag'}#/ear", node, clock)


def test_a_video_file_is_a_camera(graph, tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(5):
        writer.write(np.full((48, 64, 3), (10, 10, 250), np.uint8))
    writer.release()
    clock = VirtualClock(5.0)
    camera = open_source(f"file:{path}", graph.node("camera_node"), clock)
    clock.sleep(0.25)
    image, at_s = camera.frame()
    assert at_s == pytest.approx(5.2)
    assert np.abs(pixels_of(image).mean(axis=(0, 1)) - (250, 10, 10)).max() < 20


@pytest.mark.parametrize("text", ["", "robots", "file:", "file:/none.mp4", "bag:/none", "image:"])
def test_a_source_that_is_none_is_named(graph, text):
    with pytest.raises(ConfigError, match="source"):
        open_source(text, graph.node("camera_node"), WallClock())

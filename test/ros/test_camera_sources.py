"""Frames from topics, files and bags, as the camera node takes them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image as PilImage
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as RawImage

from test.bags.recorders import FRAMES, Message, messages, write_mcap, write_sqlite
from test.bags.states import ros1_file, ros1_in_mcap
from test.bags.test_video import bag as video_bag
from test.bags.test_video import edge_px, encoded, go2
from test.core.encodings import MORE, PICTURES, shows_it, wanted_of
from test.core.encodings import message as encoded_message
from test.ros.conftest import Graph
from vlm_spec_decode.core.clock import VirtualClock, WallClock
from vlm_spec_decode.core.errors import ConfigError, ImageError, RobotUnreachable
from vlm_spec_decode.core.images import raw_image
from vlm_spec_decode.ros.camera_sources import TimedCamera, TopicCamera, open_source
from vlm_spec_decode.ros.convert import to_time
from vlm_spec_decode.ros.nodes.camera import CameraNode

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


@pytest.mark.parametrize("encoding", [*PICTURES, *MORE])
def test_a_topic_may_have_any_encoding(encoding):
    made = encoded_message(encoding)
    sent = RawImage(**{**vars(made), "data": made.data.tobytes()})
    assert shows_it(pixels_of(raw_image(sent)), wanted_of(encoding))


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


def test_frames_without_a_stamp_count_from_their_receipt(graph, image, eventually, sensor_qos):
    other = graph.node("other")
    frames = other.create_publisher(CompressedImage, "their/camera", 5)
    heard = graph.listen(other, CompressedImage, "camera/image_raw/compressed", sensor_qos)
    graph.start(other)
    node, clock = graph.node("camera_node", rate_hz=20.0), WallClock()
    camera = open_source("compressed:their/camera", node, clock)
    graph.start(node, CameraNode(node, lambda: camera, clock))

    def arrived():
        frames.publish(CompressedImage(format="", data=image.jpeg))
        return len(heard) > 2

    assert eventually(arrived)
    now_s = node.get_clock().now().nanoseconds / 1e9
    assert 0 <= now_s - (heard[-1].header.stamp.sec + heard[-1].header.stamp.nanosec / 1e9) < 5.0


def test_a_frame_has_one_time_however_often_it_is_looked_at(graph, image):
    node = graph.node("camera_node")
    camera = TopicCamera(node, CompressedImage, "their/camera", WallClock())
    for stamp_s in (0.0, node.get_clock().now().nanoseconds / 1e9):
        message = CompressedImage(data=image.jpeg)
        message.header.stamp = to_time(stamp_s)
        camera._on_message(message)
        assert len({camera.frame()[1] for _ in range(50)}) == 1
    camera.close()


def test_a_topic_of_the_other_kind_says_how_to_take_it(graph, eventually):
    there = Graph()  # a process of its own: one participant cannot have both types
    other = there.node("other")
    other.create_publisher(RawImage, "their/camera", 5)
    there.start(other)
    node = graph.node("camera_node")
    camera = open_source("compressed:their/camera", node, WallClock())

    def told():
        with pytest.raises(RobotUnreachable) as error:
            camera.frame()
        return "source:=image:their/camera" in str(error.value)

    try:
        assert eventually(told)
    finally:
        there.close()


def test_a_topic_may_carry_video(graph):
    node = graph.node("camera_node")
    camera = TopicCamera(node, CompressedImage, "their/camera", WallClock())
    shown, failed = [], 0
    for piece in [b"\0\0\0\1\x41", *encoded()]:
        camera._on_message(CompressedImage(format="h264", data=piece))
        try:
            shown.append(edge_px(camera.frame()[0]))
        except ImageError:
            failed += 1
    assert failed == 1
    assert all(abs(px - 8 * (number + 1)) <= 6 for number, px in enumerate(shown))
    assert len(shown) == 12
    camera.close()


def humble(folder):
    """A bag of Humble's recorder: sqlite3, without definitions."""
    folder.mkdir()
    write_sqlite(folder / "walk_0.db3", messages(), version=3)
    return folder


def jazzy(folder):
    folder.mkdir()
    write_mcap(folder / "walk_0.mcap", messages(), compression="zstd")
    return folder


def half(folder):
    path = jazzy(folder) / "walk_0.mcap"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    return folder


def noetic(folder):
    folder.mkdir()
    return ros1_file(folder)[0]


def converted(folder):
    folder.mkdir()
    return ros1_in_mcap(folder)[0]


def go2s_own(folder):
    return video_bag(folder, go2(encoded()))


@pytest.mark.parametrize("make", [humble, jazzy, half, noetic, converted, go2s_own])
def test_bags_of_every_recorder_are_cameras(graph, tmp_path, make):
    clock = VirtualClock(5.0)
    camera = open_source(f"bag:{make(tmp_path / 'walk')}", graph.node("camera_node"), clock)
    times = []
    for _ in range(8):
        image, at_s = camera.frame()
        times.append(at_s)
        assert image.width in (16, 320)
        clock.sleep(0.05)
    assert times == sorted(times)
    assert times[0] == 5.0
    camera.close()


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 100, b"SQLite format 3\0garbage", struct.pack("<I", 7)]
)
def test_a_bag_that_cannot_be_read_is_one_line(graph, tmp_path, content):
    (tmp_path / "walk.db3").write_bytes(content)
    for path in (tmp_path, tmp_path / "walk.db3"):
        with pytest.raises(ConfigError, match="source: ") as error:
            open_source(f"bag:{path}", graph.node("camera_node"), WallClock())
        assert "\n" not in str(error.value)


def test_frames_of_a_bag_that_cannot_be_shown_are_named_and_passed_over(graph, tmp_path):
    walk = [
        Message(m.topic, m.kind, m.data.replace(b"\xff\xd8\xff", b"abc"), m.at_ns) if n in (1, 2) else m
        for n, m in enumerate(m for m in messages() if m.topic == FRAMES)
    ]
    write_mcap(tmp_path / "walk.mcap", walk)
    clock = VirtualClock(5.0)
    camera = open_source(f"bag:{tmp_path / 'walk.mcap'}", graph.node("camera_node"), clock)
    assert camera.frame()[1] == 5.0
    clock.sleep(0.7)
    with pytest.raises(ImageError, match="skipped"):
        camera.frame()
    assert camera.frame()[1] == pytest.approx(5.6)


@pytest.mark.parametrize("text", ["", "robots", "file:", "file:/none.mp4", "bag:/none", "image:"])
def test_a_source_that_is_none_is_named(graph, text):
    with pytest.raises(ConfigError, match="source"):
        open_source(text, graph.node("camera_node"), WallClock())

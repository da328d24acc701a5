"""Cameras other than the robot's own: a topic, a video file, a bag. One text names each (`SOURCES`).

Every one is a `Camera`; what reads files runs in the time of this machine, as if it were happening now.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as RawImage

from vlm_spec_decode.bridge.convert import NANOSECONDS, jpeg_image, to_seconds
from vlm_spec_decode.bridge.multicast import MulticastCamera
from vlm_spec_decode.bridge.stamps import Stamps
from vlm_spec_decode.core.errors import ConfigError, ImageError, RobotUnreachable
from vlm_spec_decode.core.ports import Camera, Clock
from vlm_spec_decode.core.types import Image

SOURCES = "robot, multicast, image:TOPIC, compressed:TOPIC, file:VIDEO or bag:FOLDER[#TOPIC]"
ROBOT = "robot"
QUALITY = 90
PIXELS = {"rgb8": ("RGB", "RGB", 3), "bgr8": ("RGB", "BGR", 3), "mono8": ("L", "L", 1),
          "rgba8": ("RGBA", "RGBA", 4), "bgra8": ("RGBA", "BGRA", 4)}  # fmt: skip
"""Encoding of sensor_msgs/Image to mode, raw mode and bytes a pixel of PIL."""

KINDS = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")


def open_source(text: str, node: Node, clock: Clock, interface: str = "lo") -> Camera:
    """Return the camera that `text` names; `interface` is the one towards the robot.

    Raises ConfigError for a text or a file that cannot be used.
    """
    if text == "multicast":
        return MulticastCamera(interface, clock)
    kind, _, rest = text.partition(":")
    if kind in {"image", "compressed"} and rest:
        return TopicCamera(node, RawImage if kind == "image" else CompressedImage, rest, clock)
    if kind == "file" and rest:
        return TimedCamera(video_frames(Path(rest).expanduser()), clock)
    if kind == "bag" and rest:
        folder, _, topic = rest.partition("#")
        return TimedCamera(bag_frames(Path(folder).expanduser(), topic), clock)
    raise ConfigError(f"source: {text!r} is none of {SOURCES}")


def raw_image(message: Any) -> Image:
    """Return a sensor_msgs/Image as JPEG. Raises ImageError for an encoding or a size that does not hold."""
    if message.encoding not in PIXELS:
        raise ImageError(f"an image of encoding {message.encoding!r}; known: {', '.join(PIXELS)}")
    mode, raw_mode, depth = PIXELS[message.encoding]
    size, data = (message.width, message.height), bytes(message.data)
    if not all(size) or message.step < message.width * depth or len(data) < message.step * message.height:
        raise ImageError(f"an image of {message.width}x{message.height} in {len(data)} bytes")
    picture = PilImage.frombytes(mode, size, data, "raw", raw_mode, message.step)
    return _jpeg(picture)


def _jpeg(picture: PilImage.Image) -> Image:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "JPEG", quality=QUALITY)
    return Image(out.getvalue(), picture.width, picture.height)


def _image(message: Any) -> Image:
    return raw_image(message) if hasattr(message, "encoding") else jpeg_image(bytes(message.data))


class TopicCamera:
    """The newest frame of a topic, with the time of its own stamp."""

    def __init__(self, node: Node, kind: Any, topic: str, clock: Clock) -> None:
        self._topic, self._node = topic, node
        self._stamps = Stamps(node, clock)
        self._newest: Any | None = None
        self._read: tuple[Any, Image] | None = None
        group = MutuallyExclusiveCallbackGroup()
        self._subscription = node.create_subscription(
            kind, topic, self._take, qos_profile_sensor_data, callback_group=group
        )

    def _take(self, message: Any) -> None:
        self._newest = message

    def frame(self) -> tuple[Image, float]:
        """Return the newest frame. Raises RobotUnreachable before the first, ImageError for no image."""
        message = self._newest
        if message is None:
            raise RobotUnreachable(f"nothing has come on {self._topic} yet")
        if self._read is None or self._read[0] is not message:
            self._read = message, _image(message)  # once: a raw picture has to be compressed
        return self._read[1], self._stamps.to_monotonic_s(to_seconds(message.header.stamp))

    def close(self) -> None:
        """Stop listening. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)


class TimedCamera:
    """Frames with their times in seconds from the first, shown when their time has come."""

    def __init__(self, frames: Iterator[tuple[float, Image]], clock: Clock) -> None:
        self._frames, self._clock = frames, clock
        self._lock = threading.Lock()
        self._next: tuple[float, Image] | None = next(frames, None)
        if self._next is None:
            raise ConfigError("source: there is no frame in it")
        self._began_s = clock.now()
        self._shown: tuple[Image, float] | None = None

    def frame(self) -> tuple[Image, float]:
        """Return the frame whose time has come last. Raises RobotUnreachable after the last one."""
        with self._lock:
            elapsed_s = self._clock.now() - self._began_s
            while self._next is not None and self._next[0] <= elapsed_s:
                self._shown = (self._next[1], self._began_s + self._next[0])
                self._next = next(self._frames, None)
            if (
                self._next is None
                and self._shown is not None
                and elapsed_s + self._began_s > self._shown[1] + 1.0
            ):
                raise RobotUnreachable("the recording is over")
            if self._shown is None:
                raise RobotUnreachable("the recording has not begun")
            return self._shown

    def close(self) -> None:
        """Free the file. Idempotent."""
        self._next, self._frames = None, iter(())


def video_frames(path: Path) -> Iterator[tuple[float, Image]]:
    """Yield the frames of a video with their times. Raises ConfigError if it cannot be read."""
    if find_spec("cv2") is None:
        raise ConfigError("source: a video file needs OpenCV (pip install opencv-python-headless)")
    import cv2

    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise ConfigError(f"source: {path} is no video that can be read")
    rate_hz = video.get(cv2.CAP_PROP_FPS) or 30.0

    def read() -> Iterator[tuple[float, Image]]:
        count = 0
        while True:
            good, pixels = video.read()
            if not good:
                video.release()
                return
            yield count / rate_hz, _jpeg(PilImage.fromarray(pixels[:, :, ::-1]))
            count += 1

    return read()


def bag_frames(folder: Path, topic: str) -> Iterator[tuple[float, Image]]:
    """Yield the frames of a bag's image topic, the first one's by default. Raises ConfigError."""
    if not folder.exists():
        raise ConfigError(f"source: {folder} is not there")
    reader = AnyReader([folder])
    reader.open()
    found = [c for c in reader.connections if c.msgtype in KINDS and topic in {"", c.topic}]
    if not found:
        reader.close()
        raise ConfigError(f"source: no image topic {topic!r} in {folder}")

    def read() -> Iterator[tuple[float, Image]]:
        first_ns: int | None = None
        for connection, at_ns, data in reader.messages(connections=found[:1]):
            first_ns = at_ns if first_ns is None else first_ns
            message = reader.deserialize(data, connection.msgtype)
            yield (at_ns - first_ns) / NANOSECONDS, _image(message)
        reader.close()

    return read()

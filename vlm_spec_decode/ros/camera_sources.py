"""Cameras for the camera node: a topic, a file, a bag, the Go2's multicast stream, each named by a text.

Every one is a `Camera`. Files are played in this machine's time, as if they were live.

The Go2's own video stream is H.264 over RTP, multicast on the robot's Ethernet (15 frames a second, 720p).
Another listener costs the robot nothing, and frames arrive faster than with VideoClient requests. It needs
PyAV and a cable, because Wi-Fi carries no multicast. The stream has no capture times: a frame is stamped when
it leaves the decoder, so that it is some 0.1 s older than its stamp.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image as RawImage

from vlm_spec_decode.bags.events import PICTURES, Events, Frame, Topics
from vlm_spec_decode.bags.reader import open_bag
from vlm_spec_decode.bags.source import BagSource
from vlm_spec_decode.core.errors import BagError, ConfigError, ImageError, RobotUnreachable
from vlm_spec_decode.core.images import is_video, message_image, rgb_image, to_jpeg
from vlm_spec_decode.core.ports import Camera, Clock
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.image_upload import INSTALL, VideoFrame, VideoTopic, check_video, has_video
from vlm_spec_decode.ros.convert import NANOSECONDS, ClockConverter, to_seconds
from vlm_spec_decode.ros.params import CAMERA_SOURCES

OVER_S = 1.0

ROBOT = "robot"
KINDS = {"image": RawImage, "compressed": CompressedImage}
NAMES = {"sensor_msgs/msg/Image": "image", "sensor_msgs/msg/CompressedImage": "compressed"}
"""Message types that are read, and the word of a source for each."""

Item: TypeAlias = tuple[float, "Image | ImageError"]
"""Seconds from the first frame, and a frame or why there is none."""


def open_source(text: str, node: Node, clock: Clock, interface: str = "lo") -> Camera:
    """Return the camera that `text` names; `interface` is the one towards the robot.

    Raises ConfigError for a text or a file that cannot be used.
    """
    if text == "multicast":
        return MulticastCamera(interface, clock)
    kind, _, rest = text.partition(":")
    if kind in KINDS and rest:
        return TopicCamera(node, KINDS[kind], rest, clock)
    if kind == "file" and rest:
        return TimedCamera(video_frames(Path(rest).expanduser()), clock)
    if kind == "bag" and rest:
        folder, _, topic = rest.partition("#")
        return TimedCamera(bag_frames(Path(folder).expanduser(), topic), clock)
    raise ConfigError(f"source: {text!r} is none of {', '.join(CAMERA_SOURCES)}")


class TopicCamera:
    """The newest frame of a topic, with the time of its own stamp, or of its receipt if it has none."""

    def __init__(self, node: Node, kind: Any, topic: str, clock: Clock) -> None:
        self._topic, self._kind, self._node, self._clock = topic, kind, node, clock
        self._stamps = ClockConverter(node, clock)
        self._newest: tuple[Any, float] | None = None
        """The newest message, and when it was captured by the monotonic clock."""
        self._read: tuple[Any, Image] | None = None
        self._video: VideoTopic | None = None
        self._has_warned = False
        group = MutuallyExclusiveCallbackGroup()
        self._subscription = node.create_subscription(
            kind, topic, self._on_message, qos_profile_sensor_data, callback_group=group
        )

    def _on_message(self, message: Any) -> None:
        # Converted once: both clocks are read for it, and a frame must have the same time at every read.
        self._newest = self._decoded(message), self._captured_s(message)

    def _captured_s(self, message: Any) -> float:
        stamp_s = to_seconds(message.header.stamp)
        if stamp_s:
            return self._stamps.to_monotonic_s(stamp_s)
        self._warn_no_stamp()
        return self._clock.now()

    def _decoded(self, message: Any) -> Any:
        """Return a message unchanged, but decode a video packet at once: it needs all packets before it."""
        if self._kind is RawImage or not is_video(bytes(message.data[:4])) or not has_video():
            return message
        self._video = self._video or VideoTopic("sensor_msgs/msg/CompressedImage")
        try:
            return _VideoPacket(message.header, self._video.decode(message))
        except ImageError as error:
            return _VideoPacket(message.header, error)

    def frame(self) -> tuple[Image, float]:
        """Return the newest frame. Raises RobotUnreachable before the first, ImageError for no image."""
        newest = self._newest
        if newest is None:
            raise RobotUnreachable(self._silence_reason())
        message, captured_s = newest
        if self._read is None or self._read[0] is not message:
            self._read = message, self._image(message)  # once: a raw picture has to be compressed
        return self._read[1], captured_s

    def _image(self, message: Any) -> Image:
        if not isinstance(message, _VideoPacket):
            return message_image(message)
        if isinstance(message.shown, VideoFrame):
            return message.shown.to_full_size()
        raise message.shown or ImageError("a piece of video that completes no picture")

    def _warn_no_stamp(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._node.get_logger().warning(
                f"the frames of {self._topic} have no stamp (0): the time of their receipt is taken for it, "
                "so that they are a little older than it says"
            )

    def _silence_reason(self) -> str:
        """Return why a topic has given nothing: which other type it carries, if any."""
        name = self._node.resolve_topic_name(self._topic)
        kinds = dict(self._node.get_topic_names_and_types()).get(name, [])
        other = next((kind for kind in kinds if kind in NAMES and NAMES[kind] != self._source), None)
        if other is not None:
            return f"{self._topic} carries {other}: take source:={NAMES[other]}:{self._topic}"
        return f"nothing has come on {self._topic} yet"

    @property
    def _source(self) -> str:
        return next(name for name, kind in KINDS.items() if kind is self._kind)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)


@dataclass(frozen=True, slots=True)
class _VideoPacket:
    """A video packet with the picture that it completes, an error, or None if it completes none."""

    header: Any
    shown: VideoFrame | ImageError | None


class TimedCamera:
    """Plays frames at their times, in seconds from the first one."""

    def __init__(self, frames: Iterator[Item], clock: Clock) -> None:
        self._frames, self._clock = frames, clock
        self._lock = threading.Lock()
        self._next: Item | None = next(frames, None)
        if self._next is None:
            raise ConfigError("source: there is no frame in it")
        self._began_s = self._last_s = clock.now()
        self._shown: tuple[Image, float] | None = None

    def frame(self) -> tuple[Image, float]:
        """Return the newest frame whose time has been reached.

        Raises ImageError, once, for one that cannot be shown, and RobotUnreachable after the last one.
        """
        with self._lock:
            now_s, problem = self._clock.now(), None
            while self._next is not None and self._began_s + self._next[0] <= now_s:
                self._last_s, what = self._began_s + self._next[0], self._next[1]
                if isinstance(what, ImageError):
                    problem = what
                else:
                    self._shown = (what, self._last_s)
                self._next = next(self._frames, None)
            if problem is not None:
                raise problem
            if self._next is None and now_s > self._last_s + OVER_S:
                raise RobotUnreachable("the recording is over")
            if self._shown is None:
                raise RobotUnreachable("the recording has not begun")
            return self._shown

    def close(self) -> None:
        """Free the file. Idempotent."""
        self._next, self._frames = None, iter(())


def video_frames(path: Path) -> Iterator[Item]:
    """Yield the frames of a video with their times. Raises ConfigError if it cannot be read."""
    if find_spec("cv2") is None:
        raise ConfigError(f"source: a video file needs OpenCV: {INSTALL}")
    import cv2

    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise ConfigError(f"source: {path} is no video that can be read")
    rate_hz = video.get(cv2.CAP_PROP_FPS) or 30.0

    def read() -> Iterator[Item]:
        count = 0
        while True:
            good, pixels = video.read()
            if not good:
                video.release()
                return
            yield count / rate_hz, rgb_image(pixels[:, :, ::-1])
            count += 1

    return read()


def bag_frames(path: Path, topic: str) -> Iterator[Item]:
    """Yield the frames of a bag's camera topic, the first one's by default. Raises ConfigError.

    Any bag that `vsd replay` reads.
    """
    try:
        source = open_bag(path)
        chosen = Topics(image=topic).choose(source.topics)
    except BagError as error:
        raise ConfigError(f"source: {error}") from error
    name = next(topic for topic, role in chosen.items() if role == "frame")
    if source.topics[name] not in PICTURES:
        source.close()
        raise ConfigError(f"source: no image topic {name!r} in {path}: it holds {source.topics[name]}")
    return _frames(source, name)


def _frames(source: BagSource, topic: str) -> Iterator[Item]:
    events = Events(source, {topic: "frame"})
    first_ns: int | None = None
    num_faults = 0
    try:
        for event in events:
            if not isinstance(event, Frame):
                continue
            first_ns = event.at_ns if first_ns is None else first_ns
            at_s = (event.at_ns - first_ns) / NANOSECONDS
            if events.faults.total() > num_faults:
                num_faults = events.faults.total()
                yield at_s, ImageError(f"frames of the bag are skipped: {'; '.join(events.faults)[:300]}")
            try:
                shown = event.message
                yield at_s, shown.to_full_size() if isinstance(shown, VideoFrame) else message_image(shown)
            except ImageError as error:
                yield at_s, error
        if first_ns is None and events.faults:
            yield 0.0, ImageError(f"no frame of the bag can be shown: {'; '.join(events.faults)[:300]}")
    finally:
        source.close()


GROUP, PORT = "230.1.1.1", 1720
SIOCGIFADDR = 0x8915
OPEN_S = 5.0
RETRY_S = 1.0
SILENCE_S = 2.0

SESSION = """v=0
o=- 0 0 IN IP4 {group}
s=Go2
c=IN IP4 {group}
t=0 0
m=video {port} RTP/AVP 96
a=rtpmap:96 H264/90000
"""
"""Session description of the stream; the robot does not announce one."""


def address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface. Raises ConfigError if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface[:15].encode()))
        except OSError as error:
            raise ConfigError(f"source: interface {interface!r} has no address: {error.strerror}") from error
    return socket.inet_ntoa(found[20:24])


class MulticastCamera:
    """The newest frame of the stream. A thread decodes it and reopens the stream after every loss."""

    def __init__(self, interface: str, clock: Clock, group: str = GROUP, port: int = PORT) -> None:
        """Raises ConfigError without PyAV or without an address on `interface`."""
        check_video("source: the multicast stream")
        self._clock = clock
        self._where = f"{group}:{port} on {interface}"
        self._address, self._session = address_of(interface), SESSION.format(group=group, port=port)
        self._newest: tuple[Any, float] | None = None
        self._problem = "nothing has come yet"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="multicast", daemon=True)
        self._thread.start()

    def frame(self) -> tuple[Image, float]:
        """Return the newest frame as JPEG. Raises RobotUnreachable while none arrives."""
        newest = self._newest
        if newest is None or self._clock.now() - newest[1] > SILENCE_S:
            raise RobotUnreachable(f"no video from {self._where}: {self._problem}")
        return to_jpeg(newest[0].to_image()), newest[1]

    def close(self) -> None:
        """Leave the group; the thread ends with its next frame or time-out. Idempotent."""
        self._closed.set()

    def _run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="vsd-video-") as folder:
            session = Path(folder, "go2.sdp")
            session.write_text(self._session, encoding="ascii")
            while not self._closed.is_set():
                self._listen(session)
                self._closed.wait(RETRY_S)

    def _listen(self, session: Path) -> None:
        import av

        options = {
            "protocol_whitelist": "file,udp,rtp",
            "localaddr": self._address,
            "fflags": "nobuffer",
            "analyzeduration": "1000000",
            "probesize": "200000",
        }
        try:
            with av.open(str(session), format="sdp", options=options, timeout=OPEN_S) as stream:
                for frame in stream.decode(video=0):
                    self._newest = (frame, self._clock.now())
                    if self._closed.is_set():
                        return
            self._problem = "the stream has ended"
        except (av.FFmpegError, IndexError, OSError) as error:  # IndexError: no picture was announced
            self._problem = str(error)

"""Camera messages with parts of a video stream instead of pictures: H.264 and H.265, decoded with PyAV.

A part alone cannot be decoded: each stream has one decoder, which must get all parts in order. Message types
and fields are known for the Go2's own front camera, Foxglove and the FFmpeg image transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vlm_spec_decode.core.errors import ConfigError, ImageError
from vlm_spec_decode.core.images import to_jpeg
from vlm_spec_decode.core.pixels import message_bytes
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.image_upload import small_jpeg

GO2_VIDEO = "unitree_go/msg/Go2FrontVideoData"
FOXGLOVE_VIDEO = "foxglove_msgs/msg/CompressedVideo"
FFMPEG_PACKET = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
VIDEO_KINDS = (GO2_VIDEO, FOXGLOVE_VIDEO, FFMPEG_PACKET)

GO2_STREAMS = ("video720p", "video360p", "video180p")
"""The same pictures in three sizes, the best first; a message may hold one or all."""

CODECS: Mapping[str, str] = {
    "265": "hevc",
    "hevc": "hevc",
    "264": "h264",
    "avc": "h264",
    "av1": "av1",
    "vp9": "vp9",
}
"""Part of what a message calls its video to the name of the decoder."""

INSTALL = "pip install 'vlm_spec_decode[video]'"


def has_video() -> bool:
    """Tell whether PyAV is installed."""
    return find_spec("av") is not None


def check_video(what: str) -> None:
    """Raise ConfigError that says how to get PyAV, if it is not installed."""
    if not has_video():
        raise ConfigError(f"{what} is H.264 video, which needs PyAV: {INSTALL}")


@dataclass(slots=True)
class VideoFrame:
    """One decoded picture of a stream; it is converted to JPEG on demand."""

    frame: Any = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """How much memory it holds."""
        return int(self.frame.width * self.frame.height * 3 // 2)

    def small(self) -> Image:
        """Return it as it goes up."""
        return small_jpeg(self.frame.to_image())

    def whole(self) -> Image:
        """Return it in its own size."""
        return to_jpeg(self.frame.to_image())


class VideoStream:
    """The decoder of one stream. Raises ConfigError without PyAV, or for a video that it does not know."""

    def __init__(self, said: str = "") -> None:
        check_video(said or "a camera's stream")
        import av

        name = next((codec for part, codec in CODECS.items() if part in said.lower()), "h264")
        try:
            self._context: Any = av.CodecContext.create(name, "r")
        except (av.FFmpegError, ValueError) as error:
            raise ConfigError(f"video called {said!r} has no decoder here: {error}") from error
        self._context.thread_count = 1  # more would hold pictures back
        self._fault: type[Exception] = av.FFmpegError

    def decode(self, piece: bytes) -> VideoFrame | None:
        """Take the next piece; return the newest picture it completes, or None.

        Raises ImageError for a piece that is damaged, or comes before the first whole picture.
        """
        import av

        if not piece:
            raise ImageError("a video message of no bytes")
        try:
            frames = self._context.decode(av.Packet(piece))
        except (self._fault, ValueError) as error:
            raise ImageError("a piece of video that is damaged, or before the first whole picture") from error
        return VideoFrame(frames[-1]) if frames else None


class VideoTopic:
    """The video of one topic: messages in, pictures out. Of several sizes only the largest is shown."""

    def __init__(self, kind: str) -> None:
        """Raises ConfigError without PyAV."""
        check_video(kind)
        self._kind = kind
        self._streams: dict[str, VideoStream] = {}
        self._best: int | None = None

    def decode(self, message: Any) -> VideoFrame | None:
        """Return the picture that a message completes, or None. Raises ImageError."""
        shown: VideoFrame | None = None
        empty = True
        for rank, name, said, piece in _pieces(self._kind, message):
            empty = False
            if self._best is not None and rank < self._best:
                continue
            if name not in self._streams:
                self._streams[name] = VideoStream(said)
            frame = self._streams[name].decode(piece)
            if frame is not None:
                shown, self._best = frame, rank
                break
        if empty:
            raise ImageError("a video message of no bytes")
        return shown


def _pieces(kind: str, message: Any) -> Iterator[tuple[int, str, str, bytes]]:
    """Yield rank (more is better), name, codec and bytes of the streams of a message, the best first."""
    if kind != GO2_VIDEO or hasattr(message, "data"):
        said = str(getattr(message, "format", "") or getattr(message, "encoding", "") or "h264")
        rank = int(getattr(message, "resolution", 0))  # of a Go2 whose messages hold one size each
        if piece := message_bytes(message.data):
            yield rank, f"{rank}", said, piece
        return
    for place, name in enumerate(GO2_STREAMS):
        if piece := message_bytes(getattr(message, name)):
            yield -place, name, "h264", piece

"""Camera frames, reduced for the uplink, and pictures decoded from video.

A piece of a video stream (H.264, H.265, decoded with PyAV) cannot be decoded alone: each stream has one
decoder, which must get all pieces in order. Message types and fields are known for the Go2's own front
camera, Foxglove and the FFmpeg image transport. `request_state` sends the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image as PilImage

from vlm_spec_decode.core import extras
from vlm_spec_decode.core.errors import ConfigError, ImageError
from vlm_spec_decode.core.images import DECODED, JPEGS, is_upright, opened, to_jpeg, upright
from vlm_spec_decode.core.pixels import message_bytes
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, USUAL_WIDTH_PX, Image

UPLINK_WIDTH_PX = USUAL_WIDTH_PX
"""Width without a `picture_size.PictureSizer`, which knows target and link."""

UPLINK_QUALITY = 85

WidthOf: TypeAlias = Callable[[int, int], int]
"""Width at which a picture of this width and height is sent, such as `ImageLimits.useful_width`."""


def load_image(path: Path) -> Image:
    """Read an image file of any common format as a JPEG, the way up that it asks for.

    Raises ImageError naming the file.
    """
    return read_image(path, for_uplink)


def read_image(path: Path, to_image: Callable[[bytes], Image]) -> Image:
    """Return what `to_image` makes of the bytes of a file. Raises ImageError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    try:
        return to_image(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def for_uplink(data: bytes, width_px: int = UPLINK_WIDTH_PX, quality: int = UPLINK_QUALITY) -> Image:
    """Return the frame as both models will see it: an upright JPEG at most `width_px` wide.

    An upright JPEG that is small enough already is passed on byte for byte. Raises ImageError.
    """
    return for_target(data, lambda _width, _height: width_px, quality)


def for_target(data: bytes, width_of: WidthOf, quality: int = UPLINK_QUALITY) -> Image:
    """Return the frame likewise, at most as wide as `width_of` its own size. Raises ImageError."""
    rgb, is_upright_jpeg = decode_frame(data)
    width_px = width_of(*rgb.size)
    if rgb.width > width_px or not is_upright_jpeg:
        return small_jpeg(rgb, width_px, quality)
    return DECODED.add(Image(data, rgb.width, rgb.height), rgb)


def for_uplink_again(data: bytes, width_px: int, digest: bytes) -> Image:
    """Return the image that was made of a frame before, `width_px` wide, whose JPEG has this SHA-256.

    A frame of just that width was passed on, or encoded anew for fewer bytes: the digest tells. If neither
    has it, as after another version of the JPEG library, the first is returned. Raises ImageError.
    """
    found = for_uplink(data, width_px)
    if digest and found.digest != digest:
        encoded = small_jpeg(DECODED.picture(found), width_px)
        return encoded if encoded.digest == digest else found
    return found


def decode_frame(data: bytes) -> tuple[PilImage.Image, bool]:
    """Return the RGB picture in a file's bytes, upright, and whether they are an upright JPEG as they are.

    Raises ImageError.
    """
    with opened(data) as picture:
        is_upright_jpeg = picture.format in JPEGS and is_upright(picture)
        return upright(picture), is_upright_jpeg  # also finds a file that breaks off


def small_jpeg(
    picture: PilImage.Image, width_px: int = UPLINK_WIDTH_PX, quality: int = UPLINK_QUALITY
) -> Image:
    """Return an RGB picture as a JPEG at most `width_px` wide."""
    if picture.width > width_px:
        height = max(1, round(picture.height * width_px / picture.width))
        picture = picture.resize((width_px, height), PilImage.Resampling.LANCZOS)
    return to_jpeg(picture, quality)


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
"""Part of a message's format text to the name of the decoder."""

INSTALL = extras.install_command("video")


def has_video() -> bool:
    """Return whether PyAV is installed."""
    return find_spec("av") is not None


def check_video(what: str) -> None:
    """Raise ConfigError with the command that installs PyAV, if it is not installed."""
    if not has_video():
        raise ConfigError(f"{what} is H.264 video, which needs PyAV: {INSTALL}")


@dataclass(slots=True)
class VideoFrame:
    """One decoded picture of a stream; it is converted to JPEG on demand."""

    frame: Any = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Memory that the picture takes."""
        return int(self.frame.width * self.frame.height * 3 // 2)

    def to_uplink(self, width_of: WidthOf = UNKNOWN_LIMITS.useful_width) -> Image:
        """Return the picture reduced for the uplink, to at most the width that `width_of` gives."""
        picture = self.frame.to_image()
        return small_jpeg(picture, width_of(*picture.size))

    def to_full_size(self) -> Image:
        """Return the picture in full size."""
        return to_jpeg(self.frame.to_image())


class VideoStream:
    """The decoder of one stream. Raises ConfigError without PyAV, or for an unknown video format."""

    def __init__(self, codec_name: str = "") -> None:
        check_video(codec_name or "a camera's stream")
        import av

        name = next((codec for part, codec in CODECS.items() if part in codec_name.lower()), "h264")
        try:
            self._context: Any = av.CodecContext.create(name, "r")
        except (av.FFmpegError, ValueError) as error:
            raise ConfigError(f"video called {codec_name!r} has no decoder here: {error}") from error
        self._context.thread_count = 1  # more would hold pictures back
        self._fault: type[Exception] = av.FFmpegError

    def decode(self, piece: bytes) -> VideoFrame | None:
        """Decode the next piece; return the newest picture that it completes, or None.

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
        newest: VideoFrame | None = None
        empty = True
        for rank, name, codec_name, piece in _pieces(self._kind, message):
            empty = False
            if self._best is not None and rank < self._best:
                continue
            if name not in self._streams:
                self._streams[name] = VideoStream(codec_name)
            frame = self._streams[name].decode(piece)
            if frame is not None:
                newest, self._best = frame, rank
                break
        if empty:
            raise ImageError("a video message of no bytes")
        return newest


def _pieces(kind: str, message: Any) -> Iterator[tuple[int, str, str, bytes]]:
    """Yield rank (more is better), name, codec and bytes of the streams of a message, the best first."""
    if kind != GO2_VIDEO or hasattr(message, "data"):
        codec_name = str(getattr(message, "format", "") or getattr(message, "encoding", "") or "h264")
        rank = int(getattr(message, "resolution", 0))  # of a Go2 whose messages hold one size each
        if piece := message_bytes(message.data):
            yield rank, f"{rank}", codec_name, piece
        return
    for index, name in enumerate(GO2_STREAMS):
        if piece := message_bytes(getattr(message, name)):
            yield -index, name, "h264", piece

"""Images on their way to the cloud: checked and reduced when they arrive, sent in chunks within a window.

The window keeps drafts and heartbeats from waiting behind an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PilImage

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.images import DECODED, JPEGS, is_upright, opened, to_jpeg, upright
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.protocol.messages import ImageChunk

UPLINK_WIDTH_PX = 448
"""Wide enough for the vision towers in use; a 1080p JPEG of 150 kB becomes one of some 15 kB."""

UPLINK_QUALITY = 85


def load_image(path: Path) -> Image:
    """Read an image file of any common format as a JPEG, the way up that it asks for.

    Raises ImageError naming the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    try:
        return for_uplink(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def for_uplink(data: bytes, width_px: int = UPLINK_WIDTH_PX, quality: int = UPLINK_QUALITY) -> Image:
    """Return the frame as both models will see it: an upright JPEG at most `width_px` wide.

    An upright JPEG that is small enough already is passed on byte for byte. Raises ImageError.
    """
    with opened(data) as picture:
        is_as_sent = picture.format in JPEGS and is_upright(picture) and picture.width <= width_px
        rgb = upright(picture)  # also finds a file that breaks off
    if not is_as_sent:
        return small_jpeg(rgb, width_px, quality)
    return DECODED.add(Image(data, rgb.width, rgb.height), rgb)


def small_jpeg(
    picture: PilImage.Image, width_px: int = UPLINK_WIDTH_PX, quality: int = UPLINK_QUALITY
) -> Image:
    """Return an RGB picture as a JPEG at most `width_px` wide."""
    if picture.width > width_px:
        height = max(1, round(picture.height * width_px / picture.width))
        picture = picture.resize((width_px, height), PilImage.Resampling.LANCZOS)
    return to_jpeg(picture, quality)


CHUNK_BYTES = 4096
"""33 ms of a 1 Mbit/s link: the longest that a draft may wait behind a chunk."""


@dataclass(slots=True)
class ImageUpload:
    """Go-back-N over one image. `wait_for_credit`: the cloud probably has it, so let it ask."""

    image: Image
    wait_for_credit: bool = False
    acknowledged: int = 0
    sent: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the cloud holds all bytes."""
        return self.acknowledged >= len(self.image.jpeg)

    def credit(self, received: int) -> None:
        """Take the cloud's word for the bytes that it holds in order."""
        self.wait_for_credit = False
        self.acknowledged = max(self.acknowledged, min(received, len(self.image.jpeg)))
        self.sent = max(self.sent, self.acknowledged)

    def go_back(self) -> None:
        """Send again what is not acknowledged."""
        self.sent = self.acknowledged
        self.wait_for_credit = False

    def restart(self) -> None:
        """Start over with a cloud that may have forgotten everything."""
        self.acknowledged = self.sent = 0

    def chunks(self, answer: int, epoch: int, window_bytes: int) -> Iterator[ImageChunk]:
        """Yield the chunks that the window allows now."""
        end = 0 if self.wait_for_credit else min(len(self.image.jpeg), self.acknowledged + window_bytes)
        while self.sent < end:
            data = self.image.jpeg[self.sent : min(self.sent + CHUNK_BYTES, end)]
            yield ImageChunk(answer, epoch, self.sent, data)
            self.sent += len(data)

"""Images on their way to the cloud: checked and reduced when they arrive (`request_state` sends them)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image as PilImage

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.images import JPEGS, is_upright, opened, to_jpeg, upright
from vlm_spec_decode.core.types import Image

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
    return Image(data, rgb.width, rgb.height) if is_as_sent else small_jpeg(rgb, width_px, quality)


def small_jpeg(
    picture: PilImage.Image, width_px: int = UPLINK_WIDTH_PX, quality: int = UPLINK_QUALITY
) -> Image:
    """Return an RGB picture as a JPEG at most `width_px` wide."""
    if picture.width > width_px:
        height = max(1, round(picture.height * width_px / picture.width))
        picture = picture.resize((width_px, height), PilImage.Resampling.LANCZOS)
    return to_jpeg(picture, quality)

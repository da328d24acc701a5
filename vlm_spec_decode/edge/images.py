"""Images on the robot: checked when they come in, made small before they go up."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image as PilImage
from PIL import UnidentifiedImageError

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.types import Image

MAX_PIXELS = 40_000_000
UPLINK_WIDTH_PX = 448
"""Wide enough for the vision towers in use; a 1080p JPEG of 150 kB becomes one of some 15 kB."""


def load_image(path: Path) -> Image:
    """Read an image file of any common format as a JPEG. Raises ImageError naming the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    try:
        return for_uplink(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def for_uplink(data: bytes, width_px: int = UPLINK_WIDTH_PX, quality: int = 85) -> Image:
    """Return the frame as both models will see it: a JPEG at most `width_px` wide.

    A JPEG that is small enough already is passed on byte for byte. Raises ImageError.
    """
    try:
        with PilImage.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"an image of {picture.width} x {picture.height} pixels is too large")
            picture.load()
            if picture.format == "JPEG" and picture.width <= width_px:
                return Image(data, picture.width, picture.height)
            return _shrink(picture.convert("RGB"), width_px, quality)
    except (UnidentifiedImageError, OSError, ValueError, PilImage.DecompressionBombError) as error:
        raise ImageError(f"not an image that can be decoded ({type(error).__name__})") from error


def _shrink(picture: PilImage.Image, width_px: int, quality: int) -> Image:
    if picture.width > width_px:
        height = max(1, round(picture.height * width_px / picture.width))
        picture = picture.resize((width_px, height), PilImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image(buffer.getvalue(), picture.width, picture.height)

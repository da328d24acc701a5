"""Camera messages of any robot as JPEG. Pure functions over pixels; knows no bags and no models.

The checks are cheap: they tell what is no picture at all without decoding what is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.images import MAX_PIXELS, for_uplink

Pixels = npt.NDArray[np.uint8]

QUALITY = 90
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""Of JPEG and PNG: enough until somebody asks about the frame."""

BAYER = {"rggb": (0, 0), "bggr": (1, 1), "gbrg": (1, 0), "grbg": (0, 1)}
"""Row and column of the first red pixel."""

WIDE = {"mono16": "mono8", "16uc1": "mono8", "rgb16": "rgb8", "bgr16": "bgr8"}
"""Two bytes a channel, and what is left of them."""

PIXEL_BYTES = {
    **dict.fromkeys(("rgb8", "bgr8", "8uc3"), 3),
    **dict.fromkeys(("rgba8", "bgra8", "8uc4"), 4),
    **dict.fromkeys(("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "mono16", "16uc1"), 2),
    **dict.fromkeys(("rgb16", "bgr16"), 6),
}
"""Where it is not 1."""


def check_compressed(message: Any) -> None:
    """Raise ImageError unless this begins like a picture that can be decoded."""
    if "compressedDepth" in message.format:
        raise ImageError("a depth image, not a picture")
    data = bytes(message.data)
    if data.startswith(BEGINNINGS):
        return
    try:
        with PilImage.open(io.BytesIO(data)) as picture:
            if not 0 < picture.width * picture.height <= MAX_PIXELS:
                raise ImageError(f"an image of {picture.width} x {picture.height} pixels")
    except (OSError, ValueError, SyntaxError, PilImage.DecompressionBombError) as error:
        raise ImageError(f"not an image that can be decoded ({type(error).__name__})") from error


def compressed(message: Any) -> Image:
    """Return the frame of a sensor_msgs/CompressedImage (jpeg, png). Raises ImageError."""
    check_compressed(message)
    return for_uplink(bytes(message.data))


def check_raw(message: Any) -> None:
    """Raise ImageError for an unknown encoding, and for too few bytes."""
    width, height, encoding = int(message.width), int(message.height), str(message.encoding).lower()
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"an image of {width} x {height} pixels")
    known = encoding.removeprefix("bayer_").rstrip("168").rstrip("_") if "bayer" in encoding else encoding
    if known not in BAYER and encoding not in _CONVERSIONS and encoding not in WIDE:
        raise ImageError(f"unknown image encoding {encoding!r}")
    if int(message.step) < width * PIXEL_BYTES.get(encoding, 1):
        raise ImageError(f"rows of {message.step} bytes, too short for {width} pixels of {encoding}")
    if len(message.data) < height * int(message.step):
        raise ImageError(f"{len(message.data)} bytes are no {width} x {height} {encoding}")


def raw(message: Any) -> Image:
    """Return the frame of a sensor_msgs/Image as JPEG. Raises ImageError naming an unknown encoding."""
    width, height, encoding = int(message.width), int(message.height), str(message.encoding).lower()
    check_raw(message)
    wide = ("bayer" in encoding and encoding.endswith("16")) or encoding in WIDE
    kind = np.dtype(">u2" if message.is_bigendian else "<u2") if wide else np.dtype(np.uint8)
    try:
        flat = np.frombuffer(np.asarray(message.data, dtype=np.uint8).tobytes(), np.uint8)
        rows = flat[: height * message.step].reshape(height, message.step)
        values = np.ascontiguousarray(rows).view(kind)
    except ValueError as error:
        raise ImageError(f"{len(message.data)} bytes are no {width} x {height} {encoding}") from error
    if wide:
        values = (values >> 8).astype(np.uint8)
        encoding = WIDE.get(encoding, encoding.removesuffix("16"))
    return for_uplink(_jpeg(_rgb(encoding, values, width)))


def _rgb(encoding: str, rows: Pixels, width: int) -> Pixels:
    if encoding.startswith("bayer_"):
        pattern = encoding.removeprefix("bayer_").rstrip("8").rstrip("_")
        if pattern in BAYER:
            return _debayer(rows[:, :width], *BAYER[pattern])
    convert = _CONVERSIONS.get(encoding)
    if convert is None:
        raise ImageError(f"unknown image encoding {encoding!r}")
    try:
        found: Pixels = convert(rows, width)
        return found
    except (ValueError, IndexError) as error:
        raise ImageError(f"rows too short for {width} pixels of {encoding}") from error


def _channels(rows: Pixels, width: int, count: int) -> Pixels:
    pixels: Pixels = rows[:, : width * count].reshape(len(rows), width, count)
    return pixels


def _grey(rows: Pixels, width: int) -> Pixels:
    return np.repeat(_channels(rows, width, 1), 3, axis=2)


def _debayer(rows: Pixels, row: int, column: int) -> Pixels:
    """Return half the resolution: each 2 x 2 cell becomes a pixel, which is plenty for these models."""
    rows = rows[: len(rows) // 2 * 2, : rows.shape[1] // 2 * 2]
    red, blue = rows[row::2, column::2], rows[1 - row :: 2, 1 - column :: 2]
    green = (rows[row::2, 1 - column :: 2].astype(np.uint16) + rows[1 - row :: 2, column::2]) // 2
    return np.stack([red, green.astype(np.uint8), blue], axis=2)


def _yuv422(rows: Pixels, width: int, luma: int) -> Pixels:
    """Return RGB of packed 4:2:2 (BT.601); `luma` is the place of the first Y: 0 in YUYV, 1 in UYVY."""
    pairs = rows[:, : width * 2].reshape(len(rows), width // 2, 4).astype(np.float32)
    y = pairs[..., [luma, luma + 2]].reshape(len(rows), width)
    u, v = (np.repeat(pairs[..., place], 2, axis=1) - 128 for place in (1 - luma, 3 - luma))
    rgb = np.stack([y + 1.402 * v, y - 0.344 * u - 0.714 * v, y + 1.772 * u], axis=2)
    pixels: Pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return pixels


_CONVERSIONS: Mapping[str, Callable[[Pixels, int], Pixels]] = {
    "rgb8": lambda rows, width: _channels(rows, width, 3),
    "8uc3": lambda rows, width: _channels(rows, width, 3)[..., ::-1],
    "bgr8": lambda rows, width: _channels(rows, width, 3)[..., ::-1],
    "rgba8": lambda rows, width: _channels(rows, width, 4)[..., :3],
    "bgra8": lambda rows, width: _channels(rows, width, 4)[..., 2::-1],
    "8uc4": lambda rows, width: _channels(rows, width, 4)[..., 2::-1],
    "mono8": _grey,
    "8uc1": _grey,
    "mono": _grey,
    "yuv422": lambda rows, width: _yuv422(rows, width, 1),
    "uyvy": lambda rows, width: _yuv422(rows, width, 1),
    "yuv422_yuy2": lambda rows, width: _yuv422(rows, width, 0),
    "yuyv": lambda rows, width: _yuv422(rows, width, 0),
}


def _jpeg(rgb: Pixels) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(np.ascontiguousarray(rgb)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()

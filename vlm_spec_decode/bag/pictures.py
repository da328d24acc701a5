"""Camera messages of any robot as JPEG. Pure functions over pixels; knows no bags and no models."""

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
BAYER = {"rggb": (0, 0), "bggr": (1, 1), "gbrg": (1, 0), "grbg": (0, 1)}
"""Row and column of the first red pixel."""


def compressed(message: Any) -> Image:
    """Return the frame of a sensor_msgs/CompressedImage (jpeg, png). Raises ImageError."""
    data = bytes(message.data)
    if "compressedDepth" in message.format:
        raise ImageError("a depth image, not a picture")
    return for_uplink(data)


def raw(message: Any) -> Image:
    """Return the frame of a sensor_msgs/Image as JPEG. Raises ImageError naming an unknown encoding."""
    width, height, encoding = int(message.width), int(message.height), str(message.encoding).lower()
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"an image of {width} x {height} pixels")
    wide = ("bayer" in encoding and encoding.endswith("16")) or encoding in (
        "mono16",
        "16uc1",
        "rgb16",
        "bgr16",
    )
    kind = np.dtype(">u2" if message.is_bigendian else "<u2") if wide else np.dtype(np.uint8)
    try:
        flat = np.frombuffer(np.asarray(message.data, dtype=np.uint8).tobytes(), np.uint8)
        rows = flat[: height * message.step].reshape(height, message.step)
        values = np.ascontiguousarray(rows).view(kind)
    except ValueError as error:
        raise ImageError(f"{len(message.data)} bytes are no {width} x {height} {encoding}") from error
    if wide:
        values = (values >> 8).astype(np.uint8)
    return for_uplink(_jpeg(_rgb(encoding.removesuffix("16") if wide else encoding, values, width)))


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

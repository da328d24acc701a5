"""Pixels of a camera message as red, green and blue: every picture that sensor_msgs/image_encodings names.

Pure functions over arrays. They take any object with the fields of sensor_msgs/Image, so that live messages
and messages of a bag are read by the same code. Nothing here knows JPEG, topics or models.

What is a picture: rgb, bgr, mono, Bayer and YUV encodings, and OpenCV's 8UC1, 8UC3, 8UC4, 16UC1, 16UC3,
16UC4, which mean mono, BGR and BGRA there. What is none (distances in 32FC1, signed numbers, two channels) is
refused by name. YUV is BT.601 in its usual range (Y from 16 to 235), as cv_bridge and RViz show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.errors import ImageError

Pixels: TypeAlias = npt.NDArray[np.uint8]
Numbers: TypeAlias = npt.NDArray[Any]

MAX_PIXELS = 40_000_000
MAX_SIDE = 65_500
"""What a JPEG can hold."""

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""How many bits a sensor may give in a 16-bit number, low bits first."""

SAMPLES = 65_536
"""Numbers that are looked at to find how many bits are in use."""

BRIGHT_SHARE = 0.999
"""A few broken pixels do not decide how many bits are in use."""

FLAT_SPAN = 32
"""A 16-bit grey picture whose values span less than this of 255 is stretched (thermal cameras)."""

ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("mono", "8uc1", "gray", "grey", "gray8", "grey8", "y8", "y800"), "mono8"),
    **dict.fromkeys(("16uc1", "gray16", "grey16", "y16"), "mono16"),
    **dict.fromkeys(("8uc3", "bgr", "bgr24"), "bgr8"),
    **dict.fromkeys(("8uc4", "bgra", "bgra32"), "bgra8"),
    **dict.fromkeys(("rgb", "rgb24"), "rgb8"),
    **dict.fromkeys(("rgba", "rgba32"), "rgba8"),
    **{"16uc3": "bgr16", "16uc4": "bgra16"},
    **dict.fromkeys(("yuv422", "yuv422_uyvy"), "uyvy"),
    **dict.fromkeys(("yuv422_yuy2", "yuv422_yuyv", "yuy2"), "yuyv"),
    **dict.fromkeys(("yuv420", "yuv420p", "iyuv"), "i420"),
    **{"yuv420_nv12": "nv12", "yuv420_nv21": "nv21", "yuv444_nv24": "nv24"},
}
"""Other names in use. Names are compared in lower case."""

PACKED: Mapping[str, tuple[tuple[int, int, int], int, int]] = {
    "rgb8": ((0, 1, 2), 3, 1),
    "bgr8": ((2, 1, 0), 3, 1),
    "rgba8": ((0, 1, 2), 4, 1),
    "bgra8": ((2, 1, 0), 4, 1),
    "mono8": ((0, 0, 0), 1, 1),
    "rgb16": ((0, 1, 2), 3, 2),
    "bgr16": ((2, 1, 0), 3, 2),
    "rgba16": ((0, 1, 2), 4, 2),
    "bgra16": ((2, 1, 0), 4, 2),
    "mono16": ((0, 0, 0), 1, 2),
}
"""Places of red, green and blue in a pixel, channels of a pixel, bytes of a channel."""

BAYER: Mapping[str, tuple[int, int]] = {"rggb": (0, 0), "bggr": (1, 1), "gbrg": (1, 0), "grbg": (0, 1)}
"""Row and column of the first red pixel."""

DEPTHS = frozenset({"32fc1", "64fc1"})

ENCODED = frozenset({"jpeg", "jpg", "mjpeg", "mjpg", "png", "webp"})
"""What drivers write where a message holds a file instead of pixels."""


class RawMessage(Protocol):
    """The fields of sensor_msgs/Image that are read here."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


@dataclass(frozen=True, slots=True)
class _Format:
    """How the bytes of one encoding lie, and how rows of them become RGB.

    A row of `width` pixels has `row_bytes(width)` bytes at least; `rows(height)` rows make a picture.
    `is_420`: half as many rows of colour follow those of brightness.
    """

    row_bytes: Callable[[int], int]
    rows: Callable[[int], int]
    to_rgb: Callable[[Pixels, int, int, bool], Pixels]
    is_420: bool = False


def message_bytes(data: Any) -> bytes:
    """Return a field of type uint8[] as bytes, whatever a library made of it."""
    return data if isinstance(data, bytes) else np.asarray(data, np.uint8).tobytes()


def is_encoded(message: RawMessage) -> bool:
    """Return whether a message that should hold pixels holds a JPEG or PNG file."""
    name = str(message.encoding).strip().lower()
    return name in ENCODED or (
        ALIASES.get(name, name) not in _FORMATS and bytes(message.data[:3]) == b"\xff\xd8\xff"
    )


def check(message: RawMessage) -> None:
    """Raise ImageError unless size, encoding and number of bytes make a picture. Decodes nothing."""
    _layout(message)


def to_rgb(message: RawMessage) -> Pixels:
    """Return the picture of a sensor_msgs/Image [height, width, 3]. Raises ImageError."""
    kind, width, height, step = _layout(message)
    data = np.frombuffer(message_bytes(message.data), np.uint8)
    count, need = kind.rows(height), kind.row_bytes(width)
    missing = step * count - len(data)
    if missing > 0:  # the padding of the last row may be left out
        data = np.concatenate([data, np.zeros(missing, np.uint8)])
    rows = data[: step * count].reshape(count, step)[:, :need]
    return np.ascontiguousarray(kind.to_rgb(rows, width, height, bool(message.is_bigendian)))


def to_eight_bits(values: Numbers) -> Pixels:
    """Return 16-bit values as 8-bit ones, by the number of bits that the camera uses.

    Many cameras give 10, 12 or 14 bits in the low bits of a number. A grey picture [height, width] whose
    values lie close together, as a thermal camera's do, is stretched over the whole range.
    """
    looked = values.reshape(-1)[:: max(1, values.size // SAMPLES)]
    bright = float(np.quantile(looked, BRIGHT_SHARE))
    bits = next(bits for bits in BIT_DEPTHS if bright < 2**bits)
    top = float(2**bits - 1)
    if values.ndim == 2:
        dark = float(np.quantile(looked, 1 - BRIGHT_SHARE))
        if 0 < bright - dark < top * FLAT_SPAN / 255:
            fraction = (np.clip(values, dark, bright) - dark) / (bright - dark)
            stretched: Pixels = np.rint(255 * fraction).astype(np.uint8)
            return stretched
    eight: Pixels = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
    return eight


def _layout(message: RawMessage) -> tuple[_Format, int, int, int]:
    """Return format, width, height and bytes from row to row. Raises ImageError."""
    width, height, kind = int(message.width), int(message.height), _format(str(message.encoding))
    if not 0 < width * height <= MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(f"an image of {width} x {height} pixels")
    need, step, length = kind.row_bytes(width), int(message.step), len(message.data)
    if kind.is_420 and height % 3 == 0 and length == max(step, need) * height:
        height = height * 2 // 3  # some drivers count the rows of colour too
    count = kind.rows(height)
    if length == need * count or step == 0:
        step = need  # whatever `step` says: there is no room for padding
    if step < need:
        raise ImageError(f"rows of {step} bytes, too short for {width} pixels of {message.encoding}")
    if length < step * (count - 1) + need:
        raise ImageError(f"{length} bytes are no {width} x {height} {message.encoding}")
    return kind, width, height, step


def _format(encoding: str) -> _Format:
    name = encoding.strip().lower().removeprefix("cv_")
    found = _FORMATS.get(ALIASES.get(name, name))
    if found is not None:
        return found
    if name in DEPTHS:
        raise ImageError(f"distances ({name}), not a picture: name the camera's colour topic")
    if name[:1].isdigit():
        raise ImageError(f"numbers without a colour ({name}), not a picture: name the camera's colour topic")
    raise ImageError(f"unknown image encoding {encoding!r}")


# Encodings ---------------------------------------------------------------------------------------


def _packed(name: str) -> _Format:
    order, channels, size = PACKED[name]

    def convert(rows: Pixels, width: int, height: int, is_big: bool) -> Pixels:
        values = _numbers(rows, is_big) if size == 2 else rows
        pixels = values.reshape(height, width, channels)
        if channels == 1:
            grey = to_eight_bits(pixels[..., 0]) if size == 2 else pixels[..., 0]
            return np.repeat(grey[..., None], 3, axis=2)
        # The colour's own brightness counts, not that of an alpha channel, which is always full.
        colours = pixels[..., list(order)]
        return to_eight_bits(colours) if size == 2 else colours

    return _Format(lambda width: width * channels * size, lambda height: height, convert)


def _numbers(rows: Pixels, is_big: bool) -> Numbers:
    """Return 16-bit numbers of this machine's order."""
    values = np.ascontiguousarray(rows).view(np.dtype(">u2" if is_big else "<u2"))
    return values.astype(np.uint16)


def _bayer(pattern: str, size: int) -> _Format:
    red = BAYER[pattern]

    def convert(rows: Pixels, width: int, height: int, is_big: bool) -> Pixels:
        del width, height
        values = _eight_bit_mosaic(_numbers(rows, is_big)) if size == 2 else rows
        return _demosaic(values, *red)

    return _Format(lambda width: width * size, lambda height: height, convert)


def _eight_bit_mosaic(values: Numbers) -> Pixels:
    return to_eight_bits(values[..., None])[..., 0]


def _demosaic(mosaic: Pixels, row: int, column: int) -> Pixels:
    """Return RGB by bilinear interpolation; (`row`, `column`) is the first red pixel.

    Each missing colour is the mean of its 2 or 4 nearest measurements.
    """
    height, width = mosaic.shape
    if min(height, width) < 2:
        raise ImageError(f"a Bayer image of {width} x {height} pixels; 2 x 2 are the least")
    # Mirrored at the edge pixel, which keeps the pattern's phase.
    wide: Numbers = np.pad(mosaic, 1, mode="reflect").astype(np.uint16)
    side: Numbers = wide[1:-1, :-2] + wide[1:-1, 2:]
    above: Numbers = wide[:-2, 1:-1] + wide[2:, 1:-1]
    corner = (wide[:-2, :-2] + wide[:-2, 2:] + wide[2:, :-2] + wide[2:, 2:] + 2) >> 2
    cross = (side + above + 2) >> 2
    rgb = np.empty((height, width, 3), np.uint8)
    for colour, r, c in ((0, row, column), (2, 1 - row, 1 - column)):
        rgb[r::2, c::2, colour] = mosaic[r::2, c::2]
        rgb[r::2, 1 - c :: 2, colour] = (side[r::2, 1 - c :: 2] + 1) >> 1
        rgb[1 - r :: 2, c::2, colour] = (above[1 - r :: 2, c::2] + 1) >> 1
        rgb[1 - r :: 2, 1 - c :: 2, colour] = corner[1 - r :: 2, 1 - c :: 2]
        rgb[r::2, c::2, 1] = cross[r::2, c::2]
        rgb[r::2, 1 - c :: 2, 1] = mosaic[r::2, 1 - c :: 2]
    return rgb


def _yuv_to_rgb(y: Pixels, u: Pixels, v: Pixels) -> Pixels:
    """Return RGB of planes of one size: BT.601, Y from 16 to 235, U and V from 16 to 240."""
    bright = (y.astype(np.float32) - 16) * 1.164
    blue, red = u.astype(np.float32) - 128, v.astype(np.float32) - 128
    rgb = np.stack([bright + 1.596 * red, bright - 0.392 * blue - 0.813 * red, bright + 2.017 * blue], axis=2)
    found: Pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return found


def _doubled(plane: Pixels, height: int, width: int) -> Pixels:
    """Return a plane of half the size as one of the whole size."""
    return np.repeat(np.repeat(plane, 2, axis=0), 2, axis=1)[:height, :width]


def _packed_422(luma: int) -> _Format:
    """Pairs of pixels share U and V; `luma` is the place of the first Y: 0 in YUYV, 1 in UYVY."""

    def convert(rows: Pixels, width: int, height: int, is_big: bool) -> Pixels:
        del is_big
        if rows.shape[1] % 4:  # an odd width; its last pixel takes the missing colour from the pair before
            missing = rows[:, -4:-2] if width > 1 else np.full((height, 2), 128, np.uint8)
            rows = np.concatenate([rows, missing], axis=1)
        pairs = rows.reshape(height, -1, 4)
        y = pairs[..., [luma, luma + 2]].reshape(height, -1)[:, :width]
        u, v = (np.repeat(pairs[..., channel], 2, axis=1)[:, :width] for channel in (1 - luma, 3 - luma))
        return _yuv_to_rgb(y, u, v)

    return _Format(lambda width: width * 2, lambda height: height, convert)


def _semi_planar(u: int) -> _Format:
    """Y, then U and V by turns at half the size; `u` is the place of U: 0 in NV12, 1 in NV21."""

    def convert(rows: Pixels, width: int, height: int, is_big: bool) -> Pixels:
        del is_big
        pairs = rows[height:].reshape(rows.shape[0] - height, -1, 2)
        blue, red = (_doubled(pairs[..., channel], height, width) for channel in (u, 1 - u))
        return _yuv_to_rgb(rows[:height, :width], blue, red)

    return _Format(lambda width: width + width % 2, _rows_420, convert, is_420=True)


def _rows_420(height: int) -> int:
    return height + (height + 1) // 2


def _nv24() -> _Format:
    """Y, then U and V by turns at the whole size: each of their rows is as long as two rows of Y."""

    def convert(rows: Pixels, width: int, height: int, is_big: bool) -> Pixels:
        del is_big
        pairs = rows[height:].reshape(height, width, 2)
        return _yuv_to_rgb(rows[:height], pairs[..., 0], pairs[..., 1])

    return _Format(lambda width: width, lambda height: 3 * height, convert)


def _planar_420(first_is_u: bool) -> _Format:
    """Y, then one plane of half the size, then the other: U first in I420, V first in YV12."""

    def convert(rows: Pixels, width: int, height: int, is_big: bool) -> Pixels:
        del is_big
        half = ((height + 1) // 2, rows.shape[1] // 2)
        first, second = (
            _doubled(plane.reshape(half), height, width)
            for plane in np.split(np.ascontiguousarray(rows[height:]).reshape(-1), 2)
        )
        u, v = (first, second) if first_is_u else (second, first)
        return _yuv_to_rgb(rows[:height, :width], u, v)

    return _Format(lambda width: width + width % 2, _rows_420, convert, is_420=True)


_FORMATS: Mapping[str, _Format] = {
    **{name: _packed(name) for name in PACKED},
    **{f"bayer_{pattern}8": _bayer(pattern, 1) for pattern in BAYER},
    **{f"bayer_{pattern}16": _bayer(pattern, 2) for pattern in BAYER},
    **{"uyvy": _packed_422(1), "yuyv": _packed_422(0)},
    **{"nv12": _semi_planar(0), "nv21": _semi_planar(1), "nv24": _nv24()},
    **{"i420": _planar_420(True), "yv12": _planar_420(False)},
}
"""Every encoding by its one name."""

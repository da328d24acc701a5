"""Camera messages in every encoding that sensor_msgs names, made by the formats' definitions."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image as PilImage

PATTERNS = ("rggb", "bggr", "gbrg", "grbg")
PICTURES = (
    *("rgb8", "rgba8", "rgb16", "rgba16", "bgr8", "bgra8", "bgr16", "bgra16", "mono8", "mono16"),
    *("8UC1", "8UC3", "8UC4", "16UC1", "16UC3", "16UC4"),
    *(f"bayer_{pattern}{bits}" for pattern in PATTERNS for bits in (8, 16)),
    *("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv21", "nv24"),
)
"""Encodings of sensor_msgs/image_encodings.hpp that are pictures."""

MORE = (
    *("YUYV", "YUY2", "UYVY", "nv12", "NV12", "i420", "yuv420", "yuv420p", "yv12"),
    *("Rgb8", "BGR8", "8uc3", "CV_8UC3", "mono", "MONO8", "y16", "rgb", "bgr", " rgb8 "),
)
"""What drivers write besides."""

NO_PICTURES = (
    *("8UC2", "16UC2", "32FC1", "64FC1"),
    *(f"{bits}SC{n}" for bits in (8, 16, 32) for n in (1, 2, 3, 4)),
    *(f"{bits}FC{n}" for bits in (32, 64) for n in (2, 3, 4)),
    *("", "unknown", "bayer", "bayer_rggb", "bayer_xxxx8"),
)

LEFT, RIGHT = (200, 30, 30), (30, 60, 220)


def picture(width=64, height=48):
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = LEFT, RIGHT
    return pixels


def message(encoding, rgb=None, *, bits=16, big=0, pad=0):
    """Return a sensor_msgs/Image; 16-bit channels use the low `bits`, rows have `pad` more bytes."""
    rgb = picture() if rgb is None else rgb
    name = encoding.strip().lower().removeprefix("cv_")
    rows = _rows(name, rgb, bits, big)
    rows = np.concatenate([rows, np.full((len(rows), pad), 7, np.uint8)], axis=1) if pad else rows
    return SimpleNamespace(
        height=rgb.shape[0],
        width=rgb.shape[1],
        encoding=encoding,
        is_bigendian=big,
        step=rows.shape[1],
        data=np.ascontiguousarray(rows).reshape(-1),
    )


def _rows(name, rgb, bits, big):
    """Bytes of an encoding, row by row."""
    height = len(rgb)
    if name.startswith("bayer"):
        values = _mosaic(rgb, name[6:10])
        return _wide(values, bits, big) if name.endswith("16") else values
    if name in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "yuy2"):
        return _packed_422(rgb, 1 if name in ("yuv422", "uyvy") else 0)
    if name in ("nv12", "nv21", "nv24", "i420", "yuv420", "yuv420p", "yv12"):
        return _planes(rgb, name)
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    colours = {"r": rgb, "b": rgb[..., ::-1]}["b" if name[0] in "b8" or name.startswith("16uc") else "r"]
    if name in ("mono8", "mono16", "mono", "8uc1", "16uc1", "y16"):
        colours = rgb[..., :1]
    elif "a" in name[:4] or name.endswith("c4"):
        colours = np.concatenate([colours, alpha], axis=2)
    flat = np.ascontiguousarray(colours).reshape(height, -1)
    return _wide(flat, bits, big) if "16" in name else flat


def _wide(values, bits, big):
    """8-bit values as 16-bit numbers that use the low `bits`."""
    numbers = (values.astype(np.uint32) * (2**bits - 1) // 255).astype(">u2" if big else "<u2")
    return numbers.view(np.uint8)


def _mosaic(rgb, pattern):
    found = np.zeros(rgb.shape[:2], np.uint8)
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        found[row::2, column::2] = rgb[row::2, column::2, "rgb".index(colour)]
    return found


def yuv(rgb):
    """BT.601, Y from 16 to 235."""
    r, g, b = (rgb[..., i].astype(float) / 255 for i in range(3))
    y = 16 + 65.481 * r + 128.553 * g + 24.966 * b
    u = 128 - 37.797 * r - 74.203 * g + 112.0 * b
    v = 128 + 112.0 * r - 93.786 * g - 18.214 * b
    return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in (y, u, v)]


def _packed_422(rgb, luma):
    y, u, v = yuv(rgb)
    packed = np.zeros((*y.shape, 2), np.uint8)
    packed[..., luma] = y
    packed[:, ::2, 1 - luma] = u[:, ::2]
    odd = packed[:, 1::2, 1 - luma]
    odd[:] = v[:, ::2][:, : odd.shape[1]]
    return packed.reshape(len(y), -1)


def _planes(rgb, name):
    y, u, v = yuv(rgb)
    height, width = y.shape
    if name == "nv24":
        return np.concatenate([y, np.stack([u, v], axis=2).reshape(2 * height, width)])
    small = [plane[::2, ::2] for plane in (u, v)]
    if name in ("nv12", "nv21"):
        pairs = np.stack(small if name == "nv12" else small[::-1], axis=2).reshape(len(small[0]), -1)
        y = np.pad(y, ((0, 0), (0, pairs.shape[1] - width)))
        return np.concatenate([y, pairs])
    first, second = small if name != "yv12" else small[::-1]
    return np.concatenate([y, np.concatenate([first.reshape(-1), second.reshape(-1)]).reshape(-1, width)])


def shows_it(pixels, wanted=(LEFT, RIGHT), within=25):
    """Whether a decoded picture [height, width, 3] shows red on the left and blue on the right."""
    height, width, _ = pixels.shape
    found = pixels[height // 2, width // 4].astype(int), pixels[height // 2, 3 * width // 4].astype(int)
    return all(abs(f - w).max() < within for f, w in zip(found, wanted, strict=True))


def wanted_of(encoding):
    """The colours that a reader should see."""
    name = encoding.strip().lower().removeprefix("cv_")
    is_grey = name in ("mono8", "mono16", "mono", "8uc1", "16uc1", "y16")
    return ((LEFT[0],) * 3, (RIGHT[0],) * 3) if is_grey else (LEFT, RIGHT)


def pixels_of(jpeg):
    """The pixels of a JPEG [height, width, 3]."""
    with PilImage.open(io.BytesIO(jpeg), formats=("JPEG",)) as opened:
        return np.asarray(opened.convert("RGB"))

"""Every encoding shows the same picture: red on the left, blue on the right."""

import io

import numpy as np
import pytest
from PIL import Image as PilImage

from test.bags.walks import Walk, jpeg, picture
from vlm_spec_decode.bags.events import Events, Frame, Topics
from vlm_spec_decode.bags.reader import open_bag


def yuv(pixels, order):
    r, g, b = (pixels[..., i].astype(float) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = 0.564 * (b - y) + 128, 0.713 * (r - y) + 128
    packed = np.zeros((*pixels.shape[:2], 2))
    luma, chroma = (0, 1) if order == "yuyv" else (1, 0)
    packed[..., luma] = y
    packed[:, ::2, chroma], packed[:, 1::2, chroma] = u[:, ::2], v[:, ::2]
    return np.clip(np.rint(packed), 0, 255).astype(np.uint8)


def bayer(pixels, row, column):
    mosaic = pixels[..., 1].copy()
    mosaic[row::2, column::2] = pixels[row::2, column::2, 0]
    mosaic[1 - row :: 2, 1 - column :: 2] = pixels[1 - row :: 2, 1 - column :: 2, 2]
    return mosaic


RGB = picture()
ALPHA = np.full((*RGB.shape[:2], 1), 255, np.uint8)
ENCODINGS = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "rgba8": np.concatenate([RGB, ALPHA], axis=2),
    "bgra8": np.concatenate([RGB[..., ::-1], ALPHA], axis=2),
    "yuv422": yuv(RGB, "uyvy"),
    "yuv422_yuy2": yuv(RGB, "yuyv"),
    "bayer_rggb8": bayer(RGB, 0, 0),
    "bayer_bggr8": bayer(RGB, 1, 1),
    "bayer_gbrg8": bayer(RGB, 1, 0),
    "bayer_grbg8": bayer(RGB, 0, 1),
    "bayer_rggb16": bayer(RGB, 0, 0).astype("<u2") << 8,
}


def frames(path):
    source = open_bag(path)
    events = Events(source, Topics().choose(source.topics))
    found = [np.asarray(PilImage.open(io.BytesIO(e.image.jpeg))) for e in events if isinstance(e, Frame)]
    source.close()
    return found, events.faults


def shows_red_then_blue(pixels):
    height, width, _ = pixels.shape
    left, right = pixels[height // 2, width // 4].astype(int), pixels[height // 2, 3 * width // 4].astype(int)
    return abs(left - (200, 30, 30)).max() < 25 and abs(right - (30, 60, 220)).max() < 25


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_raw_images(tmp_path, encoding):
    walk = Walk(tmp_path / "walk")
    walk.raw(0.0, encoding, ENCODINGS[encoding], RGB.shape[1])
    walk.close()
    (found,), faults = frames(tmp_path / "walk")
    assert shows_red_then_blue(found), encoding
    assert not faults


@pytest.mark.parametrize(("encoding", "big"), [("mono8", 0), ("mono16", 0), ("mono16", 1)])
def test_grey_images(tmp_path, encoding, big):
    kind = {"mono8": "u1", "mono16": ">u2" if big else "<u2"}[encoding]
    grey = (RGB[..., 0].astype(int) << (8 if encoding == "mono16" else 0)).astype(kind)
    walk = Walk(tmp_path / "walk")
    walk.raw(0.0, encoding, grey, RGB.shape[1], big=big)
    walk.close()
    (found,), _ = frames(tmp_path / "walk")
    assert abs(int(found[24, 16, 0]) - 200) < 12
    assert abs(int(found[24, 48, 0]) - 30) < 12


def test_rows_may_be_padded_and_a_wrong_size_is_named(tmp_path):
    padded = np.concatenate([RGB.reshape(48, -1), np.zeros((48, 8), np.uint8)], axis=1)
    walk = Walk(tmp_path / "walk")
    walk.raw(0.0, "rgb8", padded, 64)
    walk.raw(1.0, "rgb8", RGB[:, :32], 64)
    walk.raw(2.0, "32FC1", RGB, 64)
    walk.close()
    found, faults = frames(tmp_path / "walk")
    assert len(found) == 1
    assert shows_red_then_blue(found[0])
    assert sum(faults.values()) == 2
    assert any("32fc1" in fault for fault in faults)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_compressed_images(tmp_path, kind):
    walk = Walk(tmp_path / "walk")
    walk.compressed(0.0, jpeg(RGB, kind), kind.lower())
    walk.close()
    (found,), _ = frames(tmp_path / "walk")
    assert shows_red_then_blue(found)

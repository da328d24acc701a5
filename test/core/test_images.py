"""Every encoding of sensor_msgs shows the same picture; what is none is named."""

import contextlib
import io
import struct
import zlib
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PilImage

from test.core.encodings import MORE, NO_PICTURES, PATTERNS, PICTURES, message, picture, shows_it, wanted_of
from vlm_spec_decode.core import images, pixels
from vlm_spec_decode.core.errors import ImageError


def pixels_of(image):
    with PilImage.open(io.BytesIO(image.jpeg), formats=("JPEG",)) as opened:
        assert opened.size == (image.width, image.height)
        return np.asarray(opened.convert("RGB"))


def file_of(rgb, kind, **options):
    buffer = io.BytesIO()
    PilImage.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


def compressed(data, format_=""):
    return SimpleNamespace(format=format_, data=np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("encoding", [*PICTURES, *MORE])
def test_every_encoding_that_is_a_picture(encoding):
    image = images.raw_image(message(encoding))
    assert (image.width, image.height) == (64, 48)
    assert shows_it(pixels_of(image), wanted_of(encoding)), encoding


@pytest.mark.parametrize("encoding", [e for e in PICTURES if not e.startswith("nv")])
def test_rows_may_be_padded(encoding):
    assert shows_it(pixels.to_rgb(message(encoding, pad=8)), wanted_of(encoding))


@pytest.mark.parametrize("size", [(63, 47), (5, 3), (2, 2), (64, 1), (1, 64), (1, 1), (3, 2)])
@pytest.mark.parametrize("encoding", [*PICTURES, "nv12"])
def test_odd_sizes_are_read_or_named(encoding, size):
    rgb = picture(*size)
    try:
        found = pixels.to_rgb(message(encoding, rgb))
    except ImageError:
        assert encoding.startswith("bayer")
        assert min(size) < 2
        return
    assert found.shape == rgb.shape
    if size == (63, 47):
        assert shows_it(found, wanted_of(encoding))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize("encoding", [e for e in PICTURES if "16" in e])
def test_sixteen_bits_are_as_bright_as_they_were_meant(encoding, big, bits):
    found = pixels.to_rgb(message(encoding, bits=bits, big=big))
    assert shows_it(found, wanted_of(encoding), within=12)


def test_broken_pixels_do_not_decide_the_brightness():
    sent = message("mono16", bits=12)
    values = sent.data.view("<u2").copy()
    values[:2] = 65_535
    sent.data = values.view(np.uint8)
    assert shows_it(pixels.to_rgb(sent), wanted_of("mono16"), within=12)


def test_a_thermal_camera_shows_more_than_one_grey():
    values = np.full((48, 64), 7_400, "<u2")
    values[:, 32:] = 7_900
    sent = message("mono16")
    sent.data = values.view(np.uint8).reshape(-1)
    found = pixels.to_rgb(sent)
    assert found[24, 48, 0] - found[24, 16, 0] > 200


@pytest.mark.parametrize("encoding", NO_PICTURES)
def test_what_is_no_picture_is_named(encoding):
    with pytest.raises(ImageError, match=r"not a picture|unknown image encoding"):
        images.raw_image(SimpleNamespace(**vars(message("rgba16")) | {"encoding": encoding}))


def test_distances_say_what_to_do():
    sent = SimpleNamespace(**vars(message("rgba8")) | {"encoding": "32FC1"})
    with pytest.raises(ImageError, match="colour topic"):
        images.check_raw(sent)


@pytest.mark.parametrize("encoding", PICTURES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"height": 0},
        {"data": np.zeros(0, np.uint8)},
        {"step": 1},
        {"width": 10**6},
        {"height": 10**5},
    ],
)
def test_sizes_that_do_not_hold_are_named(encoding, wrong):
    sent = SimpleNamespace(**vars(message(encoding)) | wrong)
    if wrong == {"step": 1}:
        sent.data = sent.data[:-1]  # else the number of bytes says what the step is
    for read in (images.check_raw, images.raw_image):
        with pytest.raises(ImageError):
            read(sent)


def test_a_step_that_says_nothing_is_found_from_the_bytes():
    for step in (0, 64, 64 * 4):
        sent = SimpleNamespace(**vars(message("rgb8")) | {"step": step})
        assert shows_it(pixels.to_rgb(sent))


def test_the_height_of_nv12_may_count_the_rows_of_colour():
    sent = SimpleNamespace(**vars(message("nv12")) | {"height": 72})
    found = pixels.to_rgb(sent)
    assert found.shape == (48, 64, 3)
    assert shows_it(found)


def test_bytes_come_as_any_kind_of_sequence():
    sent = message("rgb8")
    for data in (sent.data.tobytes(), array("B", sent.data.tobytes()), sent.data.tolist()):
        sent.data = data
        assert shows_it(pixels.to_rgb(sent))


def test_bayer_keeps_size_and_colour_as_opencv_does():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    rgb = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    # OpenCV names a pattern by its second row.
    codes = {"rggb": cv2.COLOR_BayerBG2RGB, "bggr": cv2.COLOR_BayerRG2RGB,
             "gbrg": cv2.COLOR_BayerGR2RGB, "grbg": cv2.COLOR_BayerGB2RGB}  # fmt: skip
    for pattern in PATTERNS:
        sent = message(f"bayer_{pattern}8", rgb)
        theirs = cv2.cvtColor(sent.data.reshape(48, 64), codes[pattern])
        ours = pixels.to_rgb(sent)
        assert np.abs(ours[2:-2, 2:-2].astype(int) - theirs[2:-2, 2:-2]).max() <= 1, pattern


def test_yuv_shows_what_opencv_shows():
    cv2 = pytest.importorskip("cv2")
    for encoding, code in (
        ("uyvy", cv2.COLOR_YUV2RGB_UYVY),
        ("yuyv", cv2.COLOR_YUV2RGB_YUYV),
        ("nv12", cv2.COLOR_YUV2RGB_NV12),
        ("nv21", cv2.COLOR_YUV2RGB_NV21),
        ("i420", cv2.COLOR_YUV2RGB_I420),
        ("yv12", cv2.COLOR_YUV2RGB_YV12),
    ):
        sent = message(encoding)
        shape = (48, 64, 2) if encoding in ("uyvy", "yuyv") else (72, 64)
        theirs = cv2.cvtColor(sent.data.reshape(shape), code)
        assert np.abs(pixels.to_rgb(sent).astype(int) - theirs).max() <= 3, encoding


def test_a_file_in_a_message_for_pixels_is_read_as_the_file_it_is():
    for name, kind in (("jpeg", "JPEG"), ("MJPEG", "JPEG"), ("png", "PNG"), ("strange", "JPEG")):
        data = np.frombuffer(file_of(picture(), kind), np.uint8)
        sent = SimpleNamespace(height=0, width=0, encoding=name, is_bigendian=0, step=0, data=data)
        images.check_raw(sent)
        assert shows_it(pixels_of(images.raw_image(sent)))


# Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("format_", ["", "jpeg", "JPEG", "png", "bgr8; jpeg compressed bgr8", "nonsense"])
def test_bytes_decide_and_not_the_format(kind, format_):
    image = images.compressed_image(compressed(file_of(picture(), kind), format_))
    assert shows_it(pixels_of(image), within=40 if kind == "GIF" else 25)


def test_a_whole_upright_jpeg_is_passed_on_byte_for_byte():
    data = file_of(picture(), "JPEG")
    assert images.file_image(data).jpeg is data
    padded = data + bytes(16)  # as some cameras pad theirs
    assert images.file_image(padded).jpeg is padded


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_as_their_file_asks(kind, orientation):
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:24, :32] = (250, 250, 250)  # seen upright: white is above and left
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    stored = PilImage.fromarray(corner)
    if orientation > 1:
        ways = PilImage.Transpose
        turn = {2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE,
                6: ways.ROTATE_270, 7: ways.TRANSVERSE, 8: ways.ROTATE_90}[back[orientation]]  # fmt: skip
        stored = stored.transpose(turn)
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    found = pixels_of(images.file_image(buffer.getvalue()))
    assert found.shape == (48, 64, 3)
    assert found[10, 10].min() > 200
    assert max(found[10, 50].max(), found[40, 10].max(), found[40, 50].max()) < 60


def png(values, bits=16):
    """A PNG with 16 bits a channel, which Pillow writes for grey alone."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_sixteen_bit_png_is_neither_white_nor_black(channels, bits):
    rgb = picture()
    values = {1: rgb[..., :1], 3: rgb, 4: np.concatenate([rgb, np.full((48, 64, 1), 255, np.uint8)], axis=2)}[
        channels
    ]
    data = png(values.astype(np.uint32) * (2**bits - 1) // 255)
    found = pixels_of(images.compressed_image(compressed(data, "16UC1; png compressed")))
    # Of colours Pillow keeps the upper eight bits, so that few are left of ten.
    assert shows_it(found, wanted_of("mono8" if channels == 1 else "rgb8"), within=25 if bits > 10 else 70)


def test_palettes_grey_and_transparency():
    indexed = PilImage.fromarray(picture()).convert("P", palette=PilImage.Palette.ADAPTIVE)
    buffer = io.BytesIO()
    indexed.save(buffer, "PNG")
    assert shows_it(pixels_of(images.file_image(buffer.getvalue())))
    clear = np.concatenate([np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64, 1), np.uint8)], axis=2)
    clear[:, :32, 3] = 255
    found = pixels_of(images.file_image(file_of(clear, "PNG")))
    assert found[24, 16].max() < 20
    assert found[24, 48].min() > 235


@pytest.mark.parametrize(
    ("data", "format_", "word"),
    [
        (b"", "jpeg", "no bytes"),
        (b"\0" * 12 + b"\x89PNG\r\n\x1a\n" + bytes(40), "", "compressedDepth"),
        (b"whatever", "16UC1; compressedDepth rvl", "compressedDepth"),
        (b"\x00\x00\x00\x01\x67\x42", "h264", "PyAV"),
        (b"garbage" * 9, "jpeg", "decoded"),
        (b"GIF89a" + bytes(40), "jpeg", "decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "eps", "decoded"),
    ],
)
def test_bytes_that_are_no_picture_are_named(data, format_, word):
    for read in (images.check_compressed, images.compressed_image):
        with pytest.raises(ImageError, match=word):
            read(compressed(data, format_))


def test_a_jpeg_that_breaks_off_is_named():
    rng = np.random.default_rng(0)
    data = file_of(rng.integers(0, 255, (96, 128, 3), np.uint8), "JPEG")
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            images.file_image(data[: int(len(data) * share)])


def test_any_bytes_end_in_an_image_or_its_error():
    rng, data = np.random.default_rng(0), bytearray(file_of(picture(), "PNG"))
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(4):
            broken[rng.integers(8, len(broken))] = rng.integers(256)
        with contextlib.suppress(ImageError):
            assert images.file_image(bytes(broken)).width > 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("walk to the red ball", "walk to the red ball"),
        ("geh zum größten Stuhl", "geh zum grossten Stuhl"),
        ("¿dónde está la niña? – à côté …", "donde esta la nina? - a cote ..."),
        ("“go” → 1\u00a0m", '"go" -> 1 m'),
        ("去 door", "? door"),
    ],
)
def test_text_is_spelt_in_letters_that_every_font_has(text, shown):
    assert images.drawable(text) == shown
    assert images.drawable(shown) == shown

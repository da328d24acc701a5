"""The conversion of camera messages and image files to the `Image` that models see: an upright JPEG.

The format is recognised from the bytes, never from a message's own field. Pictures are turned by their EXIF
orientation, transparent ones are put on white, 16-bit ones scaled to 8 bits. Bags, live topics and files
are all converted here. Pixels without a file format are in `core.pixels`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageOps

from vlm_spec_decode.core import extras, pixels
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.pixels import MAX_PIXELS, MAX_SIDE, RawMessage, message_bytes
from vlm_spec_decode.core.types import Image

QUALITY = 90
"""JPEG quality of the images that are made here."""

SPELT = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'"}
    | {"–": "-", "—": "-", "→": "->", "·": "-", "¿": "", "¡": "", "\N{NO-BREAK SPACE}": " "}
)
"""How letters without an accent to drop are written in ASCII."""


def drawable(text: str) -> str:
    """Return text in ASCII: the fonts of Pillow and RViz have no other letters, and draw gaps or boxes.

    Letters lose their accents; what has no letter in ASCII is a question mark.
    """
    plain = unicodedata.normalize("NFKD", text.translate(SPELT))
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA", "MPO")
"""What Pillow may read: pictures only, nothing that starts another program."""

JPEGS = frozenset({"JPEG", "MPO"})
"""Names of what begins as a JPEG does; cameras of phones put several pictures into one file."""

WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
ORIENTATION = 0x0112
BITS_PER_SAMPLE = 258
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
VIDEO_STARTS = (b"\x00\x00\x00\x01", b"\x00\x00\x01")
"""How a piece of H.264 or H.265 video begins (Annex B)."""

DEPTH_HEADER_BYTES = 12
"""What compressed_depth_image_transport puts before its PNG."""

FAULTS = (OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, struct.error, EOFError)
"""What Pillow raises where bytes make no sense (UnidentifiedImageError is an OSError)."""


class CompressedMessage(Protocol):
    """The fields of sensor_msgs/CompressedImage that are read here."""

    format: str
    data: Any


def is_video(data: bytes) -> bool:
    """Return whether these bytes begin like a piece of H.264 or H.265 video instead of a picture."""
    return data.startswith(VIDEO_STARTS)


def check_file(data: bytes, format_text: str = "") -> None:
    """Raise ImageError unless these bytes begin like an encoded picture. Cheap: nothing is decoded.

    `format_text` is what a message calls it, for the error's text.
    """
    if not data.startswith((JPEG_MAGIC, PNG_MAGIC)):
        with opened(data, format_text):
            pass


def file_image(data: bytes, format_text: str = "") -> Image:
    """Return an encoded picture of any common format as an upright JPEG.

    A whole upright JPEG is passed on byte for byte, without being decoded. Raises ImageError.
    """
    with opened(data, format_text) as picture:
        if picture.format in JPEGS and is_upright(picture) and _has_end(data):
            return Image(data, *picture.size)
        return to_jpeg(upright(picture))


def compressed_image(message: CompressedMessage) -> Image:
    """Return the picture of a sensor_msgs/CompressedImage. Raises ImageError."""
    return file_image(message_bytes(message.data), str(message.format))


def check_compressed(message: CompressedMessage) -> None:
    """Raise ImageError unless a sensor_msgs/CompressedImage begins like a picture. Decodes nothing."""
    check_file(message_bytes(message.data), str(message.format))


def raw_image(message: RawMessage) -> Image:
    """Return the picture of a sensor_msgs/Image, also of one that holds a file. Raises ImageError."""
    if pixels.is_encoded(message):
        return file_image(message_bytes(message.data), str(message.encoding))
    return to_jpeg(PilImage.fromarray(pixels.to_rgb(message)))


def check_raw(message: RawMessage) -> None:
    """Raise ImageError unless a sensor_msgs/Image can be a picture. Decodes nothing."""
    if pixels.is_encoded(message):
        check_file(message_bytes(message.data), str(message.encoding))
    else:
        pixels.check(message)


def message_image(message: Any) -> Image:
    """Return the picture of either kind of message. Raises ImageError."""
    return raw_image(message) if hasattr(message, "encoding") else compressed_image(message)


@contextlib.contextmanager
def opened(data: bytes, format_text: str = "") -> Iterator[PilImage.Image]:
    """Open an encoded picture; within the context Pillow's errors become ImageError."""
    _check_beginning(data, format_text)
    try:
        with PilImage.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if not 0 < width * height <= MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise ImageError(f"an image of {width} x {height} pixels; {MAX_PIXELS:,} are allowed")
            yield picture
    except PilImage.DecompressionBombError as error:
        raise ImageError(f"an image that is too large ({error})") from error
    except FAULTS as error:
        raise ImageError(
            f"not an image that can be decoded ({len(data)} bytes{_quoted(format_text)}; "
            f"{type(error).__name__})"
        ) from error


def upright(picture: PilImage.Image) -> PilImage.Image:
    """Return a picture as RGB, turned as its file asks, on white where it is transparent.

    Raises ImageError for numbers that are no colours.
    """
    is_deep = _has_16_bits(picture)
    picture.load()
    turned = picture if is_upright(picture) else ImageOps.exif_transpose(picture)
    if turned.mode == "F":
        raise ImageError("real numbers without a colour, as of a depth camera, not a picture")
    if turned.mode.startswith("I"):
        values = np.clip(np.asarray(turned), 0, 65_535).astype(np.uint16)
        return PilImage.fromarray(pixels.to_eight_bits(values)).convert("RGB")
    if is_deep:
        turned = _scaled_to_16_bits(turned)
    if turned.mode in WITH_ALPHA or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        turned = PilImage.alpha_composite(PilImage.new("RGBA", turned.size, "white"), turned)
    return turned.convert("RGB")


def is_upright(picture: PilImage.Image) -> bool:
    """Return whether a picture is to be shown as it is stored, by its EXIF data."""
    return bool(picture.getexif().get(ORIENTATION, 1) in (0, 1))


def decode_jpeg(jpeg: bytes) -> PilImage.Image:
    """Return the RGB picture in `jpeg`. Raises ImageError if it is none or has more than 40 megapixels."""
    try:
        with PilImage.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"image of {width} x {height} pixels is larger than {MAX_PIXELS} pixels")
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as error:
        raise ImageError(f"not a readable JPEG ({len(jpeg)} bytes): {str(error).splitlines()[0]}") from error


class DecodedImages:
    """The decoded pictures of the newest images, so that no image is decoded twice.

    An image is checked and reduced when it arrives, and read again for the prompt. Thread-safe. Do not change
    the pictures that it returns.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._pictures: OrderedDict[bytes, PilImage.Image] = OrderedDict()

    def add(self, image: Image, picture: PilImage.Image) -> Image:
        """Store the RGB picture that `image` decodes to; return the image."""
        with self._lock:
            self._pictures[image.digest] = picture
            self._pictures.move_to_end(image.digest)
            while len(self._pictures) > self._capacity:
                self._pictures.popitem(last=False)
        return image

    def picture(self, image: Image) -> PilImage.Image:
        """Return the RGB picture of an image, decoded if necessary. Raises ImageError."""
        with self._lock:
            known = self._pictures.get(image.digest)
        if known is None:
            known = decode_jpeg(image.jpeg)
            self.add(image, known)
        return known


DECODED = DecodedImages()
"""Of this process: some megabytes at most, since images on their way to a prompt are small."""


def to_jpeg(picture: PilImage.Image, quality: int = QUALITY) -> Image:
    """Return an RGB picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image(buffer.getvalue(), picture.width, picture.height)


def rgb_image(rgb: npt.NDArray[np.uint8]) -> Image:
    """Return pixels [height, width, 3] as JPEG."""
    return to_jpeg(PilImage.fromarray(np.ascontiguousarray(rgb)))


def _check_beginning(data: bytes, format_text: str) -> None:
    """Raise ImageError for known kinds of data that are no picture, with their name."""
    if not data:
        raise ImageError(f"no bytes at all{_quoted(format_text)}")
    if data.startswith(PNG_MAGIC, DEPTH_HEADER_BYTES) or "compresseddepth" in format_text.lower():
        raise ImageError("a compressed depth image (compressedDepth), not a picture: name the colour topic")
    if is_video(data):
        raise ImageError(
            f"a piece of H.264 or H.265 video{_quoted(format_text)}, not a picture; PyAV reads it "
            f"({extras.install_command('video')})"
        )


def _quoted(format_text: str) -> str:
    return f", called {format_text[:60]!r}" if format_text else ""


def _has_end(data: bytes) -> bool:
    """Return whether a JPEG ends after its last scan; a cut-off one has no end, or only a thumbnail's."""
    return data.rfind(END_OF_IMAGE) > data.rfind(START_OF_SCAN)


def _has_16_bits(picture: PilImage.Image) -> bool:
    """Return whether a colour picture has 16 bits a channel, of which Pillow keeps the upper eight."""
    if picture.format == "PNG":
        return any(";16" in str(tile[3]) for tile in picture.tile)
    bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
    return bool(bits) and max(bits) > 8


def _scaled_to_16_bits(picture: PilImage.Image) -> PilImage.Image:
    """Return a picture of 10, 12 or 14 bits scaled to 16 bits; alpha is scaled by itself."""
    bands = np.asarray(picture.convert("RGBA")).astype(np.uint16) << 8
    colours, alpha = pixels.to_eight_bits(bands[..., :3]), pixels.to_eight_bits(bands[..., 3:])
    return PilImage.fromarray(np.concatenate([colours, alpha], axis=2))

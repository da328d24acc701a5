"""A frame with the answer written over it. Pure: JPEG and words in, JPEG out; no ROS, no clock."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont, UnidentifiedImageError

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.types import Image

WIDTH = 640
"""Frames are halved as long as they stay this wide: the overlay is to be looked at, and soon."""

QUALITY = 70
SIZE = 15
LINE = 19
WHITE, GREEN, ORANGE, BLUE, RED = (
    (255, 255, 255),
    (90, 230, 110),
    (255, 170, 60),
    (120, 190, 255),
    (255, 90, 80),
)
SHADE, CLEAR = (0, 0, 0, 150), (0, 0, 0, 0)
COLOURS = {"committed": WHITE, "accepted": GREEN, "corrected": ORANGE, "drafted": BLUE}
MODES = {"estop": RED, "teleop": ORANGE, "language": GREEN, "none": WHITE}


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of an answer and how it came about, one of `COLOURS`."""

    text: str
    kind: str = "committed"


@dataclass(frozen=True, slots=True)
class Caption:
    """What is written: the answer above, state and figures below, who commands on the right."""

    pieces: tuple[Piece, ...] = ()
    state: str = ""
    figures: str = ""
    source: str = "none"


def draw(image: Image, caption: Caption) -> Image:
    """Return the frame with its caption, less than twice `WIDTH` wide. Raises ImageError.

    Made for every frame, so the JPEG is decoded at the size that is shown, which its own scaling gives for
    less than the full one costs, and what is written is drawn once and laid over each frame until it changes.
    """
    try:
        with PilImage.open(io.BytesIO(image.jpeg), formats=("JPEG",)) as opened:
            opened.draft("RGB", (WIDTH, max(1, opened.height * WIDTH // opened.width)))
            frame = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"{len(image.jpeg)} bytes that are no JPEG") from error
    above, below = _bands(caption, frame.width)
    frame.paste(above, (0, 0), above)
    frame.paste(below, (0, frame.height - below.height), below)
    out = io.BytesIO()
    frame.save(out, "JPEG", quality=QUALITY)
    return Image(out.getvalue(), frame.width, frame.height)


@lru_cache(maxsize=2)
def _bands(caption: Caption, width: int) -> tuple[PilImage.Image, PilImage.Image]:
    """Return what is laid over a frame: the answer at its top, state and figures at its bottom."""
    lines = _wrap(width, caption.pieces)
    above = PilImage.new("RGBA", (width, LINE * len(lines) + 6 if lines else 1), SHADE if lines else CLEAR)
    pen = ImageDraw.Draw(above)
    for number, line in enumerate(lines):
        for x, word, kind in line:
            pen.text((x, 3 + LINE * number), word, fill=COLOURS[kind], font=_font())
    below = PilImage.new("RGBA", (width, 2 * LINE + 4), SHADE)
    pen = ImageDraw.Draw(below)
    pen.text((6, 2), caption.state, fill=WHITE, font=_font())
    pen.text((6, 2 + LINE), caption.figures, fill=WHITE, font=_font())
    length = _font().getlength(caption.source)
    colour = MODES.get(caption.source, WHITE)
    pen.text((width - length - 6, 2), caption.source, fill=colour, font=_font())
    return above, below


def pieces_of(text: str, rounds: list[dict[str, int]]) -> tuple[Piece, ...]:
    """Return the answer in pieces: in each round what the drafts had right, then what the target added.

    Tokens are not letters, so the share of a round's letters follows its share of tokens.
    """
    total = sum(each["committed"] for each in rounds)
    found: list[Piece] = []
    done = at = 0
    for each in rounds:
        for kind, count in (
            ("accepted", min(each["accepted"], each["committed"])),
            ("corrected", each["committed"]),
        ):
            end_token = done + count
            end = len(text) if end_token >= total else round(len(text) * end_token / max(1, total))
            if end > at:
                found.append(Piece(text[at:end], kind))
                at = end
        done += each["committed"]
    if at < len(text):
        found.append(Piece(text[at:]))
    return tuple(found)


def _wrap(width: int, pieces: tuple[Piece, ...]) -> list[list[tuple[float, str, str]]]:
    """Return lines of words, each with its place and kind, broken at the frame's edge."""
    lines: list[list[tuple[float, str, str]]] = []
    x = math.inf
    words = ((word, piece.kind) for piece in pieces for word in _words(piece.text.replace("\n", " ")))
    for word, kind in words:
        length = _font().getlength(word)
        if x + length > width - 6:
            lines.append([])
            x = 6.0
        lines[-1].append((x, word, kind))
        x += length
    return lines


def _words(text: str) -> list[str]:
    found, word = [], ""
    for letter in text:
        word += letter
        if letter == " ":
            found.append(word)
            word = ""
    return [*found, word] if word else found


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SIZE)

"""A frame with the answer written over it. Pure: JPEG and words in, JPEG out; no ROS, no clock."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont, UnidentifiedImageError

from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.types import Image

WIDTH = 640
"""Wider frames are made smaller first: the overlay is to be looked at, and soon."""

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
    """Return the frame with its caption, at most `WIDTH` pixels wide. Raises ImageError."""
    try:
        with PilImage.open(io.BytesIO(image.jpeg), formats=("JPEG",)) as opened:
            opened.draft("RGB", (WIDTH, WIDTH))
            frame = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"{len(image.jpeg)} bytes that are no JPEG") from error
    if frame.width > WIDTH:
        frame = frame.resize((WIDTH, round(frame.height * WIDTH / frame.width)), PilImage.Resampling.BILINEAR)
    pen = ImageDraw.Draw(frame, "RGBA")
    _write(pen, frame.width, caption.pieces)
    bottom = frame.height - 2 * LINE - 4
    pen.rectangle((0, bottom, frame.width, frame.height), fill=(0, 0, 0, 150))
    pen.text((6, bottom + 2), caption.state, fill=WHITE, font=_font())
    pen.text((6, bottom + 2 + LINE), caption.figures, fill=WHITE, font=_font())
    length = pen.textlength(caption.source, font=_font())
    where = (frame.width - length - 6, bottom + 2)
    pen.text(where, caption.source, fill=MODES.get(caption.source, WHITE), font=_font())
    out = io.BytesIO()
    frame.save(out, "JPEG", quality=QUALITY)
    return Image(out.getvalue(), frame.width, frame.height)


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


def _write(pen: ImageDraw.ImageDraw, width: int, pieces: tuple[Piece, ...]) -> None:
    """Write coloured words over a dark band, wrapped at the frame's edge."""
    words = [(word, piece.kind) for piece in pieces for word in _words(piece.text)]
    lines: list[list[tuple[float, str, str]]] = [[]]
    x = 6.0
    for word, kind in words:
        length = pen.textlength(word, font=_font())
        if x + length > width - 6 and lines[-1]:
            lines.append([])
            x = 6.0
        lines[-1].append((x, word, kind))
        x += length
    if words:
        pen.rectangle((0, 0, width, LINE * len(lines) + 6), fill=(0, 0, 0, 150))
    for number, line in enumerate(lines):
        for x, word, kind in line:
            pen.text((x, 3 + LINE * number), word, fill=COLOURS[kind], font=_font())


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

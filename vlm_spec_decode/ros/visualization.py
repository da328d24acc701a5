"""Displays for people: markers of a plan, a frame with the answer over it, transforms.

Markers (RViz, Foxglove) show where a plan leads, its parts, and the reach of the body. The overlay is pure:
JPEG and text in, JPEG out; no ROS, no clock. Transforms on `/tf` and `/tf_static` need `tf2_msgs`, which
every ROS installation has and the wheels that CI uses do not have; without it diagnostics say so.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, TransformStamped
from nav_msgs.msg import Odometry
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont, UnidentifiedImageError
from rclpy.node import Node
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vlm_spec_decode.actions.plan import Plan
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.actions.waypoints import Pose, waypoints
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import camera_transforms, to_time, to_transform
from vlm_spec_decode.ros.middleware import LATCHED

HULL_M = (0.70, 0.31, 0.40)
FOOTPRINT_Z_M = 0.02
LIFETIME_S = 30


def plan_markers(plan: Plan, start: Pose, stamp_s: float, frame: str) -> MarkerArray:
    """Return the plan's path, a label for each action and the body where it ends.

    Green is verified, orange is the draft alone. The first marker deletes those of the previous plan.
    """
    wipe = Marker(action=Marker.DELETEALL, ns="plan")
    wipe.header.frame_id = frame
    steps = waypoints(start, plan.actions)
    colour = ColorRGBA(r=0.2, g=0.9, b=0.3, a=0.9) if plan.verified else ColorRGBA(r=1.0, g=0.6, b=0.1, a=0.9)
    found = [wipe]

    def marker(kind: int, number: int, pose: Pose, z_m: float) -> Marker:
        made = Marker(type=kind, ns="plan", id=number, color=colour, lifetime=Duration(sec=LIFETIME_S))
        made.header.frame_id, made.header.stamp = frame, to_time(stamp_s)
        made.pose.position.x, made.pose.position.y, made.pose.position.z = pose[0], pose[1], z_m
        made.pose.orientation.w, made.pose.orientation.z = math.cos(pose[2] / 2), math.sin(pose[2] / 2)
        found.append(made)
        return made

    line = marker(Marker.LINE_STRIP, 0, (0.0, 0.0, 0.0), FOOTPRINT_Z_M)
    line.points = [Point(x=x, y=y) for x, y, _ in (start, *(pose for pose, _ in steps))]
    line.scale.x = 0.04
    for number, (pose, action) in enumerate(steps, 1):
        label = marker(Marker.TEXT_VIEW_FACING, number, pose, 0.5 + 0.12 * (number % 3))
        label.text, label.scale.z = format_action(action), 0.12
    if steps:
        body = marker(Marker.CUBE, len(steps) + 1, steps[-1][0], HULL_M[2] / 2)
        body.scale.x, body.scale.y, body.scale.z = HULL_M
        body.color = ColorRGBA(r=colour.r, g=colour.g, b=colour.b, a=0.25)
    return MarkerArray(markers=found)


def body_marker(stamp_s: float, frame: str, stop_m: float) -> MarkerArray:
    """Return the body as a box, and the zone in front of it in which it stops for obstacles."""
    box = Marker(type=Marker.CUBE, ns="body", id=0, color=ColorRGBA(r=0.6, g=0.6, b=0.65, a=0.6))
    box.scale.x, box.scale.y, box.scale.z = HULL_M
    zone = Marker(type=Marker.CUBE, ns="body", id=1, color=ColorRGBA(r=1.0, g=0.2, b=0.2, a=0.35))
    zone.scale.x, zone.scale.y, zone.scale.z = stop_m, HULL_M[1], 0.02
    zone.pose.position.x, zone.pose.position.z = HULL_M[0] / 2 + stop_m / 2, -0.3
    for each in (box, zone):
        each.header.frame_id, each.header.stamp = frame, to_time(stamp_s)
    return MarkerArray(markers=[box, zone])


WIDTH = 640
"""Frames are halved while they stay at least this wide, so that the overlay is drawn quickly."""

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
class AnswerPiece:
    """Part of an answer and how it was decoded, one of `COLOURS`."""

    text: str
    kind: str = "committed"


@dataclass(frozen=True, slots=True)
class Caption:
    """The text of the overlay: answer above, state and figures below, source of commands on the right."""

    pieces: tuple[AnswerPiece, ...] = ()
    state: str = ""
    figures: str = ""
    source: str = "none"


def draw(image: Image, caption: Caption) -> Image:
    """Return the frame with its caption, less than twice `WIDTH` wide. Raises ImageError.

    Called for every frame, so the JPEG is decoded at the size that is shown, which its own scaling makes
    cheap, and the text is drawn once and pasted on each frame until it changes.
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
    """Return the images pasted on a frame: the answer at its top, state and figures at its bottom."""
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


def pieces_of(text: str, rounds: list[dict[str, int]]) -> tuple[AnswerPiece, ...]:
    """Return the answer in pieces: for each round the accepted draft, then the target's own token.

    The boundaries are estimated: a round's share of the letters is its share of the tokens.
    """
    total = sum(each["committed"] for each in rounds)
    found: list[AnswerPiece] = []
    done = at = 0
    for each in rounds:
        for kind, count in (
            ("accepted", min(each["accepted"], each["committed"])),
            ("corrected", each["committed"]),
        ):
            end_token = done + count
            end = len(text) if end_token >= total else round(len(text) * end_token / max(1, total))
            if end > at:
                found.append(AnswerPiece(text[at:end], kind))
                at = end
        done += each["committed"]
    if at < len(text):
        found.append(AnswerPiece(text[at:]))
    return tuple(found)


def _wrap(width: int, pieces: tuple[AnswerPiece, ...]) -> list[list[tuple[float, str, str]]]:
    """Return lines of words, each with its position and kind, wrapped at the frame's edge."""
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
    for character in text:
        word += character
        if character == " ":
            found.append(word)
            word = ""
    return [*found, word] if word else found


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(SIZE)


MISSING = "tf2_msgs is not installed: /tf and /tf_static are not published"


@dataclass(frozen=True, slots=True)
class FrameNames:
    """Names of the coordinate frames."""

    NAMES: ClassVar[tuple[str, ...]] = ("odom", "base", "camera", "optical")

    odom: str = "odom"
    base: str = "base_link"
    camera: str = "front_camera"
    optical: str = "front_camera_optical"


class Transforms:
    """Publishes odom → base → camera → optical."""

    def __init__(self, node: Node, frames: FrameNames) -> None:
        self._frames = frames
        self._message = _message_type()
        if self._message is None:
            node.get_logger().warning(MISSING)
            return
        self._moving = node.create_publisher(self._message, "/tf", 100)
        self._fixed = node.create_publisher(self._message, "/tf_static", LATCHED)

    def publish(self, odometry: Odometry) -> None:
        """Publish the body's pose."""
        self._send("_moving", [to_transform(odometry)])

    def publish_mount(self, stamp_s: float, pitch_rad: float) -> None:
        """Publish the camera's pose on the body, latched for late subscribers."""
        frames = self._frames
        self._send(
            "_fixed", camera_transforms(stamp_s, frames.base, frames.camera, frames.optical, pitch_rad)
        )

    def health(self, name: str) -> diagnostics.Health:
        """Return the health of the transforms: whether they are published."""
        if self._message is None:
            return diagnostics.Health(f"{name}: tf", diagnostics.WARN, MISSING)
        return diagnostics.Health(f"{name}: tf", diagnostics.OK, "published")

    def _send(self, publisher: str, transforms: list[TransformStamped]) -> None:
        if self._message is not None:
            getattr(self, publisher).publish(self._message(transforms=transforms))


def _message_type() -> Any | None:
    if find_spec("tf2_msgs") is None:
        return None
    from tf2_msgs.msg import TFMessage

    return TFMessage

"""Displays for people: markers of a plan and of the body, a frame with the answer over it, transforms.

Markers (RViz, Foxglove) show where a plan leads, its parts, and around the body its hull, obstacles, the
mission's status and the e-stop. The overlay is pure: JPEG and text in, JPEG out; no ROS, no clock. Transforms
on `/tf` and `/tf_static` need `tf2_msgs`, which every ROS installation has; without it diagnostics say so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from textwrap import wrap
from typing import Any

from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, TransformStamped
from nav_msgs.msg import Odometry
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont, UnidentifiedImageError
from rclpy.node import Node
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from vlm_spec_decode.actions.plan import Plan, Pose, waypoints
from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.core.images import drawable
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.robot.registry import robot_kind
from vlm_spec_decode.ros import diagnostics
from vlm_spec_decode.ros.convert import camera_transforms, to_transform
from vlm_spec_decode.ros.frames import FrameNames
from vlm_spec_decode.ros.middleware import LATCHED

HULL = robot_kind("go2").spec.hull
FOOTPRINT_Z_M = 0.02
LIFETIME_S = 3
"""Of what is drawn around the body once a second: it vanishes with the node. A plan stays until the next."""

LABEL_M, ALARM_M = 0.12, 0.16
STATUS_Z_M, STATUS_LETTERS, STATUS_LINES = 0.9, 24, 3
"""Where the status begins, above the labels; its size."""

RANGE_SHOWN_M = 3.0
"""Free distances beyond this are not drawn."""

LINE_HEIGHT, SPACE_WIDTH = 2.0, 0.55
"""Of RViz's font, in heights of a capital letter, which is what a marker's `scale.z` gives."""

SIDES = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Directions of front, left, rear and right in the body's frame."""

VERIFIED, UNVERIFIED = ColorRGBA(r=0.2, g=0.9, b=0.3, a=0.9), ColorRGBA(r=1.0, g=0.6, b=0.1, a=0.9)
OVER = ColorRGBA(r=0.6, g=0.6, b=0.6, a=0.6)
ALARM, NEAR, FAR = (
    ColorRGBA(r=1.0, g=0.2, b=0.2, a=0.8),
    ColorRGBA(r=1.0, g=0.6, b=0.1, a=0.7),
    ColorRGBA(r=0.4, g=0.6, b=0.9, a=0.4),
)


def marker(kind: int, name: str, number: int, frame: str, **fields: Any) -> Marker:
    """Return a marker in a frame at the newest time of its transform.

    Its stamp is 0 and `frame_locked` set: with any other stamp RViz looks for the transform of that moment,
    which has not arrived yet when the marker has, and draws nothing.
    """
    made = Marker(type=kind, ns=name, id=number, frame_locked=True, **fields)
    made.header.frame_id = frame
    return made


def words(name: str, number: int, frame: str, text: str, height_m: float, colour: ColorRGBA) -> Marker:
    """Return a text that faces the viewer; its capital letters are `height_m` high.

    Without a width RViz makes a space as wide as in a text of 1 m: a sentence reaches across the room.
    """
    made = marker(Marker.TEXT_VIEW_FACING, name, number, frame, text=drawable(text), color=colour)
    made.scale.x, made.scale.z = SPACE_WIDTH * height_m, height_m
    return made


def deleted(name: str, number: int, frame: str) -> Marker:
    """Return the marker that deletes the one of this namespace and id, where it is drawn."""
    return marker(Marker.CUBE, name, number, frame, action=Marker.DELETE)


def wiped() -> MarkerArray:
    """Return the array that deletes all markers of its topic; it has to stand alone.

    RViz takes a namespace and id that an array holds twice, deleted and drawn say, for an error.
    """
    return MarkerArray(markers=[Marker(action=Marker.DELETEALL)])


def plan_markers(
    plan: Plan, start: Pose, frame: str, *, is_over: bool = False, labels: int = 0
) -> MarkerArray:
    """Return the plan's path, a label for each action and the body where it ends.

    Green is verified, orange and the word "draft" is the draft alone, grey is over. `labels` is the largest
    number of labels drawn so far: those that this plan has not are deleted. So one message replaces whatever
    a viewer shows, and the one that a latched topic keeps is enough for a late viewer.
    """
    steps = waypoints(start, plan.actions)
    colour = OVER if is_over else VERIFIED if plan.verified else UNVERIFIED
    line = marker(Marker.LINE_STRIP, "plan", 0, frame, color=colour)
    line.points = [Point(x=x, y=y, z=FOOTPRINT_Z_M) for x, y, _ in (start, *(pose for pose, _ in steps))]
    line.scale.x, line.pose.orientation.w = 0.05, 1.0
    found = [line]
    for number, (pose, action) in enumerate(steps):
        text = f"{'' if plan.verified else 'draft: '}{format_action(action)}"
        label = words("actions", number, frame, text, LABEL_M, colour)
        found.append(_placed(label, pose, 0.5 + LABEL_M * LINE_HEIGHT * (number % 3)))
    if steps:
        body = marker(Marker.CUBE, "end", 0, frame, color=_faded(colour, 0.25))
        _sized(body, HULL.length_m, HULL.width_m, HULL.height_m)
        found.append(_placed(body, steps[-1][0], HULL.height_m / 2))
    else:
        found.append(deleted("end", 0, frame))
    found += [deleted("actions", number, frame) for number in range(len(steps), labels)]
    return MarkerArray(markers=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyView:
    """What is drawn around the body: free metres on its four sides, the mission in words, who commands."""

    stop_m: float
    ranges_m: tuple[float, ...] = (math.inf,) * 4
    status: str = ""
    source: str = "none"


def body_markers(view: BodyView, frame: str) -> MarkerArray:
    """Return the hull, the zone in which it stops for obstacles, obstacles, the status and the e-stop."""
    life = Duration(sec=LIFETIME_S)
    is_stopped = view.source == "estop"
    box = marker(Marker.CUBE, "hull", 0, frame, color=_faded(ALARM if is_stopped else OVER, 0.2))
    box.pose.orientation.w = 1.0
    _sized(box, HULL.length_m, HULL.width_m, HULL.height_m)
    zone = marker(Marker.CUBE, "stop zone", 0, frame, color=_faded(ALARM, 0.35))
    _sized(zone, view.stop_m, HULL.width_m, 0.02)
    _placed(zone, (HULL.length_m / 2 + view.stop_m / 2, 0.0, 0.0), -HULL.height_m / 2 - 0.08)
    # Few short lines, because letters that can be read soon reach out of the view; the overlay has all words.
    head, status = ["E-STOP"] if is_stopped else [], drawable(view.status)
    lines = head + wrap(status, STATUS_LETTERS, max_lines=STATUS_LINES - len(head), placeholder=" ...")
    text = "\n".join(lines) or " "
    height_m = ALARM_M if is_stopped else LABEL_M
    sign = words("status", 0, frame, text, height_m, _faded(ALARM if is_stopped else FAR, 1.0))
    # Its lines are drawn about its place, and its lowest one is not to sink into the labels.
    place_m = STATUS_Z_M + height_m * LINE_HEIGHT * max(1, len(lines)) / 2
    found = [box, zone, _placed(sign, (0.0, 0.0, 0.0), place_m), *_range_markers(view, frame)]
    for each in found:
        each.lifetime = life
    return MarkerArray(markers=found)


def _range_markers(view: BodyView, frame: str) -> list[Marker]:
    """Return a wall with its distance on each side with an obstacle; a side without one is deleted."""
    found: list[Marker] = []
    half = HULL.half_m
    for side, ((x, y), free_m) in enumerate(zip(SIDES, view.ranges_m, strict=True)):
        if not free_m <= RANGE_SHOWN_M:
            found += [deleted("obstacles", side, frame), deleted("distances", side, frame)]
            continue
        colour = ALARM if free_m < view.stop_m else NEAR if free_m < 2 * view.stop_m else FAR
        away_m = free_m + abs(x) * half[0] + abs(y) * half[1]
        place = (x * away_m, y * away_m, math.atan2(y, x))
        wall = marker(Marker.CUBE, "obstacles", side, frame, color=colour)
        _sized(wall, 0.02, 2 * half[1] if x else 2 * half[0], 0.3)
        metres = words("distances", side, frame, f"{free_m:.2f} m", 0.1, _faded(colour, 1.0))
        found += [_placed(wall, place, 0.0), _placed(metres, place, 0.25)]
    return found


def _placed(made: Marker, pose: Pose, z_m: float) -> Marker:
    """Put a marker at a pose on the floor and a height; return it."""
    made.pose.position.x, made.pose.position.y, made.pose.position.z = pose[0], pose[1], z_m
    made.pose.orientation.w, made.pose.orientation.z = math.cos(pose[2] / 2), math.sin(pose[2] / 2)
    return made


def _sized(made: Marker, x_m: float, y_m: float, z_m: float) -> None:
    made.scale.x, made.scale.y, made.scale.z = x_m, y_m, z_m


def _faded(colour: ColorRGBA, alpha: float) -> ColorRGBA:
    return ColorRGBA(r=colour.r, g=colour.g, b=colour.b, a=alpha)


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
    length = _font().getlength(caption.source)
    pen.text((6, 2), _cut(drawable(caption.state), width - length - 24), fill=WHITE, font=_font())
    pen.text((6, 2 + LINE), caption.figures, fill=WHITE, font=_font())
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
    texts = ((drawable(piece.text.replace("\n", " ")), piece.kind) for piece in pieces)
    for word, kind in ((word, kind) for text, kind in texts for word in _words(text)):
        length = _font().getlength(word)
        if x + length > width - 6:
            lines.append([])
            x = 6.0
        lines[-1].append((x, word, kind))
        x += length
    return lines


def _cut(text: str, width: float) -> str:
    """Return as much of a text as fits into the width, and dots for the rest."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


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


class Transforms:
    """Publishes odom → base → camera → optical, and what else hangs on the base."""

    def __init__(self, node: Node, frames: FrameNames) -> None:
        self._frames = frames
        self._message = _message_type()
        if self._message is None:
            node.get_logger().warning(MISSING)
            return
        self._moving = node.create_publisher(self._message, "/tf", 100)
        self._fixed = node.create_publisher(self._message, "/tf_static", LATCHED)

    @property
    def is_watched(self) -> bool:
        """Whether somebody listens to `/tf`."""
        return self._message is not None and bool(self._moving.get_subscription_count())

    def publish(self, odometry: Odometry, others: Sequence[TransformStamped] = ()) -> None:
        """Publish the body's pose, and other transforms that move."""
        self._send("_moving", [to_transform(odometry), *others])

    def publish_mount(
        self, stamp_s: float, pitch_rad: float, others: Sequence[TransformStamped] = ()
    ) -> None:
        """Publish the camera's pose on the body, and others that never move, latched for late subscribers.

        Once and together: the latched topic keeps one message.
        """
        frames = self._frames
        mount = camera_transforms(stamp_s, frames.base, frames.camera, frames.optical, pitch_rad)
        self._send("_fixed", [*mount, *others])

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

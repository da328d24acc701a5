"""Turns the messages of a bag into events: frames, instructions, answers, motion.

Topics are found by type, or named. Camera messages of any robot are converted to the form that is uploaded:
small upright JPEGs. `core.images` recognises the bytes of a message; here pictures are reduced, and checked
without decoding until they are needed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from PIL import Image as PilImage

from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.bags.source import BagSource, Record
from vlm_spec_decode.core import pixels
from vlm_spec_decode.core.errors import ActionParseError, BagError, ImageError
from vlm_spec_decode.core.images import check_compressed, check_raw, is_video
from vlm_spec_decode.core.pixels import message_bytes
from vlm_spec_decode.core.types import MAX_SIDE_PX, UNKNOWN_LIMITS, Image, ImageLimits
from vlm_spec_decode.edge.image_upload import (
    INSTALL,
    UPLINK_WIDTH_PX,
    VIDEO_KINDS,
    VideoFrame,
    VideoTopic,
    WidthOf,
    for_target,
    for_uplink_again,
    has_video,
    small_jpeg,
)
from vlm_spec_decode.mission.messages import answer_from_message
from vlm_spec_decode.mission.reports import AnswerReport

NANOSECONDS = 1_000_000_000
COMPRESSED, RAW = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"
STRING, ODOMETRY = "std_msgs/msg/String", "nav_msgs/msg/Odometry"
ANSWER = "vlm_spec_decode_msgs/msg/Answer"
TWIST, STAMPED_TWIST = "geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"
PICTURES = (COMPRESSED, RAW, *VIDEO_KINDS)
MOTION = (ODOMETRY, STAMPED_TWIST, TWIST)
"""Types of motion topics, measured before commanded."""

INSTRUCTIONS, LABELS = "vlm/instruction", "vlm/label"
ANSWERS = {ANSWER: "vlm/answer/typed", STRING: "vlm/answer"}
"""Suffixes of this package's topics; a namespace may precede them. Older recordings have no typed answers."""


@dataclass(frozen=True, slots=True)
class SentImage:
    """The image of an answer: its width in pixels, and the SHA-256 of its JPEG, b"" if unknown."""

    width: int
    digest: bytes = b""

    def width_of(self, width: int, height: int) -> int:  # noqa: ARG002
        """Return the width of the image, whatever the frame's was."""
        return self.width


@dataclass(frozen=True, slots=True)
class Frame:
    """A camera image; `stamp_s` is its capture time, or the recorder's time if the camera set none.

    `data` is the serialised message; only frames with a question are decoded. Video frames are decoded
    already, because each needs the earlier ones: `message` is then the picture.
    """

    at_ns: int
    stamp_s: float
    frame_id: str
    kind: str
    data: bytes = field(repr=False)
    message: Any = field(compare=False, repr=False)

    @property
    def num_bytes(self) -> int:
        """Its memory in bytes."""
        return self.message.num_bytes if isinstance(self.message, VideoFrame) else len(self.data)

    @property
    def image(self) -> Image:
        """Decode the picture, reduced as for a target of which nothing is known. Raises ImageError."""
        return self.image_for(UNKNOWN_LIMITS)

    def image_for(self, limits: ImageLimits, sent: SentImage | None = None) -> Image:
        """Decode the picture, reduced as it was sent; without that, to what a target can use.

        Raises ImageError.
        """
        width_of = limits.useful_width if sent is None else sent.width_of
        if isinstance(self.message, VideoFrame):
            return self.message.to_uplink(width_of)
        if self.kind != COMPRESSED:
            return raw_jpeg(self.message, width_of)
        return compressed_jpeg(self.message, width_of, sent.digest if sent else b"")


@dataclass(frozen=True, slots=True)
class Instructed:
    """An instruction to the robot."""

    at_ns: int
    text: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The body's motion, measured or commanded: m/s forward and left, rad/s to the left."""

    at_ns: int
    vx_mps: float
    vy_mps: float
    vyaw_radps: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A recorded answer of this package; see `mission.reports.AnswerReport`.

    `sent` is None in recordings that do not tell; images were `UPLINK_WIDTH_PX` wide then. `start` is the
    motion that began on the draft and what the cloud said of it, "" without one.
    """

    at_ns: int
    stamp_s: float
    instruction: str
    history: tuple[str, ...]
    actions: tuple[str, ...]
    token_ids: tuple[int, ...]
    sent: SentImage | None = None
    start: str = ""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The correct answer to the frame of this stamp, by a person or a simulator.

    `text` is a whole answer if there is one, else "".
    """

    at_ns: int
    stamp_s: float
    instruction: str
    history: tuple[str, ...]
    actions: tuple[str, ...]
    text: str = ""


Event: TypeAlias = Frame | Instructed | Moved | Answered | Labelled


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics to read; empty: found by type."""

    image: str = ""
    instruction: str = ""
    motion: str = ""

    def choose(self, found: Mapping[str, str]) -> Mapping[str, str]:
        """Return topic to role. Raises BagError if a named topic is missing, or there is no image topic."""
        chosen = {
            self._one("image", self.image, found, PICTURES): "frame",
            self._one("instruction", self.instruction, found, (STRING,), INSTRUCTIONS): "instruction",
            self._one("motion", self.motion, found, MOTION): "motion",
            self._answer(found): "answer",
            self._one("label", "", found, (STRING,), LABELS): "label",
        }
        chosen.pop("", None)
        if "frame" not in chosen.values():
            kinds = ", ".join(sorted(set(found.values()))) or "nothing"
            raise BagError(f"no topic shows camera images; the bag holds {kinds}")
        topic = next(topic for topic, role in chosen.items() if role == "frame")
        if found[topic] in VIDEO_KINDS and not has_video():
            raise BagError(f"{topic} is H.264 video ({found[topic]}), which needs PyAV: {INSTALL}")
        return chosen

    @classmethod
    def _answer(cls, found: Mapping[str, str]) -> str:
        """Return the topic of the answers: the typed one where there is one."""
        topics = (cls._one("answer", "", found, (kind,), ending) for kind, ending in ANSWERS.items())
        return next(filter(None, topics), "")

    @staticmethod
    def _one(
        role: str, named: str, found: Mapping[str, str], kinds: tuple[str, ...], ending: str = ""
    ) -> str:
        if named:
            if named not in found:
                raise BagError(f"no {role} topic {named!r}; there are {', '.join(sorted(found))}")
            return named
        for kind in kinds:
            fits = sorted(t for t, k in found.items() if k == kind and t.endswith(ending))
            if kind in PICTURES:
                # Depth and disparity pictures cannot be used; a front or colour camera is preferred.
                fits = [t for t in fits if "depth" not in t.lower() and "disparity" not in t.lower()]
                fits.sort(key=lambda t: not any(word in t.lower() for word in ("front", "color", "rgb")))
            if fits:
                return fits[0]
        return ""


@dataclass(slots=True)
class Events:
    """The events of a bag in its order; `faults` counts skipped messages by name.

    While `skips_motion` is set by the reader, motion messages are skipped, which saves their decoding.
    """

    source: BagSource
    topics: Mapping[str, str]
    faults: Counter[str] = field(default_factory=Counter)
    skips_motion: bool = False
    _videos: dict[str, VideoTopic] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Event]:
        try:
            yield from self._events()
        finally:
            self.faults += self.source.faults

    def _events(self) -> Iterator[Event]:
        last_ns = 0
        for record in self.source.records(self.topics):
            if record.at_ns < last_ns:
                self.faults["time going backwards"] += 1
            last_ns = max(last_ns, record.at_ns)
            if self.skips_motion and self.topics[record.topic] == "motion":
                continue
            message = self.source.message(record)
            if message is None:
                continue
            try:
                event = self._event(self.topics[record.topic], record, message)
            except ImageError as error:
                self.faults[f"{record.topic}: {error}"] += 1
            except (ActionParseError, AttributeError, KeyError, TypeError, ValueError) as error:
                self.faults[f"{record.topic}: {record.kind} not as expected ({type(error).__name__})"] += 1
            else:
                if event is not None:
                    yield event

    def _event(self, role: str, record: Record, message: Any) -> Event | None:
        if role != "frame":
            return _event(role, record, message)
        kind, at_ns = record.kind, record.at_ns
        shown = message
        is_piece = kind == COMPRESSED and is_video(bytes(message.data[:4])) and has_video()
        if kind in VIDEO_KINDS or is_piece:
            if record.topic not in self._videos:
                self._videos[record.topic] = VideoTopic(kind)
            shown = self._videos[record.topic].decode(message)
        elif kind == COMPRESSED:
            check_compressed(message)
        else:
            check_raw(message)
        if shown is None:
            return None
        header = getattr(message, "header", message)
        stamp_s, frame_id = _stamp_s(header), str(getattr(header, "frame_id", ""))
        return Frame(at_ns, stamp_s or at_ns / NANOSECONDS, frame_id, kind, record.data, shown)


def _event(role: str, record: Record, message: Any) -> Event | None:
    kind, at_ns = record.kind, record.at_ns
    if role == "motion":
        return _motion(kind, message, at_ns)
    if role == "answer":
        if kind == ANSWER:
            return _typed_answer(answer_from_message(message), at_ns)
        return _answer(json.loads(message.data), at_ns)
    if role == "label":
        return _label(json.loads(message.data), at_ns)
    text = str(message.data).strip()
    return Instructed(at_ns, text) if text else None


def _stamp_s(header: Any) -> float:
    """Return the time in a header, or in a message that is a header itself; 0 without one."""
    stamp = getattr(header, "stamp", None) or getattr(header, "timestamp", None)
    return 0.0 if stamp is None else float(stamp.sec + stamp.nanosec / NANOSECONDS)


def _motion(kind: str, message: Any, at_ns: int) -> Moved | None:
    twist = message.twist.twist if kind == ODOMETRY else message.twist if kind == STAMPED_TWIST else message
    speeds = (float(twist.linear.x), float(twist.linear.y), float(twist.angular.z))
    return Moved(at_ns, *speeds) if all(map(math.isfinite, speeds)) else None


def _typed_answer(report: AnswerReport, at_ns: int) -> Answered | None:
    if not report.final:
        return None
    start = report.start
    return Answered(
        at_ns,
        report.stamp_s,
        report.instruction,
        report.history,
        tuple(map(format_action, report.actions)),
        report.token_ids,
        _sent_image({"image_width": report.image_width, "image_digest": report.image_digest.hex()}),
        f"{start.action}: {start.outcome}" if start else "",
    )


def _answer(data: Mapping[str, Any], at_ns: int) -> Answered:
    return Answered(
        at_ns,
        float(data["stamp_s"]),
        str(data["instruction"]),
        tuple(map(str, data["history"])),
        tuple(map(str, data["actions"])),
        tuple(map(int, data.get("token_ids", ()))),
        _sent_image(data),
        _start(data),
    )


def _start(data: Mapping[str, Any]) -> str:
    """Return the start on the draft of an answer in words; "" for an answer without one."""
    start = data.get("start") or {}
    return f"{start['action']}: {start['outcome']}" if {"action", "outcome"} <= set(start) else ""


def _sent_image(data: Mapping[str, Any]) -> SentImage:
    """Return which picture an answer was about; one of a size that no picture has was of the usual width."""
    width = int(data.get("image_width", 0))
    is_width = 0 < width <= MAX_SIDE_PX
    digest = bytes.fromhex(data.get("image_digest", ""))
    return SentImage(width if is_width else UPLINK_WIDTH_PX, digest)


def _label(data: Mapping[str, Any], at_ns: int) -> Labelled:
    return Labelled(
        at_ns,
        float(data["stamp_s"]),
        str(data["instruction"]),
        tuple(map(str, data.get("history", ()))),
        tuple(map(str, data["actions"])),
        str(data.get("text", "")),
    )


def compressed_jpeg(message: Any, width_of: WidthOf, digest: bytes = b"") -> Image:
    """Return the frame of a sensor_msgs/CompressedImage, as the JPEG with this digest. Raises ImageError."""
    check_compressed(message)
    data = message_bytes(message.data)
    image = for_target(data, width_of)
    return for_uplink_again(data, image.width, digest) if digest else image


def raw_jpeg(message: Any, width_of: WidthOf) -> Image:
    """Return the frame of a sensor_msgs/Image. Raises ImageError for an encoding that is no picture."""
    if pixels.is_encoded(message):
        check_raw(message)
        return for_target(message_bytes(message.data), width_of)
    picture = PilImage.fromarray(pixels.to_rgb(message))
    return small_jpeg(picture, width_of(*picture.size))

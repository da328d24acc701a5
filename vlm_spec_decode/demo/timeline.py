"""What a mission's time went into, moving, waiting, uploading and answering, look by look; a picture of it.

The robot waits whenever it stands before the mission's end: without a plan, or between two actions. Answering
and uploading are seen from the edge, and overlap with moving where actions are carried out while the rest is
still being said. An upload is not measured but follows from the picture's bytes and the emulated link.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from vlm_spec_decode.core.images import drawable
from vlm_spec_decode.core.profiles import LinkProfile

MOVING, WAITING, UPLOADING, ANSWERING = "moving", "waiting", "uploading", "answering"
COLOURS = {MOVING: "#54a24b", WAITING: "#f0a8a0", UPLOADING: "#f58518", ANSWERING: "#4c78a8"}
LANES = {"robot": (MOVING, WAITING), "answer": (UPLOADING, ANSWERING)}


@dataclass(frozen=True, slots=True)
class Span:
    """What one look's time went into from `start_s` to `end_s`, in seconds since the instruction."""

    kind: str
    look: int
    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        """Seconds."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Timeline:
    """The spans of a mission that took `total_s`; those of moving and waiting add up to it."""

    spans: tuple[Span, ...]
    total_s: float

    def seconds(self, kind: str) -> float:
        """Return the sum of all spans of one kind."""
        return sum(span.length_s for span in self.spans if span.kind == kind)

    @property
    def waited_share(self) -> float:
        """Share of the mission that the robot stood and waited; 0 for one that took no time."""
        return self.seconds(WAITING) / self.total_s if self.total_s else 0.0

    @property
    def looks(self) -> int:
        """How many frames were asked about."""
        return len({span.look for span in self.spans if span.kind in LANES["answer"]})

    def document(self) -> dict[str, Any]:
        """Return totals and spans as plain data, seconds with three digits."""
        return {
            "total_s": round(self.total_s, 3),
            "moved_s": round(self.seconds(MOVING), 3),
            "waited_s": round(self.seconds(WAITING), 3),
            "waited_share": round(self.waited_share, 4),
            "uploading_s": round(self.seconds(UPLOADING), 3),
            "answering_s": round(self.seconds(ANSWERING), 3),
            "looks": self.looks,
            "spans": [
                {
                    "kind": span.kind,
                    "look": span.look,
                    "start_s": round(span.start_s, 3),
                    "end_s": round(span.end_s, 3),
                }
                for span in self.spans
            ],
        }

    def summary(self) -> str:
        """Return the totals in words."""
        moved_s, waited_s = self.seconds(MOVING), self.seconds(WAITING)
        looks = f"{self.looks} look{'' if self.looks == 1 else 's'}"
        times = f"moved {moved_s:.1f} s, waited {waited_s:.1f} s ({self.waited_share:.0%})"
        return f"{self.total_s:.1f} s, {times}, {looks}"


def upload_s(num_bytes: int, link: LinkProfile | None) -> float:
    """Return how long a picture travels to the cloud: its bytes at the link's rate, and half a round trip.

    Jitter, loss and gaps are left out; without an emulated link 0.
    """
    if link is None or not num_bytes:
        return 0.0
    return 8 * num_bytes / (link.up_mbps * 1e6) + link.rtt_ms / 2000


@dataclass(slots=True)
class _Look:
    """A frame that was asked about; `answered_s` None: the answer was broken off."""

    number: int
    began_s: float
    answered_s: float | None = None
    image_bytes: int = 0


@dataclass(slots=True)
class TimelineRecorder:
    """Notes what the mission's messages say, at the times of their arrival in seconds of one clock."""

    _looks: list[_Look] = field(default_factory=list)
    _moves: list[tuple[float, bool]] = field(default_factory=list)

    def look(self, number: int, now_s: float) -> None:
        """The answer to look `number` begins."""
        self._looks.append(_Look(number, now_s))

    def answered(self, number: int, now_s: float) -> None:
        """The answer to a look is complete."""
        for look in self._newest(number):
            look.answered_s = now_s

    def sent(self, number: int, image_bytes: int) -> None:
        """The picture of a look had so many bytes on the link."""
        for look in self._newest(number):
            look.image_bytes = image_bytes

    def robot(self, is_moving: bool, now_s: float) -> None:
        """The executor says that it carries out an action, or that it does not."""
        if not self._moves or self._moves[-1][1] != is_moving:
            self._moves.append((now_s, is_moving))

    def timeline(self, given_s: float, ended_s: float, link: LinkProfile | None = None) -> Timeline:
        """Return what the time from the instruction to the mission's end went into."""
        cuts = sorted(
            {given_s, *(look.began_s for look in self._looks), *(s for s, _ in self._moves), ended_s}
        )
        cuts = [cut for cut in cuts if given_s <= cut <= ended_s]
        robot: list[Span] = []
        for start_s, end_s in pairwise(cuts):
            kind, look = MOVING if self._is_moving(start_s) else WAITING, self._look_at(start_s)
            robot.append(Span(kind, look, start_s - given_s, end_s - given_s))
        return Timeline((*robot, *self._answers(given_s, ended_s, link)), ended_s - given_s)

    def _newest(self, number: int) -> list[_Look]:
        """Return the newest look of this number, none if there is no such look."""
        return [look for look in self._looks if look.number == number][-1:]

    def _is_moving(self, at_s: float) -> bool:
        return next((moving for since_s, moving in reversed(self._moves) if since_s <= at_s), False)

    def _look_at(self, at_s: float) -> int:
        return next((look.number for look in reversed(self._looks) if look.began_s <= at_s), 0)

    def _answers(self, given_s: float, ended_s: float, link: LinkProfile | None) -> Iterable[Span]:
        """Yield the spans of each look's answer; one that was broken off ends with the next look."""
        following_s = [*(look.began_s for look in self._looks[1:]), ended_s]
        for look, next_s in zip(self._looks, following_s, strict=False):
            end_s = min(next_s if look.answered_s is None else look.answered_s, ended_s)
            sent_s = min(end_s, look.began_s + upload_s(look.image_bytes, link))
            if sent_s > look.began_s:
                yield Span(UPLOADING, look.number, look.began_s - given_s, sent_s - given_s)
            if end_s > sent_s:
                yield Span(ANSWERING, look.number, sent_s - given_s, end_s - given_s)


WIDTH_PX, LEFT_PX, RIGHT_PX = 1200, 90, 30
LANE_PX, GAP_PX, TITLE_PX, LINE_PX = 34, 8, 52, 24
PANEL_PX = TITLE_PX + 2 * (LANE_PX + GAP_PX) + 14
LEAST_PX = 2
"""Width beyond its left edge at which the shortest span, an upload say, can still be seen."""

TICKS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
MOST_TICKS = 14
INK, PALE = "#222222", "#cccccc"


def save_timelines(title: str, runs: Mapping[str, Timeline], file: Path) -> None:
    """Write the timelines of named runs as one PNG, one above the other on the same scale of seconds."""
    height = LINE_PX + len(runs) * PANEL_PX + 3 * LINE_PX + 10
    page = PilImage.new("RGB", (WIDTH_PX, height), "white")
    draw = ImageDraw.Draw(page)
    longest_s = max((line.total_s for line in runs.values()), default=0.0) or 1.0
    font, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    draw.text((10, 6), drawable(title), fill=INK, font=font)
    bottom = LINE_PX + len(runs) * PANEL_PX
    for at_s in _ticks(longest_s):
        x = _x(at_s, longest_s)
        draw.line((x, LINE_PX + TITLE_PX, x, bottom), fill=PALE)
        draw.text((x, bottom + 4), f"{at_s:g} s", fill=INK, font=small, anchor="ma")
    for index, (name, line) in enumerate(runs.items()):
        _panel(draw, name, line, LINE_PX + index * PANEL_PX, longest_s)
    x = LEFT_PX
    for kind, colour in COLOURS.items():
        draw.rectangle((x, bottom + 34, x + 16, bottom + 50), fill=colour)
        draw.text((x + 22, bottom + 32), kind, fill=INK, font=font)
        x += 50 + round(font.getlength(kind))
    draw.text((x, bottom + 34), "numbers: looks", fill=INK, font=small)
    page.save(file)


def _panel(draw: ImageDraw.ImageDraw, name: str, line: Timeline, top: int, longest_s: float) -> None:
    """Draw one run: its totals, the looks' numbers, the robot's lane and the answer's."""
    font, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    draw.text((10, top + 10), f"{name}: {line.summary()}", fill=INK, font=font)
    for row, (lane, kinds) in enumerate(LANES.items()):
        y = top + TITLE_PX + row * (LANE_PX + GAP_PX)
        draw.text((10, y + LANE_PX // 2), lane, fill=INK, font=font, anchor="lm")
        # The first kind of a lane last: a short upload lies over the answer that follows it.
        for kind in reversed(kinds):
            for span in (each for each in line.spans if each.kind == kind):
                left, right = _x(span.start_s, longest_s), _x(span.end_s, longest_s)
                draw.rectangle((left, y, max(left + LEAST_PX, right), y + LANE_PX), fill=COLOURS[kind])
    for number, start_s in _first_starts(line).items():
        x = _x(start_s, longest_s)
        draw.line((x, top + TITLE_PX - 14, x, top + TITLE_PX - 2), fill=INK)
        draw.text((x + 3, top + TITLE_PX - 16), str(number), fill=INK, font=small)


def _first_starts(line: Timeline) -> dict[int, float]:
    """Return when the answer of each look begins."""
    starts: dict[int, float] = {}
    for span in line.spans:
        if span.kind in LANES["answer"]:
            starts.setdefault(span.look, span.start_s)
    return starts


def _x(at_s: float, longest_s: float) -> int:
    return LEFT_PX + round((WIDTH_PX - LEFT_PX - RIGHT_PX) * at_s / longest_s)


def _ticks(longest_s: float) -> list[float]:
    step_s = next((step for step in TICKS_S if longest_s / step <= MOST_TICKS), TICKS_S[-1])
    return [float(step_s * index) for index in range(int(longest_s / step_s) + 1)]

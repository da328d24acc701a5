"""What the console shows of one robot: the one owner, fed with the package's own reports, from any thread.

Every report becomes one event, a mapping that JSON can hold. Pages get what holds now (`snapshot`), then
every change in order, so that two pages show the same. The events of a mission are kept, so that it can be
replayed. No network here, and no ROS.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.actions.parser import choices_of, parse_answer
from vlm_spec_decode.actions.plan import Plan, PlanStatus, Pose, waypoints
from vlm_spec_decode.actions.types import Action, format_action
from vlm_spec_decode.core import strict_json
from vlm_spec_decode.core.errors import ActionParseError
from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.token_fates import KEPT_ANSWERS, Fate, TokenPiece
from vlm_spec_decode.mission.progress import mission_line, robot_line
from vlm_spec_decode.mission.state import END_STATES, Answer, MissionStatus, PartialAnswer
from vlm_spec_decode.serve.console.answers import AnswerFigures

Event: TypeAlias = dict[str, Any]
"""`type`, `t` in seconds of the console's own time, and what the type says."""

Listener: TypeAlias = Callable[[Event], None]

BODY_EVERY_S = 0.1
"""Least time between two events of the body."""

RECORDED_BODY_S = 0.2
MAX_MISSIONS = 40
MAX_MISSION_BYTES, MAX_EVENT_BYTES = 2_000_000, 16_000_000
"""What the recorded events of one mission, and of all, take at most as JSON; the oldest go first."""

MAX_FRAME_BYTES = 24_000_000
"""What the frames of all kept missions take at most; the oldest missions' go first."""

RECORDED_TOKENS_S = 0.1
"""Of the states of an answer within this time only the last one is recorded: each holds the whole answer so
far, so that the record would grow with the square of its length."""

MAX_COMMANDS, MAX_FIGURES = 60, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraView:
    """Where the camera is on the body, to draw a path over its picture; angles in degrees, pitch down."""

    hfov_deg: float = 100.0
    pitch_deg: float = 0.0
    forward_m: float = 0.327
    height_m: float = 0.36


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotFacts:
    """What does not change about a robot while the console runs. The hull is length and width in metres."""

    name: str
    title: str
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    hull_m: tuple[float, float] = (0.70, 0.31)
    camera: CameraView = field(default_factory=CameraView)
    can_drive: bool = True

    def to_event(self) -> Event:
        """Return the facts as a page needs them."""
        limits = self.limits
        return {
            "name": self.name,
            "title": self.title.replace("`", ""),
            "hull_m": list(self.hull_m),
            "camera": asdict(self.camera),
            "can_drive": self.can_drive,
            "max_speed_mps": limits.max_speed_mps,
            "max_turn_radps": limits.max_turn_radps,
            "obstacle_stop_m": limits.obstacle_stop_m,
            "geofence": [list(corner) for corner in limits.geofence],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What is known of the body: odometry in metres and radians, m/s, battery 0 to 1, free ranges in metres.

    `ranges_m` are front, left, rear and right, infinity where nothing is seen. None: not known.
    """

    pose: Pose | None = None
    speed_mps: float | None = None
    battery: float | None = None
    ranges_m: tuple[float, ...] | None = None
    posture: str = ""

    def to_event(self) -> Event:
        """Return what a page shows, rounded, so that noise is no news."""
        x, y, yaw = self.pose or (None, None, None)
        return {
            "x": _rounded(x, 2),
            "y": _rounded(y, 2),
            "yaw": _rounded(yaw, 2),
            "speed": _rounded(self.speed_mps, 2),
            "battery": _rounded(self.battery, 2),
            "ranges": None if self.ranges_m is None else [_rounded(each, 2) for each in self.ranges_m],
            "posture": self.posture,
        }


@dataclass(slots=True)
class MissionRecord:
    """One mission of this session: how it stands, its events, and the frames of its answers."""

    name: str
    instruction: str
    began_s: float
    state: str = ""
    reason: str = ""
    ended_s: float | None = None
    frames: dict[int, bytes] = field(default_factory=dict)
    body_s: float = -math.inf
    event_bytes: int = 0
    _events: deque[str] = field(default_factory=deque)
    """As JSON, so that what they take is known, and a replay needs no encoding."""
    _tokens_s: float | None = None
    """When the last event came, if it was one of an answer's tokens."""

    def record(self, event: Event) -> None:
        """Add an event; the oldest ones make room for it."""
        is_tokens, at_s = event["type"] == "tokens", float(event["t"])
        if is_tokens and self._tokens_s is not None and at_s - self._tokens_s < RECORDED_TOKENS_S:
            self.event_bytes -= len(self._events.pop())
        else:
            self._tokens_s = at_s if is_tokens else None
        text = encode(event)
        self._events.append(text)
        self.event_bytes += len(text)
        while self.event_bytes > MAX_MISSION_BYTES and len(self._events) > 1:
            self.event_bytes -= len(self._events.popleft())

    def drop_events(self) -> None:
        """Keep no event any more."""
        self._events.clear()
        self.event_bytes = 0

    def events_json(self) -> str:
        """Return the events as a JSON list, oldest first."""
        return f"[{','.join(self._events)}]"

    def summary(self) -> Event:
        """Return one row of the list of missions."""
        return {
            "mission": self.name,
            "instruction": self.instruction,
            "began_s": round(self.began_s, 2),
            "ended_s": None if self.ended_s is None else round(self.ended_s, 2),
            "state": self.state,
            "reason": self.reason,
            "answers": len(self.frames),
        }


def encode(event: Event) -> str:
    """Return an event as JSON; a number that is none is null."""
    return strict_json.dumps(event, compact=True)


class ConsoleState:
    """Everything shown of one robot. Every method may be called from any thread and waits for nothing."""

    def __init__(self, facts: RobotFacts, clock: Clock) -> None:
        self.facts = facts
        self._clock, self._began_s = clock, clock.now()
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._latest: dict[str, Event] = {}
        self._missions: OrderedDict[str, MissionRecord] = OrderedDict()
        self._current = ""
        self._commands: deque[Event] = deque(maxlen=MAX_COMMANDS)
        self._figures: deque[Event] = deque(maxlen=MAX_FIGURES)
        self._diagnostics: dict[str, tuple[str, str]] = {}
        self._body, self._body_s = Body(), -math.inf
        self._live: tuple[TokenPiece, ...] = ()
        self._decoded: OrderedDict[int, tuple[TokenPiece, ...]] = OrderedDict()
        self._is_verified = True
        self._plan_key: tuple[Any, ...] = ()
        self._plan_start: tuple[tuple[str, int], Pose] = (("", -1), (0.0, 0.0, 0.0))

    @property
    def now_s(self) -> float:
        """Seconds since the console began."""
        return self._clock.now() - self._began_s

    # For pages -----------------------------------------------------------------------------------------

    def subscribe(self, listener: Listener) -> list[Event]:
        """Call `listener` with every event from now on; return the events that say what holds now."""
        with self._lock:
            self._listeners.append(listener)
            return self.snapshot()

    def unsubscribe(self, listener: Listener) -> None:
        """Call `listener` no more. Idempotent."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    @property
    def is_watched(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def snapshot(self) -> list[Event]:
        """Return the newest event of each type, and the lists."""
        with self._lock:
            lists: list[Event] = [
                {"type": "missions", "t": self.now_s, "missions": self._summaries()},
                {"type": "commands", "t": self.now_s, "commands": list(self._commands)},
                {"type": "figures", "t": self.now_s, "figures": list(self._figures)},
            ]
            return lists + list(self._latest.values())

    def replay(self, mission: str) -> str | None:
        """Return the events of a mission of this session as a JSON list, oldest first; None if not kept."""
        with self._lock:
            record = self._missions.get(mission)
            return record.events_json() if record is not None and record.event_bytes else None

    def frame_of(self, mission: str, answer: int) -> bytes | None:
        """Return the picture that an answer was about, a JPEG; None if it is not kept."""
        with self._lock:
            record = self._missions.get(mission)
            return None if record is None else record.frames.get(answer)

    # Reports ---------------------------------------------------------------------------------------

    def on_status(self, status: MissionStatus) -> None:
        """Show the state of a mission, or without a mission that of the cloud."""
        fields = asdict(status)
        if not status.mission:
            if status.state in END_STATES:  # a request was refused, which says nothing about the cloud
                self.on_command("instruct", "a request", f"{status.reason}: {status.detail}", done=False)
                return
            self._publish({"type": "cloud", **fields}, record=False)
            return
        with self._lock:
            record = self._record_of(status)
            if status.state == "answering":
                self._is_verified = status.reason != "unverified"
                self._live = ()
            is_aside = status.reason == "queue"
            if not is_aside and status.state not in END_STATES:
                self._current = status.mission
            event = {"type": "mission", "words": mission_line(status), "aside": is_aside, **fields}
            if status.state == "proposed":
                event["path"] = self._proposed_path(status.detail)
            if status.state == "waiting":
                event["choices"] = list(choices_of(status.detail))
            self._publish(event, mission=status.mission, shown=not is_aside)
            if status.state in END_STATES:
                record.ended_s = self.now_s
                if self._current == status.mission:
                    self._current = ""
            record.state, record.reason = status.state, status.reason
            self._publish({"type": "missions", "missions": self._summaries()}, record=False, shown=False)

    def on_partial(self, report: PartialAnswer) -> None:
        """Show the committed text so far, where no tokens are watched."""
        with self._lock:
            if any(_text(pieces).startswith(report.text) for pieces in self._decoded.values()):
                return
            fate: Fate = "committed" if self._is_verified else "drafted"
            self._tokens((TokenPiece(report.text, fate),))

    def on_tokens(self, answer: int, pieces: tuple[TokenPiece, ...]) -> None:
        """Show the tokens of an answer that is being decoded, with what became of each.

        Of several that are open at once the one that was begun last is shown.
        """
        with self._lock:
            self._decoded[answer] = pieces
            while len(self._decoded) > KEPT_ANSWERS:
                self._decoded.popitem(last=False)
            if next(reversed(self._decoded)) == answer:
                self._tokens(pieces)

    def on_answer(self, answer: Answer) -> None:
        """Show a finished answer and its figures, and keep its picture."""
        with self._lock:
            texts = {_text(pieces): pieces for pieces in self._decoded.values()}
            pieces = texts.get(answer.result.text, ())
            image = answer.observation.image
            self.on_figures(AnswerFigures.of(answer, pieces), image.jpeg if image else None)

    def on_figures(self, answer: AnswerFigures, jpeg: bytes | None = None) -> None:
        """Show a finished answer, from wherever its figures come."""
        with self._lock:
            record = self._missions.get(answer.mission)
            if record is not None and jpeg:
                record.frames[answer.number] = jpeg
                self._limit_frames()
            self._live = ()
            fields = asdict(answer)
            fields |= {"pieces": _pairs(answer.pieces), "has_frame": bool(jpeg)}
            self._publish({"type": "answer", **fields}, mission=answer.mission)
            figures = {
                "t": self.now_s,
                **{name: fields[name] for name in ("total_s", "first_action_s", "link_s")},
                "acceptance": answer.accepted / answer.drafted if answer.drafted else None,
                "tokens_per_pass": answer.tokens / answer.target_passes if answer.target_passes else None,
            }
            self._figures.append(figures)
            self._send({"type": "figure", "t": self.now_s, "figure": figures})

    def on_plan(self, plan: Plan) -> None:
        """Show a plan when it changes. It starts where the body stood when its answer began."""
        with self._lock:
            key = (plan.mission, plan.answer, plan.actions, plan.final, plan.verified, plan.draft_start)
            if key == self._plan_key:
                return
            self._plan_key = key
            answer = (plan.mission, plan.answer)
            if self._plan_start[0] != answer:
                self._plan_start = (answer, self._body.pose or (0.0, 0.0, 0.0))
            start = self._plan_start[1]
            self._publish(
                {
                    "type": "plan",
                    "mission": plan.mission,
                    "answer": plan.answer,
                    "actions": [format_action(action) for action in plan.actions],
                    "final": plan.final,
                    "verified": plan.verified,
                    "draft_start": plan.draft_start,
                    "origin": plan.origin,
                    "path": _path(start, plan.actions),
                },
                mission=plan.mission,
            )

    def on_executor(self, status: PlanStatus) -> None:
        """Show what the executor does, when that changes."""
        fields = asdict(status)
        with self._lock:
            known = self._latest.get("executor", {})
            if all(known.get(key) == value for key, value in fields.items()):
                return
            self._publish({"type": "executor", "words": robot_line(status), **fields}, mission=status.mission)

    def on_body(self, body: Body) -> None:
        """Show the body, at most every `BODY_EVERY_S`, and only what has changed."""
        with self._lock:
            self._body = body
            now_s = self.now_s
            if now_s - self._body_s < BODY_EVERY_S:
                return
            fields = body.to_event()
            known = self._latest.get("body", {})
            if all(known.get(key) == value for key, value in fields.items()):
                return
            self._body_s = now_s
            record = self._missions.get(self._current)
            is_recorded = record is not None and now_s - record.body_s >= RECORDED_BODY_S
            if record is not None and is_recorded:
                record.body_s = now_s
            self._publish({"type": "body", **fields}, record=is_recorded)

    @property
    def body(self) -> Body:
        """The newest body."""
        return self._body

    def on_source(self, source: str) -> None:
        """Show what commands the robot: `estop`, `teleop`, `language` or `none`."""
        with self._lock:
            if self._latest.get("source", {}).get("source") != source:
                self._publish({"type": "source", "source": source})

    def on_driver(self, who: str) -> None:
        """Show which page drives, "" for none."""
        with self._lock:
            if self._latest.get("driver", {}).get("who", "") != who:
                self._publish({"type": "driver", "who": who}, record=False)

    def on_diagnostics(self, found: Mapping[str, tuple[str, str]]) -> None:
        """Show the health of parts: of each its level (`OK`, `WARN`, `ERROR`, `STALE`) and a sentence."""
        with self._lock:
            if all(self._diagnostics.get(name) == value for name, value in found.items()):
                return
            self._diagnostics.update(found)
            rows = [[name, *value] for name, value in sorted(self._diagnostics.items())]
            self._publish({"type": "diagnostics", "rows": rows}, record=False)

    def on_command(self, command: str, who: str, detail: str = "", *, done: bool = True) -> None:
        """Show a command of any page, and whether it was carried out, on all pages."""
        with self._lock:
            entry: Event = {
                "t": round(self.now_s, 2),
                "command": command,
                "who": who,
                "detail": detail,
                "done": done,
            }
            self._commands.append(entry)
            self._send({"type": "command", **entry})

    # -----------------------------------------------------------------------------------------------

    def _record_of(self, status: MissionStatus) -> MissionRecord:
        record = self._missions.get(status.mission)
        if record is None:
            record = MissionRecord(status.mission, status.instruction, self.now_s)
            self._missions[status.mission] = record
            while len(self._missions) > MAX_MISSIONS:
                self._missions.popitem(last=False)
        if status.instruction:
            record.instruction = status.instruction
        return record

    def _limit_frames(self) -> None:
        held = sum(len(jpeg) for record in self._missions.values() for jpeg in record.frames.values())
        for record in self._missions.values():
            if held <= MAX_FRAME_BYTES:
                return
            held -= sum(map(len, record.frames.values()))
            record.frames.clear()

    def _limit_events(self, present: MissionRecord) -> None:
        """Drop the oldest missions' events where all take too much; never those of the present one."""
        held = sum(record.event_bytes for record in self._missions.values())
        for record in self._missions.values():
            if held <= MAX_EVENT_BYTES:
                return
            if record is not present:
                held -= record.event_bytes
                record.drop_events()

    def _summaries(self) -> list[Event]:
        return [record.summary() for record in reversed(self._missions.values())]

    def _proposed_path(self, detail: str) -> list[list[float]]:
        try:
            return _path(self._body.pose or (0.0, 0.0, 0.0), parse_answer(detail))
        except ActionParseError:
            return []

    def _tokens(self, pieces: tuple[TokenPiece, ...]) -> None:
        if pieces != self._live:
            self._live = pieces
            self._publish({"type": "tokens", "pieces": _pairs(pieces)}, mission=self._current)

    def _publish(self, event: Event, mission: str = "", *, record: bool = True, shown: bool = True) -> None:
        """Send an event, keep it as the newest of its type if it is `shown`, and with its mission."""
        with self._lock:
            event = {"t": round(self.now_s, 3), **event}
            if shown:
                self._latest[event["type"]] = event
            kept = self._missions.get(mission or self._current) if record else None
            if kept is not None:
                kept.record(event)
                self._limit_events(kept)
            self._send(event)

    def _send(self, event: Event) -> None:
        for listener in tuple(self._listeners):
            listener(event)


def _path(start: Pose, actions: Iterable[Action]) -> list[list[float]]:
    """Return the poses of a plan, each x and y in metres and yaw in radians, the start first.

    None from a pose that is no number, as odometry may say it: JSON has no such number.
    """
    if not all(map(math.isfinite, start)):
        return []
    poses = [start, *(pose for pose, _ in waypoints(start, actions))]
    return [[round(number, 3) for number in pose] for pose in poses]


def _text(pieces: Iterable[TokenPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def _pairs(pieces: Iterable[TokenPiece]) -> list[list[str]]:
    return [[piece.text, piece.fate] for piece in pieces]


def _rounded(value: float | None, digits: int) -> float | None:
    """Return a number for JSON, which knows no infinity: None in its place."""
    return round(value, digits) if value is not None and math.isfinite(value) else None

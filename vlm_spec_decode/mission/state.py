"""A mission's state: request, possible ends, time-outs, and reports as data and as the topics' JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeAlias

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.actions.types import Action, Look, Turn, action_numbers, format_action
from vlm_spec_decode.core.config import setting
from vlm_spec_decode.core.errors import VsdError
from vlm_spec_decode.core.trace import GenerationResult, token_fates
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.mission_loop import Status
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport, StartReport

REASON_TEXTS = {
    "estop": "the e-stop is engaged; the e_stop service releases it",
    "cancelled": "somebody asked for it",
    "teleop": "a person has taken the controls",
    "watchdog": "the plan's heartbeat was lost",
}
"""Texts for people of the executor's reasons, used if its status has no detail."""

Fallback: TypeAlias = Literal["hold", "stop", "draft_only"]
SearchMode: TypeAlias = Literal["turning", "stepwise"]
ReplanMode: TypeAlias = Literal["walking", "standing"]
REPLAN_MODES: tuple[ReplanMode, ...] = ("walking", "standing")
SEARCH_MODES: tuple[SearchMode, ...] = ("turning", "stepwise")
EarlyFramesMode: TypeAlias = Literal["on", "off"]
EARLY_FRAMES: tuple[EarlyFramesMode, ...] = ("on", "off")

FALLBACKS: tuple[Fallback, ...] = ("hold", "stop", "draft_only")

Start: TypeAlias = Literal["committed", "draft"]
STARTS: tuple[Start, ...] = ("committed", "draft")

START_WORDS = {
    "start_begun": "begins on the draft",
    "start_refused": "does not begin on the draft",
    "start_withdrawn": "stops: the draft was withdrawn",
    "start_confirmed": "the start on the draft was right",
    "start_corrected": "the start on the draft was wrong, and is corrected",
    "start_off": "begins nothing on the draft any more",
    "start_on": "may begin on the draft again",
}
"""Reasons of `answering` that tell of a start on the draft, in words."""

LOOK_DROPPED, LOOK_USED = "look_dropped", "look_used"
LOOK_WORDS = {LOOK_DROPPED: "not used", LOOK_USED: "goes by"}
"""Reasons that tell what became of an answer about a frame taken in motion, in words. The state is the one
that the mission is in; `step` is the answer's number."""

NOTES = START_WORDS | LOOK_WORDS
"""Reasons that tell of an answer under way: a status with one of them begins no new look."""

ALIKE_M, ALIKE_DEG = 0.2, 10.0
"""How much an answer to a newer frame may differ from the plan that a person has approved."""


STATES = (
    *(
        "connecting",
        "unavailable",
        "ready",
        "queued",
        "looking",
        "answering",
        "proposed",
        "acting",
        "waiting",
        "holding",
    ),
    *("drafting", "done", "step_limit", "refused", "cancelled", "failed"),
)
"""All states of `vlm/status`."""

END_STATES = frozenset({"done", "step_limit", "refused", "cancelled", "failed"})
"""States of `vlm/status` after which the mission will not move the robot any more."""


@dataclass(frozen=True, slots=True)
class MissionJob:
    """An instruction, the name of its mission, and whether its plans need approval or are only shown."""

    mission: str
    instruction: str
    approve: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """When a mission gives up, and what it does without its cloud.

    `fallback`: `stop` ends the mission; `hold` keeps the robot standing and goes on with a new look when the
    cloud is back, for at most `hold_s`; `draft_only` goes on with the draft alone, at reduced limits, until
    then. `start`: with `draft` the first motion of an answer may begin before the cloud has committed it, at
    reduced limits (`mission.draft_start`). If the frame of an approved plan is older than `fresh_s`, it is
    decoded again before it is sent. After a silence of commander or robot the robot stands for `listen_s`
    before the next look. A question of the robot that nobody answers for `reply_s` ends the mission.
    """

    max_steps: int = setting(24, "Answers after which a mission ends without done().", 1, 200, live=True)
    ready_s: float = 2.0
    frame_s: float = setting(5.0, "Silence of the camera that fails a mission.", 0.5, 60.0, live=True)
    silence_s: float = setting(2.0, "Silence of the robot that fails a mission.", 0.5, 30.0, live=True)
    act_s: float = setting(120.0, "Longest time that one answer's actions may take.", 1.0, 600.0, live=True)
    fallback: Fallback = setting(
        "hold",
        "Without the cloud: stand and wait for it, end, or go on by the draft alone.",
        one_of=FALLBACKS,
        live=True,
    )
    start: Start = setting(
        "committed",
        "What a motion may begin on: committed tokens alone, or the draft's first action, at reduced limits.",
        one_of=STARTS,
        live=True,
    )
    hold_s: float = setting(30.0, "How long a mission waits for a lost cloud.", 1.0, 600.0, live=True)
    search: SearchMode = setting(
        "turning",
        "How to look for what is not in view: ask while turning on, or stand still for every look.",
        one_of=SEARCH_MODES,
        live=True,
    )
    search_looks: int = setting(
        2, "Frames that a search may have open at the cloud at once, while it turns.", 1, 8, live=True
    )
    replan: ReplanMode = setting(
        "standing",
        "When to look for the next plan: only when the robot stands, or while walking where that pays.",
        one_of=REPLAN_MODES,
        live=True,
    )
    approve_s: float = setting(120.0, "Silence after a plan is shown that means no.", 1.0, 3600.0, live=True)
    fresh_s: float = setting(
        3.0, "Age of a plan's frame at the yes that asks for a new look.", 0.5, 5.0, live=True
    )
    listen_s: float = 0.5
    reply_s: float = 120.0
    early_frames: EarlyFramesMode = setting(
        "on",
        "Ask about the frame at rest while the body settles, or once it stands.",
        one_of=EARLY_FRAMES,
        live=True,
    )


@dataclass(frozen=True, slots=True)
class MissionEnd:
    """How a mission ended, and why if not by `done()`."""

    status: Status
    reason: str = ""
    detail: str = ""


def failure(error: VsdError) -> MissionEnd:
    """Return the end of a mission that an error causes."""
    return MissionEnd("failed", type(error).__name__, str(error))


def format_actions(actions: tuple[Action, ...]) -> str:
    """Return actions as text."""
    return " ".join(format_action(action) for action in actions) or "no action"


def are_alike(one: tuple[Action, ...], other: tuple[Action, ...]) -> bool:
    """Whether two plans are the same actions with nearly the same numbers."""
    if [type(action) for action in one] != [type(action) for action in other]:
        return False
    return all(
        abs(a - b) <= (ALIKE_DEG if isinstance(x, (Turn, Look)) else ALIKE_M)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(action_numbers(x), action_numbers(y), strict=True)
    )


def ending_of(status: PlanStatus) -> MissionEnd:
    """Return the end of a mission that an executor's interruption causes."""
    text = status.detail or REASON_TEXTS.get(status.reason, "")
    detail = f"{status.action}: {text}" if status.action else text
    meaning: dict[str, Status] = {"refused": "refused", "fault": "failed"}
    return MissionEnd(meaning.get(status.state, "cancelled"), status.reason or status.state, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class MissionStatus:
    """`/vlm/status`: `state` is a stable name, `reason` the name of a fault, `detail` a sentence.

    Before any mission: `connecting`, `unavailable` (with the reason) or `ready`. Of a mission: `queued`,
    `looking`, `answering` (reason `unverified` where the draft alone answers, one of `START_WORDS` where a
    motion may begin on the draft), `proposed` (a plan that is
    shown: `approve`, `dry_run`), `acting`, `waiting` (reason `asked`: for the operator's word on the question
    in `detail`), without the cloud `holding` or `drafting`; then `done`, `step_limit`, `refused`, `cancelled`
    or `failed`. A reason of `LOOK_WORDS` tells of an answer beside.
    """

    state: str
    mission: str = ""
    instruction: str = ""
    step: int = 0
    reason: str = ""
    detail: str = ""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person replies to, as a status has shown it: a plan to approve, or a question.

    Mission, step and text (`MissionStatus.detail`). A reply compares what it names: "" and 0 name nothing.
    """

    mission: str = ""
    step: int = 0
    text: str = ""

    def is_of(self, other: Shown) -> bool:
        """Whether a reply to this is one to `other`."""
        return (
            self.mission in ("", other.mission)
            and self.step in (0, other.step)
            and self.text in ("", other.text)
        )


def shown_by(status: MissionStatus) -> Shown:
    """Return what a reply to a status is a reply to."""
    return Shown(status.mission, status.step, status.detail)


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """`/vlm/answer/partial`: the committed text so far."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished answer: its question, its text and actions, and how it was decoded.

    `start` is the motion that began on the draft, if one did; `verified` is false for one of the draft alone.
    """

    mission: str
    number: int
    observation: Observation
    actions: tuple[Action, ...]
    result: GenerationResult
    start: StartReport | None = None
    verified: bool = True

    def report(self) -> AnswerReport:
        """Return what was said."""
        observation, result = self.observation, self.result
        image = observation.image
        return AnswerReport(
            mission=self.mission,
            number=self.number,
            instruction=observation.instruction,
            history=tuple(observation.history),
            stamp_s=observation.stamp_s,
            frame_id=observation.frame_id,
            image_width=image.width if image else 0,
            image_digest=image.digest if image else b"",
            text=result.text,
            token_ids=tuple(result.tokens),
            token_fates=token_fates(result, verified=self.verified),
            token_ends=result.ends,
            actions=self.actions,
            start=self.start,
        )

    def trace(self) -> DecodeReport:
        """Return how it was decoded."""
        result = self.result
        own = ("mission", "number", "tokens")
        same = {
            each.name: getattr(result, each.name) for each in fields(DecodeReport) if each.name not in own
        }
        return DecodeReport(mission=self.mission, number=self.number, tokens=len(result.tokens), **same)

    def to_json(self) -> str:
        """Return the JSON of `/vlm/answer`."""
        return self.report().to_json()

    def trace_json(self) -> str:
        """Return the figures of this answer, and of each of its rounds, as JSON."""
        return self.trace().to_json()

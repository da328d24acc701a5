"""A finished answer as its readers get it: what was said, and how it was decoded, without picture or models.

`mission.state.Answer` belongs to who decodes; these are made from one, travel as ROS messages (`ros.typed`),
and are read from the JSON of older recordings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.types import Action, format_action
from vlm_spec_decode.core import strict_json
from vlm_spec_decode.core.trace import LinkUsage, RoundTrace, TokenFate


@dataclass(frozen=True, slots=True)
class StartReport:
    """A motion that began on the draft, as text, and whether the cloud `confirmed` or `corrected` it."""

    action: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReport:
    """An answer: the question, the committed text, and its actions.

    `number` counts the mission's answers. `stamp_s` and `frame_id` are those of the frame, `image_width` is
    the width in pixels to which it was reduced (0: no picture), `image_digest` the SHA-256 of the JPEG that
    both models saw. `token_fates` and `token_ends` have an entry per token: where it came from, and how many
    characters of `text` lead up to its end; both are empty where that is not known. `start` is the motion
    that began on the draft. While `final` is false more will follow.
    """

    mission: str
    number: int
    instruction: str = ""
    history: tuple[str, ...] = ()
    stamp_s: float = 0.0
    frame_id: str = ""
    image_width: int = 0
    image_digest: bytes = b""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    token_fates: tuple[TokenFate, ...] = ()
    token_ends: tuple[int, ...] = ()
    actions: tuple[Action, ...] = ()
    start: StartReport | None = None
    final: bool = True

    def to_json(self) -> str:
        """Return the JSON of `/vlm/answer`; with the frame of the same stamp it can be decoded again."""
        found = {
            "mission": self.mission,
            "answer": self.number,
            "instruction": self.instruction,
            "history": list(self.history),
            "stamp_s": self.stamp_s,
            "frame_id": self.frame_id,
            "image_width": self.image_width,
            "image_digest": self.image_digest.hex(),
            "text": self.text,
            "token_ids": list(self.token_ids),
            "actions": [format_action(action) for action in self.actions],
        }
        return strict_json.dumps(found | ({"start": asdict(self.start)} if self.start else {}))

    @classmethod
    def from_json(cls, text: str) -> AnswerReport:
        """Return the report in `text`, of this or an older version.

        Raises ValueError, KeyError, TypeError or ActionParseError for anything else.
        """
        data: Mapping[str, Any] = json.loads(text)
        start = data.get("start")
        return cls(
            mission=str(data["mission"]),
            number=int(data["answer"]),
            instruction=str(data["instruction"]),
            history=tuple(map(str, data["history"])),
            stamp_s=float(data["stamp_s"]),
            frame_id=str(data.get("frame_id", "")),
            image_width=int(data.get("image_width", 0)),
            image_digest=bytes.fromhex(data.get("image_digest", "")),
            text=str(data["text"]),
            token_ids=tuple(map(int, data.get("token_ids", ()))),
            actions=tuple(parse_action(str(action)) for action in data["actions"]),
            start=StartReport(str(start["action"]), str(start["outcome"])) if start else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeReport:
    """How one answer was decoded. Times are seconds on the edge's clock, since the question.

    `time_to_first_action_s` is None for an answer without an action.
    """

    mission: str
    number: int
    strategy: str
    rule: str
    tokens: int
    rounds: tuple[RoundTrace, ...]
    drafted: int
    accepted: int
    acceptance_rate: float
    target_passes: int
    early_verdicts: int
    time_to_first_token_s: float
    time_to_first_action_s: float | None
    total_s: float
    usage: LinkUsage = field(default_factory=LinkUsage)

    def to_mapping(self) -> dict[str, Any]:
        """Return the keys of the JSON that older versions published on `/vlm/trace`, in their order."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "usage":
                found |= asdict(value)
            elif each.name == "rounds":
                found["rounds"] = [asdict(one) for one in value]
            else:
                found["answer" if each.name == "number" else each.name] = value
        return found

    def to_json(self) -> str:
        """Return one line of JSON."""
        return strict_json.dumps(self.to_mapping())

    @classmethod
    def from_json(cls, text: str) -> DecodeReport:
        """Return the report in `text`. Raises ValueError, KeyError or TypeError for anything else."""
        data = dict(json.loads(text))
        usage = LinkUsage(**{each.name: int(data.pop(each.name, 0)) for each in fields(LinkUsage)})
        rounds = tuple(RoundTrace(**each) for each in data.pop("rounds"))
        return cls(number=int(data.pop("answer")), rounds=rounds, usage=usage, **data)

"""What the VLM node publishes about a mission, as data and as the JSON of its topics."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from vlm_spec_decode.actions.types import Action, format_action
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation


@dataclass(frozen=True, slots=True)
class MissionStatus:
    """`/vlm/status`: `state` is a stable name, `reason` the name of what went wrong, `detail` a sentence.

    Before any mission: `connecting`, `unavailable` (with the reason) or `ready`. Of a mission: `queued`,
    `looking`, `answering` (reason `unverified` where the draft alone answers), `proposed` (a plan that is
    shown: `approve`, `dry_run`), `acting`, without the cloud `holding` or `drafting`; then `done`,
    `step_limit`, `refused`, `cancelled` or `failed`.
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
class Partial:
    """`/vlm/answer/partial`: the committed text so far."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer: what was asked, what was said, and how it was decoded."""

    mission: str
    number: int
    observation: Observation
    actions: tuple[Action, ...]
    result: GenerationResult

    def to_json(self) -> str:
        """Return the JSON of `/vlm/answer`; with the frame of the same stamp it can be decoded again."""
        fields = {
            "mission": self.mission,
            "answer": self.number,
            "instruction": self.observation.instruction,
            "history": list(self.observation.history),
            "stamp_s": self.observation.stamp_s,
            "frame_id": self.observation.frame_id,
            "text": self.result.text,
            "token_ids": list(self.result.tokens),
            "actions": [format_action(action) for action in self.actions],
        }
        return json.dumps(fields)

    def trace_json(self) -> str:
        """Return the JSON of `/vlm/trace`: the figures of this answer, and of each of its rounds."""
        result = self.result
        fields = {
            "mission": self.mission,
            "answer": self.number,
            "strategy": result.strategy,
            "rule": result.rule,
            "tokens": len(result.tokens),
            "rounds": [asdict(trace) for trace in result.rounds],
            "drafted": result.drafted,
            "accepted": result.accepted,
            "acceptance_rate": result.acceptance_rate,
            "target_passes": result.target_passes,
            "early_verdicts": result.early_verdicts,
            "time_to_first_token_s": result.time_to_first_token_s,
            "time_to_first_action_s": result.time_to_first_action_s,
            "total_s": result.total_s,
            **asdict(result.usage),
        }
        return json.dumps(fields)

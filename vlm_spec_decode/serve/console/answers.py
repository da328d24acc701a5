"""A finished answer as the console shows it: its tokens, and the figures of its decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from vlm_spec_decode.actions.types import format_action
from vlm_spec_decode.core.token_fates import TokenPiece
from vlm_spec_decode.core.trace import RoundTrace
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures:
    """A finished answer as the console shows it; times in seconds, None where they are not known."""

    mission: str
    number: int
    text: str
    pieces: tuple[TokenPiece, ...]
    actions: tuple[str, ...]
    strategy: str = ""
    total_s: float | None = None
    first_token_s: float | None = None
    first_action_s: float | None = None
    link_s: float | None = None
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    target_passes: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    image_bytes: int = 0
    rounds: tuple[tuple[float, ...], ...] = ()
    """Of each round: end, time drafting and waiting in seconds, tokens accepted and committed."""

    @classmethod
    def of(cls, answer: Answer, pieces: tuple[TokenPiece, ...] = ()) -> AnswerFigures:
        """Return an answer's figures. `pieces` are those seen while it was decoded, if there were any."""
        text = answer.result.text
        return cls.of_reports(answer.report(), answer.trace(), pieces or (TokenPiece(text, "committed"),))

    @classmethod
    def of_reports(
        cls, answer: AnswerReport, trace: DecodeReport, pieces: tuple[TokenPiece, ...]
    ) -> AnswerFigures:
        """Return the figures of an answer whose reports came over topics."""
        return cls(
            mission=answer.mission,
            number=answer.number,
            text=answer.text,
            pieces=pieces,
            actions=tuple(map(format_action, answer.actions)),
            strategy=trace.strategy,
            total_s=trace.total_s,
            first_token_s=trace.time_to_first_token_s,
            first_action_s=trace.time_to_first_action_s,
            link_s=_link_s(trace.rounds),
            tokens=trace.tokens,
            drafted=trace.drafted,
            accepted=trace.accepted,
            target_passes=trace.target_passes,
            rounds=_rounds(trace.rounds),
            **asdict(trace.usage),
        )


def _link_s(rounds: Iterable[RoundTrace]) -> float | None:
    """Return an estimate of the link: waiting less the target's own time, of a round, mean."""
    waits = [each.wait_s - each.verify_s for each in rounds]
    return max(0.0, sum(waits) / len(waits)) if waits else None


def _rounds(rounds: Iterable[RoundTrace]) -> tuple[tuple[float, ...], ...]:
    return tuple(
        (*(round(s, 4) for s in (one.at_s, one.draft_s, one.wait_s)), one.accepted, one.committed)
        for one in rounds
    )

"""How one answer came about: its rounds, its bytes and its result, one type for robot, benchmark and bags.

All times are seconds on the edge's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.types import Tokens


@dataclass(frozen=True, slots=True)
class RoundTrace:
    """One commit as the edge saw it; all times in seconds on the edge's clock.

    `why` says what the strategy's controller last decided before it, and from which estimates.
    """

    start: int
    drafted: int
    accepted: int
    committed: int
    draft_s: float
    wait_s: float
    verify_s: float
    at_s: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class LinkUsage:
    """Bytes that one answer put on the link, image counted apart from the rest of the uplink."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    image_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One finished answer and how it came about."""

    tokens: Tokens
    text: str
    strategy: str
    rule: str
    rounds: tuple[RoundTrace, ...]
    early_verdicts: int
    time_to_first_token_s: float
    time_to_first_action_s: float | None
    total_s: float
    usage: LinkUsage = field(default_factory=LinkUsage)
    lossless: bool = True

    @property
    def drafted(self) -> int:
        """Draft tokens sent."""
        return sum(r.drafted for r in self.rounds)

    @property
    def accepted(self) -> int:
        """Draft tokens that the target confirmed."""
        return sum(r.accepted for r in self.rounds)

    @property
    def target_passes(self) -> int:
        """Forward passes of the target, one per commit."""
        return len(self.rounds)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

"""Nodes of the edge's speculation tree, and how far the draft's probabilities of them can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.types import Tokens


@dataclass(slots=True)
class Place:
    """A node: the token after its parent, the draft's log-probability of it, and whether it is expanded.

    `verdicts` is what exits have said comes next, shallow ones first, each with its trust. `is_drawn`: the
    draft's one draw after its parent (rule `rejection`), the only child that may be sent.
    """

    token: int
    log_prob: float
    parent: Place | None
    depth: int
    number: int = 0
    expanded: bool = False
    children: dict[int, Place] = field(default_factory=dict)
    verdicts: list[tuple[int, float]] = field(default_factory=list)
    is_drawn: bool = False

    def path(self) -> Tokens:
        """Return the tokens from the root's child down to this node."""
        tokens: list[int] = []
        place = self
        while place.parent is not None:
            tokens.append(place.token)
            place = place.parent
        return tuple(reversed(tokens))

    def chance(self, token: int, prior: float) -> float:
        """Return the probability of `token` next: each exit is right with its trust, or knows nothing.

        P(x | e) = t [x = e] + (1 - t) P(x), deeper exits on top of what shallower ones have left.
        """
        for said, trust in self.verdicts:
            prior = (1 - trust) * prior + (trust if said == token else 0.0)
        return prior


@dataclass(slots=True)
class Calibration:
    """How far the draft's own probabilities can be trusted: one exponent, learned from every verdict."""

    sharpness: float = 1.0

    def log_probs(self, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
        """Return the log-probabilities of `scores` (best first), sharpened."""
        scaled = self.sharpness * (scores - scores[0])
        return list(scaled - math.log(float(np.exp(scaled).sum())))

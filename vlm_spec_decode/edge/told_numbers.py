"""Distances in drafted words, and which ones stand there once the body has walked on.

A distance that the instruction itself names stays. So do the arguments of calls: a draft model that goes on
from another distance says what is to be done about that one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from vlm_spec_decode.actions.distances import neighbours_m, rounded_m
from vlm_spec_decode.core.ports import TextCodec
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.edge.hint_tree import RANKS

_DISTANCE = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}")

NEIGHBOUR = 0.25
"""Part of a candidate's probability that goes to each of its neighbours."""


@dataclass(frozen=True, slots=True)
class ToldNumbers:
    """Reads distances from single tokens; a vocabulary that spells them has none.

    `walks_m` is how far the body walks towards what it sees, from the frame of the hint to that of the
    question. Free text (not `is_read`) tells none that is known to mean the way to a thing.
    """

    codec: TextCodec
    instruction: str
    walks_m: float = 0.0
    is_read: bool = True

    def distance_m(self, token: int) -> float | None:
        """Return the distance that a token tells, None for other tokens."""
        text = self.codec.decode((token,)).strip() if self.is_read else ""
        if _DISTANCE.fullmatch(text) is None or text in self.instruction.split():
            return None
        return float(text)

    def is_described(self, before: Tokens) -> bool:
        """Whether what follows `before` is among the words: no call has begun."""
        return "(" not in self.codec.decode(before)

    def candidates(self, drafted: dict[int, float]) -> dict[int, float]:
        """Return the tokens that may stand where `drafted` were drafted, each with its probability.

        Each drafted distance d is d - w now, for a walk of w, and each neighbour on the grid is as likely
        again by `NEIGHBOUR`. () if a token is no distance, or if none is left in front of the body.
        """
        chances = defaultdict[float, float](float)
        for token, chance in drafted.items():
            before_m = self.distance_m(token)
            if before_m is None:
                continue
            now_m = rounded_m(before_m - self.walks_m)
            for told_m, share in zip(
                (now_m, *neighbours_m(now_m)), (1 - 2 * NEIGHBOUR, NEIGHBOUR, NEIGHBOUR), strict=True
            ):
                chances[round(told_m, 2)] += chance * share
        ranked = sorted(chances.items(), key=lambda item: -item[1])[: len(RANKS)]
        tokens = [(self.codec.encode(f"{told_m:.1f}"), chance) for told_m, chance in ranked]
        return {ids[0]: chance for ids, chance in tokens if len(ids) == 1 and self.distance_m(ids[0])}

"""Distances in answers: the grid on which they are told, and which ones are told once the body has walked on.

A distance that the instruction itself names stays. So do the arguments of calls: a draft model that goes on
from another distance says what is to be done about that one.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from vlm_spec_decode.core.ports import TextCodec
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.edge.hint_tree import RANKS

_DISTANCE = re.compile(r"[0-9]{1,2}\.[0-9]{1,2}")
_SPELLED = re.compile(r"(?<![-0-9.])[0-9]{1,2}(?:\.[0-9]{1,2})?$")
_UNIT = re.compile(r"\s*m(?:et(?:er|re)s?)?\b")

NEIGHBOUR = 0.25
"""Part of a candidate's probability that goes to each of its neighbours."""


GRIDS_M = ((1.2, 0.1), (2.4, 0.2), (math.inf, 0.5))
"""(distance, grid): distances up to the first are rounded to the second. Far objects are seen again later."""

NEAREST_M, MAX_DESCRIBED_M = 0.1, 5.0
"""No answer tells of a smaller distance, or of a larger one."""


def rounded_m(distance_m: float) -> float:
    """Return a rounded distance: the farther, the coarser."""
    grid_m = next(grid_m for limit_m, grid_m in GRIDS_M if distance_m < limit_m)
    return min(MAX_DESCRIBED_M, max(NEAREST_M, grid_m * round(distance_m / grid_m)))


def neighbours_m(told_m: float) -> tuple[float, float]:
    """Return the distances that are told below and above `told_m`, itself one that is told."""
    # Half a grid step leads to the edge of a cell, and a little more into the next one.
    sides_m = (told_m - 1e-6, told_m + 1e-6)
    below_m, above_m = (next(grid_m for limit_m, grid_m in GRIDS_M if side_m < limit_m) for side_m in sides_m)
    return rounded_m(told_m - 0.55 * below_m), rounded_m(told_m + 0.55 * above_m)


@dataclass(frozen=True, slots=True)
class ToldNumbers:
    """Reads distances from tokens: from one, or digit by digit, as most vocabularies spell them.

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
        if _DISTANCE.fullmatch(text) is None or self._is_named(text):
            return None
        return float(text)

    def is_described(self, before: Tokens) -> bool:
        """Whether what follows `before` is among the words: no call has begun."""
        return "(" not in self.codec.decode(before)

    def spelled_m(self, before: Tokens, following: int) -> tuple[int, float] | None:
        """Return how many tokens at the end of `before` spell a distance, and the distance.

        None if they spell none, if a single token tells it, or if `following` goes on with it. A whole number
        is a distance only with its unit behind it; "to 2 m" says where to stop, not how far a thing is.
        """
        text = self.codec.decode(before) if self.is_read else ""
        found = _SPELLED.search(text)
        if found is None or self._is_named(found[0]) or text[: found.start()].endswith(" to "):
            return None
        behind = self.codec.decode((*before, following))[len(text) :]
        is_whole = "." not in found[0]
        if behind[:1].isdigit() or behind[:1] == "." or (is_whole and not _UNIT.match(behind)):
            return None
        count = 1
        while len(self.codec.decode(before[:-count])) > found.start():
            count += 1
        return (count, float(found[0])) if count > 1 or is_whole else None

    def spelling(self, before: Tokens, spelled: Tokens, told_m: float) -> Tokens:
        """Return the tokens that tell another distance where `spelled` stood behind `before`; () if none do.

        Whole metres are written as "2", unless `spelled` has them as "2.0".
        """
        start = self.codec.decode(before)
        old = self.codec.decode((*before, *spelled))[len(start) :]
        new = f"{told_m:.1f}" if old.endswith(".0") else f"{told_m:.1f}".removesuffix(".0")
        space = old[: len(old) - len(old.lstrip())]
        ids = self.codec.encode(f"{start}{space}{new}")
        return ids[len(before) :] if ids[: len(before)] == before else ()

    def candidates(self, drafted: dict[int, float]) -> dict[int, float]:
        """Return the tokens that may stand where `drafted` were drafted, each with its probability.

        () if a token is no distance, or if none is left in front of the body.
        """
        read = {self.distance_m(token): chance for token, chance in drafted.items()}
        told = self.told_now({metres: chance for metres, chance in read.items() if metres is not None})
        tokens = [(self.codec.encode(f"{told_m:.1f}"), chance) for told_m, chance in told.items()]
        return {ids[0]: chance for ids, chance in tokens if len(ids) == 1 and self.distance_m(ids[0])}

    def told_now(self, drafted: dict[float, float]) -> dict[float, float]:
        """Return the distances that may be told of the question's frame, likeliest first, by those `drafted`.

        Each drafted distance d is d - w now, for a walk of w, and each neighbour on the grid is as likely
        again by `NEIGHBOUR`.
        """
        chances = defaultdict[float, float](float)
        for before_m, chance in drafted.items():
            now_m = rounded_m(before_m - self.walks_m)
            for told_m, share in zip(
                (now_m, *neighbours_m(now_m)), (1 - 2 * NEIGHBOUR, NEIGHBOUR, NEIGHBOUR), strict=True
            ):
                chances[round(told_m, 2)] += chance * share
        return dict(sorted(chances.items(), key=lambda item: -item[1])[: len(RANKS)])

    def _is_named(self, number: str) -> bool:
        return number in self.instruction.split()

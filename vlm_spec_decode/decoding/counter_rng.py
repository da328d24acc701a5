"""Random draws of the rejection rule, named by what they decide instead of by when they are asked for.

Every draw is keyed by (seed, role, prefix, attempt). Asking twice gives the same value, so values drawn are
memoised by construction, one per prefix, on both ends and over every reconnect (design section 2): no
schedule of the network can turn into a second throw of the dice. All draws are exact in integers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import Remainder

Role: TypeAlias = Literal["draft", "accept", "target", "residual", "place", "keep", "tail"]
"""What a draw decides. Draws of different roles are independent."""

Weights: TypeAlias = npt.NDArray[Any]
"""Non-negative integers [vocab], int64 or Python's own (dtype object) where those would overflow."""


class CounterRng(Protocol):
    """Where an answer's random draws come from."""

    def index(self, weights: Weights, role: Role, prefix: Tokens, attempt: int = 0) -> int:
        """Return an index with probability proportional to its weight."""
        ...

    def draw(self, weights: Remainder, role: Role, prefix: Tokens, attempt: int = 0) -> int:
        """Return an id with probability proportional to its weight."""
        ...

    def happens(self, part: int, whole: int, role: Role, prefix: Tokens, attempt: int = 0) -> bool:
        """Return True with probability min(1, part / whole)."""
        ...


@dataclass(frozen=True, slots=True)
class KeyedCounterRng:
    """Draws from BLAKE2b in counter mode; `seed` is the answer's."""

    seed: int

    def index(self, weights: Weights, role: Role, prefix: Tokens, attempt: int = 0) -> int:
        """Return an index with probability proportional to its weight."""
        steps = np.cumsum(weights)
        # A ticket t in [0, sum w) falls into the interval of index i with probability w_i / sum w, exactly.
        ticket = self._below(int(steps[-1]), role, prefix, attempt)
        return int(np.searchsorted(steps, ticket, side="right"))

    def draw(self, weights: Remainder, role: Role, prefix: Tokens, attempt: int = 0) -> int:
        """Return an id with probability proportional to its weight."""
        return weights.at(self._below(weights.whole, role, prefix, attempt))

    def happens(self, part: int, whole: int, role: Role, prefix: Tokens, attempt: int = 0) -> bool:
        """Return True with probability min(1, part / whole)."""
        return part >= whole or self._below(whole, role, prefix, attempt) < part

    def _below(self, limit: int, role: Role, prefix: Tokens, attempt: int) -> int:
        """Return a uniform integer in [0, limit); values that would favour the low ones are drawn anew."""
        key = repr((self.seed, role, prefix, attempt)).encode()
        size = limit.bit_length() // 8 + 8
        span = 256**size
        turn = 0
        while True:
            digest = hashlib.blake2b(key + turn.to_bytes(2, "little"), digest_size=size).digest()
            value = int.from_bytes(digest, "little")
            # Values from the largest multiple of `limit` up would make the low ones likelier by 1 / span:
            # draw anew.
            if value < span - span % limit:
                return value % limit
            turn += 1

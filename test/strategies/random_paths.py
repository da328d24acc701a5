"""Every random path of an answer under the `rejection` rule, with its exact probability.

Draws are forks: a path is a list of choices, and the probability of each is the fraction that the rule
asked for, so the law of the answer comes out in exact fractions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from test.tables import TARGET
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.decoding.choices import Remainder
from vlm_spec_decode.decoding.counter_rng import KeyedCounterRng

Law = dict[Tokens, Fraction]


@dataclass
class Paths:
    """Walks all paths, depth first. Memoised by key as the real draws are, in one path."""

    script: list[int] = field(default_factory=list)
    options: list[int] = field(default_factory=list)
    probability: Fraction = Fraction(1)
    drawn: dict[Any, int] = field(default_factory=dict)

    def fork(self, key: Any, chances: list[tuple[int, Fraction]]) -> int:
        """Choose among values with their probabilities; once per key and path."""
        if key not in self.drawn:
            chances = [(value, p) for value, p in chances if p]
            step = len(self.options)
            if step == len(self.script):
                self.script.append(0)
            self.options.append(len(chances))
            value, p = chances[self.script[step]]
            self.probability *= p
            self.drawn[key] = value
        return self.drawn[key]

    def next_path(self) -> bool:
        """Go on to the next path; False after the last."""
        script, options = self.script[: len(self.options)], self.options
        self.options, self.drawn, self.probability = [], {}, Fraction(1)
        while script and script[-1] + 1 == options[len(script) - 1]:
            script.pop()
        if script:
            script[-1] += 1
        self.script = script
        return bool(script)


def law_of(patch: pytest.MonkeyPatch, answer: Callable[[], Tokens]) -> Law:
    """Return the exact law of what `answer` returns over all draws of the rejection rule."""
    paths = Paths()

    def index(self: KeyedCounterRng, weights: Any, role: str, prefix: Tokens, attempt: int = 0) -> int:
        whole = int(sum(weights.tolist()))
        chances = [(i, Fraction(int(w), whole)) for i, w in enumerate(weights.tolist())]
        return paths.fork((role, prefix, attempt), chances)

    def draw(self: KeyedCounterRng, weights: Remainder, role: str, prefix: Tokens, attempt: int = 0) -> int:
        parts = np.array([weights.weight(token) for token in range(len(TARGET(())))], dtype=object)
        assert weights.whole == sum(parts), "no other id has a weight"
        return index(self, parts, role, prefix, attempt)

    def happens(self: Any, part: int, whole: int, role: str, prefix: Tokens, attempt: int = 0) -> bool:
        p = max(Fraction(0), min(Fraction(1), Fraction(part, whole)))
        return bool(paths.fork((role, prefix, attempt), [(1, p), (0, 1 - p)]))

    law: Law = defaultdict(Fraction)
    with patch.context() as scoped:
        scoped.setattr(KeyedCounterRng, "index", index)
        scoped.setattr(KeyedCounterRng, "draw", draw)
        scoped.setattr(KeyedCounterRng, "happens", happens)
        while True:
            tokens = answer()
            law[tokens] += paths.probability
            if not paths.next_path():
                return dict(law)

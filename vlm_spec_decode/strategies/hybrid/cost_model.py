"""The cost of a token in one answer: the seconds that it takes by the way that is now the fastest.

Uses durations, counts and one acceptance; no trees and no models. Two ways are compared: continuing as
before, where draft messages that have arrived count as committed (they cost nothing any more), and the copy
of the draft in the cloud alone, at its best draft length (2211.17192, section 3.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vlm_spec_decode.strategies.estimators import RunningMean, RunningRatio

MAX_STEPS = 16
STEP_RATIO = 0.1
"""Of a draft step beside the target to a pass, before both are known."""


@dataclass(slots=True)
class TokenCost:
    """Estimates of one answer, in seconds. `agreement` is how often the copy's choice is right."""

    agreement: RunningMean = field(default_factory=lambda: RunningMean(0.7, rate=0.05, trust=4))
    step_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    tokens: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    in_hand: float = 0.0
    token_s: RunningRatio = field(default_factory=RunningRatio)
    _first_s: float = 0.0

    def passed(self, tokens: int, verify_s: float, drafted_s: float, *, is_first: bool) -> None:
        """Take a pass: `tokens` were committed after so long a verification and so much own drafting.

        The first one reads the prompt: it only bounds what others take.
        """
        if is_first:
            self._first_s = verify_s
        else:
            self.pass_s.learn(verify_s)
        self.tokens.learn(tokens)
        self.token_s.learn(verify_s + drafted_s, tokens)

    @property
    def is_carried(self) -> bool:
        """Whether the hints in hand bring half of what a pass usually does: the edge is worth talking to."""
        return self.tokens.count > 0 and 2 * (1 + self.in_hand) >= self.tokens.value

    def step_floor(self) -> float:
        """Return from which probability of its place on a step of the copy is worth its time."""
        if not self.step_s.value:
            return STEP_RATIO / (self.agreement.value * self._alone_s(STEP_RATIO, 1.0))
        alone_s = self._alone_s(self.step_s.value, self._usual_pass_s())
        token_s = min(alone_s, self.token_s.value or alone_s)
        return self.step_s.value * math.sqrt(1 + self.in_hand) / (self.agreement.value * token_s)

    def _usual_pass_s(self) -> float:
        """Return what a pass takes: as measured, or so many steps as usual, at most as the first one took."""
        guess_s = self.step_s.value / STEP_RATIO
        return self.pass_s.value or min(guess_s, self._first_s or guess_s)

    def _alone_s(self, step_s: float, pass_s: float) -> float:
        """Return (T + n c) / (1 + α + … + α^n) for the best n."""
        best_s, tokens, power = pass_s, 1.0, 1.0
        for steps in range(1, MAX_STEPS + 1):
            power *= self.agreement.value
            tokens += power
            best_s = min(best_s, (pass_s + steps * step_s) / tokens)
        return best_s

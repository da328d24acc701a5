"""Whether a pass should wait for a draft message: an optimal stopping rule.

It considers the messages that usually follow a commit. Uses times, draft messages by their number since the
last commit, and what each adds to a pass; no trees and no models. A pass waits while tokens per second
still rise, where a second of waiting is weighed against a second of the target by the answer's objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vlm_spec_decode.strategies.estimators import RunningMean

WEIGHT = {"latency": 1.0, "balanced": 0.4, "cost": 0.1}
"""What a second of waiting counts against a second of the target."""

HORIZON = 16
"""Hints that are looked ahead."""

ADDS = (0.8, 0.4, 0.2, 0.15, 0.1, 0.1)
"""Tokens that one hint more adds to a pass that expects 0, 1, 2, … drafted tokens, before it is known."""

LATE, GRACE_S = 1.3, 0.005
"""A hint is given up when it is this much later than it usually is."""

MARGIN = 1.08


@dataclass(slots=True)
class WaitPolicy:
    """One answer's estimates. Times are seconds of the session owner's clock."""

    weight: float = 1.0
    first_s: RunningMean = field(default_factory=lambda: RunningMean(math.inf, trust=0))
    interval_s: RunningMean = field(default_factory=lambda: RunningMean(math.inf, trust=0))
    comes: RunningMean = field(default_factory=lambda: RunningMean(1.0, rate=0.3, trust=1))
    adds: tuple[RunningMean, ...] = field(
        default_factory=lambda: tuple(RunningMean(value, trust=1) for value in ADDS)
    )
    _commits: dict[int, float] = field(default_factory=dict)
    _length: int = 0
    _heard_s: float = 0.0
    _hints: int = 0
    _gain: tuple[int, float] = (-1, 0.0)
    _awaited: bool = False

    def committed(self, length: int, now_s: float) -> None:
        """A pass has ended and `length` tokens are committed: the hints are counted anew."""
        late_s = now_s - LATE * self.first_s.value - GRACE_S
        unanswered = [known for known, at_s in self._commits.items() if at_s < late_s]
        for known in unanswered:
            del self._commits[known]
        if unanswered:
            self.comes.learn(0.0)
        self._length, self._heard_s = length, now_s
        self._commits[length] = now_s
        self._hints, self._gain, self._awaited = 0, (-1, 0.0), False

    def received(self, base: int, now_s: float) -> None:
        """A hint has come that knows the first `base` tokens."""
        since_s = self._commits.pop(base, None)
        if since_s is not None:
            self._commits = {length: at_s for length, at_s in self._commits.items() if length > base}
            self.first_s = _learned(self.first_s, now_s - since_s)
            self.comes.learn(1.0)
        elif self._hints:
            self.interval_s = _learned(self.interval_s, now_s - self._heard_s)
        if base < self._length:
            return
        self._hints += 1
        self._heard_s = now_s
        self._awaited = False

    def until_s(self, gain: float, pass_s: float, now_s: float) -> float | None:
        """Return until when to wait for the next hint, None to start the pass now.

        `gain` is what the tree in hand adds to a pass of `pass_s` seconds.
        """
        self._learn(gain)
        deadline_s = self._heard_s + LATE * self._next_s() + GRACE_S
        if now_s >= deadline_s:
            if self._awaited:
                self.comes.learn(0.0)
                self._awaited = False
            return None
        if self._hints >= HORIZON or math.isinf(deadline_s) or not self._is_worth(gain, pass_s, now_s):
            return None
        self._awaited = True
        return deadline_s

    def _next_s(self) -> float:
        """Return how long after the last one the next hint usually comes."""
        return min(self.interval_s.value, self.first_s.value) if self._hints else self.first_s.value

    def _is_worth(self, gain: float, pass_s: float, now_s: float) -> bool:
        """(1 + g + Δg) / (T + w d) against (1 + g) / T, for the best number of further hints."""
        rate_now = (1 + gain) / pass_s
        wait_s = max(0.0, self._heard_s + self._next_s() - now_s)
        for _ in range(self._hints, HORIZON):
            gain += self.comes.value * self._adds(gain).value
            if (1 + gain) / (pass_s + self.weight * wait_s) > MARGIN * rate_now:
                return True
            wait_s += min(self.interval_s.value, self.first_s.value)
        return False

    def _adds(self, gain: float) -> RunningMean:
        """Return what a hint adds where `gain` is expected already: most where there is little."""
        return self.adds[min(len(self.adds) - 1, int(gain))]

    def _learn(self, gain: float) -> None:
        """Learn what the last hint has added, if the tree before it was looked at."""
        before, known = self._gain
        if self._hints == before + 1 and before >= 0:
            self._adds(known).learn(max(0.0, gain - known))
        self._gain = (self._hints, gain)


def _learned(mean: RunningMean, observed: float) -> RunningMean:
    """Return the estimate with one observation more; the first is taken as it is."""
    if math.isinf(mean.value):
        return RunningMean(observed, trust=1)
    mean.learn(observed)
    return mean

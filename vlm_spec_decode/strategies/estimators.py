"""Running estimates for policies. Numbers only."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_spec_decode.decoding.policy import drafted_token_s

FORGET = 0.93

MOST_ROUNDS = 256
"""Rounds from one probe of a switch to the next, at most."""

PROBE_SHARE = 0.02
"""Of all time, for draft steps from which nothing is expected: without any, nothing would be learned."""


@dataclass(slots=True)
class RunningMean:
    """An exponentially forgetting mean that starts from a prior worth `trust` observations."""

    value: float
    rate: float = 0.2
    trust: int = 1
    count: int = 0

    def learn(self, observed: float) -> None:
        """Take one observation; the first ones weigh more the less the prior is trusted."""
        self.count += 1
        # m += r (x - m), where r = 1 / (n + trust) is the plain mean until it has fallen to `rate`.
        self.value += max(self.rate, 1 / (self.count + self.trust)) * (observed - self.value)


@dataclass(slots=True)
class RunningRatio:
    """A ratio of two forgetting sums, seconds per token say; the mean of single ratios would be too high."""

    keep: float = 0.7
    value: float = 0.0
    above: float = 0.0
    below: float = 0.0

    def learn(self, above: float, below: float) -> None:
        """Take one observation of both."""
        self.above, self.below = self.keep * self.above + above, self.keep * self.below + below
        self.value = self.above / self.below if self.below else 0.0


@dataclass(slots=True)
class StepCost:
    """What a forward pass of n rows takes: `base_s` and, for each row past `free`, `slope` of it.

    A least-squares line that forgets; the slope that it starts from counts as two observations.
    """

    slope: float
    free: int
    base_s: float = 0.0
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def learn(self, rows: int, seconds: float) -> None:
        """Take one measured pass."""
        if seconds <= 0:
            return
        extra = float(max(0, rows - self.free))
        if not self.base_s:
            base_s = seconds / (1 + self.slope * extra)
            self._add(0.0, base_s)
            # The prior slope as two points, at 0 and at 20 further rows.
            self._add(20.0, base_s * (1 + 20 * self.slope))
        self._sums = [FORGET * total for total in self._sums]
        self._add(extra, seconds)
        n, x, y, xx, xy = self._sums
        # Slope of the least-squares line, (n Σxy - Σx Σy) / (n Σx² - (Σx)²); a pass has no negative rows.
        spread = n * xx - x * x
        per_row_s = max(0.0, (n * xy - x * y) / spread) if spread > 1e-9 else 0.0
        self.base_s = max(1e-9, (y - per_row_s * x) / n)
        self.slope = per_row_s / self.base_s

    def seconds(self, rows: int) -> float:
        """Return what a pass of so many rows takes, 0 before one was measured."""
        return self.base_s * (1 + self.slope * max(0, rows - self.free))

    def rows_within(self, seconds: float) -> int:
        """Return how many rows a pass of `seconds` may have; 0 if there is not time for one."""
        if seconds < self.base_s or not self.base_s:
            return 0
        # T(n) = base (1 + slope (n - free)), solved for n.
        return self.free + int((seconds / self.base_s - 1) / max(self.slope, 1e-3))

    def _add(self, x: float, y: float) -> None:
        for index, term in enumerate((1.0, x, y, x * x, x * y)):
            self._sums[index] += term


@dataclass(slots=True)
class VerdictTime:
    """How long a verdict takes: RTT + T_v; 0 before it is known.

    The first pass, which reads the prompt, counts only as long as there is no other.
    """

    rtt_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))

    @property
    def seconds(self) -> float:
        """Return the expected wait."""
        return self.rtt_s.value + self.pass_s.value

    def learn(self, waited_s: float, compute_s: float) -> None:
        """Take one round."""
        self.rtt_s.learn(max(0.0, waited_s - compute_s))
        if self.pass_s.count == 1:
            self.pass_s.value = compute_s
        self.pass_s.learn(compute_s)


WRONG, RIGHT = 0.2, 0.9
"""A draft is biased whose first choices are right less often than the first, or more than the second."""

SUREST, MOST_BIAS = 0.995, 10.0
"""No first choice is taken to be likelier, nor its opposite; and no bias is greater."""


@dataclass(slots=True)
class Calibration:
    """How far a draft's own probabilities q can be trusted, learned from every verdict on a first choice.

    The exponent `sharpness` s mends, slowly, a draft that is too sure or not sure enough. It cannot mend one
    that is sure and wrong, nor one that is never sure and always right: `bias` β, which is added to the
    log-odds of first choices, mends both. `agreement` is how often first choices were right at all.
    """

    sharpness: float = 1.0
    bias: float = 0.0
    agreement: RunningMean = field(default_factory=lambda: RunningMean(0.7, rate=0.05, trust=3))

    def log_probs(self, scores: Sequence[float]) -> list[float]:
        """Return the log-probabilities of `scores` (best first)."""
        said = self.said(scores)
        first = self._right(said[0])
        # The others share what a likelier first choice leaves. One that is less likely than it says takes the
        # others with it: such a draft knows nothing.
        others = first / said[0] if self.bias < 0 else (1 - first) / max(1 - said[0], 1 - SUREST)
        return [math.log(first), *(math.log(max(1e-30, others * share)) for share in said[1:])]

    def said(self, scores: Sequence[float], log_sum: float = math.nan) -> list[float]:
        """Return the draft's own probabilities of `scores` (best first), sharpened: softmax(s · scores).

        Where `log_sum` is known (see `Ranking`), ids that are not kept have their share, as one: what is kept
        of an unsure row is not certain to hold the next token.
        """
        powers = [math.exp(self.sharpness * (score - scores[0])) for score in scores]
        whole = sum(powers)
        if math.isfinite(log_sum):
            shares = [math.exp(score - log_sum) for score in scores]
            whole += (max(0.0, 1.0 - sum(shares)) / shares[0]) ** self.sharpness
        return [power / whole for power in powers]

    def learn(self, hit: bool, said: float) -> None:
        """Take one verdict on a first choice that the draft itself gave the probability `said`."""
        self.agreement.learn(float(hit))
        # Gradient steps of the log-likelihood: d β = [first choice was right] - P, d log s = 0.1 of it.
        # Between the extremes such steps are noise, and the bias is forgotten.
        surprise = float(hit) - self._right(said)
        self.sharpness = min(3.0, max(0.3, self.sharpness * math.exp(0.1 * surprise)))
        is_extreme = not WRONG < self.agreement.value < RIGHT
        bias = self.bias + surprise if is_extreme else 0.8 * self.bias
        self.bias = min(MOST_BIAS, max(-MOST_BIAS, bias))

    def _right(self, said: float) -> float:
        """Return P of a first choice: its log-odds are those of `said`, plus the bias."""
        sure = min(SUREST, max(1 - SUREST, said))
        return 1 / (1 + math.exp(-math.log(sure / (1 - sure)) - self.bias))


def best_token_s(pass_s: float, step_s: float, agreement: float, most: int) -> float:
    """Return the seconds per token with the best number of draft steps, none to `most`, before each pass."""
    return min(pass_s, drafted_token_s(pass_s, step_s, agreement, most))


@dataclass(slots=True, kw_only=True)
class HysteresisSwitch:
    """Whether to do what is doubtful: it must help in `high` of the rounds to come on, in `low` to stay on.

    While it is off, a round is a probe now and then, ever more rarely, or nothing would be learned.
    """

    is_on: bool = True
    is_probe: bool = False
    low: float = 0.3
    high: float = 0.6
    probe_after: int = 8
    help: RunningMean = field(default_factory=lambda: RunningMean(0.0, rate=0.3, trust=1))
    _trusted: bool = False
    _off_for: int = 0

    def learn(self, helped: bool, is_doubtful: bool, *, may_probe: bool = True) -> None:
        """Take one round and decide about the next; `may_probe`: there is time for a probe."""
        if self.is_on:
            self.help.learn(float(helped))
            self._trusted = self.help.value >= (self.low if self._trusted else self.high)
        self._off_for += 1
        self.is_on = not is_doubtful or self._trusted
        self.is_probe = may_probe and not self.is_on and self._off_for >= self.probe_after
        if self.is_probe:
            self.is_on, self.probe_after = True, min(MOST_ROUNDS, 2 * self.probe_after)
        if self.is_on:
            self._off_for = 0


LEAST_SAMPLE_BYTES, JITTER_S = 4096, 0.02
"""A picture of fewer bytes says something of a rate only if it takes longer than acknowledgements vary by."""


@dataclass(slots=True)
class UplinkRate:
    """The rate at which pictures go up, from the times at which the cloud acknowledged their bytes.

    Between the first acknowledgement and the last lies the transmission alone, without the round trip. Both
    come a few milliseconds early or late: of a few hundred bytes nothing else is seen, unless the link is so
    slow that these take long, as by the rate known so far. Pictures are that small on such a link.
    """

    most_bytes: int = 0
    _seconds_per_bit: RunningRatio = field(default_factory=lambda: RunningRatio(keep=0.5))

    @property
    def bps(self) -> float | None:
        """Rate in bit/s; None before anything was measured."""
        return 1 / self._seconds_per_bit.value if self.most_bytes else None

    def learn(self, num_bytes: int, seconds: float) -> None:
        """Take the transmission of `num_bytes` of one picture; what is too short to tell is left out."""
        expected_s = 8 * num_bytes / self.bps if self.bps else 0.0
        if num_bytes <= 0 or (num_bytes < LEAST_SAMPLE_BYTES and expected_s < JITTER_S):
            return
        # A clock that has not moved would divide by zero; 1 us is faster than any link.
        self._seconds_per_bit.learn(max(1e-6, seconds), 8 * num_bytes)
        self.most_bytes = max(num_bytes, self.most_bytes // 2)


FIRST, OTHER, RECALLED = range(3)
"""Kinds of guesses: the draft's first choice, another one of its choices, an earlier answer's token."""

MOST_CONTEXTS = 4096
"""Pairs of token and kind that are counted; those not seen for longest are forgotten."""

KIND_TRUST, KIND_KEEP, MOST_FACTOR = 2.0, 0.97, 1.5
"""Guesses that the prior counts for, what one still counts for after the next, and the largest correction."""


@dataclass(slots=True)
class TokenKinds:
    """How far guesses are right after each token, learned: what follows some tokens the image alone decides.

    For each (token, kind of guess) the sums of what guesses were said to be worth, and of those that were
    right, give a factor for the probabilities of the next ones. Knows token ids alone, of any vocabulary.
    """

    _sums: OrderedDict[tuple[int, int], tuple[float, float]] = field(default_factory=OrderedDict)

    @property
    def num_contexts(self) -> int:
        """Return how many pairs of token and kind have been counted."""
        return len(self._sums)

    def factor(self, context: int, kind: int) -> float:
        """Return what the probability of a guess after `context` is to be multiplied by."""
        right, said = self._sums.get((context, kind), (0.0, 0.0))
        # f = (hits + a) / (Σ P + a): 1 before anything is known.
        return min(MOST_FACTOR, (right + KIND_TRUST) / (said + KIND_TRUST))

    def learn(self, context: int, kind: int, said: float, hits: float) -> None:
        """Take one place: guesses of a kind had `said` of the probability together, and were right or not."""
        right, before = self._sums.pop((context, kind), (0.0, 0.0))
        self._sums[context, kind] = (KIND_KEEP * right + hits, KIND_KEEP * before + said)
        if len(self._sums) > MOST_CONTEXTS:
            self._sums.popitem(last=False)


@dataclass(slots=True, kw_only=True)
class DraftRecord:
    """What answers have shown of a draft beside its target, for the next ones to start from. In seconds.

    `step_ratio` is a draft step over a step of the target, by the bytes that both read; 0: not known.
    `opening_s` is what the first draft step of an answer takes, which reads the prompt. `step` and `passes`
    are what later draft steps, and passes with drafts, take by rows; `plain_s` is a pass without a draft, and
    `first_pass_s` one that reads the prompt. `tokens` is the length of an answer. `lookup` is how often the
    next token of a repeated run was right, `kinds` how far guesses after each token were. `total_s` has gone
    into answers, `probed_s` of it into drafting that nothing was expected of. `switch` is that of drafting
    beside a target elsewhere.
    """

    step_ratio: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    step: StepCost = field(default_factory=lambda: StepCost(slope=0.03, free=1))
    passes: StepCost = field(default_factory=lambda: StepCost(slope=0.05, free=0))
    opening_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    plain_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    first_pass_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    tokens: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    lookup: RunningMean = field(default_factory=lambda: RunningMean(0.6, trust=1))
    kinds: TokenKinds = field(default_factory=TokenKinds)
    switch: HysteresisSwitch = field(default_factory=HysteresisSwitch)
    total_s: float = 0.0
    probed_s: float = 0.0

    def may_probe(self, seconds: float) -> bool:
        """Tell whether there is time for a probe that takes so long."""
        return self.probed_s + seconds <= PROBE_SHARE * self.total_s

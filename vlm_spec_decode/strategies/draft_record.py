"""What answers have shown of a draft beside its target. An engine keeps it from one answer to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.strategies.estimators import Calibration, HysteresisSwitch, RunningMean, StepCost


@dataclass(slots=True, kw_only=True)
class DraftRecord:
    """Estimates that a new answer starts from. Times in seconds.

    `step_ratio` is a draft step over a step of the target, by the bytes that both read; 0: not known.
    `opening_s` is what the first draft step of an answer takes, which reads the prompt. `step` and `passes`
    are what later draft steps, and passes with drafts, take by rows; `plain_s` is a pass without a draft, and
    `first_pass_s` one that reads the prompt. `tokens` is the length of an answer. `lookup` is how
    often the first token of a repeated run was right. `total_s` has gone into answers, `probed_s` of it into
    drafting that nothing was expected of. `switch` is that of drafting beside a target elsewhere.
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
    switch: HysteresisSwitch = field(default_factory=HysteresisSwitch)
    total_s: float = 0.0
    probed_s: float = 0.0

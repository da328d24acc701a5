"""Speculative decoding wholly in the cloud: the draft model sits beside the target (2211.17192, section 2).

No round trip is in the loop, but drafting takes the target's GPU. The baseline that every edge-cloud
scheme must face. The draft length is the best one for the measured acceptance α and cost ratio c of a
draft step to a pass: it maximises (1 - α^(γ+1)) / ((1 - α)(1 + γ c)) (section 3.5, theorem 3.8).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import RULES, AnswerRequest, Commit, SamplingParams, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy, ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.strategies import autoregressive
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_chain
from vlm_spec_decode.strategies.estimators import RunningMean
from vlm_spec_decode.strategies.rejection import ProposalLog

MAX_LENGTH = 16


@dataclass(slots=True)
class Cloud(CloudPolicy):
    """Draft γ tokens, verify, repeat."""

    acceptance: RunningMean = field(default_factory=lambda: RunningMean(0.7, rate=0.05, trust=4))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    step_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    _params: SamplingParams = field(default_factory=SamplingParams)
    _proposals: ProposalLog | None = None
    _drafted_s: float = 0.0

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Take the parameters. Raises ConfigError without a draft beside the target."""
        if not has_helper:
            raise ConfigError("strategy 'colocated' needs a draft beside the target (vsd cloud --draft)")
        self._params = request.params
        self._proposals = ProposalLog(request.params) if request.params.rule == "rejection" else None

    def next_pass(self, tree: SpeculationTree) -> Tokens:  # noqa: ARG002
        """Go on at once; `extend` adds the draft."""
        return ()

    def extend(self, plan: PassPlan, helper: ColocatedDraft) -> PassPlan:
        """Draft γ tokens after the committed ones."""
        started_s, self._drafted_s = helper.clock.now(), 0.0
        config = EdgeConfig(
            answer=0, params=self._params, draft_length=self.length(), proposals=self._proposals
        )
        chain = draft_chain(helper.context, plan.prefix, config)
        self._drafted_s = helper.clock.now() - started_s
        if chain:
            self.step_s.learn(self._drafted_s / len(chain))
        grown = plan.nodes.grown(chain, tuple(range(len(chain))))
        own_q = self._proposals.along(plan.prefix, chain) if self._proposals else ()
        return PassPlan(plan.pass_id, plan.prefix, grown, own_q)

    def completed(self, plan: PassPlan, commit: Commit) -> None:
        """Learn acceptance and cost."""
        for drafted, said in zip(plan.nodes.tokens, commit.tokens, strict=False):
            self.acceptance.learn(float(drafted == said))
            if drafted != said:
                break
        # The first pass also reads the prompt.
        if plan.pass_id > 1:
            self.pass_s.learn(commit.compute_s - self._drafted_s)
        self._drafted_s = 0.0

    def length(self) -> int:
        """Return γ."""
        alpha = min(0.98, self.acceptance.value)
        ratio = self.step_s.value / self.pass_s.value if self.pass_s.value else 0.1

        # (1 - α^(γ+1)) / ((1 - α)(1 + γ c)); the factor 1 - α does not depend on γ (2211.17192, theorem 3.8).
        def tokens_per_time(gamma: int) -> float:
            return (1 - alpha ** (gamma + 1)) / (1 + gamma * ratio)

        return max(range(MAX_LENGTH + 1), key=tokens_per_time)


STRATEGY = Strategy(
    name="colocated",
    edge=autoregressive.edge,
    cloud=Cloud,
    drafts=False,
    source="arXiv 2211.17192",
    needs_helper=True,
    rules=RULES,
)

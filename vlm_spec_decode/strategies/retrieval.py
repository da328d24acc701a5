"""Retrieval alone: earlier answers are the only drafts, so neither the robot nor the cloud has a draft model.

Each pass of the target verifies what followed the longest match of the answer so far in the answers that
the robot has been given (`decoding.free_drafts`; SAM-Decoding, arXiv 2411.10666, with branches). The drafts
are made in the cloud: nothing goes up, and an answer costs one round trip and its passes. Under the
`rejection` rule nothing is recalled, because drafts are draws from a known distribution there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_spec_decode.core.types import RULES, AnswerRequest, Commit, Tokens
from vlm_spec_decode.decoding.free_drafts import FreeDraft, FreeDrafts
from vlm_spec_decode.decoding.policy import CloudPolicy, PassPlan, with_free_draft
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.strategies import autoregressive
from vlm_spec_decode.strategies.base import Strategy

MOST_NODES, LEAST = 16, 0.04
"""Nodes of a pass, and how likely each must be to be reached."""


@dataclass(slots=True)
class Cloud(CloudPolicy):
    """Recall, verify, repeat."""

    memory: FreeDrafts | None = None
    _instruction: str = ""
    _draft: FreeDraft = field(default_factory=FreeDraft)

    def recall_from(self, memory: FreeDrafts) -> None:
        """Take the robot's answers."""
        self.memory = memory

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:  # noqa: ARG002
        """Take the instruction: an answer's first tokens follow from it."""
        self._instruction = request.observation.instruction

    def next_pass(self, tree: SpeculationTree) -> Tokens:  # noqa: ARG002
        """Go on at once; `recalled` adds the drafts."""
        return ()

    def recalled(self, plan: PassPlan) -> PassPlan:
        """Recall what may follow the committed tokens."""
        if self.memory is None:
            return plan
        self._draft = self.memory.recall(self._instruction, plan.prefix, most=MOST_NODES, floor=LEAST)
        return with_free_draft(plan, self._draft)[0]

    def completed(self, plan: PassPlan, commit: Commit) -> None:  # noqa: ARG002
        """Learn how far what was recalled can be trusted."""
        if self.memory:
            self.memory.learn(self._draft, commit.tokens)


STRATEGY = Strategy(
    name="retrieval",
    edge=autoregressive.edge,
    cloud=Cloud,
    drafts=False,
    source="arXiv 2411.10666",
    rules=RULES,
)

"""`hybrid`'s cloud half: what the next pass of the target holds, and whether to wait for a hint first.

All is weighed in one currency, seconds per committed token. A node is verified if its probability times
that is worth the time it adds to the pass; the cloud drafts for itself where its copy of the draft is
worth its step; a pass waits for a hint while the tokens that the hint usually brings outweigh the wait.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from vlm_spec_decode.core.session import PassPlan
from vlm_spec_decode.core.tree import WEIGHT_STEP, SpeculationTree
from vlm_spec_decode.core.types import AnswerRequest, Commit, Draft, Tokens
from vlm_spec_decode.strategies.estimates import Mean, StepCost
from vlm_spec_decode.strategies.own_draft import OwnDraft

MAX_NODES = 32
WAIT_WEIGHT = {"latency": 1.0, "balanced": 0.5, "cost": 0.1}
"""What a second of waiting counts against a second of the target."""


@dataclass(slots=True)
class Cloud(OwnDraft):
    """One answer's policy. Times in seconds of the session owner's clock."""

    wants_exits: bool = True
    wake_s: float | None = None
    cost: StepCost = field(default_factory=lambda: StepCost(slope=0.01, free=4))
    delay: Mean = field(default_factory=lambda: Mean(math.inf, trust=0))
    first_gain: Mean = field(default_factory=lambda: Mean(0.8, trust=1))
    _wait_weight: float = 1.0
    _now_s: float = 0.0
    _committed_s: float = 0.0
    _has_completed: bool = False
    _hint_is_fresh: bool = False
    _committed: int = 0
    _gave_up: bool = False

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Take the objective; a helper is welcome and not needed."""
        self._wait_weight = WAIT_WEIGHT.get(request.objective, 1.0)
        self._committed = len(request.committed)
        self._begin_own(request, has_helper)

    def at(self, now_s: float) -> None:
        """Note the time; right after a pass it is the commit's."""
        self._now_s = now_s
        if self._has_completed:
            self._has_completed = False
            self._committed_s = now_s

    def received(self, draft: Draft, now_s: float) -> None:
        """Measure how long the edge takes to answer a commit with a hint."""
        if draft.base >= self._committed > 0 and not self._hint_is_fresh and not self._has_completed:
            self._hint_is_fresh = True
            delay_s = now_s - self._committed_s
            if math.isinf(self.delay.value):
                self.delay = Mean(delay_s, trust=1)
            self.delay.learn(delay_s)

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Choose the likeliest nodes, or wait."""
        chosen = self._choose(tree)
        gain = sum(self.weights[n] for n in chosen)
        if self._should_wait(gain):
            return None
        if self.wake_s is not None:
            self.first_gain.learn(gain)
            self.wake_s = None
        return chosen

    def completed(self, plan: PassPlan, commit: Commit) -> None:
        """Learn the pass's cost and yield."""
        if plan.pass_id > 1:
            self.cost.learn(len(plan.nodes.numbers), commit.compute_s - self.drafted_s)
            self.pass_s.learn(commit.compute_s)
        self.gain.learn(len(commit.tokens))
        self._judge_own(plan, commit.tokens)
        self._has_completed, self._hint_is_fresh = True, False
        self._committed = commit.start + len(commit.tokens)

    def _choose(self, tree: SpeculationTree) -> Tokens:
        """Best first by path probability: parents come before children by construction."""
        self.weights = {0: 1.0}
        heap = [(-_likelihood(tree, n), n) for n in tree.below(0)]
        heapq.heapify(heap)
        chosen = list[int]()
        while heap and len(chosen) < MAX_NODES:
            weight, number = heapq.heappop(heap)
            extra = len(chosen) >= self.cost.free
            if -weight < (self.node_floor(self.cost) if extra else 0.001):
                break
            chosen.append(number)
            self.weights[number] = -weight
            for child in tree.below(number):
                heapq.heappush(heap, (weight * _likelihood(tree, child), child))
        return tuple(chosen)

    def _should_wait(self, gain: float) -> bool:
        """Optimal stopping with one look ahead: (1 + G) / (T + w d) against (1 + g) / T."""
        pass_s = self.cost.base_s
        if self._hint_is_fresh or not pass_s or self.has_helper:
            return False
        deadline_s = self._committed_s + 1.3 * self.delay.value + 0.005
        if self._now_s >= deadline_s:
            return False
        wait_s = max(0.0, self._committed_s + self.delay.value - self._now_s)
        wait = self._wait_weight * wait_s
        if (1 + self.first_gain.value) * pass_s <= (1 + gain) * (pass_s + wait):
            return False
        self.wake_s = deadline_s
        return True


def _likelihood(tree: SpeculationTree, number: int) -> float:
    return math.exp(-WEIGHT_STEP * tree.nodes[number].weight)

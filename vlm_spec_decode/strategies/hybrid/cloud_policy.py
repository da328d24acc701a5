"""`hybrid`'s cloud half: which nodes the next pass verifies, and whether to wait for a draft first.

Everything is weighed in seconds per committed token, c. A node is verified if P(node) · c exceeds the time
that it adds to the pass; the cloud drafts a token itself if the same product exceeds the time of a draft
step; a pass waits for a draft message while the tokens that it usually brings outweigh the wait.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, Tokens
from vlm_spec_decode.decoding.session import PassPlan
from vlm_spec_decode.decoding.tree import WEIGHT_STEP, SpeculationTree
from vlm_spec_decode.strategies.hybrid.self_draft import SelfDraft
from vlm_spec_decode.strategies.hybrid.wait_policy import WEIGHT, WaitPolicy

MAX_VERIFIED_NODES = 64

FIRST_ANSWER_S, FAR = 0.05, 1.5
"""How soon an edge is taken to answer before it has; an answer so many passes later is too late for exits."""


@dataclass(slots=True)
class Cloud(SelfDraft):
    """One answer's policy. Times in seconds of the session owner's clock."""

    wants_exits: bool = True
    wake_s: float | None = None
    waiting: WaitPolicy = field(default_factory=WaitPolicy)
    _now_s: float = 0.0
    _edge_is_near: bool = True
    _has_completed: bool = False
    _committed: int = 0

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Take the objective; a helper is welcome and not needed."""
        self.waiting.weight = WEIGHT[request.objective]
        self._committed = len(request.committed)
        self._begin_own(request, has_helper)

    def at(self, now_s: float) -> None:
        """Note the time; right after a pass it is the commit's."""
        self._now_s = now_s
        if self._has_completed:
            self._has_completed = False
            self.waiting.committed(self._committed, now_s)

    def received(self, draft: DraftMessage, now_s: float) -> None:
        """Measure how long the edge takes to answer a commit with hints."""
        if not self._has_completed:
            self.waiting.received(draft.base, now_s)

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Choose the likeliest nodes, or wait."""
        chosen = self._choose(tree)
        self.pace.in_hand = gain = sum(self.weights[n] for n in chosen)
        self.wants_exits = self._edge_is_near and (not self.has_helper or self.pace.is_carried)
        self.wake_s = self._wait_until_s(gain)
        return chosen if self.wake_s is None else None

    def completed(self, plan: PassPlan, commit: Commit) -> None:
        """Learn the pass's cost and yield."""
        verify_s, is_first = commit.compute_s - self.drafted_s, plan.pass_id == 1
        if not is_first:
            self.cost.learn(len(plan.nodes.numbers), verify_s)
        self.pace.passed(len(commit.tokens), verify_s, self.drafted_s, is_first=is_first)
        self._judge_own(plan, commit.tokens)
        self.drafted_s, self._guesses = 0.0, {}
        self._edge_is_near = self._answers_in_time(commit.compute_s)
        self._has_completed = True
        self._committed = commit.start + len(commit.tokens)

    def _answers_in_time(self, pass_s: float) -> bool:
        """Tell whether the edge can still make something of an early verdict: it says sooner, by a part of a
        pass, what the commit says, which is nothing to an edge whose answers take longer than passes."""
        answers_s = self.waiting.first_s.value
        return (FIRST_ANSWER_S if math.isinf(answers_s) else answers_s) <= FAR * pass_s

    def _choose(self, tree: SpeculationTree) -> Tokens:
        """Best first by path probability: parents come before children by construction."""
        self.weights = {0: 1.0}
        heap = [(-_likelihood(tree, n), n) for n in tree.below(0)]
        heapq.heapify(heap)
        chosen = list[int]()
        while heap and len(chosen) < MAX_VERIFIED_NODES:
            weight, number = heapq.heappop(heap)
            extra = len(chosen) >= self.cost.free
            if -weight < (self.node_floor() if extra else 0.001):
                break
            chosen.append(number)
            self.weights[number] = -weight
            for child in tree.below(number):
                heapq.heappush(heap, (weight * _likelihood(tree, child), child))
        return tuple(chosen)

    def _wait_until_s(self, gain: float) -> float | None:
        """A copy of the draft here drafts instead of waiting, unless its time is what must be saved."""
        if not self.cost.base_s or (self.has_helper and self.waiting.weight == 1):
            return None
        return self.waiting.until_s(gain, self.cost.base_s, self._now_s)


def _likelihood(tree: SpeculationTree, number: int) -> float:
    return math.exp(-WEIGHT_STEP * tree.nodes[number].weight)

"""The cloud's own drafting: a copy of the draft adds tokens where the edge's drafts are few.

A step of t seconds is taken if P(node) · r · c > t · sqrt(1 + h), where r is how often the copy was right,
c the seconds that a token takes now (`cost_model`), and h the expected tokens of the drafts that have
arrived. An edge whose drafts fill the passes makes tokens cheap, and the copy is then not used.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

from vlm_spec_decode.core.types import AnswerRequest, SamplingParams, Support, Tokens
from vlm_spec_decode.decoding.sampling import perturbed_scores
from vlm_spec_decode.decoding.session import ColocatedDraft, PassPlan
from vlm_spec_decode.strategies.estimators import StepCost
from vlm_spec_decode.strategies.hybrid.cost_model import MAX_STEPS, TokenCost
from vlm_spec_decode.strategies.rejection import ProposalLog

CHOICES = 3
USUAL_GAIN = 1.5
"""Tokens per pass, before a pass has been measured."""


@dataclass(slots=True)
class SelfDraft:
    """The time per token, and the co-located draft model, of a `hybrid` cloud policy."""

    weights: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    pace: TokenCost = field(default_factory=TokenCost)
    cost: StepCost = field(default_factory=lambda: StepCost(slope=0.01, free=4))
    drafted_s: float = 0.0
    has_helper: bool = False
    _params: SamplingParams = field(default_factory=SamplingParams)
    _guesses: dict[int, int] = field(default_factory=dict)
    _proposals: ProposalLog | None = None

    def _begin_own(self, request: AnswerRequest, has_helper: bool) -> None:
        self._params, self.has_helper = request.params, has_helper
        self._proposals = ProposalLog(request.params) if request.params.rule == "rejection" else None

    def node_floor(self) -> float:
        """Return the probability from which on a further node is worth its time in a pass."""
        token_s = self.pace.token_s.value
        return self.cost.slope * (self.cost.base_s / token_s if self.cost.base_s else USUAL_GAIN)

    def extend(self, plan: PassPlan, helper: ColocatedDraft) -> PassPlan:
        """Draft below the likeliest rows that have nothing below them, one step each."""
        self.drafted_s, self._guesses = 0.0, {}
        guesses: dict[int, int] = {}
        tokens, parents = list(plan.nodes.tokens), list(plan.nodes.parents)
        weights = [1.0, *(self.weights[n] for n in plan.nodes.numbers)]
        open_rows = [(-w, row) for row, w in enumerate(weights) if row not in parents]
        heapq.heapify(open_rows)
        known, floor = len(tokens), self.node_floor()
        for _ in range(MAX_STEPS):
            if not open_rows or -open_rows[0][0] < self.pace.step_floor():
                break
            weight, row = heapq.heappop(open_rows)
            position = len(plan.prefix) + _depth(row, parents)
            ended = row and tokens[row - 1] in self._params.stop_ids
            if ended or position + 1 >= self._params.max_tokens:
                continue
            for token, chance in self._step(plan.prefix, tokens, parents, row, position, helper):
                if row in guesses and weight * chance > -floor:
                    continue
                tokens.append(token)
                parents.append(row)
                guesses.setdefault(row, len(tokens))
                heapq.heappush(open_rows, (weight * chance, len(tokens)))
        self._guesses = guesses
        grown = plan.nodes.grown(tuple(tokens[known:]), tuple(parents[known:]))
        return PassPlan(plan.pass_id, plan.prefix, grown, self._own_q(plan.prefix, tokens, parents, known))

    def _own_q(
        self, prefix: Tokens, tokens: list[int], parents: list[int], known: int
    ) -> tuple[Support, ...]:
        """Return what the nodes after the first `known` were drawn from, under the rule that asks for it."""
        if self._proposals is None:
            return ()
        rows = range(known + 1, len(tokens) + 1)
        paths = [_path_to(row, tokens, parents)[0] for row in rows]
        return tuple(self._proposals.q(prefix + path[:-1], path[-1]) for path in paths)

    def _step(
        self,
        prefix: Tokens,
        tokens: list[int],
        parents: list[int],
        row: int,
        position: int,
        helper: ColocatedDraft,
    ) -> list[tuple[int, float]]:
        """Return the helper's likeliest (token, probability) after `row`."""
        started_s = helper.clock.now()
        logits = helper.context.score(prefix, *_path_to(row, tokens, parents))[-1]
        seconds = helper.clock.now() - started_s
        self.pace.step_s.learn(seconds)
        self.drafted_s += seconds
        if self._proposals:
            path = prefix + _path_to(row, tokens, parents)[0]
            return [(self._proposals.draw(path, logits), self.pace.agreement.value)]
        scores = perturbed_scores(logits, position, self._params)
        best = np.argsort(-scores, kind="stable")[:CHOICES]
        log_sum = math.log(float(np.exp(scores - scores[best[0]]).sum()))
        chances = np.exp(scores[best] - scores[best[0]] - log_sum)
        first = (int(best[0]), self._chance(float(chances[0])))
        return [first, *((int(t), float(p)) for t, p in zip(best[1:], chances[1:], strict=True) if p > 0.05)]

    def _chance(self, own: float) -> float:
        """Return how likely the copy's first choice is right: what it says itself counts once it is known."""
        agreement = self.pace.agreement
        return math.sqrt(own * agreement.value) if agreement.count else min(own, agreement.value)

    def _judge_own(self, plan: PassPlan, said: Tokens) -> None:
        """Learn from each guess that the truth came to: was the copy's first choice right?"""
        row, nodes = 0, plan.nodes
        child = {(p, t): r for r, (t, p) in enumerate(zip(nodes.tokens, nodes.parents, strict=True), 1)}
        for token in said:
            guess = self._guesses.get(row)
            if guess is not None:
                self.pace.agreement.learn(float(nodes.tokens[guess - 1] == token))
            following = child.get((row, token))
            if following is None:
                return
            row = following


def _depth(row: int, parents: list[int]) -> int:
    depth = 0
    while row:
        row, depth = parents[row - 1], depth + 1
    return depth


def _path_to(row: int, tokens: list[int], parents: list[int]) -> tuple[Tokens, Tokens]:
    """Return the chain of nodes from the prefix down to `row`, as `score` takes it."""
    path = list[int]()
    while row:
        path.append(tokens[row - 1])
        row = parents[row - 1]
    return tuple(reversed(path)), tuple(range(len(path)))

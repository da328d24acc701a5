"""`hybrid`'s drafting in the cloud: what a token costs now, and when a copy of the draft adds to a pass.

All is weighed in seconds per committed token, c (`TokenCost`). The copy expands the likeliest open rows of a
pass in batched steps, as the edge does with its tree, while the tokens that a step adds, times c, exceed its
time (`SelfDraft`). Where no number of steps beats a plain step of the target, nobody drafts here.

What earlier answers say (`Recall`) costs no step. The edge's draft has seen the frame, earlier answers have
not. So a token that is recalled has what the drafted ones leave of the probability, and what is recalled of
a drafted token goes on below it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import AnswerRequest, SamplingParams, Support, Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.free_drafts import FreeDraft, FreeDrafts
from vlm_spec_decode.decoding.policy import (
    MAX_STEPS,
    ColocatedDraft,
    DraftCosts,
    DraftedStep,
    DraftStep,
    DraftSteps,
    PassPlan,
    drafted_token_s,
)
from vlm_spec_decode.decoding.price import FREE, Price
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.strategies.base import tree_of
from vlm_spec_decode.strategies.estimators import Calibration, RunningMean, RunningRatio, StepCost
from vlm_spec_decode.strategies.rejection import ProposalLog

STEP_RATIO = 0.1
"""Of a draft step beside the target to a pass, before both are known."""

USUAL_GAIN, USUALLY_RIGHT = 1.5, 0.75
"""Drafted tokens per pass, before a pass has been measured; part of an edge's tokens that are accepted."""

CLEARLY = 0.8
"""Of the cost of a token: what counts while neither drafter has been seen at work."""


@dataclass(slots=True, kw_only=True)
class TokenCost:
    """Estimates of one answer, in seconds. `agreement` is how often a step of the copy holds the next token.

    `pass_s` is of passes that verify nodes, `plain_s` of those that do not: their kernels may differ. The
    first pass, which holds what is known of the answer before it is drafted, is no part of `later_…`.
    """

    agreement: RunningMean = field(default_factory=lambda: RunningMean(0.7, rate=0.05, trust=2))
    step: StepCost = field(default_factory=lambda: StepCost(slope=0.03, free=1))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    plain_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    tokens: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    later_tokens: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))
    in_hand: float = 0.0
    edge_step_s: float = 0.0
    token_s: RunningRatio = field(default_factory=RunningRatio)
    later_token_s: RunningRatio = field(default_factory=RunningRatio)
    _first_s: float = 0.0

    def expect(self, costs: DraftCosts | None) -> None:
        """Start from what was measured before the first answer, if nothing is known yet."""
        if costs and not self.step.base_s:
            self.step.learn(1, costs.step_s)
            self.pass_s = RunningMean(costs.verify_s, trust=1)
            self.plain_s = RunningMean(costs.plain_s, trust=1)

    def passed(
        self, tokens: int, verify_s: float, drafted_s: float, *, is_first: bool, is_plain: bool
    ) -> None:
        """Take a pass: `tokens` were committed after so long a verification and so much own drafting.

        The first one reads the prompt: it only bounds what others take.
        """
        if is_first:
            self._first_s = verify_s
        else:
            (self.plain_s if is_plain else self.pass_s).learn(verify_s)
        self.tokens.learn(tokens)
        if not is_first:
            self.later_tokens.learn(tokens)
            self.later_token_s.learn(verify_s + drafted_s, tokens)
        self.token_s.learn(verify_s + drafted_s, tokens)

    @property
    def is_carried(self) -> bool:
        """Whether the hints in hand bring half of what a pass usually does: the edge is worth talking to."""
        return self.tokens.count > 0 and 2 * (1 + self.in_hand) >= self.tokens.value

    def edge_gain(self) -> float:
        """Return h, the tokens that the edge's drafts add to a pass if the cloud leaves the drafting to it.

        From the exit at half depth on it knows where a pass ends: h = α + … + α^n for the n steps of T / 2.
        """
        steps = min(MAX_STEPS, int(0.5 * self._usual_pass_s() / self.edge_step_s)) if self.edge_step_s else 0
        return sum(self.agreement.value**depth for depth in range(1, steps + 1))

    def usual_gain(self) -> float:
        """Return the drafted tokens that a pass usually accepts: as seen, first passes left out.

        Before: of those that the edge drafts while a pass runs `USUALLY_RIGHT`, at least `USUAL_GAIN`.
        """
        if self.later_tokens.count:
            return max(USUAL_GAIN, self.later_tokens.value - 1)
        pass_s = self.pass_s.value or self.plain_s.value
        return max(USUAL_GAIN, USUALLY_RIGHT * pass_s / self.edge_step_s if self.edge_step_s else 0.0)

    @property
    def edge_ratio(self) -> float:
        """What a token costs with the edge's drafts, T / (1 + h), over its cost with those of the copy."""
        return self._usual_pass_s() / (1 + self.edge_gain()) / self.alone_s()

    @property
    def is_edge_better(self) -> bool:
        """Whether a token costs less with the edge's drafts than with those of the copy."""
        return self.edge_ratio < 1

    @property
    def lead(self) -> float:
        """The edge's tokens that one token of the copy's comes on top of: a copy's commit overtakes them."""
        return max(self.in_hand, self.edge_gain()) if self.is_edge_better else self.in_hand

    def plan_s(self, gain: float, drafted_s: float = 0.0) -> float:
        """Return what a token costs, c: as measured, at most as in a pass that expects `gain` drafted ones.

        The rate (1 + G) / (T + D) of the pass in hand bounds it: what adds less than that makes it worse.
        """
        known_s = min(self.alone_s(), (self._usual_pass_s() + drafted_s) / (1 + gain))
        return min(known_s, self.token_s.value or known_s)

    def is_row_worth_it(self, gain: float) -> bool:
        """Tell whether a pass over drafted tokens, `gain` of them right, beats a plain step of the target."""
        plain_s, pass_s = self.plain_s.value, self.pass_s.value
        return not (plain_s and pass_s) or (1 + gain) / pass_s > 1 / plain_s

    def is_drafting_worth_it(self) -> bool:
        """Tell whether any number of the copy's steps beats the target's own steps."""
        return not self.plain_s.value or self.alone_s() < self.plain_s.value

    def alone_s(self) -> float:
        """Return what a token takes if the copy drafts."""
        step_s = self.step.base_s or STEP_RATIO
        pass_s = self._usual_pass_s() if self.step.base_s else 1.0
        return drafted_token_s(pass_s, step_s, self.agreement.value)

    def _usual_pass_s(self) -> float:
        """Return what a pass takes: as measured, or so many steps as usual, at most as the first one took."""
        guess_s = self.step.base_s / STEP_RATIO
        return self.pass_s.value or self.plain_s.value or min(guess_s, self._first_s or guess_s)


CHOICES = 6
LEAST_SHARE = 0.02

MAX_BATCH = 24


@dataclass(slots=True)
class _Growth:
    """The rows of one pass while the copy adds to them. Row 0 is the prefix, row i is `tokens[i - 1]`."""

    prefix: Tokens
    tokens: list[int]
    parents: list[int]
    open_rows: list[tuple[float, int]]
    gain: float

    def add(self, parent: int, token: int, weight: float) -> int:
        """Add a row below another one and return it."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.gain += weight
        heapq.heappush(self.open_rows, (-weight, len(self.tokens)))
        return len(self.tokens)

    def depth(self, row: int) -> int:
        """Return how many rows lie between a row and the prefix, itself included."""
        return len(self.path(row))

    def path(self, row: int) -> Tokens:
        """Return the tokens from the prefix down to a row."""
        path = list[int]()
        while row:
            path.append(self.tokens[row - 1])
            row = self.parents[row - 1]
        return tuple(reversed(path))


@dataclass(slots=True, kw_only=True)
class SelfDraft:
    """The cloud's own drafting: a copy of the draft model adds tokens where the edge's drafts are few.

    A step over rows of probabilities P_i that takes t seconds adds Σ P_i r tokens, where r is how often a
    step of the copy held the next token. It is made if that times c (`TokenCost.plan_s`) exceeds t: an edge
    whose drafts fill the passes makes tokens cheap. What the copy commits is taken out of that edge's lead,
    so a token is worth c / (1 + h), where h is the lead: the copy then drafts little or nothing. `weights`
    are the probabilities of the edge's nodes that the pass holds, by number.
    """

    weights: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    pace: TokenCost = field(default_factory=TokenCost)
    cost: StepCost = field(default_factory=lambda: StepCost(slope=0.01, free=0))
    calibration: Calibration = field(default_factory=Calibration)
    drafted_s: float = 0.0
    has_helper: bool = False
    price: Price = FREE
    _answers: int = 1
    _drafting: int = 1
    _params: SamplingParams = field(default_factory=SamplingParams)
    _guesses: dict[int, dict[int, float]] = field(default_factory=dict)
    _proposals: ProposalLog | None = None

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Learn the answer's rule, and whether there is a copy of the draft model."""
        self._params, self.has_helper = request.params, has_helper
        self._proposals = ProposalLog(request.params) if request.params.rule == "rejection" else None

    def node_floor(self, gain: float, answers: int = 1) -> float:
        """Return from which probability on a node is worth its time in a pass that expects `gain` tokens.

        What a long hint brings to one pass does not come again: a token that this pass leaves out costs as
        much as one of a usual pass. A row holds up all of the `answers` that share the pass.
        """
        usual = 1 + min(gain, self.pace.usual_gain())
        if not self.price.is_free:
            token_s = self.pace.later_token_s.value or self.price.pass_s
            return self.price.node_floor(min(token_s, self.price.pass_s / usual), usual)
        slope = self.cost.slope * answers
        if not self.cost.base_s:
            return slope * usual
        # A row adds slope · base seconds to each answer of a pass and P(node) tokens of c seconds to its own:
        # P = n · slope · base / c.
        token_s = self.pace.later_token_s.value or self.cost.base_s
        return slope * self.cost.base_s / min(token_s, self.cost.base_s / usual)

    def steps(self, plan: PassPlan, helper: ColocatedDraft, answers: int = 1) -> DraftSteps:
        """Draft below the likeliest rows that have nothing below them, in batched steps.

        In a pass of several answers each step holds up all of them, and is shared by those that still draft.
        """
        self.drafted_s, self._guesses = 0.0, {}
        self.pace.expect(helper.costs)
        weights = [1.0, *(self.weights[n] for n in plan.nodes.numbers)]
        parents = list(plan.nodes.parents)
        open_rows = [(-w, row) for row, w in enumerate(weights) if row not in parents]
        heapq.heapify(open_rows)
        grown = _Growth(plan.prefix, list(plan.nodes.tokens), parents, open_rows, sum(weights) - 1)
        known = len(grown.tokens)
        if not known and not self.pace.is_drafting_worth_it():
            return plan
        # To an edge that says it drafts fast the drafting is left until its first drafts have shown what they
        # bring: they are made while this pass runs, and would be drafted here a second time.
        is_promising = self.pace.edge_gain() > 0 and self.pace.edge_ratio < CLEARLY
        if is_promising and not self.pace.tokens.count:
            return plan
        self._answers = self._drafting = answers
        for _ in range(MAX_STEPS):
            rows = self._worth_expanding(grown)
            if not rows:
                break
            tree = tree_of(grown.path(row) for _, row in rows)
            step = yield DraftStep(plan.prefix, tree[:2], tree[2])
            self._take(grown, rows, step)
        nodes = plan.nodes.grown(tuple(grown.tokens[known:]), tuple(grown.parents[known:]))
        return PassPlan(plan.pass_id, plan.prefix, nodes, self._own_q(grown, known))

    def _worth_expanding(self, grown: _Growth) -> list[tuple[float, int]]:
        """Return (probability, row) of the rows of the next step, none if it is not worth its time."""
        step, chosen, total = self.pace.step, list[tuple[float, int]](), 0.0
        token_s = self.pace.plan_s(grown.gain, self.drafted_s)
        if not self.price.is_free:
            token_s = self.price.token_s(token_s, 1 + grown.gain)
        token_s /= 1 + self.pace.lead
        worth_s = self.pace.agreement.value * token_s
        base_s = step.base_s or STEP_RATIO
        # A step takes t from each of the n answers of the pass; the k that draft pay for it together.
        held_up = max(self._answers, 1 + self.price.others)
        shared_s, row_s = base_s * held_up / self._drafting, step.slope * base_s * held_up
        while grown.open_rows and len(chosen) < (1 if self._proposals else MAX_BATCH):
            weight = -grown.open_rows[0][0]
            # A further row adds P r tokens of c seconds to the step, and n times slope · t seconds of time.
            if chosen and weight * worth_s < row_s:
                break
            _, row = heapq.heappop(grown.open_rows)
            position = len(grown.prefix) + grown.depth(row)
            has_ended = row and grown.tokens[row - 1] in self._params.stop_ids
            if not has_ended and position + 1 < self._params.max_tokens:
                chosen.append((weight, row))
                total += weight
        return chosen if total * worth_s >= shared_s + row_s * (len(chosen) - 1) else []

    def _take(self, grown: _Growth, chosen: list[tuple[float, int]], step: DraftedStep) -> None:
        """Learn what a step took, and add what is likely after each of its rows."""
        choices = as_choices(step.scores)
        self.pace.step.learn(step.rows, step.seconds)
        self.drafted_s += step.seconds
        self._drafting = step.drafting
        if self._proposals:
            ((weight, row),) = chosen
            token, accepted = (
                self._proposals.draw(grown.prefix + grown.path(row), choices),
                self.pace.agreement,
            )
            self._guesses[row] = {token: accepted.value}
            grown.add(row, token, weight * accepted.value)
            return
        positions = [len(grown.prefix) + grown.depth(row) for _, row in chosen]
        is_greedy = self._params.temperature == 0
        rankings = choices.ranked(range(len(chosen)), positions, self._params, CHOICES, summed=is_greedy)
        for (weight, row), ranking in zip(chosen, rankings, strict=True):
            shares = self.calibration.said(ranking.scores, ranking.log_sum)
            self._guesses[row] = dict(zip(ranking.tokens, shares, strict=True))
            for place, (token, share) in enumerate(self._guesses[row].items()):
                # The first rows of a pass cost nothing; a further node must be worth its time there.
                if place == 0 or (share > LEAST_SHARE and weight * share > self.node_floor(grown.gain)):
                    grown.add(row, token, weight * share)

    def _own_q(self, grown: _Growth, known: int) -> tuple[Support, ...]:
        """Return what the nodes after the first `known` were drawn from, under the rule that asks for it."""
        if self._proposals is None:
            return ()
        paths = [grown.path(row) for row in range(known + 1, len(grown.tokens) + 1)]
        return tuple(self._proposals.q(grown.prefix + path[:-1], path[-1]) for path in paths)

    def learn(self, plan: PassPlan, said: Tokens) -> None:
        """Learn from each expanded row that the truth came to: did the copy's step hold what followed?"""
        row, nodes = 0, plan.nodes
        child = {(p, t): r for r, (t, p) in enumerate(zip(nodes.tokens, nodes.parents, strict=True), 1)}
        for token in said:
            following = child.get((row, token))
            guess = self._guesses.get(row)
            if guess:
                self.pace.agreement.learn(float(following is not None))
                first, share = next(iter(guess.items()))
                self.calibration.learn(first == token, share)
            if following is None:
                break
            row = following
        self.drafted_s, self._guesses = 0.0, {}


MOST_RECALLED, LEAST_RECALLED = 16, 0.05
"""Nodes of free drafts in a pass, and how likely each must be to be reached."""

MAX_REST = 32
"""Tokens to an answer's end that are looked ahead at most."""

NEW = -1
"""In place of the edge's number of a node that the edge has not drafted."""


@dataclass(slots=True)
class Recall:
    """One answer's free drafts. `memory` has the answers before it; None: there are none to recall."""

    memory: FreeDrafts | None = None
    instruction: str = ""
    stop_ids: Tokens = ()
    draft: FreeDraft = field(default_factory=FreeDraft)
    _found: tuple[int, FreeDraft] = (-1, FreeDraft())
    """How many tokens were committed when it was last looked up, and what was found."""

    def look(self, tree: SpeculationTree, weights: dict[int, float], floor: float) -> float:
        """Recall what may follow the committed tokens; return how many tokens more a pass then accepts.

        `weights` are the probabilities of the edge's nodes that the pass holds, by number, 1 at 0. New nodes
        that are reached less often than `floor` are left out, with what is below them.
        """
        self.draft = FreeDraft()
        if self.memory is None:
            return 0.0
        # A pass is planned anew with every message; what was said, and so what is found, stays meanwhile.
        said = tuple(tree.committed)
        if self._found[0] != len(said):
            found = self.memory.recall(self.instruction, said, most=MOST_RECALLED, floor=LEAST_RECALLED)
            self._found = (len(said), found)
        found = self._found[1]
        places, reached, kept, gain = [0], [1.0], list[int](), 0.0
        for node, (token, parent, chance) in enumerate(found.rows(), 1):
            drafted = self._drafted(tree, places[parent], weights)
            place = drafted.get(token, NEW)
            if place == NEW:
                # P(x) = P(recalled x) (1 - sum of P(drafted)): the edge's nodes after the same token.
                taken = sum(weights[number] for number in drafted.values()) / max(reached[parent], 1e-9)
                reached.append(reached[parent] * chance * max(0.0, 1 - taken))
            else:
                reached.append(weights[place])
            places.append(place)
            if (parent == 0 or parent in kept) and (place != NEW or reached[node] >= floor):
                kept.append(node)
                gain += reached[node] * (place == NEW)
        self.draft = found.only(kept, reached)
        return gain

    def rest(self, said: Tokens) -> int:
        """Return how many tokens came after `said` to the end of earlier answers, 0 if that is not known."""
        if self.memory is None or (said and said[-1] in self.stop_ids):
            return 0
        return len(self.memory.run(self.instruction, said, most=MAX_REST))

    def forget(self) -> float:
        """Leave out what was recalled; return 0, the tokens that it adds."""
        self.draft = FreeDraft()
        return 0.0

    @staticmethod
    def _drafted(tree: SpeculationTree, place: int, weights: dict[int, float]) -> dict[int, int]:
        """Return the numbers of the edge's nodes after a place that the pass holds, by token."""
        below = tree.below(place) if place != NEW else ()
        return {tree.nodes[number].token: number for number in below if number in weights}

"""`hybrid`'s cloud half: which nodes a pass verifies, what the cloud drafts itself, and whether to wait.

Everything is weighed in seconds per committed token, c (`TokenCost`). A node is verified if P(node) · c
exceeds the time that it adds to the pass; the cloud drafts a token itself (`SelfDraft`) if the same product
exceeds the time of a draft step; a pass waits for a draft message (`WaitPolicy`, an optimal stopping rule)
while the tokens that it usually brings outweigh the wait.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, SamplingParams, Support, Tokens
from vlm_spec_decode.decoding.choices import as_choices
from vlm_spec_decode.decoding.policy import CloudPolicy, ColocatedDraft, PassPlan
from vlm_spec_decode.decoding.tree import WEIGHT_STEP, SpeculationTree
from vlm_spec_decode.strategies.estimators import RunningMean, RunningRatio, StepCost, best_token_s
from vlm_spec_decode.strategies.rejection import ProposalLog

WEIGHT = {"latency": 1.0, "balanced": 0.4, "cost": 0.1}
"""What a second of waiting counts against a second of the target."""

HORIZON = 16
"""Hints that are looked ahead."""

ADDS = (0.8, 0.4, 0.2, 0.15, 0.1, 0.1)
"""Tokens that one hint more adds to a pass that expects 0, 1, 2, … drafted tokens, before it is known."""

LATE, GRACE_S = 1.3, 0.005
"""A hint is given up when it is this much later than it usually is."""

MARGIN = 1.08


@dataclass(slots=True, kw_only=True)
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
        # Commits that no message has answered in the usual time: these messages do not come any more.
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
        # Tokens per second if the pass starts now: the target's own token and the drafted ones it accepts.
        rate_now = (1 + gain) / pass_s
        wait_s = max(0.0, self._heard_s + self._next_s() - now_s)
        for _ in range(self._hints, HORIZON):
            gain += self.comes.value * self._adds(gain).value
            # Wait if (1 + g + Δg) / (T + w d) exceeds it by a margin: the estimates are not that good.
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


MAX_STEPS = 16
STEP_RATIO = 0.1
"""Of a draft step beside the target to a pass, before both are known."""


@dataclass(slots=True, kw_only=True)
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
        # t sqrt(1 + h) / (r c): see `SelfDraft`.
        return self.step_s.value * math.sqrt(1 + self.in_hand) / (self.agreement.value * token_s)

    def _usual_pass_s(self) -> float:
        """Return what a pass takes: as measured, or so many steps as usual, at most as the first one took."""
        guess_s = self.step_s.value / STEP_RATIO
        return self.pass_s.value or min(guess_s, self._first_s or guess_s)

    def _alone_s(self, step_s: float, pass_s: float) -> float:
        """Return (T + n c) / (1 + α + … + α^n) for the best n."""
        return best_token_s(pass_s, step_s, self.agreement.value, MAX_STEPS)


CHOICES = 3
USUAL_GAIN = 1.5
"""Tokens per pass, before a pass has been measured."""


@dataclass(slots=True, kw_only=True)
class SelfDraft:
    """The cloud's own drafting: a copy of the draft model adds tokens where the edge's drafts are few.

    A step of t seconds is taken if P(node) · r · c > t · sqrt(1 + h), where r is how often the copy was
    right, c the seconds that a token takes now (`TokenCost`), and h the expected tokens of the drafts that
    have arrived. An edge whose drafts fill the passes makes tokens cheap, and the copy is then not used.
    `weights` are the probabilities of the edge's nodes that the pass holds, by number.
    """

    weights: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    pace: TokenCost = field(default_factory=TokenCost)
    cost: StepCost = field(default_factory=lambda: StepCost(slope=0.01, free=0))
    drafted_s: float = 0.0
    has_helper: bool = False
    _params: SamplingParams = field(default_factory=SamplingParams)
    _guesses: dict[int, int] = field(default_factory=dict)
    _proposals: ProposalLog | None = None

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Learn the answer's rule, and whether there is a copy of the draft model."""
        self._params, self.has_helper = request.params, has_helper
        self._proposals = ProposalLog(request.params) if request.params.rule == "rejection" else None

    def node_floor(self) -> float:
        """Return the probability from which on a further node is worth its time in a pass."""
        token_s = self.pace.token_s.value
        # A row adds slope · base seconds to a pass and P(node) tokens of c seconds: P = slope · base / c.
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
        path, above = _path_to(row, tokens, parents)
        choices = as_choices(helper.context.choose(prefix, (path, above), rows=(len(path),)))
        seconds = helper.clock.now() - started_s
        self.pace.step_s.learn(seconds)
        self.drafted_s += seconds
        if self._proposals:
            return [(self._proposals.draw(prefix + path, choices), self.pace.agreement.value)]
        ranking = choices.ranked((0,), (position,), self._params, CHOICES)[0]
        # softmax over the perturbed scores of the whole vocabulary.
        shares = [math.exp(score - ranking.log_sum) for score in ranking.scores]
        first = (ranking.tokens[0], self._chance(shares[0]))
        others = zip(ranking.tokens[1:], shares[1:], strict=True)
        return [first, *((token, share) for token, share in others if share > 0.05)]

    def _chance(self, own: float) -> float:
        """Return how likely the copy's first choice is right: what it says itself counts once it is known."""
        agreement = self.pace.agreement
        # Geometric mean of what the copy says of this token and how often it was right at all.
        return math.sqrt(own * agreement.value) if agreement.count else min(own, agreement.value)

    def learn(self, plan: PassPlan, said: Tokens) -> None:
        """Learn from each guess that the truth came to: was the copy's first choice right?"""
        row, nodes = 0, plan.nodes
        child = {(p, t): r for r, (t, p) in enumerate(zip(nodes.tokens, nodes.parents, strict=True), 1)}
        for token in said:
            guess = self._guesses.get(row)
            if guess is not None:
                self.pace.agreement.learn(float(nodes.tokens[guess - 1] == token))
            following = child.get((row, token))
            if following is None:
                break
            row = following
        self.drafted_s, self._guesses = 0.0, {}


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


MAX_VERIFIED_NODES = 64

FIRST_ANSWER_S, FAR = 0.05, 1.5
"""How soon an edge is taken to answer before it has; an answer so many passes later is too late for exits."""


@dataclass(slots=True)
class Cloud(CloudPolicy):
    """One answer's policy. Times in seconds of the session owner's clock."""

    wants_exits: bool = True
    wake_s: float | None = None
    own: SelfDraft = field(default_factory=SelfDraft)
    waiting: WaitPolicy = field(default_factory=WaitPolicy)
    _now_s: float = 0.0
    _edge_is_near: bool = True
    _has_completed: bool = False
    _committed: int = 0

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Take the objective; a helper is welcome and not needed."""
        self.waiting.weight = WEIGHT[request.objective]
        self._committed = len(request.committed)
        self.own.begin(request, has_helper)

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
        # The expected number of drafted tokens that a pass over them accepts: the sum of P(path) over nodes.
        self.own.pace.in_hand = gain = sum(self.own.weights[n] for n in chosen)
        self.wants_exits = self._edge_is_near and (not self.own.has_helper or self.own.pace.is_carried)
        self.wake_s = self._wait_until_s(gain)
        return chosen if self.wake_s is None else None

    def extend(self, plan: PassPlan, helper: ColocatedDraft) -> PassPlan:
        """Let the copy of the draft model add nodes."""
        return self.own.extend(plan, helper)

    def completed(self, plan: PassPlan, commit: Commit) -> None:
        """Learn the pass's cost and yield."""
        own, is_first = self.own, plan.pass_id == 1
        verify_s = commit.compute_s - own.drafted_s
        if not is_first:  # the first pass also reads the prompt: its time says nothing of a row's cost
            own.cost.learn(len(plan.nodes.numbers), verify_s)
        own.pace.passed(len(commit.tokens), verify_s, own.drafted_s, is_first=is_first)
        own.learn(plan, commit.tokens)
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
        self.own.weights = {0: 1.0}
        heap = [(-_likelihood(tree, n), n) for n in tree.below(0)]
        heapq.heapify(heap)
        chosen = list[int]()
        while heap and len(chosen) < MAX_VERIFIED_NODES:
            weight, number = heapq.heappop(heap)
            extra = len(chosen) >= self.own.cost.free
            # The first `free` rows cost a pass nothing, so only hopeless ones are left out.
            if -weight < (self.own.node_floor() if extra else 0.001):
                break
            chosen.append(number)
            self.own.weights[number] = -weight
            for child in tree.below(number):
                heapq.heappush(heap, (weight * _likelihood(tree, child), child))
        return tuple(chosen)

    def _wait_until_s(self, gain: float) -> float | None:
        """A copy of the draft here drafts instead of waiting, unless its time is what must be saved."""
        if not self.own.cost.base_s or (self.own.has_helper and self.waiting.weight == 1):
            return None
        return self.waiting.until_s(gain, self.own.cost.base_s, self._now_s)


def _likelihood(tree: SpeculationTree, number: int) -> float:
    return math.exp(-WEIGHT_STEP * tree.nodes[number].weight)

"""`hybrid`'s cloud half: which nodes a pass verifies, what the cloud drafts itself, and whether to wait.

Everything is weighed in seconds per committed token, c (`TokenCost`). A node is verified if P(node) · c
exceeds the time that it adds to the pass; the cloud drafts a token itself (`SelfDraft`) if the same product
exceeds the time of a draft step; what earlier answers
say (`Recall`) costs its rows alone; a pass waits for a draft message (`WaitPolicy`, an optimal stopping rule)
while the tokens that it usually brings outweigh the wait, and for the end of the answer (`EndWait`) where the
pass that would follow outweighs it.

While other answers wait for the same GPU its time has a price (`decoding.price`), and what is weighed against
it shrinks: fewer nodes are verified and fewer drafted here, passes wait longer for the edge's drafts, and
early exits, which everyone in a pass waits for, are not asked for.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, Tokens
from vlm_spec_decode.decoding.free_drafts import FreeDrafts
from vlm_spec_decode.decoding.policy import (
    CloudPolicy,
    ColocatedDraft,
    DraftCosts,
    DraftSteps,
    PassPlan,
    draft_alone,
    with_free_draft,
)
from vlm_spec_decode.decoding.price import FREE, Price
from vlm_spec_decode.decoding.tree import WEIGHT_STEP, SpeculationTree
from vlm_spec_decode.strategies.estimators import RunningMean, RunningRatio
from vlm_spec_decode.strategies.hybrid.self_draft import LEAST_RECALLED, Recall, SelfDraft

WEIGHT = {"latency": 1.0, "balanced": 0.4, "cost": 0.1}
"""What a second of waiting counts against a second of the target."""

HORIZON = 16
"""Hints that are looked ahead."""

ADDS = (0.8, 0.4, 0.2, 0.15, 0.1, 0.1)
"""Tokens that one hint more adds to a pass that expects 0, 1, 2, … drafted tokens, before it is known."""

LATE, GRACE_S = 1.3, 0.005
"""A hint is given up when it is this much later than it usually is."""

MARGIN = 1.08

KEPT = 0.5
"""Part of a hint's tokens that are not lost if the pass starts without it: they serve the next one. Where
passes are what is saved, that is no comfort."""


@dataclass(slots=True, kw_only=True)
class WaitPolicy:
    """One answer's estimates. Times are seconds of the session owner's clock."""

    weight: float = 1.0
    rate: float = 0.0
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
        """Δg (1 - k w) against ρ w d for the best number of further hints; ρ is in tokens per second."""
        # Tokens per second if the pass starts now: the target's own token and the drafted ones it accepts. A
        # poor tree is no reason to wait for less than what time usually brings (Charnov's marginal value).
        rate_now = max((1 + gain) / pass_s, self.rate)
        start, wait_s = gain, max(0.0, self._heard_s + self._next_s() - now_s)
        for _ in range(self._hints, HORIZON):
            gain += self.comes.value * self._adds(gain).value
            # Wait if what is gained exceeds what the time is worth by a margin: estimates are not that good.
            if (1 - KEPT * self.weight) * (gain - start) > MARGIN * self.weight * wait_s * rate_now:
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


@dataclass(slots=True)
class EndRecord:
    """What a robot's answers have shown of how its drafts come to an answer's end.

    `grows` is by how many tokens a draft message prolongs the likeliest path, `holds` how often a token of
    that path is said, `pass_s` what a pass takes that reads no prompt.
    """

    grows: RunningRatio = field(default_factory=lambda: RunningRatio(0.95, 1.2, 12.0, 10.0))
    holds: RunningMean = field(default_factory=lambda: RunningMean(0.97, rate=0.01, trust=50))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(0.0, trust=0))


@dataclass(slots=True, kw_only=True)
class EndWait:
    """Waits for the drafts that bring a path to the answer's end, where earlier answers say that it is near.

    A pass that starts without them is followed by one more, in which those few tokens are all there is. With
    r tokens to come, g with each message and a message every d seconds, they are there after r / g · d
    seconds, and then all n tokens hold with hⁿ: the pass is worth the wait if hⁿ T exceeds the time.
    """

    record: EndRecord = field(default_factory=EndRecord)
    path: Tokens = ()
    _every_s: RunningMean = field(default_factory=lambda: RunningMean(math.inf, trust=0))
    _last_s: float = 0.0
    _messages: int = 0
    _known: tuple[int, int] = (0, 0)
    """Messages, and the length of prefix and path, when a pass was last planned."""
    _began_s: float | None = None

    def received(self, now_s: float) -> None:
        """A draft message has come."""
        if self._messages:
            self._every_s = _learned(self._every_s, now_s - self._last_s)
        self._last_s, self._messages = now_s, self._messages + 1

    def committed(self, said: Tokens, pass_s: float, *, is_first: bool) -> None:
        """Learn from a pass; what the first one holds has not been drafted about this frame."""
        if not is_first:
            self.record.pass_s.learn(pass_s)
            for token, right in zip(self.path, said, strict=False):
                self.record.holds.learn(float(token == right))
                if token != right:
                    break
        self.path, self._began_s = (), None

    def until_s(self, path: Tokens, start: int, rest: int, weight: float, now_s: float) -> float | None:
        """Return until when to wait for the next message, None to start the pass now.

        `path` is the likeliest one in hand after `start` committed tokens, and `rest` tokens come after it.
        `weight` is what a second of waiting counts against one of the target.
        """
        self.path = path
        messages, length = self._known
        if self._messages > messages:
            self.record.grows.learn(max(0, start + len(path) - length), self._messages - messages)
            self._known = (self._messages, start + len(path))
        every_s, pass_s = self._every_s.value, self.record.pass_s.value
        due_s = self._last_s + LATE * every_s + GRACE_S
        if not (path and rest and pass_s) or now_s >= due_s or math.isinf(due_s):
            return None
        self._began_s = now_s if self._began_s is None else self._began_s
        more = math.ceil(rest / max(0.5, self.record.grows.value))
        wait_s = max(0.0, self._last_s + every_s - now_s) + (more - 1) * every_s
        chance = self.record.holds.value ** (len(path) + rest)
        # No wait may take longer than the pass that it is to save.
        is_worth = chance * pass_s > MARGIN * weight * wait_s and now_s - self._began_s <= pass_s
        return due_s if is_worth else None


MAX_VERIFIED_NODES = 64

MOST_HELD_UP = 8.0
"""With more others who wait for the GPU no exits are asked for: each takes a part of a pass from all."""

FIRST_ANSWER_S, FAR = 0.05, 1.5
"""How soon an edge is taken to answer before it has; an answer so many passes later is too late for exits."""


@dataclass(slots=True)
class Cloud(CloudPolicy):
    """One answer's policy. Times in seconds of the session owner's clock."""

    wants_exits: bool = True
    wake_s: float | None = None
    floor: float = 0.0
    own: SelfDraft = field(default_factory=SelfDraft)
    recall: Recall = field(default_factory=Recall)
    waiting: WaitPolicy = field(default_factory=WaitPolicy)
    ending: EndWait = field(default_factory=EndWait)
    _now_s: float = 0.0
    _edge_is_near: bool = True
    _has_completed: bool = False
    _committed: int = 0
    _told_step_s: float = 0.0
    _answers: int = 1
    _rows: int = 0
    _fills: int = 0
    _weight: float = 1.0
    _price: Price = FREE

    def recall_from(self, memory: FreeDrafts) -> None:
        """Take the robot's answers."""
        self.recall.memory = memory
        self.ending.record = memory.record(EndRecord)

    def begin(self, request: AnswerRequest, has_helper: bool) -> None:
        """Take the objective; a helper is welcome and not needed."""
        self.recall.instruction = request.observation.instruction
        self._weight = self.waiting.weight = WEIGHT[request.objective]
        self.recall.stop_ids = request.params.stop_ids
        self._committed = len(request.committed)
        self._told_step_s = request.draft_step_s
        self.own.begin(request, has_helper)

    def expect(self, costs: DraftCosts) -> None:
        """Start from what passes and draft steps took before the first answer."""
        self.own.pace.expect(costs)

    def shares(self, answers: int, nodes: int, fills: int) -> None:
        """Take what the pass under way holds; the next one is expected to be shared by as many answers."""
        self._answers, self._rows, self._fills = answers, nodes + answers - 1, fills

    def priced(self, price: Price) -> None:
        """Take what the GPU's time costs now."""
        self._price = self.own.price = price
        self.waiting.weight = self._weight * price.wait_weight

    def at(self, now_s: float) -> None:
        """Note the time; right after a pass it is the commit's."""
        self._now_s = now_s
        if self._has_completed:
            self._has_completed = False
            self.waiting.committed(self._committed, now_s)

    def received(self, draft: DraftMessage, now_s: float) -> None:
        """Measure how long the edge takes to answer a commit with hints."""
        self.ending.received(now_s)
        if not self._has_completed:
            self.waiting.received(draft.base, now_s)

    def next_pass(self, tree: SpeculationTree) -> Tokens | None:
        """Choose the likeliest nodes, or wait."""
        pace, interval_s = self.own.pace, self.waiting.interval_s.value
        # Before messages have shown it, the edge's own word tells how fast it drafts.
        step_s = self._told_step_s if math.isinf(interval_s) else interval_s
        pace.edge_step_s = step_s if self._edge_is_near else 0.0
        chosen = self._choose(tree)
        # The expected number of drafted tokens that a pass over them accepts: the sum of P(path) over nodes.
        gain = sum(self.own.weights[n] for n in chosen)
        floor = max(LEAST_RECALLED, self.own.node_floor(gain, self._answers))
        recalled = self.recall.look(tree, self.own.weights, floor)
        if not chosen and not pace.is_row_worth_it(recalled):
            recalled = self.recall.forget()
        pace.in_hand = gain = gain + recalled
        # Exits decide what an edge has in hand: one that does not know where a pass ends has nothing then.
        # For another edge they are messages in front of the commit, each of which may be lost first.
        is_heard = not (self.own.has_helper and step_s) or pace.is_carried or pace.is_edge_better
        self.wants_exits = self._edge_is_near and is_heard and self._price.others <= MOST_HELD_UP
        # What the next pass asks of a node is told with this one's commit.
        self.floor = 0.0 if self._price.is_free else min(1.0, self.own.node_floor(gain, self._answers))
        self.wake_s = self._wait_until_s(tree, gain)
        return chosen if self.wake_s is None else None

    def recalled(self, plan: PassPlan) -> PassPlan:
        """Add what earlier answers say."""
        if not self.recall.draft.tokens:
            return plan
        plan, chances = with_free_draft(plan, self.recall.draft)
        weights = [1.0]
        for number, parent in zip(plan.nodes.numbers, plan.nodes.parents, strict=True):
            weights.append(self.own.weights.get(number, weights[parent] * chances.get(number, 0.0)))
            self.own.weights[number] = weights[-1]
        return plan

    def extend(self, plan: PassPlan, helper: ColocatedDraft) -> PassPlan:
        """Let the copy of the draft model add nodes."""
        return draft_alone(self.own.steps(plan, helper), helper)

    def draft_steps(self, plan: PassPlan, helper: ColocatedDraft, answers: int) -> DraftSteps:
        """Let it add them in steps that the answers of a pass share."""
        return self.own.steps(plan, helper, answers)

    def drafted(self, seconds: float) -> None:
        """Take what the shared steps took out of the time of the pass."""
        self.own.drafted_s = max(seconds, self.own.drafted_s)

    def completed(self, plan: PassPlan, commit: Commit) -> None:
        """Learn the pass's cost and yield."""
        own, is_first = self.own, plan.pass_id == 1
        verify_s = commit.compute_s - own.drafted_s
        if not (is_first or self._fills):  # a prompt was read, too: that time says nothing of a row's cost
            own.cost.learn(max(self._rows, len(plan.nodes.numbers)), verify_s)
        is_plain = not plan.nodes.numbers
        own.pace.passed(len(commit.tokens), verify_s, own.drafted_s, is_first=is_first, is_plain=is_plain)
        own.learn(plan, commit.tokens)
        self.ending.committed(commit.tokens, verify_s, is_first=is_first)
        if self.recall.memory:
            self.recall.memory.learn(self.recall.draft, commit.tokens)
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
        chosen, gain = list[int](), 0.0
        while heap and len(chosen) < MAX_VERIFIED_NODES:
            weight, number = heapq.heappop(heap)
            extra = len(chosen) >= self.own.cost.free
            # The first `free` rows cost a pass nothing, so only hopeless ones are left out.
            if -weight < (self.own.node_floor(gain, self._answers) if extra else 0.001):
                break
            chosen.append(number)
            gain -= weight
            self.own.weights[number] = -weight
            for child in tree.below(number):
                heapq.heappush(heap, (weight * _likelihood(tree, child), child))
        return tuple(chosen)

    def _wait_until_s(self, tree: SpeculationTree, gain: float) -> float | None:
        """Return until when to wait for the edge's next hint, None to begin at once.

        A copy of the draft drafts instead of waiting, where a token costs less with it than with the edge's
        drafts, unless its time is what must be saved.
        """
        has_copy = self.own.has_helper and not self.own.pace.is_edge_better
        path = likeliest_path(tree)
        rest = 0 if has_copy else self.recall.rest(tuple(tree.committed) + path)
        end_s = self.ending.until_s(path, len(tree.committed), rest, self.waiting.weight, self._now_s)
        if end_s is not None:
            return end_s
        if not self.own.cost.base_s or (has_copy and self.waiting.weight == 1):
            return None
        token_s = self.own.pace.token_s.value
        self.waiting.rate = 1 / token_s if token_s else 0.0
        return self.waiting.until_s(gain, self.own.cost.base_s, self._now_s)


def likeliest_path(tree: SpeculationTree) -> Tokens:
    """Return the tokens of the edge's likeliest nodes, one below the other."""
    path, node = list[int](), 0
    while below := tree.below(node):
        node = min(below, key=lambda number: tree.nodes[number].weight)
        path.append(tree.nodes[node].token)
    return tuple(path)


def _likelihood(tree: SpeculationTree, number: int) -> float:
    return math.exp(-WEIGHT_STEP * tree.nodes[number].weight)

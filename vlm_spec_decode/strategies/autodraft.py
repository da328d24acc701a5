"""`autodraft`: a draft tree whose width, depth and number of sent nodes are chosen round by round.

After AutoDraft (INFOCOM 2027 submission; read from the PyPI package autodraft-sd 1.1.1; the method, not the
code). One round is stop-and-wait. The tree grows level by level: each level is one batched draft step over
all nodes of the last one and keeps the w likeliest paths. w, and after each level the number n of the tree's
likeliest nodes to send, are those of a fixed list that minimise the predicted objective

    (1 - s) · seconds per token + s · cost per token, each over what it was before,

where a round takes draft time + transfer + T_v(n) and brings 1 + 0.95 · r · E tokens: E is the sum over the
levels of the probability that a sent node of the level is right, r how many tokens the last rounds brought
for each that was expected. One level more is grown as long as the objective falls. T_d(w), T_v(n) and the
transfer time are measured (the package profiles them before it starts; here the rounds do it). Meanwhile the
edge drafts ahead: it takes the likeliest deepest path and the draft's own next token to be the verdict, and
if they are, what has been grown below them is the next tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Commit, DraftMessage, SamplingParams, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, draft_step, forced_run, tree_of
from vlm_spec_decode.strategies.estimators import RunningMean, StepCost, VerdictTime
from vlm_spec_decode.strategies.speculative import Cloud

WIDTHS: tuple[int, ...] = (1, 2, 4, 8, *range(10, 51, 10))
"""Candidates of a level's width and of the number of sent nodes. The package's begin at 10, for targets that
take hundreds of milliseconds; the narrow ones are given to it here. More than 50 never paid."""

MAX_DEPTH, FIRST_WIDTH = 15, 8
MARGIN = 0.05
"""Part of the expected tokens that is not counted on."""

LEAST_S = 1e-6

COST_WEIGHT = {"latency": 0.0, "balanced": 0.5, "cost": 1.0}
"""The package's presets `tps`, `balanced` and `cost`."""


@dataclass(slots=True, kw_only=True)
class RoundCost:
    """What rounds take and bring, measured. Seconds; `scale` is r of the module's page."""

    step: StepCost = field(default_factory=lambda: StepCost(slope=0.03, free=1))
    verify: StepCost = field(default_factory=lambda: StepCost(slope=0.01, free=4))
    wait: VerdictTime = field(default_factory=VerdictTime)
    scale: RunningMean = field(default_factory=lambda: RunningMean(1.0, trust=1))
    round_s: RunningMean = field(default_factory=lambda: RunningMean(1.0, trust=0))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(1.0, trust=0))
    cost_weight: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether a round has been measured; before that γ levels are grown and all nodes sent."""
        return self.step.base_s > 0 and self.verify.base_s > 0

    def objective(self, drafted_s: float, nodes: int, expected: float) -> float:
        """Return the objective of a round: lower is better. The target's seconds are what costs."""
        tokens = 1 + (1 - MARGIN) * self.scale.value * expected
        verify_s = self.verify.seconds(nodes)
        seconds = (drafted_s + self.wait.rtt_s.value + verify_s) / tokens
        weight = self.cost_weight
        return (1 - weight) * seconds / self.round_s.value + weight * (verify_s / tokens) / self.pass_s.value

    def learn(self, waited_s: float, commit: Commit, nodes: int, expected: float, drafted_s: float) -> None:
        """Take one round."""
        is_prefill = not self.wait.pass_s.count
        self.wait.learn(waited_s, commit.compute_s)
        if not is_prefill or not self.verify.base_s:
            # The first pass also reads the prompt: it stands for T_v only until there is another one.
            self.verify.learn(nodes, commit.compute_s)
        if self.wait.pass_s.count == 2:
            self.verify = StepCost(slope=0.01, free=4)
            self.verify.learn(nodes, commit.compute_s)
        if expected > 0:
            self.scale.learn(min(2.0, (len(commit.tokens) - 1) / expected))
        self.round_s.learn(max(LEAST_S, drafted_s + waited_s) / len(commit.tokens))
        self.pass_s.learn(max(LEAST_S, commit.compute_s) / len(commit.tokens))


@dataclass(slots=True, kw_only=True)
class LevelTree:
    """A tree below `prefix`: its paths with their probabilities, the last level, the `chosen` ones."""

    prefix: Tokens
    weights: dict[Tokens, float] = field(default_factory=dict)
    level: list[Tokens] = field(default_factory=lambda: [()])
    depth: int = 0
    drafted_s: float = 0.0
    best: float = math.inf
    chosen: list[Tokens] = field(default_factory=list)
    is_done: bool = False

    def grow(self, drafter: Drafter, clock: Clock, cost: RoundCost, config: EdgeConfig) -> None:
        """Add one level, choose how many nodes would be sent, and see whether that was worth it."""
        params, started_s = config.params, clock.now()
        open_paths = [p for p in self.level if self._goes_on(p, params)]
        if not open_paths or self.depth >= MAX_DEPTH or (self.chosen and not drafter.may_step):
            self.is_done = True
            return
        found = self._children(drafter, open_paths, config)
        seconds = clock.now() - started_s
        cost.step.learn(len(open_paths), seconds)
        self.drafted_s += seconds
        self.depth += 1
        self._keep(found[: self._width(found, cost)], drafter, config)
        before = self.best
        self._choose(cost)
        # A level more pays as long as the objective falls; the second is always tried.
        has_ended = self.best >= before and self.depth > 2
        self.is_done = has_ended if cost.is_known else self.depth >= config.draft_length

    def _goes_on(self, path: Tokens, params: SamplingParams) -> bool:
        length = len(self.prefix) + len(path)
        return length < params.max_tokens and not (path and path[-1] in params.stop_ids)

    def _keep(self, found: list[tuple[float, Tokens]], drafter: Drafter, config: EdgeConfig) -> None:
        """Make these the last level; what the grammar forces after them costs no step."""
        self.level = []
        for weight, kept in found:
            path, run = kept, Tokens()
            self.weights[path] = weight
            if self._goes_on(path, config.params):
                run = forced_run(drafter, config.tracer, self.prefix + path)
            for token in run:
                if self._goes_on(path, config.params):
                    path = (*path, token)
                    self.weights[path] = weight
            self.level.append(path)

    def _children(
        self, drafter: Drafter, paths: list[Tokens], config: EdgeConfig
    ) -> list[tuple[float, Tokens]]:
        """Score all paths in one step; return (probability, path) of their continuations, likeliest first.

        Under `rejection` a path has one continuation, the draft's draw: nothing else may be sent.
        """
        tokens, parents, rows = tree_of(paths)
        scored = draft_step(drafter, config.tracer, self.prefix, tokens, parents, rows)
        positions = [len(self.prefix) + len(path) for path in paths]
        rankings = scored.ranked(range(len(paths)), positions, config.params, WIDTHS[-1])
        found = list[tuple[float, Tokens]]()
        for row, (path, ranking) in enumerate(zip(paths, rankings, strict=True)):
            above = self.weights.get(path, 1.0)
            if config.proposals:
                drawn = config.proposals.draw(self.prefix + path, scored, row)
                # How sure the draft is stands for how likely its draw is kept; r corrects it.
                found.append((above * math.exp(ranking.scores[0] - ranking.log_sum), (*path, drawn)))
                continue
            for token, score in zip(ranking.tokens, ranking.scores, strict=True):
                found.append((above * math.exp(score - ranking.log_sum), (*path, token)))
        return sorted(found, key=lambda entry: -entry[0])[: WIDTHS[-1]]

    def _width(self, found: list[tuple[float, Tokens]], cost: RoundCost) -> int:
        """Return how many of these the next level goes on from: w."""
        if not cost.is_known:
            return FIRST_WIDTH
        expected = self.expected(self.chosen)
        known: list[int] = [w for w in WIDTHS if w <= len(found)] or [len(found)]
        sums, total = list[float](), 0.0
        for weight, _ in found[: known[-1]]:
            total += weight
            sums.append(total)

        def objective(width: int) -> float:
            drafted_s = self.drafted_s + cost.step.seconds(width)
            return cost.objective(drafted_s, len(self.chosen) or width, expected + min(1.0, sums[width - 1]))

        return min(known, key=objective)

    def _choose(self, cost: RoundCost) -> None:
        """Choose n and the n likeliest nodes; parents are likelier than their children."""
        ranked = sorted(self.weights, key=lambda path: (-self.weights[path], len(path)))
        self.best, self.chosen = math.inf, ranked if not cost.is_known else []
        for count in [n for n in WIDTHS if n <= len(ranked)] if cost.is_known else ():
            nodes = ranked[:count]
            value = cost.objective(self.drafted_s, count, self.expected(nodes))
            if value < self.best:
                self.best, self.chosen = value, nodes

    def expected(self, nodes: list[Tokens]) -> float:
        """Return E: the sum over the levels of the probability that one of their nodes is right."""
        levels: dict[int, float] = {}
        for path in nodes:
            levels[len(path)] = levels.get(len(path), 0.0) + self.weights[path]
        return sum(min(1.0, level) for level in levels.values())

    def deepest(self) -> Tokens:
        """Return the likeliest of the deepest sent paths, () without one."""
        return max(self.chosen, key=lambda path: (len(path), self.weights[path]), default=())

    def draft(self, answer: int, epoch: int, first_node: int) -> DraftMessage:
        """Return the message that sends the chosen nodes."""
        numbers: dict[Tokens, int] = {(): 0}
        for number, path in enumerate(sorted(self.chosen, key=len), first_node):
            numbers[path] = number
        paths = [path for path in numbers if path]
        tokens, parents = tuple(p[-1] for p in paths), tuple(numbers[p[:-1]] for p in paths)
        return DraftMessage(answer, epoch, len(self.prefix), first_node, tokens, parents)


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Grow a tree, send its best part, draft ahead during the wait, and see whether that was right."""
    cost, node = RoundCost(cost_weight=COST_WEIGHT[config.objective]), 1
    tree = LevelTree(prefix=sequence.tokens)
    while not sequence.finished:
        grown_s = clock.now()
        while not tree.is_done:
            tree.grow(drafter, clock, cost, config)
        sent_s = clock.now()
        expected = tree.expected(tree.chosen)
        config.tracer.decided(
            f"{len(tree.chosen)} nodes of {tree.depth} levels, {expected:.2f} tokens expected; "
            f"{1000 * (sent_s - grown_s):.0f} ms drafted since the verdict"
        )
        verifier.submit(tree.draft(config.answer, config.epoch, node))
        node += len(tree.chosen)
        commit, ahead = _draft_ahead(tree, drafter, verifier, clock, cost, config)
        cost.learn(clock.now() - sent_s, commit, len(tree.chosen), expected, sent_s - grown_s)
        yield sequence.commit(commit)
        is_hit = ahead is not None and ahead.prefix == sequence.tokens
        tree = ahead if ahead is not None and is_hit else LevelTree(prefix=sequence.tokens)


def _draft_ahead(
    tree: LevelTree, drafter: Drafter, verifier: Verifier, clock: Clock, cost: RoundCost, config: EdgeConfig
) -> tuple[Commit, LevelTree | None]:
    """Return the verdict, and what was grown meanwhile below the outcome that was supposed."""
    asked_s, ahead = clock.now(), None
    path, supposed = tree.prefix + tree.deepest(), Tokens()
    while True:
        event = verifier.poll()
        # No step begins that would probably outlast the verdict: RTT + T_v as measured.
        left_s = asked_s + cost.wait.seconds - clock.now() if cost.wait.seconds else math.inf
        is_open = bool(path) and not config.params.ends(len(path), path[-1]) and drafter.may_step
        if event is None and is_open and cost.step.seconds(1) <= left_s and not (ahead and ahead.is_done):
            if not supposed:
                # The verdict is supposed to accept the path; its own token, to be the draft's first choice.
                choices = draft_step(drafter, config.tracer, path)
                supposed = choices.ranked((0,), (len(path),), config.params, 1, summed=False)[0].tokens
                if not config.params.ends(len(path) + 1, supposed[0]):
                    supposed += forced_run(drafter, config.tracer, path + supposed)
                has_ended = config.params.ends(len(path) + len(supposed), supposed[-1])
                ahead = LevelTree(prefix=path + supposed, is_done=has_ended)
            elif ahead:
                ahead.grow(drafter, clock, cost, config)
            continue
        if event is None:
            event = verifier.wait(config.timeout_s)
        if isinstance(event, Commit):
            return event, ahead


STRATEGY = Strategy(
    name="autodraft",
    edge=edge,
    cloud=Cloud,
    drafts=True,
    source="PyPI autodraft-sd 1.1.1; docs/reproduction.md",
    rules=RULES,
)

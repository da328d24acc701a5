"""`hybrid`'s edge half: the speculation tree is sent while it grows, and the cloud does not wait for it.

Until the answer ends, the likeliest nodes are expanded in batched draft steps and those that are likely
enough are sent (`EdgeController`); forced and repeated runs of tokens cost no step (`PromptLookup`); early
verdicts re-weight the candidates; a commit re-roots the tree. The cloud's next pass starts when the last
one ends and holds the likeliest part of the tree that has arrived, else a plain step, a draft of its own,
or nothing while waiting for a draft message pays (`hybrid.cloud_policy`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import Clock, Drafter, Verifier
from vlm_spec_decode.core.types import RULES, Commit, EarlyExitVerdict, Tokens
from vlm_spec_decode.decoding.sequence import Sequence
from vlm_spec_decode.strategies.base import EdgeConfig, Strategy, forced_run
from vlm_spec_decode.strategies.estimators import HysteresisSwitch, RunningMean, RunningRatio, StepCost
from vlm_spec_decode.strategies.hybrid.cloud_policy import Cloud
from vlm_spec_decode.strategies.hybrid.draft_tree import FLOOR, DraftTree, TreeNode
from vlm_spec_decode.strategies.hybrid.shared_processor import SharedProcessor

MAX_BATCH = 24
SEND_FLOOR = 0.004
MESSAGE_BYTES, NODE_BYTES = 104, 5
"""On the wire: framing, encryption and headers of one message; token, parent and weight of one node."""

SENDING_S = 0.05
"""No message should occupy the uplink longer, and no longer queue should wait in front of the next."""

MAX_SENT_NODES = 200
FIRST_PASS_S = 0.5
PATIENCE = {"latency": 1.5, "balanced": 4.0, "cost": 10.0}
"""Passes that drafting may outlast without a commit: the cloud may be waiting for this thread."""

HOPELESS = 0.1
"""A draft that agrees with the target less often is in doubt."""

AGREED, MOST_TRUST = 0.7, 0.98
"""Trust in an exit that agrees with a draft, before it is known; more than the second is never had."""


def edge(
    sequence: Sequence, drafter: Drafter, verifier: Verifier, clock: Clock, config: EdgeConfig
) -> Iterator[Tokens]:
    """Look for an event; without one, draft a step, or wait; then send what has become likely."""
    record = config.record
    tree = DraftTree(
        drafter=drafter,
        params=config.params,
        proposals=config.proposals,
        tracer=config.tracer,
        calibration=record.calibration,
        kinds=record.kinds if config.draft_floor and not config.proposals else None,
    )
    if config.sent:
        tree.adopt(config.sent)
    control = EdgeController(config=config, clock=clock)
    if verifier.shares_processor:
        control.shared = SharedProcessor(record=record, draft_length=config.draft_length)
    free = PromptLookup(config.hints, record.lookup, config.recall)
    free.offer(tree, drafter)
    while not sequence.finished:
        event = verifier.poll()
        if event is None and (nodes := control.worth_expanding(tree)):
            with control.draft_step(len(nodes), drafter):
                tree.expand(nodes)
            free.offer(tree, drafter)
        elif event is None and (leaf := control.worth_previewing(tree)):
            with control.preview_step():
                tree.expand([leaf])
            free.offer(tree, drafter)
        elif event is None:
            event = verifier.wait(config.timeout_s)
        if isinstance(event, EarlyExitVerdict):
            control.on_early_verdict(event, tree)
        elif event is not None:
            control.on_commit(event, tree.sent_nodes)
            new = sequence.commit(event)
            tree.advance(new)
            free.offer(tree, drafter)
            yield new
        if not sequence.finished and (ready := control.worth_sending(tree)):
            verifier.submit(tree.draft(ready, config.answer, config.epoch))
        if sequence.finished or config.preview is None:
            continue
        end, chance = tree.best_path()
        if config.preview.offer(tree.prefix, end.path(), chance):
            yield ()


@dataclass(slots=True, kw_only=True)
class EdgeController:
    """Decides for one answer. Estimates start from cautious priors, or from what earlier answers have shown.

    `shared` decides where drafting and verifying take turns on one processor.
    """

    config: EdgeConfig
    clock: Clock
    shared: SharedProcessor | None = None
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(FIRST_PASS_S, trust=0))
    token_s: RunningRatio = field(default_factory=RunningRatio)
    exits: dict[tuple[int, int], RunningMean] = field(default_factory=dict)
    heard: list[list[tuple[RunningMean, int, float]]] = field(default_factory=list)
    _drafted_s: float = 0.0
    _steps: int = 0
    _was_free: bool = True
    """Whether a step might have been run whenever one was asked for since the last commit."""
    _scores: bool = False
    """Whether there is a draft step to be run, which scores what is remembered."""
    _paid_until_s: float = 0.0
    _heard_s: float = 0.0
    _floor: float = 0.0
    """How likely a node must be to be verified by the pass under way or by the next one."""

    def __post_init__(self) -> None:
        self._heard_s = self.clock.now()

    @property
    def step(self) -> StepCost:
        """What a draft step takes."""
        return self.config.record.step

    @property
    def floor(self) -> float:
        """How likely a node must be to be worth its step and its bytes.

        Under `rejection` what is sent must not depend on what was drawn.
        """
        return 0.0 if self.config.proposals else self.config.draft_floor

    @property
    def drafting(self) -> HysteresisSwitch:
        """Whether to draft at all beside a target elsewhere."""
        return self.config.record.switch

    def worth_expanding(self, tree: DraftTree) -> list[TreeNode]:
        """Return the nodes of the next draft step: as many as are worth their share of its time.

        A row of weight w pays if it adds more than the time it takes would add elsewhere. Drafting stops
        once it has outlasted a pass: then the cloud may be waiting for this thread. None may be run while
        drafting takes as much of this computer as it may: runs that cost no step are sent all the same.
        """
        self._scores = False
        if not tree.drafter.may_step:
            self._was_free = False
            self.config.tracer.decided("no more drafts: draft_budget is used up")
            return []
        if self.shared:
            self.config.tracer.decided(self.shared.why())
            return self.shared.rows(tree)
        patience_s = PATIENCE[self.config.objective] * self.pass_s.value
        is_enough = self._steps >= (1 if self.drafting.is_probe else self.config.draft_length)
        if not self.drafting.is_on or (is_enough and self._drafted_s >= patience_s):
            self._explain_rest(patience_s)
            return []
        most = 1 if self.drafting.is_probe else MAX_BATCH
        chosen, total = list[TreeNode](), 0.0
        for weight, node in tree.leaves(max(FLOOR, self._floor, self.floor)):
            # A row costs `slope` of a step; the rows so far bring total / (1 + slope (n - 1)) per step's
            # time.
            share = self.step.slope * total / (1 + self.step.slope * max(0, len(chosen) - 1))
            if weight < share or len(chosen) == most:
                break
            chosen.append(node)
            total += weight
        if chosen:
            self._scores = True
            self._explain_step(chosen, total)
        return chosen

    def _explain_step(self, chosen: list[TreeNode], total: float) -> None:
        """Say how wide this step is and why it is no wider."""
        what = "probe of one row" if self.drafting.is_probe else f"step {self._steps + 1}"
        step_ms, percent, pass_ms = 1000 * self.step.base_s, 100 * self.step.slope, 1000 * self.pass_s.value
        trusts = (
            f"{n}: {t.value:.2f}" for (n, confidence), t in sorted(self.exits.items()) if confidence < 0
        )
        exits = ", ".join(trusts) or "none heard"
        self.config.tracer.decided(
            f"{what}: {len(chosen)} rows of chance {total:.2f}; a step takes {step_ms:.1f} ms and "
            f"{percent:.1f} % a row, a pass {pass_ms:.0f} ms; exits agree {exits}"
        )

    def _explain_rest(self, patience_s: float) -> None:
        """Say why nothing is drafted."""
        if self.drafting.is_on:
            self.config.tracer.decided(
                f"no more drafts: {self._drafted_s:.2f} s without a commit, {patience_s:.2f} s are enough"
            )
        else:
            step_ms, token_ms = 1000 * self.step.base_s, 1000 * self.token_s.value
            self.config.tracer.decided(
                f"listens: a draft step takes {step_ms:.1f} ms, a token of the cloud {token_ms:.1f} ms"
            )

    @contextmanager
    def draft_step(self, rows: int, drafter: Drafter) -> Iterator[None]:
        """Measure one draft step: what it takes, and what goes by until it is done."""
        started_s, waited_s = self.clock.now(), drafter.waited_s
        yield
        seconds = self.clock.now() - started_s
        took_s = seconds - (drafter.waited_s - waited_s)
        if self.shared:
            self.shared.drafted(rows, took_s)
            return
        self.step.learn(rows, took_s)
        if self.drafting.is_probe:
            self.config.record.probed_s += seconds
        self._drafted_s += seconds
        self._steps += 1

    def worth_previewing(self, tree: DraftTree) -> TreeNode | None:
        """Return the end of the draft's best path if somebody waits for more of it; None if nobody does.

        That is done in time in which this thread would wait: the cloud, and a copy of the draft that it may
        have, go on meanwhile. Where the target runs on this processor there is no such time.
        """
        preview = self.config.preview
        if preview is None or not preview.is_wanted or self.shared or not tree.drafter.may_step:
            return None
        end, _ = tree.best_path()
        return end if not end.expanded and tree.may_go_on(end) else None

    @contextmanager
    def preview_step(self) -> Iterator[None]:
        """Measure a draft step that is for the preview: it counts as none of the answer's own."""
        started_s = self.clock.now()
        yield
        self.step.learn(1, self.clock.now() - started_s)

    def worth_sending(self, tree: DraftTree) -> list[TreeNode]:
        """Return what has not been sent, is likely enough, and fits the uplink; parents first."""
        now_s, rate = self.clock.now(), self.config.uplink_bps / 8
        if not (self.shared or self.drafting.is_on) or self._paid_until_s > now_s + SENDING_S:
            return []
        # No message should hold the uplink for longer than SENDING_S: (SENDING_S · rate - head) / bytes per
        # node.
        fits = min(MAX_SENT_NODES, int(max(4.0, (SENDING_S * rate - MESSAGE_BYTES) / NODE_BYTES)))
        floor = max(SEND_FLOOR, self.floor, self.shared.floor(tree) if self.shared else self._floor)
        likely = tree.drawn_chain() if tree.proposals else [p for _, p in tree.ranked(floor)]
        # What the next draft step scores is sent with what the draft says of it.
        waiting = [p for p in likely if not p.number and p.parent and not (p.is_remembered and self._scores)]
        waiting = waiting[:fits]
        num_bytes = MESSAGE_BYTES + NODE_BYTES * len(waiting)
        if waiting:
            self._paid_until_s = max(self._paid_until_s, now_s) + num_bytes / rate
        return waiting

    def on_early_verdict(self, event: EarlyExitVerdict, tree: DraftTree) -> None:
        """Take an early verdict for as much as its exit has earned at this confidence."""
        path = tree.outcome(event.node, event.next_token)
        if path is None:
            return
        agreed = self.exits.setdefault((event.exit_layer, -1), RunningMean(AGREED, rate=0.05, trust=8))
        key = (event.exit_layer, int(8 * event.confidence))
        named = self.exits.setdefault(key, RunningMean(event.confidence, rate=0.05, trust=4))
        table = [agreed] * (len(path) - 1) + [named]
        priors = tree.suppose(path, [min(MOST_TRUST, mean.value) for mean in table])
        self.heard.append([*zip(table, path, priors, strict=True)])

    def on_commit(self, event: Commit, sent: int) -> None:
        """Take a commit: were the exits right, and how long did it take? `sent` nodes were on their way."""
        for verdict in self.heard:
            for (trust, token, prior), said in zip(verdict, event.tokens, strict=False):
                # Bayes: P(the exit knew | it was right) = t / (t + (1 - t) P(x)); a guess may be right by
                # chance.
                knew = trust.value / (trust.value + (1 - trust.value) * prior) if trust.value else 0.0
                trust.learn(knew if token == said else 0.0)
                if token != said:
                    break
        self.heard.clear()
        if self.shared:
            self.shared.committed(event, sent)
            return
        # The pass under way reaches down to nodes of chance f, and the next one from there as far again.
        self._floor = event.floor**2
        self.pass_s.learn(event.compute_s)
        self.token_s.learn(event.compute_s, len(event.tokens))
        # Where a draft step takes longer than the cloud takes per token, or the draft's choices are hardly
        # ever right, drafting helps only if hits show it.
        is_slow = self.step.base_s > self.token_s.value
        is_wrong = self.config.record.calibration.agreement.value < HOPELESS
        is_doubtful = (is_slow or is_wrong) and self.config.objective == "latency"
        # A commit that comes during a probe is read after it: that delays an answer, its end most of all.
        record, now_s = self.config.record, self.clock.now()
        record.total_s, self._heard_s = record.total_s + now_s - self._heard_s, now_s
        # Where nothing might be drafted, that nothing has helped says nothing.
        if self._was_free:
            self.drafting.learn(event.node > 0, is_doubtful, may_probe=record.may_probe(self.step.base_s))
        self._drafted_s, self._steps, self._was_free = 0.0, 0, True


MIN_MATCH = 2
RUN = 8
FORCED_WEIGHT = -0.001

LIKELY, MOST_PLACES = 0.05, 12
"""Nodes below which runs are offered: how likely they are at least, and how many."""


@dataclass(slots=True)
class PromptLookup:
    """Finds continuations of the committed tokens, and of the likeliest drafted ones: by `recall` in all
    earlier answers, else in `hints`. Where the draft says another token than a run, the run's rest goes on
    below that one. A draft step scores a whole run.

    `trust` is how often the next token of a run is right if all before it were.
    """

    hints: tuple[Tokens, ...] = ()
    trust: RunningMean = field(default_factory=lambda: RunningMean(0.6, trust=3))
    recall: Callable[[Tokens, int], Tokens] | None = None
    _offered: dict[Tokens, Tokens] = field(default_factory=dict)

    def offer(self, tree: DraftTree, drafter: Drafter) -> None:
        """Add forced tokens below what is likely, and remembered ones where nothing has been drafted yet."""
        for _, node in tree.ranked(LIKELY)[:8]:
            if not node.expanded and (run := forced_run(drafter, tree.tracer, tree.prefix + node.path())):
                # Forced tokens are certain; the tiny cost keeps them behind their parent in the ranking.
                tree.offer_path(node, run, FORCED_WEIGHT)
                _mark_expanded(node, run)
        self._judge(tree.prefix)
        # A run below what is drafted is at the cloud before the commit that leads there.
        for _, node in tree.ranked(LIKELY)[:MOST_PLACES]:
            if not (node.children or node.expanded or node.run) and tree.may_go_on(node):
                self._remember(tree, node)

    def _remember(self, tree: DraftTree, node: TreeNode) -> None:
        """Add a remembered run below `node`."""
        place = tree.prefix + node.path()
        if place in self._offered:
            return
        recall = self.recall or _nothing
        run = recall(place, MIN_MATCH) or self._aligned(node) or recall(place, 0) or self._continuation(place)
        self._offered[place] = run
        # The next token of a run is as likely as such tokens have been right so far.
        tree.offer_run(node, run, math.log(max(0.05, min(0.97, self.trust.value))))

    @staticmethod
    def _aligned(node: TreeNode) -> Tokens:
        """Return the rest of the run at whose next token `node` says something else."""
        before = node.parent
        if before is None or not before.run or before.run[0] == node.token:
            return ()
        other, *rest = before.run
        # What is another one here is another one wherever it comes again.
        return tuple(node.token if token == other else token for token in rest)

    def _judge(self, prefix: Tokens) -> None:
        """Learn from what has been committed where runs were offered."""
        for place, run in list(self._offered.items()):
            if len(place) >= len(prefix):
                continue
            del self._offered[place]
            if prefix[: len(place)] != place:
                continue
            said = prefix[len(place) :]
            for token, right in zip(run, said, strict=False):
                self.trust.learn(float(token == right))
                if token != right:
                    break
            else:
                if run[len(said) :]:
                    self._offered[prefix] = run[len(said) :]

    def _continuation(self, prefix: Tokens) -> Tokens:
        """Return what followed the longest match of the last tokens; at the start, a whole source's head."""
        for source in self.hints:
            if not prefix:
                return source
            if prefix == source[: len(prefix)]:
                return source[len(prefix) :]
        for length in range(4, MIN_MATCH - 1, -1):
            tail = prefix[-length:]
            if len(tail) < length:
                continue
            for source in (*self.hints, prefix[:-1]):
                for start in range(len(source) - length, -1, -1):
                    if source[start : start + length] == tail and source[start + length :]:
                        return source[start + length : start + length + RUN]
        return ()


def _nothing(said: Tokens, least: int) -> Tokens:
    """Recall nothing."""
    return ()


def _mark_expanded(node: TreeNode, run: Tokens) -> None:
    """A position with one legal token needs no draft step."""
    for token in run:
        node.expanded, node.choice = True, token
        node = node.children[token]
        node.is_drawn = True


STRATEGY = Strategy(
    name="hybrid",
    edge=edge,
    cloud=Cloud,
    drafts=True,
    source="ours; docs/decoding.md",
    waits_for_drafts=False,
    recalls=True,
    rules=RULES,
)

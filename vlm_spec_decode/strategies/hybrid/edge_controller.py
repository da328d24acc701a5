"""The edge's controller: how wide to draft, how far, and what to send, from running estimates.

It learns what a draft step and each further row of it cost, how long a pass of the target takes, and how
often each exit has been right at which confidence (a confusion table).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import Clock
from vlm_spec_decode.core.types import Commit, EarlyExitVerdict
from vlm_spec_decode.strategies.base import EdgeConfig
from vlm_spec_decode.strategies.estimators import HysteresisSwitch, RunningMean, RunningRatio, StepCost
from vlm_spec_decode.strategies.hybrid.draft_tree import FLOOR, DraftTree, TreeNode

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

AGREED, MOST_TRUST = 0.7, 0.98
"""Trust in an exit that agrees with a draft, before it is known; more than the second is never had."""


@dataclass(slots=True)
class EdgeController:
    """Decides for one answer. All estimates start from cautious priors."""

    config: EdgeConfig
    clock: Clock
    step: StepCost = field(default_factory=lambda: StepCost(slope=0.03, free=1))
    pass_s: RunningMean = field(default_factory=lambda: RunningMean(FIRST_PASS_S, trust=0))
    token_s: RunningRatio = field(default_factory=RunningRatio)
    drafting: HysteresisSwitch = field(default_factory=HysteresisSwitch)
    exits: dict[tuple[int, int], RunningMean] = field(default_factory=dict)
    heard: list[list[tuple[RunningMean, int, float]]] = field(default_factory=list)
    _drafted_s: float = 0.0
    _steps: int = 0
    _paid_until_s: float = 0.0

    def worth_expanding(self, growth: DraftTree) -> list[TreeNode]:
        """Return the nodes of the next draft step: as many as are worth their share of its time.

        A row of weight w pays if it adds more than the time it takes would add elsewhere. Drafting stops
        once it has outlasted a pass: then the cloud may be waiting for this thread, as in one process.
        """
        patience_s = PATIENCE[self.config.objective] * self.pass_s.value
        is_enough = self._steps >= (1 if self.drafting.is_probe else self.config.draft_length)
        if not self.drafting.is_on or (is_enough and self._drafted_s >= patience_s):
            self._explain_rest(patience_s)
            return []
        most = 1 if self.drafting.is_probe else MAX_BATCH
        chosen, total = list[TreeNode](), 0.0
        for weight, place in growth.leaves(FLOOR):
            share = self.step.slope * total / (1 + self.step.slope * max(0, len(chosen) - 1))
            if weight < share or len(chosen) == most:
                break
            chosen.append(place)
            total += weight
        if chosen:
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
        self.config.explain(
            f"{what}: {len(chosen)} rows of chance {total:.2f}; a step takes {step_ms:.1f} ms and "
            f"{percent:.1f} % a row, a pass {pass_ms:.0f} ms; exits agree {exits}"
        )

    def _explain_rest(self, patience_s: float) -> None:
        """Say why nothing is drafted."""
        if self.drafting.is_on:
            self.config.explain(
                f"no more drafts: {self._drafted_s:.2f} s without a commit, {patience_s:.2f} s are enough"
            )
        else:
            step_ms, token_ms = 1000 * self.step.base_s, 1000 * self.token_s.value
            self.config.explain(
                f"listens: a draft step takes {step_ms:.1f} ms, a token of the cloud {token_ms:.1f} ms"
            )

    @contextmanager
    def draft_step(self, rows: int) -> Iterator[None]:
        """Measure one draft step."""
        started_s = self.clock.now()
        yield
        seconds = self.clock.now() - started_s
        self.step.learn(rows, seconds)
        self._drafted_s += seconds
        self._steps += 1

    def worth_sending(self, growth: DraftTree) -> list[TreeNode]:
        """Return what has not been sent, is likely enough, and fits the uplink; parents first."""
        now_s, rate = self.clock.now(), self.config.uplink_bps / 8
        if not self.drafting.is_on or self._paid_until_s > now_s + SENDING_S:
            return []
        fits = min(MAX_SENT_NODES, int(max(4.0, (SENDING_S * rate - MESSAGE_BYTES) / NODE_BYTES)))
        likely = growth.drawn_chain() if growth.proposals else [p for _, p in growth.ranked(SEND_FLOOR)]
        waiting = [p for p in likely if not p.number and p.parent][:fits]
        num_bytes = MESSAGE_BYTES + NODE_BYTES * len(waiting)
        if waiting:
            self._paid_until_s = max(self._paid_until_s, now_s) + num_bytes / rate
        return waiting

    def hear(self, event: EarlyExitVerdict, growth: DraftTree) -> None:
        """Take an early verdict for as much as its exit has earned at this confidence."""
        path = growth.outcome(event.node, event.next_token)
        if path is None:
            return
        agreed = self.exits.setdefault((event.exit_layer, -1), RunningMean(AGREED, rate=0.05, trust=8))
        key = (event.exit_layer, int(8 * event.confidence))
        named = self.exits.setdefault(key, RunningMean(event.confidence, rate=0.05, trust=4))
        table = [agreed] * (len(path) - 1) + [named]
        priors = growth.suppose(path, [min(MOST_TRUST, mean.value) for mean in table])
        self.heard.append([*zip(table, path, priors, strict=True)])

    def learn(self, event: Commit) -> None:
        """Take a commit: were the exits right, and how long did it take?"""
        for verdict in self.heard:
            for (trust, token, prior), said in zip(verdict, event.tokens, strict=False):
                knew = trust.value / (trust.value + (1 - trust.value) * prior) if trust.value else 0.0
                trust.learn(knew if token == said else 0.0)
                if token != said:
                    break
        self.heard.clear()
        self.pass_s.learn(event.compute_s)
        self.token_s.learn(event.compute_s, len(event.tokens))
        is_slow = self.step.base_s > self.token_s.value and self.config.objective == "latency"
        self.drafting.learn(event.node > 0, is_slow)
        self._drafted_s, self._steps = 0.0, 0

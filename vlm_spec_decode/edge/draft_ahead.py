"""The edge's draft model alone, about a frame on the way: what it says is sent with a later question.

It costs the cloud and the link nothing, and the draft model would rest meanwhile. Nothing of it is committed.

What is known of the answer already, drafted about a frame before, is scored in one batched step: where the
draft says the same of the newer frame, nothing needs to be drafted again. The tree then grows at its
likeliest leaves. Where a distance is told the body's way to the question is taken off it, and what the draft
says next is drafted for each distance that may be told then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from vlm_spec_decode.core.ports import Drafter
from vlm_spec_decode.core.types import Tokens
from vlm_spec_decode.edge.hint_tree import HintNode, HintTree
from vlm_spec_decode.edge.told_numbers import ToldNumbers
from vlm_spec_decode.strategies.base import EdgeConfig, forced_run
from vlm_spec_decode.strategies.hybrid.draft_tree import DraftTree, TreeNode

UNLIKELY = -12.0
"""Log-probability of what was drafted about another frame, until the draft has seen this one."""

KEPT = 0.02
"""What is less likely is left out of the hint."""

LEAST = 0.1
"""Leaves that are less likely are not drafted below: a newer frame tells more."""

MOST_ROWS, MOST_KNOWN = 24, 40
"""Rows of a draft step, and of the first one, which scores what is known."""

NUMBERS = 0.5
"""Probability of all distances together from which on one is told here."""


@dataclass(slots=True, kw_only=True)
class DraftAhead:
    """One answer that is drafted ahead. `known` is what was drafted about an earlier frame."""

    drafter: Drafter
    config: EdgeConfig
    numbers: ToldNumbers
    known: HintTree = field(default_factory=HintTree)
    _tree: DraftTree = field(init=False)
    _ranked: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    """The candidates for a number that go on with a token, by the node before it."""
    _ends: list[list[TreeNode]] = field(default_factory=list)
    """For each number the ends of its candidates, the likeliest first."""

    def __post_init__(self) -> None:
        record = self.config.record
        self._tree = DraftTree(
            drafter=self.drafter, params=self.config.params, calibration=record.calibration
        )

    def steps(self) -> Iterator[Tokens]:
        """Yield the likeliest answer so far after each draft step, until more does not pay or may not be."""
        rows = [self._tree.root, *self._offer(self.known)]
        while rows and self.drafter.may_step:
            self._tree.expand(rows)
            for node in rows:
                self._tell_distances(node)
                self._force(node)
            yield self._tree.best_path()[0].path()
            rows = self._leaves()

    def hint(self) -> HintTree:
        """Return what has been drafted; () before the first step."""
        root = HintNode(token=-1)
        waiting = [(self._tree.root, root, 1.0)] if self._tree.root.expanded else []
        made = dict[int, HintNode]()
        while waiting:
            node, hint, weight = waiting.pop()
            ranks = self._ranked.get(id(node), {})
            for child in sorted(node.children.values(), key=lambda each: -each.log_prob):
                chance = math.exp(child.log_prob)
                # The likeliest answer is kept to its end.
                if weight * chance < KEPT and (hint.children or child.log_prob <= UNLIKELY):
                    break
                made[id(child)] = HintNode(child.token, chance, ranks.get(child.token, ()))
                hint.children.append(made[id(child)])
                waiting.append((child, made[id(child)], weight * chance))
        for ends in self._ends:
            # A distance below which nothing has been drafted is followed by what follows the likeliest one.
            places = [made[id(end)] for end in ends if id(end) in made]
            rest = next((each.children for each in places if each.children), [])
            for each in places:
                each.children = each.children or rest
        return HintTree(tuple(root.children))

    def _offer(self, known: HintTree) -> list[TreeNode]:
        """Add what is known, unlikely as yet, and return the nodes to be scored about this frame.

        The likeliest answer comes first, to its end, then what branches off, level by level.
        """
        chain, rows = list[TreeNode](), list[TreeNode]()
        level = [(self._tree.root, node, n == 0) for n, node in enumerate(known.top)]
        while level:
            below = list[tuple[TreeNode, HintNode, bool]]()
            for parent, node, is_best in level:
                child = self._tree.offer(parent, node.token, UNLIKELY)
                if self._tree.may_go_on(child):
                    (chain if is_best else rows).append(child)
                below += [(child, each, is_best and n == 0) for n, each in enumerate(node.children)]
            level = below
        return [*chain, *rows][:MOST_KNOWN]

    def _leaves(self) -> list[TreeNode]:
        """Return the likeliest leaves: a further row must bring more than its time would bring elsewhere.

        The likeliest answer is drafted to its end.
        """
        end, chance = self._tree.best_path()
        goes_on = not end.expanded and self._tree.may_go_on(end)
        slope, chosen, total = self.config.record.step.slope, [end] * goes_on, chance * goes_on
        for weight, node in self._tree.leaves(LEAST):
            if weight < slope * total / (1 + slope * max(0, len(chosen) - 1)) or len(chosen) == MOST_ROWS:
                break
            if node is not end:
                chosen.append(node)
                total += weight
        return chosen

    def _force(self, node: TreeNode) -> None:
        """Add the run that the grammar forces after the draft's choice: it costs no step."""
        child = node.children.get(node.choice)
        if child is None or child.expanded or not self._tree.may_go_on(child):
            return
        for token in forced_run(self.drafter, self.config.tracer, child.path()):
            child.expanded, child.choice = True, token
            child = self._tree.offer(child, token, 0.0)

    def _tell_distances(self, node: TreeNode) -> None:
        """Take the way off a distance drafted at `node`, so that those of the question are there."""
        before = node.path()
        if not self.numbers.is_described(before):
            return
        told = self.numbers.candidates(_drafted(node))
        if sum(told.values()) >= NUMBERS:
            self._branch(node, {(token,): chance for token, chance in told.items()})
        elif not told:
            self._tell_spelled(node, before)

    def _tell_spelled(self, end: TreeNode, before: Tokens) -> None:
        """The same for a distance of several tokens, or of a digit and its unit, that `end` completes."""
        spelled = self.numbers.spelled_m(before, end.choice)
        if spelled is None or end.parent is None:
            return
        count = spelled[0]
        start, chance = end.parent, 1.0
        for _ in range(count - 1):
            assert start.parent is not None
            start, chance = start.parent, chance * math.exp(start.log_prob)
        if id(start) in self._ranked:
            return
        # What else may stand in the last digit's place was drafted with it: P(d) = P(digits before) P(digit).
        drafted = dict[float, float]()
        for token, share in _drafted(end.parent).items():
            other = self.numbers.spelled_m((*before[:-1], token), end.choice)
            if other is not None and other[0] == count:
                drafted[other[1]] = chance * share
        if sum(drafted.values()) < NUMBERS:
            return
        told = self.numbers.told_now(drafted)
        spellings = {
            self.numbers.spelling(before[:-count], before[-count:], told_m): share
            for told_m, share in told.items()
        }
        self._branch(start, {(*ids, end.choice): share for ids, share in spellings.items() if ids})

    def _branch(self, start: TreeNode, told: dict[Tokens, float]) -> None:
        """Let one of the runs of tokens in `told`, likeliest first, follow `start`, each with its share."""
        ends, runs = list[TreeNode](), list(told)
        for run in runs:
            node, before = start, Tokens()
            for token in run:
                if id(node) not in self._ranked:
                    # What the draft said there was about the frame that it saw.
                    for child in node.children.values():
                        child.log_prob = min(child.log_prob, UNLIKELY)
                    self._ranked[id(node)] = {}
                    node.expanded, node.choice = True, token
                alike = [run for run in runs if run[: len(before)] == before]
                ranks = tuple(n for n, run in enumerate(runs) if run[: len(before) + 1] == (*before, token))
                # P(token | so far): the share of the runs that go on with it among those that begin alike.
                share = sum(told[runs[n]] for n in ranks) / sum(told[run] for run in alike)
                self._ranked[id(node)][token] = ranks
                node, before = self._tree.offer(node, token, math.log(share)), (*before, token)
            ends.append(node)
        self._ends.append(ends)


def _drafted(node: TreeNode) -> dict[int, float]:
    """Return the tokens that the draft itself says after `node`, each with its probability."""
    return {t: math.exp(c.log_prob) for t, c in node.children.items() if c.log_prob > UNLIKELY}

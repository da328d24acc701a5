"""Drafting on the target's own processor: every draft step delays the pass, so it must earn its time.

Drafting and verifying take turns. A pass of T seconds over a tree that is expected to bring E drafted tokens,
after C seconds of drafting, brings (1 + E) / (T + C) tokens per second. A draft step is taken if it raises
that, and so is a row of the pass; a prompt is read by the draft only if the answer is expected to pay for it.
A pass over two rows may cost twice what one over a single row does (a matrix times a matrix, no more times a
vector): so drafting must first of all be expected to beat plain passes, over several steps. Where nothing
pays, nobody drafts, except for probes that take at most `PROBE_SHARE` of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from vlm_spec_decode.core.types import Commit
from vlm_spec_decode.strategies.estimators import DraftRecord, best_token_s
from vlm_spec_decode.strategies.hybrid.draft_tree import FLOOR, DraftTree, TreeNode

USUAL_RATIO = 0.2
"""Of a draft step to a step of the target, before either has been measured or weighed."""

WORTH_OPENING = 0.9
"""Of the time per token without drafts: what it must come to before a prompt is read for the first time."""

MOST_STEPS, MOST_ROWS = 24, 24

NEVER = 2.0
"""No node is that likely."""

BLIND_STEPS = 2
"""Draft steps before a pass whose time nobody can tell yet: one reads the prompt, one is measured."""

MARGIN = 1.01
"""A step must raise the tokens per second by this factor: the estimates are not that good."""


@dataclass(slots=True, kw_only=True)
class SharedProcessor:
    """One answer's decisions: what the next draft step expands, and which nodes a pass should hold."""

    record: DraftRecord
    draft_length: int
    is_probe: bool = False
    _is_open: bool = False
    _drafted_s: float = 0.0
    _steps: int = 0
    _committed: int = 0

    def rows(self, tree: DraftTree) -> list[TreeNode]:
        """Return the nodes of the next draft step; () if the pass should start."""
        self.is_probe = False
        chosen = self._paying(tree)
        if chosen and not (self._is_open or self._opening_pays()):
            chosen = []
        return chosen or self._probe(tree)

    def why(self) -> str:
        """Say what the decisions rest on."""
        pass_s, step_s = self._times()
        agreement = self.record.calibration.agreement.value
        return (
            f"one processor: a draft step takes {1000 * step_s:.1f} ms, a pass {1000 * pass_s:.1f} ms and "
            f"{100 * self.record.passes.slope:.1f} % a row; first choices right: {agreement:.2f}"
        )

    def floor(self, tree: DraftTree) -> float:
        """Return the probability from which on a node pays for its row in the next pass."""
        if self._is_open and not self.record.opening_s.value:
            return 0.0  # by this clock nothing takes time
        expected, seconds = self._in_hand(tree)
        # A pass with drafts must bring more per second than one without; what they took has been paid.
        if (1 + expected) / (seconds - self._drafted_s) <= 1 / self._plain_s():
            return NEVER
        # One row more pays if P(node) / (slope · T) exceeds (1 + E) / (T + C).
        return self._row_s() * (1 + expected) / seconds

    def drafted(self, rows: int, seconds: float) -> None:
        """Take a draft step."""
        record = self.record
        if self.is_probe:
            record.probed_s += seconds
        record.total_s += seconds
        self._steps += 1
        if self._is_open:
            record.step.learn(rows, seconds)
            self._drafted_s += seconds
        else:  # it has read the prompt: that is paid, and says nothing of the steps to come
            record.opening_s.learn(seconds)
            self._is_open = True

    def committed(self, event: Commit, rows: int) -> None:
        """Take a commit, before which so many nodes were at the target."""
        record = self.record
        if event.pass_id == 1:
            record.first_pass_s.learn(event.compute_s)
        elif rows:
            record.passes.learn(rows, event.compute_s)
        else:
            record.plain_s.learn(event.compute_s)
        record.total_s += event.compute_s
        self._committed = event.start + len(event.tokens)
        if event.finished:
            record.tokens.learn(self._committed)
        self._drafted_s, self._steps = 0.0, 0

    def _paying(self, tree: DraftTree) -> list[TreeNode]:
        """Return the likeliest leaves, as many as raise the tokens per second most."""
        if self._is_open and not self.record.opening_s.value:  # by this clock drafting takes no time
            rows = MOST_ROWS if self._steps < self.draft_length else 0
            return [node for _, node in islice(tree.leaves(FLOOR), rows)]
        if self._is_blind and self._steps >= BLIND_STEPS:
            return []
        expected, seconds = self._in_hand(tree)
        _, step_s = self._times()
        agreement, row_s, slope = self._agreement, self._row_s(), self.record.step.slope
        if not expected and self._best_token_s() * MARGIN > self._plain_s():
            return []
        best, count, gain, nodes = MARGIN * (1 + expected) / seconds, 0, 0.0, list[TreeNode]()
        for rows, (weight, node) in enumerate(islice(tree.leaves(FLOOR), MOST_ROWS), 1):
            nodes.append(node)
            # A step of n rows takes c (1 + slope (n - 1)), and its children are rows of the pass; each first
            # choice is accepted with P(node) · a.
            gain += weight * agreement
            rate = (1 + expected + gain) / (seconds + step_s * (1 + slope * (rows - 1)) + rows * row_s)
            if rate > best:
                best, count = rate, rows
        return nodes[:count]

    def _in_hand(self, tree: DraftTree) -> tuple[float, float]:
        """Return E of the nodes that the next pass will hold, and T + C."""
        pass_s, _ = self._times()
        seconds, expected, row_s = pass_s + self._drafted_s, 0.0, self._row_s()
        for weight in _weights(tree):
            if weight * seconds < row_s * (1 + expected):
                break
            expected, seconds = expected + weight, seconds + row_s
        return expected, seconds

    def _opening_pays(self) -> bool:
        """Tell whether reading the prompt with the draft is expected to pay within this answer."""
        plain_s, token_s = self._plain_s(), self._best_token_s()
        if not (self.record.opening_s.count and self.record.tokens.count):
            return token_s < WORTH_OPENING * plain_s
        # N - n tokens are left, each of which takes t instead of T seconds; the prompt costs what it did.
        left = max(0.0, self.record.tokens.value - self._committed)
        return left * (plain_s - token_s) > self.record.opening_s.value

    def _probe(self, tree: DraftTree) -> list[TreeNode]:
        """Return the root alone if a probe is due: where nothing pays, that must be seen now and then."""
        record, root = self.record, tree.root
        _, step_s = self._times()
        cost_s = step_s if self._is_open else max(step_s, record.opening_s.value)
        is_known = self._is_open or record.opening_s.count
        if not is_known or self._steps or root.expanded or root not in (n for _, n in tree.leaves(FLOOR)):
            return []
        if not record.may_probe(cost_s):
            return []
        self.is_probe = True
        return [root]

    @property
    def _agreement(self) -> float:
        return min(0.98, self.record.calibration.agreement.value)

    @property
    def _is_blind(self) -> bool:
        """Whether a pass's time is neither measured nor known from the bytes that are read."""
        record = self.record
        return not (record.passes.base_s or record.plain_s.value or record.step_ratio)

    def _best_token_s(self) -> float:
        """Return the seconds per token with as many draft steps before each pass as are best, or none."""
        pass_s, step_s = self._times()
        return best_token_s(pass_s, step_s + self._row_s(), self._agreement, MOST_STEPS)

    def _plain_s(self) -> float:
        """Return what a pass without drafts takes."""
        pass_s, step_s = self._times()
        ratio = self.record.step_ratio
        return self.record.plain_s.value or (min(pass_s, step_s / ratio) if ratio else pass_s)

    def _row_s(self) -> float:
        """Return what one row adds to a pass."""
        return self.record.passes.slope * self._times()[0]

    def _times(self) -> tuple[float, float]:
        """Return T and c, what is unknown taken from the other; 1 and their ratio if both are."""
        pass_s = self.record.passes.base_s or self.record.plain_s.value
        step_s = self.record.step.base_s
        ratio = self.record.step_ratio or USUAL_RATIO
        if not pass_s:
            bound_s = self.record.first_pass_s.value or step_s / ratio
            pass_s = min(bound_s, step_s / ratio) if step_s else bound_s
        pass_s = pass_s or 1.0
        return pass_s, step_s or ratio * pass_s


def _weights(tree: DraftTree) -> Iterable[float]:
    """Return the probabilities of the nodes that may be sent, root excluded, likeliest first."""
    return (weight for weight, node in tree.ranked(FLOOR) if node.parent)
